"""The figures of `flashref train`, a layer and in all, as --json has them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flashref.models.checkpoint import Checkpoint
from flashref.models.predictors import Errors, Predictors, pool_errors, predictor_tensors

if TYPE_CHECKING:  # they need JAX
    from flashref.training.judging import Judgement, Swept


class Row(NamedTuple):
    """One layer, or all that have a predictor: shares are of its neurons, mean over the tokens.

    rank, threshold, steps: None where there is none; rank is the sum in the total. false_negative_rate: of
    the active; false_positive_rate: of the inactive. mean_resident, largest_resident: of 1, 2, … tokens.
    """

    rank: int | None
    bytes: int
    threshold: float | None
    steps: int | None
    active: float
    predicted: float
    false_negative_rate: float
    false_positive_rate: float
    mean_resident: list[float]
    largest_resident: list[float]


class Result(NamedTuple):
    """What `flashref train --json` prints, in this order. share: of the model's bytes."""

    model: str
    predictors: str
    activation: str
    tau: float
    judged_on: str
    tokens: int
    window: int
    model_bytes: int
    predictor_bytes: int
    share: float
    layers: list[dict[str, Any]]
    total: dict[str, Any]
    perplexity: dict[str, float | None]
    swept_on: str | None
    sweep: list[dict[str, float]] | None


def result(
    checkpoint: Checkpoint,
    path: Path,
    predictors: Predictors,
    judgement: "Judgement",
    window: int,
    steps: Sequence[int] | None,
    swept: "Sequence[Swept] | None",
    judged_on: str,
    swept_on: str,
) -> Result:
    """The figures of a judgement. steps: that each layer's fit took."""
    config = checkpoint.config
    rows = _rows(predictors, judgement, config.neurons, steps)
    tensors = predictor_tensors(predictors).values()
    whole = sum(container.tensors[name].length for name, container in checkpoint.tensors.items())
    size = sum(array.nbytes for array in tensors)
    perplexities = judgement.perplexities._asdict()
    return Result(
        model=str(checkpoint.directory),
        predictors=str(path),
        activation=config.activation,
        tau=config.tau,
        judged_on=judged_on,
        tokens=judgement.tokens,
        window=window,
        model_bytes=whole,
        predictor_bytes=size,
        share=size / whole,
        layers=[row._asdict() for row in rows],
        total=_total(rows, predictors, judgement)._asdict(),
        # JSON has no infinity: a loss beyond every float is null.
        perplexity={name: value if math.isfinite(value) else None for name, value in perplexities.items()},
        swept_on=None if swept is None else swept_on,
        sweep=None if swept is None else [_sweep_row(one) for one in swept],
    )


def _rows(
    predictors: Predictors, judgement: "Judgement", neurons: int, steps: Sequence[int] | None
) -> list[Row]:
    rows = []
    for number, (predictor, verdict) in enumerate(zip(predictors.layers, judgement.verdicts, strict=True)):
        errors, residency = verdict.errors, verdict.residency
        if predictor is None or residency is None:
            rows.append(Row(None, 0, None, None, *_shares(errors), [], []))
            continue
        maps = (predictor.a, predictor.b, predictor.bias)
        rows.append(
            Row(
                len(predictor.a),
                sum(part.nbytes for part in maps if part is not None),
                predictor.threshold,
                None if steps is None else steps[number],
                *_shares(errors),
                (residency.kept / residency.tokens / neurons).tolist(),
                (residency.largest / neurons).tolist(),
            )
        )
    return rows


def _total(rows: Sequence[Row], predictors: Predictors, judgement: "Judgement") -> Row:
    """Of the layers that have a predictor; the largest is the mean of their largest, as rows are shared."""
    counted = [row for row in rows if row.rank is not None]
    pairs = zip(predictors.layers, judgement.verdicts, strict=True)
    errors = pool_errors(
        [Errors(0, 0, 0, 0), *(verdict.errors for predictor, verdict in pairs if predictor is not None)]
    )
    return Row(
        sum(row.rank or 0 for row in counted),
        sum(row.bytes for row in counted),
        None,
        None,
        *_shares(errors),
        [sum(of) / len(counted) for of in zip(*(row.mean_resident for row in counted), strict=True)],
        [sum(of) / len(counted) for of in zip(*(row.largest_resident for row in counted), strict=True)],
    )


def _shares(errors: Errors) -> tuple[float, float, float, float]:
    """Active and predicted as shares of all pairs, and the two rates of errors."""
    pairs = max(errors.active + errors.inactive, 1)
    predicted = errors.active - errors.false_negatives + errors.false_positives
    return (
        errors.active / pairs,
        predicted / pairs,
        errors.false_negative_rate,
        errors.false_positive_rate,
    )


def _sweep_row(swept: "Swept") -> dict[str, float]:
    active, predicted, missed, extra = _shares(swept.errors)
    return {
        "probability": 1 / (1 + math.exp(-swept.threshold)),
        "threshold": swept.threshold,
        "active": active,
        "predicted": predicted,
        "false_negative_rate": missed,
        "false_positive_rate": extra,
        "mean_resident": swept.resident_share,
    }
