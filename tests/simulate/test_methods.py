"""The five rows of the table, each against a replay with Python sets, lists and block numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_tables import MIB, check_table, made_flash, random_trace, replayed
from proven_runs import COUNT, decode
from random_models import DEVICE, LAYERS, NEURONS, open_packed, random_weights, write_model

from flashref.bundle import bundle_layout
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import open_checkpoint
from flashref.simulate.flash import Flash, front_to_back, unbundled_layouts
from flashref.simulate.methods import Cost, measured_cost, simulated_cost
from flashref.simulate.pieces import Replay
from flashref.simulate.trace import trace_of
from flashref.simulate.window import unwindowed
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import PRESETS
from flashref.storage.image import open_image, pack_image
from flashref.storage.readers import DirectReader, memory_reader
from flashref.types import IO, Extent


@pytest.mark.parametrize("placement", [swap_with_last, fill_holes])
@pytest.mark.parametrize(
    ("n", "d", "block", "capacities", "window"),
    [
        (40, 8, 64, (40, 40), 5),  # two bundles a block, all the room
        (40, 8, 64, (12, 7), 4),  # tokens leave early
        (70, 5, 16, (5, 0), 3),  # bypass in pieces of 5; a bundle fills more than a block
        (33, 200, 4096, (6, 9), 1),
        (20, 8, 64, (20, 20), 99),  # a window longer than the trace
    ],
)
def test_every_row_equals_a_replay_with_sets_and_lists(placement, n, d, block, capacities, window):
    rng = np.random.default_rng(n)
    device = PRESETS["nvme_gen4"]._replace(block=block)
    for first_counted, order in ((0, None), (6, rng.permutation(n))):
        trace = random_trace(n + first_counted, 2, n, 14, first_counted)
        flash = made_flash(n, d, block, 2, order)
        demand = Demand(12_345, 900, 100, 2, n, flash.bundled[0].stride)
        for memory in (0, n * demand.stride, 3 * n * demand.stride - 1, 10**9):
            budget = Budget(900 + memory, window, capacities, 4321)
            methods = replayed(Replay(flash, demand, budget, placement, [simulated_cost(device)]), trace)
            check_table(methods, trace, flash, demand, budget, placement, device)
            kept = min(memory // (n * demand.stride), 2)
            dram = (0, 900 + kept * n * demand.stride, demand.fixed, 4321, 4321)
            assert tuple(method.dram_bytes for method in methods) == dram
            assert all(method.measured_io_ms_per_token is None for method in methods)


def test_a_table_worked_by_hand():
    # One layer of 4 neurons in blocks of 64, bundles of 2 · 16 · 2 = 64 bytes: each a block. Rows of 32: two
    # a block; ups at 0, downs behind a block of nothing at 192. 1 GB/s: a nanosecond is a byte.
    layout = bundle_layout(4, 16, "F16", ("up", "down"), 64)
    flash = Flash((layout,), (unbundled_layouts(layout),), 512, 500)
    demand = Demand(500, 100, 40, 1, 4, 64)
    budget = Budget(356, 2, (2,), 400)
    trace = trace_of([[[0, 1]], [[1, 2]], [[3]]], [4], 1)
    device = DEVICE._replace(
        latency_ns=0, max_iops=0, max_bandwidth=10**9, stream_bandwidth=0, block=64, knee=1.0
    )
    methods = replayed(Replay(flash, demand, budget, swap_with_last, [simulated_cost(device)]), trace)
    # The first pass is warm-up. Window: {0, 1}; {1, 2} replaces 0 by 2, which moves row 1 to row 0;
    # then 3 beside 1 and 2 does not fit 2 rows: both leave, and nothing is to be moved.
    table = [tuple(method)[:7] for method in methods]
    assert table == [
        ("naive", 500, 512, 1, 0, 0, 512e-6),
        ("hybrid", 0, 0, 0, 100 + 256, 0, 0),  # 356 − 100 is just one layer
        # {1, 2}: up rows 1, 2 fill blocks 0 and 1, so do the downs: 2 reads of 128. {3}: 2 reads of 64.
        ("predictor", 1.5 * 64, 192, 2, 100 + 40 + 16 + 64, 0, 192e-6),
        ("windowing", 64, 128, 2, 400, 32, 128e-6),
        ("bundling", 64, 64, 1, 400, 32, 64e-6),
    ]


def test_rows_without_bundling_have_a_block_between_the_fields():
    layout = bundle_layout(5, 3, "F32", ("gate", "up", "down"), 64, 128, [4, 3, 2, 1, 0])
    # A row has 12 bytes, stride 16: 5 rows end at 80, the block at 128; one block further is 192.
    assert [(rows.fields, rows.start, rows.stride) for rows in unbundled_layouts(layout)] == [
        (("gate",), 0, 16),
        (("up",), 192, 16),
        (("down",), 384, 16),
    ]
    assert all(rows.order.tolist() == [4, 3, 2, 1, 0] for rows in unbundled_layouts(layout))


@given(st.integers(0, 3 * MIB), st.integers(0, 100))
def test_a_run_is_read_front_to_back_in_pieces_of_1_mib(length, offset):
    pieces = list(front_to_back(Extent(offset, length)))
    assert sum(piece.length for piece in pieces) == length
    for i, piece in enumerate(pieces):
        assert piece.offset == offset + i * MIB
        assert piece.length == MIB or (i == len(pieces) - 1 and 0 < piece.length < MIB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_weights(rank=6))


def traced(decoded):
    return trace_of(decoded.record.predicted, (NEURONS,) * LAYERS, decoded.record.first_counted)


def flash_of(opened):
    rows = tuple(map(unbundled_layouts, opened.layouts))
    sizes = opened.image.container.size, opened.demand.total
    return Flash(tuple(opened.layouts), rows, *sizes)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("placement", [swap_with_last, fill_holes])
@pytest.mark.parametrize("capacities", [(NEURONS, NEURONS), (12, 8), (3, 0)])
def test_the_last_row_is_what_the_live_run_did(folder, capacities, placement, cold):
    opened = open_packed(folder, capacities)
    opened = opened._replace(decoder=opened.decoder._replace(place=placement))
    decoded, proof = decode(opened, cold=cold)
    assert proof.failure is None
    trace = traced(decoded)
    methods = replayed(
        Replay(flash_of(opened), opened.demand, opened.budget, placement, [simulated_cost(DEVICE)]), trace
    )
    check_table(methods, trace, flash_of(opened), opened.demand, opened.budget, placement, DEVICE)
    counted = [step for layers in proof.passes[-COUNT:] for _, step in layers]
    io = IO(*(sum(column) for column in zip(*(step.io for step in counted), strict=True)))
    last = methods[-1]
    assert last.reads_per_token == io.requests / COUNT
    assert last.useful_bytes_per_token == io.useful_bytes / COUNT
    assert last.flash_bytes_per_token == io.read_bytes / COUNT
    assert last.simulated_io_ms_per_token == io.nanoseconds / COUNT / 1e6
    moved = sum(len(step.moves.source) for step in counted) * opened.layouts[0].bundle_bytes
    assert last.dram_moved_bytes_per_token == moved / COUNT
    # A buffer of 3 rows: a long bypass is more than one batch.
    assert any(len(step.times) > 1 for step in counted) == (capacities == (3, 0))


def test_measured_costs_read_what_simulated_ones_count(folder, tmp_path):
    opened = open_packed(folder, (3, 5))
    checkpoint = open_checkpoint(folder)
    layers = dict(enumerate(checkpoint.layers))
    pack_image(tmp_path / "rows", checkpoint.tensors, layers, checkpoint.config_text, bundled=False)
    rows = open_image(tmp_path / "rows")
    decoded, _ = decode(opened)
    trace = traced(decoded)
    flash = flash_of(opened)._replace(unbundled=tuple(rows.layouts[layer] for layer in range(LAYERS)))
    paths = (opened.image.container.path, tmp_path / "rows")
    # The memory reader takes the device's time: measured by it, every row takes what is simulated.
    readers = [memory_reader(path.read_bytes(), DEVICE) for path in paths]
    costs = [simulated_cost(DEVICE), measured_cost(*readers)]
    methods = replayed(Replay(flash, opened.demand, opened.budget, swap_with_last, costs), trace)
    for method in methods:
        assert method.measured_io_ms_per_token == method.simulated_io_ms_per_token > 0
    # And the direct reader, by its clock, reads the very bytes and as many times.
    ticks = iter(range(10**9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)  # file systems without O_DIRECT
        direct = [DirectReader(path, 4, clock=lambda: next(ticks)) for path in paths]
    with direct[0], direct[1]:
        real = measured_cost(direct[0].read, direct[1].read)
        told = costs[0]
        for run in ([], [Extent(0, opened.image.container.size)], [Extent(4096, 8192), Extent(0, 4096)]):
            assert real.sequential(run)[:3] == told.sequential(run)[:3]
        reads = unwindowed(trace)
        full = int((np.diff(reads.starts) > 0).sum())
        for of in ([(layout,) for layout in flash.bundled], flash.unbundled):
            assert real.scattered(of, reads)[:3] == told.scattered(of, reads)[:3]
            assert real.scattered(of, reads).nanoseconds == full  # a tick a batch that has anything to read
        counted = replayed(
            Replay(flash, opened.demand, opened.budget, swap_with_last, [real, Cost(*real)]), trace
        )
        assert [tuple(row)[:6] for row in counted] == [tuple(row)[:6] for row in methods]


# --- the trace at OPT 6.7B's shape ---------------------------------------------------------------
