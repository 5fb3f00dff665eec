"""Checks of chapter 40: strides and offsets by counting, bytes against packing by hand."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.adapter import Facts
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
from flashref.definitions import packed_model, stride_model
from flashref.types import STORED_DTYPES, Array

FIELDS = (["up", "down"], ["gate", "up", "down"], ["up"], ["down", "up"])
WIDTHS = (1, 3, 4, 21, 64, 96, 100)  # bundles below, at and above the blocks


def bundle_bytes_of(d: int, dtype: str, fields: list[str]) -> int:
    """Bytes of one bundle without padding."""
    return len(fields) * d * STORED_DTYPES[dtype].itemsize


@st.composite
def layouts(draw: st.DrawFn, facts: Facts) -> Call:
    """bundle_layout of any small layer, with extents of some of its neurons."""
    n, dtype = draw(st.sampled_from([1, 2, 5, 11])), draw(st.sampled_from(dtypes_of(facts)))
    block = draw(st.sampled_from([1, 8, 64, 512, 4096]))
    start = block * draw(st.integers(0, 5))
    order = draw(st.none() | st.permutations(range(n)).map(np.array))
    fields, d = draw(st.sampled_from(FIELDS)), draw(st.sampled_from(WIDTHS))
    return Call("bundle_layout", (n, d, dtype, fields, block, start, order, draw(active_sets(n))))


def paper_layouts(facts: Facts) -> tuple[Call, ...]:
    """OPT 6.7B, and Falcon 7B, whose bundles are no multiple of a block."""
    up_down, ids, dtype = ["up", "down"], np.arange(3), dtypes_of(facts)[0]
    widths = (4096, 4544, 1024)
    return tuple(Call("bundle_layout", (3, d, dtype, up_down, 4096, 0, None, ids)) for d in widths)


def judge_stride(subject: Subject, call: Call) -> None:
    """The stride by counting up to it."""
    _, d, dtype, fields, block, *_ = call.arguments
    stride, _ = ask(subject, call)
    expect_equal("stride", stride, stride_model(bundle_bytes_of(d, dtype, fields), block))


def judge_blocks(subject: Subject, call: Call) -> None:
    """Small bundles lie within a block, large ones begin on one."""
    block = call.arguments[4]
    _, extents = ask(subject, call)
    for offset, length in extents.tolist():
        straddles = offset // block != (offset + length - 1) // block
        if (length < block and straddles) or (length >= block and offset % block):
            raise Breach("fail", f"the bundle of {length} bytes at {offset} lies badly in blocks of {block}")


def judge_extents(subject: Subject, call: Call) -> None:
    """Each extent by its definition, and whatever other ids are asked for."""
    _, d, dtype, fields, block, start, order, ids = call.arguments
    size = bundle_bytes_of(d, dtype, fields)
    stride = stride_model(size, block)
    _, extents = ask(subject, call)
    for i, extent in zip(ids.tolist(), extents.tolist(), strict=True):
        position = i if order is None else order.tolist().index(i)
        expect_equal(f"extent of neuron {i}", extent, [start + position * stride, size])
        _, [alone] = ask(subject, call._replace(arguments=(*call.arguments[:-1], np.array([i]))))
        expect_equal(f"extent of neuron {i}, asked alone", alone.tolist(), extent)


@st.composite
def far_away(draw: st.DrawFn, facts: Facts) -> Call:
    """Bundles whose offsets need more than 32 bits, and more than float64's 53: hence blocks of a byte."""
    block = draw(st.sampled_from([1, 4096]))
    start = draw(st.integers(2**30, 2**32) | st.integers(2**53, 2**57)) // block * block
    d, ids = draw(st.sampled_from([100, 4544])), np.array([draw(st.integers(0, 2**20)), 2**20 + 1])
    dtype = draw(st.sampled_from(dtypes_of(facts)))
    return Call("bundle_layout", (2**21, d, dtype, ["up", "down"], block, start, None, ids))


