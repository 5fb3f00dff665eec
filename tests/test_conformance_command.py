"""`flashref conformance` and the pytest suite, as those meet them whose implementation is judged."""

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis.errors import Flaky

import flashref
from flashref import SPEC_VERSION
from flashref.cli import conformance, main
from flashref.conformance.adapter import load_adapter
from flashref.conformance.checks import CHECKS
from flashref.conformance.codec import case_text
from flashref.conformance.deviations import DeviationError, in_force, read_deviations
from flashref.conformance.requirements import requirements
from flashref.conformance.runner import Attempts, profile_settings, property_of
from flashref.conformance.subject import Breach, InProcess

ROOT = Path(flashref.__file__).parent.parent
KIT = ROOT / "flashref" / "conformance"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
REFERENCE = "flashref.conformance.reference"
SOME = ["PLN-2", "WIN-6", "FFN-9"]
HEAD = """
import os, time
import numpy as np
from flashref.conformance import reference
from flashref.conformance.reference import *
name, version = "other", "0.3"
"""
# The last read is forgotten; nothing else is wrong.
FORGETS = """
def read_plan(*of):
    return reference.read_plan(*of)[:-1]
"""


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """Writes an adapter, the reference but for what is given, into the working directory; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")

    def write(source="", module="other"):
        (tmp_path / f"{module}.py").write_text(HEAD + source)
        return module

    return write


@pytest.fixture
def judge(capsys):
    """Runs the command with a time-out of its own; the exit code and stdout."""

    def run(*words, timeout=30.0, profile="dev"):
        parser = argparse.ArgumentParser()
        conformance.add_parser(parser.add_subparsers())
        options = parser.parse_args(["conformance", *map(str, words), "--profile", profile])
        code = conformance.run(options, timeout)
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def report(judge):
    """The same, as JSON: the exit code and the object."""

    def run(*words, **more):
        code, out = judge(*words, "--json", **more)
        return code, json.loads(out)

    return run


def kinds(result):
    return {verdict["requirement"]: verdict["kind"] for verdict in result["verdicts"]}


def vector_kinds(result):
    return {row["operation"]: row["kind"] for row in result["vectors"]}


def test_the_reference_passes_and_the_table_says_so(judge, adapter):
    adapter()
    line = f"{shlex.quote(sys.executable)} -m flashref.conformance {REFERENCE}"
    code, out = judge("--command", line, "--requirements", *SOME)
    lines = [" ".join(line.split()) for line in out.splitlines() if line.strip()]
    assert code == 0
    assert lines[0] == f"flashref {flashref.__version__}"
    assert lines[1] == "requirement class verdict cases why"
    chapters = [line for line in lines if re.fullmatch(r"\d\d-\w+|vectors", line)]
    assert chapters == ["10-ffn", "30-window", "52-plan", "vectors"]
    assert lines[lines.index("30-window") + 1].startswith("WIN-6 exact pass ")
    cases = int(lines[lines.index("30-window") + 1].split()[3])
    assert cases >= 30
    rows = [re.fullmatch(r"(\w+) vectors pass (\d+) of (\d+)", line) for line in lines]
    rows = [row.groups() for row in rows if row]
    assert rows and all(passed == due for _, passed, due in rows)
    total = sum(int(due) for _, _, due in rows)
    counted = f"{total} pass, 0 deviate, 0 unsupported, 0 fail"
    assert lines[-1] == f"spec {SPEC_VERSION}: 3 pass, 0 deviate, 0 unsupported, 0 fail; vectors: {counted}"


def test_two_runs_are_identical_in_json(judge, adapter):
    words = adapter(FORGETS), "--requirements", *SOME, "--json"
    (code, first), (_, second) = judge(*words), judge(*words)
    assert first == second
    result = json.loads(first)
    assert (code, result["name"], result["version"], result["spec"]) == (1, "other", "0.3", SPEC_VERSION)
    assert kinds(result) == {"FFN-9": "pass", "WIN-6": "pass", "PLN-2": "fail"}
    assert "seconds" not in first


def test_requirements_are_in_the_order_of_the_chapters_whatever_the_words(report, adapter):
    _, result = report(adapter(), "--requirements", "IOP-1", "WIN-6", "FFN-4", "--no-vectors")
    assert list(kinds(result)) == ["FFN-4", "WIN-6", "IOP-1"]
    assert result["vectors"] == []


def test_only_vectors_that_cite_the_requirements_are_judged(report, adapter):
    _, result = report(adapter(), "--requirements", "WIN-6")
    assert vector_kinds(result)["run_window"] == "pass" and "dense_ffn" not in vector_kinds(result)


def test_a_failure_is_repeated_by_pasting_its_line(judge, adapter, tmp_path):
    code, out = judge(adapter(FORGETS), "--requirements", "PLN-2", "--no-vectors")
    assert code == 1
    failure = out[out.index("\nPLN-2 [") + 1 :].partition("\n\n")[0]
    sentence = requirements()["PLN-2"].sentence
    assert failure.startswith(f"PLN-2 [exact]: {sentence} (specs/52-plan.md)\n  fail: ")
    assert "\n  call: read_plan(extents=[[" in failure
    line = re.search(r"repeat: (flashref conformance other --repro PLN-2 '\S+')\n?", failure)[1]
    pasted = line.replace("flashref", f"{shlex.quote(sys.executable)} -m flashref", 1)

    def again():
        done = subprocess.run(
            pasted, shell=True, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()

    assert again() == (1, failure.strip())
    adapter()
    assert again() == (0, "PLN-2: it passes now")


def test_a_vector_is_repeated_by_its_id(judge, adapter):
    code, out = judge(adapter(FORGETS), "--requirements", "PLN-2")
    name = re.search(r"repeat: flashref conformance other --repro (read_plan/\S+)\n", out)[1]
    code, out = judge(adapter(FORGETS), "--repro", name)
    assert code == 1 and out.startswith(f"{name} [vector]\n  fail: ")
    adapter()
    assert judge("other", "--repro", name) == (0, f"{name}: it passes now\n")


def test_many_failed_vectors_are_named_and_few_shown(judge, adapter):
    code, out = judge(adapter("def read_plan(*of): raise KeyError('plan')\n"), "--requirements", "PLN-2")
    assert code == 1
    assert out.count(" [vector]\n  raises: ") == 3
    more, names = re.search(r"^(\d+) more vectors of read_plan: (.*)$", out, re.M).groups()
    assert len(names.split(", ")) == int(more) > 0


MISBEHAVING = """
def read_plan(*of): return [[0, 4096, 7]]
def run_slots(*of): return None
def bundle_layout(*of): os._exit(3)
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
def pack_bundles(*of): raise KeyError("bundles")
"""
KINDS = {
    "PLN-2": "wrong type",
    "SLT-2": "wrong type",
    "GTH-1": "wrong type",
    "BND-1": "crashes",
    "WIN-6": "changes inputs",
    "FFN-2": "overwrites results",
    "PRD-1": "not deterministic",
    "BND-4": "raises",
    "DEC-6": "pass",
    "FFN-4": "pass",
}


def test_each_misbehaviour_has_its_verdict_and_the_run_goes_on(report, adapter):
    code, result = report(adapter(MISBEHAVING), "--requirements", *KINDS, "IOP-5")
    assert code == 1
    assert {name: kind for name, kind in kinds(result).items() if name in KINDS} == KINDS
    assert kinds(result)["IOP-5"] not in ("pass", "kit error")
    texts = {verdict["requirement"]: verdict["text"] for verdict in result["verdicts"]}
    assert "exited with status 3 instead of answering" in texts["BND-1"]
    assert "return copies, not views" in texts["FFN-2"]
    vectors = vector_kinds(result)
    assert vectors["bundle_layout"] == "crashes" and vectors["unpack_bundles"] == "pass"
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
def gather_rows(*of): time.sleep(1000)
"""


