"""`flashref conformance`: an implementation, in a process of its own, judged against every requirement."""

import argparse
import functools
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from flashref.cli.report import Output, progress
from flashref.cli.tables import say
from flashref.types import FlashrefError, MissingExtra

if TYPE_CHECKING:
    from flashref.conformance import Report
    from flashref.conformance.judging.report import Row

TIMEOUT = 60.0  # seconds for an answer
PROFILES = ("dev", "ci", "nightly")  # not the kit's own: Hypothesis is loaded when there is something to do
HEADINGS = ("requirement", "class", "verdict", "cases", "why")
LEGEND = (
    "The class says whether a result must be exact, or within the bound of chapter 90. The cases column "
    "counts the cases that were judged, for a requirement up to its first failure. A case that the adapter "
    "skips is not judged; the why column counts these. Their reasons and every failure in full follow."
)
COLOURS = {"pass": "green", "unsupported": "dim", "deviates": "yellow"}
MANY = 3  # if more rows than this are unsupported for one reason, one paragraph names them all
REASONS = 10  # reasons for skipped cases that are printed
NARROWEST = 20  # characters of the column of reasons


def add_parser(commands: Any) -> None:
    """`conformance` among the commands."""
    parser = commands.add_parser(
        "conformance",
        help="test another implementation against the spec",
        description="Judge an implementation against every requirement that binds it, and against the "
        "vectors. It runs in a process of its own, so that the run survives its crashes and hangs. Exit code "
        "0: something was judged and nothing failed; 1: something failed, or nothing was judged.",
    )
    add = parser.add_argument
    add(
        "adapter",
        metavar="ADAPTER",
        nargs="?",
        help="the implementation's adapter in Python: a module, or module:attribute",
    )
    add(
        "--command",
        metavar="LINE",
        dest="line",
        help="instead of ADAPTER: a command that starts the implementation and speaks the stdio protocol "
        "(flashref spec 96)",
    )
    add(
        "--profile",
        choices=PROFILES,
        default="ci",
        help="how many cases are drawn for each requirement: 30, 100 or 2000 (default: ci)",
    )
    add(
        "--requirements",
        metavar="ID",
        nargs="+",
        help="judge only these: requirements such as FFN-4, or areas such as WIN",
    )
    add(
        "--deviations",
        metavar="FILE",
        type=Path,
        help="a TOML file that lists where the implementation differs on purpose",
    )
    add(
        "--repro",
        metavar="WORD",
        nargs="+",
        help="judge one case again: the two words of a repeat line, or the id of a vector",
    )
    add("--no-vectors", action="store_true", help="judge the requirements only")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace, timeout: float = TIMEOUT) -> int:
    """Judge an implementation, and report.

    Args:
        options: as `add_parser` describes them.
        timeout: how many seconds the implementation has for each answer.

    Returns:
        0 if something was judged and all of it held, else 1.
    """
    if (options.adapter is None) == (options.line is None):
        raise FlashrefError(
            "name what to judge: an adapter (module or module:attribute) or a --command, and not both"
        )
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
    with _progress(options.quiet) as show, files_of(options.profile):
        report = judge(
            implementation,
            options.requirements,
            options.profile,
            not options.no_vectors,
            options.deviations,
            timeout=timeout,
            progress=show,
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
        _print_failure(failure_text(verdict, target_of(implementation)))
    return 0 if verdict.kind in GOOD else 1


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show on stderr what is judged now: a bar on a terminal, elsewhere a line now and then."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        with progress(quiet) as advance:
            yield lambda what, done, total: advance("vectors" if "/" in what else "requirements", done, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield show


def _print(report: "Report") -> None:
    """Print the table, what is unsupported, every failure in full, and the count."""
    out = Output(highlight=False, emoji=False)
    rows, unsupported = _without_repetition(list(report.rows()))
    say(f"{report.name} {report.version}\n", "bold")
    if rows:
        for line in (*_table(rows, out.width), Text()):
            out.print(line, soft_wrap=True)
        say(f"{LEGEND}\n")
    for (vectors, reason), names in unsupported.items():
        what = "vectors unsupported" if vectors else f"{len(names)} unsupported"
        listed = "\n  ".join(_wrapped(", ".join(names), out.width - 2))
        say(f"{what}: {reason}")
        out.print(f"  {listed}\n", soft_wrap=True, markup=False)
    _print_skips(list(report.skips()))
    for failure in report.failures():
        _print_failure(failure)
        print()
    say(report.summary)


def _print_skips(skips: list[str]) -> None:
    """Print how many cases were skipped for which reason."""
    if not skips:
        return
    out = Output(highlight=False, emoji=False)
    more = [f"and {len(skips) - REASONS} more reasons, which --json lists"] if len(skips) > REASONS else []
    out.print("skipped, and so not judged:")
    for line in [*skips[:REASONS], *more]:
        out.print("\n".join(_wrapped(f"  {line}", out.width, "    ")), soft_wrap=True, markup=False)
    print()


def _print_failure(failure: str) -> None:
    """Print a failure; a terminal breaks its lines between words, but not the line that is to be pasted."""
    out = Output(highlight=False, emoji=False)
    for line in failure.splitlines():
        fits = not out.is_terminal or line.startswith("  repeat: ")
        lines = [line] if fits else _wrapped(line, out.width, "    " if line.startswith("  ") else "  ")
        for part in lines:
            out.print(part, soft_wrap=True, markup=False)


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


def _without_repetition(rows: "list[Row]") -> "tuple[list[Row], dict[tuple[bool, str], list[str]]]":
    """Split off the rows that are unsupported for a reason that many rows give.

    Returns:
        The other rows; and, for each such reason, the names. The key says whether the names are operations
        whose vectors are unsupported, and gives the reason.
    """
    names: dict[tuple[bool, str], list[str]] = {}
    for row in rows:
        if row.verdict == "unsupported":
            names.setdefault((row.section == "vectors", row.why), []).append(row.name)
    uses = Counter(row.why for row in rows if row.verdict == "unsupported")
    many = {why for why, times in uses.items() if times > MANY}
    kept = [row for row in rows if row.verdict != "unsupported" or row.why not in many]
    return kept, {key: of for key, of in names.items() if key[1] in many}


def _why(row: "Row", room: int) -> list[str]:
    """The column in lines; of a reason that is shown in full below, the words that fit into one line."""
    if row.verdict in (*COLOURS, "not run"):
        return [part for line in row.why.splitlines() for part in _wrapped(line, room)] or [""]
    shorten = functools.partial(textwrap.shorten, placeholder="…", break_on_hyphens=False)
    return [shorten(line, room) for line in row.why.splitlines()] or [""]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text into lines without splitting a word, so that ids can be searched for."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
