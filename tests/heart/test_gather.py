"""Chapter 60: gathered rows against the stored matrices, counters against sets of blocks."""

import re
from zlib import crc32

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from test_bundle import packings

from flashref import bundle_layout, gather_rows, pack_bundles, same
from flashref.conformance.strategies import id_sets
from flashref.storage.device import PRESETS
from flashref.storage.readers import memory_reader
from flashref.types import IO, IdsError, ImageError, Read

DEVICE = PRESETS["paper_m1max_fig2b"]


def image_of(layout, matrices):
    """The packed bundles behind `start` bytes of noise, up to the next block."""
    packed = pack_bundles(layout, matrices)
    tail = -len(packed) % layout.block
    noise = np.full(layout.start, 0xA5, np.uint8)
    return np.concatenate([noise, packed, np.full(tail, 0x5A, np.uint8)])


def reader_of(layout, image):
    return memory_reader(image, DEVICE._replace(block=layout.block))


def crcs(layout, image):
    order = range(layout.n) if layout.order is None else layout.order.tolist()
    sums = np.zeros(layout.n, np.uint32)
    for p, neuron in enumerate(order):
        at = layout.start + p * layout.stride
        sums[neuron] = crc32(image[at : at + layout.stride].tobytes())
    return sums


@pytest.mark.req("GTH-1", "GTH-3")
@given(packings(), st.data())
def test_rows_are_the_stored_rows_and_counters_those_of_blocks(case, data):
    layout, matrices = case
    ids = data.draw(id_sets(layout.n))
    max_gap = data.draw(st.sampled_from([0, layout.block, layout.stride, 3 * layout.stride]))
    image = image_of(layout, matrices)
    checksums = data.draw(st.sampled_from([None, crcs(layout, image)]))
    rows, io = gather_rows(reader_of(layout, image), layout, ids, max_gap, checksums)
    assert rows.shape == (len(ids), len(layout.fields), layout.d)
    for j, field in enumerate(layout.fields):
        assert same(rows[:, j], matrices[field][ids])
    # Blocks that hold a byte of a bundle, then the gaps between runs of them.
    place = {neuron: p for p, neuron in enumerate(range(layout.n) if layout.order is None else layout.order)}
    blocks = set()
    for i in ids:
        at = layout.start + place[i] * layout.stride
        blocks |= {byte // layout.block for byte in range(at, at + layout.bundle_bytes)}
    for left, right in zip(sorted(blocks), sorted(blocks)[1:], strict=False):
        if (right - left - 1) * layout.block <= max_gap:
            blocks |= set(range(left, right))
    runs = sum(block - 1 not in blocks for block in blocks)
    event(f"{min(runs, 3)} requests")
    expected = IO(runs, len(ids) * layout.bundle_bytes, len(blocks) * layout.block, io.nanoseconds)
    assert io == expected


@pytest.mark.req("GTH-4")
@given(packings(), st.data())
def test_one_flipped_bit_in_a_padded_bundle_is_refused(case, data):
    layout, matrices = case
    image = image_of(layout, matrices)
    checksums = crcs(layout, image)
    neuron = data.draw(st.integers(0, layout.n - 1))
    position = neuron if layout.order is None else layout.order.tolist().index(neuron)
    bit = data.draw(st.integers(0, 8 * layout.stride - 1))
    image[layout.start + position * layout.stride + bit // 8] ^= 1 << bit % 8
    read = reader_of(layout, image)
    others = [i for i in range(layout.n) if i != neuron]
    gather_rows(read, layout, others, checksums=checksums)
    with pytest.raises(ImageError, match=re.escape(f"the bundle of neuron {neuron} at byte")):
        gather_rows(read, layout, range(layout.n), checksums=checksums)


def never(extents):
    raise AssertionError("nothing may be read")


@pytest.mark.req("GTH-2")
@pytest.mark.parametrize("bad", [[3], [-1], [1, 0], [1, 1]])
def test_bad_ids_are_refused_before_reading(bad):
    with pytest.raises(IdsError):
        gather_rows(never, bundle_layout(3, 2, "F16"), bad)


@pytest.mark.req("GTH-6")
def test_nothing_costs_nothing():
    rows, io = gather_rows(never, bundle_layout(3, 2, "BF16"), [])
    assert same(rows, np.zeros((0, 2, 2), np.uint16))
    assert io == IO(0, 0, 0, 0)


@pytest.mark.req("GTH-5")
def test_rows_outlive_the_buffers():
    layout = bundle_layout(2, 4, "F16", block=16)
    up = np.arange(8, dtype=np.float16).reshape(2, 4)
    image = pack_bundles(layout, {"up": up, "down": -up})
    kept = []

    def read(extents):
        for buffer in kept:
            buffer[:] = 0xEE  # as a reader may at the next read
        kept[:] = [image[e.offset : e.offset + e.length].copy() for e in extents]
        return Read(tuple(kept), 7)

    first = gather_rows(read, layout, [0])
    second = gather_rows(read, layout, [1])
    assert same(first.rows[0], np.stack([up[0], -up[0]]))
    assert same(second.rows[0], np.stack([up[1], -up[1]]))
    assert first.io.nanoseconds == 7
