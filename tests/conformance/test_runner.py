"""From a check to a verdict: which cases are asked, what is counted, and which case is kept."""

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import configuration, settings
from hypothesis import strategies as st

from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS, Unsupported
from flashref.conformance.checks import CHECKS
from flashref.conformance.checks.check import Call, Check, ask
from flashref.conformance.judging.runner import (
    Attempts,
    calls_of,
    examine,
    examine_again,
    files_of,
    is_case_of,
    lacking,
    profile_settings,
    property_of,
    vector_verdict,
)
from flashref.conformance.transport.codec import case_from_text
from flashref.conformance.transport.subject import Breach, InProcess
from flashref.conformance.vectors.published import shipped_vectors
from flashref.types import FFN

SUBJECT = InProcess(reference)
DEV = profile_settings("dev")


def only(*operations):
    """The reference without the other operations."""
    others = [name for name in OPERATIONS if name not in operations]
    own = {name: getattr(reference, name) for name in operations}
    return InProcess(SimpleNamespace(**own, unsupported={name: f"no {name}" for name in others}))


def check_of(judge, cases=(1, 2, 3), **more):
    """A check of one operation, whose cases are numbers."""
    return Check("PLN-1", ("read_plan",), lambda facts: cases, judge, **more)


def failing_at(*bad, kind="fail"):
    def judge(subject, case):
        if case in bad:
            raise Breach(kind, f"{case} is wrong")

    return judge


def test_a_profile_draws_so_many_cases_and_only_nightly_others_each_time():
    found = {name: profile_settings(name) for name in ("dev", "ci", "nightly")}
    assert [how.max_examples for how in found.values()] == [30, 100, 2000]
    assert [how.derandomize for how in found.values()] == [True, True, False]
    assert found["dev"].database is None and found["nightly"].database is settings.default.database
    assert profile_settings("ci", 7).max_examples == 7
    assert all(how.deadline is None for how in found.values())


def test_hypothesis_leaves_its_files_elsewhere_unless_they_are_to_be_kept():
    def home():
        return configuration.storage_directory("x").path

    before = home()
    with files_of("nightly"):
        assert home() == before
    with files_of("dev"):
        assert home() != before
    assert home() == before


def test_every_case_of_a_list_is_asked_after_the_examples():
    asked = []
    check = check_of(lambda subject, case: asked.append(case), examples=lambda facts: (8, 9))
    verdict = examine(check, SUBJECT, DEV)
    assert asked == [8, 9, 1, 2, 3]
    assert (verdict.requirement, verdict.kind, verdict.cases, verdict.repeat) == ("PLN-1", "pass", 5, None)


def test_drawn_cases_come_after_the_examples_too():
    asked = []
    check = check_of(
        lambda subject, case: asked.append(case), st.integers(0, 99), examples=lambda facts: (800,)
    )
    assert examine(check, SUBJECT, DEV).cases == len(asked) == 31
    assert asked[0] == 800 and max(asked[1:]) < 100
    assert property_of(check, SUBJECT.facts, print, DEV).__name__ == "test_PLN_1"


def test_a_failure_says_how_many_cases_were_judged_and_keeps_the_case():
    verdict = examine(check_of(failing_at(2)), SUBJECT, DEV)
    assert (verdict.kind, verdict.text, verdict.cases) == ("fail", "2 is wrong", 2)
    assert case_from_text(verdict.repeat) == 2


def test_a_drawn_failure_is_made_small():
    verdict = examine(check_of(failing_at(*range(5, 1000)), st.integers(0, 999)), SUBJECT, DEV)
    assert (verdict.kind, case_from_text(verdict.repeat)) == ("fail", 5)


def test_what_two_calls_show_is_kept_as_two_and_repeated_in_turn():
    verdict = examine(check_of(failing_at(3, kind="overwrites results")), SUBJECT, DEV)
    case = case_from_text(verdict.repeat)
    assert case == {"first": 2, "then": 3}
    asked = []
    assert examine_again(check_of(lambda subject, one: asked.append(one)), SUBJECT, case).kind == "pass"
    assert asked == [2, 3]


