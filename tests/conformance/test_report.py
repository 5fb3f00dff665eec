"""A report from verdicts written by hand: its table, its failures, its counts, its JSON and its HTML."""

import pytest

from flashref import SPEC_VERSION
from flashref.conformance.checks.check import Call
from flashref.conformance.judging.report import NOTHING_JUDGED, Report, Row, failure_text
from flashref.conformance.judging.verdict import Verdict
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.codec import case_text
from flashref.conformance.vectors.published import shipped_vectors

CASE = case_text(Call("read_plan", ([[0, 3]], 4, 0)))
TOUCHING, NONE, ORDER = (
    f"read_plan/plans/{name}" for name in ("touching", "no_extents", "order_and_repeats")
)


def report(verdicts, vectors):
    return Report("engine", "0.3", "dev", "other", verdicts, vectors)


@pytest.fixture
def mixed():
    verdicts = [
        Verdict("WIN-6", "deviates", "issue 12", 0, 0.0),
        Verdict("PLN-1", "pass", "", 34, 1.5),
        Verdict("PLN-2", "fail", "blocks <are> missing\nand more", 3, 0.5, CASE),
        Verdict("GTH-1", "not run", "it hung before", 0, 0.0),
        Verdict("SLT-2", "crashes", "it is gone", 1, 0.0),
    ]
    plans = [
        Verdict(TOUCHING, "pass", "", 1, 0.0),
        Verdict(NONE, "wrong type", f"{NONE}: a float", 1, 0.0),
        Verdict(ORDER, "fail", f"{ORDER}: another", 1, 0.0),
    ]
    return report(
        verdicts, {"read_plan": plans, "run_slots": [Verdict("run_slots/a/b", "unsupported", "no", 0, 0.0)]}
    )


def test_rows_are_requirements_then_operations(mixed):
    assert list(mixed.rows()) == [
        Row("30-window", "WIN-6", "exact", "deviates", "0", "issue 12"),
        Row("52-plan", "PLN-1", "exact", "pass", "34", ""),
        Row("52-plan", "PLN-2", "exact", "fail", "3", "blocks <are> missing"),
        Row("60-gather", "GTH-1", "exact", "not run", "0", "it hung before"),
        Row("70-slots", "SLT-2", "exact", "crashes", "1", "it is gone"),
        Row("vectors", "read_plan", "vectors", "wrong type", "3", "1 pass, 2 fail\na float"),
        Row("vectors", "run_slots", "vectors", "unsupported", "0", "no"),
    ]


def test_every_misbehaviour_counts_as_a_fail_and_what_was_not_run_by_itself(mixed):
    assert mixed.summary == (
        f"spec {SPEC_VERSION}: 1 pass, 1 deviate, 0 unsupported, 2 fail, 1 not run; "
        "vectors: 1 pass, 0 deviate, 1 unsupported, 2 fail"
    )
    assert mixed.judged and not mixed.passed


def test_failures_are_shown_in_full_and_further_vectors_named(mixed):
    wrong, crashed, vector, others = mixed.failures(vectors_of_one=1)
    sentence = requirements()["PLN-2"].sentence
    assert wrong == (
        f"PLN-2 [exact]: {sentence} (specs/52-plan.md)\n  fail: blocks <are> missing\nand more\n"
        "  call: read_plan(extents=[[0, 3]], block=4, max_gap=0)\n"
        f"  repeat: flashref conformance other --repro PLN-2 '{CASE}'"
    )
    assert crashed.startswith("SLT-2 [exact]: ") and crashed.endswith("  crashes: it is gone")
    cited = ", ".join(shipped_vectors()[NONE].requirements)
    assert vector == (
        f"{NONE} [vector of {cited}]\n  wrong type: a float\n"
        "  call: read_plan(extents=[], block=4096, max_gap=0)\n"
        f"  repeat: flashref conformance other --repro {NONE}"
    )
    assert others == f"1 more vectors of read_plan failed:\n  {ORDER}"
    assert repr(mixed).count("\n\n") == 5 and repr(mixed).startswith("engine 0.3\n\n")


