"""From a check to a verdict: cases are drawn, judged, shrunk, and put into words."""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, configuration, example, given, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from flashref.conformance.adapter import OPERATIONS, Facts, Unsupported
from flashref.conformance.checks.check import Call, Check
from flashref.conformance.judging.verdict import (
    KIT_ERROR,
    NOT_DETERMINISTIC,
    OVERWRITES,
    PASS,
    UNSUPPORTED,
    Verdict,
)
from flashref.conformance.transport.codec import case_text
from flashref.conformance.transport.subject import Breach, Died, Subject
from flashref.conformance.vectors.files import Vector
from flashref.conformance.vectors.published import judge_vector

# One shape of example a check; dev while writing an adapter, ci in CI, nightly for long campaigns.
PROFILES: Mapping[str, int] = {"dev": 30, "ci": 100, "nightly": 2000}
STEPS = 8  # tokens of a text of the state machine


def profile_settings(profile: str, examples: int | None = None) -> settings:
    """Give Hypothesis' settings of a profile: no clock decides, and dev and ci draw the same every time.

    Args:
        profile: dev, ci or nightly.
        examples: the number of cases; None: the profile's own.
    """
    random = profile == "nightly"  # and keeps what it finds in the database of the user's own profile
    # How fast an implementation is, is not judged; and no check uses a fixture, whatever a project has.
    unjudged = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples or PROFILES[profile],
        deadline=None,
        derandomize=not random,
        database=settings.default.database if random and settings.default else None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
        report_multiple_bugs=False,
        stateful_step_count=STEPS,
        suppress_health_check=unjudged,
        print_blob=False,
    )


@contextmanager
def files_of(profile: str) -> Iterator[None]:
    """Keep Hypothesis from leaving files in the current folder, unless the profile keeps what it finds."""
    if profile == "nightly":
        yield
        return
    with TemporaryDirectory() as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(None)


class Attempts:
    """The record of one run of a check: how many cases were judged, and the last that failed."""

    def __init__(self, check: Check, subject: Subject) -> None:
        self.check, self.subject = check, subject
        self.begin()

    def begin(self) -> None:
        """Forget what was judged before."""
        self.judged = 0
        self.skipped = Counter[str]()  # reason → cases, up to the first failure
        self.failing: Any = None
        self.before: Any = None  # the case before this one
        self.first_failure: tuple[int, float] | None = None  # cases and seconds until then
        self.first_breach, self.first_text = "", ""
        self._start = time.perf_counter()

    def attempt(self, case: Any) -> None:
        """Judge one case; a case that the adapter does not run is counted as skipped."""
        try:
            self.check.judge(self.subject, case)
        except Unsupported as reason:
            if self.first_failure is None:
                self.skipped[str(reason)] += 1
        except (Breach, Died) as breach:
            two = breach.kind == OVERWRITES and self.before is not None
            self.failing = {"first": self.before, "then": case} if two else case
            if self.first_failure is None:
                self.first_failure = self.judged + 1, time.perf_counter() - self._start
                self.first_breach, self.first_text = breach.kind, str(breach)
            raise
        else:
            self.judged += 1
        finally:
            self.before = case

    def verdict_of(self, error: BaseException | None) -> Verdict:
        """Give the verdict on a run of all cases.

        Args:
            error: what ended the run; None: all cases were judged.
        """
        if isinstance(error, Breach | Died):
            return self.verdict(error.kind, str(error))
        if isinstance(error, Flaky) and self.first_breach == OVERWRITES:  # what it takes two calls to see
            return self.verdict(OVERWRITES, self.first_text)
        if isinstance(error, Flaky):
            text = "a case that failed passed when asked again: state is left behind, or chance decides"
            return self.verdict(NOT_DETERMINISTIC, f"{text} (it failed so: {self.first_text})")
        if error is not None:  # a defect of the kit must not hide the other verdicts
            return self.verdict(KIT_ERROR, "".join(traceback.format_exception(error)))
        if self.judged == 0 and self.skipped:
            return self.verdict(UNSUPPORTED, "; ".join(self.skipped))
        return self.verdict(PASS, "")

    def verdict(self, kind: str, text: str) -> Verdict:
        """Give a verdict on the requirement, with the case that failed last, which is the smallest."""
        cases, seconds = self.first_failure or (self.judged, time.perf_counter() - self._start)
        repeat = None if self.failing is None else case_text(self.failing)
        return Verdict(self.check.requirement, kind, text, cases, seconds, repeat, dict(self.skipped))


