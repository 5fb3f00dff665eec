"""The five methods of the paper's Table 2, as replays of one trace: what each reads, moves and takes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flashref.bundle import bundle_extents, bundle_layout
from flashref.decode import Place, read_batches
from flashref.slots import empty_slots
from flashref.storage.device import read_time
from flashref.storage.plan import plan_io, read_plan
from flashref.transformer.budget import Budget, Demand
from flashref.types import IO, Device, Extent, Ids, Layout, Reader
from flashref.window import empty_window, window_update

SEQUENTIAL_READ = 1024 * 1024  # naive and hybrid read front to back in pieces of 1 MiB (decision 20)
BATCH_READS = 256  # of 1 MiB, where they are really read
NOTHING = IO(0, 0, 0, 0)


class Trace(NamedTuple):
    """What was predicted: [pass][layer] → ids; passes from `first_counted` on choose a new token."""

    predicted: tuple[tuple[Ids, ...], ...]
    first_counted: int


class Flash(NamedTuple):
    """A model on flash, as the methods read it.

    bundled: a layout a layer; unbundled: one a field of each layer; repeats: how many layers each stands for;
    image_bytes: of the whole bundled image; tensor_bytes: of the checkpoint, without padding.
    """

    bundled: tuple[Layout, ...]
    unbundled: tuple[tuple[Layout, ...], ...]
    repeats: tuple[int, ...]
    image_bytes: int
    tensor_bytes: int


class Method(NamedTuple):
    """One row of the table: means over the forward passes that choose a new token; None: not measured."""

    name: str
    useful_bytes_per_token: float
    flash_bytes_per_token: float
    reads_per_token: float
    dram_bytes: int
    dram_moved_bytes_per_token: float
    simulated_io_ms_per_token: float
    measured_io_ms_per_token: float | None


class Cost(NamedTuple):
    """How a replay pays for one batch: `sequential` for runs of bytes, `scattered` for neurons."""

    sequential: Callable[[Sequence[Extent]], IO]
    scattered: Callable[[Sequence[Layout], Ids], IO]


def simulated_cost(device: Device) -> Cost:
    """What batches take on a modelled device; nothing is read."""

    def sequential(runs: Sequence[Extent]) -> IO:
        sizes: list[int] = []  # of front_to_back, without its extents: a large model has thousands
        for run in runs:
            whole, rest = divmod(run.length, SEQUENTIAL_READ)
            sizes += [SEQUENTIAL_READ] * whole + [rest] * (rest > 0)
        return IO(len(sizes), sum(sizes), sum(sizes), read_time(device, sizes))

    def scattered(layouts: Sequence[Layout], ids: Ids) -> IO:
        sizes = read_sizes(layouts, ids)
        useful = len(ids) * sum(layout.bundle_bytes for layout in layouts)
        return IO(len(sizes), useful, sum(sizes), read_time(device, sizes))

    return Cost(sequential, scattered)


def measured_cost(read_bundled: Reader, read_unbundled: Reader) -> Cost:
    """What batches take where they are really read: whole runs and bundles, or rows of their own."""

    def sequential(runs: Sequence[Extent]) -> IO:
        pieces = tuple(extent for run in runs for extent in front_to_back(run))
        # Buffers of a batch are in memory together, so a whole model is read in several.
        batches = [pieces[i : i + BATCH_READS] for i in range(0, len(pieces), BATCH_READS)]
        return plan_io(pieces, pieces, sum(read_bundled(batch).nanoseconds for batch in batches))

    def scattered(layouts: Sequence[Layout], ids: Ids) -> IO:
        if len(ids) == 0:
            return NOTHING
        extents = [extent for layout in layouts for extent in bundle_extents(layout, ids)]
        plan = read_plan(extents, layouts[0].block, 0)
        read = read_bundled if len(layouts) == 1 else read_unbundled
        return plan_io(plan, extents, read(plan).nanoseconds)

    return Cost(sequential, scattered)


def replay_methods(
    trace: Trace, flash: Flash, demand: Demand, budget: Budget, place: Place, costs: Sequence[Cost]
) -> tuple[Method, ...]:
    """Five replays of one trace: naive, hybrid, + predictor, + windowing, + bundling (decision 20).

    costs: the simulated one, and the measured one if there is a disk. All counters are the first's.
    """
    passes = len(trace.predicted) - trace.first_counted
    kept_layers = min((budget.memory - demand.resident) // (demand.neurons * demand.stride), demand.layers)
    whole = [Extent(0, flash.image_bytes)]
    rest = _ffn_runs(flash, kept_layers)
    hybrid_useful = _ffn_bytes(flash, kept_layers)
    hybrid_dram = demand.resident + kept_layers * demand.neurons * demand.stride

    windowed = list(_windowed(trace, flash, demand, budget, place))

    rows = []
    for cost in costs:
        totals = [
            [cost.sequential(whole)._replace(useful_bytes=flash.tensor_bytes) for _ in range(passes)],
            [cost.sequential(rest)._replace(useful_bytes=hybrid_useful) for _ in range(passes)],
            _pay(_predicted(trace), cost, flash.unbundled, flash.repeats),
            _pay([ids for ids, _ in windowed], cost, flash.unbundled, flash.repeats),
            _pay([ids for ids, _ in windowed], cost, [(layout,) for layout in flash.bundled], flash.repeats),
        ]
        rows.append([_mean(total) for total in totals])
    moved_rows = sum(moved for _, moved in windowed) / passes
    names = ("naive", "hybrid", "predictor", "windowing", "bundling")
    dram = (0, hybrid_dram, demand.fixed, budget.dram_bytes, budget.dram_bytes)
    moved = (0.0, 0.0, 0.0, *[moved_rows * flash.bundled[0].bundle_bytes] * 2)
    return tuple(
        Method(
            name,
            useful_bytes_per_token=rows[0][i][1],
            flash_bytes_per_token=rows[0][i][2],
            reads_per_token=rows[0][i][0],
            dram_bytes=dram[i],
            dram_moved_bytes_per_token=moved[i],
            simulated_io_ms_per_token=rows[0][i][3] / 1e6,
            measured_io_ms_per_token=rows[1][i][3] / 1e6 if len(rows) > 1 else None,
        )
        for i, name in enumerate(names)
    )


def unbundled_layouts(bundled: Layout) -> tuple[Layout, ...]:
    """The same rows without bundling: one layout a field, one after the other with a block between."""
    layouts: list[Layout] = []
    start = 0
    for field in bundled.fields:
        layout = bundle_layout(
            bundled.n, bundled.d, bundled.dtype, (field,), bundled.block, start, bundled.order
        )
        layouts.append(layout)
        start = _blocks_end(layout) + layout.block
    return tuple(layouts)


def front_to_back(run: Extent) -> Iterator[Extent]:
    """A run of bytes in sequential reads of 1 MiB, the last one shorter."""
    for start in range(0, run.length, SEQUENTIAL_READ):
        yield Extent(run.offset + start, min(SEQUENTIAL_READ, run.length - start))


def read_sizes(layouts: Sequence[Layout], ids: Ids) -> list[int]:
    """The sizes of the plan of these neurons' extents, gaps never read over: `read_plan`, in arrays."""
    if len(ids) == 0:
        return []
    starts, ends = [], []
    for layout in layouts:
        positions = ids if layout.order is None else np.argsort(layout.order)[ids]
        offsets = layout.start + positions * layout.stride
        starts.append(offsets // layout.block * layout.block)
        ends.append(-(-(offsets + layout.bundle_bytes) // layout.block) * layout.block)
    start, end = np.concatenate(starts), np.concatenate(ends)
    ascending = np.argsort(start, kind="stable")
    start, end = start[ascending], np.maximum.accumulate(end[ascending])
    first = np.flatnonzero(np.concatenate([[True], start[1:] > end[:-1]]))
    last = np.concatenate([first[1:], [len(start)]]) - 1
    sizes: list[int] = (end[last] - start[first]).tolist()
    return sizes


# A pass, layer by layer: the ids of each batch.
_Pass = list[tuple[Ids, ...]]


def _predicted(trace: Trace) -> list[_Pass]:
    """Without a window every predicted neuron is read, one batch a layer."""
    return [[(ids,) for ids in layers] for layers in trace.predicted[trace.first_counted :]]


def _windowed(
    trace: Trace, flash: Flash, demand: Demand, budget: Budget, place: Place
) -> Iterator[tuple[_Pass, int]]:
    """The batches of each counted pass under the window, and the rows that the placement moved."""
    n = flash.bundled[0].n
    windows = [empty_window(n, budget.window, capacity) for capacity in budget.capacities]
    slots = [empty_slots(capacity) for capacity in budget.capacities]
    for number, layers in enumerate(trace.predicted):
        batches: _Pass = []
        moved = 0
        for layer, ids in enumerate(layers):
            windows[layer], delta = window_update(windows[layer], ids)
            slots[layer], moves = place(slots[layer], delta)
            batches.append(read_batches(delta, demand.bypass_rows))
            moved += flash.repeats[layer] * len(moves.source)
        if number >= trace.first_counted:
            yield batches, moved


def _pay(
    passes: Sequence[_Pass], cost: Cost, layouts: Sequence[Sequence[Layout]], repeats: Sequence[int]
) -> list[IO]:
    """The cost of each pass: every batch of every layer, as often as the layer stands for."""
    totals = []
    for layers in passes:
        parts = [
            [repeats[layer] * value for value in cost.scattered(layouts[layer], ids)]
            for layer, batches in enumerate(layers)
            for ids in batches
        ]
        totals.append(IO(*(sum(column) for column in zip(*parts, strict=True))))
    return totals


def _mean(totals: Sequence[IO]) -> list[float]:
    return [sum(column) / len(totals) for column in zip(*totals, strict=True)]


def _read_layers(flash: Flash, kept_layers: int) -> list[Layout]:
    """The FFN layers that hybrid does not keep."""
    every = [layout for layout, times in zip(flash.bundled, flash.repeats, strict=True) for _ in range(times)]
    return every[kept_layers:]


def _ffn_runs(flash: Flash, kept_layers: int) -> list[Extent]:
    """Their bundles, each layer one run of whole blocks."""
    return [
        Extent(layout.start, _blocks_end(layout) - layout.start)
        for layout in _read_layers(flash, kept_layers)
    ]


def _ffn_bytes(flash: Flash, kept_layers: int) -> int:
    """Their weights, without padding."""
    return sum(layout.n * layout.bundle_bytes for layout in _read_layers(flash, kept_layers))


def _blocks_end(layout: Layout) -> int:
    """Where the last block with a bundle ends."""
    return -(-(layout.start + layout.n * layout.stride) // layout.block) * layout.block
