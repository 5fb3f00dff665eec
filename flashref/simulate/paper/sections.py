"""The derived figures in words: the sections that a terminal and the page have in common."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flashref.simulate.html import html_table
from flashref.simulate.methods import METHODS
from flashref.simulate.numbers import digits
from flashref.simulate.paper.figure import Figure, FigureRow, largest_error, median_error
from flashref.simulate.paper.table2 import Table2

RULE = (
    "Each figure is derived from shapes, densities, traces and a device fitted to Fig. 2b, never from the "
    "result that it is compared with. Figs. 2b and 4a are what device and process were fitted to: theirs are "
    "residuals of a fit."
)
SHORT = 7  # points of a line that a terminal shows


class Section(NamedTuple):
    """A figure or table in words. name: as --only has it; text: how many leading columns are words.

    short: the rows that a terminal shows; errors: relative, of all values that are compared.
    """

    name: str
    title: str
    inputs: str
    headings: tuple[str, ...]
    text: int
    rows: tuple[tuple[str, ...], ...]
    short: tuple[int, ...]
    errors: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """Title, values compared, median and largest error, what it comes from: a row of the first table."""
        errors = list(self.errors)
        sizes = [_size(median_error(errors)), _size(largest_error(errors))]
        return (self.title, str(len(errors)), *sizes, self.inputs)

    @property
    def agreement(self) -> str:
        """How far ours and the paper's values agree: one sentence."""
        _, compared, median, largest, _ = self.summary
        if not self.errors:
            return "No value is compared with one of the paper's."
        values = "value is" if len(self.errors) == 1 else "values are"
        return f"{compared} {values} compared: the median error is {median}, the largest {largest}."


SUMMARY = ("figure", "values compared", "median error", "largest error", "derived from")


def section(name: str, result: Figure | Table2) -> Section:
    """A result in words."""
    if isinstance(result, Table2):
        return _of_table2(name, result)
    headings = [
        "series" if result.axis else "value",
        result.axis,
        f"ours, {result.unit}",
        "paper",
        "error",
        "note",
    ]
    noted, curve = any(row.note for row in result.rows), bool(result.axis)
    kept = [True, curve, True, True, True, noted]
    rows = [_cells(row) for row in result.rows]
    return Section(
        name,
        result.title,
        result.inputs,
        tuple(_kept(headings, kept)),
        1,
        tuple(tuple(_kept(cells, kept)) for cells in rows),
        tuple(_short(result.rows)),
        tuple(result.errors),
        result.notes,
    )


def section_html(each: Section) -> str:
    """The rows of a section as a table."""
    words = {at for at, heading in enumerate(each.headings) if at < each.text or heading == "note"}
    return html_table(each.title, each.headings, each.rows, words)


def _printed(value: float | None) -> str:
    """A value of the paper's: 92 stays 92."""
    return digits(value) if value is None or abs(value) < 1 else f"{value:,.4g}"


def _of_table2(name: str, table: Table2) -> Section:
    headings = ("method", "ours, GB", "paper, GB", "error", "ours, ms", "paper, ms", "error", "joined, ms")
    rows = tuple(
        (
            METHODS[row.name].label,
            digits(row.flash_bytes_per_token / 1e9),
            f"{row.paper_flash_bytes / 1e9:.1f}",
            _error(row.flash_bytes_error),
            digits(row.simulated_io_ms_per_token),
            f"{row.paper_io_ms:,g}",
            _error(row.io_error),
            digits(row.joined_io_ms_per_token),
        )
        for row in table.rows
    )
    every = tuple(range(len(rows)))
    return Section(
        name, table.title, table.inputs, headings, 1, rows, every, tuple(table.errors), table.notes
    )


def _cells(row: FigureRow) -> list[str]:
    x = "" if row.x is None else f"{row.x:g}"
    return [row.series, x, digits(row.ours), _printed(row.paper), _error(row.error), row.note]


def _kept(cells: Sequence[str], kept: Sequence[bool]) -> Iterable[str]:
    return (cell for cell, keep in zip(cells, kept, strict=True) if keep)


def _short(rows: Sequence[FigureRow]) -> list[int]:
    """Every row of a table; of each line its first and last points and some between."""
    lines: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        lines.setdefault(row.series, []).append(at)
    chosen: set[int] = set()
    for line in lines.values():
        steps = min(SHORT, len(line))
        chosen |= {line[step * (len(line) - 1) // max(steps - 1, 1)] for step in range(steps)}
    return sorted(chosen)


def _error(error: float | None) -> str:
    return "" if error is None else f"{round(100 * error, 1) or 0.0:+.1f} %"


def _size(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.1f} %"