def property_of(
    check: Check, facts: Facts, attempt: Callable[[Any], None], how: settings
) -> Callable[[], None]:
    """Make the check a function without arguments that runs all of it, named after its requirement.

    Args:
        check: of a requirement.
        facts: of the implementation.
        attempt: called with each case; raises if the implementation fails.
        how: Hypothesis' settings.

    Returns:
        A Hypothesis test if the check draws its cases, else a plain function.
    """
    name = "test_" + check.requirement.replace("-", "_")
    if check.machine is not None:
        machine = check.machine(facts, attempt)
        run: Callable[[], None] = lambda: run_state_machine_as_test(machine, settings=how)  # noqa: E731
    else:
        cases = check.cases(facts)
        if isinstance(cases, SearchStrategy):

            def judge_one(case: Any) -> None:
                attempt(case)

            judge_one.__name__ = judge_one.__qualname__ = name
            # Hypothesis seeds and keeps examples by a test's source and signature, and all have one source.
            judge_one.__annotations__["case"] = Literal[name]
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


def lacking(check: Check, facts: Facts) -> str | None:
    """Say why nothing of the check can be asked of this implementation; None if something can."""
    missing = [operation for operation in check.operations if operation not in facts.operations]
    return facts.unsupported[missing[0]] if len(missing) == len(check.operations) else None


def examine(check: Check, subject: Subject, how: settings) -> Verdict:
    """Run a check, and give the verdict. Whatever an implementation does, this returns."""
    attempts = Attempts(check, subject)
    reason = lacking(check, subject.facts)
    if reason is not None:
        return attempts.verdict(UNSUPPORTED, reason)
    try:
        property_of(check, subject.facts, attempts.attempt, how)()
    except (Exception, Died) as error:
        return attempts.verdict_of(error)
    return attempts.verdict_of(None)


def examine_again(check: Check, subject: Subject, case: Any) -> Verdict:
    """Judge a case that failed before; where it takes two cases to see the failure, both in turn."""
    attempts = Attempts(check, subject)
    try:
        for part in case.values() if isinstance(case, Mapping) else [case]:
            attempts.attempt(part)
    except (Exception, Died) as error:
        return attempts.verdict_of(error)
    return attempts.verdict_of(None)


def is_case_of(check: Check, case: Any) -> bool:
    """Say whether a value has the form of one of the check's cases: a call of its operations, or several."""
    calls = calls_of(case)
    return bool(calls) and all(
        isinstance(call, Call)
        and call.operation in check.operations
        and isinstance(call.arguments, list | tuple)
        and len(call.arguments) == len(OPERATIONS[call.operation])
        for call in calls
    )


def vector_verdict(subject: Subject, vector: Vector) -> Verdict:
    """Ask for one vector, and give the verdict under its id."""
    start = time.perf_counter()
    kind, text = PASS, ""
    try:
        judge_vector(subject, vector)
    except Unsupported as reason:
        kind, text = UNSUPPORTED, str(reason)
    except (Breach, Died) as breach:
        kind, text = breach.kind, str(breach)
    except Exception:
        kind, text = KIT_ERROR, traceback.format_exc()
    return Verdict(vector.id, kind, text, 0 if kind == UNSUPPORTED else 1, time.perf_counter() - start)


def calls_of(case: Any) -> list[Any]:
    """List the calls of a case, or of two cases one after the other."""
    if isinstance(case, Mapping):
        return [call for part in case.values() for call in calls_of(part)]
    return list(case) if isinstance(case, list) else [case]
