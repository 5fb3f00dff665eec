"""How all plots look, and an empty plot. matplotlib is an extra, and slow to import."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

# The colours of Okabe and Ito, which colour-blind readers can tell apart, without the yellow, which is
# invisible on white. Neighbours differ most. Each has a marker, for readers who see no colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#000000"  # text and axes
GRID = "#808080"

STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.alpha": 0.25,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def new_plot(width: float, height: float) -> "Plot":
    """Make an empty plot, to be drawn under `matplotlib.rc_context(STYLE)`.

    Args:
        width, height: its size in points.

    Returns:
        matplotlib's figure, without axes.
    """
    from matplotlib.figure import Figure as Plot

    return Plot(figsize=(width / 72, height / 72), layout="constrained")


def svg_text(plot: "Plot", salt: str) -> str:
    """Write a plot as SVG; equal plots give equal texts.

    Args:
        plot: matplotlib's figure.
        salt: a text from which the ids in the SVG are made, another one for each plot of a page.

    Returns:
        The SVG's text.
    """
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        plot.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()
