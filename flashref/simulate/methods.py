"""The five methods of the paper's Table 2, as replays of one trace: what each reads, moves and takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout, bundle_extents
from flashref.models.budget import Budget, Demand
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.flash import SEQUENTIAL_READ, Flash, ffn_run, front_to_back
from flashref.simulate.trace import ActivationTrace, Reads
from flashref.simulate.window import CountMoves, unwindowed, uses_of, windowed
from flashref.storage.device import Device, read_time
from flashref.storage.plan import plan_io, read_plan
from flashref.types import IO, Extent, Reader

BATCH_READS = 256  # of 1 MiB, where they are really read


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
    """How a replay pays: `sequential` for runs of bytes, one batch; `scattered` for a policy's batches."""

    sequential: Callable[[Sequence[Extent]], IO]
    scattered: Callable[[Sequence[Sequence[Layout]], Reads], IO]


def simulated_cost(device: Device) -> Cost:
    """What reads take on a modelled device; nothing is read."""

    def sequential(runs: Sequence[Extent]) -> IO:
        sizes: list[int] = []  # of front_to_back, without its extents: a large model has thousands
        for run in runs:
            whole, rest = divmod(run.length, SEQUENTIAL_READ)
            sizes += [SEQUENTIAL_READ] * whole + [rest] * (rest > 0)
        return IO(len(sizes), sum(sizes), sum(sizes), read_time(device, sizes))

    def scattered(layouts: Sequence[Sequence[Layout]], reads: Reads) -> IO:
        sizes = read_sizes(reads, layouts)
        return IO(
            len(sizes.blocks),
            _useful_bytes(layouts, reads),
            int(sizes.blocks.sum()) * sizes.block,
            int(batch_times(device, sizes).sum()),
        )

    return Cost(sequential, scattered)


def measured_cost(read_bundled: Reader, read_unbundled: Reader) -> Cost:
    """What reads take where they are really made: whole runs and bundles, or rows of their own."""

    def sequential(runs: Sequence[Extent]) -> IO:
        pieces = tuple(extent for run in runs for extent in front_to_back(run))
        # Buffers of a batch are in memory together, so a whole model is read in several.
        batches = [pieces[i : i + BATCH_READS] for i in range(0, len(pieces), BATCH_READS)]
        return plan_io(pieces, pieces, sum(read_bundled(batch).nanoseconds for batch in batches))

    def scattered(layouts: Sequence[Sequence[Layout]], reads: Reads) -> IO:
        costs = [IO(0, 0, 0, 0)]
        for number, layer in enumerate(reads.layer.tolist()):
            ids = reads.ids[reads.starts[number] : reads.starts[number + 1]].astype(np.int64)
            if len(ids):
                extents = [extent for layout in layouts[layer] for extent in bundle_extents(layout, ids)]
                plan = read_plan(extents, layouts[layer][0].block, 0)
                read = read_bundled if len(layouts[layer]) == 1 else read_unbundled
                costs.append(plan_io(plan, extents, read(plan).nanoseconds))
        return IO(*(sum(column) for column in zip(*costs, strict=True)))

    return Cost(sequential, scattered)


def replay_methods(
    trace: ActivationTrace,
    flash: Flash,
    demand: Demand,
    budget: Budget,
    count_moves: CountMoves,
    costs: Sequence[Cost],
) -> tuple[Method, ...]:
    """Five replays of one trace: naive, hybrid, + predictor, + windowing, + bundling (decision 20).

    costs: the simulated one, and the measured one if there is a disk. All counters are the first's.
    """
    passes = trace.tokens - trace.first_counted
    kept_layers = min((budget.memory - demand.resident) // (demand.neurons * demand.stride), demand.layers)
    whole, rest = [Extent(0, flash.image_bytes)], [ffn_run(layout) for layout in flash.bundled[kept_layers:]]
    hybrid_useful = sum(layout.n * layout.bundle_bytes for layout in flash.bundled[kept_layers:])
    hybrid_dram = demand.resident + kept_layers * demand.neurons * demand.stride

    uses = uses_of(trace, budget.window)
    window = windowed(uses, budget.window, budget.capacities, demand.bypass_rows, count_moves)
    predicted, kept = (counted_reads(reads, trace.first_counted) for reads in (unwindowed(trace), window))

    rows = []
    for cost in costs:
        totals = [
            _repeated(cost, whole, flash.tensor_bytes, passes),
            _repeated(cost, rest, hybrid_useful, passes),
            cost.scattered(flash.unbundled, predicted),
            cost.scattered(flash.unbundled, kept),
            cost.scattered([(layout,) for layout in flash.bundled], kept),
        ]
        rows.append([[value / passes for value in total] for total in totals])
    moved_rows = int(window.moved[trace.first_counted :].sum()) / passes
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


def counted_reads(reads: Reads, first_counted: int) -> Reads:
    """The batches of the tokens from first_counted on; what is counted by token and layer stays whole."""
    first = int(np.searchsorted(reads.token, first_counted))
    start = reads.starts[first]
    return reads._replace(
        ids=reads.ids[start:],
        starts=reads.starts[first:] - start,
        token=reads.token[first:],
        layer=reads.layer[first:],
    )


def _repeated(cost: Cost, runs: Sequence[Extent], useful_bytes: int, passes: int) -> IO:
    """The same runs for every token: on a disk no two take the same time."""
    each = [cost.sequential(runs)._replace(useful_bytes=useful_bytes) for _ in range(passes)]
    return IO(*(sum(column) for column in zip(*each, strict=True)))


def _useful_bytes(layouts: Sequence[Sequence[Layout]], reads: Reads) -> int:
    unit_bytes = np.array([sum(field.bundle_bytes for field in fields) for fields in layouts])
    return int((np.diff(reads.starts) * unit_bytes[reads.layer]).sum())
