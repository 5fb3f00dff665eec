"""What a check is made of: cases, which are data, and a judge, who compares answers with the definition."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from flashref.conformance.adapter import Facts, how_to_skip
from flashref.conformance.strategies import DTYPES, SIZES
from flashref.conformance.transport.codec import registered
from flashref.conformance.transport.subject import Breach, Refusal, Subject
from flashref.conformance.words import excess, number
from flashref.types import Array, Ids

Cases = st.SearchStrategy[Any] | Sequence[Any]
SHOWN = 200  # characters of a value in a sentence


@registered
class Call(NamedTuple):
    """One call of an operation.

    Attributes:
        operation: its name.
        arguments: in the order of chapter 96's table.
        note: what is special about the call, such as why it must be refused.
    """

    operation: str
    arguments: Sequence[Any]
    note: str = ""

    def __repr__(self) -> str:
        """Short: Hypothesis warns of long ones, and `failure_text` shows the arguments."""
        return f"{self.operation}({self.note or '…'})"


class Check(NamedTuple):
    """The check of one requirement.

    Attributes:
        requirement: its id.
        operations: those that the check calls; it can be judged if one of them is provided.
        cases: the facts of an implementation → a strategy that draws cases, or a list of all cases.
        judge: asks a subject about one case, and raises Breach if the answer is wrong.
        examples: the facts → cases that every run begins with, whatever is drawn after them.
        machine: a state machine that makes cases in the place of `cases`, and passes each to the function
            that it is given.
        runs: whether a case runs an operation (a declaration, for instance, runs none).
    """

    requirement: str
    operations: tuple[str, ...]
    cases: Callable[[Facts], Cases]
    judge: Callable[[Subject, Any], None]
    examples: Callable[[Facts], Sequence[Any]] = lambda facts: ()
    machine: Callable[[Facts, Callable[[Any], None]], type[RuleBasedStateMachine]] | None = None
    runs: bool = True


def dtypes_of(facts: Facts) -> list[str]:
    """The stored dtypes that the implementation takes, in a fixed order."""
    return [dtype for dtype in DTYPES if dtype in facts.dtypes]


def sizes_of(facts: Facts, sizes: Sequence[tuple[int, int]] = SIZES) -> list[tuple[int, int]]:
    """Those of the sizes (n, d) that the implementation takes."""
    most = facts.max_elements
    return [size for size in sizes if most is None or size[0] * size[1] <= most] or [(1, 1)]


def ints(values: Iterable[int]) -> Ids:
    """An int64 array of these numbers."""
    return np.array(list(values), np.int64)


def singles(values: Any) -> Array:
    """A float32 array of these numbers."""
    return np.array(values, np.float32)


def ask(subject: Subject, call: Call, which: str = "") -> Any:
    """The answer to a valid call; a refusal is a failure, whose text begins with `which` of several calls."""
    try:
        return subject.call(call.operation, *call.arguments)
    except Refusal as refusal:
        advice = how_to_skip(call.operation, call.arguments)
        text = f"{call.operation} refused a valid input: {refusal}{advice}"
        raise Breach("fail", f"{which}: {text}" if which else text) from None


def must_refuse(subject: Subject, call: Call) -> None:
    """The call must be refused, for the reason in its note."""
    try:
        answer = subject.call(call.operation, *call.arguments)
    except Refusal:
        return
    raise Breach("fail", f"{call.operation} answered where it had to refuse ({call.note}): {shown(answer)}")


def expect_equal(what: str, got: Any, expected: Any) -> None:
    """Two values must be equal; the failure shows both."""
    if got != expected:
        raise Breach("fail", f"{what}: got {shown(got)}, expected {shown(expected)}")


def expect_ids(what: str, got: Array, expected: Iterable[int]) -> None:
    """Ids must be exactly these, strictly ascending; the failure names what is missing and what is extra."""
    due = sorted(expected)
    if got.tolist() == due:
        return
    missing, extra = sorted(set(due) - set(got.tolist())), sorted(set(got.tolist()) - set(due))
    how = f"missing {missing}, extra {extra}" if missing or extra else "not strictly ascending"
    raise Breach("fail", f"{what}: got {got.tolist()}, expected {due}; {how}")


def expect_bits(what: str, got: Array, expected: Array) -> None:
    """Two arrays of one dtype and shape must be equal bit for bit."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        due = f"{expected.dtype} of shape {expected.shape}"
        raise Breach("fail", f"{what}: got {got.dtype} of shape {got.shape}, expected {due}")
    size = max(1, expected.dtype.itemsize)
    a = np.frombuffer(np.ascontiguousarray(got).tobytes(), np.uint8).reshape(-1, size)
    b = np.frombuffer(np.ascontiguousarray(expected).tobytes(), np.uint8).reshape(-1, size)
    differing = np.flatnonzero((a != b).any(axis=1))
    if len(differing):
        where = tuple(int(i) for i in np.unravel_index(differing[0], expected.shape))
        raise Breach(
            "fail",
            f"{what}: {len(differing)} of {expected.size} elements differ; the first, at {where}, has bits "
            f"{a[differing[0]][::-1].tobytes().hex()}, expected {b[differing[0]][::-1].tobytes().hex()}",
        )


def expect_close(what: str, got: Array, exact: Sequence[Fraction], bounds: Iterable[float]) -> None:
    """No element may be further from its exact value than its bound; a bound of 0 means equal values.

    The sign of a zero is free (ACC-9). The failure shows the element that is worst by error / bound.
    """
    worst: tuple[float, str] = (1.0, "")
    for j, (value, due, bound) in enumerate(zip(got.tolist(), exact, bounds, strict=True)):
        finite = np.isfinite(value)
        error = abs(Fraction(value) - due) if finite else Fraction(0)
        if finite and error <= Fraction(bound):
            continue
        ratio = float(error / Fraction(bound)) if finite and bound else float("inf")
        if ratio >= worst[0]:
            text = f"{what}: worst element {j}: got {number(value)}, exact {number(due)}"
            worst = ratio, f"{text}; {excess(float(error) if finite else None, bound)}"
    if worst[1]:
        raise Breach("fail", worst[1])


def shown(value: Any) -> str:
    """A value in one line, arrays as plain lists, cut where it becomes too long for a sentence."""
    text = " ".join(repr(_plain(value)).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _plain(value: Any) -> Any:
    """The value with lists in place of arrays; a NamedTuple keeps its name."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value
