"""The five methods of the paper's Table 2: what they are, a row of their table, and what their reads cost.

`METHODS` is their only definition: a replay of a text, a sweep and the derived Table 2 use the same policies.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout, bundle_extents
from flashref.models.budget import Budget
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.flash import SEQUENTIAL_READ, Flash, front_to_back
from flashref.simulate.policies import Kept, Study, hybrid, naive, predictor, sliding_window
from flashref.simulate.trace import Reads
from flashref.storage.device import Device, read_time
from flashref.storage.plan import plan_io, read_plan
from flashref.types import IO, Extent, Reader

BATCH_READS = 256  # reads of 1 MiB in a batch that is really read


class Definition(NamedTuple):
    """A method of Table 2.

    label: its name in tables.
    policy: what it reads and keeps.
    bundled: whether it reads bundles, or else one row of each field.
    """

    label: str
    policy: Callable[[Study, Budget], Kept]
    bundled: bool

    def layouts(self, flash: Flash) -> Sequence[Sequence[Layout]]:
        """Where the neurons of each layer lie: a layout of bundles, or a layout for each field."""
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
    """A row of the table: means over the forward passes that choose a new token.

    measured_io_ms_per_token is None where nothing was really read.
    """

    name: str
    useful_bytes_per_token: float
    flash_bytes_per_token: float
    reads_per_token: float
    dram_bytes: int
    dram_moved_bytes_per_token: float
    simulated_io_ms_per_token: float
    measured_io_ms_per_token: float | None


class Cost(NamedTuple):
    """What reads cost.

    sequential: runs of bytes that are read front to back → their cost.
    scattered: the layouts of each layer, and the reads of a policy → their cost.
    """

    sequential: Callable[[Sequence[Extent]], IO]
    scattered: Callable[[Sequence[Sequence[Layout]], Reads], IO]


def simulated_cost(device: Device) -> Cost:
    """Make the cost of reads on a simulated device; nothing is read.

    Args:
        device: the device.

    Returns:
        The cost.
    """

    def sequential(runs: Sequence[Extent]) -> IO:
        sizes: list[int] = []  # those of front_to_back, whose extents would be thousands in a large model
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
    """Make the cost of reads as a disk takes them; everything is really read.

    Args:
        read_bundled: a reader of the image, for whole runs and for bundles.
        read_unbundled: a reader of the same weights without bundling, for the rows of each field.

    Returns:
        The cost.
    """

    def sequential(runs: Sequence[Extent]) -> IO:
        pieces = tuple(extent for run in runs for extent in front_to_back(run))
        # The buffers of a batch are in memory together, so that a whole model must be read in several.
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


def _useful_bytes(layouts: Sequence[Sequence[Layout]], reads: Reads) -> int:
    """The bytes of the units that were asked for, without what blocks and padding add."""
    unit_bytes = np.array([sum(field.bundle_bytes for field in fields) for fields in layouts])
    return int((np.diff(reads.starts) * unit_bytes[reads.layer]).sum())
