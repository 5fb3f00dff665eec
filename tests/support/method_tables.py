"""The table of the five methods by definition: a replay with Python sets, lists and block numbers."""

import math
from fractions import Fraction

import numpy as np

from flashref.bundle import bundle_layout
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.pieces import methods_of, replay_tokens
from flashref.simulate.trace import trace_of
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import read_time

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
