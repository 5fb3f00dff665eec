"""The stdio protocol: both sides, every message, and whatever a process can do instead of answering."""

import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from random_calls import BAD, VALID, small

from flashref import SPEC_VERSION
from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS, AdapterError, Unsupported
from flashref.conformance.codec import from_json, to_json
from flashref.conformance.stdio import Command, serve
from flashref.conformance.subject import Breach, Died, InProcess, Refused, unchanged
from flashref.types import widen

HERE = Path(__file__).parent
ROOT = HERE.parent
START = {"cmd": "start", "protocol": 1, "spec": SPEC_VERSION}
PLAN_ARGS = {"extents": to_json(np.int64([[5, 2]])), "block": 16, "max_gap": 0}
PLAN = {"cmd": "run", "seq": 7, "operation": "read_plan", "args": PLAN_ARGS}
PLANNED = (np.int64([[5, 2]]), 16, 0)
PREDICT = (np.float32([1]), np.float32([[1]]), np.float32([[1]]), None, 0.0)
EMPTY = '{"dtype": "I64", "shape": [0], "data": ""}'


def exchange(adapter, *messages):
    """(status, answers) of `serve`; a message is an object, or a line of bytes."""
    out = io.BytesIO()
    lines = [m if isinstance(m, bytes) else json.dumps(m).encode() + b"\n" for m in messages]
    status = serve(adapter, lines, out)
    return status, [json.loads(line) for line in out.getvalue().splitlines()]


def planner(read_plan, **attributes):
    """An adapter that only plans."""
    unsupported = dict.fromkeys(set(OPERATIONS) - {"read_plan"}, "not here")
    return types.SimpleNamespace(**{"read_plan": read_plan, "unsupported": unsupported} | attributes)


def wayward(how, *more, **options):
    """A Command whose engine goes wrong in predict_active."""
    return Command([sys.executable, "-IS", str(HERE / "adapters" / "wayward.py"), how, *more], **options)


# --- serve ---


@pytest.mark.req("IOP-1", "IOP-8")
def test_the_first_answer_has_the_facts_and_stop_has_none():
    adapter = planner(lambda *_: [], name="planner", version="2", dtypes={"F16"}, accumulate="F64")
    status, [facts] = exchange(adapter, START, {"cmd": "stop"})
    assert status == 0
    assert facts.pop("unsupported") == adapter.unsupported
    assert facts == {
        "protocol": 1, "name": "planner", "version": "2", "language": "python", "operations": ["read_plan"],
        "dtypes": ["F16"], "accumulate": "F64", "flushes_subnormals": False, "max_elements": None,
    }  # fmt: skip


@pytest.mark.req("IOP-8", "IOP-9", "IOP-10")
def test_an_answer_is_one_line_with_the_seq_and_the_bytes():
    out = io.BytesIO()
    assert serve(reference, [json.dumps(START).encode(), json.dumps(PLAN).encode()], out) == 0
    line = b'{"seq":7,"result":{"dtype":"I64","shape":[1,2],"data":"AAAAAAAAAAAQAAAAAAAAAA=="}}\n'
    assert out.getvalue().splitlines(keepends=True)[1] == line


def test_every_answer_is_flushed_before_the_next_line_is_read():
    log = []
    answers = types.SimpleNamespace(write=log.append, flush=lambda: log.append("flushed"))

    def requests():
        for message in (START, PLAN, {"cmd": "stop"}):
            log.append("read")
            yield json.dumps(message).encode()

    serve(reference, requests(), answers)
    assert [entry for entry in log if isinstance(entry, str)] == ["read", "flushed"] * 2 + ["read"]


def raising(error):
    def read_plan(*_):
        raise error

    return read_plan


@pytest.mark.req("IOP-7")
@pytest.mark.parametrize("error", [ValueError, IndexError, TypeError, OverflowError])
def test_a_refusal_is_an_error_and_the_next_call_is_answered(error):
    calls = iter([raising(error("too large")), lambda *_: [(0, 16)]])
    adapter = planner(lambda *arguments: next(calls)(*arguments))
    status, [_, refused, answered] = exchange(adapter, START, PLAN, PLAN)
    assert status == 0
    assert refused == {"seq": 7, "error": {"code": "refused", "message": f"{error.__name__}: too large"}}
    assert from_json(answered["result"]).tolist() == [[0, 16]]


