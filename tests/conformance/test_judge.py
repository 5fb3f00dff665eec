"""`flashref.conformance.judge` and `repeat`, as a notebook calls them: the report, and what it shows."""

import json
import sys
import types

import conformance_runs
import pytest
from conformance_runs import REFERENCE

from flashref.conformance import judge as judged
from flashref.conformance import reference, repeat
from flashref.conformance.adapter import OPERATIONS, Unsupported
from flashref.conformance.checks import CHECKS, checks_named
from flashref.conformance.judging.report import NOTHING_JUDGED
from flashref.types import FlashrefError

SOME = "PLN-2 WIN-6"
adapter = conformance_runs.adapter
judge = conformance_runs.judge
report = conformance_runs.report


def forgetful(*of):
    return reference.read_plan(*of)[:-1]


def reference_but(**functions):
    """The reference as an object, with other functions in the place of some."""
    own = {name: getattr(reference, name) for name in (*OPERATIONS, "name", "version", "unsupported")}
    return types.SimpleNamespace(**{**own, **functions})


@pytest.fixture(scope="module")
def failed():
    return judged(reference_but(read_plan=forgetful), SOME, "dev")


def test_what_holds_passes_and_is_counted():
    found = judged(reference, SOME, "dev")
    assert found.passed and found.judged and found.target == REFERENCE
    assert [(verdict.requirement, verdict.kind) for verdict in found.verdicts] == [
        ("WIN-6", "pass"),
        ("PLN-2", "pass"),
    ]
    assert set(found.vectors) == {"read_plan", "run_window"}
    assert ": 2 pass, 0 deviate, 0 unsupported, 0 fail; vectors: " in found.summary
    assert list(found.failures()) == []


def test_what_fails_is_shown_in_words_and_as_html(failed):
    assert not failed.passed and failed.judged
    shown, page = repr(failed), failed._repr_html_()
    assert "\n\nPLN-2 [exact]: " in shown and shown.endswith(failed.summary)
    assert "repeat: flashref conformance ADAPTER --repro PLN-2 '" in shown
    assert page.count("<tr>") == 2 + 2 and "<td>PLN-2</td><td>exact</td><td>fail</td>" in page
    assert "extents=[[" in page and "'" not in page


def test_a_failure_is_repeated_until_it_is_mended(failed):
    case = failed.verdicts[1].repeat
    assert repeat(reference_but(read_plan=forgetful), "PLN-2", case).kind == "fail"
    assert repeat(reference, "PLN-2", case).kind == "pass"
    [name] = [row["failures"][0]["case"] for row in failed.as_json()["vectors"] if row["fail"]]
    assert repeat(reference_but(read_plan=forgetful), name).kind == "fail"
    assert repeat(reference, name).kind == "pass"


@pytest.mark.parametrize(
    ("name", "case", "says"),
    [
        ("PLN", "abc", "PLN names 5 requirements; name the one whose case it is"),
        ("PLN-2", None, "the case of PLN-2 is missing; "),
        ("PLN-2", "abc", "the text is no case of the kit, or only a part of one "),
        (
            "read_plan/plans/touchin",
            None,
            "no vector is called 'read_plan/plans/touchin'; near it are read_plan/",
        ),
    ],
)
def test_what_names_no_case_is_a_mistake(name, case, says):
    with pytest.raises(FlashrefError) as error:
        repeat(reference, name, case)
    assert str(error.value).startswith(says)


def test_a_class_is_an_adapter_that_is_made_first():
    class Planner:
        unsupported = dict.fromkeys(set(OPERATIONS) - {"read_plan"}, "it only plans")

        def read_plan(self, *of):
            return reference.read_plan(*of)

    found = judged(Planner, "PLN-2", "dev")
    assert found.passed and (found.name, found.target) == ("Planner", "ADAPTER")


@pytest.mark.ci
def test_the_command_gives_the_same_json(report, adapter, monkeypatch):
    adapter("def read_plan(*of):\n    return reference.read_plan(*of)[:-1]\n")
    code, found = report("other", "--requirements", *SOME.split())
    assert code == 1
    assert found == judged("other", SOME.split(), "dev").as_json()
    monkeypatch.syspath_prepend("")
    here = judged(__import__("other"), SOME, "dev")
    assert json.loads(json.dumps(here.as_json())) == found
    sys.modules.pop("other")


def test_a_command_is_the_list_of_its_words():
    words = [sys.executable, "-m", "flashref.conformance", REFERENCE]
    found = judged(words, "PLN-2", "dev", vectors=False)
    assert found.passed and found.vectors == {}
    assert found.target == f"--command '{' '.join(words)}'"


def skipping(*of):
    raise Unsupported("not today")


NOTHING = types.SimpleNamespace(unsupported=dict.fromkeys(OPERATIONS, "not yet"))
SKIPS = reference_but(**dict.fromkeys(OPERATIONS, skipping))


@pytest.mark.parametrize("implementation", [NOTHING, SKIPS])
def test_an_implementation_that_runs_nothing_has_not_passed(implementation):
    found = judged(implementation, "PLN-1 WIN-1 IOP-1 IOP-6 IOP-11", "dev")
    assert not found.judged and not found.passed
    assert found.summary.endswith(f"; {NOTHING_JUDGED}")
    assert {verdict.kind for verdict in found.every_vector} == {"unsupported"}


def test_the_command_says_that_nothing_was_judged(adapter, report):
    adapter("unsupported = dict.fromkeys(['read_plan'], 'not yet')\ndel read_plan\n")
    code, found = report("other", "--requirements", "PLN-2")
    assert (code, found["passed"]) == (1, False)
    code, found = report("other", "--requirements", "PLN-2", "WIN-6", "--no-vectors")
    assert (code, found["passed"]) == (0, True)


def test_what_runs_no_operation_may_be_asked_alone():
    assert judged(NOTHING, "IOP-1", "dev", vectors=False).passed


@pytest.mark.parametrize(
    ("words", "due"),
    [
        ("pln-2", "PLN-2"),
        ("PLN-2,win-6", "WIN-6 PLN-2"),
        (["PLN-1", "PLN-2, WIN-6"], "WIN-6 PLN-1 PLN-2"),
        ("PLN-*", "PLN-1 PLN-2 PLN-3 PLN-4 PLN-5"),
        ("pln", "PLN-1 PLN-2 PLN-3 PLN-4 PLN-5"),
        ("WIN-1", "WIN-1"),
    ],
)
def test_requirements_are_named_by_ids_and_areas_in_any_case(words, due):
    assert [check.requirement for check in checks_named(words)] == due.split()
    assert len(checks_named(None)) == len(CHECKS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("PLN-22", "no check is called 'PLN-22'; near it are PLN-2, "),
        ("WNI-3", "no check is called 'WNI-3'; near it are WIN-3, "),
        ("qqqq", "no check is called 'QQQQ'; the areas are BND, DEC, "),
        ("DEV-1", "DEV-1 has no check: it binds flashref only"),
        ("typ-6", "TYP-6 has no check: it is [unspecified], so no test can decide it"),
        (" ,", "no requirement is named; write ids such as FFN-4, or areas such as FFN"),
    ],
)
def test_words_that_name_no_check_are_a_mistake(words, says):
    with pytest.raises(FlashrefError) as error:
        checks_named(words)
    assert str(error.value).startswith(says)


def test_an_unknown_profile_is_a_mistake():
    with pytest.raises(FlashrefError, match="there is no profile 'slow'; use one of dev, ci, nightly"):
        judged(reference, "PLN-2", "slow")
