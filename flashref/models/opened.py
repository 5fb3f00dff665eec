"""`open_model`: a model that writes text while its FFN weights are read from flash."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from flashref.decode import Place, Semantics
from flashref.models.budget import Amount, parse_memory
from flashref.models.checkpoint import TINY, parse_activation
from flashref.models.decoding import decode_dense, decode_flash
from flashref.models.generate import check_request
from flashref.models.memory import Memory, kv_cache_bytes, measure_memory
from flashref.models.perplexity import FlashPerplexity, measure_perplexities
from flashref.models.prepared import (
    PLACEMENTS,
    PREDICTORS,
    READERS,
    SEMANTICS,
    ModelRequest,
    PredictLayer,
    Prepared,
    chosen,
    encode,
    prepare,
)
from flashref.models.proof import Proven
from flashref.models.setup import Setup, set_up
from flashref.models.text import Decoded, GeneratedText, TextRequest, TextStream
from flashref.models.tokens import written_text
from flashref.storage.calibration import find_device
from flashref.storage.device import Device
from flashref.storage.progress import Progress, unseen
from flashref.types import DomainError

PathLike = str | os.PathLike[str]


def open_model(
    path: PathLike,
    *,
    memory: float | str | Amount = 0.5,
    window: int | None = None,
    predictor: str | PathLike | PredictLayer = "trained",
    predictors: PathLike | None = None,
    semantics: str | Semantics = "resident",
    placement: str | Place = "swap_with_last",
    device: PathLike | Device = "paper_m1max_fig2b",
    reader: str = "memory",
    image: PathLike | None = None,
    activation: str | tuple[str, float] | None = None,
    proof: bool = True,
    progress: Progress = unseen,
) -> "OpenModel":
    """Open a model that writes text while its FFN weights are read from flash.

    The request and the model's small files are checked here. The image is packed or opened, and checked, when
    the model is entered (`with`) or first used.

    Args:
        path: "tiny" for the shipped model, or the folder of a Hugging Face checkpoint.
        memory: the memory that the model gets: a share of its bytes, such as 0.5, or bytes, such as "6GB".
        window: the number of tokens whose predicted neurons stay in memory; None: the largest number up to 5
            for which the memory is enough on average.
        predictor: "trained"; "exact", which computes the active neurons from weights in memory; "gate", which
            computes them from a gate projection in memory; the path of a file with trained predictors; or a
            function from a layer and what its up projection receives to the ids of the active neurons.
        predictors: the file with the trained predictors; None: the one in the model's folder.
        semantics: which neurons the FFN sums: "resident", "predicted", or a function.
        placement: how rows are placed in the DRAM matrix: "swap_with_last", "fill_holes", or a function.
        device: the name of a preset, a JSON file of a device or of a calibration, or a Device.
        reader: "memory" simulates the times of the reads; "direct" really reads, past the page cache.
        image: the flash image, used if it exists, else packed and kept; None: it is packed into a temporary
            folder.
        activation: "relu" or "fatrelu:T", which replaces the model's own; None: its own.
        proof: whether all weights are kept in memory too, so that every step is checked with them.
        progress: is told how far packing, checking and decoding have come.

    Returns:
        The model. It holds open files, and perhaps threads and a temporary folder, so use it with `with`.

    Raises:
        FlashrefError: the request cannot be met, or a file cannot be used; the message says what to do.
    """
    if isinstance(predictor, os.PathLike) or (isinstance(predictor, str) and predictor not in PREDICTORS):
        predictor, predictors = "trained", predictor
    if reader not in READERS:
        raise DomainError(f"reader {reader!r} is unknown; use one of {', '.join(READERS)}")
    request = ModelRequest(
        memory=parse_memory(memory),
        window=window,
        predictor=predictor,
        predictors=None if predictors is None else Path(predictors),
        semantics=chosen("semantics", SEMANTICS, semantics),
        placement=chosen("placement", PLACEMENTS, placement),
        device=device if isinstance(device, Device) else find_device(os.fspath(device)),
        reader=reader,
        image=None if image is None else Path(image),
        activation=parse_activation(activation) if isinstance(activation, str) else activation,
        proof=proof,
    )
    shipped = str(path) == "tiny" and not Path(path).is_dir()
    return OpenModel(prepare(TINY if shipped else Path(path), request), progress)


class OpenModel:
    """A model whose FFN weights are read from flash, as `open_model` gives it.

    It holds open files, the threads of a reader and perhaps a temporary folder; `close` frees them. Every
    text begins with empty windows, so equal requests give equal texts.
    """

    def __init__(self, prepared: Prepared, progress: Progress = unseen) -> None:
        self._prepared, self._progress = prepared, progress
        self._resources = ExitStack()
        self._setup: Setup | None = None
        self._longest_pass, self._largest_record = 0, 0

    def __enter__(self) -> "OpenModel":
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self.prepared.checkpoint.config
        return f"<{self.name}: {config.family}, {config.layers} layers of {config.neurons} neurons>"

    def open(self, progress: Progress | None = None) -> Setup:
        """Pack or open the image, and check it, unless that was done before.

        Args:
            progress: is told how far this has come; None: the one that was given to `open_model`.

        Returns:
            What the model decodes with.

        Raises:
            ImageError: the image or the predictors belong to another model, or a file is damaged.
            DomainError: the memory is too small for the image's blocks, or a weight is not finite.
        """
        if self._setup is None:
            with ExitStack() as resources:
                self._setup = set_up(self._prepared, resources, progress or self._progress)
                self._resources = resources.pop_all()
        return self._setup

    def close(self) -> None:
        """Close the files, end the threads and remove the temporary folder."""
        self._setup = None
        self._resources.close()

    @property
    def prepared(self) -> Prepared:
        """The request, and what was read from the model's small files."""
        return self._prepared if self._setup is None else self._setup.prepared

    @property
    def name(self) -> str:
        """ "tiny" for the shipped model, else its folder."""
        folder = self._prepared.checkpoint.directory
        return "tiny" if folder == TINY else str(folder)

    def encode(self, text: str) -> list[int]:
        """Turn a text into token ids.

        Args:
            text: the text.

        Returns:
            Its token ids, with those that the tokenizer adds to every text.

        Raises:
            DomainError: the model has no tokenizer, or the text cannot be written as UTF-8.
        """
        return encode(self._prepared, text)

    def generate(
        self,
        prompt: str | Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        cold: bool = False,
    ) -> GeneratedText:
        """Write a text.

        Args:
            prompt: the beginning of the text, as text or as token ids.
            tokens: the number of new tokens.
            temperature: the temperature of sampling; 0 always takes the likeliest token.
            seed: the seed of sampling.
            cold: whether the windows are emptied after the prompt, instead of keeping what it warmed
                (decision 21).

        Returns:
            The text, with every step and its account; `str()` of it is the prompt and the new text.

        Raises:
            DomainError: the prompt and the new tokens do not fit the model.
        """
        return self.stream(prompt, tokens, temperature, seed, cold).finish()

    def stream(
        self,
        prompt: str | Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        cold: bool = False,
    ) -> TextStream:
        """Write a text piece by piece.

        Args:
            prompt, tokens, temperature, seed, cold: as in `generate`.

        Returns:
            A stream: iterate over it for the pieces, then `finish` it for the whole text.

        Raises:
            DomainError: the prompt and the new tokens do not fit the model.
        """
        return self.write(self.request(prompt, tokens, temperature, seed, cold))

    def request(
        self,
        prompt: str | Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        cold: bool = False,
    ) -> TextRequest:
        """Check what is asked for before anything is packed or decoded.

        Args:
            prompt, tokens, temperature, seed, cold: as in `generate`.

        Returns:
            The request, for `write` and `dense_ids`.

        Raises:
            DomainError: the prompt and the new tokens do not fit the model.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        config = self._prepared.checkpoint.config
        check_request(ids, tokens, config.context, config.vocabulary)
        request = TextRequest(tuple(ids), tokens, temperature, seed, cold)
        request.sampler()  # raises for a temperature or a seed below 0
        return request

    def write(
        self, request: TextRequest, keep_steps: bool = True, progress: Progress | None = None
    ) -> TextStream:
        """Write the text of a request.

        Args:
            request: what `request` returned.
            keep_steps: whether the text keeps every Step; without them it takes far less memory.
            progress: is told of every pass; None: the one that was given to `open_model`.

        Returns:
            A stream: iterate over it for the pieces, then `finish` it for the whole text.
        """
        setup = self.open()
        new_ids = decode_flash(setup.decoder, request, setup.proof, keep_steps, progress or self._progress)
        return TextStream(new_ids, request, self._prepared.tokenizer, self._text)

    def dense_ids(self, request: TextRequest) -> tuple[int, ...] | None:
        """Let the dense model write the text of a request.

        Args:
            request: what `request` returned.

        Returns:
            The ids of its new tokens; None without a proof, whose weights in memory this needs.
        """
        setup = self.open()
        return None if setup.ffns is None else decode_dense(setup.decoder.model, request, setup.ffns)

    def perplexity(self, text: str | Sequence[int], progress: Progress | None = None) -> FlashPerplexity:
        """Measure the perplexity of a text, each of whose tokens is foreseen from those before it.

        Args:
            text: a text, or token ids; at least two tokens.
            progress: is told of every token; None: the one that was given to `open_model`.

        Returns:
            The perplexities of the dense model, of the model read from flash, and of the dense model with its
            own activation where another one is run.

        Raises:
            DomainError: the text has fewer than two tokens.
        """
        setup, prepared = self.open(), self.prepared
        ids = self.encode(text) if isinstance(text, str) else list(text)
        config, unchanged = prepared.checkpoint.config, None
        if setup.ffns is not None and prepared.own_activation != (config.activation, config.tau):
            activation, tau = prepared.own_activation
            unchanged = tuple(ffn._replace(activation=activation, tau=tau) for ffn in setup.ffns)
        self._longest_pass = max(self._longest_pass, min(len(ids), config.context) - 1)
        return measure_perplexities(
            ids, setup.decoder, setup.ffns, progress or self._progress, unchanged=unchanged
        )

    def verify(self) -> Proven:
        """Return the verdict of the proof on everything that was read and decoded so far."""
        return self.open().proof.verdict

    def measure_memory(self) -> Memory:
        """Return the peak of the process's memory until now, beside what is allowed."""
        setup = self.open()
        config, before = self._prepared.checkpoint.config, self._prepared.memory_before
        beside = kv_cache_bytes(config, self._longest_pass), self._largest_record
        return measure_memory(setup.budget, setup.demand, before, beside, self._prepared.request.proof)

    def _text(self, request: TextRequest, decoded: Decoded) -> GeneratedText:
        """Make the text of what was decoded, and remember its sizes for `measure_memory`."""
        self._longest_pass = max(self._longest_pass, len(request.prompt_ids) + request.tokens - 1)
        self._largest_record = max(self._largest_record, decoded.record.nbytes)
        prompt = text = None
        if self._prepared.tokenizer is not None:
            prompt = self._prepared.tokenizer.decode(request.prompt_ids)
            text = written_text(self._prepared.tokenizer, request.prompt_ids, decoded.new_ids)
        peak = max(0, decoded.account.peak_memory - self._prepared.memory_before)
        account = decoded.account._replace(peak_memory=peak)
        return GeneratedText(prompt, text, request, *decoded._replace(account=account))
