"""Messages of the stdio protocol: good ones, and lines that must not be understood."""

import numpy as np

from flashref import SPEC_VERSION
from flashref.conformance.transport.codec import to_json

START = {"cmd": "start", "protocol": 1, "spec": SPEC_VERSION}
PLAN_ARGS = {"extents": to_json(np.int64([[5, 2]])), "block": 16, "max_gap": 0}
PLAN = {"cmd": "run", "seq": 7, "operation": "read_plan", "args": PLAN_ARGS}
PLANNED = (np.int64([[5, 2]]), 16, 0)
PREDICT = (np.float32([1]), np.float32([[1]]), np.float32([[1]]), None, 0.0)


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
    "args as a list of names": changed(PLAN, args=list(PLAN_ARGS)),
    "args as a number": changed(PLAN, args=3),
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
