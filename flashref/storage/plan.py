"""The read plan: which aligned reads fetch the wanted extents. Chapter: specs/52-plan.md.

Satisfies: PLN-1 to PLN-8.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from flashref.types import IO, DomainError, Extent, LayoutError


def read_plan(extents: Iterable[Extent], block: int, max_gap: int) -> tuple[Extent, ...]:
    """Plan the aligned, ascending, disjoint reads that cover some extents (paper §3.2, §4; decision 18).

    Extents are rounded out to whole blocks. Two reads become one if they touch or overlap, or if the gap
    between them is at most max_gap bytes.

    Args:
        extents: the wanted extents, in any order.
        block: the block of the device, in bytes; a power of two.
        max_gap: the largest gap that is read too, in bytes; at least 0.

    Raises:
        DomainError: block or max_gap is not in its domain.
        LayoutError: an extent is empty, or begins before 0.

    Requirements: PLN-1 to PLN-5.
    """
    if block < 1 or block & (block - 1):
        raise DomainError(f"block must be a power of two, not {block}")
    if not max_gap >= 0:
        raise DomainError(f"max_gap must be at least 0 bytes, not {max_gap}; 0 reads over no gap")
    plan: list[Extent] = []
    for offset, length in sorted(extents):
        if offset < 0 or length < 1:
            raise LayoutError(f"an extent must begin at 0 or later and hold a byte, not ({offset}, {length})")
        start = offset // block * block
        end = -(-(offset + length) // block) * block
        if plan and start - _end(plan[-1]) <= max_gap:
            first = plan[-1].offset
            # The extent before may reach further than this one.
            plan[-1] = Extent(first, max(_end(plan[-1]), end) - first)
        else:
            plan.append(Extent(start, end - start))
    return tuple(plan)


def plan_bytes(
    plan: Sequence[Extent], buffers: Sequence[npt.NDArray[np.uint8]], extent: Extent
) -> npt.NDArray[np.uint8]:
    """Find the bytes of one extent in the buffers of the reads.

    Args:
        plan: the reads.
        buffers: a uint8 array for each read of the plan.
        extent: the extent whose bytes are wanted.

    Returns:
        (length,) uint8, a view of one of the buffers, valid as long as the buffer is.

    Raises:
        LayoutError: no read of the plan contains the extent, or a buffer is missing.

    Requirements: PLN-6, PLN-7.
    """
    if len(buffers) != len(plan):
        raise LayoutError(f"a plan of {len(plan)} reads needs as many buffers, not {len(buffers)}")
    index = bisect_right(plan, (extent.offset, math.inf)) - 1  # the last read that begins no later
    if index < 0 or extent.length < 1 or _end(extent) > _end(plan[index]):
        raise LayoutError(
            f"no read of the plan contains the extent of {extent.length} bytes at {extent.offset}"
        )
    start = extent.offset - plan[index].offset
    return buffers[index][start : start + extent.length]


def plan_io(plan: Sequence[Extent], extents: Iterable[Extent], nanoseconds: int) -> IO:
    """Count the reads, the bytes that are wanted and read, and the time of fetching extents by a plan.

    Args:
        plan: the reads.
        extents: the wanted extents.
        nanoseconds: the time of the batch, as its reader reports it.

    Requirement: PLN-8.
    """
    return IO(
        requests=len(plan),
        useful_bytes=sum(extent.length for extent in extents),
        read_bytes=sum(read.length for read in plan),
        nanoseconds=nanoseconds,
    )


def _end(extent: Extent) -> int:
    return extent.offset + extent.length
