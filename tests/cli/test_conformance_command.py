"""`flashref conformance` as a user meets it: its table, repeating a failure, mistakes, signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import conformance_runs
import pytest
from conformance_runs import ENVIRONMENT, FORGETS, REFERENCE, ROOT, kinds, vector_kinds
from conftest import sampled

import flashref
from flashref import SPEC_VERSION
from flashref.cli import main
from flashref.cli.conformance import LEGEND, REASONS
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.codec import case_text
from flashref.conformance.vectors.published import SHIPPED, read_vectors

SOME = ["PLN-2", "WIN-6", "FFN-9"]
adapter = conformance_runs.adapter
judge = conformance_runs.judge
report = conformance_runs.report


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
    rows = [re.fullmatch(r"\w+ vectors pass (\d+)", line) for line in lines]
    total = sum(int(row[1]) for row in rows if row)
    assert total > 0 and "skipped, and so not judged:" not in out
    counted = f"{total} pass, 0 deviate, 0 unsupported, 0 fail"
    assert lines[-1] == f"spec {SPEC_VERSION}: 3 pass, 0 deviate, 0 unsupported, 0 fail; vectors: {counted}"


def test_a_pipe_gets_80_columns_whole_ids_and_no_trailing_blanks(judge, adapter, monkeypatch, tmp_path):
    source = "unsupported = dict.fromkeys(['read_plan', 'gather_rows'], 'my engine has no such function')\n"
    source += "del read_plan, gather_rows\n"
    source += "def predict_active(*of): return np.zeros(0, np.int64)\n"
    adapter(source)
    monkeypatch.setenv("COLUMNS", "80")
    code, out = judge("other", "--requirements", "PLN", "GTH", "PRD-1")
    assert code == 1
    lines = out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("PRD-1 ["))]
    assert max(len(line) for line in table if line != LEGEND) <= 80 and LEGEND in table
    # What is unsupported for one reason is said once for the requirements and once for the vectors.
    groups = re.findall(r"^(.*): my engine has no such function\n((?:  .+\n)+)\n", out, re.M)
    ids = [names.replace(",", "").split() for _, names in groups]
    assert [what for what, _ in groups] == [f"{len(ids[0])} unsupported", "vectors unsupported"]
    assert {"PLN-1", "GTH-6"} <= set(ids[0]) and set(ids[1]) == {"read_plan", "gather_rows"}
    for name in re.findall(r"\bpredict_active/\w+/\w+", out):
        assert any(vector.id == name for vector in read_vectors(SHIPPED))


def test_reasons_of_skipped_cases_are_printed_with_their_numbers(judge, report, adapter):
    source = """
from flashref.conformance.adapter import Unsupported
def read_plan(extents, block, max_gap):
    if len(extents) > 1 or block > 2**20:
        raise Unsupported(f"no {'large block' if block > 2**20 else 'second extent'}")
    return reference.read_plan(extents, block, max_gap)
"""
    words = adapter(source), "--requirements", "PLN-1"
    code, out = judge(*words)
    _, result = report(*words)
    [verdict], [group] = result["verdicts"], result["vectors"]
    assert set(verdict["skipped"]) <= {"no large block", "no second extent"} and verdict["cases"] > 0
    line = re.search(r"^PLN-1 +exact +pass +(\d+)  (\d+) skipped$", out, re.M)
    assert (int(line[1]), int(line[2])) == (verdict["cases"], sum(verdict["skipped"].values()))
    line = re.search(r"^read_plan +vectors +pass +(\d+)  (\d+) skipped$", out, re.M)
    assert int(line[1]) + int(line[2]) == group["cases"] and int(line[2]) == group["unsupported"]
    assert int(line[2]) == sum(group["skipped"].values())
    of = {reason: (verdict["skipped"][reason], group["skipped"][reason]) for reason in ["no second extent"]}
    cases, vectors = of["no second extent"]
    printed = out.partition("\nskipped, and so not judged:\n")[2].partition("\n\n")[0].splitlines()
    assert code == 0 and f"  {cases} cases and {vectors} vectors: no second extent" in printed
    assert len(printed) == len(set(verdict["skipped"]) | set(group["skipped"]))


def test_the_table_names_the_wrong_set_before_its_place(judge, adapter, monkeypatch):
    adapter(
        "def run_window(*of):\n    of = reference.run_window(*of)\n"
        "    return [[[[d[0], d[0], d[2]] for d in token] for token in tokens] for tokens in of]\n"
    )
    monkeypatch.setenv("COLUMNS", "80")
    _, out = judge("other", "--requirements", "WIN-4")
    wrong = r"evict, sequence 0, token 0, layer 0: got \[[\d, ]+\], expected \[\]"
    assert re.search(r"^WIN-4 +exact +fail +\d+  evict, sequence 0, token 0, layer 0: got…$", out, re.M)
    assert re.search(rf"\nWIN-4 \[exact\]: .*\n  fail: {wrong}; missing", out)
    assert re.search(rf"\nrun_window/by_hand/example \[vector of .*\n  fail: {wrong}\. The case", out)


def test_of_many_reasons_the_first_are_printed(judge, adapter):
    source = """
