"""What `flashref paper` shows, in words: the sections that the terminal and the page have in common."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flashref.cli.report import LABELS, Output, print_whole
from flashref.simulate.paper.figure import Figure, FigureRow, largest_error, median_error
from flashref.simulate.paper.table2 import Table2

RULE = (
    "Each figure is derived from shapes, densities, traces and a device fitted to Fig. 2b, never from the "
    "result that it is compared with. Figs. 2b and 4a are what device and process were fitted to: theirs are "
    "residuals of a fit."
)
SHORT = 7  # points of a line that a terminal shows
NOTE_WIDTH = 50  # of a column with notes, before they are broken


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


def show(results: Mapping[str, Figure | Table2], html: Path | None) -> None:
    """The rule, a table of all, and each of them, on stdout. html: the page that was written."""
    out = Output(highlight=False, emoji=False)
    sections = [section(name, result) for name, result in results.items()]
    out.print(RULE)
    out.print()
    print_whole(_summary(sections))
    for each in sections:
        out.print()
        out.print(Text(each.title, "bold"), soft_wrap=True)
        out.print(f"from: {escape(each.inputs)}")
        print_whole(_table(each.headings, each.text, [each.rows[at] for at in each.short]))
        if len(each.short) < len(each.rows):
            out.print(f"{len(each.short)} of {len(each.rows)} rows; --json and --html have all")
        for note in each.notes:
            out.print(f"- {escape(note)}")
    if html is not None:
        out.print()
        out.print(f"the page with the plots: {escape(str(html))}", soft_wrap=True)


def digits(value: float | None) -> str:
    """Three significant digits or more, – for None."""
    if value is None:
        return "–"
    rounded = float(f"{abs(value):.3g}")  # 9.999 has two digits before the point
    places = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:,.{max(places, 0)}f}"


def _printed(value: float | None) -> str:
    """A value of the paper's: 92 stays 92."""
    return digits(value) if value is None or abs(value) < 1 else f"{value:,.4g}"


def _of_table2(name: str, table: Table2) -> Section:
    headings = ("method", "ours, GB", "paper, GB", "error", "ours, ms", "paper, ms", "error", "joined, ms")
    rows = tuple(
        (
            LABELS[row.name],
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


def _summary(sections: Sequence[Section]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at, heading in enumerate(SUMMARY[:-1]):  # what it is derived from stands above each result
        table.add_column(heading, justify="right" if at else "left")
    for each in sections:
        table.add_row(*map(escape, each.summary[:-1]))
    return table


def _table(headings: Sequence[str], text: int, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at, heading in enumerate(headings):
        words = at < text or heading == "note"
        limit = NOTE_WIDTH if heading == "note" else None
        table.add_column(
            escape(heading), justify="left" if words else "right", no_wrap=heading != "note", max_width=limit
        )
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _error(error: float | None) -> str:
    return "" if error is None else f"{round(100 * error, 1) or 0.0:+.1f} %"


def _size(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.1f} %"
