"""Checks of chapter 60: rows from an image packed by hand, counters from a set of blocks."""

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.adapter import Facts
from flashref.conformance.checks.bundle import bundle_bytes_of, finite_bits, packed_by_hand, packings
from flashref.conformance.checks.check import (
    Call,
    Check,
    ask,
    dtypes_of,
    expect_bits,
    expect_equal,
    must_refuse,
    sizes_of,
)
from flashref.conformance.checks.ffn import bad_ids, every_bad_ids
from flashref.conformance.strategies import active_sets
from flashref.conformance.transport.subject import Breach, Subject
from flashref.definitions import plan_model, stride_model
from flashref.types import STORED_DTYPES, Array, Ids

OPERATIONS = ("gather_rows",)


@st.composite
def gatherings(draw: st.DrawFn, facts: Facts) -> Call:
    """gather_rows of some neurons, from an image with noise before and behind the bundles."""
    packing = draw(packings(facts))
    n, block = packing.arguments[0], packing.arguments[4]
    max_gap = draw(st.sampled_from([0, 0, block, 2 * block, 10**6]))
    return gathering(packing, block * draw(st.integers(0, 3)), draw(active_sets(n)), max_gap)


def gathering(packing: Call, start: int, ids: Ids, max_gap: int) -> Call:
    """gather_rows of these neurons, from what pack_bundles would have packed, behind `start` bytes."""
    n, d, dtype, fields, block, order, _ = packing.arguments
    packed = packed_by_hand(packing)
    before, behind = np.full(start, 0xA5, np.uint8), np.full(-len(packed) % block, 0x5A, np.uint8)
    image = np.concatenate([before, packed, behind])
    return Call("gather_rows", (image, n, d, dtype, fields, block, start, order, ids, max_gap))


def long_reads(facts: Facts) -> list[Call]:
    """Reads of several pages: all neurons, and all but one, where the gap is just small enough, or not."""
    n, d = sizes_of(facts, [(64, 16)])[0]
    dtype, random = dtypes_of(facts)[0], np.random.default_rng(0)
    given = [finite_bits(random, n, d, dtype, False) for _ in range(2)]
    packing = Call("pack_bundles", (n, d, dtype, ["up", "down"], 64, None, given))
    every, stride = np.arange(n), stride_model(bundle_bytes_of(d, dtype, ["up", "down"]), 64)
    one_gap = np.delete(every, n // 2)
    return [gathering(packing, 0, *of) for of in ((every, 0), (one_gap, stride), (one_gap, stride - 1))]


def rows_by_hand(call: Call) -> Array:
    """The rows (m, fields, d) cut out of the image."""
    image, _, d, dtype, fields, block, start, order, ids, _ = call.arguments
    size = bundle_bytes_of(d, dtype, fields)
    rows = [bytes(image[at : at + size]) for at in offsets(ids, order, start, stride_model(size, block))]
    return np.frombuffer(b"".join(rows), STORED_DTYPES[dtype]).reshape(len(ids), len(fields), d)


def offsets(ids: Ids, order: Ids | None, start: int, stride: int) -> list[int]:
    """Where each neuron's bundle begins."""
    positions = ids.tolist() if order is None else [order.tolist().index(i) for i in ids.tolist()]
    return [start + position * stride for position in positions]


def judge_rows(subject: Subject, call: Call) -> None:
    """Row j holds the stored bits of neuron ids[j]."""
    rows, _ = ask(subject, call)
    expect_bits("rows", rows, rows_by_hand(call))


def judge_counters(subject: Subject, call: Call) -> None:
    """Requests and bytes are those of the plan."""
    _, _, d, dtype, fields, block, start, order, ids, max_gap = call.arguments
    size = bundle_bytes_of(d, dtype, fields)
    at = offsets(ids, order, start, stride_model(size, block))
    reads = plan_model([(offset, size) for offset in at], block, max_gap)
    due = [len(reads), len(ids) * size, sum(length for _, length in reads)]
    _, counters = ask(subject, call)
    expect_equal("[requests, useful_bytes, read_bytes]", counters.tolist(), due)


def judge_copies(subject: Subject, call: Call) -> None:
    """Rows stay what they were when other rows are gathered."""
    image, n, *layout, ids, max_gap = call.arguments
    first, _ = ask(subject, call)
    before = first.tobytes()
    others = np.setdiff1d(np.arange(n), ids)
    for next_ids in (others, ids, np.arange(n)):
        ask(subject, Call("gather_rows", (image, n, *layout, next_ids, max_gap)))
    if first.tobytes() != before:
        raise Breach("fail", "rows that were gathered before have changed")


def no_ids(facts: Facts) -> st.SearchStrategy[Call]:
    """gather_rows of nothing."""
    return gatherings(facts).map(
        lambda call: call._replace(
            arguments=(*call.arguments[:-2], np.zeros(0, np.int64), call.arguments[-1])
        )
    )


def judge_nothing(subject: Subject, call: Call) -> None:
    """No ids, no request."""
    rows, counters = ask(subject, call)
    expect_equal("[requests, useful_bytes, read_bytes] of no ids", counters.tolist(), [0, 0, 0])
    expect_equal("rows of no ids", len(rows), 0)


@st.composite
def bad_gatherings(draw: st.DrawFn, facts: Facts) -> Call:
    """gather_rows of ids that the layer has not."""
    call = draw(gatherings(facts))
    *rest, _, max_gap = call.arguments
    ids, note = draw(bad_ids(call.arguments[1]))
    return call._replace(arguments=(*rest, ids, max_gap), note=note)


def bad_gathering_examples(facts: Facts) -> list[Call]:
    """gather_rows of each kind of ids that must be refused."""
    of = np.zeros(24, np.uint8), 3, 1, dtypes_of(facts)[0], ["up", "down"], 8, 0, None
    return [Call("gather_rows", (*of, ids, 0), note) for ids, note in every_bad_ids(3)]


CHECKS = (
    Check("GTH-1", OPERATIONS, gatherings, judge_rows, long_reads),
    Check("GTH-2", OPERATIONS, bad_gatherings, must_refuse, bad_gathering_examples),
    Check("GTH-3", OPERATIONS, gatherings, judge_counters, long_reads),
    Check("GTH-5", OPERATIONS, gatherings, judge_copies),
    Check("GTH-6", OPERATIONS, no_ids, judge_nothing),
)
