"""A model that is opened and writes text with part of its weights in memory: `open_model`."""

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
    PredictLayer,
    Prepared,
    Request,
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
    """Open a model to write text with part of its weights in memory.

    What is wrong with the request or the model's files is found here. The image is packed or opened, and
    checked, when the model is entered (`with`) or first used.

    Args:
        path: "tiny" for the shipped model, or a Hugging Face checkpoint's folder.
        memory: a share of the model's bytes, such as 0.5, or bytes, such as "6GB".
        window: tokens that the window remembers; None: the largest up to 5 whose mean need fits.
        predictor: "trained"; "exact", an oracle; "gate", a gate projection that is resident; the path of a
            file of trained predictors; or a function of a layer and x that gives the active neurons' ids.
        predictors: the file of trained predictors; None: the one in the model's folder.
        semantics: which rows the FFN sums: "resident", "predicted", or a function.
        placement: where new rows go: "swap_with_last", "fill_holes", or a function.
        device: a preset's name, a JSON file of a device or of a calibration, or a Device.
        reader: "memory" simulates the times of the device, "direct" really reads.
        image: the flash image, used if it exists, else packed and kept; None: packed into a temporary folder.
        activation: "relu" or "fatrelu:T" instead of the model's own.
        proof: whether every weight is kept in memory, to judge each step by.
        progress: is told how far packing, checking and decoding have come.

    Returns:
        The model; it holds open files, and perhaps threads and a temporary folder, so use it with `with`.

    Raises:
        FlashrefError: its text says what is wrong and what to do.
    """
    if isinstance(predictor, os.PathLike) or (isinstance(predictor, str) and predictor not in PREDICTORS):
        predictor, predictors = "trained", predictor
    if reader not in READERS:
        raise DomainError(f"reader {reader!r} is unknown; use one of {', '.join(READERS)}")
    request = Request(
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
    """A model that is read from flash, as `open_model` gives it.

    It holds resources: files, the threads of a reader, perhaps a temporary folder; `close` frees them. Every
    text begins with empty windows, so that equal requests give equal texts.
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
        """Pack the image or open it, and check it; nothing if that was done.

        Args:
            progress: is told how far it has come; None: as the model was opened with.
        """
        if self._setup is None:
            with ExitStack() as resources:
                self._setup = set_up(self._prepared, resources, progress or self._progress)
                self._resources = resources.pop_all()
        return self._setup

    def close(self) -> None:
        """Close files, end threads, remove the temporary folder."""
        self._setup = None
        self._resources.close()

    @property
    def prepared(self) -> Prepared:
        """The request and the model's small files."""
        return self._prepared if self._setup is None else self._setup.prepared

    @property
    def name(self) -> str:
        """ "tiny", or the folder."""
        folder = self._prepared.checkpoint.directory
        return "tiny" if folder == TINY else str(folder)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text. Raises DomainError where the model has no tokenizer."""
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
            prompt: a text, or token ids.
            tokens: how many new ones.
            temperature: of sampling; 0 takes the likeliest token.
            seed: of sampling.
            cold: whether the windows are emptied after the prompt (decision 21).

        Returns:
            The text with everything that happened; `str()` of it is the prompt and what was written.

        Raises:
            DomainError: prompt and new tokens do not fit the model.
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
        """Write a text piece by piece: iterate over what is returned. As `generate` otherwise."""
        return self.write(self.request(prompt, tokens, temperature, seed, cold))

    def request(
        self,
        prompt: str | Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        cold: bool = False,
    ) -> TextRequest:
        """A text that is asked for, checked before anything is packed or decoded. As `generate` otherwise."""
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        config = self._prepared.checkpoint.config
        check_request(ids, tokens, config.context, config.vocabulary)
        request = TextRequest(tuple(ids), tokens, temperature, seed, cold)
        request.sampler()  # which refuses a temperature or a seed below 0
        return request

    def write(
        self, request: TextRequest, keep_steps: bool = True, progress: Progress | None = None
    ) -> TextStream:
        """The text of a request, while it is written: iterate over its pieces, or `finish` it.

        Args:
            request: as `request` gives it.
            keep_steps: whether the text has every Step; without them it takes far less memory.
            progress: is told of every pass; None: as the model was opened with.
        """
        setup = self.open()
        new_ids = decode_flash(setup.decoder, request, setup.proof, keep_steps, progress or self._progress)
        return TextStream(new_ids, request, self._prepared.tokenizer, self._text)

    def dense_ids(self, request: TextRequest) -> tuple[int, ...] | None:
        """The new tokens of the same text by the dense model; None without the weights of a proof."""
        setup = self.open()
        return None if setup.ffns is None else decode_dense(setup.decoder.model, request, setup.ffns)

    def perplexity(self, text: str | Sequence[int], progress: Progress | None = None) -> FlashPerplexity:
        """How well the model foresees a text, teacher-forced: dense, from flash, and with its own activation.

        Args:
            text: a text, or token ids; two tokens or more.
            progress: is told of every token; None: as the model was opened with.

        Raises:
            DomainError: the text foresees no token.
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
        """What the proof has found in all that was read and decoded so far."""
        return self.open().proof.verdict

    def measure_memory(self) -> Memory:
        """The peak of the process's memory until now beside what it may be."""
        setup = self.open()
        config, before = self._prepared.checkpoint.config, self._prepared.memory_before
        beside = kv_cache_bytes(config, self._longest_pass), self._largest_record
        return measure_memory(setup.budget, setup.demand, before, beside, self._prepared.request.proof)

    def _text(self, request: TextRequest, decoded: Decoded) -> GeneratedText:
        """The text of what was decoded, whose sizes are kept for `measure_memory`."""
        self._longest_pass = max(self._longest_pass, len(request.prompt_ids) + request.tokens - 1)
        self._largest_record = max(self._largest_record, decoded.record.nbytes)
        prompt = text = None
        if self._prepared.tokenizer is not None:
            prompt = self._prepared.tokenizer.decode(request.prompt_ids)
            text = written_text(self._prepared.tokenizer, request.prompt_ids, decoded.new_ids)
        peak = max(0, decoded.account.peak_memory - self._prepared.memory_before)
        account = decoded.account._replace(peak_memory=peak)
        return GeneratedText(prompt, text, request, *decoded._replace(account=account))
