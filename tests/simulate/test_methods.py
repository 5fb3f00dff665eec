"""The five rows of the table, each against a replay with Python sets, lists and block numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proven_runs import COUNT, decode
from random_models import DEVICE, LAYERS, NEURONS, open_packed, random_weights, write_model

from flashref.bundle import bundle_layout
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import open_checkpoint
from flashref.models.text import Record
from flashref.simulate import scaled
from flashref.simulate.flash import Flash, front_to_back, unbundled_layouts
from flashref.simulate.methods import Cost, measured_cost, simulated_cost
from flashref.simulate.pieces import Replay, methods_of, replay_tokens
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.simulate.shapes.shape import shape_demand
from flashref.simulate.trace import trace_of
from flashref.simulate.window import unwindowed
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import PRESETS, read_time
from flashref.storage.image import open_image, pack_image
from flashref.storage.readers import DirectReader, memory_reader
from flashref.types import IO, Extent

PLACEMENTS = (swap_with_last, fill_holes)
NAMES = ("naive", "hybrid", "predictor", "windowing", "bundling")
MIB = 1024 * 1024


def runs_of_blocks(extents, block):
    """The sizes of the reads: blocks that hold a wanted byte, as a set; neighbours are one read."""
    blocks = {
        b for offset, length in extents for b in range(offset // block, (offset + length - 1) // block + 1)
    }
    sizes = []
    for number in sorted(blocks):
        if number - 1 in blocks:
            sizes[-1] += block
        else:
            sizes.append(block)
    return sizes


def row_extents(layouts, ids):
    """Where the rows of these neurons lie, from the position of each in the order."""
    extents = []
    for layout in layouts:
        order = list(range(layout.n)) if layout.order is None else layout.order.tolist()
        extents += [(layout.start + order.index(i) * layout.stride, layout.bundle_bytes) for i in ids]
    return extents


class Slots:
    """A DRAM matrix as a list of ids; every row that is copied within it is counted."""

    def __init__(self, placement):
        self.rows, self.moved, self.placement = [], 0, placement

    def change(self, evict, load):
        new = sorted(load)
        holes = [row for row, i in enumerate(self.rows) if i in evict]
        rows = {row: i for row, i in enumerate(self.rows) if i not in evict}
        if self.placement is fill_holes:
            while new and holes:
                rows[holes.pop(0)] = new.pop(0)
        count = len(rows)
        for hole in [hole for hole in holes if hole < count]:
            rows[hole] = rows.pop(max(rows))
            self.moved += 1
        self.rows = [rows[row] for row in range(count)] + new


def windowed_by_definition(trace, budget, bypass_rows, placement):
    """[pass][layer] → (batches of ids, rows moved): decisions 1, 2, 8, 10 and 11 with sets and lists."""
    kept = [[] for _ in budget.capacities]
    slots = [Slots(placement) for _ in budget.capacities]
    for number in range(trace.tokens):
        answer = []
        for layer in range(trace.layers):
            predicted, capacity = set(trace.active(number, layer).tolist()), budget.capacities[layer]
            before = set().union(*(old for _, old in kept[layer]))
            kept[layer] = [(t, old) for t, old in kept[layer] if t > number - budget.window]
            while kept[layer] and len(predicted.union(*(old for _, old in kept[layer]))) > capacity:
                kept[layer].pop(0)
            newest = (sorted(predicted & before) + sorted(predicted - before))[:capacity]
            kept[layer].append((number, set(newest)))
            after = set().union(*(old for _, old in kept[layer]))
            bypass = sorted(predicted - set(newest))
            moved = slots[layer].moved
            slots[layer].change(before - after, after - before)
            assert set(slots[layer].rows) == after and len(slots[layer].rows) == len(after)
            batches = [bypass[i : i + bypass_rows] for i in range(0, len(bypass), bypass_rows)] or [[]]
            batches[0] = sorted(set(batches[0]) | (after - before))
            answer.append((batches, slots[layer].moved - moved))
        yield answer


def table_by_definition(trace, flash, demand, budget, placement, device):
    """name → (useful, read, requests, moved bytes, nanoseconds), each summed over the counted passes."""
    passes = trace.tokens - trace.first_counted
    totals = {name: np.zeros(5, object) for name in NAMES}

    def batch(name, sizes, useful):
        totals[name] += np.array([useful, sum(sizes), len(sizes), 0, read_time(device, sizes)], object)

    def pieces(length):
        return [MIB] * (length // MIB) + [length % MIB] * (length % MIB > 0)

    # Hybrid: resident parts first, then whole layers, stored ones, from the first on.
    free, unread = budget.memory - demand.resident, []
    for layout in flash.bundled:
        whole = layout.n * layout.stride
        if free >= whole and not unread:
            free -= whole
        else:
            unread.append(layout)
    for _ in range(passes):
        batch("naive", pieces(flash.image_bytes), flash.tensor_bytes)
        sizes = [
            size
            for layout in unread
            for size in pieces(math.ceil(layout.n * layout.stride / layout.block) * layout.block)
        ]
        batch("hybrid", sizes, sum(layout.n * layout.bundle_bytes for layout in unread))
    windowed = windowed_by_definition(trace, budget, math.ceil(demand.neurons / 16), placement)
    for number, layers in enumerate(windowed):
        if number < trace.first_counted:
            continue
        for layer, (batches, moved) in enumerate(layers):
            bundled, rows = [flash.bundled[layer]], flash.unbundled[layer]
            per_neuron = bundled[0].bundle_bytes
            everything = trace.active(number, layer).tolist()
            block = bundled[0].block
            for name, layouts, of in (
                ("predictor", rows, [everything]),
                ("windowing", rows, batches),
                ("bundling", bundled, batches),
            ):
                for ids in of:
                    sizes = runs_of_blocks(row_extents(layouts, ids), block)
                    batch(name, sizes, len(ids) * per_neuron)
            for name in ("windowing", "bundling"):
                totals[name][3] += moved * per_neuron
    return totals


def figures(method, passes):
    """A row's sums, exact: means times passes would round."""
    means = (
        method.useful_bytes_per_token,
        method.flash_bytes_per_token,
        method.reads_per_token,
        method.dram_moved_bytes_per_token,
        method.simulated_io_ms_per_token * 1e6,
    )
    return [Fraction(mean).limit_denominator(10**6) * passes for mean in means]


