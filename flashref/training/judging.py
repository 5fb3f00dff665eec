"""Judges predictors by their errors, by what windows keep, and by the perplexity of four models."""

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
    LayerOutput,
    Selection,
    batches,
    embed_chunks,
    load_ends,
    load_layer,
    pass_layer,
    record,
)
from flashref.training.masks import WindowedPredictor, predicted, resident, truly_active, widened
from flashref.training.texts import Tokens
from flashref.types import FFN, Predictor

Masks = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Residency(NamedTuple):
    """What windows of 1, 2, … tokens keep; a window includes the current token (decision 1).

    tokens: how many tokens were counted. The others have a number for each window, k tokens at index k − 1:
    kept: the sum of |C_t| over the tokens; largest: the largest |C_t|; new: the sum of |P_t \\ C_(t−1)|.
    """

    tokens: int
    kept: Counts
    largest: Counts
    new: Counts


class LayerJudgement(NamedTuple):
    """The errors of one layer's predictor, and its windows; a dense layer predicts all, without windows."""

    errors: ErrorCounts
    residency: Residency | None


class Perplexities(NamedTuple):
    """Perplexities of four models, which sum all, the truly active, the predicted or the resident neurons."""

    dense: float
    exact: float
    predicted: float
    resident: float


class Judgement(NamedTuple):
    """What judging found.

    tokens, window: the lengths of the text and of the window; layers: an entry for each layer.
    """

    tokens: int
    window: int
    layers: tuple[LayerJudgement, ...]
    perplexities: Perplexities


class SweepRow(NamedTuple):
    """All layers at one threshold, a logit: their pooled errors, and the mean share of resident neurons."""

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
    """Judge predictors: their errors and windows in the dense model, and the perplexity of four models.

    Args:
        checkpoint: the model.
        predictors: a predictor for each layer, None for a dense layer.
        chunks: (texts, tokens) token ids; the window is empty before each text.
        window: the window, in tokens, of the model that sums the resident neurons.
        windows: the longest of the windows of 1, 2, … tokens whose residency is counted.
        progress: called for every layer, with the number of texts that have passed it in the four models.

    Returns:
        The errors and windows of each layer, and the perplexities.
    """
    config, model = checkpoint.config, load_ends(checkpoint)
    streams = [embed_chunks(model, chunks)] * len(Perplexities._fields)
    total = config.layers * len(streams) * len(chunks)
    judged: list[LayerJudgement] = []
    for index, predictor in enumerate(predictors):
        layer = load_layer(checkpoint, index)
        wide = None if predictor is None else widened(predictor)
        selections = [Selection(), Selection(truly_active, layer.ffn), Selection(), Selection()]
        if wide is not None:
            windowed = WindowedPredictor(wide, jnp.int32(window))
            selections[2:] = [Selection(predicted, wide), Selection(resident, windowed)]
        outputs: list[LayerOutput] = []
        for hidden, selection in zip(streams, selections, strict=True):
            before = (index * len(selections) + len(outputs)) * len(chunks)
            advance = partial(_advance, progress, before, total)
            outputs.append(pass_layer(config, layer, hidden, selection, advance))
            if len(outputs) == 1:  # the dense model, along which errors are counted
                judged.append(_judge_layer(layer.ffn, wide, outputs[0].ffn_inputs, windows))
        streams = [output.hidden for output in outputs]
    values = [_perplexity(np.asarray(losses(model, hidden, chunks))) for hidden in streams]
    return Judgement(chunks.size, window, tuple(judged), Perplexities(*values))


def total_errors(predictors: Sequence[Predictor | None], layers: Sequence[LayerJudgement]) -> ErrorCounts:
    """Add up the errors of all layers that have a predictor.

    Args:
        predictors: a predictor for each layer, None for a dense layer, which does not count.
        layers: what judging each layer found.

    Returns:
        The sum of the layers' counts.
    """
    pairs = zip(predictors, layers, strict=True)
    return pool_errors(
        [ErrorCounts(0, 0, 0, 0), *(judged.errors for one, judged in pairs if one is not None)]
    )


def sweep_thresholds(
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: Tokens,
    window: int,
    thresholds: Sequence[float],
    progress: Progress = unseen,
) -> list[SweepRow]:
    """Count what one threshold for all layers would give; layers without a predictor do not count.

    Args:
        checkpoint, predictors, chunks, window: as for `judge_predictors`.
        thresholds: the thresholds to try, logits.
        progress: called for every layer, with the number of texts that have passed it.

    Returns:
        A row for each threshold.
    """
    found: list[list[LayerJudgement]] = [[] for _ in thresholds]
    for layer, predictor in zip(record(checkpoint, [chunks], progress), predictors, strict=True):
        if predictor is not None:
            inputs = layer.inputs[0].reshape(*chunks.shape, -1)
            for threshold, row in zip(thresholds, found, strict=True):
                wide = widened(predictor._replace(threshold=threshold))
                row.append(_judge_layer(layer.ffn, wide, inputs, window))
    neurons = checkpoint.config.neurons
    return [
        SweepRow(
            threshold,
            pool_errors([ErrorCounts(0, 0, 0, 0), *(judged.errors for judged in row)]),
            float(
                np.mean([judged.residency.kept[-1] for judged in row if judged.residency])
                / chunks.size
                / neurons
            )
            if row
            else 0.0,
        )
        for threshold, row in zip(thresholds, found, strict=True)
    ]


def residency(masks: Masks, windows: int) -> Residency:
    """Count what windows of 1, 2, … tokens keep; every window is empty before a text.

    Args:
        masks: (texts, tokens, n) bool, the predicted neurons P_t of each token.
        windows: the longest window, in tokens.

    Returns:
        The counts for each window.
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


def _judge_layer(ffn: FFN, wide: Predictor | None, inputs: Floats, windows: int) -> LayerJudgement:
    """Judge one layer on its inputs (texts, tokens, d); a dense layer predicts every neuron."""
    errors, parts = [], []
    for texts in batches(inputs, len(ffn.up)):
        active, chosen = map(np.asarray, _active_and_predicted(ffn, wide, jnp.asarray(inputs[texts])))
        errors.append(count_errors(chosen, active))
        if wide is not None:
            parts.append(residency(chosen, windows))
    if not parts:
        return LayerJudgement(pool_errors(errors), None)
    tokens, kept, largest, new = zip(*parts, strict=True)
    pooled = Residency(sum(tokens), np.sum(kept, axis=0), np.max(largest, axis=0), np.sum(new, axis=0))
    return LayerJudgement(pool_errors(errors), pooled)


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