def test_three_hangs_are_waited_for_and_no_more(report, adapter):
    start = time.monotonic()
    words = ["GTH-1", "GTH-2", "GTH-3", "GTH-6", "TYP-2", "PLN-2"]
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
    }
    assert time.monotonic() - start < 60
    text = result["verdicts"][-1]["text"]
    assert text == "gather_rows hung before, and 3 hangs of a run are waited for"
    assert vector_kinds(result)["gather_rows"] == "not run" and vector_kinds(result)["read_plan"] == "pass"
    assert result["summary"]["requirements"]["not run"] == 3


def test_what_is_left_out_after_hangs_is_no_pass(report, adapter):
    words = ["TYP-2", "GTH-1", "IOP-2"]
    code, result = report(adapter(HANGS), "--requirements", *words, "--no-vectors", timeout=2.0)
    assert (code, kinds(result)["IOP-2"]) == (1, "not run")
    text = {verdict["requirement"]: verdict["text"] for verdict in result["verdicts"]}["IOP-2"]
    assert text == "cases of gather_rows were left out, since it hung before; the others passed"


def test_what_fails_only_after_other_calls_is_not_deterministic(report, adapter):
    source = """
calls = []
def read_plan(*of):
    calls.append(0)
    return reference.read_plan(*of) if len(calls) < 6 else [[0, 1]]
"""
    code, result = report(adapter(source), "--requirements", "PLN-2")
    assert (code, kinds(result)) == (1, {"PLN-2": "not deterministic"})
    assert "fails only after other calls, not in a fresh process" in result["verdicts"][0]["text"]
    [row] = [row for row in result["vectors"] if row["operation"] == "read_plan"]
    assert row["kind"] == "not deterministic"