def far_examples(facts: Facts) -> list[Call]:
    """Just beyond 31, 32 and 53 bits."""
    layout = 2**21, 100, dtypes_of(facts)[0], ["up", "down"]
    ids = np.array([0, 1, 2**21 - 1])
    starts = 2**31 + 1, 2**32 + 1, 2**53 + 1, 2**57 + 1
    return [Call("bundle_layout", (*layout, 1, start, None, ids)) for start in starts]


def every_bad_layout(facts: Facts) -> list[Call]:
    """bundle_layout with one argument outside the domain."""
    good: dict[str, Any] = {
        "n": 3, "d": 4, "dtype": dtypes_of(facts)[0], "fields": ["up", "down"], "block": 64, "start": 64,
        "order": None, "ids": np.array([0, 1]),
    }  # fmt: skip
    bad: tuple[tuple[str, Any], ...] = (
        ("n", 0), ("d", 0), ("dtype", "F8"), ("fields", []), ("fields", ["up", "up"]), ("block", 48),
        ("block", 0), ("start", 32), ("start", -64), ("order", np.array([0, 1])),
        ("order", np.array([0, 1, 1])), ("order", np.array([0, 1, 3])), ("order", np.array([0, 1, -1])),
    )  # fmt: skip
    return [
        Call(
            "bundle_layout", tuple((good | {name: value}).values()), f"{name} = {np.asarray(value).tolist()}"
        )
        for name, value in bad
    ]


def bad_layouts(facts: Facts) -> st.SearchStrategy[Call]:
    """One of them."""
    return st.sampled_from(every_bad_layout(facts))


def bad_extent_examples(facts: Facts) -> list[Call]:
    """bundle_layout of each kind of ids that must be refused."""
    layout = 3, 4, dtypes_of(facts)[0], ["up", "down"], 64, 64, None
    return [Call("bundle_layout", (*layout, ids), note) for ids, note in every_bad_ids(3)]


@st.composite
def bad_extent_ids(draw: st.DrawFn, facts: Facts) -> Call:
    """bundle_layout of ids that the layer has not."""
    call = draw(layouts(facts))
    ids, note = draw(bad_ids(call.arguments[0]))
    return call._replace(arguments=(*call.arguments[:-1], ids), note=note)


