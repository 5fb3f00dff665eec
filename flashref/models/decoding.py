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
from flashref.models.text import Account, Record, RecordedIds, Text, TextRequest, id_pieces, shown_ids
from flashref.models.tokens import Tokenizer, text_pieces
from flashref.storage.progress import Progress, unseen
from flashref.types import FFN, IO, Array, Ids, Vector


class Decoded(NamedTuple):
    """A text decoded from flash, as token ids; the fields are those of Text."""

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
    config = decoder.model.config
    first_new = len(request.prompt_ids) - 1
    smallest = np.min_scalar_type(config.neurons - 1)
    steps: list[list[Step]] = []
    predicted: list[list[RecordedIds]] = []
    errors: list[Errors] = []
    seconds: list[float] = []  # of each pass
    total, moved_rows, overflows_before = IO(0, 0, 0, 0), 0, proof.overflows

    def observe(layer: int, x: Vector, y: Vector, step: Step) -> None:
        nonlocal total, moved_rows
        proof.observe(layer, x, y, step)
        if proof.ffns is not None:
            active = active_neurons(x, proof.ffns[layer])
            masks = (_mask(ids, config.neurons) for ids in (step.predicted, active))
            errors.append(count_errors(*masks))
        predicted[-1].append(step.predicted.astype(smallest))
        if keep_steps:
            steps[-1].append(step)
        if len(seconds) >= first_new:  # a pass that chooses a new token
            total = IO(*(a + b for a, b in zip(total, step.io, strict=True)))
            moved_rows += len(step.moves.source)

    proof.restart()
    feed_forward = flash_ffn(decoder, observe)

    def one_pass(token_id: int) -> Array:
        nonlocal feed_forward
        if request.cold and len(seconds) == first_new:
            proof.restart()
            feed_forward = flash_ffn(decoder, observe)
            predicted.clear()
            steps.clear()
        predicted.append([])
        steps.append([])
        progress("decoding from flash", len(seconds) + 1, first_new + request.tokens)
        started = perf_counter()
        logits = forward_one(token_id)
        seconds.append(perf_counter() - started)
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
    return Decoded(
        tuple(new_ids),
        steps if keep_steps else (),
        Record(predicted, 0 if request.cold else first_new),
        pool_errors(errors) if proof.ffns is not None else None,
        Account(
            *total,
            moved_rows=moved_rows,
            moved_bytes=moved_rows * _bundle_bytes(decoder),
            overflows=proof.overflows - overflows_before,
            seconds=sum(seconds),
            tokens_per_second=len(new_ids) / sum(seconds[first_new:]),
            peak_memory=peak_bytes(),
        ),
    )


class TextStream:
    """A text while it is written: iterate over its pieces, then `finish` gives the whole of it."""

    def __init__(
        self,
        new_ids: Generator[int, None, Decoded],
        request: TextRequest,
        tokenizer: Tokenizer | None,
        text_of: Callable[[TextRequest, Decoded], Text],
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

    def finish(self) -> Text:
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


def _bundle_bytes(decoder: Decoder) -> int:
    return next((s.layout.bundle_bytes for s in decoder.layers if isinstance(s, LayerState)), 0)
