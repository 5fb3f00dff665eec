"""A derived figure: rows with our value beside the paper's, what ours come from, and notes."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flashref.simulate.numbers import digits
from flashref.simulate.paper.sections import Section, error_cell, largest_error, median_error, section_html
from flashref.storage.device import PRESETS

DEVICE_NAME = "paper_m1max_fig2b"  # the other preset of this machine was tuned to Table 2
DEVICE = PRESETS[DEVICE_NAME]
SHORT = 7  # how many points of a line a terminal shows


class FigureRow(NamedTuple):
    """One value.

    series: the line of a plot, or the row of a table.
    x: where on the line; None in a table.
    ours: our value; None where it cannot be derived.
    paper: the paper's value; None where it gives none.
    note: why a value is missing, or what is special about it.
    compared: False where both values agree because one repeats the other, or because both are 1 by
        definition.
    """

    series: str
    x: float | None
    ours: float | None
    paper: float | None
    note: str = ""
    compared: bool = True

    @property
    def error(self) -> float | None:
        """(ours − paper) / paper; None where the two are not compared."""
        return self.ours / self.paper - 1 if self.compared and self.ours is not None and self.paper else None


class Figure(NamedTuple):
    """A figure or table.

    title: what it shows, by the paper's number.
    axis: what x is; empty for a table.
    unit: the unit of the values.
    inputs: everything that our values are derived from.
    rows: the values.
    notes: what a reader needs to know of it, in whole sentences.
    """

    title: str
    axis: str
    unit: str
    inputs: str
    rows: tuple[FigureRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[float]:
        """The errors of the rows that have one."""
        return [row.error for row in self.rows if row.error is not None]

    def as_json(self) -> dict[str, Any]:
        """What `flashref paper --json` prints; None where a value is not known."""
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

    def section(self, name: str = "") -> Section:
        """The figure in words, with its name for --only."""
        headings = [
            "series" if self.axis else "value",
            self.axis,
            f"ours, {self.unit}",
            "paper",
            "error",
            "note",
        ]
        noted, curve = any(row.note for row in self.rows), bool(self.axis)
        kept = [True, curve, True, True, True, noted]
        rows = [_cells(row) for row in self.rows]
        return Section(
            name,
            self.title,
            self.inputs,
            tuple(_kept(headings, kept)),
            1,
            tuple(tuple(_kept(cells, kept)) for cells in rows),
            tuple(_short(self.rows)),
            tuple(self.errors),
            self.notes,
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the rows."""
        return section_html(self.section())


def _printed(value: float | None) -> str:
    """A value of the paper, as the paper prints it: 92 stays 92."""
    return digits(value) if value is None or abs(value) < 1 else f"{value:,.4g}"


def _cells(row: FigureRow) -> list[str]:
    x = "" if row.x is None else f"{row.x:g}"
    return [row.series, x, digits(row.ours), _printed(row.paper), error_cell(row.error), row.note]


def _kept(cells: Sequence[str], kept: Sequence[bool]) -> Iterable[str]:
    return (cell for cell, keep in zip(cells, kept, strict=True) if keep)


def _short(rows: Sequence[FigureRow]) -> list[int]:
    """The rows that a terminal shows: all of a table, and of each line its ends and some points between."""
    lines: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        lines.setdefault(row.series, []).append(at)
    chosen: set[int] = set()
    for line in lines.values():
        steps = min(SHORT, len(line))
        chosen |= {line[step * (len(line) - 1) // max(steps - 1, 1)] for step in range(steps)}
    return sorted(chosen)
