"""The one look of all plots, and an empty plot; matplotlib is an extra and slow to import."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

# Okabe and Ito's, told apart by colour-blind readers, in an order that keeps neighbours apart; and a marker
# each, for those who see none. Yellow is left out: it is invisible on white.
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
    """An empty plot of this size in points, to be drawn under `matplotlib.rc_context(STYLE)`."""
    from matplotlib.figure import Figure as Plot

    return Plot(figsize=(width / 72, height / 72), layout="constrained")


def svg_text(plot: "Plot", salt: str) -> str:
    """The plot as SVG, the same text every time. salt: another for each plot, from which its ids are made."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        plot.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()
