"""Judging predictors on text that nothing was fitted or chosen on: errors, windows, and four perplexities."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flashref.models.checkpoint import Checkpoint
from flashref.models.predictors import Errors, count_errors, pool_errors
from flashref.models.whole_text import every_neuron, losses
from flashref.training.layers import (
    Floats,
    batches,
    embed_chunks,
    load_ends,
    load_layer,
    pass_layer,
    record,
)
from flashref.training.sets import Windowed, predicted, resident, truly_active, widened
from flashref.training.texts import Tokens
from flashref.types import FFN, Predictor

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Residency(NamedTuple):
    """Rows kept with a window of k = 1, 2, … tokens (index k − 1) and no limit (decision 1).

    tokens: that were seen; kept: the sum of |C_t| over them; largest: |C_t|; new: sum of |P_t \\ C_(t−1)|.
    """

    tokens: int
    kept: Counts
    largest: Counts
    new: Counts


class Verdict(NamedTuple):
    """One layer: errors of its predictor, and its windows; without one it is dense, and all is resident."""

    errors: Errors
    residency: Residency | None


class Perplexities(NamedTuple):
    """Per token: of the dense model, of the truly active neurons, the predicted, and the resident."""

    dense: float
    exact: float
    predicted: float
    resident: float


class Judgement(NamedTuple):
    """What predictors are worth on a text of so many tokens; a verdict a layer."""

    tokens: int
    verdicts: tuple[Verdict, ...]
    perplexities: Perplexities


class Swept(NamedTuple):
    """All layers at one threshold, a logit: pooled errors, and the mean |C_t| as a share of the neurons."""

    threshold: float
    errors: Errors
    resident_share: float


def judge(
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: Tokens,
    k: int,
    windows: int,
    advance: Callable[[int], None] = lambda layer: None,
) -> Judgement:
    """Errors and windows where the dense model goes, and perplexity where each of the four goes by itself.

    chunks: (texts, tokens) ids, each from empty windows; k: of the resident one; windows: 1, 2, … that
    are counted. advance is called with the layers done.
    """
    config, model = checkpoint.config, load_ends(checkpoint)
    streams: list[Any] = [embed_chunks(model, chunks)] * len(Perplexities._fields)
    verdicts = []
    for index, predictor in enumerate(predictors):
        layer = load_layer(checkpoint, index)
        wide = None if predictor is None else widened(predictor)
        ways: list[tuple[Any, Any]] = [(every_neuron, None), (truly_active, layer.ffn)]
        if wide is None:
            ways += [(every_neuron, None)] * 2
        else:
            ways += [(predicted, wide), (resident, Windowed(wide, jnp.int32(k)))]
        passed = []
        for hidden, way in zip(streams, ways, strict=True):
            passed.append(pass_layer(config, layer, hidden, *way))
            if len(passed) == 1:
                verdicts.append(_verdict(layer.ffn, wide, passed[0].inputs, windows))
        streams = [each.hidden for each in passed]
        advance(index + 1)
    values = [_perplexity(np.asarray(losses(model, hidden, chunks))) for hidden in streams]
    return Judgement(chunks.size, tuple(verdicts), Perplexities(*values))


def total_errors(predictors: Sequence[Predictor | None], verdicts: Sequence[Verdict]) -> Errors:
    """Of all layers that have a predictor."""
    pairs = zip(predictors, verdicts, strict=True)
    return pool_errors([Errors(0, 0, 0, 0), *(verdict.errors for one, verdict in pairs if one is not None)])


def sweep(
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: Tokens,
    k: int,
    thresholds: Sequence[float],
) -> list[Swept]:
    """What one threshold for all layers would give, each in turn; layers without a predictor do not count."""
    found: list[list[Verdict]] = [[] for _ in thresholds]
    for layer, predictor in zip(record(checkpoint, [chunks]), predictors, strict=True):
        if predictor is not None:
            inputs = layer.inputs[0].reshape(*chunks.shape, -1)
            for threshold, row in zip(thresholds, found, strict=True):
                wide = widened(predictor._replace(threshold=threshold))
                row.append(_verdict(layer.ffn, wide, inputs, k))
    neurons = checkpoint.config.neurons
    return [
        Swept(
            threshold,
            pool_errors([Errors(0, 0, 0, 0), *(verdict.errors for verdict in row)]),
            float(
                np.mean([each.residency.kept[-1] for each in row if each.residency]) / chunks.size / neurons
            )
            if row
            else 0.0,
        )
        for threshold, row in zip(thresholds, found, strict=True)
    ]


def residency(sets: Flags, windows: int) -> Residency:
    """Windows of 1, 2, … tokens over texts, empty at first. sets: (texts, tokens, n) bool, each a P_t."""
    union = np.zeros_like(sets)
    kept, largest, new = [], [], []
    for k in range(1, windows + 1):
        union[:, k - 1 :] |= sets[:, : max(sets.shape[1] - k + 1, 0)]
        counts = np.count_nonzero(union, axis=2)
        kept.append(counts.sum())
        largest.append(counts.max())
        known = np.count_nonzero(sets[:, 1:] & union[:, :-1])
        new.append(np.count_nonzero(sets) - known)
    tokens = sets.shape[0] * sets.shape[1]
    return Residency(tokens, *(np.array(each, np.int64) for each in (kept, largest, new)))


def _verdict(ffn: FFN, wide: Predictor | None, inputs: Floats, windows: int) -> Verdict:
    """Of one layer; inputs: (texts, tokens, d). Without a predictor every neuron is as good as predicted."""
    errors, parts = [], []
    for texts in batches(inputs, len(ffn.up)):
        active, sets = map(np.asarray, _flags(ffn, wide, jnp.asarray(inputs[texts])))
        errors.append(count_errors(sets, active))
        if wide is not None:
            parts.append(residency(sets, windows))
    if not parts:
        return Verdict(pool_errors(errors), None)
    tokens, kept, largest, new = zip(*parts, strict=True)
    pooled = Residency(sum(tokens), np.sum(kept, axis=0), np.max(largest, axis=0), np.sum(new, axis=0))
    return Verdict(pool_errors(errors), pooled)


@jax.jit
def _flags(ffn: FFN, wide: Predictor | None, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A_t and P_t of every token."""
    active = truly_active(ffn, inputs)
    return active, jnp.ones_like(active) if wide is None else predicted(wide, inputs)


def _perplexity(nats: Floats) -> float:
    mean = float(np.mean(nats, dtype=np.float64))
    return math.exp(mean) if mean < 709 else math.inf
