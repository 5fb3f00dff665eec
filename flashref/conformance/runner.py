"""From a check to a verdict: cases are drawn, judged, shrunk, and put into words."""

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from flashref.conformance.adapter import OPERATIONS, Facts, Unsupported
from flashref.conformance.check import Call, Check, shown
from flashref.conformance.codec import case_text
from flashref.conformance.requirements import Requirement, requirements
from flashref.conformance.subject import Breach, Died, Subject

PASS, UNSUPPORTED, DEVIATES, NOT_RUN = "pass", "unsupported", "deviates", "not run"
NOT_DETERMINISTIC, KIT_ERROR = "not deterministic", "kit error"
GOOD = (PASS, UNSUPPORTED, DEVIATES)  # every other kind of verdict is a failure

# One shape of example a check; dev while writing an adapter, ci in CI, nightly for long campaigns.
PROFILES: Mapping[str, int] = {"dev": 30, "ci": 100, "nightly": 2000}
STEPS = 8  # tokens of a text of the state machine


class Verdict(NamedTuple):
    """What became of one requirement, or of one group of vectors.

    kind: pass, unsupported, deviates, fail, or the word of a misbehaviour; text: why; cases: judged, up to
    the first failure if there was one; seconds: until then; repeat: what `--repro` takes, or None.
    """

    requirement: str
    kind: str
    text: str
    cases: int
    seconds: float
    repeat: str | None = None


def profile_settings(profile: str) -> settings:
    """Hypothesis' settings of a profile; no clock decides, and ci and dev draw the same every time."""
    random = profile == "nightly"  # and keeps what it finds in the database of the user's own profile
    return settings(
        max_examples=PROFILES[profile],
        deadline=None,
        derandomize=not random,
        database=settings.default.database if random and settings.default else None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
        report_multiple_bugs=False,
        stateful_step_count=STEPS,
        suppress_health_check=[HealthCheck.too_slow],  # how fast an implementation is, is not judged
        print_blob=False,
    )


class Attempts:
    """The record of one check's run: how many cases were judged, and the last that failed."""

    def __init__(self, check: Check, subject: Subject) -> None:
        self.check, self.subject = check, subject
        self.judged, self.skipped, self.reason = 0, 0, ""
        self.failing: Any = None
        self.first_failure: tuple[int, float] | None = None  # cases and seconds until then
        self._start = time.perf_counter()

    def attempt(self, case: Any) -> None:
        """Judges one case; a case that the adapter does not run is counted as skipped."""
        try:
            self.check.judge(self.subject, case)
        except Unsupported as reason:
            self.skipped, self.reason = self.skipped + 1, str(reason)
        except (Breach, Died):
            self.failing = case
            if self.first_failure is None:
                self.first_failure = self.judged + 1, time.perf_counter() - self._start
            raise
        else:
            self.judged += 1

    def verdict(self, kind: str, text: str) -> Verdict:
        """The verdict on the check's requirement, with the case that failed last: the smallest."""
        cases, seconds = self.first_failure or (self.judged, time.perf_counter() - self._start)
        repeat = None if self.failing is None else case_text(self.failing)
        return Verdict(self.check.requirement, kind, text, cases, seconds, repeat)


def property_of(
    check: Check, facts: Facts, attempt: Callable[[Any], None], how: settings
) -> Callable[[], None]:
    """The check as a function without arguments that runs all of it, named after its requirement."""
    name = "test_" + check.requirement.replace("-", "_")
    if check.machine is not None:
        machine = check.machine(facts, attempt)
        run: Callable[[], None] = lambda: run_state_machine_as_test(machine, settings=how)  # noqa: E731
    else:
        cases = check.cases(facts)
        if isinstance(cases, SearchStrategy):

            def judge_one(case: Any) -> None:
                attempt(case)

            judge_one.__name__ = judge_one.__qualname__ = name  # Hypothesis seeds by it
            run = how(given(case=cases)(judge_one))
            for given_case in reversed(check.examples(facts)):
                run = example(case=given_case)(run)
            return run
        every = [*check.examples(facts), *cases]

        def run() -> None:
            for case in every:
                attempt(case)

    run.__name__ = run.__qualname__ = name
    return run


def examine(check: Check, subject: Subject, how: settings) -> Verdict:
    """The verdict on one requirement. Whatever an implementation does, this returns."""
    attempts = Attempts(check, subject)
    missing = [operation for operation in check.operations if operation not in subject.facts.operations]
    if len(missing) == len(check.operations):
        return attempts.verdict(UNSUPPORTED, subject.facts.unsupported[missing[0]])
    try:
        property_of(check, subject.facts, attempts.attempt, how)()
    except (Breach, Died) as breach:
        return attempts.verdict(breach.kind, str(breach))
    except Flaky:
        text = "a case that failed passed when it was asked again: state is left behind, or chance decides"
        return attempts.verdict(NOT_DETERMINISTIC, text)
    except Exception:  # a defect of the kit must not hide the other verdicts
        return attempts.verdict(KIT_ERROR, traceback.format_exc())
    if attempts.judged == 0 and attempts.skipped:
        return attempts.verdict(UNSUPPORTED, attempts.reason)
    return attempts.verdict(PASS, "")


def judge_again(check: Check, subject: Subject, case: Any) -> Verdict:
    """The verdict on one case, as `--repro` asks for it."""
    attempts = Attempts(check, subject)
    try:
        attempts.attempt(case)
    except (Breach, Died) as breach:
        return attempts.verdict(breach.kind, str(breach))
    return attempts.verdict(UNSUPPORTED if attempts.skipped else PASS, attempts.reason)


def failure_text(verdict: Verdict, case: Any, target: str) -> str:
    """A failure for a reader: the requirement's sentence, the numbers, the case, and how to repeat it."""
    requirement = requirements().get(verdict.requirement)
    lines = [heading(verdict, requirement), f"  {verdict.kind}: {verdict.text}"]
    for call in case if isinstance(case, list) else [case]:
        if isinstance(call, Call):
            named = zip(OPERATIONS[call.operation], call.arguments, strict=True)
            arguments = ", ".join(f"{name}={shown(value)}" for name, value in named)
            lines.append(f"  call: {call.operation}({arguments})")
    if verdict.repeat is not None:
        lines.append(
            f"  repeat: flashref conformance {target} --repro {verdict.requirement} '{verdict.repeat}'"
        )
    return "\n".join(lines)


def heading(verdict: Verdict, requirement: Requirement | None) -> str:
    """The requirement as its chapter states it."""
    if requirement is None:
        return verdict.requirement
    return f"{requirement.id} [{requirement.kind}]: {requirement.sentence} (specs/{requirement.page})"