def check_table(methods, trace, flash, demand, budget, placement, device):
    passes = trace.tokens - trace.first_counted
    expected = table_by_definition(trace, flash, demand, budget, placement, device)
    assert tuple(method.name for method in methods) == NAMES
    for method in methods:
        got, want = figures(method, passes), expected[method.name].tolist()
        assert got[:4] == want[:4], method.name
        assert math.isclose(got[4], want[4], rel_tol=1e-12), method.name


def replayed(replay, trace):
    """The table of a trace, token by token."""
    tokens = ([trace.active(t, layer) for layer in range(trace.layers)] for t in range(trace.tokens))
    totals = replay_tokens(replay, tokens, trace.first_counted)
    return methods_of(replay, totals, trace.tokens - trace.first_counted)


def random_trace(seed, layers, n, passes, first_counted=0, share=0.15):
    """Predictions that overlap from token to token."""
    rng = np.random.default_rng(seed)
    base = rng.random((layers, n)) < share
    predicted = []
    for _ in range(passes):
        flips = rng.random((layers, n))
        base = np.where(flips < 0.08, flips < 0.08 * share, base)
        predicted.append(tuple(np.flatnonzero(row | (rng.random(n) < share / 3)) for row in base))
    return trace_of(predicted, (n,) * layers, first_counted)


def made_flash(n, d, block, layers, order=None):
    """Layers one after the other, an odd number of bytes that are not the FFN's before them."""
    bundled, start = [], 3 * block
    for _ in range(layers):
        bundled.append(bundle_layout(n, d, "F16", ("up", "down"), block, start, order))
        start += math.ceil(n * bundled[-1].stride / block) * block + block
    unbundled = tuple(unbundled_layouts(layout) for layout in bundled)
    return Flash(tuple(bundled), unbundled, start + 5 * block, 12_345)


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