from flashref.conformance.adapter import Unsupported
def run_window(n, k, capacities, actives):
    if sum(map(len, actives)) > 1:
        raise Unsupported(f"no windows of {k} tokens and {capacities} rows")
    return reference.run_window(n, k, capacities, actives)
"""
    _, out = judge(adapter(source), "--requirements", "WIN-4", "--no-vectors")
    printed = out.partition("\nskipped, and so not judged:\n")[2].partition("\n\n")[0].splitlines()
    assert len(printed) == REASONS + 1
    assert re.fullmatch(r"  and \d+ more reasons, which --json lists", printed[-1])


@pytest.mark.ci
def test_no_folder_of_hypothesis_is_left(adapter, tmp_path):
    words = [sys.executable, "-m", "flashref", "conformance", adapter(), "--requirements", "FFN-4"]
    words += ["--profile", "dev", "--no-vectors"]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"other.py", "__pycache__"}


@pytest.mark.ci
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


@pytest.mark.ci
def test_a_vector_is_repeated_by_its_id(judge, adapter):
    code, out = judge(adapter(FORGETS), "--requirements", "PLN-2")
    name = re.search(r"repeat: flashref conformance other --repro (read_plan/\S+)\n", out)[1]
    code, out = judge(adapter(FORGETS), "--repro", name)
    assert code == 1 and out.startswith(f"{name} [vector of ")
    adapter()
    assert judge("other", "--repro", name) == (0, f"{name}: it passes now\n")


def test_many_failed_vectors_are_named_and_few_shown(judge, adapter):
    code, out = judge(adapter("def read_plan(*of): raise KeyError('plan')\n"), "--requirements", "PLN-2")
    assert code == 1
    assert len(re.findall(r" \[vector of PLN.*\]\n  raises: ", out)) == 3
    named = re.search(r"^(\d+) more vectors of read_plan failed:\n((?:  read_plan/\S+\n)+)\n", out, re.M)
    more, names = named.groups()
    assert names.count("\n") == int(more) > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name what to judge: an adapter .* or a --command, and not both"),
        (["a", "--command", "b"], "name what to judge: an adapter .* or a --command, and not both"),
        (
            [REFERENCE, "--requirements", "FFN-4", "FFN-999"],
            "no check is called 'FFN-999'; near it are FFN.*",
        ),
        ([REFERENCE, "--repro", "FFN-4"], "the case of FFN-4 is missing; copy both words .*"),
        (
            [REFERENCE, "--repro", "FFN-999", "eJw="],
            "no check is called 'FFN-999'; near it are FFN.*",
        ),
        ([REFERENCE, "--repro", "FFN-4", "eJw="], "the text is no case of the kit, or only a part .*"),
        ([REFERENCE, "--repro", "FFN-4", case_text([])], "the text is no case of FFN-4; copy both words .*"),
        ([REFERENCE, "--repro", "read_plan/no/such"], "no vector is called 'read_plan/no/such'; near .*"),
        (["other.py"], "'other.py' is a path, and an adapter is named as a module: try 'other'"),
        (["--command", ""], "the command is empty; name the program .*"),
        ([REFERENCE, "--deviations", "none.toml"], "none.toml: cannot be read: No such file .*"),
        (
            ["nothing.there"],
            "the adapter's module 'nothing.there' .* 'nothing'; put it into this folder .*, or install it",
        ),
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
    sentence = f"the conformance kit needs {package}; install flashref with its `test` extra"
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


@pytest.mark.parametrize("name", sampled(["SIGINT", "SIGTERM"], ["SIGINT"]))
def test_being_ended_kills_the_child_too(adapter, tmp_path, name):
    adapter("def read_plan(*of):\n    open('pid', 'a').write(f'{os.getpid()}\\n')\n    time.sleep(1000)\n")
    words = [sys.executable, "-m", "flashref", "conformance", "other", "--requirements", "PLN-2"]
    pid = tmp_path / "pid"
    with subprocess.Popen(words, env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        err = process.stderr.read()
    assert pid.read_text().count("\n") == 1  # it does not ask again, and wait again
    assert process.returncode == 128 + getattr(signal, name)
    assert err == (
        "flashref conformance: interrupted; nothing half-written was left\n" if name == "SIGINT" else ""
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.ci
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
