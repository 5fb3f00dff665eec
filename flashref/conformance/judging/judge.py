"""The kit for a notebook and for the command line: an implementation judged, and a failure repeated."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flashref.conformance.checks import CHECKS, checks_named
from flashref.conformance.judging import campaign
from flashref.conformance.judging.campaign import Judged, Watched
from flashref.conformance.judging.deviations import in_force, read_deviations
from flashref.conformance.judging.report import Report
from flashref.conformance.judging.runner import (
    PROFILES,
    examine_again,
    is_case_of,
    profile_settings,
    vector_verdict,
)
from flashref.conformance.judging.verdict import Verdict
from flashref.conformance.transport.codec import case_from_text
from flashref.conformance.transport.stdio import TIMEOUT, Command
from flashref.conformance.transport.subject import InProcess
from flashref.conformance.vectors.published import SHIPPED, read_vectors
from flashref.storage.progress import Progress
from flashref.types import FlashrefError


def judge(
    implementation: object,
    requirements: str | Sequence[str] | None = None,
    profile: str = "ci",
    vectors: bool = True,
    deviations: Path | str | None = None,
    *,
    timeout: float = TIMEOUT,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Judge an implementation against every requirement that binds it.

    Args:
        implementation: an adapter's name, "module" or "module:attribute", or the list of a command's words:
            each runs in a process of its own, whose hangs and crashes are survived. Or an adapter itself, a
            module or an object, which runs in this process.
        requirements: only these, such as "FFN-4 WIN" or ["PLN-*"]; None: all.
        profile: dev, ci or nightly: 30, 100 or 2000 cases of a requirement.
        vectors: whether the vectors are judged too, those that cite one of the requirements.
        deviations: a file that says what the implementation knowingly does otherwise.
        timeout: seconds for an answer of another process.
        progress: called with what is judged now, how many were judged before it, and how many there are.

    Raises:
        FlashrefError: the implementation cannot be loaded, or an argument names what does not exist.
    """
    if profile not in PROFILES:
        raise FlashrefError(f"there is no profile {profile!r}; use one of {', '.join(PROFILES)}")
    checks, every = checks_named(requirements), read_vectors(SHIPPED)
    known = {vector.id for vector in every}
    entries = () if deviations is None else read_deviations(Path(deviations), CHECKS, known)
    names = {check.requirement for check in checks}
    cases = [one for one in every if vectors and (requirements is None or names & set(one.requirements))]
    how, verdicts = profile_settings(profile), list[Verdict]()
    with opened(implementation, timeout) as subject:
        facts = subject.facts
        now = in_force(entries, facts.version)
        for done, check in enumerate(checks):
            progress(check.requirement, done, len(checks))
            verdicts.append(campaign.judge_requirement(check, subject, how, now))
        judged = campaign.judge_vectors(subject, cases, now, progress)
    groups = campaign.by_operation(cases, judged)
    return Report(facts.name, facts.version, profile, target_of(implementation), verdicts, groups)


def repeat(implementation: object, name: str, case: str | None = None, timeout: float = TIMEOUT) -> Verdict:
    """Judge one case that failed once more.

    Args:
        implementation: as for `judge`.
        name: the requirement, or the id of a vector.
        case: the requirement's case, as a `repeat` line has it.
        timeout: seconds for an answer of another process.

    Raises:
        FlashrefError: the implementation cannot be loaded, or the words name no case.
    """
    if case is None and "/" in name:
        found = [vector for vector in read_vectors(SHIPPED) if vector.id == name]
        if not found:
            raise FlashrefError(f"no vector is called {name!r}; copy the whole id")
        with opened(implementation, timeout) as subject:
            return vector_verdict(subject, found[0])
    if case is None or name not in CHECKS:
        raise FlashrefError("a failure is repeated by both words of its `repeat` line, or by a vector's id")
    value = case_from_text(case)
    if not is_case_of(CHECKS[name], value):
        raise FlashrefError(f"this text is no case of {name}; copy both words of a `repeat` line")
    with opened(implementation, timeout) as subject:
        return examine_again(CHECKS[name], subject, value)


@contextmanager
def opened(implementation: object, timeout: float = TIMEOUT) -> Iterator[Judged]:
    """The implementation, ready to be asked, and ended afterwards if it has a process of its own."""
    if isinstance(implementation, str):
        implementation = [sys.executable, "-m", "flashref.conformance", implementation]
    if isinstance(implementation, list | tuple):
        with Command(implementation, timeout) as command:
            yield Watched(command)
    else:
        yield InProcess(implementation() if isinstance(implementation, type) else implementation)


def target_of(implementation: object) -> str:
    """The implementation as a command line names it."""
    if isinstance(implementation, str):
        return shlex.quote(implementation)
    if isinstance(implementation, list | tuple):
        return f"--command {shlex.quote(shlex.join(implementation))}"
    return implementation.__name__ if isinstance(implementation, ModuleType) else "ADAPTER"
