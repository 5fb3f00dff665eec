"""The five methods of the paper's Table 2: what they are, and their replays of one trace.

`METHODS` is their one definition: a replay, a sweep and the derived Table 2 all use the same policies.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout, bundle_extents
from flashref.models.budget import Budget, Demand
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.flash import SEQUENTIAL_READ, Flash, front_to_back
from flashref.simulate.policies import Kept, Study, hybrid, naive, predictor, sliding_window
from flashref.simulate.trace import ActivationTrace, Reads
from flashref.simulate.window import CountMoves, uses_of
from flashref.storage.device import Device, read_time
from flashref.storage.plan import plan_io, read_plan
from flashref.types import IO, Extent, Reader

BATCH_READS = 256  # of 1 MiB, where they are really read


class Definition(NamedTuple):
    """A method of Table 2. bundled: whether it reads bundles, or a row of each field where it lies."""

    label: str
    policy: Callable[[Study, Budget], Kept]
    bundled: bool

    def layouts(self, flash: Flash) -> Sequence[Sequence[Layout]]:
        """Where its neurons lie: of each layer one layout, or one a field."""
        return [(layout,) for layout in flash.bundled] if self.bundled else flash.unbundled


METHODS: Mapping[str, Definition] = MappingProxyType(
    {
        "naive": Definition("naive", naive, True),
        "hybrid": Definition("hybrid", hybrid, True),
        "predictor": Definition("+ predictor", predictor, False),
        "windowing": Definition("+ windowing", sliding_window, False),
        "bundling": Definition("+ bundling", sliding_window, True),
    }
)


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

    Args:
        trace: which neurons each token activates; its uncounted tokens warm the window.
        flash: where the layers of the trace lie.
        demand: what the model asks of memory.
        budget: the memory, solved for a window and rows.
        count_moves: how many rows the placement moves in memory.
        costs: the simulated one, and the measured one if there is a disk. All counters are the first's.

    Returns:
        A row of the table for each method, in this order.
    """
    passes = trace.tokens - trace.first_counted
    study = Study(uses_of(trace, budget.window), flash, demand, count_moves)
    kept_by = {each.policy: each.policy(study, budget) for each in METHODS.values()}
    rows = []
    for name, method in METHODS.items():
        kept = kept_by[method.policy]
        ios = [_counted_io(cost, kept, method.layouts(flash), trace) for cost in costs]
        moved_rows = int(kept.reads.moved[trace.first_counted :].sum())
        rows.append(
            Method(
                name,
                useful_bytes_per_token=ios[0].useful_bytes / passes,
                flash_bytes_per_token=ios[0].read_bytes / passes,
                reads_per_token=ios[0].requests / passes,
                dram_bytes=kept.dram_bytes,
                dram_moved_bytes_per_token=moved_rows * flash.bundled[0].bundle_bytes / passes,
                simulated_io_ms_per_token=ios[0].nanoseconds / passes / 1e6,
                measured_io_ms_per_token=ios[1].nanoseconds / passes / 1e6 if len(ios) > 1 else None,
            )
        )
    return tuple(rows)


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


def _counted_io(cost: Cost, kept: Kept, layouts: Sequence[Sequence[Layout]], trace: ActivationTrace) -> IO:
    """What the counted tokens read: the runs once for each of them (on a disk no two take the same time)."""
    parts = [cost.scattered(layouts, counted_reads(kept.reads, trace.first_counted))]
    if kept.runs:
        passes = trace.tokens - trace.first_counted
        parts += [
            cost.sequential(kept.runs)._replace(useful_bytes=kept.useful_run_bytes) for _ in range(passes)
        ]
    return IO(*(sum(column) for column in zip(*parts, strict=True)))


def _useful_bytes(layouts: Sequence[Sequence[Layout]], reads: Reads) -> int:
    unit_bytes = np.array([sum(field.bundle_bytes for field in fields) for fields in layouts])
    return int((np.diff(reads.starts) * unit_bytes[reads.layer]).sum())
