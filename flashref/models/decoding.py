"""Decoding: a text from flash, every step checked and counted, and the same text by the dense model."""

from collections.abc import Generator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.decode import LayerState, Place, Predict, Semantics, Step, decode_layer
from flashref.ffn import active_neurons, dense_ffn
from flashref.models.generate import generate
from flashref.models.memory import peak_bytes
from flashref.models.model import FeedForward, Model, one_at_a_time
from flashref.models.predictors import ErrorCounts, count_errors, pool_errors
from flashref.models.proof import Observe, Proof
from flashref.models.text import Account, Decoded, Record, RecordedIds, TextRequest
from flashref.storage.progress import Progress, unseen
from flashref.types import FFN, IO, Array, Ids, Reader, Vector


class Decoder(NamedTuple):
    """Everything that decoding from flash needs.

    Attributes:
        model: the model without its FFN matrices.
        layers: the state of each layer before the first token, or the FFN of a layer that has no predictor
            and is resident whole (decision 15).
        predict: what predicts the active neurons of each layer; None for a layer that is resident whole.
        place, read, semantics: as in `decode_layer`.
    """

    model: Model
    layers: tuple[LayerState | FFN, ...]
    predict: tuple[Predict | None, ...]
    place: Place
    read: Reader
    semantics: Semantics


def flash_ffn(decoder: Decoder, observe: Observe) -> FeedForward:
    """Make the FFN that reads from flash, as `forward` takes it.

    Args:
        decoder: the model on flash.
        observe: is called with every step of every layer that is read from flash.

    Returns:
        A function for one text: it holds the states of the layers, whose windows are empty at first.
    """
    states = list(decoder.layers)

    def feed_forward(layer: int, x: Array) -> Array:
        state, predict = states[layer], decoder.predict[layer]
        if isinstance(state, FFN) or predict is None:
            assert isinstance(state, FFN)
            return dense_ffn(x, state)
        y, states[layer], step = decode_layer(
            state, x, predict, decoder.place, decoder.read, decoder.semantics
        )
        observe(layer, x, y, step)
        return y

    return feed_forward


def decode_flash(
    decoder: Decoder,
    request: TextRequest,
    proof: Proof,
    keep_steps: bool = True,
    progress: Progress = unseen,
) -> Generator[int, None, Decoded]:
    """Decode a text from flash, token by token.

    Args:
        decoder: the model on flash.
        request: the prompt and the number of new tokens.
        proof: checks every step.
        keep_steps: whether every Step is kept, not only the predicted neurons and the sums.
        progress: is told of every pass.

    Returns:
        A generator of the new token ids, which returns the Decoded.

    Raises:
        DomainError: the request does not fit the model; raised when the first token is asked for.

    Decision 21: the prompt is decoded token by token through the same windows, and its cost is not counted.
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

    tokens = generate(  # checks the request before a cache of its size is made
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
    """Notes what happens while a text is decoded; passes before `first_new` are not in the account."""

    def __init__(self, decoder: Decoder, proof: Proof, first_new: int, keep_steps: bool) -> None:
        self._decoder, self._proof, self._first_new, self._keep_steps = decoder, proof, first_new, keep_steps
        self.seconds: list[float] = []  # of each pass
        self._io, self._moved_rows, self._overflows = IO(0, 0, 0, 0), 0, 0
        self._errors = ErrorCounts(0, 0, 0, 0)

    def observer(self) -> Observe:
        """Return a function that notes every step from here on; what was recorded before is forgotten."""
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
        """Return the whole text with its record and its account."""
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


def decode_dense(model: Model, request: TextRequest, ffns: Sequence[FFN]) -> tuple[int, ...]:
    """Let the dense model write the text of a request, from weights in memory.

    Args:
        model: the model without its FFN matrices.
        request: the prompt and the number of new tokens.
        ffns: the whole FFN of every layer.

    Returns:
        The ids of the new tokens.

    Raises:
        DomainError: the request does not fit the model.
    """
    room = len(request.prompt_ids) + request.tokens - 1
    forward_one = one_at_a_time(model, lambda layer, x: dense_ffn(x, ffns[layer]), room)
    context, vocabulary = model.config.context, model.config.vocabulary
    sampler = request.sampler()
    tokens = generate(
        forward_one, request.prompt_ids, request.tokens, sampler, context=context, vocabulary=vocabulary
    )
    return tuple(token_id for token_id, _ in tokens)


def _mask(ids: Ids, n: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[ids] = True
    return mask
