"""A text decoded from flash and proven, the same by the dense model, and the perplexity of both."""

from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.decode import LayerState, Step
from flashref.ffn import active_neurons, dense_ffn
from flashref.models.flash import Decoder, Observe, flash_ffn
from flashref.models.generate import ForwardOne, generate, perplexity
from flashref.models.memory import peak_bytes
from flashref.models.model import FeedForward, Model, one_at_a_time
from flashref.models.predictors import Errors, count_errors, pool_errors
from flashref.models.proof import Proof
from flashref.models.text import (
    Account,
    GeneratedText,
    Record,
    RecordedIds,
    TextRequest,
    id_pieces,
    shown_ids,
)
from flashref.models.tokens import Tokenizer, text_pieces
from flashref.storage.progress import Progress, unseen
from flashref.types import FFN, IO, Array, Ids, Vector


class Decoded(NamedTuple):
    """A text decoded from flash, as token ids; the fields are those of GeneratedText."""

    new_ids: tuple[int, ...]
    steps: Sequence[Sequence[Step]]
    record: Record
    errors: Errors | None
    account: Account


def decode_flash(
    decoder: Decoder,
    request: TextRequest,
    proof: Proof,
    keep_steps: bool = True,
    progress: Progress = unseen,
) -> Generator[int, None, Decoded]:
    """A text from flash, token by token; every step is proven, its predictions recorded and judged.

    Args:
        decoder: the model; its layers' states are those before the first token.
        request: the prompt, whose tokens pass through the same windows, and what is to follow.
        proof: observes every step.
        keep_steps: whether all that happened is kept; else what was predicted, and sums.
        progress: is told of every pass.

    Returns:
        A generator of the new token ids, which returns the Decoded.

    Raises:
        DomainError: the request does not fit the model; at the first token.

    Decision 21: the prompt is decoded token by token, and counts for nothing but the windows.
    """
    config, first_new = decoder.model.config, len(request.prompt_ids) - 1
    ledger = _Ledger(decoder, proof, first_new, keep_steps)
    feed_forward = flash_ffn(decoder, ledger.observer())

    def one_pass(token_id: int) -> Array:
        nonlocal feed_forward
        if request.cold and len(ledger.seconds) == first_new:
            feed_forward = flash_ffn(decoder, ledger.observer())
        progress("decoding from flash", len(ledger.seconds) + 1, first_new + request.tokens)
        started = perf_counter()
        logits = forward_one(token_id)
        ledger.seconds.append(perf_counter() - started)
        return logits

    tokens = generate(  # which looks at what was asked for before there is a cache of that size
        one_pass,
        request.prompt_ids,
        request.tokens,
        request.sampler(),
        context=config.context,
        vocabulary=config.vocabulary,
    )
    room = len(request.prompt_ids) + request.tokens - 1
    forward_one = one_at_a_time(decoder.model, lambda layer, x: feed_forward(layer, x), room)
    new_ids = []
    for token_id, _ in tokens:
        new_ids.append(token_id)
        yield token_id
    return ledger.decoded(tuple(new_ids), 0 if request.cold else first_new)


class _Ledger:
    """What is noted of a text while it is decoded; passes before `first_new` are not in the account."""

    def __init__(self, decoder: Decoder, proof: Proof, first_new: int, keep_steps: bool) -> None:
        self._decoder, self._proof, self._first_new, self._keep_steps = decoder, proof, first_new, keep_steps
        self.seconds: list[float] = []  # of each pass
        self._io, self._moved_rows, self._overflows = IO(0, 0, 0, 0), 0, 0
        self._errors = Errors(0, 0, 0, 0)

    def observer(self) -> Observe:
        """Who sees the steps from here on, from empty windows; what was recorded before is forgotten."""
        self._steps: list[list[Step]] = []
        self._predicted: list[list[RecordedIds]] = []
        neurons, check, ffns = self._decoder.model.config.neurons, self._proof.observer(), self._proof.ffns
        smallest, first_pass = np.min_scalar_type(neurons - 1), len(self.seconds)

        def observe(layer: int, x: Vector, y: Vector, step: Step) -> None:
            overflows = self._proof.overflows
            check(layer, x, y, step)
            self._overflows += self._proof.overflows - overflows
            if ffns is not None:
                active = active_neurons(x, ffns[layer])
                masks = (_mask(ids, neurons) for ids in (step.predicted, active))
                self._errors = pool_errors([self._errors, count_errors(*masks)])
            if len(self._predicted) == len(self.seconds) - first_pass:  # the pass's first step
                self._predicted.append([])
                self._steps.append([])
            self._predicted[-1].append(step.predicted.astype(smallest))
            if self._keep_steps:
                self._steps[-1].append(step)
            if len(self.seconds) >= self._first_new:
                self._io = IO(*(a + b for a, b in zip(self._io, step.io, strict=True)))
                self._moved_rows += len(step.moves.source)

        return observe

    def decoded(self, new_ids: tuple[int, ...], first_counted: int) -> Decoded:
        """What the text came to."""
        layers = (state for state in self._decoder.layers if isinstance(state, LayerState))
        bundle_bytes = next((state.layout.bundle_bytes for state in layers), 0)
        account = Account(
            *self._io,
            moved_rows=self._moved_rows,
            moved_bytes=self._moved_rows * bundle_bytes,
            overflows=self._overflows,
            seconds=sum(self.seconds),
            tokens_per_second=len(new_ids) / sum(self.seconds[self._first_new :]),
            peak_memory=peak_bytes(),
        )
        return Decoded(
            new_ids,
            self._steps if self._keep_steps else (),
            Record(self._predicted, first_counted),
            self._errors if self._proof.ffns is not None else None,
            account,
        )


