"""The kit's suite under pytest, in another process and another folder, as a third party has it."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import conformance_runs
import plain_engine
import pytest
from conformance_runs import ENVIRONMENT, FORGETS, HEAD, KIT, REFERENCE, deviation, kinds

from flashref import SPEC_VERSION
from flashref.conformance.adapter import load_adapter
from flashref.conformance.checks import CHECKS
from flashref.conformance.judging.runner import profile_settings, property_of
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.subject import InProcess

README = (KIT / "README.md").read_text(encoding="utf-8")
adapter = conformance_runs.adapter
judge = conformance_runs.judge


REGISTERED = importlib.metadata.entry_points(group="pytest11", name="flashref")
PLUGIN = [] if REGISTERED else ["-p", "flashref.conformance.plugin"]


def suite(folder, *words, expect):
    """Runs the suite in a folder; its output."""
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:cacheprovider", *map(str, words)]
    environment = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("CI", "HYPOTHESIS_PROFILE")
    }
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


SUITE = ["--pyargs", "flashref.conformance.suite", "--flashref-profile", "dev"]


SOME = "FFN-4 or WIN-6 or PLN-1 or by_hand"
REFUSALS = "TYP-2 or FFN-9 or IOP-7 or run_window/refusals or sparse_ffn/refusals"


@pytest.fixture
def readmes_adapter(tmp_path):
    """The adapter of the kit's page on an engine that checks nothing, in a project with habits of its own.

    Returns what the suite is called with.
    """
    for name in ("my_adapter", "refusals"):
        source = re.search(rf"```python\n(# {name}.py\n.*?)```", README, re.S)[1]
        assert len(source.splitlines()) <= 35
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "my_engine.py").write_text(Path(plain_engine.__file__).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\npython_functions = check_*\n")
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def mine(monkeypatch):\n    monkeypatch.setenv('A', 'B')\n"
    )
    return *SUITE, "--flashref-adapter", "my_adapter"


@pytest.mark.ci
def test_the_readmes_adapter_passes_from_outside_the_checkout(tmp_path, readmes_adapter):
    words = *readmes_adapter, "-k", f"{SOME} or {REFUSALS}", "-v", "-rs", "--flashref-report", "one.json"
    out = suite(tmp_path, *words, expect=0)
    assert "my engine 0.3" in out
    assert f"spec {SPEC_VERSION}: 5 pass, 0 deviate, 1 unsupported, 0 fail; vectors: " in out
    assert "PLN-1 unsupported: my engine has no such function (it lacks read_plan)" in out
    ids = re.findall(r"^(flashref\.conformance\.suite::\S+) (?:PASSED|SKIPPED)", out, re.M)
    names = "TYP-2", "FFN-9", "FFN-4", "WIN-6", "PLN-1", "IOP-7"
    assert ids[:6] == [f"flashref.conformance.suite::test_requirement[{name}]" for name in names]
    assert "flashref.conformance.suite::test_vector[run_window/by_hand/example]" in ids
    result = json.loads((tmp_path / "one.json").read_text())
    assert kinds(result) == dict.fromkeys(names, "pass") | {"PLN-1": "unsupported"}
    assert result["name"] == "my engine"


@pytest.mark.ci
def test_the_readmes_adapter_passes_on_an_engine_with_two_activations(tmp_path, readmes_adapter):
    with (tmp_path / "my_engine.py").open("a") as engine:
        engine.write('for name in ACTIVATIONS.keys() - {"relu", "silu"}:\n    del ACTIVATIONS[name]\n')
    words = *readmes_adapter, "-k", "FFN-4 or FFN-9 or IOP-7 or IOP-2 or sparse_ffn", "-rs"
    out = suite(tmp_path, *words, expect=0)
    assert f"spec {SPEC_VERSION}: 4 pass, 0 deviate, 0 unsupported, 0 fail; vectors: " in out
    assert "my engine has no squared_relu" in out


@pytest.mark.ci
def test_two_workers_judge_as_one_and_a_printed_id_names_its_test(tmp_path, readmes_adapter):
    for name, workers in (("one.json", "-n0"), ("two.json", "-n2")):
        suite(tmp_path, *readmes_adapter, "-k", SOME, workers, "--flashref-report", name, expect=0)
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    words = *readmes_adapter[2:], "-q", "--pyargs", "flashref.conformance.suite::test_requirement[WIN-6]"
    out = suite(tmp_path, *words, expect=0)
    assert f"spec {SPEC_VERSION}: 1 pass, 0 deviate, 0 unsupported, 0 fail\n" in out


def test_a_failure_in_the_suite_is_what_the_command_shows_and_no_traceback(adapter, tmp_path, judge):
    adapter(FORGETS)
    (tmp_path / "deviations.toml").write_text(
        deviation(requirement="WIN-6", reason="see issue 12")
        + deviation(case="read_plan/plans/no_extents", reason="never")
    )
    words = *SUITE, "--flashref-adapter", "other", "--flashref-deviations", "deviations.toml"
    out = suite(
        tmp_path, *words, "-k", "PLN-2 or WIN-6 or no_extents", "-rs", "--flashref-report", "r.json", expect=1
    )
    sentence = requirements()["PLN-2"].sentence
    assert f"\nPLN-2 [exact]: {sentence} (specs/52-plan.md)\n  fail: " in out
    assert "Traceback" not in out and "runner.py" not in out and "Falsifying" not in out
    assert "WIN-6 deviates: see issue 12" in out
    assert re.search(
        r"\nread_plan/plans/no_extents \[vector of .*\n  fail: passes now; remove the deviation \(never", out
    )
    assert (
        f"spec {SPEC_VERSION}: 0 pass, 1 deviate, 0 unsupported, 1 fail; vectors: 0 pass, 0 deviate, " in out
    )
    text = re.search(r"repeat: flashref conformance other --repro PLN-2 '(\S+)'", out)[1]
    assert json.loads((tmp_path / "r.json").read_text())["verdicts"][1]["repeat"] == text
    assert judge("other", "--repro", "PLN-2", text)[0] == 1


@pytest.mark.ci
def test_the_suite_survives_a_command_that_crashes(adapter, tmp_path):
    adapter("def read_plan(*of): os._exit(3)\ndef gather_rows(*of): return 7\n")
    line = f"{shlex.quote(sys.executable)} -m flashref.conformance other"
    words = *SUITE, "--flashref-command", line, "-k", "PLN-2 or WIN-6 or GTH-1 or no_extents", "-v"
    out = suite(tmp_path, *words, expect=1)
    assert re.findall(r"::(\S+) (PASSED|FAILED)", out) == [
        ("test_requirement[WIN-6]", "PASSED"),
        ("test_requirement[PLN-2]", "FAILED"),
        ("test_requirement[GTH-1]", "FAILED"),
        ("test_vector[read_plan/plans/no_extents]", "FAILED"),
    ]
    assert "crashes: read_plan: it exited with status 3 instead of answering" in out
    assert f"repeat: flashref conformance --command {shlex.quote(line)} --repro PLN-2 " in out


MISTAKES = [
    (
        [],
        "ERROR: name what to judge: --flashref-adapter MODULE:ATTRIBUTE, or --flashref-command 'PROGRAM'",
        4,
    ),
    (["--flashref-adapter", "a", "--flashref-command", "b"], "ERROR: name --flashref-adapter or .* both", 4),
    (["--flashref-adapter", "a", "--flashref-examples", "0"], "ERROR: --flashref-examples must be .* 0", 4),
    (["--flashref-adapter", "a", "--flashref-report", "no/r"], "ERROR: --flashref-report no/r: cannot .*", 4),
    (["--flashref-adapter", "nothing.there"], "the adapter's module 'nothing.there' cannot be .*", 2),
    (["--flashref-adapter", REFERENCE, "--flashref-deviations", "no"], "no: cannot be read: .*", 2),
    (["--flashref-command", "./nothing"], "the command './nothing' cannot be started: .*", 2),
    # No mistake of the options, but nothing that could pass either.
    (
        ["--flashref-adapter", "empty", "-k", "PLN-1 or PLN-2"],
        ".*; nothing was judged: no operation ran .*",
        1,
    ),
]
EMPTY = """
from flashref.conformance.adapter import OPERATIONS
unsupported = dict.fromkeys(OPERATIONS, 'not yet')
"""
EACH = """
import json, sys, pytest
for words in json.loads(sys.argv[1]):
    print("=== status", int(pytest.main(words)), flush=True)
"""


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """What pytest says to each of MISTAKES, one process for all of them, and the exit status."""
    words = [[*PLUGIN, "-p", "no:cacheprovider", *SUITE, *words, "-q"] for words, _, _ in MISTAKES]
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty.py").write_text(EMPTY)
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(words)],
        env=ENVIRONMENT,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    parts = re.split(r"^=== status (\d+)\n", done.stdout, flags=re.M)
    return list(zip(parts[::2], map(int, parts[1::2]), strict=False))


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_in_the_suites_options_is_one_sentence(mistakes, number):
    _, sentence, code = MISTAKES[number]
    out, status = mistakes[number]
    assert status == code
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


@pytest.mark.ci
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
    words = "--pyargs", "flashref.conformance.suite", "--flashref-adapter", "other", "-k", "PLN-4", "-q"
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
