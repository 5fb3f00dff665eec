"""The command line itself: version and help, signals, pipes and terminals, and the errors of the system."""

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import opt_runs
import pytest
from opt_runs import sentence

import flashref
from flashref.cli import main, paper
from flashref.cli.program import Parser
from flashref.models import decoding

pytestmark = opt_runs.IGNORED_WARNINGS
no_waiting_for_the_disk = opt_runs.no_waiting_for_the_disk
model = opt_runs.model
run = opt_runs.run


def test_the_version_and_help(capsys):
    for words, told in (
        (["--version"], f"flashref {flashref.__version__}, spec {flashref.SPEC_VERSION}\n"),
        (["run", "--help"], "--perplexity-tokens"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0 and told in capsys.readouterr().out


def test_help_ends_no_line_at_a_hyphen(monkeypatch):
    """A word with a hyphen, such as an option's name, can be searched for and copied."""
    parser = Parser(prog="x", description="first-second " * 20)
    parser.add_subparsers().add_parser("y", help="third-fourth " * 20)
    parser.add_argument("--z", help="fifth-sixth " * 20)
    for width in range(40, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        words = parser.format_help().split()
        for word in ("first-second", "third-fourth", "fifth-sixth"):
            assert words.count(word) == 20


def test_help_says_what_each_command_does_beside_its_name(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for command in (
        "run",
        "pack",
        "train",
        "vectors",
        "conformance",
        "calibrate",
        "simulate",
        "paper",
        "spec",
    ):
        assert [len(words) > 1 for words in lines if words[:1] == [command]] == [True]


def test_no_command_is_a_mistake(capsys):
    for words in ([], ["walk"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "" and err.count("\n") == 1 and "flashref --help" in err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["conformnce"], "conformance"),
        (["run", "--memry", "0.5"], "--memory"),
        (["run", "--tokns=3"], "--tokens"),
        (["conformance", "a", "--profile", "dve"], "dev"),
        (["vectors", "chek"], "check"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(capsys, words, near):
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert f"(did you mean {near}?); see flashref " in err


def test_other_errors_of_the_system_are_one_sentence_too(run, monkeypatch):
    def gone(*_):
        raise OSError(errno.EIO, "Input/output error", "/dev/sda")

    monkeypatch.setattr(decoding, "decode_layer", gone)
    assert sentence(run()) == "/dev/sda: Input/output error; check the path, its permissions and the disk"


def started(code, *words, **options):
    """Python that runs some code and then `flashref`, in a process of its own."""
    # What is started in the background ignores Ctrl-C, and so would its children.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    lines = (
        f"import sys, os, time\n{heard}\n{code}\nfrom flashref.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    path = os.pathsep.join([str(Path(flashref.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", lines, *map(str, words)], env=environment, text=True, **options
    )


def few(model):
    return ["run", "--model", model, "--tokens", "3", "--memory", "0.95", "--perplexity-tokens", "9"]


@pytest.mark.parametrize("output", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(model, output):
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started("sys.stdin.readline()", *few(model), *output, stdin=subprocess.PIPE, **both) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


SLEEP = "(print('asleep', file=sys.stderr, flush=True), time.sleep(60))"


@pytest.mark.parametrize(
    "code",
    [
        f"os.fsync = lambda descriptor: {SLEEP}",  # packing: all is written, nothing has its name
        f"import flashref.models.decoding as f; f.decode_layer = lambda *a: {SLEEP}",
    ],
)
def test_ctrl_c_leaves_nothing(model, tmp_path, code):
    (tmp_path / "image").mkdir()
    words = [*few(model), "--image", tmp_path / "image" / "x"]
    if "decode_layer" in code:
        words = words[:-2]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(code, *words, env={"TMPDIR": str(tmp_path)}, **both) as process:
        assert process.stderr.readline() == "asleep\n"
        if "decode_layer" in code:
            assert len(list(tmp_path.iterdir())) == 2
        else:
            assert len(list((tmp_path / "image").iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "flashref run: interrupted; nothing half-written was left\n"
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["image"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_being_ended_leaves_nothing(model, tmp_path, name):
    code = f"import flashref.models.decoding as f; f.decode_layer = lambda *a: {SLEEP}"
    with started(code, *few(model), env={"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE) as process:
        assert process.stderr.readline() == "asleep\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(getattr(signal, name))
        assert process.stderr.read() == ""
    assert process.returncode == 128 + getattr(signal, name)
    assert list(tmp_path.iterdir()) == []


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_during_garbage_collection_is_not_lost(monkeypatch, number):
    # Python drops what a callback of the collector raises, and JAX has such a callback.
    def callback(phase, _):
        if phase == "stop":
            signal.raise_signal(number)

    def working(_):
        gc.callbacks.append(callback)
        gc.collect()
        gc.callbacks.remove(callback)
        threading.Event().wait(20)

    monkeypatch.setattr(paper, "run", working)
    before = signal.signal(number, signal.default_int_handler)  # what runs in the background ignores Ctrl-C
    try:
        assert main(["paper"]) == 128 + number
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_is_ignored_stays_so(monkeypatch, number):
    def working(_):
        signal.raise_signal(number)
        return 0

    monkeypatch.setattr(paper, "run", working)
    before = signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        assert main(["paper"]) == 0
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_closed_stdout_is_a_mistake_before_the_work(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["spec"]) == 2
    sentence = "flashref: stdout is closed, so no result could be shown; send it to a file or a pipe\n"
    assert capsys.readouterr().err == sentence


LOADING = """
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from flashref.cli import command
command()
"""


@pytest.mark.parametrize("module", ["argparse", "numpy", "flashref.types", "rich", "flashref.cli.vectors"])
def test_ctrl_c_while_modules_load_is_one_line(module):
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(LOADING.format(module=module), "spec", **both) as process:
        assert process.stderr.read() == "flashref: interrupted\n"
    assert process.returncode == 130


def test_a_terminal_that_is_not_unicode_gets_question_marks(model):
    process = started("", *few(model), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    out, _ = process.communicate()
    assert process.returncode == 0 and out.isascii() and "?" in out


@pytest.mark.parametrize(
    ("code", "jax", "abrupt"), [(130, True, True), (143, True, True), (2, True, False), (130, False, False)]
)
def test_a_process_that_is_ended_while_jax_computes_ends_without_teardown(monkeypatch, code, jax, abrupt):
    # Its threads crash an interpreter that is torn down meanwhile: 3 of 18 interrupts of `train` did.
    monkeypatch.setattr(flashref.cli, "main", lambda: code)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    if jax:
        monkeypatch.setitem(sys.modules, "jax", object())
    ends = []
    monkeypatch.setattr("os._exit", ends.append)
    with pytest.raises(SystemExit) as ended:
        flashref.cli.command()
    assert ended.value.code == code and ends == ([code] if abrupt else [])
