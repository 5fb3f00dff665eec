"""What a derived figure is: rows of ours beside the paper's, what ours come from, and what is to be known."""

from statistics import median
from typing import Any, NamedTuple

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

    def as_json(self) -> dict[str, Any]:
        """What JSON has of it: null where a value is not known."""
        fields = ("series", "x", "ours", "paper", "error", "note")
        return {
            "title": self.title,
            "axis": self.axis,
            "unit": self.unit,
            "inputs": self.inputs,
            "rows": [{field: getattr(row, field) for field in fields} for row in self.rows],
            "median_error": median_error(self.errors),
            "largest_error": largest_error(self.errors),
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        """A notebook's view: the rows."""
        from flashref.simulate.paper.sections import section, section_html  # which names this class

        return section_html(section("", self))


def median_error(errors: list[float]) -> float | None:
    """The median of the relative errors' sizes; None if there are none."""
    return median(map(abs, errors)) if errors else None


def largest_error(errors: list[float]) -> float | None:
    """The largest size of a relative error; None if there are none."""
    return max(map(abs, errors), default=None)
