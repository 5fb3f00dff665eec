"""Perplexity: of any model, and of one model both read from flash and dense."""

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
    """How well a model foresees a text.

    Attributes:
        nats: the mean of −ln p of each foreseen token.
        perplexity: exp(nats).
        tokens: how many tokens were foreseen.
    """

    nats: float
    perplexity: float
    tokens: int


def perplexity(ids: Sequence[int], context: int, fresh: Callable[[], ForwardOne]) -> Perplexity:
    """Measure the perplexity of a text, in chunks of the context that share nothing.

    The first token of a chunk is given; each other token is foreseen from those before it (teacher forcing).

    Args:
        ids: the token ids of the text.
        context: the number of tokens of a chunk.
        fresh: is called at the start of each chunk; returns a model with an empty cache and empty windows.

    Raises:
        DomainError: the text or the chunks have fewer than two tokens.
    """
    if context < 2 or len(ids) < 2:
        raise DomainError(f"{len(ids)} tokens in chunks of {context} have no perplexity; give at least two")
    losses: list[float] = []
    for start in range(
        0, len(ids) - 1, context
    ):  # a single token that is left over would be given, not foreseen
        chunk = ids[start : start + context]
        forward_one = fresh()
        for token_id, following in pairwise(chunk):
            losses.append(_nats(forward_one(token_id), following))
    mean = math.fsum(losses) / len(losses)
    return Perplexity(mean, math.exp(mean) if mean < 709 else math.inf, len(losses))


class FlashPerplexity(NamedTuple):
    """Perplexities per token of one model on one text.

    Attributes:
        dense: of the dense model; None without a proof, whose weights in memory it needs.
        flash: of the model read from flash.
        unchanged: of the dense model with its own activation; None where that is the one that is run.
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
    """Measure the perplexities of a text, in chunks of the context, each with empty windows.

    Args:
        text_ids: at least two token ids.
        decoder: the model that is read from flash.
        ffns: the FFNs of the dense model with the activation that is run; None: not in memory.
        advance: is told how many tokens have passed.
        fresh_observer: is called at the start of each chunk that is read from flash; returns a function that
            is called with its steps.
        unchanged: the FFNs with the model's own activation; None: not measured.

    Raises:
        DomainError: the text has fewer than two tokens.
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
