"""The example engine in C: the reference's bits, its refusals, and no more understood than serve does."""

import json
import subprocess

import numpy as np
import pytest
from random_calls import BAD, VALID, small
from stdio_messages import BAD_LINES, START

from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS, Unsupported
from flashref.conformance.transport.codec import from_json, to_json
from flashref.conformance.transport.stdio import Command
from flashref.conformance.transport.subject import InProcess, Refusal, unchanged
from flashref.types import widen


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
            with pytest.raises(Refusal):
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