def opt_6_7b_parameters():
    """(all, resident without biases) of facebook/opt-6.7b, tensor by tensor."""
    d, n, vocabulary, positions, layers = 4096, 16_384, 50_272, 2048 + 2, 32
    everything = resident = 0
    tensors = [("tokens", vocabulary * d), ("positions", positions * d), ("norm", d), ("norm.bias", d)]
    for _ in range(layers):
        for which in ("q", "k", "v", "out"):
            tensors += [(which, d * d), (f"{which}.bias", d)]
        tensors += [("fc1.ffn", n * d), ("fc1.bias", n), ("fc2.ffn", d * n), ("fc2.bias", d)]
        tensors += [("attention norm", d), ("attention norm.bias", d), ("ffn norm", d), ("ffn norm.bias", d)]
    for name, size in tensors:
        everything += size
        resident += 0 if name.endswith((".bias", ".ffn")) else size
    return everything, resident


SIXTY_SEVEN = Demand(
    total=2 * opt_6_7b_parameters()[0],
    resident=2 * opt_6_7b_parameters()[1],
    predictors=2 * sum(rank * (4096 + 16_384) for rank in [128] * 28 + [1024] * 4),
    layers=32,
    neurons=16_384,
    stride=16_384,  # up and down row of 4096 in fp16: four blocks
)


def test_opt_6_7b_has_as_many_parameters_as_it_says():
    assert opt_6_7b_parameters()[0] == 6_658_473_984
    assert shape_demand(scaled.SHAPE, 4096) == SIXTY_SEVEN
    assert SIXTY_SEVEN.bypass_rows == 1024


def scale(predicted, neurons, window=None, mean=None, largest=None, place=swap_with_last, first=0):
    record = Record([[np.array(ids) for ids in layers] for layers in predicted], first)
    return scale_to_opt_6_7b(record, neurons, window, (mean, largest), place, PRESETS["paper_m1max"])


def test_a_scaled_case_worked_by_hand():
    # Two layers of 8192 neurons: each stands for 16 layers, each neuron for two, 8192 apart.
    one = (np.array([3]), np.array([0, 1, 5]))
    two = (np.array([3, 4]), np.array([], np.int64))
    methods = scale([one, two], 8192, window=1)
    image = math.ceil(SIXTY_SEVEN.total / 4096) * 4096
    half = SIXTY_SEVEN.total // 2
    assert (methods[0].useful_bytes_per_token, methods[0].flash_bytes_per_token) == (SIXTY_SEVEN.total, image)
    assert methods[0].reads_per_token == math.ceil(image / MIB)
    layer = 16_384 * 16_384
    kept = (half - SIXTY_SEVEN.resident) // layer
    assert methods[1].dram_bytes == SIXTY_SEVEN.resident + kept * layer
    assert methods[1].useful_bytes_per_token == methods[1].flash_bytes_per_token == (32 - kept) * layer
    # Predicted: 2 · (1 + 3) and 2 · 2 neurons, for 16 layers each: 128 + 64 in two passes, of 16 KiB.
    assert methods[2].useful_bytes_per_token == methods[2].flash_bytes_per_token == 96 * 16_384
    # Rows of 8 KiB. Pass 1: 3 alone: 2 reads for each of 2 copies, 4. 0 and 1 touch, 5 alone: 4 · 2 = 8.
    # Pass 2: 3 and 4 touch: 4 reads. All for 16 layers.
    assert methods[2].reads_per_token == 16 * (4 + 8 + 4) / 2
    # With a window of one, pass 2 reads what pass 1 had not: 4 alone in both copies.
    assert methods[3].useful_bytes_per_token == methods[4].useful_bytes_per_token == 16 * (8 + 2) * 16_384 / 2
    assert methods[3].reads_per_token == 16 * (4 + 8 + 4) / 2
    assert methods[4].reads_per_token == 16 * (2 + 4 + 2) / 2
    # Neither pass moves a row: pass 2 keeps both copies of 3 and appends; the other layer is emptied.
    assert methods[4].dram_moved_bytes_per_token == 0
    device = PRESETS["paper_m1max"]
    batches = [[16_384] * 2, [32_768, 16_384] * 2, [16_384] * 2]
    nanoseconds = 16 * sum(read_time(device, sizes) for sizes in batches) / 2
    assert methods[4].simulated_io_ms_per_token == nanoseconds / 1e6
    assert all(method.measured_io_ms_per_token is None for method in methods)
    # Nothing stored: all layers share alike what half of the model leaves.
    rows = (half - SIXTY_SEVEN.fixed) // 16_384 // 32
    assert methods[4].dram_bytes == SIXTY_SEVEN.fixed + 32 * rows * 16_384


