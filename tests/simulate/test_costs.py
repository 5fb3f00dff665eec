"""Costs of whole traces in arrays are read_plan and read_time of every batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref.bundle import bundle_extents, bundle_layout
from flashref.conformance.strategies import devices, id_sets
from flashref.simulate import costs
from flashref.simulate.costs import Sizes, batch_times, read_sizes, separate_sizes, sequential_sizes
from flashref.simulate.flash import unbundled_layouts
from flashref.simulate.trace import trace_of
from flashref.simulate.window import unwindowed
from flashref.storage.device import PRESETS, read_time
from flashref.storage.plan import read_plan
from flashref.types import DomainError


@st.composite
def layouts_of_layers(draw, units):
    """For each layer a layout of its own, all of one block; bundled, or a layout a field."""
    block = 2 ** draw(st.integers(0, 7))
    bundled = [
        bundle_layout(
            n,
            draw(st.integers(1, 40)),
            "F16",
            ("up", "down"),
            block,
            block * draw(st.integers(0, 3)),
            draw(st.none() | st.permutations(range(n))),
        )
        for n in units
    ]
    split = draw(st.booleans())
    return [unbundled_layouts(layout) if split else (layout,) for layout in bundled]


@st.composite
def cases(draw):
    units = draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    predicted = [[draw(id_sets(n)) for n in units] for _ in range(draw(st.integers(1, 4)))]
    layouts = draw(layouts_of_layers(units))
    block = layouts[0][0].block
    return units, predicted, layouts, draw(st.sampled_from([0, 1, block, 4 * block]))


@pytest.mark.parametrize(("part", "few_sizes"), [(costs.PART, costs.FEW_SIZES), (3, 1)])
@given(case=cases(), device=devices())
def test_sizes_and_times_are_those_of_the_plan_of_every_batch(part, few_sizes, case, device):
    units, predicted, layouts, max_gap = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "PART", part)
        patch.setattr(costs, "FEW_SIZES", few_sizes)
        sizes = read_sizes(unwindowed(trace_of(predicted, units)), layouts, max_gap)
        times = batch_times(device, sizes)
    batches = [(layer, ids) for layers in predicted for layer, ids in enumerate(layers)]
    assert len(times) == len(sizes.starts) - 1 == len(batches)
    for number, (layer, ids) in enumerate(batches):
        extents = [extent for layout in layouts[layer] for extent in bundle_extents(layout, ids)]
        planned = [read.length for read in read_plan(extents, sizes.block, max_gap)]
        start, stop = sizes.starts[number : number + 2]
        assert (sizes.blocks[start:stop] * sizes.block).tolist() == planned
        assert int(times[number]) == read_time(device, planned)


@pytest.mark.parametrize("stream_bandwidth", [0, 10**6])  # with 1 MB/s the one long read outlasts the others
def test_batches_around_the_queue_depth_take_what_read_time_says(stream_bandwidth):
    device = PRESETS["nvme_gen4"]._replace(block=64, queue_depth=4, stream_bandwidth=stream_bandwidth)
    layout = bundle_layout(40, 16, "F32", ("up",), 64)  # a block each
    predicted = [[[*range(0, 2 * reads, 2), *range(30, 40)]] for reads in range(12)]
    times = batch_times(device, read_sizes(unwindowed(trace_of(predicted, [40])), [(layout,)]))
    assert times.tolist() == [read_time(device, [64] * reads + [640]) for reads in range(12)]


@given(cases())
def test_separate_sizes_are_those_of_every_extent(case):
    units, predicted, layouts, _ = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "PART", 3)
        sizes = separate_sizes(unwindowed(trace_of(predicted, units)), layouts)
    batches = [(layer, ids) for layers in predicted for layer, ids in enumerate(layers)]
    for (layer, ids), start, stop in zip(batches, sizes.starts[:-1], sizes.starts[1:], strict=True):
        planned = [
            read.length
            for layout in layouts[layer]
            for position in sorted(ids if layout.order is None else np.argsort(layout.order)[list(ids)])
            for read in read_plan(
                bundle_extents(layout._replace(order=None), np.array([position])), sizes.block, 0
            )
        ]
        assert (sizes.blocks[start:stop] * sizes.block).tolist() == planned


@given(st.integers(0, 40), st.integers(1, 8), st.integers(0, 5))
def test_front_to_back_reads_are_pieces_and_a_rest(blocks, piece, log_block):
    block = 2**log_block
    sizes = sequential_sizes(blocks * block, piece * block, block)
    pieces = [min(piece, blocks - start) for start in range(0, blocks, piece)]
    assert sizes.blocks.tolist() == pieces
    assert sizes.starts.tolist() == [0, len(pieces)]
    device = PRESETS["paper_m1max_fig2b"]
    assert batch_times(device, sizes).tolist() == [read_time(device, [size * block for size in pieces])]


def test_blocks_that_differ_and_negative_gaps_are_refused():
    reads = unwindowed(trace_of([[[0], [0]]], [1, 1]))
    small, large = (bundle_layout(1, 4, "F32", ("up",), block) for block in (64, 128))
    with pytest.raises(DomainError, match="all layouts need the same block"):
        read_sizes(reads, [(small,), (large,)])
    with pytest.raises(DomainError, match="max_gap"):
        read_sizes(reads, [(small,), (small,)], -1)


def test_a_trace_without_reads_costs_nothing():
    reads = unwindowed(trace_of([[np.zeros(0, np.int64)]], [1]))
    sizes = read_sizes(reads, [(bundle_layout(1, 4, "F32", ("up",), 64),)])
    assert batch_times(PRESETS["this_vm"], sizes).tolist() == [0]
    with pytest.raises(DomainError, match="knee"):
        batch_times(PRESETS["this_vm"]._replace(knee=0.5), sizes)


def test_a_queue_may_be_deeper_than_any_batch():
    device = PRESETS["nvme_gen4"]._replace(queue_depth=2**53)
    sizes = Sizes(np.array([3, 1, 1, 2]), np.array([0, 1, 4]), 4096)
    assert batch_times(device, sizes).tolist() == [
        read_time(device, [3 * 4096]),
        read_time(device, [4096, 4096, 2 * 4096]),
    ]


def test_bytes_that_no_int64_holds_are_refused():
    device = PRESETS["nvme_gen4"]._replace(max_bandwidth=0, stream_bandwidth=0)
    sizes = Sizes(np.full(1024, 1), np.array([0, 1024]), 2**53)
    with pytest.raises(DomainError, match="more bytes than can be counted"):
        batch_times(device, sizes)


@pytest.mark.parametrize("field", [{"latency_ns": 2**53}, {"dispatch_ns": 2**53}, {"max_bandwidth": 1}])
def test_times_that_no_int64_holds_are_refused_and_never_wrong(field):
    device = PRESETS["nvme_gen4"]._replace(**field)
    few, many = (Sizes(np.full(reads, 256), np.array([0, reads]), 4096) for reads in (8, 20_000))
    assert batch_times(device, few).tolist() == [read_time(device, [1 << 20] * 8)]
    with pytest.raises(DomainError, match="longer than 292 years"):
        batch_times(device, many)