def test_skipped_cases_are_not_judged_and_if_all_are_skipped_that_is_no_pass():
    def skips(*bad):
        def judge(subject, case):
            if case in bad:
                raise Unsupported(f"not {case}")

        return judge

    some, every = (examine(check_of(skips(*bad)), SUBJECT, DEV) for bad in ((1,), (1, 2, 3)))
    assert (some.kind, some.cases, some.skipped) == ("pass", 2, {"not 1": 1})
    assert (every.kind, every.cases, every.text) == ("unsupported", 0, "not 1; not 2; not 3")


def test_skipped_cases_are_counted_up_to_the_first_failure():
    def judge(subject, case):
        if case == 3:
            raise Breach("fail", "three")
        raise Unsupported("small" if case < 3 else "large")

    attempts = Attempts(check_of(judge), SUBJECT)
    for case in (1, 2, 3, 4, 5):
        with suppress(Breach):
            attempts.attempt(case)
    assert attempts.verdict("fail", "three").skipped == {"small": 2}


@pytest.mark.parametrize("operation", ["sparse_ffn", "run_decode", "run_window"])
def test_a_refused_activation_comes_with_the_way_to_skip_it(operation):
    def refuses(*of):
        raise ValueError("an unknown activation")

    network = FFN("squared_relu", np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    calls = {
        "sparse_ffn": (np.ones(1, np.float32), *network, np.arange(1)),
        "run_decode": ([[network, None]] * 2, *[None] * 8),
        "run_window": (1, 1, [1], []),
    }
    subject = InProcess(SimpleNamespace(**{**vars(reference), operation: refuses}))
    with pytest.raises(Breach) as caught:
        ask(subject, Call(operation, calls[operation]))
    refused, _, advice = str(caught.value).partition("; ")
    assert refused == f"{operation} refused a valid input: ValueError: an unknown activation"
    due = "if your engine has no squared_relu, raise Unsupported (chapter 96)"
    assert advice == ("" if operation == "run_window" else due)


def test_a_defect_of_the_kit_is_no_verdict_on_the_implementation():
    verdict = examine(check_of(lambda subject, case: 1 / 0), SUBJECT, DEV)
    assert verdict.kind == "kit error" and "ZeroDivisionError" in verdict.text


def test_one_operation_of_several_is_enough_to_ask():
    check = CHECKS["BND-5"]._replace(operations=("pack_bundles", "unpack_bundles"))
    assert lacking(check, only("unpack_bundles").facts) is None
    assert lacking(check, only("read_plan").facts) == "no pack_bundles"

    def never(subject, case):
        raise AssertionError

    verdict = examine(check._replace(judge=never), only("read_plan"), DEV)
    assert (verdict.kind, verdict.text) == ("unsupported", "no pack_bundles")


def test_a_case_of_a_check_is_a_call_of_its_operations_with_all_arguments():
    call = Call("read_plan", ([[0, 3]], 4, 0))
    check = CHECKS["PLN-1"]
    assert is_case_of(check, call) and is_case_of(check, [call, call])
    assert is_case_of(check, {"first": call, "then": [call]})
    assert calls_of({"first": call, "then": [call]}) == [call, call]
    wrong = call._replace(operation="run_window"), call._replace(arguments=(1, 2)), "read_plan", [], {}
    assert not any(is_case_of(check, case) for case in wrong)
    assert not is_case_of(CHECKS["WIN-1"], call)


def test_a_vector_is_one_case_unless_it_was_not_asked():
    vector = shipped_vectors()["read_plan/plans/touching"]
    assert vector_verdict(SUBJECT, vector)[:4] == (vector.id, "pass", "", 1)
    assert vector_verdict(only("run_window"), vector)[:4] == (vector.id, "unsupported", "no read_plan", 0)
    broken = InProcess(SimpleNamespace(**{**vars(reference), "read_plan": lambda *of: [[0, 1]]}))
    assert vector_verdict(broken, vector)[1::2] == ("fail", 1, None)


def test_a_run_begins_anew():
    attempts = Attempts(check_of(failing_at(2)), SUBJECT)
    attempts.attempt(1)
    with pytest.raises(Breach):
        attempts.attempt(2)
    attempts.begin()
    assert (attempts.judged, attempts.skipped, attempts.failing, attempts.first_failure) == (
        0,
        {},
        None,
        None,
    )