def test_what_is_not_provided_or_not_run_is_skipped():
    logits = {"model_dir": "", "token_ids": to_json(np.int64([1])), "predictor": "exact"}
    run = {"cmd": "run", "seq": 1, "operation": "logits", "args": logits}
    _, [_, missing, case] = exchange(planner(raising(Unsupported("one read only"))), START, run, PLAN)
    assert missing == {"seq": 1, "skip": {"reason": "not here"}}
    assert case == {"seq": 7, "skip": {"reason": "one read only"}}


def changes_inputs(extents, block, max_gap):
    extents[0] = 0
    return [(0, 16)]


def overwrites(scratch):
    def read_plan(extents, block, max_gap):
        scratch[:] += 16
        return scratch

    return read_plan


@pytest.mark.parametrize(
    ("read_plan", "kind"),
    [
        pytest.param(changes_inputs, "changes inputs", marks=pytest.mark.req("IOP-3")),
        pytest.param(overwrites(np.int64([[0, 16]])), "overwrites results", marks=pytest.mark.req("IOP-4")),
        pytest.param(lambda *_: np.float32([[0, 16]]), "wrong type", marks=pytest.mark.req("IOP-2")),
        pytest.param(lambda *_: "many", "wrong type", marks=pytest.mark.req("IOP-2")),
        (raising(ZeroDivisionError("by zero")), "raises"),
    ],
)
def test_serve_catches_what_an_adapter_may_not_do(read_plan, kind):
    status, answers = exchange(planner(read_plan), START, PLAN, PLAN)
    assert status == 0
    error = answers[2]["error"]
    assert (error["code"], error["kind"]) == ("misbehaves", kind)
    assert "read_plan" in error["message"]


@pytest.mark.req("IOP-1")
def test_facts_that_contradict_each_other_are_no_adapter():
    with pytest.raises(AdapterError, match="provides"):
        serve(planner(print, unsupported=dict.fromkeys(OPERATIONS, "no")), [], io.BytesIO())


def changed(message, **fields):
    return {key: value for key, value in (message | fields).items() if value is not ...}


NO_MESSAGES = {
    "not JSON": b"start\n",
    "no object": b"[]\n",
    "half an object": b'{"cmd": "stop"\n',
    "UTF-16": '{"cmd": "stop"}\n'.encode("utf-16-le"),
    "no UTF-8": '{"cmd": "stop", "ä": 1}\n'.encode("latin-1"),
    "nested too deeply": b"[" * 100_000 + b"\n",
    "no line": b"\n",
    "no cmd": {},
    "unknown cmd": {"cmd": "walk"},
    "cmd of another kind": {"cmd": ["run"]},
    "unknown protocol": changed(START, protocol=2),
    "protocol as text": changed(START, protocol="1"),
    "unknown field of start": changed(START, hello=1),
    "missing field of start": changed(START, spec=...),
    "unknown field of stop": {"cmd": "stop", "now": True},
}
NO_RUNS = {
    "start twice": START,
    "unknown field": changed(PLAN, timeout=1),
    "missing seq": changed(PLAN, seq=...),
    "missing args": changed(PLAN, args=...),
    "seq as text": changed(PLAN, seq="7"),
    "unknown operation": changed(PLAN, operation="fly"),
    "operation of another kind": changed(PLAN, operation=3),
    "args as a list": changed(PLAN, args=[]),
    "unknown parameter": changed(PLAN, args=PLAN_ARGS | {"gap": 0}),
    "missing parameter": changed(PLAN, args={"block": 16, "max_gap": 0}),
    "another parameter": changed(PLAN, args=changed(PLAN_ARGS, block=..., blocks=16)),
    "too few bytes": changed(
        PLAN, args=PLAN_ARGS | {"extents": {"dtype": "I64", "shape": [9], "data": "AA=="}}
    ),
    "no base64": changed(PLAN, args=PLAN_ARGS | {"extents": {"dtype": "U8", "shape": [3], "data": "AA?A"}}),
    "too many bytes": changed(
        PLAN, args=PLAN_ARGS | {"extents": {"dtype": "U8", "shape": [1], "data": "AAAA"}}
    ),
    "unknown dtype": changed(PLAN, args=PLAN_ARGS | {"extents": {"dtype": "F8", "shape": [0], "data": ""}}),
    "a decimal float": changed(PLAN, args=PLAN_ARGS | {"max_gap": 0.5}),
}
BAD_LINES = {**{name: [line] for name, line in NO_MESSAGES.items()}, "run before start": [PLAN]}
BAD_LINES |= {name: [START, line] for name, line in NO_RUNS.items()}


