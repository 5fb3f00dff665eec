"""Tables and sentences on stdout: they fit into a terminal of any width, and a pipe gets whole lines."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flashref.cli.report import Output

WHOLE, NARROWEST = 1000, 1
LIMITS = (WHOLE, 16, 11, NARROWEST)  # the widths at which headings are broken, tried in this order
GAP = 2  # blanks between two columns; one blank stands before the first and after the last


class Column(NamedTuple):
    """A column: its heading, and whether it holds words, which are left-aligned and may be broken."""

    heading: str
    words: bool = False


def say(text: str | Text, style: str = "") -> None:
    """Print a sentence: on a terminal its lines end between words, and a pipe gets one whole line.

    Args:
        text: the sentence, whose brackets are no markup; or a Text that has its styles already.
        style: a style of rich for the whole sentence, such as "bold".
    """
    out = _output()
    out.print(Text(text, style) if isinstance(text, str) else text, soft_wrap=not out.is_terminal)


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
        limits = (limit for limit in LIMITS if table_width(columns, rows, limit) <= out.width)
        out.print(_table(columns, rows, next(limits, NARROWEST)))
        return
    whole = Output(width=table_width(columns, rows, WHOLE))
    with whole.capture() as captured:
        whole.print(_table(columns, rows, WHOLE))
    for line in captured.get().splitlines():
        print(line.rstrip())


def fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], dispensable: Sequence[str]
) -> list[int]:
    """Choose the columns for which a terminal has room; a pipe gets all.

    Args:
        columns, rows: the table.
        dispensable: the headings of columns that may be left out, the first one first.

    Returns:
        The numbers of the columns that stay.
    """
    kept = list(range(len(columns)))
    for heading in dispensable:
        if fits([columns[at] for at in kept], [[row[at] for at in kept] for row in rows]):
            break
        kept = [at for at in kept if columns[at].heading != heading]
    return kept


def fits(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a terminal has room for a table without breaking its cells; a pipe always has."""
    out = _output()
    return not out.is_terminal or table_width(columns, rows) <= out.width


def table_width(columns: Sequence[Column], rows: Sequence[Sequence[str]], limit: int = NARROWEST) -> int:
    """Return the width of a table whose headings are broken at `limit`, or at its widest cells."""
    widths = [
        max(_cell_width(rows, at), _longest_line(_heading(column, rows, at, limit)))
        for at, column in enumerate(columns)
    ]
    return sum(widths) + GAP * (len(widths) - 1) + 2


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], limit: int) -> Table:
    # The box puts a blank at both ends and between columns; the padding makes the gaps two wide.
    table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False)
    for at, column in enumerate(columns):
        heading = escape(_heading(column, rows, at, limit))
        table.add_column(heading, justify="left" if column.words else "right", no_wrap=not column.words)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _heading(column: Column, rows: Sequence[Sequence[str]], at: int, limit: int) -> str:
    longest_word = max(map(cell_len, column.heading.split()), default=1)
    return textwrap.fill(
        column.heading, max(_cell_width(rows, at), longest_word, limit), break_long_words=False
    )


def _cell_width(rows: Sequence[Sequence[str]], at: int) -> int:
    return max((cell_len(row[at]) for row in rows), default=0)


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _output() -> Output:
    return Output()
