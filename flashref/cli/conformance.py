"""`flashref conformance`: an implementation, in a process of its own, judged against every requirement."""

import argparse
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from flashref.cli.report import Output
from flashref.types import FlashrefError, MissingExtra

if TYPE_CHECKING:
    from flashref.conformance import Report
    from flashref.conformance.judging.report import Row

TIMEOUT = 60.0  # seconds for an answer
PROFILES = ("dev", "ci", "nightly")  # not the kit's own: Hypothesis is loaded when there is something to do
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
        from flashref.conformance.transport.process import split_command
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
    rows, unsupported = _without_repetition(list(report.rows()))
    texts = [Text(f"{report.name} {report.version}\n", "bold"), *_table(rows, out.width), Text()]
    for reason, names in unsupported.items():
        listed = "\n  ".join(_wrapped(", ".join(names), out.width - 2))
        texts.append(Text(f"{len(names)} unsupported: {reason}\n  {listed}\n"))
    texts += [Text(f"{failure}\n") for failure in report.failures()]
    for text in (*texts, Text(report.summary)):
        out.print(text, soft_wrap=True)


def _table(rows: "list[Row]", width: int) -> list[Text]:
    """The rows under the names of their sections, in columns as wide as what stands in them."""
    cells = [HEADINGS, *(row[1:] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    indent = sum(widths) + 2 * len(widths)
    lines = [Text(_columns(HEADINGS, widths), "bold")]
    for section, of in groupby(rows, key=lambda row: row.section):
        lines.append(Text(section, "bold"))
        for row in of:
            why = ("\n" + " " * indent).join(_why(row, max(width - indent, NARROWEST)))
            line = Text(_columns((*row[1:5], why), widths))
            start = widths[0] + widths[1] + 4
            line.stylize(COLOURS.get(row.verdict, "red"), start, start + len(row.verdict))
            lines.append(line)
    return lines


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line: words to the left, the number of cases to the right, and no blanks at the end."""
    name, kind, verdict, cases, why = cells
    a, b, c, d = widths
    return f"{name:<{a}}  {kind:<{b}}  {verdict:<{c}}  {cases:>{d}}  {why}".rstrip()


def _without_repetition(rows: "list[Row]") -> "tuple[list[Row], dict[str, list[str]]]":
    """The rows without those that are unsupported for a reason of many; and these, reason → names."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == "unsupported":
            reasons.setdefault(row.why, []).append(row.name)
    many = {reason: names for reason, names in reasons.items() if len(names) > MANY}
    return [row for row in rows if row.verdict != "unsupported" or row.why not in many], many


def _why(row: "Row", room: int) -> list[str]:
    """The reason in lines; of one that is shown in full below, the words that fit into one line."""
    if row.verdict in (*COLOURS, "not run"):
        return _wrapped(row.why, room) or [""]
    return [textwrap.shorten(row.why, room, placeholder="…", break_on_hyphens=False)]


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines, no word of which is split: ids can be searched for."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
