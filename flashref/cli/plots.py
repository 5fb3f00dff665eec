"""Files with a plot, which `--plot` and `--html` ask for; matplotlib is an extra."""

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

FORMATS = (".png", ".svg", ".pdf")  # of files with one plot


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


def save_plot(path: Path, plot: "Plot") -> None:
    """Write the plot to a new file that appears whole or not at all."""
    import matplotlib  # slow to import

    drawn = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        # On white: a file is looked at on its own, on whatever ground.
        plot.savefig(drawn, format=path.suffix[1:].lower(), dpi=150, facecolor="white")
    data = np.frombuffer(drawn.getvalue(), np.uint8)
    with create_file(path, data.size) as descriptor:
        write_all(descriptor, data, 0)