@st.composite
def matrices(draw: st.DrawFn, n: int, d: int, dtype: str, count: int) -> list[Array]:
    """Matrices (n, d) of any finite bits, from a seed; the special patterns of the dtype come first."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    special = draw(st.booleans())
    return [finite_bits(random, n, d, dtype, special) for _ in range(count)]


def finite_bits(random: np.random.Generator, n: int, d: int, dtype: str, special: bool) -> Array:
    """A matrix of random finite bits; with the special patterns of the dtype in front."""
    if dtype == "F32":
        bits = random.integers(0, 2**32, (n, d), np.uint32)
        bits = np.where(bits & 0x7F800000 == 0x7F800000, bits ^ 0x40000000, bits)
    else:
        mask, flip = (0x7C00, 0x4000) if dtype == "F16" else (0x7F80, 0x4000)
        bits = random.integers(0, 2**16, (n, d), np.uint16)
        bits = np.where(bits & mask == mask, bits ^ flip, bits)
    if special:  # −0, +0, the smallest subnormal, and the largest
        top = 1 << (bits.dtype.itemsize * 8 - 1)
        largest = {"F32": 0x7FFFFF, "F16": 0x3FF, "BF16": 0x7F}[dtype]
        edges = np.array([top, 0, 1, largest, top | 1], bits.dtype)
        bits.reshape(-1)[: len(edges)] = edges[: bits.size]
    return np.ascontiguousarray(bits).view(STORED_DTYPES[dtype])


@st.composite
def packings(draw: st.DrawFn, facts: Facts) -> Call:
    """pack_bundles of any finite bits in any order."""
    n, d = draw(st.sampled_from(sizes_of(facts)))
    dtype, fields = draw(st.sampled_from(dtypes_of(facts))), draw(st.sampled_from(FIELDS))
    block = draw(st.sampled_from([1, 8, 64, 512]))
    order = draw(st.none() | st.permutations(range(n)).map(np.array))
    given = draw(matrices(n, d, dtype, len(fields)))
    return Call("pack_bundles", (n, d, dtype, fields, block, order, given))


def packed_by_hand(call: Call) -> Array:
    """The bytes that a call of pack_bundles must give."""
    _, d, dtype, fields, block, order, given = call.arguments
    stride = stride_model(bundle_bytes_of(d, dtype, fields), block)
    packed = packed_model(given, stride, None if order is None else order.tolist())
    return np.frombuffer(packed, np.uint8)


def judge_round_trip(subject: Subject, call: Call) -> None:
    """What is unpacked from what was packed is what was given, bit for bit."""
    *layout, given = call.arguments
    packed = ask(subject, call)
    unpacked = ask(subject, Call("unpack_bundles", (*layout, packed)))
    for field, got, due in zip(layout[3], unpacked, given, strict=True):
        expect_bits(f"field {field} after packing and unpacking", got, due)


def judge_bytes(subject: Subject, call: Call) -> None:
    """The bytes of the definition, both written and read."""
    *layout, given = call.arguments
    due = packed_by_hand(call)
    if "pack_bundles" in subject.facts.operations:
        expect_bits("packed bytes", ask(subject, call), due)
    if "unpack_bundles" in subject.facts.operations:
        unpacked = ask(subject, Call("unpack_bundles", (*layout, due)))
        for field, got, matrix in zip(layout[3], unpacked, given, strict=True):
            expect_bits(f"field {field}, unpacked from the bytes of the definition", got, matrix)


@st.composite
def bad_packings(draw: st.DrawFn, facts: Facts) -> Call:
    """pack_bundles with a matrix that must be refused."""
    n, d = draw(st.sampled_from(sizes_of(facts)))
    dtype = draw(st.sampled_from(dtypes_of(facts)))
    up, down = draw(matrices(n, d, dtype, 2))
    broken = up.copy()
    infinite = {"F32": np.inf, "F16": np.inf, "BF16": 0x7F80}[dtype]
    no_number = {"F32": np.nan, "F16": np.nan, "BF16": 0x7FC0}[dtype]
    row, column = draw(st.integers(0, n - 1)), draw(st.integers(0, d - 1))
    broken[row, column] = draw(st.sampled_from([infinite, no_number]))
    note, given = draw(
        st.sampled_from(
            [
                ("a field is missing", [up]),
                ("a matrix has a row more", [up, np.concatenate([down, down[:1]])]),
                ("a matrix has a column more", [up, np.concatenate([down, down[:, :1]], axis=1)]),
                ("a matrix is float64", [up, np.zeros((n, d))]),
                ("a value is not finite", [broken, down]),
                ("a value is not finite", [up, broken]),
            ]
        )
    )
    return Call("pack_bundles", (n, d, dtype, ["up", "down"], 64, None, given), note)


LAYOUT = ("bundle_layout",)
CHECKS = (
    Check("BND-1", LAYOUT, layouts, judge_stride, paper_layouts),
    Check("BND-2", LAYOUT, layouts, judge_blocks, paper_layouts),
    Check("BND-3", LAYOUT, every_bad_layout, must_refuse),
    Check("BND-4", ("pack_bundles",), packings, judge_round_trip),
    Check("BND-5", ("pack_bundles", "unpack_bundles"), packings, judge_bytes),
    Check("BND-6", ("pack_bundles",), bad_packings, must_refuse),
    Check("BND-7", LAYOUT, layouts, judge_extents, paper_layouts),
    Check("BND-8", LAYOUT, far_away, judge_extents, far_examples),
    Check("BND-9", LAYOUT, bad_extent_ids, must_refuse, bad_extent_examples),
)
