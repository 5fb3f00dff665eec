"""Checks of chapter 52: reads against the set of blocks that hold a wanted byte."""

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.adapter import Facts
from flashref.conformance.checks.check import Call, Check, ask, expect_equal, must_refuse
from flashref.conformance.transport.subject import Breach, Subject


@st.composite
def plans(draw: st.DrawFn, facts: Facts) -> Call:
    """read_plan of extents near each other, now and then beyond 2^53 bytes."""
    block = 2 ** draw(st.integers(0, 5))
    base = draw(st.sampled_from([0, 0, block * 2**32, block * 2**54]))
    pairs = draw(st.lists(st.tuples(st.integers(0, 12 * block), st.integers(1, 3 * block)), max_size=8))
    extents = np.array([(base + offset, length) for offset, length in pairs], np.int64).reshape(-1, 2)
    near = st.sampled_from([0, block - 1, block, 2 * block - 1, 2 * block])
    return Call("read_plan", (extents, block, draw(near | st.integers(0, 5 * block))))


def wanted_blocks(call: Call) -> set[int]:
    """Numbers of the blocks that hold a byte of an extent."""
    extents, block, _ = call.arguments
    return {b for at, size in extents.tolist() for b in range(at // block, (at + size - 1) // block + 1)}


def read_blocks(call: Call, plan: Any) -> list[int]:
    """Numbers of the blocks that a plan reads, as often as it does."""
    block = call.arguments[1]
    return [b for at, size in plan.tolist() for b in range(at // block, (at + size) // block)]


def judge_alignment(subject: Subject, call: Call) -> None:
    """Reads begin and end on blocks, ascend, and are more than max_gap apart."""
    _, block, max_gap = call.arguments
    end = None
    for offset, length in ask(subject, call).tolist():
        if offset % block or length % block or length < 1:
            raise Breach("fail", f"the read of {length} bytes at {offset} does not fit blocks of {block}")
        if end is not None and offset - end <= max_gap:
            raise Breach(
                "fail", f"{offset - end} bytes before {offset}, no more than max_gap {max_gap}: join"
            )
        end = offset + length


def judge_cover(subject: Subject, call: Call) -> None:
    """Every wanted block is read once."""
    read = read_blocks(call, ask(subject, call))
    if missing := sorted(wanted_blocks(call) - set(read)):
        raise Breach("fail", f"the blocks {missing} hold wanted bytes and are not read")
    if len(set(read)) < len(read):
        raise Breach("fail", f"blocks are read twice: {sorted({b for b in read if read.count(b) > 1})}")


def judge_waste(subject: Subject, call: Call) -> None:
    """Any other block lies in a gap of at most max_gap bytes."""
    _, block, max_gap = call.arguments
    wanted = sorted(wanted_blocks(call))
    allowed = set(wanted)
    for low, high in pairwise(wanted):
        if (high - low - 1) * block <= max_gap:
            allowed.update(range(low, high))
    if extra := sorted(set(read_blocks(call, ask(subject, call))) - allowed):
        raise Breach("fail", f"the blocks {extra} are read, and lie in no gap of at most {max_gap} bytes")


def judge_order(subject: Subject, call: Call) -> None:
    """Order and repetition do not matter, and the plan of a plan is that plan."""
    extents, block, max_gap = call.arguments
    plan = ask(subject, call)
    backwards = np.concatenate([extents[::-1], extents[:1]])
    other = ask(subject, Call("read_plan", (backwards, block, max_gap)))
    expect_equal("the plan of the extents backwards, the first one twice", other.tolist(), plan.tolist())
    again = ask(subject, Call("read_plan", (plan, block, max_gap)))
    expect_equal("the plan of the plan", again.tolist(), plan.tolist())


def bad_plans(facts: Facts) -> list[Call]:
    """read_plan with one argument outside the domain."""
    one = np.array([[0, 10]])
    return [
        Call("read_plan", (one, 48, 0), "a block that is no power of two"),
        Call("read_plan", (one, 0, 0), "a block of 0"),
        Call("read_plan", (one, -64, 0), "a negative block"),
        Call("read_plan", (one, 64, -1), "a negative max_gap"),
        Call("read_plan", (np.array([[0, 10], [20, 0]]), 64, 0), "an empty extent"),
        Call("read_plan", (np.array([[0, 10], [20, -1]]), 64, 0), "an extent of negative length"),
        Call("read_plan", (np.array([[-1, 10]]), 64, 0), "an extent that begins below 0"),
    ]


def examples(facts: Facts) -> tuple[Call, ...]:
    """A gap of just a block, a small extent within a large one, and nothing at all."""
    return (
        Call("read_plan", (np.array([[0, 3000], [3500, 3000], [17000, 3000]]), 4096, 8192)),
        Call("read_plan", (np.array([[0, 3000], [3500, 3000], [17000, 3000]]), 4096, 8191)),
        Call("read_plan", (np.array([[0, 40000], [4096, 10], [20000, 10]]), 4096, 0)),
        Call("read_plan", (np.zeros((0, 2), np.int64), 4096, 0)),
    )


OPERATIONS = ("read_plan",)
CHECKS = (
    Check("PLN-1", OPERATIONS, plans, judge_alignment, examples),
    Check("PLN-2", OPERATIONS, plans, judge_cover, examples),
    Check("PLN-3", OPERATIONS, plans, judge_waste, examples),
    Check("PLN-4", OPERATIONS, plans, judge_order, examples),
    Check("PLN-5", OPERATIONS, bad_plans, must_refuse),
)
