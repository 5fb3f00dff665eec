"""Checks of chapter 96's messages, for commands: answers in form, values to the bit, nonsense refused."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from hypothesis import strategies as st

from flashref import SPEC_VERSION
from flashref.conformance.adapter import Facts, Unsupported
from flashref.conformance.checks import adapter, bundle, predictor
from flashref.conformance.checks.adapter import EVERY
from flashref.conformance.checks.check import Call, Check, ask
from flashref.conformance.transport.subject import Breach, Subject

DELICATE = ("bundle_layout", "predict_active", "pack_bundles")
START = json.dumps({"cmd": "start", "protocol": 1, "spec": SPEC_VERSION})


@runtime_checkable
class Speaker(Protocol):
    """A subject that is reached by messages."""

    def last_words(self, lines: Sequence[bytes]) -> tuple[bytes, int | None]:
        """What a process of its own answers to the last of these lines, and its exit status."""


def of_messages(judge: Callable[[Any, Any], None]) -> Callable[[Subject, Any], None]:
    """A judge of commands only."""

    def judge_messages(subject: Subject, case: Any) -> None:
        if not isinstance(subject, Speaker):
            raise Unsupported("a Python adapter in this process sends no messages")
        judge(subject, case)

    return judge_messages


def delicate(facts: Facts) -> st.SearchStrategy[Call]:
    """Calls that a careless encoding changes: large integers, floats, every bit of weights."""
    judged: dict[str, Callable[[Facts], st.SearchStrategy[Call]]] = {
        "bundle_layout": bundle.far_away,
        "predict_active": predictor.dyadic_predictions,
        "pack_bundles": bundle.packings,
    }
    return st.one_of([calls(facts) for name, calls in judged.items() if name in facts.operations])


def delicate_examples(facts: Facts) -> Sequence[Call]:
    """Offsets just beyond 31, 32 and 53 bits."""
    return bundle.far_examples(facts) if "bundle_layout" in facts.operations else ()


def judge_bits(subject: Subject, call: Call) -> None:
    """The call's own judge: it compares every bit."""
    judges = {
        "bundle_layout": bundle.judge_extents,
        "predict_active": predictor.judge_exact,
        "pack_bundles": bundle.judge_bytes,
    }
    judges[call.operation](subject, call)


def nonsense(facts: Facts) -> list[list[str]]:
    """Lines, the last of which no process of this protocol understands."""
    run = {"cmd": "run", "seq": 1, "operation": "read_plan", "args": {}}
    return [
        [START, '{"cmd": "walk"}'],
        [START, json.dumps(run | {"operation": "no_such_operation"})],
        [START, json.dumps(run | {"priority": 1})],
        [START, "hello"],
        [START, "[]"],
        [json.dumps({"cmd": "start", "protocol": 99, "spec": SPEC_VERSION})],
        [json.dumps({"cmd": "start", "protocol": 1, "spec": SPEC_VERSION, "mood": "good"})],
    ]


def judge_nonsense(subject: Speaker, lines: list[str]) -> None:
    """An error of code `protocol`, and an exit status that is not 0."""
    answer, status = subject.last_words([line.encode() for line in lines])
    try:
        code = json.loads(answer)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    if code != "protocol":
        raise Breach(
            "fail", f"the line {lines[-1]} was answered by {answer!r}, not by an error of code protocol"
        )
    if status in (0, None):
        how = "went on" if status is None else "exited with status 0"
        raise Breach("fail", f"the process {how} after the line {lines[-1]}, which it cannot understand")


CHECKS = (
    Check("IOP-8", EVERY, adapter.any_valid, of_messages(ask), adapter.one_each),
    Check("IOP-9", EVERY, adapter.any_valid, of_messages(ask), adapter.one_each),
    Check("IOP-10", DELICATE, delicate, of_messages(judge_bits), delicate_examples),
    Check("IOP-11", EVERY, nonsense, of_messages(judge_nonsense), runs=False),
)
