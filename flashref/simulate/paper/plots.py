"""The plots of the derived figures: our values as lines, the paper's as markers."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flashref.simulate.look import COLOURS, INK, MARKERS, STYLE, new_plot, svg_text
from flashref.simulate.methods import METHODS
from flashref.simulate.paper.figure import Figure, FigureRow
from flashref.simulate.paper.table2 import Table2

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

WIDTH, HEIGHT = 350, 280  # points, narrow, so that text stays readable on a phone
ROW, AROUND = 25, 75  # the heights in points of a table's row, and of what surrounds the rows
SCALES = {  # the scales of x and y, where they are not linear
    "figure2b": ("log", "log"),
    "figure4a": ("linear", "log"),
    "figure8": ("symlog", "linear"),
    "table3": ("log", "linear"),
    "coactivation": ("log", "linear"),
}


class Value(NamedTuple):
    """A row of a table: its label, our value and the paper's."""

    label: str
    ours: float | None
    paper: float | None


def plot_svg(name: str, result: Figure | Table2) -> str:
    """Draw a figure, or a table with a row for each value.

    Args:
        name: the figure's name, which decides the scales.
        result: the figure or table.

    Returns:
        The plot as SVG.
    """
    import matplotlib  # slow to import

    style: Any = STYLE
    with matplotlib.rc_context(style):
        if isinstance(result, Table2):
            plot = _table2(result)
        elif result.axis:
            plot = _lines(result, *SCALES.get(name, ("linear", "linear")))
        else:
            plot = new_plot(WIDTH, AROUND + ROW * len(result.rows))
            values = [Value(row.series, row.ours, row.paper) for row in result.rows]
            handles = _values(plot.subplots(), values, result.unit, SCALES.get(name, ("linear", ""))[0])
            plot.legend(handles=handles, loc="outside upper right", ncols=2)
        return svg_text(plot, name)


def _lines(figure: Figure, x_scale: str, y_scale: str) -> "Plot":
    from matplotlib.lines import Line2D

    plot = new_plot(WIDTH, HEIGHT)
    axes = plot.subplots()
    lines: dict[str, list[FigureRow]] = {}
    for row in figure.rows:
        if row.x is not None:
            lines.setdefault(row.series, []).append(row)
    handles = []
    for (series, rows), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
        ours = [(row.x, row.ours) for row in rows if row.ours is not None]
        paper = [(row.x, row.paper) for row in rows if row.paper is not None]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": "none"}
        if ours:
            axes.plot(*zip(*ours, strict=True), color=colour)
        if paper:
            axes.plot(*zip(*paper, strict=True), linestyle="none", **look)
        handles.append(Line2D([], [], linestyle="-" if ours else "none", label=series, **look))
    if len(lines) == 1:
        handles, colour = [], COLOURS[0]
    else:
        colour = INK
    handles.append(Line2D([], [], color=colour, label="line: ours"))
    ring: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": "none"}
    handles.append(Line2D([], [], color=colour, label="marker: paper", **ring))
    _scale(axes.xaxis, x_scale, sorted({row.x for row in figure.rows if row.x is not None}))
    _scale(axes.yaxis, y_scale, [])
    if y_scale == "linear":
        axes.set_ylim(bottom=0)
    axes.set(xlabel=figure.axis, ylabel=figure.unit)
    plot.legend(handles=handles, loc="outside upper left", ncols=2, fontsize="small")
    return plot


def _scale(axis: Any, scale: str, points: Sequence[float]) -> None:
    """Set a scale whose ticks are plain numbers; where there are few points, each is a tick."""
    from matplotlib import ticker

    axis._set_axes_scale(scale, **({"linthresh": 1} if scale == "symlog" else {}))
    if scale == "linear":
        return
    if 0 < len(points) < 6:
        axis.set_major_locator(ticker.FixedLocator(points))
    elif scale == "log":
        axis.set_major_locator(ticker.LogLocator(subs=(1, 3) if axis.axis_name == "x" else (1, 2, 5)))
    else:
        axis.set_major_locator(ticker.FixedLocator([0, 1, 2, 5, 10, 20, 50, 100, 200]))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))


def _table2(table: Table2) -> "Plot":
    """The plot of Table 2: bytes above, time below."""
    plot = new_plot(WIDTH, 2 * (AROUND + ROW * len(table.rows)))
    above, below = plot.subplots(2, 1)
    labels = [METHODS[row.name].label for row in table.rows]
    ours = [row.flash_bytes_per_token / 1e9 for row in table.rows]
    paper = [row.paper_flash_bytes / 1e9 for row in table.rows]
    _values(above, list(map(Value, labels, ours, paper)), "GB a token", "log")
    ours = [row.simulated_io_ms_per_token for row in table.rows]
    times = [row.paper_io_ms for row in table.rows]
    handles = _values(below, list(map(Value, labels, ours, times)), "ms of I/O a token", "log")
    plot.legend(handles=handles, loc="outside upper right", ncols=2)
    return plot


def _values(axes: Any, values: Sequence[Value], unit: str, scale: str) -> list[Any]:
    """Draw a row for each value: a bar for ours, a ring for the paper's. Returns the legend's handles."""
    places = range(len(values))
    ours = [(value.ours, at) for value, at in zip(values, places, strict=True) if value.ours is not None]
    paper = [(value.paper, at) for value, at in zip(values, places, strict=True) if value.paper is not None]
    bars = axes.plot(
        *zip(*ours, strict=True),
        linestyle="none",
        marker="|",
        markersize=16,
        markeredgewidth=2.5,
        color=COLOURS[0],
        label="line: ours",
    )
    rings = axes.plot(
        *zip(*paper, strict=True),
        linestyle="none",
        marker="o",
        markerfacecolor="none",
        markeredgewidth=1.5,
        color=COLOURS[1],
        label="marker: paper",
    )
    labels = [textwrap.fill(value.label, 24) for value in values]
    axes.set_yticks(places, labels, fontsize="small")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(values) - 0.5, -0.5)
    _scale(axes.xaxis, scale, [])
    if scale == "linear":
        axes.set_xlim(left=0)
    axes.set(xlabel=unit)
    return [*bars, *rings]
