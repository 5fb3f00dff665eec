"""What `flashref conformance` shows: a line for every requirement, every failure in full, and the count."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from flashref.cli.report import Output

if TYPE_CHECKING:
    from flashref.conformance.adapter import Facts
    from flashref.conformance.judging.runner import Verdict

_COLOURS = {"pass": "green", "unsupported": "dim", "deviates": "yellow"}
_IN_FULL = 3  # failed vectors of an operation; the others are named


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar on stderr, on a terminal only; gives the function that says what is judged now."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield advance


def show(
    facts: "Facts", verdicts: "Sequence[Verdict]", groups: "Mapping[str, Sequence[Verdict]]", target: str
) -> None:
    """Table, failures and the count on stdout. groups: operation → its vectors; target: as in failure_of."""
    from flashref.conformance.judging import summary
    from flashref.conformance.judging.runner import GOOD, NOT_RUN

    out = Output(highlight=False, emoji=False)
    out.print(Text(f"{facts.name} {facts.version}", "bold"), soft_wrap=True)
    out.print(_table(verdicts, groups))
    for verdict in verdicts:
        if verdict.kind not in (*GOOD, NOT_RUN):
            out.print(Text(summary.failure_of(verdict, target)), soft_wrap=True)
            out.print()
    for operation, group in groups.items():
        failed = [verdict for verdict in group if verdict.kind not in (*GOOD, NOT_RUN)]
        for verdict in failed[:_IN_FULL]:
            out.print(Text(summary.failure_of(verdict, target)), soft_wrap=True)
            out.print()
        if others := failed[_IN_FULL:]:
            names = ", ".join(verdict.requirement for verdict in others)
            out.print(Text(f"{len(others)} more vectors of {operation}: {names}\n"), soft_wrap=True)
    every = [verdict for group in groups.values() for verdict in group]
    out.print(Text(summary.summary_line(verdicts, every)), soft_wrap=True)


def _table(verdicts: "Sequence[Verdict]", groups: "Mapping[str, Sequence[Verdict]]") -> Table:
    from flashref.conformance.judging import summary
    from flashref.conformance.judging.runner import GOOD, PASS
    from flashref.conformance.requirements import requirements

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for heading in ("requirement", "class", "verdict"):
        table.add_column(heading, no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    chapter, known = None, requirements()
    for verdict in verdicts:
        requirement = known.get(verdict.requirement)
        page = requirement.page.removesuffix(".md") if requirement else "no chapter"
        if page != chapter:
            table.add_section()
            table.add_row(Text(page, "bold"))
        chapter = page
        table.add_row(
            verdict.requirement,
            requirement.kind if requirement else "",
            _coloured(verdict.kind),
            str(verdict.cases),
            _why(verdict),
        )
    for number, (operation, group) in enumerate(groups.items()):
        if number == 0:
            table.add_section()
            table.add_row(Text("vectors", "bold"))
        passed = sum(verdict.kind == "pass" for verdict in group)
        bad = [verdict.requirement for verdict in group if verdict.kind not in GOOD]
        kind = summary.group_kind(group)
        other = [verdict for verdict in group if verdict.kind == kind != PASS]
        why = Text(", ".join(bad)) if bad else _why(other[0]) if other else Text()
        table.add_row(operation, "vectors", _coloured(kind), f"{passed} of {len(group)}", why)
    return table


def _coloured(kind: str) -> Text:
    return Text(kind, _COLOURS.get(kind, "red"))


def _why(verdict: "Verdict") -> Text:
    """The first line of the reason, cut where it is shown in full below."""
    from flashref.conformance.judging.runner import GOOD, NOT_RUN

    line = verdict.text.strip().partition("\n")[0]
    if verdict.kind in (*GOOD, NOT_RUN):
        return Text(line)
    return Text(line, no_wrap=True, overflow="ellipsis")
