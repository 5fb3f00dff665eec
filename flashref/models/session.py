"""One text decoded from flash and proven, the same by the dense model, and the perplexity of both."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.decode import Step
from flashref.ffn import active_neurons, dense_ffn
from flashref.models.flash import Decoder, Observe, decode_text, flash_ffn
from flashref.models.generate import Choose, ForwardOne, generate, perplexity
from flashref.models.model import FeedForward, Model, one_at_a_time
from flashref.models.predictors import Errors, count_errors, pool_errors
from flashref.models.proof import Proof
from flashref.storage.progress import Progress
from flashref.types import FFN, Array, Ids, Vector


class Decoded(NamedTuple):
    """A text decoded from flash: the new ids; [pass][layer] → what was predicted; errors; overflows.

    Layers that are resident whole are left out. Passes from `first_counted` on choose a new token; `cold`
    drops those before it. errors: None if there were no weights in memory to judge by.
    """

    new_ids: list[int]
    predicted: tuple[tuple[Ids, ...], ...]
    first_counted: int
    errors: Errors | None
    overflows: int


def decode_flash(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    count: int,
    choose: Choose,
    cold: bool,
    ffns: Sequence[FFN] | None,
    proof: Proof,
    advance: Progress,
) -> Decoded:
    """`count` new tokens from flash; every step is proven, its predictions recorded and judged.

    cold: the windows are emptied before the pass that chooses the first new token (decision 21).
    """
    first_new = len(prompt_ids) - 1
    predicted: list[list[Ids]] = []
    errors: list[Errors] = []

    def observe(layer: int, x: Vector, y: Vector, step: Step) -> None:
        proof.observe(layer, x, y, step)
        if ffns is not None:
            active = active_neurons(x, ffns[layer])
            masks = (_mask(ids, len(ffns[layer].up)) for ids in (step.predicted, active))
            errors.append(count_errors(*masks))
        predicted[-1].append(step.predicted)

    def before_pass(number: int) -> bool:
        advance("decoding from flash", number + 1, first_new + count)
        empty_now = cold and number == first_new
        if empty_now:
            proof.restart()
            predicted.clear()
        predicted.append([])
        return empty_now

    new_ids = decode_text(decoder, prompt_ids, count, choose, observe, before_pass)
    trace = tuple(tuple(layers) for layers in predicted)
    pooled = None if ffns is None else pool_errors(errors)
    return Decoded(new_ids, trace, 0 if cold else first_new, pooled, proof.overflows)


def decode_dense(
    model: Model, prompt_ids: Sequence[int], count: int, choose: Choose, ffns: Sequence[FFN]
) -> list[int]:
    """The same text by the dense model, from weights in memory."""
    room = len(prompt_ids) + count - 1
    forward_one = one_at_a_time(model, lambda layer, x: dense_ffn(x, ffns[layer]), room)
    context, vocabulary = model.config.context, model.config.vocabulary
    tokens = generate(forward_one, prompt_ids, count, choose, context=context, vocabulary=vocabulary)
    return [token_id for token_id, _ in tokens]


def _mask(ids: Ids, n: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[ids] = True
    return mask


class Perplexities(NamedTuple):
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
    advance: Progress,
    fresh_observer: Callable[[], Observe] = lambda: lambda *_: None,
    unchanged: Sequence[FFN] | None = None,
) -> Perplexities:
    """Teacher-forced in chunks of the context, each with empty windows.

    ffns, unchanged: of the dense model, as it is run and with its own activation. fresh_observer: called at
    the start of each chunk from flash, gives who sees its steps.
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

    return Perplexities(dense(ffns), measured(lambda: flash_ffn(decoder, fresh_observer())), dense(unchanged))
