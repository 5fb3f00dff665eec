"""What `fit` and `judge` give: the figures of predictors, for each layer and for all of them."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flashref.models.checkpoint import Checkpoint
from flashref.models.predictors import ErrorCounts, Predictors, predictor_tensors
from flashref.training.judging import Judgement, Perplexities, Swept, Verdict, total_errors
from flashref.training.plan import model_bytes
from flashref.types import Predictor


class Subject(NamedTuple):
    """What was judged: a model with an activation, and its predictors; sizes in bytes."""

    model: str
    predictors: str
    activation: str
    tau: float
    model_bytes: int
    predictor_bytes: int


class Shares(NamedTuple):
    """Shares of a layer's neurons, mean over the tokens, and the two rates of errors.

    false_negative_rate: of the active neurons; false_positive_rate: of the inactive.
    """

    active: float
    predicted: float
    false_negative_rate: float
    false_positive_rate: float


class Resident(NamedTuple):
    """Shares of a layer's neurons that windows of 1, 2, … tokens keep: their mean, and the largest."""

    mean: tuple[float, ...] = ()
    largest: tuple[float, ...] = ()


class LayerFigures(NamedTuple):
    """One layer, or all that have a predictor together.

    rank, threshold, steps: None where there is none, and rank is the sum for all; bytes: of the predictor's
    maps and bias; steps: that its fit made.
    """

    rank: int | None
    bytes: int
    threshold: float | None
    steps: int | None
    shares: Shares
    resident: Resident

    def as_json(self) -> dict[str, Any]:
        """Names and plain values."""
        return {
            **{name: value for name, value in self._asdict().items() if name not in ("shares", "resident")},
            **self.shares._asdict(),
            "mean_resident": list(self.resident.mean),
            "largest_resident": list(self.resident.largest),
        }


class Sweep(NamedTuple):
    """What one threshold for all layers would give, and the text that this was counted on."""

    text: str
    rows: tuple[Swept, ...]


class Evaluation(NamedTuple):
    """Predictors, judged. text: what they were judged on; tokens: of it; window: tokens of the window."""

    subject: Subject
    text: str
    tokens: int
    window: int
    layers: tuple[LayerFigures, ...]
    total: LayerFigures
    perplexities: Perplexities
    sweep: Sweep | None = None

    def as_json(self) -> dict[str, Any]:
        """What `flashref train --json` prints, in this order."""
        model, predictors, activation, tau, whole, size = self.subject
        return {
            "model": model,
            "predictors": predictors,
            "activation": activation,
            "tau": tau,
            "judged_on": self.text,
            "tokens": self.tokens,
            "window": self.window,
            "model_bytes": whole,
            "predictor_bytes": size,
            "share": size / whole,
            "layers": [layer.as_json() for layer in self.layers],
            "total": self.total.as_json(),
            # JSON has no infinity: a loss beyond every float is null.
            "perplexity": {
                name: value if math.isfinite(value) else None
                for name, value in self.perplexities._asdict().items()
            },
            "swept_on": None if self.sweep is None else self.sweep.text,
            "sweep": None if self.sweep is None else [_swept_json(row) for row in self.sweep.rows],
        }

    def __str__(self) -> str:
        """The tables, at most 80 columns wide but for names of files, with every column explained."""
        model, predictors, activation, tau, whole, size = self.subject
        named = f"{activation} (tau {tau:g})" if activation == "fatrelu" else activation
        parts = [
            "\n".join(
                [
                    f"judged on {self.text}: {self.tokens:,} tokens",
                    f"{predictors}: {size:,} bytes, {size / whole:.2%} of the model, for {named}",
                ]
            ),
            _layers_table(self.layers, self.total, self.window),
            COLUMNS.format(window=self.window),
            _perplexity_table(self.perplexities),
            PERPLEXITIES.format(window=self.window),
        ]
        if self.sweep is not None:
            parts += [f"One threshold for all layers, on {self.sweep.text}:", _sweep_table(self.sweep.rows)]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self), quote=False)}</pre>"


HEADINGS = ("layer", "rank", "kB", "above", "active", "predicted", "missed", "extra", "resident", "most")
COLUMNS = """\
kB         The size of the predictor.
above      A neuron is predicted if its logit is above this threshold.
active     The mean share of the layer's neurons that are truly active.
predicted  The mean share of the layer's neurons that are predicted.
missed     The share of the active neurons that are not predicted.
extra      The share of the inactive neurons that are predicted.
resident   The mean share of the neurons that a window of {window} tokens keeps.
most       The largest share that this window kept after any token."""
PERPLEXITIES = """\
dense      The FFNs sum all neurons.
exact      The FFNs sum the truly active neurons.
predicted  The FFNs sum the predicted neurons.
resident   The FFNs sum the neurons that a window of {window} tokens keeps."""


