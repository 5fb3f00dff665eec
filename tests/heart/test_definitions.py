"""The definitions of chapters 40 to 80 in plain sets: cases made by hand, and the reference beside them."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref import bundle_layout, decode_layer, empty_layer, fill_holes, pack_bundles, swap_with_last
from flashref.conformance.strategies import id_sets
from flashref.decode import ResidentFFN, sum_resident
from flashref.definitions import decode_model, packed_model, stride_model
from flashref.storage.device import PRESETS
from flashref.storage.readers import memory_reader

PLACEMENTS = {"swap_with_last": swap_with_last, "fill_holes": fill_holes}


@pytest.mark.parametrize(
    ("bundle_bytes", "stride"),
    [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (15, 16), (16, 16), (17, 32), (32, 32), (33, 48)],
)
def test_strides_in_blocks_of_16_bytes(bundle_bytes, stride):
    assert stride_model(bundle_bytes, 16) == stride


def test_packed_bytes_are_rows_in_order_then_zeros():
    up, down = np.float16([[1], [2], [3]]), np.float16([[4], [5], [6]])
    packed = packed_model([up, down], stride=6, order=[2, 0, 1])
    assert packed == struct.pack("<2exx2exx2exx", 3, 6, 1, 4, 2, 5)
    assert packed_model([up], stride=2, order=None) == struct.pack("<3e", 1, 2, 3)


def test_a_layer_of_four_neurons_by_hand():
    # Two bundles of 8 bytes in a block of 16, two rows in DRAM, a bypass buffer of one row.
    steps = decode_model(
        bundle_bytes=8,
        actives=[[0, 1], [1, 2, 3], [0, 3], [0, 1, 2, 3]],
        k=2,
        capacity=2,
        placement="swap_with_last",
        block=16,
        max_gap=0,
        bypass_rows=1,
    )
    names = ["loaded", "bypassed", "evicted", "requests", "useful_bytes", "read_bytes", "moved_rows"]
    assert [(step.in_dram, [step.counters[name] for name in names]) for step in steps] == [
        ({0, 1}, [2, 0, 0, 1, 16, 16, 0]),
        ({1, 2, 3}, [1, 1, 1, 1, 16, 16, 1]),  # 0 leaves, the row of 1 takes its place, 3 passes by
        ({0, 3}, [2, 0, 2, 1, 16, 32, 0]),  # two blocks that touch are one read
        ({0, 1, 2, 3}, [0, 2, 0, 2, 16, 32, 0]),  # a batch for each piece of the bypass
    ]


@given(st.data(), st.sampled_from(sorted(PLACEMENTS)), st.integers(1, 4), st.integers(0, 9))
def test_the_reference_counts_what_the_definition_says(data, placement, k, capacity):
    n, d = 9, data.draw(st.integers(1, 3))
    block, max_gap = data.draw(st.sampled_from([4, 16, 64])), data.draw(st.sampled_from([0, 16, 64]))
    bypass_rows = data.draw(st.integers(1, 4))
    tokens = data.draw(st.lists(id_sets(n), max_size=6))
    layout = bundle_layout(n, d, "F32", block=block)
    ones = np.ones((n, d), np.float32)
    packed = pack_bundles(layout, {"up": ones, "down": ones})
    image = np.pad(packed, (0, -len(packed) % block))
    read = memory_reader(image, PRESETS["paper_m1max_fig2b"]._replace(block=block))
    layer = empty_layer(layout, ResidentFFN("relu"), k, capacity, bypass_rows, max_gap)
    due = decode_model(layout.bundle_bytes, tokens, k, capacity, placement, block, max_gap, bypass_rows)
    for predicted, expected in zip(tokens, due, strict=True):
        _, layer, step = decode_layer(
            layer, np.ones(d, np.float32), lambda _, p=predicted: p, PLACEMENTS[placement], read, sum_resident
        )
        assert {*step.resident.tolist(), *step.bypass.tolist()} == expected.in_dram
        assert expected.counters == {
            "loaded": len(step.load),
            "bypassed": len(step.bypass),
            "evicted": len(step.evict),
            "requests": step.io.requests,
            "useful_bytes": step.io.useful_bytes,
            "read_bytes": step.io.read_bytes,
            "moved_rows": len(step.moves.source),
        }