@pytest.mark.parametrize("layers", [1, 3, 4, 40])
def test_every_large_layer_is_some_traced_layer(layers):
    # Layer l of 32 is traced layer ⌊l · layers / 32⌋, each with a number of predictions of its own.
    # From id 384 on, the seventeenth copy would lie behind the last neuron.
    predicted = [[380 + 20 * np.arange(1 + layer) for layer in range(layers)]]
    counts = [1 + at * layers // 32 for at in range(32)]
    methods = scale(predicted, 1300)
    copies = [
        sum(380 + 20 * i + 1300 * j < 16_384 for j in range(13) for i in range(count)) for count in counts
    ]
    assert methods[2].useful_bytes_per_token == sum(copies) * 16_384


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_capacities_and_window_at_the_large_shape(dtype):
    # Four layers of 1024: 16 copies. Largest |C_t| by layer as 1 : 2 : 3 : 2, 8 large layers each.
    largest = np.array([[10], [20], [30], [20]], dtype) * np.arange(1, 6, dtype=dtype)
    half = SIXTY_SEVEN.total // 2
    rows = (half - SIXTY_SEVEN.fixed) // 16_384
    capacities = [rows * share // (8 * 8) for share in (1, 2, 3, 2)]
    # A trace that predicts just as many neurons as fit layer 1, or one copy more.
    per_neuron = capacities[1] // 16
    for extra in (0, 1):
        ids = [np.arange(n) for n in (1, per_neuron + extra, 1, 1)]
        methods = scale([ids, ids], 1024, 5, largest / 2, largest, first=1)
        assert (methods[4].reads_per_token > 0) == bool(extra)  # a warm pass reads what did not fit
    assert methods[4].dram_bytes == SIXTY_SEVEN.fixed + 8 * sum(capacities) * 16_384
    # The window is chosen at the large shape: token t predicts t alone, so that k says what is evicted.
    fits = capacities[0] / 16 / 3  # mean · 16 fits up to k = 3 in layer 0, and so in all
    mean = np.float64([[1], [2], [3], [2]]) * fits * np.arange(1, 6)
    predicted = [[[t]] * 4 for t in (0, 1, 2, 3, 0, 2, 1)]
    default, *asked = [scale(predicted, 1024, k, mean, largest, first=4) for k in (None, 2, 3, 4)]
    assert default == asked[1] != asked[0] and default != asked[2]


def test_the_table_falls_from_row_to_row():
    trace = random_trace(1, 4, 1024, 12, 4, share=0.04)
    largest = np.full((4, 5), 250)
    predicted = [[trace.active(token, layer) for layer in range(4)] for token in range(12)]
    for place in PLACEMENTS:
        methods = scale(predicted, 1024, None, largest / 2, largest, place, first=4)
        for figure in ("useful_bytes_per_token", "flash_bytes_per_token", "simulated_io_ms_per_token"):
            values = [getattr(method, figure) for method in methods]
            assert values == sorted(values, reverse=True)
            assert values[0] > values[1] > values[2] > values[3]
        assert methods[4].simulated_io_ms_per_token < methods[3].simulated_io_ms_per_token
        assert methods[4].reads_per_token < methods[3].reads_per_token
