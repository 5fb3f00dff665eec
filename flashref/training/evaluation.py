"""The result of `fit` and `judge`: the figures of predictors, for each layer and for all layers together."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flashref.models.checkpoint import Checkpoint
from flashref.models.predictors import ErrorCounts, Predictors, predictor_tensors
from flashref.training.judging import Judgement, LayerJudgement, Perplexities, SweepRow, total_errors
from flashref.training.plan import model_bytes
from flashref.types import Predictor


class JudgedModel(NamedTuple):
    """A model, its activation and its predictors.

    model, predictors: the paths of the model's folder and of the predictors' file; tau: the threshold of
    FATReLU, 0 for ReLU; model_bytes, predictor_bytes: the sizes of their tensors.
    """

    model: str
    predictors: str
    activation: str
    tau: float
    model_bytes: int
    predictor_bytes: int


class NeuronShares(NamedTuple):
    """Shares of a layer's neurons: the mean over the tokens, and the predictor's error rates.

    active, predicted: mean shares of all neurons; false_negative_rate: the share of the active neurons that
    are not predicted; false_positive_rate: the share of the inactive neurons that are predicted.
    """

    active: float
    predicted: float
    false_negative_rate: float
    false_positive_rate: float


class ResidentShares(NamedTuple):
    """The mean and the largest share of a layer's neurons that windows of 1, 2, … tokens keep."""

    mean: tuple[float, ...] = ()
    largest: tuple[float, ...] = ()


class LayerFigures(NamedTuple):
    """The figures of one layer, or of all layers that have a predictor together.

    rank, threshold: of the predictor, None for a dense layer; for all layers, rank is the sum of the ranks
    and threshold is None. bytes: the size of the predictor's maps and bias. steps: the steps that the fit
    took, None if nothing was fitted.
    """

    rank: int | None
    bytes: int
    threshold: float | None
    steps: int | None
    shares: NeuronShares
    resident: ResidentShares

    def as_json(self) -> dict[str, Any]:
        """Names and plain values, as `flashref train --json` prints them."""
        return {
            **{name: value for name, value in self._asdict().items() if name not in ("shares", "resident")},
            **self.shares._asdict(),
            "mean_resident": list(self.resident.mean),
            "largest_resident": list(self.resident.largest),
        }


class Sweep(NamedTuple):
    """What one threshold for all layers would give on a text; a row for each threshold."""

    text: str
    rows: tuple[SweepRow, ...]


class Evaluation(NamedTuple):
    """The figures of predictors that were judged.

    text: a phrase for the text that they were judged on; tokens: its length; window: the length of the
    window, in tokens; total: all layers that have a predictor together.
    """

    judged: JudgedModel
    text: str
    tokens: int
    window: int
    layers: tuple[LayerFigures, ...]
    total: LayerFigures
    perplexities: Perplexities
    sweep: Sweep | None = None

    def as_json(self) -> dict[str, Any]:
        """What `flashref train --json` prints, in this order."""
        judged = self.judged
        return {
            "model": judged.model,
            "predictors": judged.predictors,
            "activation": judged.activation,
            "tau": judged.tau,
            "judged_on": self.text,
            "tokens": self.tokens,
            "window": self.window,
            "model_bytes": judged.model_bytes,
            "predictor_bytes": judged.predictor_bytes,
            "share": judged.predictor_bytes / judged.model_bytes,
            "layers": [layer.as_json() for layer in self.layers],
            "total": self.total.as_json(),
            # JSON has no infinity: a loss beyond every float is null.
            "perplexity": {
                name: value if math.isfinite(value) else None
                for name, value in self.perplexities._asdict().items()
            },
            "swept_on": None if self.sweep is None else self.sweep.text,
            "sweep": None if self.sweep is None else [_sweep_json(row) for row in self.sweep.rows],
        }

    def __str__(self) -> str:
        """The tables, with every column explained; only a long file name makes a line wider than 80."""
        unit, unit_bytes = _unit(self.total)
        paragraphs = [
            self._summary(),
            _layers_table(self.layers, self.total, self.window),
            LAYER_LEGEND.format(window=self.window, unit=unit, bytes=unit_bytes),
            _perplexity_table(self.perplexities),
            PERPLEXITY_LEGEND.format(window=self.window),
        ]
        if self.sweep is not None:
            paragraphs += [
                f"What one threshold for all layers would give on {self.sweep.text}:",
                _sweep_table(self.sweep.rows),
                SWEEP_LEGEND,
            ]
        return "\n\n".join(paragraphs)

    def _summary(self) -> str:
        _, predictors, activation, tau, whole, size = self.judged
        named = f"{activation} (tau {tau:g})" if activation == "fatrelu" else activation
        return (
            f"{predictors}: {size:,} bytes, {size / whole:.2%} of the model's bytes.\n"
            f"Judged with the activation {named} on {self.text}: {self.tokens:,} tokens."
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self), quote=False)}</pre>"


