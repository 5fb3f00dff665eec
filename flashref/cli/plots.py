"""matplotlib, which is an extra, and the one look of all plots."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashref.cli.options import check_new_file
from flashref.storage.files import create_file, write_all
from flashref.types import DomainError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

# Okabe and Ito's, told apart by colour-blind readers, in an order that keeps neighbours apart; and a marker
# each, for those who see none. Yellow is left out: it is invisible on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#000000"  # text and axes
GRID = "#808080"

FORMATS = (".png", ".svg", ".pdf")  # of files with one plot

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


def check_plot(path: Path | None) -> None:
    """What would keep --plot from being drawn or written: FlashrefError, before anything is computed."""
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise DomainError(f"--plot {path}: ends in none of {', '.join(FORMATS)}; choose one of them")
    check_new_file("--plot", path)
    check_plots("--plot")


def check_plots(option: str) -> None:
    """MissingExtra if matplotlib is not installed, which this option needs."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{option} needs {error.name}", "plot") from error


def new_plot(width: float, height: float) -> "Plot":
    """An empty plot of this size in points, to be drawn under `matplotlib.rc_context(STYLE)`."""
    from matplotlib.figure import Figure as Plot

    return Plot(figsize=(width / 72, height / 72), layout="constrained")


def save_plot(path: Path, plot: "Plot") -> None:
    """Write the plot to a new file that appears whole or not at all."""
    drawn = io.BytesIO()
    # On white: a file is looked at on its own, on whatever ground.
    plot.savefig(drawn, format=path.suffix[1:].lower(), dpi=150, facecolor="white")
    data = np.frombuffer(drawn.getvalue(), np.uint8)
    with create_file(path, data.size) as descriptor:
        write_all(descriptor, data, 0)


def svg_text(plot: "Plot", salt: str) -> str:
    """The plot as SVG, the same text every time. salt: another for each plot, from which its ids are made."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        plot.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()
