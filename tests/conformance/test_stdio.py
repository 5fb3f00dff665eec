"""The stdio protocol on an implementation's side: serve, `python -m flashref.conformance`, the chapter."""

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
from random_calls import VALID, small
from stdio_messages import BAD_LINES, PLAN, PLANNED, PREDICT, START

from flashref.conformance import reference
from flashref.conformance.adapter import (
    OPERATIONS,
    AdapterError,
    Unsupported,
    declared_facts,
    load_adapter,
)
from flashref.conformance.transport.codec import from_json, to_json
from flashref.conformance.transport.stdio import Command, serve
from flashref.conformance.transport.subject import InProcess, unchanged

ROOT = Path(__file__).parents[2]


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


def changes_inputs_and_refuses(extents, block, max_gap):
    extents[0] = 0
    raise ValueError("too late")


def overwrites(scratch):
    def read_plan(extents, block, max_gap):
        scratch[:] += 16
        return scratch

    return read_plan


@pytest.mark.parametrize(
    ("read_plan", "kind"),
    [
        pytest.param(changes_inputs, "changes inputs", marks=pytest.mark.req("IOP-3")),
        pytest.param(changes_inputs_and_refuses, "changes inputs", marks=pytest.mark.req("IOP-3")),
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


@pytest.mark.req("IOP-5")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({}, {"loaded": 1}),
        ({"loaded": 1}, {"loaded": 1, "moved_rows": 2}),
        ([1], [1, 2]),
        ([np.int64([1]), 2], [np.int64([1]), 3]),
        (np.float32([0.0]), np.float32([-0.0])),
        (np.int64([1]), np.int32([1])),
        (None, 0),
        (1, 1.0),
    ],
)
def test_what_differs_in_a_part_has_changed(a, b):
    assert unchanged(a, a) and unchanged(b, b)
    assert not unchanged(a, b) and not unchanged(b, a)


@pytest.mark.req("IOP-4")
def test_a_result_that_changed_is_told_once():
    first = np.int64([[0, 16]])

    def read_plan(extents, block, max_gap):
        calls.append(0)
        first[:] = len(calls) if len(calls) == 2 else first
        return first if len(calls) == 1 else [(0, 16)]

    calls = []
    _, [_, *answers] = exchange(planner(read_plan), START, PLAN, PLAN, PLAN)
    assert [answer.get("error", {}).get("kind") for answer in answers] == [None, "overwrites results", None]


@pytest.mark.req("IOP-1")
def test_facts_that_contradict_each_other_are_no_adapter():
    with pytest.raises(AdapterError, match="provides"):
        serve(planner(print, unsupported=dict.fromkeys(OPERATIONS, "no")), [], io.BytesIO())


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


@pytest.mark.req("IOP-1")
@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("import sys; sys.exit(3)", "mine", "the adapter's module 'mine' cannot be imported: SystemExit: 3"),
        ("", "mine.py", "'mine.py' is a path, and an adapter is named as a module: try 'mine'"),
        ("", "./mine", "'./mine' is a path, and an adapter is named as a module: try 'mine'"),
        (
            "class A:\n    def __init__(self): 1 / 0\n",
            "mine:A",
            "'mine:A' cannot be created: ZeroDivisionError",
        ),
        ("", "mine:A.b", "the module 'mine' has no 'A.b'; an adapter is named module:attribute"),
    ],
)
def test_an_adapter_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, text, name, says):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(AdapterError) as error:
        load_adapter(name)
    assert says in str(error.value)
    sys.modules.pop("mine", None)


@pytest.mark.req("IOP-1")
@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            {"unsupported": ["read_plan"]},
            r"unsupported must map each operation to a reason, not \['read_plan'\]",
        ),
        ({"dtypes": "F32"}, "dtypes must be a set or list of F32, F16, BF16, not 'F32'"),
        ({"dtypes": 32}, "dtypes must be a set or list of F32, F16, BF16, not 32"),
        ({"dtypes": []}, "dtypes must be some of F32, F16, BF16, not none"),
        ({"dtypes": ["F8", 3]}, "dtypes must be some of F32, F16, BF16, not 3, F8"),
        ({"accumulate": "F16"}, "accumulate must be F32 or F64, not 'F16'"),
        ({"max_elements": 2.5}, "max_elements must be a positive integer or None, not 2.5"),
        ({"unsupported": {"walk": "no"}}, "the adapter names unknown operations: walk; they are "),
    ],
)
def test_a_fact_without_a_meaning_is_one_sentence(facts, says):
    with pytest.raises(AdapterError, match=says):
        declared_facts(types.SimpleNamespace(**{**vars(reference), **facts}))


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


# --- The chapter's own adapter ---


def test_the_adapter_of_the_chapter_works(monkeypatch):
    [text] = re.findall(
        r"^```python\n(\"\"\".*?)^```", (ROOT / "specs" / "96-stdio.md").read_text(), re.M | re.S
    )
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
