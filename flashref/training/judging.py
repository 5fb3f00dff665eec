"""Judging predictors on text that nothing was fitted or chosen on: errors, windows, and four perplexities."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flashref.models.checkpoint import Checkpoint
from flashref.models.predictors import ErrorCounts, count_errors, pool_errors
from flashref.models.whole_text import losses
from flashref.storage.progress import Progress, unseen
from flashref.training.layers import (
    Floats,
    Passed,
    Way,
    batches,
    embed_chunks,
    load_ends,
    load_layer,
    pass_layer,
    record,
)
from flashref.training.masks import Windowed, predicted, resident, truly_active, widened
from flashref.training.texts import Tokens
from flashref.types import FFN, Predictor

Masks = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Residency(NamedTuple):
    """What windows of k = 1, 2, … tokens (index k − 1) keep, the token itself included (decision 1).

    tokens: how many were seen; kept: the sum of |C_t|; largest: the largest |C_t|; new: the sum of
    |P_t \\ C_(t−1)|.
    """

    tokens: int
    kept: Counts
    largest: Counts
    new: Counts


class Verdict(NamedTuple):
    """One layer: errors of its predictor, and its windows; without one it is dense, and all is resident."""

    errors: ErrorCounts
    residency: Residency | None


class Perplexities(NamedTuple):
    """Per token: of the dense model, and of one that sums the truly active, predicted or resident neurons."""

    dense: float
    exact: float
    predicted: float
    resident: float


class Judgement(NamedTuple):
    """What predictors are worth on a text of so many tokens; a verdict for each layer."""

    tokens: int
    window: int
    verdicts: tuple[Verdict, ...]
    perplexities: Perplexities


class Swept(NamedTuple):
    """All layers at one threshold, a logit: pooled errors, and the mean |C_t| as a share of the neurons."""

    threshold: float
    errors: ErrorCounts
    resident_share: float


def judge_predictors(
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: Tokens,
    window: int,
    windows: int,
    progress: Progress = unseen,
) -> Judgement:
    """Judge predictors: errors and windows along the dense model, and the perplexity of four models.

    Args:
        checkpoint: of the model.
        predictors: of each layer; None for a dense one.
        chunks: (texts, tokens) ids; the window is empty before each text.
        window: tokens of the window of the model that sums the resident neurons.
        windows: residency is counted for windows of 1, 2, … up to so many tokens.
        progress: called for every layer, with the texts that have passed it in four models.
    """
    config, model = checkpoint.config, load_ends(checkpoint)
    streams = [embed_chunks(model, chunks)] * len(Perplexities._fields)
    total = config.layers * len(streams) * len(chunks)
    verdicts = []
    for index, predictor in enumerate(predictors):
        layer = load_layer(checkpoint, index)
        wide = None if predictor is None else widened(predictor)
        ways = [Way(), Way(truly_active, layer.ffn), Way(), Way()]
        if wide is not None:
            ways[2:] = [Way(predicted, wide), Way(resident, Windowed(wide, jnp.int32(window)))]
        passed: list[Passed] = []
        for hidden, way in zip(streams, ways, strict=True):
            before = (index * len(ways) + len(passed)) * len(chunks)
            passed.append(pass_layer(config, layer, hidden, way, partial(_advance, progress, before, total)))
            if len(passed) == 1:
                verdicts.append(_verdict(layer.ffn, wide, passed[0].inputs, windows))
        streams = [each.hidden for each in passed]
    values = [_perplexity(np.asarray(losses(model, hidden, chunks))) for hidden in streams]
    return Judgement(chunks.size, window, tuple(verdicts), Perplexities(*values))


def total_errors(predictors: Sequence[Predictor | None], verdicts: Sequence[Verdict]) -> ErrorCounts:
    """The errors of all layers that have a predictor, together."""
    pairs = zip(predictors, verdicts, strict=True)
    return pool_errors(
        [ErrorCounts(0, 0, 0, 0), *(verdict.errors for one, verdict in pairs if one is not None)]
    )


def sweep(
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: Tokens,
    window: int,
    thresholds: Sequence[float],
    progress: Progress = unseen,
) -> list[Swept]:
    """What one threshold for all layers would give; layers without a predictor do not count.

    Args:
        checkpoint, predictors, chunks, window: as for `judge_predictors`.
        thresholds: logits, each tried in turn.
        progress: called for every layer, with the texts that have passed it.
    """
    found: list[list[Verdict]] = [[] for _ in thresholds]
    for layer, predictor in zip(record(checkpoint, [chunks], progress), predictors, strict=True):
        if predictor is not None:
            inputs = layer.inputs[0].reshape(*chunks.shape, -1)
            for threshold, row in zip(thresholds, found, strict=True):
                wide = widened(predictor._replace(threshold=threshold))
                row.append(_verdict(layer.ffn, wide, inputs, window))
    neurons = checkpoint.config.neurons
    return [
        Swept(
            threshold,
            pool_errors([ErrorCounts(0, 0, 0, 0), *(verdict.errors for verdict in row)]),
            float(
                np.mean([each.residency.kept[-1] for each in row if each.residency]) / chunks.size / neurons
            )
            if row
            else 0.0,
        )
        for threshold, row in zip(thresholds, found, strict=True)
    ]


def residency(masks: Masks, windows: int) -> Residency:
    """What windows of 1, 2, … tokens keep, each empty before a text.

    Args:
        masks: (texts, tokens, n), each row a P_t.
        windows: the longest window, in tokens.
    """
    union = np.zeros_like(masks)
    kept, largest, new = [], [], []
    for k in range(1, windows + 1):
        union[:, k - 1 :] |= masks[:, : max(masks.shape[1] - k + 1, 0)]
        counts = np.count_nonzero(union, axis=2)
        kept.append(counts.sum())
        largest.append(counts.max())
        known = np.count_nonzero(masks[:, 1:] & union[:, :-1])
        new.append(np.count_nonzero(masks) - known)
    tokens = masks.shape[0] * masks.shape[1]
    return Residency(tokens, *(np.array(each, np.int64) for each in (kept, largest, new)))


def _verdict(ffn: FFN, wide: Predictor | None, inputs: Floats, windows: int) -> Verdict:
    """Of one layer; inputs: (texts, tokens, d). Without a predictor every neuron is as good as predicted."""
    errors, parts = [], []
    for texts in batches(inputs, len(ffn.up)):
        active, chosen = map(np.asarray, _active_and_predicted(ffn, wide, jnp.asarray(inputs[texts])))
        errors.append(count_errors(chosen, active))
        if wide is not None:
            parts.append(residency(chosen, windows))
    if not parts:
        return Verdict(pool_errors(errors), None)
    tokens, kept, largest, new = zip(*parts, strict=True)
    pooled = Residency(sum(tokens), np.sum(kept, axis=0), np.max(largest, axis=0), np.sum(new, axis=0))
    return Verdict(pool_errors(errors), pooled)


@jax.jit
def _active_and_predicted(ffn: FFN, wide: Predictor | None, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The masks A_t and P_t of every token."""
    active = truly_active(ffn, inputs)
    return active, jnp.ones_like(active) if wide is None else predicted(wide, inputs)


def _perplexity(nats: Floats) -> float:
    mean = float(np.mean(nats, dtype=np.float64))
    return math.exp(mean) if mean < 709 else math.inf


def _advance(progress: Progress, before: int, total: int, texts: int) -> None:
    progress("judging", before + texts, total)
