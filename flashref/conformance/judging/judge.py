"""The kit for a notebook and for the command line: an implementation judged, and a failure repeated."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flashref.conformance.adapter import AdapterError
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
from flashref.conformance.transport.process import REFUSED
from flashref.conformance.transport.stdio import TIMEOUT, Command
from flashref.conformance.transport.subject import InProcess
from flashref.conformance.vectors.files import Vector
from flashref.conformance.vectors.published import shipped_vectors
from flashref.conformance.words import near
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
        implementation: an adapter's name ("module" or "module:attribute") or the list of a command's words;
            each of these runs in a process of its own, and the run survives its hangs and crashes. Or an
            adapter itself, a module or an object, which runs in this process.
        requirements: judge only these, such as "FFN-4 WIN" or ["PLN-*"]; None: all.
        profile: dev, ci or nightly, which draw 30, 100 or 2000 cases for each requirement.
        vectors: whether to judge the vectors too: all of them, or those that cite one of `requirements`.
        deviations: a TOML file that lists where the implementation differs on purpose.
        timeout: how many seconds a process has for each answer.
        progress: called with the id that is judged now, the number judged before it, and the number of all.

    Returns:
        The report; `passed` says whether something was judged and nothing failed.

    Raises:
        FlashrefError: the implementation cannot be loaded, or an argument names what does not exist.
    """
    if profile not in PROFILES:
        raise FlashrefError(f"there is no profile {profile!r}; use one of {', '.join(PROFILES)}")
    checks, every = checks_named(requirements), shipped_vectors()
    entries = () if deviations is None else read_deviations(Path(deviations), CHECKS, every)
    names = {check.requirement for check in checks}
    cases = [
        vector
        for vector in every.values()
        if vectors and (requirements is None or names & set(vector.requirements))
    ]
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
    """Judge one case again, usually one that failed.

    Args:
        implementation: as for `judge`.
        name: a requirement's id, or a vector's.
        case: the requirement's case, as `Verdict.repeat` and the report's `repeat` line have it; None for a
            vector.
        timeout: how many seconds a process has for each answer.

    Returns:
        The verdict on this one case.

    Raises:
        FlashrefError: the implementation cannot be loaded, or `name` and `case` name no case.
    """
    if "/" in name:
        vector = _vector_named(name)
        with opened(implementation, timeout) as subject:
            return vector_verdict(subject, vector)
    check, *others = checks_named([name])
    if others:
        raise FlashrefError(f"{name} names {len(others) + 1} requirements; name the one whose case it is")
    if case is None:
        raise FlashrefError(
            f"the case of {name} is missing; copy both words that follow --repro in the report"
        )
    value = case_from_text(case)
    if not is_case_of(check, value):
        raise FlashrefError(
            f"the text is no case of {name}; copy both words that follow --repro in the report"
        )
    with opened(implementation, timeout) as subject:
        return examine_again(check, subject, value)


def _vector_named(name: str) -> Vector:
    """The shipped vector with this id; FlashrefError names the ids that are near."""
    vectors = shipped_vectors()
    if name not in vectors:
        raise FlashrefError(f"no vector is called {name!r}{near(name, vectors, 2)}")
    return vectors[name]


@contextmanager
def opened(implementation: object, timeout: float = TIMEOUT) -> Iterator[Judged]:
    """The implementation, ready to be asked, and ended afterwards if it has a process of its own."""
    if isinstance(implementation, str):
        with _python_adapter(implementation, timeout) as command:
            yield Watched(command)
    elif isinstance(implementation, list | tuple):
        with Command(implementation, timeout) as command:
            yield Watched(command)
    else:
        yield InProcess(implementation() if isinstance(implementation, type) else implementation)


def _python_adapter(name: str, timeout: float) -> Command:
    """A Python adapter in a process of its own, whose sentence is passed on if the adapter does not load."""
    try:
        return Command([sys.executable, "-m", "flashref.conformance", name], timeout)
    except AdapterError as error:
        _, refused, why = str(error).rpartition(REFUSED)
        raise AdapterError(why) if refused else error from None


def target_of(implementation: object) -> str:
    """The implementation as a command line names it."""
    if isinstance(implementation, str):
        return shlex.quote(implementation)
    if isinstance(implementation, list | tuple):
        return f"--command {shlex.quote(shlex.join(implementation))}"
    return implementation.__name__ if isinstance(implementation, ModuleType) else "ADAPTER"