def test_json_has_the_failures_and_no_seconds(mixed):
    found = mixed.as_json()
    assert found["passed"] is False and found["name"] == "engine"
    assert found["verdicts"][2] == {
        "requirement": "PLN-2", "kind": "fail", "text": "blocks <are> missing\nand more", "cases": 3,
        "repeat": CASE, "skipped": {},
    }  # fmt: skip
    assert found["vectors"][0] == {
        "operation": "read_plan", "kind": "wrong type", "cases": 3,
        "pass": 1, "deviate": 0, "unsupported": 0, "fail": 2, "not run": 0, "skipped": {},
        "failures": [
            {"case": NONE, "kind": "wrong type", "text": f"{NONE}: a float"},
            {"case": ORDER, "kind": "fail", "text": f"{ORDER}: another"},
        ],
    }  # fmt: skip


@pytest.fixture
def skipping():
    verdicts = [
        Verdict("PLN-1", "pass", "", 20, 0.0, None, {"no gaps": 9, "no <ends>": 1}),
        Verdict("PLN-2", "fail", "a gap", 3, 0.0, CASE, {"no gaps": 4}),
        Verdict("GTH-1", "unsupported", "no gaps", 0, 0.0, None, {"no gaps": 30}),
    ]
    names = [name for name in shipped_vectors() if name.startswith("read_plan/")]
    plans = [Verdict(name, "unsupported", "no runs", 0, 0.0) for name in names[:2]]
    plans += [Verdict(name, "pass", "", 1, 0.0) for name in names[2:5]]
    failed = Verdict(names[5], "fail", f"{names[5]}: a gap", 1, 0.0)
    lacking = Verdict("run_slots/a/b", "unsupported", "no slots", 0, 0.0)
    groups = {"read_plan": [*plans, failed], "gather_rows": plans, "run_slots": [lacking]}
    return report(verdicts, groups)


def test_skipped_cases_are_counted_beside_those_that_were_judged(skipping):
    assert [(row.name, row.cases, row.why) for row in skipping.rows()] == [
        ("PLN-1", "20", "10 skipped"),
        ("PLN-2", "3", "4 skipped\na gap"),
        ("GTH-1", "0", "no gaps"),
        ("read_plan", "4", "3 pass, 1 fail, 2 skipped\na gap"),
        ("gather_rows", "3", "2 skipped"),
        ("run_slots", "0", "no slots"),
    ]


def test_reasons_are_counted_once_for_all_but_not_where_nothing_was_judged(skipping):
    assert list(skipping.skips()) == ["13 cases: no gaps", "4 vectors: no runs", "1 case: no <ends>"]
    found = skipping.as_json()
    assert [one["skipped"] for one in found["verdicts"]] == [
        {"no gaps": 9, "no <ends>": 1}, {"no gaps": 4}, {"no gaps": 30},
    ]  # fmt: skip
    assert [group["skipped"] for group in found["vectors"]] == [
        {"no runs": 2},
        {"no runs": 2},
        {"no slots": 1},
    ]
    assert "<p>skipped 1 case: no &lt;ends&gt;</p>" in skipping._repr_html_()
    assert "\n\nskipped 13 cases: no gaps\n\n" in repr(skipping)


def test_html_shows_text_as_text(mixed):
    page = mixed._repr_html_()
    assert "blocks &lt;are&gt; missing" in page and "<are>" not in page
    assert page.count("<tr>") == 7 and page.count("<pre>") == 4


def test_a_vector_that_is_not_shipped_has_its_text_alone():
    shown = failure_text(Verdict("read_plan/mine/own", "fail", "read_plan/mine/own: no", 1, 0.0), "other")
    assert shown == "read_plan/mine/own\n  fail: no"


def test_what_was_not_judged_has_not_passed():
    nothing = report([Verdict("PLN-1", "unsupported", "no", 0, 0.0)], {})
    assert (
        nothing.summary == f"spec {SPEC_VERSION}: 0 pass, 0 deviate, 1 unsupported, 0 fail; {NOTHING_JUDGED}"
    )
    assert not nothing.judged and not nothing.passed
    assert report([Verdict("IOP-1", "pass", "", 1, 0.0)], {}).passed