HEADINGS = ("above", "active", "predicted", "FN", "FP", "resident", "largest")  # after layer, rank, kB or MB
LAYER_LEGEND = """\
layer      The number of the layer; "all" is every layer that has a predictor.
rank       The rank of the predictor; a dense layer has no predictor.
{unit}         The size of the predictor, in units of {bytes:,} bytes.
above      The threshold: a neuron is predicted if its logit is above it.
active     The mean share of the layer's neurons that are truly active.
predicted  The mean share of the layer's neurons that are predicted.
FN         False negative rate: the share of active neurons not predicted.
FP         False positive rate: the share of inactive neurons predicted.
resident   The mean share of the neurons that a window of {window} tokens keeps.
largest    The largest share that this window kept after any of the tokens."""
PERPLEXITY_LEGEND = """\
neurons     The neurons that the FFNs sum: all (dense), the truly active ones
            (exact), the predicted ones, or those that a window of {window}
            tokens keeps (resident).
perplexity  The perplexity of the model on this text.
change      The change in perplexity against the dense model."""
SWEEP_LEGEND = """\
probability  The threshold as a probability; "above" has it as a logit.
             The other columns are those of the first table, for all layers."""


def evaluate(
    checkpoint: Checkpoint,
    path: Path,
    predictors: Predictors,
    judgement: Judgement,
    text: str,
    steps: Sequence[int] | None = None,
) -> Evaluation:
    """Put together the figures of predictors that were judged.

    Args:
        checkpoint: the model.
        path: the file of the predictors.
        predictors: the predictors that were judged.
        judgement: what judging them found.
        text: a phrase for the text that they were judged on.
        steps: the steps that the fit of each layer took, or None if nothing was fitted.

    Returns:
        The figures, without a sweep.
    """
    config = checkpoint.config
    layers = tuple(
        _figures(predictor, judged, config.neurons, None if steps is None else steps[number])
        for number, (predictor, judged) in enumerate(zip(predictors.layers, judgement.layers, strict=True))
    )
    size = sum(array.nbytes for array in predictor_tensors(predictors).values())
    return Evaluation(
        JudgedModel(
            str(checkpoint.directory),
            str(path),
            config.activation,
            config.tau,
            model_bytes(checkpoint),
            size,
        ),
        text,
        judgement.tokens,
        judgement.window,
        layers,
        _total(layers, _shares(total_errors(predictors.layers, judgement.layers))),
        judgement.perplexities,
    )


def _figures(
    predictor: Predictor | None, judged: LayerJudgement, neurons: int, steps: int | None
) -> LayerFigures:
    shares, residency = _shares(judged.errors), judged.residency
    if predictor is None or residency is None:
        return LayerFigures(None, 0, None, None, shares, ResidentShares())
    maps = (predictor.a, predictor.b, predictor.bias)
    return LayerFigures(
        len(predictor.a),
        sum(part.nbytes for part in maps if part is not None),
        predictor.threshold,
        steps,
        shares,
        ResidentShares(
            tuple((residency.kept / residency.tokens / neurons).tolist()),
            tuple((residency.largest / neurons).tolist()),
        ),
    )


