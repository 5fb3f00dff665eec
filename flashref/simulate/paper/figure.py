"""What a derived figure is: rows of ours beside the paper's, what ours come from, and what is to be known."""

from statistics import median
from typing import NamedTuple

from flashref.storage.device import PRESETS

DEVICE_NAME = "paper_m1max_fig2b"  # the other preset was tuned to Table 2
DEVICE = PRESETS[DEVICE_NAME]


class FigureRow(NamedTuple):
    """One value. series: the line, or the row of a table; x: where on the line.

    ours is None where it cannot be derived, paper where the paper has no such figure; compared: False where
    the two agree because one is the other, or both are 1 by definition, so that an error would say nothing.
    """

    series: str
    x: float | None
    ours: float | None
    paper: float | None
    note: str = ""
    compared: bool = True

    @property
    def error(self) -> float | None:
        """(ours − paper) / paper."""
        return self.ours / self.paper - 1 if self.compared and self.ours is not None and self.paper else None


class Figure(NamedTuple):
    """A figure or table. axis, unit: of x and of the values; inputs: all that ours come from."""

    title: str
    axis: str
    unit: str
    inputs: str
    rows: tuple[FigureRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[float]:
        """Of the rows that have one."""
        return [row.error for row in self.rows if row.error is not None]


def median_error(errors: list[float]) -> float | None:
    """The median of the relative errors' sizes; None if there are none."""
    return median(map(abs, errors)) if errors else None


def largest_error(errors: list[float]) -> float | None:
    """The largest size of a relative error; None if there are none."""
    return max(map(abs, errors), default=None)