@pytest.mark.req("IOP-11")
@pytest.mark.parametrize("lines", BAD_LINES.values(), ids=BAD_LINES)
def test_what_is_not_understood_is_an_error_and_the_end(lines):
    status, answers = exchange(reference, *lines, START)
    assert status == 1
    assert len(answers) == len(lines)
    assert answers[-1]["error"]["code"] == "protocol"
    assert answers[-1].get("seq") in (None, 7, "7")


# --- python -m flashref.conformance ---

CHATTY = """
import os, sys
print("imported")
unsupported = dict.fromkeys({others!r}, "not here")
def read_plan(extents, block, max_gap):
    print("planning")
    os.write(1, b"straight to the descriptor")
    assert sys.stdin.read() == ""
    return [(0, 16)]
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Text of an adapter → the words of a command that serves it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    def words(text):
        (tmp_path / "an_adapter.py").write_text(text)
        return [sys.executable, "-m", "flashref.conformance", "an_adapter"]

    return words


@pytest.mark.req("IOP-8")
def test_an_adapter_may_print_and_read(served):
    with Command(served(CHATTY.format(others=sorted(set(OPERATIONS) - {"read_plan"})))) as engine:
        assert engine.facts.operations == {"read_plan"}
        for _ in range(2):
            assert engine.call("read_plan", *PLANNED).tolist() == [[0, 16]]
        with pytest.raises(Unsupported, match="not here"):
            engine.call("predict_active", *PREDICT)


@pytest.mark.parametrize(
    ("text", "says"),
    [("import nothing_of_this_name", "cannot be imported"), ("", "neither provides")],
)
def test_an_adapter_that_cannot_be_loaded_is_one_sentence(served, text, says):
    ended = subprocess.run(served(text), input=b"", capture_output=True)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert says in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    with pytest.raises(AdapterError, match=says):
        Command(served(text))


def test_the_module_takes_one_word(served):
    ended = subprocess.run([*served("")[:-1]], input=b"", capture_output=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"usage: ")


@pytest.mark.req("IOP-2", "IOP-5", "IOP-6")
def test_the_reference_behind_a_process_gives_the_bits_that_it_gives_here(served):
    here = InProcess(reference)
    with Command([*served("")[:-1], "flashref.conformance.reference"]) as engine:
        assert engine.facts == here.facts
        for operation in VALID:
            arguments = VALID[operation](np.random.default_rng(1))
            assert unchanged(engine.call(operation, *arguments), here.call(operation, *arguments))


# --- Command ---


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
        monkeypatch.setattr("flashref.conformance.process.GRACE", 0.05)  # it does not end by itself
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
        ('{"seq": SEQ, "error": {"message": "no such id", "code": "refused"}}', Refused),
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
    monkeypatch.setattr("flashref.conformance.process.GRACE", 0.05)
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
        (str(HERE / "adapters"), "cannot be started: .*Permission denied"),
        ("", "cannot be started"),
        ('"engine', "cannot be split into words"),
        ("true", "is no adapter: it exited with status 0 instead of answering"),
        (["sh", "-c", "echo out of memory >&2; exit 4"], "status 4 .*; its stderr ends: out of memory"),
        ("cat", "the first answer has the fields"),
        (printing("hello"), "one JSON object"),
        (printing('{"error": {"code": "protocol", "message": "not today"}}'), "'not today'"),
        (with_facts(protocol=2), "speaks protocol 2, not 1"),
        (with_facts(protocol="1"), "speaks protocol '1', not 1"),
        (with_facts(name=...), "the first answer has the fields"),
        (with_facts(mood="good"), "the first answer has the fields"),
        (with_facts(name=5), "name in the first answer must be a str"),
        (with_facts(unsupported=[]), "unsupported in the first answer must be a dict"),
        (with_facts(operations="read_plan"), "operations in the first answer must be a list"),
        (with_facts(operations=[["read_plan"]]), "lists of names"),
        (with_facts(dtypes=[32]), "lists of names"),
        (with_facts(dtypes=["F8"]), "dtypes must be some of"),
        (with_facts(accumulate="F16"), "accumulate must be"),
        (with_facts(flushes_subnormals="no"), "flushes_subnormals must be"),
        (with_facts(max_elements=0), "max_elements must be"),
        (with_facts(unsupported=dict.fromkeys(OPERATIONS, 3)), "a reason for each operation"),
        (with_facts(unsupported={"logits": "no"}), "neither provides nor gives a reason"),
        (with_facts(operations=["logits"]), "provides .*logits.* and calls them unsupported"),
    ],
)
@pytest.mark.req("IOP-1")
def test_a_command_that_is_no_adapter_is_one_sentence(command, says):
    before = sorted(os.listdir("/dev/fd"))
    with pytest.raises(AdapterError, match=says) as error:
        Command(command)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir("/dev/fd")) == before


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


# --- The chapter's own adapter ---


def test_the_adapter_of_the_chapter_works(monkeypatch):
    [text] = re.findall(r"^```python\n(.*?)^```", (ROOT / "specs" / "96-stdio.md").read_text(), re.M | re.S)
    assert len(text.splitlines()) <= 32

    def network(up, down, up_bias, down_bias, activation, tau):
        def forward(x, active):
            return reference.sparse_ffn(x, activation, up, down, None, up_bias, None, down_bias, tau, active)

        return types.SimpleNamespace(forward=forward)

    fastflash = types.SimpleNamespace(__version__="0.3", Network=network)
    monkeypatch.setitem(sys.modules, "fastflash", fastflash)
    adapter = types.ModuleType("fastflash_adapter")
    exec(text, vars(adapter))
    subject = InProcess(adapter)
    assert (subject.facts.name, subject.facts.operations) == ("fastflash", {"dense_ffn", "sparse_ffn"})
    x, *of, active = small("sparse_ffn")
    with pytest.raises(Unsupported, match="issue 12"):
        subject.call("sparse_ffn", x, *of, active)
    of[3] = of[5] = None
    assert unchanged(subject.call("dense_ffn", x, *of), reference.dense_ffn(x, *of))


# --- The engine in C ---


@pytest.fixture(scope="module")
def c_engine(engine_path):
    with Command([str(engine_path)]) as engine:
        yield engine


@pytest.mark.req("IOP-1", "IOP-2", "IOP-6", "IOP-10")
@pytest.mark.parametrize("operation", VALID)
def test_the_c_engine_gives_the_bits_of_the_reference(c_engine, operation):
    here = InProcess(reference)
    assert c_engine.facts.operations == set(OPERATIONS) - {"logits"}
    for seed in range(40):
        arguments = VALID[operation](np.random.default_rng(seed))
        got, expected = c_engine.call(operation, *arguments), here.call(operation, *arguments)
        assert unchanged(got, expected), f"{operation}, seed {seed}"


@pytest.mark.req("IOP-5", "IOP-7")
@pytest.mark.parametrize(("operation", "parameter", "values"), BAD, ids=[f"{o}-{p}" for o, p, _ in BAD])
def test_the_c_engine_and_the_reference_refuse_and_go_on(c_engine, operation, parameter, values):
    for subject in (c_engine, InProcess(reference)):
        before = subject.call(operation, *small(operation))
        for value in values:
            arguments = list(small(operation))
            arguments[OPERATIONS[operation].index(parameter)] = value
            with pytest.raises(Refused):
                subject.call(operation, *arguments)
        assert unchanged(subject.call(operation, *small(operation)), before)


@pytest.mark.req("IOP-11")
@pytest.mark.parametrize("lines", [v for k, v in BAD_LINES.items() if k != "no UTF-8"])
def test_the_c_engine_understands_no_more_than_serve(engine_path, lines):
    text = b"".join(m if isinstance(m, bytes) else json.dumps(m).encode() + b"\n" for m in [*lines, START])
    ended = subprocess.run([str(engine_path)], input=text, capture_output=True)
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 1
    assert len(answers) == len(lines)
    assert answers[-1]["error"]["code"] == "protocol"


@pytest.mark.req("IOP-10")
def test_texts_and_integers_arrive_however_they_are_written(engine_path):
    args = dict(zip(OPERATIONS["bundle_layout"], small("bundle_layout"), strict=True))
    run = {"cmd": "run", "seq": 2**53, "operation": "bundle_layout"}
    large = run | {"args": to_json(args | {"d": 2**53, "start": 2**55, "ids": [0], "fields": ["größe"]})}
    texts = ["ö", "€", "😀", 'a"\\/\b\f\n\r\t']
    lines = [json.dumps(START), json.dumps(large), json.dumps(large, ensure_ascii=False)]
    for text in texts:  # twice the same field, once escaped and once not: it must be refused
        escaped = "".join(f"\\u{int(unit):04X}" for unit in np.frombuffer(text.encode("utf-16-le"), "<u2"))
        plain = json.dumps(text, ensure_ascii=False)
        line = json.dumps(run | {"args": to_json(args | {"fields": ["FIELDS"]})})
        lines.append(line.replace('"FIELDS"', f'"{escaped}", {plain}'))
    text = "".join(line + "\n" for line in lines).encode()
    ended = subprocess.run([str(engine_path)], input=text, capture_output=True)
    _, *answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.returncode, len(answers)) == (0, 2 + len(texts))
    for answer in answers[:2]:
        assert (answer["seq"], answer["result"][0]) == (2**53, {"integer": str(2**55)})
        assert from_json(answer["result"][1]).tolist() == [[2**55 + 2**55, 2**55]]
    assert [answer["error"]["code"] for answer in answers[2:]] == ["refused"] * len(texts)


@pytest.mark.req("IOP-10")
@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_the_c_engine_reads_every_finite_pattern(c_engine, dtype):
    bits = np.arange(2**16, dtype=np.uint16)
    down = bits[np.isfinite(widen(bits.view(dtype)))].view(dtype).reshape(1, -1)
    one = np.array([0x3F80 if dtype is np.uint16 else 0x3C00], np.uint16).view(dtype)
    up, x = np.zeros_like(down), np.zeros(down.size, np.float32)
    y = c_engine.call("dense_ffn", x, "relu", up, down, None, one, None, None, 0.0)
    np.testing.assert_array_equal(y, widen(down[0]))


def test_the_c_engine_says_what_it_has_not(c_engine):
    with pytest.raises(Unsupported, match="checkpoints"):
        c_engine.call("logits", "", np.int64([1]), "exact")
    with pytest.raises(Unsupported, match="beyond 63 bits"):
        c_engine.call("bundle_layout", 1, 1, "F32", ["up"], 16, 2**70, None, np.int64([0]))


# --- The adapter of PyTorch ---


@pytest.fixture(scope="module")
def torch_subject():
    pytest.importorskip("torch", reason="PyTorch comes with the dev extra")
    path = HERE / "adapters" / "torch_adapter.py"
    adapter = types.ModuleType("torch_adapter")
    exec(compile(path.read_text(), str(path), "exec"), vars(adapter))
    return InProcess(adapter)


TORCH_RUNS = [
    name for name in VALID if name.startswith(("predict", "dense", "sparse", "gather", "run_window"))
]


@pytest.mark.req("IOP-1", "IOP-2")
@pytest.mark.parametrize("operation", [*TORCH_RUNS, "run_decode"])
def test_pytorch_agrees_with_the_reference(torch_subject, operation):
    here = InProcess(reference)
    for seed in range(30):
        arguments = VALID[operation](np.random.default_rng(seed))
        got, expected = (subject.call(operation, *arguments) for subject in (torch_subject, here))
        if operation == "run_decode":
            assert {"loaded", "bypassed", "evicted", "useful_bytes"} == set(got[1])
            for counter, counts in got[1].items():
                assert unchanged(counts, expected[1][counter])
            got, expected = got[0], expected[0]
        if operation in ("dense_ffn", "sparse_ffn", "run_decode"):  # on SiLU and GELU it may round otherwise
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
        else:
            assert unchanged(got, expected), f"seed {seed}"


@pytest.mark.req("IOP-7")
@pytest.mark.parametrize(
    ("operation", "parameter", "values"),
    [bad for bad in BAD if bad[0] in [*TORCH_RUNS, "run_decode"]],
    ids=[f"{o}-{p}" for o, p, _ in BAD if o in [*TORCH_RUNS, "run_decode"]],
)
def test_pytorch_refuses(torch_subject, operation, parameter, values):
    for value in values:
        arguments = list(small(operation))
        arguments[OPERATIONS[operation].index(parameter)] = value
        with pytest.raises(Refused):
            torch_subject.call(operation, *arguments)
