"""What an implementation can do wrong, and the verdict on it: it crashes, hangs, overwrites, varies."""

import re
import shlex
import sys

import conformance_runs
import pytest
from conformance_runs import REFERENCE, kinds, vector_kinds
from hypothesis.errors import Flaky

from flashref import SPEC_VERSION
from flashref.conformance.adapter import Unsupported, load_adapter
from flashref.conformance.checks import CHECKS
from flashref.conformance.judging.campaign import PATIENCE, Watched, judge_requirement
from flashref.conformance.judging.deviations import Deviations
from flashref.conformance.judging.runner import Attempts, profile_settings
from flashref.conformance.transport.subject import Breach, Died, InProcess

adapter = conformance_runs.adapter
judge = conformance_runs.judge
report = conformance_runs.report


MISBEHAVING = """
def read_plan(*of): return [[0, 4096, 7]]
def run_slots(*of): return None
def unpack_bundles(*of):  # not always, since every crash costs another process
    if of[0] == 5: os._exit(3)
    return reference.unpack_bundles(*of)
def run_window(n, k, capacities, actives):
    actives[0][0][0][:1] = 0
    actives[0][0][0].sort()
    answer = reference.run_window(n, k, capacities, actives)
    actives[0][0].clear()
    return answer
def gather_rows(*of):
    rows, counters = reference.gather_rows(*of)
    return rows.astype(np.float64), counters
buffer = np.zeros(10**6, np.float32)
def dense_ffn(x, *of):
    y = buffer[: len(x)]
    y[:] = reference.dense_ffn(x, *of)
    return y
calls = []
def predict_active(x, *of):
    calls.append(0)
    ids = reference.predict_active(x, *of)
    return ids if len(calls) % 5 else ids[:-1]
def bundle_layout(*of): raise KeyError("bundles")
"""
KINDS = {
    "PLN-2": "wrong type",
    "SLT-2": "wrong type",
    "GTH-1": "wrong type",
    "BND-1": "raises",
    "BND-5": "crashes",
    "WIN-6": "changes inputs",
    "FFN-2": "overwrites results",
    "PRD-1": "not deterministic",
    "DEC-6": "pass",
    "FFN-4": "pass",
}


@pytest.mark.ci
def test_each_misbehaviour_has_its_verdict_and_the_run_goes_on(report, adapter):
    code, result = report(adapter(MISBEHAVING), "--requirements", *KINDS, "IOP-5")
    assert code == 1
    assert {name: kind for name, kind in kinds(result).items() if name in KINDS} == KINDS
    assert kinds(result)["IOP-5"] not in ("pass", "kit error")
    texts = {verdict["requirement"]: verdict["text"] for verdict in result["verdicts"]}
    assert "exited with status 3 instead of answering" in texts["BND-5"]
    assert "return copies, not views" in texts["FFN-2"]
    vectors = vector_kinds(result)
    assert vectors["unpack_bundles"] == "crashes" and vectors["pack_bundles"] == "pass"
    assert vectors["bundle_layout"] == "raises"
    assert vectors["run_window"] == "changes inputs" and vectors["read_plan"] == "wrong type"
    [row] = [row for row in result["vectors"] if row["operation"] == "read_plan"]
    assert row["fail"] == len(row["failures"]) > 0
    passed = sum(kind == "pass" for kind in kinds(result).values())
    assert result["summary"]["requirements"]["pass"] == passed
    assert result["summary"]["requirements"]["fail"] == len(kinds(result)) - passed


def test_what_prints_garbage_is_survived(report, adapter, tmp_path):
    adapter()
    (tmp_path / "noisy.py").write_text(
        "import sys, subprocess\n"
        "inner = subprocess.Popen([sys.executable, '-m', 'flashref.conformance', 'other'],\n"
        "                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "for line in sys.stdin.buffer:\n"
        "    inner.stdin.write(line); inner.stdin.flush()\n"
        "    answer = inner.stdout.readline()\n"
        "    plan = b'read_plan' in line and b'run' in line\n"
        "    print('debug: reading' if plan else answer.decode().rstrip(), flush=True)\n"
    )
    line = f"{shlex.quote(sys.executable)} noisy.py"
    code, result = report("--command", line, "--requirements", "PLN-2", "WIN-6", "--no-vectors")
    assert (code, kinds(result)) == (1, {"WIN-6": "pass", "PLN-2": "garbage"})
    assert "must be one JSON object" in result["verdicts"][1]["text"]
    assert result["verdicts"][1]["repeat"] is not None


HANGS = """
def gather_rows(*of):
    with open("asked", "a") as file: file.write("x")
    time.sleep(1000)
"""


@pytest.mark.ci
def test_three_hangs_are_waited_for_and_no_more(report, adapter, tmp_path):
    words = ["GTH-1", "GTH-2", "GTH-3", "GTH-6", "TYP-2", "PLN-2", "IOP-2"]
    code, result = report(adapter(HANGS), "--requirements", *words, timeout=2.0)
    assert code == 1
    # TYP-2 comes first and hangs, as it does in a fresh process; GTH-1 is the third.
    assert kinds(result) == {
        "TYP-2": "hangs",
        "PLN-2": "pass",
        "GTH-1": "hangs",
        "GTH-2": "not run",
        "GTH-3": "not run",
        "GTH-6": "not run",
        "IOP-2": "not run",
    }
    assert (tmp_path / "asked").read_text() == "xxx"
    texts = {verdict["requirement"]: verdict["text"] for verdict in result["verdicts"]}
    assert texts["GTH-6"] == "gather_rows hung before, and 3 hangs of a run are waited for"
    left_out = "cases of gather_rows were left out, since it hung before; the others passed"
    assert texts["IOP-2"] == left_out  # which is no pass
    assert vector_kinds(result)["gather_rows"] == "not run" and vector_kinds(result)["read_plan"] == "pass"
    assert result["summary"]["requirements"]["not run"] == 4


