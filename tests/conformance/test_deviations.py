"""A deviations file: what is in force until which version, and mistakes in it."""

import re

import conformance_runs
import pytest
from conformance_runs import KIT, deviation, kinds, vector_kinds

from flashref.conformance.checks import CHECKS
from flashref.conformance.judging.deviations import DeviationError, in_force, read_deviations

adapter = conformance_runs.adapter
judge = conformance_runs.judge
report = conformance_runs.report


def test_a_requirement_that_deviates_is_not_judged(report, adapter, tmp_path):
    path = tmp_path / "deviations.toml"
    path.write_text(deviation(requirement="PLN-2", reason="see issue 12"))
    adapter("def read_plan(*of): raise KeyError('plan')\n")
    code, result = report("other", "--requirements", "PLN-2", "WIN-6", "--deviations", path)
    verdict = result["verdicts"][1]
    assert (verdict["kind"], verdict["text"], verdict["cases"]) == ("deviates", "see issue 12", 0)
    [row] = [row for row in result["vectors"] if row["operation"] == "read_plan"]
    assert (code, row["kind"], row["deviate"]) == (0, "deviates", row["cases"])
    # It stands until a later version.
    path.write_text(deviation(requirement="PLN-2", reason="see issue 12", until="0.2"))
    code, result = report("other", "--requirements", "PLN-2", "--deviations", path)
    assert (code, kinds(result)) == (1, {"PLN-2": "raises"})


@pytest.mark.ci
def test_a_case_that_deviates_must_fail(report, adapter, tmp_path):
    path = tmp_path / "deviations.toml"
    names = [path.stem for path in (KIT.parent / "data" / "vectors" / "v1" / "read_plan").glob("*.json")]
    assert names
    broken = "def read_plan(*of): raise KeyError('plan')\n"
    _, result = report(adapter(broken), "--requirements", "PLN-2")
    [row] = [row for row in result["vectors"] if row["operation"] == "read_plan"]
    cases = [failure["case"] for failure in row["failures"]]
    path.write_text("".join(deviation(case=case, reason="old driver") for case in cases))
    words = "--requirements", "PLN-2", "--deviations", path
    code, result = report("other", *words)
    assert vector_kinds(result)["read_plan"] == "deviates" and kinds(result) == {"PLN-2": "raises"}
    adapter()
    code, result = report("other", *words)
    [row] = [row for row in result["vectors"] if row["operation"] == "read_plan"]
    assert (code, row["kind"], len(row["failures"])) == (1, "fail", len(cases))
    text = f"{cases[0]}: passes now; remove the deviation (old driver)"
    assert row["failures"][0]["text"] == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[deviation", "is no TOML: .*"),
        ("deviation = 3", r"holds something else than \[\[deviation\]\] tables; remove it"),
        ("other = 3", r"holds something else than \[\[deviation\]\] tables; remove it"),
        (
            '[[deviations]]\nrequirement = "FFN-4"\nreason = "r"',
            r"has \[\[deviations\]\], which is not read; write \[\[deviation\]\]",
        ),
        (
            deviation(requirement="FFN-4", reason="r", since="1"),
            "deviation 1: has the unknown key 'since'; .*",
        ),
        (deviation(requirement="FFN-4", reason=" "), "deviation 1: has an empty text, or .*"),
        (deviation(requirement="FFN-4", reason=3), "deviation 1: has an empty text, or .*"),
        (deviation(requirement="FFN-4"), "deviation 1: has no reason; write why .*"),
        (deviation(reason="r"), "deviation 1: must name a requirement or a case, and not both"),
        (deviation(requirement="FFN-4", case="a/b/c", reason="r"), "deviation 1: must name .*, and not both"),
        (deviation(requirement="FFN-999", reason="r"), "deviation 1: no check is called 'FFN-999'; near .*"),
        (deviation(case="a/b/d", reason="r"), "deviation 1: no vector is called 'a/b/d'; near it are a/b/c"),
        (deviation(case="a/b/c", reason="r") * 2, "deviation 2: a/b/c is there twice; keep one of them"),
        (deviation(requirement="FFN-4", reason="r", until="soon"), "deviation 1: until = 'soon' is no .*"),
        (b"\xff", "is no TOML: .*"),
    ],
)
def test_a_mistake_in_the_deviations_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "deviations.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DeviationError, match=rf"^{re.escape(str(path))}: {sentence}$") as caught:
        read_deviations(path, CHECKS, {"a/b/c"})
    assert "\n" not in str(caught.value)


def test_no_deviations_file_is_a_mistake(tmp_path):
    with pytest.raises(
        DeviationError, match="cannot be read: No such file or directory; name a deviations file"
    ):
        read_deviations(tmp_path / "deviations.toml", CHECKS, set())


@pytest.mark.parametrize(
    ("version", "until", "counts"),
    [
        ("0.4", "0.4", True),
        ("0.4.0", "0.4", True),
        ("0.4", "0.4.0", True),
        ("v0.3.9", "0.4", True),
        ("0.10", "0.4", False),
        ("0.4.1", "0.4", False),
        ("1", "0.4", False),
        ("0.4rc1", "0.4", True),
        ("unknown", None, True),
    ],
)
def test_a_deviation_counts_until_its_version(tmp_path, version, until, counts):
    path = tmp_path / "deviations.toml"
    path.write_text(deviation(requirement="FFN-4", reason="r", **({} if until is None else {"until": until})))
    entries = read_deviations(path, CHECKS, set())
    assert in_force(entries, version).requirements == ({"FFN-4": "r"} if counts else {})
    if until is not None:
        with pytest.raises(DeviationError, match="calls its version 'unknown'; give it a number"):
            in_force(entries, "unknown")
