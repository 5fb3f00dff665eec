"""`flashref conformance`: an implementation, in a process of its own, judged against every requirement."""

import argparse
import json
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from flashref.cli.report import Output
from flashref.types import FlashrefError, MissingExtra

if TYPE_CHECKING:  # Hypothesis is loaded when there is something to judge
    from flashref.conformance import Report
    from flashref.conformance.judging.report import Row

TIMEOUT = 60.0  # seconds for an answer
PROFILES = ("dev", "ci", "nightly")
HEADINGS = ("requirement", "class", "verdict", "cases", "why")
COLOURS = {"pass": "green", "unsupported": "dim", "deviates": "yellow"}
MANY = 3  # more rows than these that are unsupported for one reason become one line
NARROWEST = 20  # characters of the reasons' column


def add_parser(commands: Any) -> None:
    """`conformance` among the commands."""
    parser = commands.add_parser("conformance", help="test another implementation against the spec")
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", nargs="?", help="its adapter: module, or module:attribute")
    add("--command", metavar="LINE", dest="line", help="instead: a command that speaks chapter 96's messages")
    add("--profile", choices=PROFILES, default="ci", help="30, 100 or 2000 cases each (default: ci)")
    add("--requirements", metavar="ID", nargs="+", help="only these, such as FFN-4, or all of an area: WIN")
    add("--deviations", metavar="FILE", type=Path, help="what it knowingly does otherwise (TOML)")
    add("--repro", metavar="WORD", nargs="+", help="repeat a failure: ID TEXT as printed, or a vector's ID")
    add("--no-vectors", action="store_true", help="leave out the vectors")
    add("--json", action="store_true", help="one JSON object instead of tables")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace, timeout: float = TIMEOUT) -> int:
    """Judge, and report.

    Args:
        options: as `add_parser` describes them.
        timeout: seconds for an answer of the implementation.

    Returns:
        0 if something was judged and all of it held, else 1.
    """
    if (options.adapter is None) == (options.line is None):
        raise FlashrefError("name an adapter (module or module:attribute) or a --command, and not both")
    try:
        from flashref.conformance.judging.judge import judge
        from flashref.conformance.judging.runner import files_of
        from flashref.conformance.transport.stdio import split_command
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("flashref"):
            raise
        raise MissingExtra(f"the conformance kit needs {error.name}", "test") from error
    implementation = options.adapter if options.line is None else split_command(options.line)
    if options.repro:
        return _repeat(implementation, options, timeout)
    with _progress(options.quiet) as progress, files_of(options.profile):
        report = judge(
            implementation,
            options.requirements,
            options.profile,
            not options.no_vectors,
            options.deviations,
            timeout=timeout,
            progress=progress,
        )
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)
    return 0 if report.passed else 1


def _repeat(implementation: str | list[str], options: argparse.Namespace, timeout: float) -> int:
    """One case once more: 0 if it passes now, 1 with the whole failure."""
    from flashref.conformance import repeat
    from flashref.conformance.judging.judge import target_of
    from flashref.conformance.judging.report import failure_text, verdict_json
    from flashref.conformance.judging.verdict import GOOD, PASS

    name, *texts = options.repro
    verdict = repeat(implementation, name, " ".join(texts) or None, timeout)
    if options.json:
        print(json.dumps(verdict_json(verdict), indent=2))
    elif verdict.kind in GOOD:
        print(f"{name}: {'it passes now' if verdict.kind == PASS else verdict.text}")
    else:
        print(failure_text(verdict, target_of(implementation)))
    return 0 if verdict.kind in GOOD else 1


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar on stderr, on a terminal only; gives the function that says what is judged now."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield advance


def _print(report: "Report") -> None:
    """The table, what is unsupported, every failure in full, and the count."""
    out = Output(highlight=False, emoji=False)

    def line(*parts: str | tuple[str, str]) -> None:
        text = Text.assemble(*parts)
        text.rstrip()
        out.print(text, soft_wrap=True)

    line((f"{report.name} {report.version}", "bold"))
    line()
    rows, unsupported = _without_repetition(list(report.rows()))
    cells = [HEADINGS, *(row[1:] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    room = max(out.width - sum(widths) - 2 * len(widths), NARROWEST)
    line(("  ".join(f"{cell:<{width}}" for cell, width in zip(HEADINGS, [*widths, 0], strict=True)), "bold"))
    for section, of in groupby(rows, key=lambda row: row.section):
        line((section, "bold"))
        for row in of:
            name, kind, verdict, cases = (f"{cell:<{w}}" for cell, w in zip(row[1:5], widths, strict=True))
            colour, why = COLOURS.get(row.verdict, "red"), _why(row, room)
            line(f"{name}  {kind}  ", (verdict, colour), f"  {cases.strip():>{widths[3]}}  ", why[0])
            for more in why[1:]:
                line(" " * (sum(widths) + 2 * len(widths)), more)
    line()
    for reason, names in unsupported.items():
        line(f"{len(names)} unsupported: {reason}")
        for part in _wrapped(", ".join(names), out.width - 2):
            line(f"  {part}")
        line()
    for failure in report.failures():
        line(failure)
        line()
    line(report.summary)


def _without_repetition(rows: "list[Row]") -> "tuple[list[Row], dict[str, list[str]]]":
    """The rows without those that are unsupported for a reason of many; and these, reason → names."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == "unsupported":
            reasons.setdefault(row.why, []).append(row.name)
    many = {reason: names for reason, names in reasons.items() if len(names) > MANY}
    return [row for row in rows if row.verdict != "unsupported" or row.why not in many], many


def _why(row: "Row", room: int) -> list[str]:
    """The reason in lines; one line, cut, where it is shown in full below."""
    if row.verdict in (*COLOURS, "not run"):
        return _wrapped(row.why, room) or [""]
    return [row.why if len(row.why) <= room else row.why[: room - 1] + "…"]


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines, no word of which is split: ids can be searched for."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
