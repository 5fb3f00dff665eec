"""The definitions of chapters 30 to 80 by the letter, in plain sets and lists: slow, and obvious.

Nothing here calls the module of a chapter. The tests, the proof of a run and the conformance kit judge those
modules by these functions. The definitions over numbers stand in `conformance/definitions.py`.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flashref.types import Array


class WindowStep(NamedTuple):
    """What one token does to a window, as plain sets.

    resident: after the token; left_early: whether tokens among the last k had to leave to make room.
    """

    resident: set[int]
    load: set[int]
    evict: set[int]
    bypass: set[int]
    left_early: bool


class DecodeStep(NamedTuple):
    """One token in one layer: the ids whose rows are in DRAM while it is summed, and its counters."""

    in_dram: set[int]
    counters: dict[str, int]


def window_model(k: int, capacity: int, actives: Iterable[Iterable[int]]) -> Iterator[WindowStep]:
    """The window (decisions 1, 2 and 8) by the letter: a list with the kept set of each token."""
    kept: list[set[int]] = []
    start, before = 0, set[int]()
    for t, predicted in enumerate(set(map(int, token)) for token in actives):
        start = full = max(start, t - k + 1)
        if t >= k:
            kept[t - k] = set()  # it is not needed again, and those of a long text would fill the memory
        while start < t and len(predicted.union(*kept[start:t])) > capacity:
            start += 1
        by_newness = sorted(predicted & before) + sorted(predicted - before)
        kept.append(set(by_newness[:capacity]))
        after = set[int]().union(*kept[start:])
        yield WindowStep(after, after - before, before - after, predicted - kept[-1], start > full)
        before = after


def swap_with_last_model(rows: list[int], evict: set[int], load: set[int]) -> tuple[list[int], int]:
    """Decision 10 (swap with last) by the letter: the ids of the slots after a token, and the rows moved."""
    count = len(rows) - len(evict)
    tail = [neuron for neuron in rows[count:] if neuron not in evict]
    moved = len(tail)
    return [tail.pop() if neuron in evict else neuron for neuron in rows[:count]] + sorted(load), moved


def fill_holes_model(rows: list[int], evict: set[int], load: set[int]) -> tuple[list[int], int]:
    """Decision 11 (fill holes) by the letter: new ids take the lowest holes, the last ids those left."""
    new, count = sorted(load), len(rows) - len(evict) + len(load)
    filled = [new.pop(0) if neuron in evict and new else neuron for neuron in rows] + new
    tail = [neuron for neuron in filled[count:] if neuron not in evict]
    moved = len(tail)
    return [tail.pop() if neuron in evict else neuron for neuron in filled[:count]], moved


PLACEMENT_MODELS = {"swap_with_last": swap_with_last_model, "fill_holes": fill_holes_model}


def stride_model(bundle_bytes: int, block: int) -> int:
    """Chapter 40: the next power of two below a block, else the next multiple of the block; by counting."""
    stride = 1 if bundle_bytes < block else block
    while stride < bundle_bytes:
        stride = stride * 2 if bundle_bytes < block else stride + block
    return stride


def packed_model(matrices: Sequence[Array], stride: int, order: Sequence[int] | None) -> bytes:
    """Chapter 40: at each position the rows of its neuron, field after field, then zeros; little-endian."""
    n = len(matrices[0])
    bundles = (
        b"".join(_little_endian(m[i]) for m in matrices) for i in (range(n) if order is None else order)
    )
    return b"".join(bundle + bytes(stride - len(bundle)) for bundle in bundles)


def _little_endian(row: Array) -> bytes:
    letter = {"f4": "f", "f2": "e", "u2": "H"}[row.dtype.str[1:]]
    return struct.pack(f"<{len(row)}{letter}", *row.tolist())


def plan_model(extents: Iterable[tuple[int, int]], block: int, max_gap: int) -> list[tuple[int, int]]:
    """Chapter 52 as a set of blocks: those that are wanted, and the gaps between them if small enough."""
    wanted: set[int] = set()
    for offset, length in extents:
        wanted.update(range(offset // block, (offset + length - 1) // block + 1))
    reads: list[tuple[int, int]] = []
    for number in sorted(wanted):
        at = number * block
        if reads and at - sum(reads[-1]) <= max_gap:
            reads[-1] = reads[-1][0], at + block - reads[-1][0]
        else:
            reads.append((at, block))
    return reads


def decode_model(
    bundle_bytes: int,
    actives: Iterable[Iterable[int]],
    k: int,
    capacity: int,
    placement: str,
    block: int,
    max_gap: int,
    bypass_rows: int,
) -> Iterator[DecodeStep]:
    """Chapter 80 for one layer: what is in DRAM for each token's sum, and what it costs."""
    rows: list[int] = []
    stride = stride_model(bundle_bytes, block)
    for step in window_model(k, capacity, actives):
        rows, moved = PLACEMENT_MODELS[placement](rows, step.evict, step.load)
        bypass = sorted(step.bypass)
        pieces = [set(bypass[i : i + bypass_rows]) for i in range(0, max(len(bypass), 1), bypass_rows)]
        batches = [step.load | pieces[0], *pieces[1:]]
        # The padding of a bundle lies in its own blocks, so the bundle's bytes find the same blocks.
        plans = [plan_model([(i * stride, bundle_bytes) for i in ids], block, max_gap) for ids in batches]
        reads = [read for plan in plans for read in plan]
        counters = {
            "loaded": len(step.load),
            "bypassed": len(bypass),
            "evicted": len(step.evict),
            "requests": len(reads),
            "useful_bytes": len(step.load | step.bypass) * bundle_bytes,
            "read_bytes": sum(length for _, length in reads),
            "moved_rows": moved,
        }
        yield DecodeStep(step.resident | step.bypass, counters)