def test_an_implementation_that_starts_once_only_crashes(report, adapter, tmp_path):
    source = """
if os.path.exists("started"): raise RuntimeError("the device is lost")
open("started", "w").close()
def read_plan(*of): os._exit(1)
"""
    code, result = report(adapter(source), "--requirements", "PLN-1", "PLN-2", "WIN-6", "--no-vectors")
    assert (code, kinds(result)) == (1, {"WIN-6": "pass", "PLN-1": "crashes", "PLN-2": "crashes"})
    assert "the device is lost" in result["verdicts"][2]["text"]


def test_unsupported_is_no_failure_and_gives_the_reason(judge, report, adapter):
    source = "unsupported = {'read_plan': 'see issue 7'}\ndel read_plan\n"
    code, result = report(adapter(source), "--requirements", "PLN-2", "WIN-6")
    assert (code, kinds(result)) == (0, {"WIN-6": "pass", "PLN-2": "unsupported"})
    assert vector_kinds(result)["read_plan"] == "unsupported"
    _, out = judge("other", "--requirements", "PLN-2", "WIN-6")
    assert re.search(r"PLN-2 +exact +unsupported +0 +see issue 7", out)
    assert re.search(r"read_plan +vectors +unsupported +0 of \d+ +see issue 7", out)
    assert f"spec {SPEC_VERSION}: 1 pass, 0 deviate, 1 unsupported, 0 fail" in out


def deviation(**entry):
    return "[[deviation]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())


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
            deviation(requirement="FFN-4", reason="r", since="1"),
            "deviation 1: has the unknown key 'since'; .*",
        ),
        (deviation(requirement="FFN-4", reason=" "), "deviation 1: has an empty text, or .*"),
        (deviation(requirement="FFN-4", reason=3), "deviation 1: has an empty text, or .*"),
        (deviation(requirement="FFN-4"), "deviation 1: has no reason; write why .*"),
        (deviation(reason="r"), "deviation 1: must name a requirement or a case, and not both"),
        (deviation(requirement="FFN-4", case="a/b/c", reason="r"), "deviation 1: must name .*, and not both"),
        (deviation(requirement="FFN-999", reason="r"), "deviation 1: no check is called 'FFN-999'; .*"),
        (deviation(case="a/b/d", reason="r"), "deviation 1: no vector is called 'a/b/d'; .*"),
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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name an adapter .* or a --command, and not both"),
        (["a", "--command", "b"], "name an adapter .* or a --command, and not both"),
        ([REFERENCE, "--requirements", "FFN-4", "FFN-999"], "no check is called 'FFN-999'; they are .*"),
        ([REFERENCE, "--repro", "FFN-4"], "--repro takes the two words of a `repeat` line, or .*"),
        ([REFERENCE, "--repro", "FFN-999", "eJw="], "--repro takes the two words of a `repeat` line, or .*"),
        ([REFERENCE, "--repro", "FFN-4", "eJw="], "this is no case of the kit, or only a part of one: .*"),
        ([REFERENCE, "--repro", "FFN-4", case_text([])], "this text is no case of FFN-4; copy both words .*"),
        ([REFERENCE, "--repro", "read_plan/no/such"], "no vector is called 'read_plan/no/such'; copy .*"),
        ([REFERENCE, "--deviations", "none.toml"], "none.toml: cannot be read: No such file .*"),
        (["nothing.there"], ".*the adapter's module 'nothing.there' cannot be imported: .*"),
        (["--command", "./nothing"], "the command './nothing' cannot be started: .*"),
        (["--command", "'"], "the command .* cannot be split into words: .*"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["conformance", *words]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(rf"flashref conformance: {sentence}\n", captured.err), captured.err
    assert captured.out == ""


def python(code, *words, cwd, **more):
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, **more
    )