def _total(layers: Sequence[LayerFigures], shares: NeuronShares) -> LayerFigures:
    """The layers that have a predictor, together.

    The largest share is the mean of the layers' largest ones, because layers share the rows of a cache.
    """
    counted = [layer for layer in layers if layer.rank is not None]
    mean, largest = (
        tuple(sum(row) / len(counted) for row in zip(*rows, strict=True))
        for rows in zip(*(layer.resident for layer in counted), strict=True)
    )
    return LayerFigures(
        sum(layer.rank or 0 for layer in counted),
        sum(layer.bytes for layer in counted),
        None,
        None,
        shares,
        ResidentShares(mean, largest),
    )


def _shares(errors: ErrorCounts) -> NeuronShares:
    pairs = max(errors.active + errors.inactive, 1)
    predicted = errors.active - errors.false_negatives + errors.false_positives
    return NeuronShares(
        errors.active / pairs,
        predicted / pairs,
        errors.false_negative_rate,
        errors.false_positive_rate,
    )


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _sweep_json(row: SweepRow) -> dict[str, float]:
    return {
        "probability": _probability(row.threshold),
        "threshold": row.threshold,
        **_shares(row.errors)._asdict(),
        "mean_resident": row.resident_share,
    }


def _unit(total: LayerFigures) -> tuple[str, int]:
    """The unit of the sizes in the table and its bytes: a column for large models must not be wider."""
    return ("MB", 10**6) if total.bytes >= 10**7 else ("kB", 10**3)


def _layers_table(layers: Sequence[LayerFigures], total: LayerFigures, window: int) -> str:
    unit, unit_bytes = _unit(total)
    *rows, last = (
        _layer_row(name, layer, window, unit_bytes)
        for name, layer in [*((str(number), layer) for number, layer in enumerate(layers)), ("all", total)]
    )
    return _table(("layer", "rank", unit, *HEADINGS), rows, last)


def _layer_row(name: str, layer: LayerFigures, window: int, unit_bytes: int) -> list[str]:
    active, *others = (f"{share:.2%}" for share in layer.shares)
    if layer.rank is None:
        return [name, "dense", "", "", active, "", "", "", "100.0%", "100.0%"]
    amount = layer.bytes / unit_bytes
    above = "" if layer.threshold is None else f"{layer.threshold:.2f}"
    resident = (f"{shares[window - 1]:.1%}" for shares in layer.resident)
    size = f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
    return [name, str(layer.rank), size, above, active, *others, *resident]


def _perplexity_table(perplexities: Perplexities) -> str:
    rows = []
    for name, value in perplexities._asdict().items():
        shown = f"{value:.4f}" if value < 1e6 else f"{value:.3g}" if math.isfinite(value) else "∞"
        change = value / perplexities.dense - 1 if math.isfinite(value) else math.nan
        known = name != "dense" and math.isfinite(change)
        rows.append([name, shown, f"{change:+.2%}" if known else ""])
    return _table(["neurons", "perplexity", "change"], rows)


def _sweep_table(swept: Sequence[SweepRow]) -> str:
    rows = []
    for row in swept:
        _, *others = _shares(row.errors)
        shares = (f"{share:.2%}" for share in (*others, row.resident_share))
        rows.append([f"{_probability(row.threshold):.2f}", f"{row.threshold:.2f}", *shares])
    return _table(["probability", "above", "predicted", "FN", "FP", "resident"], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], last: Sequence[str] = ()) -> str:
    """A table whose first column is left-aligned and whose others are right-aligned; a rule before `last`."""
    every = [headings, *rows, *([last] if last else [])]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join(
            [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]
        ).rstrip()

    rule = "─" * (sum(widths) + 2 * len(widths) - 2)
    end = [rule, line(last)] if last else []
    return "\n".join([line(headings), rule, *map(line, rows), *end])
