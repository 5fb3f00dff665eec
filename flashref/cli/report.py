"""What the reports of several commands share: a console, tables, progress bars, and figures in words."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from flashref.storage.progress import Progress

LABELS = {
    "naive": "naive",
    "hybrid": "hybrid",
    "predictor": "+ predictor",
    "windowing": "+ windowing",
    "bundling": "+ bundling",
}


class Output(Console):
    """Rich's own, but a reader that has gone away is the caller's affair, as with `print`."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError."""
        raise BrokenPipeError


def print_whole(table: Table) -> None:
    """A table in its full width, on stdout: a narrow terminal, or a pipe, does not cost it a column."""
    needed = Output(width=10**4).measure(table).maximum
    width = max(Output().width, needed)
    Output(width=width, highlight=False, emoji=False).print(table, crop=False, soft_wrap=True)


@contextmanager
def progress(quiet: bool, *more: ProgressColumn) -> Iterator[Progress]:
    """Progress bars on stderr, on a terminal only; gives the function that moves them. more: columns."""
    console = Console(stderr=True, quiet=quiet)
    what = TextColumn("{task.description}", markup=False)  # a file's name may look like markup
    columns = (what, BarColumn(), *more, TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def size(amount: float) -> str:
    """Bytes in units of 1000, three digits: GB = 10^9."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            return f"{_three_digits(amount / size)} {unit}"
    return f"{amount:.0f} B"


def milliseconds(amount: float) -> str:
    """Milliseconds, three digits."""
    return f"{_three_digits(amount)} ms"


def _three_digits(amount: float) -> str:
    return f"{amount:,.{0 if amount >= 100 else 1 if amount >= 10 else 2}f}"
