"""What the reports of several commands share: the console, progress bars, and sizes in words."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from flashref.models.sizes import size as size  # the other commands take it from here
from flashref.storage.progress import Progress, unseen

LINE_SECONDS = 20  # the time between two lines of progress, where there is no terminal
MOST_BARS = 5  # the most bars that are shown at a time


class Output(Console):
    """A console of rich on stdout that changes no text, and leaves a closed pipe to its caller."""

    def __init__(self, **options: Any) -> None:
        """Rich's options; neither numbers nor emoji codes in a text are changed unless these say so."""
        super().__init__(**{"highlight": False, "emoji": False, **options})

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, as `print` does."""
        raise BrokenPipeError


@contextmanager
def progress(quiet: bool, *more: ProgressColumn) -> Iterator[Progress]:
    """Show on stderr how far work has come: bars on a terminal, elsewhere a line now and then.

    Args:
        quiet: whether nothing is shown.
        more: further columns of the bars.

    Returns:
        The function that is told how far the work has come.
    """
    console = Console(stderr=True)
    if quiet:
        yield unseen
    elif console.is_terminal:
        with _bars(console, *more) as advance:
            yield advance
    else:
        yield _lines()


@contextmanager
def _bars(console: Console, *more: ProgressColumn) -> Iterator[Progress]:
    what = TextColumn("{task.description}", markup=False)  # a file's name may look like markup
    columns = (what, BarColumn(), *more, TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True) as bars:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
                for old in list(tasks.values())[:-MOST_BARS]:
                    bars.update(old, visible=False)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _lines(clock: Callable[[], float] = time.monotonic) -> Progress:
    """Print lines on stderr, the first after some seconds: how much is done, and how long the rest takes."""
    begun: dict[str, tuple[float, int]] = {}
    last = clock()

    def advance(what: str, done: int, total: int) -> None:
        nonlocal last
        now = clock()
        start, first = begun.setdefault(what, (now, done))
        if now - last < LINE_SECONDS:
            return
        last, left = now, ""
        if first < done < total:
            minutes = (now - start) / (done - first) * (total - done) / 60
            left = f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
        print(f"flashref: {what}: {done / max(total, 1):.0%} done{left}", file=sys.stderr, flush=True)

    return advance
