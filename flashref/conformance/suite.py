"""The kit as pytest tests, one a requirement and one a vector, for CI and for campaigns over many machines.

`pytest --pyargs flashref.conformance.suite --flashref-adapter package.module:attribute`

The tests of requirements are plain Hypothesis tests: pytest-xdist spreads them, HypoFuzz collects them, and
the profile `nightly` keeps what it finds in the database of Hypothesis' own profile. An adapter runs in this
process, which a hang or a crash of it ends; a command is restarted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import settings

from flashref.conformance.checks.check import Check
from flashref.conformance.judging import campaign
from flashref.conformance.judging.deviations import Deviations
from flashref.conformance.judging.report import failure_text
from flashref.conformance.judging.runner import Attempts, lacking, property_of
from flashref.conformance.judging.verdict import DEVIATES, GOOD, PASS, UNSUPPORTED, Verdict
from flashref.conformance.transport.subject import Died
from flashref.conformance.vectors.files import Vector
from flashref.types import FlashrefError


class Test(NamedTuple):
    """One test.

    Attributes:
        name: the part of its id that is its own.
        function: what pytest runs.
        before: gives a verdict that needs no run, or None.
        after: gives the verdict on how the run ended.
        missing: the operations without which nothing can be asked.
    """

    name: str
    function: Callable[[], None]
    before: Callable[[], Verdict | None]
    after: Callable[[BaseException | None], Verdict]
    missing: tuple[str, ...] = ()


class Suite(pytest.Module):
    """The suite as pytest sees it, in the place of this module, whose functions its tests are not.

    Attributes:
        load: gives the tests, or raises FlashrefError.
        target: the implementation as a command line names it.
    """

    load: Callable[[], Iterable[Test]]
    target: str

    def collect(self) -> Iterator["SuiteTest"]:
        """The tests; one sentence if the implementation cannot be loaded."""
        try:
            tests = list(self.load())
        except FlashrefError as error:
            raise self.CollectError(str(error)) from None
        for place, test in enumerate(tests):
            item: SuiteTest = SuiteTest.from_parent(self, name=test.name, callobj=test.function)
            item.test, item.place, item.target = test, place, self.target
            if hasattr(test.function, "hypothesis"):  # HypoFuzz's key: each replays what the other finds
                inner = test.function.hypothesis.inner_test
                inner._hypothesis_internal_add_digest = item.nodeid.encode()
            yield item


class SuiteTest(pytest.Function):
    """A test that ends in a verdict: it passes, is skipped with the reason, or shows the failure alone."""

    test: Test
    place: int
    target: str
    verdict: Verdict | None = None

    def runtest(self) -> None:
        """Run it, and say what came out."""
        verdict = self.test.before()
        if verdict is None:
            ended: BaseException | None = None
            try:
                super().runtest()
            except pytest.exit.Exception:
                raise
            except (Exception, Died) as error:
                ended = error
            verdict = self.test.after(ended)
        self.verdict = verdict
        if verdict.kind not in GOOD:
            pytest.fail(failure_text(verdict, self.target), pytrace=False)
        if verdict.kind != PASS:
            missing = f" (it lacks {', '.join(self.test.missing)})" if self.test.missing else ""
            pytest.skip(f"{verdict.requirement} {verdict.kind}: {verdict.text}{missing}")


def suite_tests(
    checks: Sequence[Check],
    vectors: Sequence[Vector],
    subject: campaign.Judged,
    how: settings,
    deviations: Deviations,
) -> Iterator[Test]:
    """Make a test of each requirement, then one of each vector.

    Args:
        checks: of the requirements.
        vectors: the cases.
        subject: the implementation.
        how: Hypothesis' settings.
        deviations: those in force.
    """
    for check in checks:
        yield requirement_test(check, subject, how, deviations)
    for vector in vectors:
        yield vector_test(vector, subject, deviations)


def requirement_test(check: Check, subject: campaign.Judged, how: settings, deviations: Deviations) -> Test:
    """Make the test of one requirement: a Hypothesis test, unless it deviates or nothing can be asked."""
    attempts = Attempts(check, subject)
    name = f"test_requirement[{check.requirement}]"
    if (deviates := deviations.requirements.get(check.requirement)) is not None:
        return _decided(name, attempts.verdict(DEVIATES, deviates))
    if (lacks := lacking(check, subject.facts)) is not None:
        return _decided(name, attempts.verdict(UNSUPPORTED, lacks), check.operations)
    try:
        function = property_of(check, subject.facts, attempts.attempt, how)
    except Exception as error:  # a defect of the kit must not hide the other verdicts
        return _decided(name, attempts.verdict_of(error))

    def before() -> Verdict | None:
        attempts.begin()
        return campaign.begin(check, subject)

    def after(error: BaseException | None) -> Verdict:
        return campaign.settled(check, subject, attempts.verdict_of(error))

    return Test(name, function, before, after)


def vector_test(vector: Vector, subject: campaign.Judged, deviations: Deviations) -> Test:
    """Make the test of one vector."""

    def judge() -> Verdict:
        return campaign.judge_vector(subject, vector, deviations)

    missing = () if vector.operation in subject.facts.operations else (vector.operation,)
    return Test(f"test_vector[{vector.id}]", _nothing, judge, lambda error: judge(), missing)


def _decided(name: str, verdict: Verdict, missing: tuple[str, ...] = ()) -> Test:
    return Test(name, _nothing, lambda: verdict, lambda error: verdict, missing)


def _nothing() -> None:
    """The function of a test whose verdict is known before it."""
