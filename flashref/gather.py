"""From flash to rows: exactly the bundles that were asked for. Chapter: specs/60-gather.md.

Satisfies: GTH-1 to GTH-6.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.bundle import Layout, bundle_crc32, bundle_extents
from flashref.storage.plan import plan_bytes, plan_io, read_plan
from flashref.types import IO, STORED_DTYPES, Array, Extent, ImageError, Reader, ascending_ids


class Gathered(NamedTuple):
    """Bundles in DRAM: rows (m, fields, d) in the stored dtype, as copies, and what reading them cost."""

    rows: Array
    io: IO


def gather_rows(
    read: Reader, layout: Layout, ids: npt.ArrayLike, max_gap: int = 0, checksums: Array | None = None
) -> Gathered:
    """The bundles of these neurons, read from flash in one batch (paper §3.2).

    Args:
        read: a reader of the image.
        layout: where the bundles lie.
        ids: (m,) strictly ascending.
        max_gap: the largest gap of unneeded bytes that one read bridges.
        checksums: (n,) uint32, the CRC-32 of each padded bundle; with None nothing is checked.

    Returns:
        Rows (m, fields, d) in the ids' order, as copies, and what reading them cost.

    Raises:
        IdsError: the ids are out of range or not strictly ascending; nothing was read.
        ImageError: a bundle is damaged.

    Requirements: GTH-1 to GTH-6.
    """
    wanted = ascending_ids(ids, layout.n)
    rows = np.empty((len(wanted), len(layout.fields), layout.d), STORED_DTYPES[layout.dtype])
    if len(wanted) == 0:
        return Gathered(rows, IO(0, 0, 0, 0))
    extents = bundle_extents(layout, wanted)
    plan = read_plan(extents, layout.block, max_gap)
    buffers, nanoseconds = read(plan)
    for row, neuron, extent in zip(rows, wanted.tolist(), extents, strict=True):
        padded = plan_bytes(plan, buffers, Extent(extent.offset, layout.stride))
        if checksums is not None and bundle_crc32(padded) != checksums[neuron]:
            raise ImageError(
                f"the bundle of neuron {neuron} at byte {extent.offset} does not match its checksum; "
                "the image is damaged, remove it and pack it again"
            )
        row[...] = padded[: extent.length].view(rows.dtype).reshape(row.shape)
    return Gathered(rows, plan_io(plan, extents, nanoseconds))
