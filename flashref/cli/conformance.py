"""`flashref conformance`: an implementation, in a process of its own, judged against every requirement."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashref.cli import verdicts as show
from flashref.types import FlashrefError

if TYPE_CHECKING:
    from flashref.conformance.checks.check import Check
    from flashref.conformance.judging.runner import Verdict
    from flashref.conformance.vectors.files import Vector

TIMEOUT = 60.0  # seconds for an answer
PROFILES = (
    "dev",
    "ci",
    "nightly",
)  # not the runner's own: Hypothesis is loaded when there is something to do


def add_parser(commands: Any) -> None:
    """`conformance` among the commands."""
    parser = commands.add_parser("conformance", help="test another implementation against the spec")
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", nargs="?", help="its adapter: module, or module:attribute")
    add("--command", metavar="LINE", dest="line", help="instead: a command that speaks specs/96-stdio.md")
    add("--profile", choices=PROFILES, default="ci", help="30, 100 or 2000 cases each (default: ci)")
    add("--requirements", metavar="ID", nargs="+", help="only these, such as FFN-4 WIN-6")
    add("--deviations", metavar="FILE", type=Path, help="what it knowingly does otherwise (TOML)")
    add("--repro", metavar="WORD", nargs="+", help="repeat a failure: ID TEXT as printed, or a vector's ID")
    add("--no-vectors", action="store_true", help="leave out the vectors")
    add("--json", action="store_true", help="one JSON object instead of tables")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace, timeout: float = TIMEOUT) -> int:
    """Judge, and report; 0 if everything that was judged held, else 1. timeout: of an answer, in seconds."""
    if (options.adapter is None) == (options.line is None):
        raise FlashrefError("name an adapter (module or module:attribute) or a --command, and not both")
    try:
        import flashref.conformance.checks  # noqa: F401  (it needs the extra's packages)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("flashref"):
            raise
        raise FlashrefError(
            f"the conformance kit needs {error.name}; run pip install 'flashref[test]'"
        ) from error
    return _repeat(options, timeout) if options.repro else _judge(options, timeout)


def target_of(options: argparse.Namespace) -> str:
    """The implementation as a command line names it."""
    if options.adapter is not None:
        return shlex.quote(options.adapter)
    return f"--command {shlex.quote(options.line)}"


def _words(options: argparse.Namespace) -> list[str] | str:
    """What is started: a Python adapter in a child, so that its hangs and crashes are survived."""
    if options.adapter is None:
        return str(options.line)
    return [sys.executable, "-m", "flashref.conformance", options.adapter]


def _judge(options: argparse.Namespace, timeout: float) -> int:
    from flashref.conformance.judging import campaign, summary
    from flashref.conformance.judging.deviations import in_force, read_deviations
    from flashref.conformance.judging.runner import DEVIATES, Verdict, profile_settings
    from flashref.conformance.transport.stdio import Command

    checks = _checks(options.requirements)
    vectors = _vectors()
    named = read_deviations(options.deviations, *_known(vectors)) if options.deviations else ()
    if options.requirements:
        vectors = [vector for vector in vectors if set(vector.requirements) & set(options.requirements)]
    if options.no_vectors:
        vectors = []
    how = profile_settings(options.profile)
    verdicts: list[Verdict] = []
    with show.progress(options.quiet) as advance, Command(_words(options), timeout) as command:
        subject, facts = campaign.Watched(command), command.facts
        deviations = in_force(named, facts.version)
        for done, check in enumerate(checks):
            advance(check.requirement, done, len(checks))
            reason = deviations.requirements.get(check.requirement)
            verdicts.append(
                campaign.judge(check, subject, how)
                if reason is None
                else Verdict(check.requirement, DEVIATES, reason, 0, 0.0)
            )
        judged = campaign.judge_vectors(subject, vectors, deviations, advance)
    groups = campaign.by_operation(vectors, judged)
    if options.json:
        report = summary.report_json(facts.name, facts.version, options.profile, verdicts, groups)
        print(json.dumps(report, indent=2))
    else:
        show.show(facts, verdicts, groups, target_of(options))
    return 0 if summary.held(verdicts) and summary.held(judged) else 1


def _repeat(options: argparse.Namespace, timeout: float) -> int:
    """One case once more: 0 if it passes now, 1 with the whole failure."""
    from flashref.conformance.judging import summary
    from flashref.conformance.judging.runner import PASS
    from flashref.conformance.transport.stdio import Command

    judge = _repeated(options.repro)
    with Command(_words(options), timeout) as command:
        verdict = judge(command)
    if options.json:
        fields = {name: value for name, value in verdict._asdict().items() if name != "seconds"}
        print(json.dumps(fields, indent=2))
    elif summary.held([verdict]):
        print(f"{verdict.requirement}: {'it passes now' if verdict.kind == PASS else verdict.text}")
    else:
        print(summary.failure_of(verdict, target_of(options)))
    return 0 if summary.held([verdict]) else 1


def _repeated(words: Sequence[str]) -> "Callable[[Any], Verdict]":
    """The function that judges the case which these words name again."""
    from flashref.conformance.checks import CHECKS
    from flashref.conformance.judging.runner import is_case_of, judge_again, vector_verdict
    from flashref.conformance.transport.codec import case_from_text

    name, *texts = words
    if not texts and "/" in name:
        found = [vector for vector in _vectors() if vector.id == name]
        if not found:
            raise FlashrefError(f"no vector is called {name!r}; copy the whole id")
        return lambda subject: vector_verdict(subject, found[0])
    if len(texts) != 1 or name not in CHECKS:
        raise FlashrefError("--repro takes the two words of a `repeat` line, or the id of a vector")
    check, case = CHECKS[name], case_from_text(texts[0])
    if not is_case_of(check, case):
        raise FlashrefError(f"this text is no case of {name}; copy both words of a `repeat` line")
    return lambda subject: judge_again(check, subject, case)


def _checks(names: Sequence[str] | None) -> "list[Check]":
    from flashref.conformance.checks import CHECKS
    from flashref.conformance.judging.campaign import in_order

    if unknown := [name for name in names or () if name not in CHECKS]:
        raise FlashrefError(f"no check is called {unknown[0]!r}; they are {', '.join(CHECKS)}")
    return in_order(check for name, check in CHECKS.items() if names is None or name in names)


def _vectors() -> "list[Vector]":
    from flashref.conformance.vectors.published import SHIPPED, read_vectors

    return read_vectors(SHIPPED)


def _known(vectors: "Sequence[Vector]") -> tuple[set[str], set[str]]:
    """The requirements and the vectors that can deviate."""
    from flashref.conformance.checks import CHECKS

    return set(CHECKS), {vector.id for vector in vectors}
