"""Draws an evaluation: the errors of each layer's predictor, and what windows keep (Fig. 9a and 4a)."""

from collections.abc import Sequence
from typing import Any

from flashref.training.evaluation import Evaluation

COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5")  # matplotlib's own, in its order
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(
    figure: Any, evaluation: Evaluation, colours: Sequence[str] = COLOURS, markers: Sequence[str] = MARKERS
) -> None:
    """Draw an evaluation into an empty figure: on the left the errors, on the right the windows.

    Args:
        figure: a `matplotlib.figure.Figure`; it should be about twice as wide as it is high.
        evaluation: the result of `fit` or `judge`.
        colours, markers: the colours and markers of the lines; at most `len(colours)` layers get a line.
    """
    errors, windows = figure.subplots(1, 2)
    _draw_errors(errors, evaluation, colours)
    _draw_windows(windows, evaluation, colours, markers)
    title = f"{evaluation.judged.predictors}, judged on {evaluation.tokens:,} tokens"
    figure.suptitle(title, fontsize="medium")


def _draw_errors(axes: Any, evaluation: Evaluation, colours: Sequence[str]) -> None:
    """A bar for each layer: false negatives, then true positives, then false positives."""
    numbers = [number for number, layer in enumerate(evaluation.layers) if layer.rank is not None]
    shares = [evaluation.layers[number].shares for number in numbers]
    negatives = [100 * share.active * share.false_negative_rate for share in shares]
    found = [100 * share.active - one for share, one in zip(shares, negatives, strict=True)]
    positives = [100 * share.predicted - one for share, one in zip(shares, found, strict=True)]
    below = [0.0] * len(numbers)
    parts = (
        ("false negatives", negatives, 1),
        ("active and predicted", found, 0),
        ("false positives", positives, 4),
    )
    for label, heights, colour in parts:
        axes.bar(numbers, heights, bottom=below, color=colours[colour], label=label)
        below = [low + high for low, high in zip(below, heights, strict=True)]
    axes.set(xlabel="layer", ylabel="share of the neurons, %", ylim=(0, 1.35 * max(below, default=1) or 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper right", fontsize="small")


def _draw_windows(axes: Any, evaluation: Evaluation, colours: Sequence[str], markers: Sequence[str]) -> None:
    """A line for each of some layers, evenly chosen: the mean share that windows of 1, 2, … tokens keep."""
    rows = [(number, layer) for number, layer in enumerate(evaluation.layers) if layer.rank is not None]
    count = min(len(rows), len(colours))
    for line in range(count):
        number, layer = rows[line * (len(rows) - 1) // max(count - 1, 1)]
        shares = [100 * share for share in layer.resident.mean]
        tokens = range(1, len(shares) + 1)
        axes.plot(tokens, shares, color=colours[line], marker=markers[line], label=f"layer {number}")
    axes.set(xlabel="window, tokens", ylabel="mean share resident, %", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left", fontsize="small")