@pytest.mark.parametrize("package", ["hypothesis", "mpmath"])
def test_without_the_extra_one_sentence_says_what_to_install(package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; from flashref.cli import main; sys.exit(main())"
    done = python(code, "conformance", REFERENCE, cwd=tmp_path)
    sentence = f"the conformance kit needs {package}; run pip install 'flashref[test]'"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"flashref conformance: {sentence}\n"


def test_help_loads_neither_hypothesis_nor_jax_nor_pytest(tmp_path):
    code = """
import sys
from flashref.cli import main
try: main(["conformance", "--help"])
except SystemExit as ended: assert ended.code == 0
assert not {"hypothesis", "jax", "pytest", "mpmath", "scipy"} & set(sys.modules)
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--deviations FILE" in done.stdout


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_being_ended_kills_the_child_too(adapter, tmp_path, name):
    adapter("def read_plan(*of):\n    open('pid', 'w').write(f'{os.getpid()}\\n')\n    time.sleep(1000)\n")
    words = [sys.executable, "-m", "flashref", "conformance", "other", "--requirements", "PLN-2"]
    pid = tmp_path / "pid"
    with subprocess.Popen(words, env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        start = time.monotonic()
        process.send_signal(getattr(signal, name))
        err = process.stderr.read()
    assert time.monotonic() - start < 30  # it does not ask again, and wait again
    assert process.returncode == 128 + getattr(signal, name)
    assert err == (
        "flashref conformance: interrupted; nothing half-written was left\n" if name == "SIGINT" else ""
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_nothing_is_on_stderr_but_on_a_terminal(adapter, tmp_path):
    words = [sys.executable, "-m", "flashref", "conformance", adapter(), "--requirements", "WIN-6", "PLN-2"]
    words += ["--profile", "dev", "--no-vectors"]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    primary, secondary = os.openpty()
    with subprocess.Popen(
        words, env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, stderr=secondary
    ) as process:
        os.close(secondary)
        seen = b""
        try:
            while part := os.read(primary, 1 << 16):
                seen += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
        assert process.stdout.read().decode() == done.stdout
    os.close(primary)
    assert b"PLN-2" in seen and b"1/2" in seen


# The suite under pytest, in another process and another folder, as a third party has it.

README = (KIT / "README.md").read_text(encoding="utf-8")
ENGINE = """
import numpy as np
from flashref.conformance import reference

def feed_forward(x, activation, up, down, gate, biases, tau, active):
    return reference.sparse_ffn(x, activation, up, down, gate, *biases, tau, active)

class window:
    def __init__(self, n, k, capacities):
        self.of = n, k, capacities
    def feed(self, sequence):
        return reference.run_window(*self.of, [sequence])[0]
"""


def suite(folder, *words, shared=None, expect):
    """Runs the suite in a folder; its output."""
    registered = importlib.metadata.entry_points(group="pytest11", name="flashref")
    plugin = [] if registered else ["-p", "flashref.conformance.plugin"]
    command = [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", *map(str, words)]
    environment = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("CI", "HYPOTHESIS_PROFILE")
    }
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


SUITE = ["--pyargs", "flashref.conformance.suite", "--flashref-profile", "dev"]


def test_the_readmes_adapter_passes_from_outside_the_checkout_over_two_workers(tmp_path):
    source = re.search(r"```python\n(# my_adapter.py\n.*?)```", README, re.S)[1]
    assert len(source.splitlines()) <= 35
    (tmp_path / "my_adapter.py").write_text(source)
    (tmp_path / "my_engine.py").write_text(ENGINE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\npython_functions = check_*\n")
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def mine(monkeypatch):\n    monkeypatch.setenv('A', 'B')\n"
    )
    words = *SUITE, "--flashref-adapter", "my_adapter", "-k", "FFN_4 or WIN_6 or PLN_1 or by_hand"
    out = suite(tmp_path, *words, "-n2", "-ra", "--flashref-report", "two.json", expect=0)
    assert "my engine 0.3" in out
    assert f"spec {SPEC_VERSION}: 2 pass, 0 deviate, 1 unsupported, 0 fail; vectors: " in out
    assert "PLN-1 unsupported: my engine has no such function" in out
    out = suite(tmp_path, *words, "-v", "--flashref-report", "one.json", expect=0)
    ids = re.findall(r"^(flashref\.conformance\.suite::\S+) (?:PASSED|SKIPPED)", out, re.M)
    assert ids[:3] == [f"flashref.conformance.suite::test_{name}" for name in ("FFN_4", "WIN_6", "PLN_1")]
    assert "flashref.conformance.suite::test_vector[run_window/by_hand/example]" in ids
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    result = json.loads((tmp_path / "one.json").read_text())
    assert kinds(result) == {"FFN-4": "pass", "WIN-6": "pass", "PLN-1": "unsupported"}
    assert result["name"] == "my engine"
    # An id as it was printed names the test.
    out = suite(tmp_path, *SUITE[2:], "--flashref-adapter", "my_adapter", "-q", "--pyargs", ids[1], expect=0)
    assert f"spec {SPEC_VERSION}: 1 pass, 0 deviate, 0 unsupported, 0 fail\n" in out


def test_a_failure_in_the_suite_is_what_the_command_shows_and_no_traceback(adapter, tmp_path, judge):
    adapter(FORGETS)
    (tmp_path / "deviations.toml").write_text(
        deviation(requirement="WIN-6", reason="see issue 12")
        + deviation(case="read_plan/plans/no_extents", reason="never")
    )
    words = *SUITE, "--flashref-adapter", "other", "--flashref-deviations", "deviations.toml"
    out = suite(
        tmp_path, *words, "-k", "PLN_2 or WIN_6 or no_extents", "-rs", "--flashref-report", "r.json", expect=1
    )
    sentence = requirements()["PLN-2"].sentence
    assert f"\nPLN-2 [exact]: {sentence} (specs/52-plan.md)\n  fail: " in out
    assert "Traceback" not in out and "runner.py" not in out and "Falsifying" not in out
    assert "WIN-6 deviates: see issue 12" in out
    assert "read_plan/plans/no_extents: passes now; remove the deviation (never)" in out
    assert (
        f"spec {SPEC_VERSION}: 0 pass, 1 deviate, 0 unsupported, 1 fail; vectors: 0 pass, 0 deviate, " in out
    )
    text = re.search(r"repeat: flashref conformance other --repro PLN-2 '(\S+)'", out)[1]
    assert json.loads((tmp_path / "r.json").read_text())["verdicts"][1]["repeat"] == text
    assert judge("other", "--repro", "PLN-2", text)[0] == 1


def test_the_suite_survives_a_command_that_crashes(adapter, tmp_path):
    adapter("def read_plan(*of): os._exit(3)\ndef gather_rows(*of): return 7\n")
    line = f"{shlex.quote(sys.executable)} -m flashref.conformance other"
    words = *SUITE, "--flashref-command", line, "-k", "PLN_2 or WIN_6 or GTH_1 or no_extents", "-v"
    out = suite(tmp_path, *words, expect=1)
    assert re.findall(r"::(\S+) (PASSED|FAILED)", out) == [
        ("test_WIN_6", "PASSED"),
        ("test_PLN_2", "FAILED"),
        ("test_GTH_1", "FAILED"),
        ("test_vector[read_plan/plans/no_extents]", "FAILED"),
    ]
    assert "crashes: read_plan: it exited with status 3 instead of answering" in out
    assert f"repeat: flashref conformance --command {shlex.quote(line)} --repro PLN-2 " in out


@pytest.mark.parametrize(
    ("words", "sentence", "code"),
    [
        (
            [],
            "ERROR: name what to judge: --flashref-adapter MODULE:ATTRIBUTE, or --flashref-command 'PROGRAM'",
            4,
        ),
        (
            ["--flashref-adapter", "a", "--flashref-command", "b"],
            "ERROR: name --flashref-adapter or .* both",
            4,
        ),
        (
            ["--flashref-adapter", "a", "--flashref-examples", "0"],
            "ERROR: --flashref-examples must be .* 0",
            4,
        ),
        (
            ["--flashref-adapter", "a", "--flashref-report", "no/r"],
            "ERROR: --flashref-report no/r: cannot .*",
            4,
        ),
        (["--flashref-adapter", "nothing.there"], "the adapter's module 'nothing.there' cannot be .*", 2),
        (["--flashref-adapter", REFERENCE, "--flashref-deviations", "no"], "no: cannot be read: .*", 2),
        (["--flashref-command", "./nothing"], "the command './nothing' cannot be started: .*", 2),
    ],
)
def test_a_mistake_in_the_suites_options_is_one_sentence(tmp_path, words, sentence, code):
    out = suite(tmp_path, *SUITE, *words, "-q", expect=code)
    assert len(re.findall(rf"^{sentence}$", out, re.M)) == 1, out
    assert "Traceback" not in out and "INTERNALERROR" not in out


def test_the_plugin_loads_nothing_until_an_implementation_is_named(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_mine():\n"
        "    assert 'flashref.conformance.plugin' in sys.modules\n"
        "    heavy = {'hypothesis', 'jax', 'mpmath', 'scipy', 'rich'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    kit = {m for m in sys.modules if m.startswith('flashref.conformance.')}\n"
        "    assert kit == {'flashref.conformance.plugin'}\n"
    )
    assert "1 passed" in suite(tmp_path, "-q", "-p", "no:xdist", expect=0)


def test_what_one_process_finds_another_tries_first_through_a_shared_database(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "from hypothesis import settings\n"
        "from hypothesis.database import DirectoryBasedExampleDatabase as Database\n"
        f"settings.register_profile('shared', database=Database({str(tmp_path / 'shared')!r}))\n"
        "settings.load_profile('shared')\n"
    )
    # Wrong for few plans only, and slow to be found.
    rare = (
        "def read_plan(extents, block, max_gap):\n    plan = reference.read_plan(extents, block, max_gap)\n"
    )
    rare += "    return [(a, 2 * b) for a, b in plan] if len(plan) > 2 and max_gap > block else plan\n"
    machines = [tmp_path / "one", tmp_path / "two"]
    words = "--pyargs", "flashref.conformance.suite", "--flashref-adapter", "other", "-k", "PLN_4", "-q"
    words += "--flashref-profile", "nightly", "--flashref-report", "report.json", "--confcutdir", tmp_path
    words += "-p", "conftest"
    judged = []
    for machine, examples in zip(machines, (2000, 1), strict=True):
        machine.mkdir()
        (machine / "other.py").write_text(HEAD + rare)
        (machine / "conftest.py").write_bytes((tmp_path / "conftest.py").read_bytes())
        suite(machine, *words, "--flashref-examples", examples, expect=1)
        [verdict] = json.loads((machine / "report.json").read_text())["verdicts"]
        judged.append(verdict)
    assert [verdict["kind"] for verdict in judged] == ["fail", "fail"]
    assert judged[0]["repeat"] == judged[1]["repeat"]
    assert judged[0]["cases"] > judged[1]["cases"]


def test_each_requirement_has_a_digest_of_its_own():
    """Hypothesis' key of what it keeps, and its seed: with one for all, checks lose each other's finds."""
    from hypothesis.internal.reflection import function_digest

    subject = InProcess(load_adapter(REFERENCE))
    how = profile_settings("dev")
    functions = [property_of(check, subject.facts, lambda case: None, how) for check in CHECKS.values()]
    tests = [run.hypothesis.inner_test for run in functions if hasattr(run, "hypothesis")]
    digests = [function_digest(test) for test in tests]
    assert len(set(digests)) == len(digests) > 40


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


def test_overwritten_results_are_repeated_by_the_two_calls_that_show_them(judge, adapter):
    source = "buffer = np.zeros(10**6, np.float32)\ndef dense_ffn(x, *of):\n    y = buffer[: len(x)]\n"
    source += "    y[:] = reference.dense_ffn(x, *of)\n    return y\n"
    code, out = judge(adapter(source), "--requirements", "FFN-2", "--no-vectors")
    text = re.search(r"repeat: flashref conformance other --repro FFN-2 '(\S+)'", out)[1]
    assert code == 1 and out.count("  call: dense_ffn(") == 2
    code, out = judge("other", "--repro", "FFN-2", text)
    assert code == 1 and "  overwrites results: a result of dense_ffn changed" in out
    adapter()
    assert judge("other", "--repro", "FFN-2", text) == (0, "FFN-2: it passes now\n")
