"""The stdio protocol on the kit's side: Command, and whatever a process can do instead of answering."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from stdio_messages import PLANNED, PREDICT, changed

from flashref.conformance.adapter import OPERATIONS, AdapterError, Unsupported
from flashref.conformance.transport.process import EngineProcess
from flashref.conformance.transport.stdio import Command
from flashref.conformance.transport.subject import Breach, Died, Refusal

ADAPTERS = Path(__file__).parents[1] / "adapters"
EMPTY = '{"dtype": "I64", "shape": [0], "data": ""}'


def wayward(how, *more, **options):
    """A Command whose engine goes wrong in predict_active."""
    return Command([sys.executable, "-IS", str(ADAPTERS / "wayward.py"), how, *more], **options)


def is_gone(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


def assert_next_call_is_answered(engine):
    engine.timeout = 60
    assert engine._process is None
    assert engine.call("read_plan", *PLANNED).tolist() == [[0, 16]]


@pytest.mark.req("IOP-6")
@pytest.mark.parametrize(
    ("how", "says"),
    [("sleep", "no answer within 0.5 s"), ("half", r"only '{\"seq\": ' within 0.5 s")],
)
def test_an_engine_that_falls_silent_hangs_and_is_started_again(how, says):
    with wayward(how) as engine:
        engine.timeout = 0.5
        process_id = engine._process._popen.pid
        with pytest.raises(Died, match=f"predict_active: {says}") as died:
            engine.call("predict_active", *PREDICT)
        assert died.value.kind == "hangs"
        assert is_gone(process_id)
        assert_next_call_is_answered(engine)


@pytest.mark.req("IOP-6")
def test_an_engine_that_does_not_read_hangs_too():
    big = np.zeros(1_250_000, np.float64)
    with (
        wayward("deaf", timeout=0.5) as engine,
        pytest.raises(Died, match="bytes of the request unread") as died,
    ):
        engine.call("predict_active", big, *PREDICT[1:])
    assert died.value.kind == "hangs"


@pytest.mark.req("IOP-6")
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("exit", "exited with status 3 instead of answering"),
        ("segfault", "killed by SIGSEGV"),
        ("close", "closed its stdout"),
        ('{"error": {"code": "protocol", "message": "what?"}}', "did not understand: what?"),
        ('{"seq": SEQ, "error": {"code": "protocol", "message": "what?"}}', "did not understand: what?"),
    ],
)
def test_an_engine_that_ends_crashes_and_is_started_again(how, says, monkeypatch):
    if how == "close":
        monkeypatch.setattr("flashref.conformance.transport.process.GRACE", 0.05)  # it does not end by itself
    with wayward(how) as engine:
        for _ in range(2):
            with pytest.raises(Died, match=says) as died:
                engine.call("predict_active", *PREDICT)
            assert died.value.kind == "crashes"
            assert_next_call_is_answered(engine)


GARBAGE = {
    "Segmentation fault (core dumped)": "one JSON object",
    "": "one JSON object",
    "[]": "must be one JSON object, not '\\[\\]'",
    f'{{"seq": 99, "result": {EMPTY}}}': "to message 1 is to another one",
    f'{{"seq": "SEQ", "result": {EMPTY}}}': "is to another one",
    f'{{"seq": true, "result": {EMPTY}}}': "is to another one",
    f'{{"result": {EMPTY}}}': "is to another one",
    '{"seq": SEQ}': "one of result, error, skip",
    '{"seq": SEQ, "answer": 1}': "one of result, error, skip",
    '{"seq": SEQ, "result": 1, "skip": {"reason": ""}}': "one of result, error, skip",
    '{"seq": SEQ, "error": "no"}': "has no such error",
    '{"seq": SEQ, "error": {}}': "has no such error",
    '{"seq": SEQ, "error": {"reason": "no"}}': "has no such error",
    '{"seq": SEQ, "error": {"code": "bad", "message": "no"}}': "has no such error",
    '{"seq": SEQ, "error": {"code": ["refused"], "message": "no"}}': "has no such error",
    '{"seq": SEQ, "error": {"code": "refused", "message": 5}}': "has no such error",
    '{"seq": SEQ, "error": {"code": "refused"}}': "has no such error",
    '{"seq": SEQ, "error": {"code": "misbehaves", "message": "no"}}': "has no such error",
    '{"seq": SEQ, "skip": {}}': "has no such skip",
    '{"seq": SEQ, "skip": null}': "has no such skip",
    f'{{"seq": SEQ, "result": {EMPTY}}}\nand more': "more than one line: 'and more' follows",
    "x" * 500: "x{200}…",
    "\ufffe".encode("utf-16").decode("latin-1"): "one JSON object",
}


@pytest.mark.req("IOP-8", "IOP-9")
@pytest.mark.parametrize(("line", "says"), GARBAGE.items())
def test_a_line_that_is_no_answer_is_garbage(line, says):
    if line == "x" * 500:
        line = f'["{line}"]'
        says = f'\\["{says[:-1].replace("200", "198")}…'
    with wayward(line) as engine:
        with pytest.raises(Died, match=f"predict_active: .*{says}") as died:
            engine.call("predict_active", *PREDICT)
        assert died.value.kind == "garbage"
        assert_next_call_is_answered(engine)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"seq": SEQ, "error": {"message": "no such id", "code": "refused"}}', Refusal),
        ('{"seq": SEQ, "skip": {"reason": "no such id"}}', Unsupported),
    ],
)
@pytest.mark.req("IOP-7")
def test_a_refusal_or_a_skip_leaves_the_process(line, expected):
    with wayward(line) as engine:
        process = engine._process
        for _ in range(2):
            with pytest.raises(expected, match=r"^no such id$"):
                engine.call("predict_active", *PREDICT)
        assert engine.call("read_plan", *PLANNED).tolist() == [[0, 16]]
        assert engine._process is process


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ('{"dtype": "F32", "shape": [0], "data": ""}', None),
        ('{"dtype": "F32", "shape": [1], "data": "AAAAAA=="}', "float32"),
        ('{"dtype": "I64", "shape": [1, 0], "data": ""}', "shape"),
        ('{"dtype": "I64", "shape": [-1], "data": ""}', "do not fit"),
        ('{"dtype": "I64", "shape": [1], "data": ""}', "do not fit"),
        ("0.5", "decimals lose bits"),
        ("[[1], 2]", "no type"),
        ("null", "shape"),
        ("[1, 2]", None),
    ],
)
@pytest.mark.req("IOP-2", "IOP-10")
def test_a_result_of_the_wrong_type_is_a_breach_and_the_process_stays(result, says):
    with wayward(f'{{"seq": SEQ, "result": {result}}}') as engine:
        process = engine._process
        if says is None:
            assert engine.call("predict_active", *PREDICT).dtype == np.int64
        else:
            with pytest.raises(Breach, match=says) as breach:
                engine.call("predict_active", *PREDICT)
            assert breach.value.kind == "wrong type"
        assert engine._process is process


@pytest.mark.req("IOP-3", "IOP-4")
def test_what_serve_caught_is_a_breach_here():
    error = '{"code": "misbehaves", "kind": "changes inputs", "message": "it changed x"}'
    with wayward(f'{{"seq": SEQ, "error": {error}}}') as engine:
        with pytest.raises(Breach, match="it changed x") as breach:
            engine.call("predict_active", *PREDICT)
        assert breach.value.kind == "changes inputs"


def test_the_end_of_stderr_is_in_the_message():
    with wayward("noise") as engine, pytest.raises(Died) as died:
        engine.call("predict_active", *PREDICT)
    _, tail = str(died.value).split("; its stderr ends: ")
    assert tail.endswith("noise and the last word")
    assert 1900 < len(tail) <= 2000


def test_all_that_the_engine_started_ends_with_it(tmp_path):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    with wayward("child", str(fifo), timeout=0.5) as engine:
        descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(Died, match="no answer"):
            engine.call("predict_active", *PREDICT)
        os.set_blocking(descriptor, True)
        assert os.read(descriptor, 1) == b""  # no writer is left
        os.close(descriptor)


@pytest.mark.req("IOP-8")
def test_closing_tells_the_engine_to_stop(tmp_path):
    *_, facts = with_facts()
    script = 'read line; echo "$1"; read line; echo "$line" > "$2"'
    with Command(["sh", "-c", script, "sh", facts, str(tmp_path / "told")]):
        pass
    assert json.loads((tmp_path / "told").read_text()) == {"cmd": "stop"}


def test_restart_gives_another_process():
    with wayward("exit") as engine:
        first = engine._process._popen.pid
        engine.restart()
        second = engine._process._popen.pid
        assert second != first
        assert is_gone(first)
        assert engine.call("read_plan", *PLANNED).tolist() == [[0, 16]]
    assert is_gone(second)


def test_closing_frees_everything_also_of_an_engine_that_does_not_stop(monkeypatch):
    monkeypatch.setattr("flashref.conformance.transport.process.GRACE", 0.05)
    before = sorted(os.listdir("/dev/fd"))
    for how in ("stubborn", "deaf", "exit"):
        with wayward(how) as engine:
            process = engine._process
            if how == "exit":
                with pytest.raises(Died):
                    engine.call("predict_active", *PREDICT)
        engine.close()  # once more is once too many, and harmless
        assert process._popen.returncode is not None
        assert process._stderr.closed
    assert sorted(os.listdir("/dev/fd")) == before


def test_a_process_is_told_to_stop_and_its_own_status_is_given(tmp_path, monkeypatch):
    told = tmp_path / "told"
    process = EngineProcess(["sh", "-c", f'read line; echo "$line" > {told}; exit 5'])
    process.stop(b"stop now\n")
    assert (process.status(), told.read_text(), process.end()) == (5, "stop now\n", "")
    monkeypatch.setattr("flashref.conformance.transport.process.GRACE", 0.05)
    process = EngineProcess(["sleep", "60"])
    assert process.status() is None
    process.end()


def test_an_interrupted_exchange_ends_the_process(monkeypatch):
    with wayward("sleep") as engine:
        process = engine._process

        def ask(request, timeout):
            raise KeyboardInterrupt

        monkeypatch.setattr(process, "ask", ask)
        with pytest.raises(KeyboardInterrupt):
            engine.call("predict_active", *PREDICT)
        assert process._popen.returncode is not None
        assert_next_call_is_answered(engine)


def with_facts(**fields):
    """The command of an engine whose first answer has these fields."""
    reasons = dict.fromkeys(OPERATIONS, "not here")
    facts = {"protocol": 1, "name": "a", "version": "1", "operations": [], "unsupported": reasons}
    facts |= {"dtypes": ["F32"], "accumulate": "F32", "flushes_subnormals": False}
    return printing(json.dumps(changed(facts, **fields)))


def printing(text):
    return ["sh", "-c", 'read line; printf "%s\\n" "$1"; read line', "sh", text]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/nowhere/an-engine --stdio", "'/nowhere/an-engine --stdio' cannot be started: .*No such file"),
        (str(ADAPTERS), "cannot be started: .*Permission denied"),
        ("", "the command is empty"),
        ('"engine', "cannot be split into words"),
        ("true", "is no adapter: it exited with status 0 instead of answering"),
        (["sh", "-c", "echo out of memory >&2; exit 4"], "status 4 .*; its stderr ends: out of memory"),
        ("cat", "it repeats what it is sent instead of answering"),
        (printing("hello"), "one JSON object"),
        (printing('{"error": {"code": "protocol", "message": "not today"}}'), "'not today'"),
        (with_facts(protocol=2), "speaks protocol 2, not 1"),
        (with_facts(protocol="1"), "speaks protocol '1', not 1"),
        (with_facts(name=...), "the first answer lacks name; its fields are protocol, language, name"),
        (with_facts(mood="good"), "the first answer has the unknown mood; its fields are"),
        (with_facts(name=5), "name in the first answer must be a text"),
        (with_facts(unsupported=[]), "unsupported in the first answer must be an object"),
        (with_facts(operations="read_plan"), "operations in the first answer must be a list"),
        (with_facts(operations=[["read_plan"]]), "lists of names"),
        (with_facts(dtypes=[32]), "lists of names"),
        (with_facts(dtypes=["F8"]), "dtypes must be some of"),
        (with_facts(accumulate="F16"), "accumulate must be"),
        (with_facts(flushes_subnormals="no"), "flushes_subnormals must be"),
        (with_facts(max_elements=0), "max_elements must be"),
        (with_facts(unsupported=dict.fromkeys(OPERATIONS, 3)), "a reason for each operation"),
        (with_facts(unsupported={"logits": "no"}), "neither provides nor gives a reason"),
        (with_facts(operations=["logits"]), "provides logits and calls it unsupported"),
    ],
)
@pytest.mark.req("IOP-1")
def test_a_command_that_is_no_adapter_is_one_sentence(command, says):
    before = sorted(os.listdir("/dev/fd"))
    with pytest.raises(AdapterError, match=says) as error:
        Command(command)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir("/dev/fd")) == before


@pytest.mark.req("IOP-11")
@pytest.mark.parametrize("status", [0, 4])
def test_the_last_words_of_a_process_come_with_its_exit_status(status):
    *_, facts = with_facts()
    script = 'read line; echo "$1"; read line; echo "sorry"; exit "$2"'
    with Command(["sh", "-c", script, "sh", facts, str(status)]) as engine:
        assert engine.last_words([b"one", b"two"]) == (b"sorry", status)


@pytest.mark.req("IOP-1")
def test_facts_that_may_be_absent_may_be_there():
    with Command(with_facts(language="sh", max_elements=64)) as engine:
        assert engine.facts.max_elements == 64
        assert engine.facts.name == "a"
        with pytest.raises(Unsupported, match="not here"):
            engine.call("logits", "", np.int64([1]), "exact")


def test_an_engine_that_does_not_start_in_time_is_no_adapter():
    with pytest.raises(AdapterError, match=r"no answer within 0\.2 s"):
        Command("sleep 1000", start_timeout=0.2)