class Hanging(InProcess):
    """The reference, whose gather_rows hangs."""

    def call(self, operation, *arguments):
        if operation == "gather_rows":
            raise Died("hangs", "no answer")
        return super().call(operation, *arguments)


def test_what_was_left_out_of_one_check_does_not_spoil_the_next():
    subject = Watched(Hanging(load_adapter(REFERENCE)))
    for _ in range(PATIENCE):
        with pytest.raises(Died):
            subject.call("gather_rows")
    with pytest.raises(Unsupported):
        subject.call("gather_rows")
    assert subject.left_out == {"gather_rows"}
    how, none = profile_settings("dev"), Deviations({}, {})
    assert judge_requirement(CHECKS["PLN-1"], subject, how, none).kind == "pass"
    assert judge_requirement(CHECKS["GTH-1"], subject, how, none).kind == "not run"


def test_what_fails_only_after_other_calls_is_not_deterministic(report, adapter):
    source = """
calls = []
def read_plan(*of):
    calls.append(0)
    return reference.read_plan(*of) if len(calls) < 6 else [[0, 1]]
"""
    code, result = report(adapter(source), "--requirements", "PLN-2")
    assert (code, kinds(result)) == (1, {"PLN-2": "not deterministic"})
    text = result["verdicts"][0]["text"]
    assert text.startswith(
        "it fails only after other calls, not in a fresh process; it failed so: the blocks ["
    )
    [row] = [row for row in result["vectors"] if row["operation"] == "read_plan"]
    assert row["kind"] == "not deterministic"


@pytest.mark.ci
def test_an_implementation_that_starts_once_only_crashes(report, adapter, tmp_path):
    source = """
if os.path.exists("started"): raise RuntimeError("the device is lost")
open("started", "w").close()
def read_plan(*of): os._exit(1)
"""
    code, result = report(adapter(source), "--requirements", "PLN-1", "PLN-2", "WIN-6", "--no-vectors")
    assert (code, kinds(result)) == (1, {"WIN-6": "pass", "PLN-1": "crashes", "PLN-2": "crashes"})
    assert "the device is lost" in result["verdicts"][2]["text"]


def test_unsupported_is_no_failure_and_gives_the_reason(judge, adapter):
    source = "unsupported = {'read_plan': 'see issue 7'}\ndel read_plan\n"
    code, out = judge(adapter(source), "--requirements", "PLN-2", "WIN-6")
    assert code == 0
    assert re.search(r"WIN-6 +exact +pass", out)
    assert re.search(r"PLN-2 +exact +unsupported +0 +see issue 7", out)
    assert re.search(r"read_plan +vectors +unsupported +0 +see issue 7", out)
    assert f"spec {SPEC_VERSION}: 1 pass, 0 deviate, 1 unsupported, 0 fail" in out


def test_what_takes_two_calls_to_see_is_not_called_chance():
    """Asked again, a case whose predecessor was overwritten may well pass, which is Flaky to Hypothesis."""

    def judge(subject, case):
        raise Breach(case, "how it failed")

    subject = InProcess(load_adapter(REFERENCE))
    for kind, due in (("overwrites results", "overwrites results"), ("fail", "not deterministic")):
        attempts = Attempts(CHECKS["FFN-2"]._replace(judge=judge), subject)
        with pytest.raises(Breach):
            attempts.attempt(kind)
        verdict = attempts.verdict_of(Flaky("it passed"))
        assert (verdict.kind, "how it failed" in verdict.text, verdict.cases) == (due, True, 1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if activation != 'relu6': raise ValueError('no')", "call 1: dense_ffn refused a valid input: "),
        (
            "if activation == 'relu6': return x",
            "dense_ffn answered where it had to refuse (an activation that does not exist): ",
        ),
        (
            "global there; there = there or activation == 'relu6'\n    if there: raise ValueError('no')",
            "call 1 after call 2 was refused: dense_ffn refused a valid input: ",
        ),
    ],
)
def test_of_several_calls_the_failure_names_the_one_that_went_wrong(judge, adapter, body, said):
    source = f"there = False\ndef dense_ffn(x, activation, *of):\n    {body}\n"
    source += "    return reference.dense_ffn(x, activation, *of)\n"
    _, out = judge(adapter(source), "--requirements", "IOP-7", "--no-vectors")
    failure = out[out.index("\nIOP-7 [") :]
    assert f"\n  fail: {said}" in failure
    assert re.search(r"\n  call 1: dense_ffn\(x=.*activation='relu'", failure)
    assert re.search(
        r"\n  call 2 \(an activation that does not exist\): dense_ffn\(x=.*activation='relu6'", failure
    )


def test_overwritten_results_are_repeated_by_the_two_calls_that_show_them(judge, adapter):
    source = "buffer = np.zeros(10**6, np.float32)\ndef dense_ffn(x, *of):\n    y = buffer[: len(x)]\n"
    source += "    y[:] = reference.dense_ffn(x, *of)\n    return y\n"
    code, out = judge(adapter(source), "--requirements", "FFN-2", "--no-vectors")
    text = re.search(r"repeat: flashref conformance other --repro FFN-2 '(\S+)'", out)[1]
    assert code == 1 and re.findall(r"^  call (\d)[^:]*: dense_ffn\(", out, re.M) == ["1", "2"]
    code, out = judge("other", "--repro", "FFN-2", text)
    assert code == 1 and "  overwrites results: a result of dense_ffn changed" in out
    adapter()
    assert judge("other", "--repro", "FFN-2", text) == (0, "FFN-2: it passes now\n")
