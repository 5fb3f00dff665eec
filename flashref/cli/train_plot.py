"""The figure of `flashref train --plot`: errors and densities of each layer, and what windows keep of it."""

from pathlib import Path
from typing import Any

from flashref.cli.plots import save_plot
from flashref.cli.train_result import Result
from flashref.simulate.look import COLOURS, MARKERS, STYLE, new_plot

WIDTH, HEIGHT = 900, 380  # points
MOST_LINES = len(COLOURS)  # layers whose windows are drawn, evenly chosen


def plot(path: Path, result: Result) -> None:
    """Draw a judgement, as the paper's Fig. 9a and 4a, into a new file that appears whole or not at all."""
    import matplotlib  # slow to import

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = new_plot(WIDTH, HEIGHT)
        layers, windows = figure.subplots(1, 2)
        _draw_layers(layers, result)
        _draw_windows(windows, result)
        figure.suptitle(f"{result.predictors}, judged on {result.tokens:,} tokens", fontsize="medium")
        save_plot(path, figure)


def _draw_layers(axes: Any, result: Result) -> None:
    """A bar a layer: found and missed together are the active, found and for nothing the predicted."""
    rows = [(number, row) for number, row in enumerate(result.layers) if row["rank"] is not None]
    numbers = [number for number, _ in rows]
    missed = [100 * row["active"] * row["false_negative_rate"] for _, row in rows]
    found = [100 * row["active"] - miss for (_, row), miss in zip(rows, missed, strict=True)]
    extra = [100 * row["predicted"] - hit for (_, row), hit in zip(rows, found, strict=True)]
    below = [0.0] * len(rows)
    shares = (("missed", missed, 1), ("active and predicted", found, 0), ("for nothing", extra, 4))
    for label, share, colour in shares:
        axes.bar(numbers, share, bottom=below, color=COLOURS[colour], label=label)
        below = [low + high for low, high in zip(below, share, strict=True)]
    axes.set(xlabel="layer", ylabel="share of the neurons, %", ylim=(0, 1.35 * max(below, default=1) or 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper right", fontsize="small")


def _draw_windows(axes: Any, result: Result) -> None:
    """The mean share of a layer's neurons that the last 1, 2, … tokens keep; of six layers at most."""
    rows = [(number, row) for number, row in enumerate(result.layers) if row["rank"] is not None]
    count = min(len(rows), MOST_LINES)
    for line in range(count):
        number, row = rows[line * (len(rows) - 1) // max(count - 1, 1)]
        tokens = range(1, len(row["mean_resident"]) + 1)
        resident = [100 * share for share in row["mean_resident"]]
        axes.plot(tokens, resident, color=COLOURS[line], marker=MARKERS[line], label=f"layer {number}")
    axes.set(xlabel="window, tokens", ylabel="mean share resident, %", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left", fontsize="small")
