"""From flash to rows: exactly the bundles that were asked for. Chapter: specs/60-gather.md.

Satisfies: GTH-1 to GTH-6.
"""

import numpy as np
import numpy.typing as npt

from flashref.bundle import bundle_extents
from flashref.storage.image import bundle_crc32
from flashref.storage.plan import plan_bytes, plan_io, read_plan
from flashref.types import (
    IO,
    STORED_DTYPES,
    Array,
    Extent,
    Gathered,
    ImageError,
    Layout,
    Reader,
    ascending_ids,
)


def gather_rows(
    read: Reader, layout: Layout, ids: npt.ArrayLike, max_gap: int = 0, checksums: Array | None = None
) -> Gathered:
    """The bundles of these neurons, read from flash in one batch: rows (m, fields, d), and the cost.

    ids: (m,) strictly ascending, else IdsError; max_gap: bytes; checksums: (n,) uint32 CRC-32 of each padded
    bundle, else unchecked; a damaged bundle raises ImageError (paper §3.2). Requirements: GTH-1 to GTH-6.
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
