"""Tables and sentences on stdout: they fit a terminal of any width, and a pipe gets every line whole."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flashref.cli.report import Output

GAP = 2  # blanks between two columns; one more stands before the first and after the last


class Column(NamedTuple):
    """A column's heading, and whether it holds words: these are left-aligned and may be broken at blanks."""

    heading: str
    words: bool = False


def say(text: str, style: str = "") -> None:
    """Print a sentence, broken between words on a terminal and whole into a pipe; it is no markup."""
    out = _output()
    out.print(Text(text, style), soft_wrap=not out.is_terminal)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table.

    On a terminal that is too narrow the headings are broken first, as far as the cells allow, and then the
    columns of words. Into a pipe every row is one line, without blanks at its end.

    Args:
        columns: from left to right.
        rows: a cell for each column.
    """
    out = _output()
    if out.is_terminal:
        fits = table_width(columns, rows, broken=False) <= out.width
        out.print(_table(columns, rows, broken=not fits))
        return
    whole = Output(width=table_width(columns, rows, broken=False), highlight=False, emoji=False)
    with whole.capture() as captured:
        whole.print(_table(columns, rows, broken=False))
    for line in captured.get().splitlines():
        print(line.rstrip())


def table_width(columns: Sequence[Column], rows: Sequence[Sequence[str]], broken: bool = True) -> int:
    """How many columns of a terminal a table takes, with headings that are broken or in one line each."""
    widths = [
        max(_cell_width(rows, at), _longest_line(_heading(column, rows, at, broken)))
        for at, column in enumerate(columns)
    ]
    return sum(widths) + GAP * (len(widths) - 1) + 2


def terminal_width() -> int | None:
    """The width of the terminal that stdout is, or None where it is none."""
    out = _output()
    return out.width if out.is_terminal else None


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], broken: bool) -> Table:
    # The box puts a blank at both ends and between columns; the padding makes the gaps two wide.
    table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False)
    for at, column in enumerate(columns):
        heading = escape(_heading(column, rows, at, broken))
        table.add_column(heading, justify="left" if column.words else "right", no_wrap=not column.words)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _heading(column: Column, rows: Sequence[Sequence[str]], at: int, broken: bool) -> str:
    if not broken:
        return column.heading
    longest_word = max(map(cell_len, column.heading.split()), default=1)
    return textwrap.fill(column.heading, max(_cell_width(rows, at), longest_word, 1), break_long_words=False)


def _cell_width(rows: Sequence[Sequence[str]], at: int) -> int:
    return max((cell_len(row[at]) for row in rows), default=0)


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _output() -> Output:
    return Output(highlight=False, emoji=False)