def evaluate(
    checkpoint: Checkpoint,
    path: Path,
    predictors: Predictors,
    judgement: Judgement,
    text: str,
    steps: Sequence[int] | None = None,
) -> Evaluation:
    """The figures of a judgement.

    Args:
        checkpoint: of the model.
        path: of the predictors' file.
        predictors: that were judged.
        judgement: of these predictors.
        text: a phrase for what they were judged on.
        steps: that each layer's fit made, or None if nothing was fitted.
    """
    config = checkpoint.config
    layers = tuple(
        _figures(predictor, verdict, config.neurons, None if steps is None else steps[number])
        for number, (predictor, verdict) in enumerate(zip(predictors.layers, judgement.verdicts, strict=True))
    )
    size = sum(array.nbytes for array in predictor_tensors(predictors).values())
    return Evaluation(
        Subject(
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
        _total(layers, _shares(total_errors(predictors.layers, judgement.verdicts))),
        judgement.perplexities,
    )


def _figures(predictor: Predictor | None, verdict: Verdict, neurons: int, steps: int | None) -> LayerFigures:
    shares, residency = _shares(verdict.errors), verdict.residency
    if predictor is None or residency is None:
        return LayerFigures(None, 0, None, None, shares, Resident())
    maps = (predictor.a, predictor.b, predictor.bias)
    return LayerFigures(
        len(predictor.a),
        sum(part.nbytes for part in maps if part is not None),
        predictor.threshold,
        steps,
        shares,
        Resident(
            tuple((residency.kept / residency.tokens / neurons).tolist()),
            tuple((residency.largest / neurons).tolist()),
        ),
    )


def _total(layers: Sequence[LayerFigures], shares: Shares) -> LayerFigures:
    """Of the layers that have a predictor; the largest is the mean of their largest, as rows are shared."""
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
        Resident(mean, largest),
    )


def _shares(errors: ErrorCounts) -> Shares:
    pairs = max(errors.active + errors.inactive, 1)
    predicted = errors.active - errors.false_negatives + errors.false_positives
    return Shares(
        errors.active / pairs,
        predicted / pairs,
        errors.false_negative_rate,
        errors.false_positive_rate,
    )


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _swept_json(swept: Swept) -> dict[str, float]:
    return {
        "probability": _probability(swept.threshold),
        "threshold": swept.threshold,
        **_shares(swept.errors)._asdict(),
        "mean_resident": swept.resident_share,
    }


def _layers_table(layers: Sequence[LayerFigures], total: LayerFigures, window: int) -> str:
    rows = [_layer_row(str(number), layer, window) for number, layer in enumerate(layers)]
    return _table(HEADINGS, rows, _layer_row("all", total, window))


def _layer_row(name: str, layer: LayerFigures, window: int) -> list[str]:
    active, predicted, missed, extra = (f"{share:.2%}" for share in layer.shares)
    if layer.rank is None:
        return [name, "dense", "", "", active, "", "", "", "100.0%", "100.0%"]
    kilobytes = layer.bytes / 1000
    above = "" if layer.threshold is None else f"{layer.threshold:.2f}"
    resident = (f"{shares[window - 1]:.1%}" for shares in layer.resident)
    size = f"{kilobytes:,.0f}" if kilobytes >= 100 else f"{kilobytes:.3g}"
    return [name, str(layer.rank), size, above, active, predicted, missed, extra, *resident]


def _perplexity_table(perplexities: Perplexities) -> str:
    rows = []
    for name, value in perplexities._asdict().items():
        shown = f"{value:.4f}" if value < 1e6 else f"{value:.3g}" if math.isfinite(value) else "∞"
        change = value / perplexities.dense - 1 if math.isfinite(value) else math.nan
        known = name != "dense" and math.isfinite(change)
        rows.append([name, shown, f"{change:+.2%}" if known else ""])
    return _table(["summed", "perplexity", "against dense"], rows)


def _sweep_table(swept: Sequence[Swept]) -> str:
    rows = []
    for row in swept:
        _, predicted, missed, extra = _shares(row.errors)
        shares = (f"{share:.2%}" for share in (predicted, missed, extra, row.resident_share))
        rows.append([f"{_probability(row.threshold):.2f}", f"{row.threshold:.2f}", *shares])
    return _table(["probability", "above", "predicted", "missed", "extra", "resident"], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], last: Sequence[str] = ()) -> str:
    """Columns two spaces apart, the first to the left and the others to the right; a rule before `last`."""
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
