"""Files with plots, for `--plot` and `--html`; matplotlib is an extra."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flashref.cli.options import check_new_file
from flashref.simulate.look import STYLE
from flashref.storage.files import create_file, write_all
from flashref.types import DomainError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

FORMATS = (".png", ".svg", ".pdf")  # what --plot writes


def check_plot(path: Path | None) -> None:
    """Find what would keep --plot from being drawn or written, before anything is computed.

    Args:
        path: the file; None: --plot was not given.

    Raises:
        DomainError: the file exists, cannot be written, or has an unknown ending.
        MissingExtra: matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise DomainError(f"--plot {path}: the format is not known; end the name in {', '.join(FORMATS)}")
    check_new_file("--plot", path)
    check_plots("--plot")


def check_plots(option: str) -> None:
    """Raise MissingExtra if matplotlib, which this option needs, is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{option} needs {error.name}", "plot") from error


def save_plot(path: Path, plot: "Plot") -> None:
    """Write a plot to a new file, which appears whole or not at all.

    Args:
        path: the file; its ending says the format.
        plot: a figure of matplotlib.

    Raises:
        ImageError: the file exists, or the disk is full.
    """
    import matplotlib  # slow to import

    drawn = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        # On white, because a file may be looked at on a dark ground.
        plot.savefig(drawn, format=path.suffix[1:].lower(), dpi=150, facecolor="white")
    data = np.frombuffer(drawn.getvalue(), np.uint8)
    with create_file(path, data.size) as descriptor:
        write_all(descriptor, data, 0)