class TextStream:
    """A text while it is written: iterate over its pieces, then `finish` gives the whole of it."""

    def __init__(
        self,
        new_ids: Generator[int, None, Decoded],
        request: TextRequest,
        tokenizer: Tokenizer | None,
        text_of: Callable[[TextRequest, Decoded], GeneratedText],
    ) -> None:
        self._new_ids, self._request, self._tokenizer, self._text_of = new_ids, request, tokenizer, text_of
        self._decoded: Decoded | None = None

    @property
    def prompt(self) -> str:
        """What the text begins with: the prompt, or its ids and an arrow where there is no tokenizer."""
        if self._tokenizer is None:
            return f"{shown_ids(self._request.prompt_ids)} → "
        return self._tokenizer.decode(self._request.prompt_ids)

    def __iter__(self) -> Iterator[str]:
        ids = self._remembering()
        if self._tokenizer is None:
            return id_pieces(ids)
        return text_pieces(self._tokenizer, self._request.prompt_ids, ids)

    def finish(self) -> GeneratedText:
        """The whole text, what is missing of it written first."""
        for _ in self._remembering():
            pass
        assert self._decoded is not None
        return self._text_of(self._request, self._decoded)

    def _remembering(self) -> Iterator[int]:
        """The ids that are left, and then what they came to."""
        decoded = yield from self._new_ids
        self._decoded = self._decoded or decoded


def decode_dense(model: Model, request: TextRequest, ffns: Sequence[FFN]) -> tuple[int, ...]:
    """The new tokens of the same text by the dense model, from weights in memory."""
    room = len(request.prompt_ids) + request.tokens - 1
    forward_one = one_at_a_time(model, lambda layer, x: dense_ffn(x, ffns[layer]), room)
    context, vocabulary = model.config.context, model.config.vocabulary
    sampler = request.sampler()
    tokens = generate(
        forward_one, request.prompt_ids, request.tokens, sampler, context=context, vocabulary=vocabulary
    )
    return tuple(token_id for token_id, _ in tokens)


class FlashPerplexity(NamedTuple):
    """Perplexity per token of the dense model, of the model read from flash, and with its own activation.

    None: not measured, because its weights are not in memory, or its activation is its own.
    """

    dense: float | None
    flash: float
    unchanged: float | None


def measure_perplexities(
    text_ids: Sequence[int],
    decoder: Decoder,
    ffns: Sequence[FFN] | None,
    advance: Progress = unseen,
    fresh_observer: Callable[[], Observe] = lambda: lambda *_: None,
    unchanged: Sequence[FFN] | None = None,
) -> FlashPerplexity:
    """The perplexity of a text, teacher-forced in chunks of the context, each with empty windows.

    Args:
        text_ids: two or more token ids.
        decoder: the model that is read from flash.
        ffns: of the dense model as it is run, or None where they are not in memory.
        advance: is told how many tokens have passed.
        fresh_observer: called at the start of each chunk from flash, gives who sees its steps.
        unchanged: the FFNs with the activation that the model came with, or None.

    Raises:
        DomainError: the text foresees no token.
    """
    model, passes = decoder.model, 0
    context = min(model.config.context, len(text_ids))
    texts = 1 + (ffns is not None) + (unchanged is not None)

    def counted(forward_one: ForwardOne) -> ForwardOne:
        def forward(token_id: int) -> Array:
            nonlocal passes
            passes += 1
            advance("perplexity", passes, texts * len(text_ids))
            return forward_one(token_id)

        return forward

    def measured(fresh_ffn: Callable[[], FeedForward]) -> float:
        found = perplexity(text_ids, context, lambda: counted(one_at_a_time(model, fresh_ffn(), context - 1)))
        return found.perplexity

    def dense(weights: Sequence[FFN] | None) -> float | None:
        if weights is None:
            return None
        return measured(lambda: lambda layer, x: dense_ffn(x, weights[layer]))

    return FlashPerplexity(
        dense(ffns), measured(lambda: flash_ffn(decoder, fresh_observer())), dense(unchanged)
    )


def _mask(ids: Ids, n: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[ids] = True
    return mask
