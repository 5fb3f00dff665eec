"""How well a text is foreseen: by any model, by one that is read from flash, and by the dense one."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flashref.ffn import dense_ffn
from flashref.models.decoding import Decoder, flash_ffn
from flashref.models.generate import ForwardOne
from flashref.models.model import FeedForward, one_at_a_time
from flashref.models.proof import Observe
from flashref.storage.progress import Progress, unseen
from flashref.types import FFN, Array, DomainError


class Perplexity(NamedTuple):
    """How well a text was foreseen: mean nats per token, exp of it, and how many tokens were foreseen."""

    nats: float
    perplexity: float
    tokens: int


def perplexity(ids: Sequence[int], context: int, fresh: Callable[[], ForwardOne]) -> Perplexity:
    """Teacher-forced over a text in chunks of the context, which share nothing.

    fresh: called at the start of each chunk, gives a model with an empty cache and empty windows. The first
    token of a chunk is given, the others are foreseen. Byte-level: nats per byte. Raises DomainError.
    """
    if context < 2 or len(ids) < 2:
        raise DomainError(
            f"a text of {len(ids)} tokens in chunks of {context} foresees none; give two or more"
        )
    losses: list[float] = []
    for start in range(0, len(ids) - 1, context):  # one token left over foresees nothing
        chunk = ids[start : start + context]
        forward_one = fresh()
        for token_id, following in pairwise(chunk):
            losses.append(_nats(forward_one(token_id), following))
    mean = math.fsum(losses) / len(losses)
    return Perplexity(mean, math.exp(mean) if mean < 709 else math.inf, len(losses))


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


def _nats(logits: Array, token_id: int) -> float:
    """−ln softmax(logits)[token_id], in float64."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max()
    return float(np.log(np.exp(wide).sum()) - wide[token_id])
