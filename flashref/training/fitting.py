"""Fits the predictors of all layers: chooses ranks, fits each layer, and chooses thresholds.

Each layer is fitted on its own, from what its up projection receives in the dense model, and is saved as soon
as it is done.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashref.models.checkpoint import Checkpoint
from flashref.models.origin import Origin
from flashref.models.predictors import Predictors
from flashref.storage.progress import Progress
from flashref.training.choosing import (
    EDGES,
    Curve,
    choose_ranks,
    choose_thresholds,
    curve_on,
    tried_ranks,
)
from flashref.training.judging import Judgement
from flashref.training.layers import Recorded, record
from flashref.training.low_rank import fit_low_rank, to_stored
from flashref.training.partial_dir import load_part, save_part
from flashref.training.plan import FitPlan, FitSchedule, complete_plan, total_rank
from flashref.training.texts import TextParts
from flashref.types import Array, Predictor


class FittedLayer(NamedTuple):
    """A layer's predictor without a threshold, its errors on the text to choose on, and the fit's steps."""

    predictor: Predictor
    curve: Curve
    steps: int


class FittedPredictors(NamedTuple):
    """The predictor of each layer, and the steps that its fit took; None and 0 for a dense layer."""

    predictors: tuple[Predictor | None, ...]
    steps: tuple[int, ...]


def fit_predictors(
    checkpoint: Checkpoint, parts: TextParts, plan: FitPlan, partial_dir: Path, progress: Progress
) -> FittedPredictors:
    """Fit a predictor for each layer on one part of a text, and choose ranks and thresholds on the next part.

    Args:
        checkpoint: the model.
        parts: the parts of the text; the part to judge on is not used.
        plan: what to fit.
        partial_dir: the folder of finished layers: these are not fitted again, and new ones are saved there.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        The predictors and the steps of their fits.

    Raises:
        DomainError: no predictors of this model on this text keep to the plan.
        ImageError: the folder cannot be read or written.
    """
    ranks = complete_plan(checkpoint, plan).ranks or _search_ranks(
        checkpoint, parts, plan, partial_dir, progress
    )
    names = [f"layer-{number}" for number, rank in enumerate(ranks) if rank]
    for layer in _unfinished(checkpoint, parts, partial_dir, names, progress):
        before = names.index(f"layer-{layer.number}") * plan.fit.steps

        def advance(step: int, before: int = before) -> None:
            progress("fitting", before + step, len(names) * plan.fit.steps)

        fitted = _fit(layer, ranks[layer.number], plan.fit, advance)
        a, b, bias, _ = fitted.predictor
        arrays = {"a": a, "b": b, "bias": np.asarray(bias), "steps": np.array([fitted.steps])}
        save_part(partial_dir, f"layer-{layer.number}", arrays | _arrays([fitted.curve]))
        advance(plan.fit.steps)  # a fit may stop early
    layers = {name: _fitted_layer(load_part(partial_dir, name) or {}) for name in names}
    if plan.threshold is None:
        thresholds = choose_thresholds([layer.curve for layer in layers.values()], plan.false_negatives)
    else:
        thresholds = [plan.threshold] * len(names)
    predictors = {
        name: layer.predictor._replace(threshold=threshold)
        for (name, layer), threshold in zip(layers.items(), thresholds, strict=True)
    }
    every = [f"layer-{number}" for number in range(len(ranks))]
    return FittedPredictors(
        tuple(predictors.get(name) for name in every),
        tuple(layers[name].steps if name in layers else 0 for name in every),
    )


def with_statistics(
    outcome: FittedPredictors, judgement: Judgement, neurons: int, origin: Origin
) -> Predictors:
    """Put together what the predictors' file holds.

    Args:
        outcome: the fitted predictors.
        judgement: what judging them found, of which the windows are saved.
        neurons: the number of neurons of a layer.
        origin: the model and the texts that the predictors were made of.

    Returns:
        The predictors, the statistics of their windows, and their origin.
    """
    found = [layer.residency for layer in judgement.layers]
    windows = next(len(one.kept) for one in found if one is not None)
    dense = np.full(windows, neurons)
    mean = [dense if one is None else one.kept / one.tokens for one in found]
    largest = [dense if one is None else one.largest for one in found]
    return Predictors(outcome.predictors, np.array(mean, np.float32), np.array(largest, np.int32), origin)


def _search_ranks(
    checkpoint: Checkpoint, parts: TextParts, plan: FitPlan, partial_dir: Path, progress: Progress
) -> tuple[int, ...]:
    """The ranks that short fits of a few ranks in every layer suggest."""
    config = checkpoint.config
    total = total_rank(checkpoint, plan)
    tried = tried_ranks(total, config.layers, min(config.width, config.neurons))
    names = [f"search-{number}" for number in range(config.layers)]
    for layer in _unfinished(checkpoint, parts, partial_dir, names, progress):
        curves = []
        for rank in tried:
            curves.append(_fit(layer, rank, plan.search).curve)
            done = layer.number * len(tried) + len(curves)
            progress("trying ranks", done, config.layers * len(tried))
        save_part(partial_dir, f"search-{layer.number}", _arrays(curves))
    found = [_curves(load_part(partial_dir, name) or {}) for name in names]
    return tuple(choose_ranks(tried, found, total, plan.false_negatives))


def _unfinished(
    checkpoint: Checkpoint, parts: TextParts, partial_dir: Path, names: Sequence[str], progress: Progress
) -> Iterator[Recorded]:
    """Record the layers that are not finished; names: a part for each layer, ending in the layer's number."""
    missing = {int(name.rpartition("-")[2]) for name in names if load_part(partial_dir, name) is None}
    if missing:
        for layer in record(checkpoint, [parts.fit, parts.choose], progress):
            if layer.number in missing:
                yield layer
            if layer.number == max(missing):
                return


def _fit(
    layer: Recorded, rank: int, fit: FitSchedule, advance: Callable[[int], None] = lambda step: None
) -> FittedLayer:
    inputs, choose = layer.inputs
    fitted = fit_low_rank(layer.ffn, inputs, choose, rank, fit, advance)
    predictor = to_stored(fitted.low)
    return FittedLayer(predictor, curve_on(layer.ffn, predictor, choose), fitted.steps)


def _arrays(curves: Sequence[Curve]) -> dict[str, Array]:
    """Error curves as a part stores them: a row for each curve."""
    return {name: np.stack([getattr(curve, name) for curve in curves]) for name in Curve._fields[1:]}


def _curves(arrays: dict[str, Array]) -> list[Curve]:
    rows = zip(*(arrays[name] for name in Curve._fields[1:]), strict=True)
    return [Curve(EDGES, missed, extra, int(active)) for missed, extra, active in rows]


def _fitted_layer(arrays: dict[str, Array]) -> FittedLayer:
    predictor = Predictor(arrays["a"], arrays["b"], arrays["bias"], 0.0)
    return FittedLayer(predictor, _curves(arrays)[0], int(arrays["steps"][0]))
