"""What reads cost on a device: `read_plan` and `read_time` for all batches of a trace at once, in arrays."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.simulate.trace import Counts, Reads
from flashref.storage.device import Device, check_device, service_time
from flashref.types import DomainError

FEW_SIZES = 256  # blocks up to which the cost of every size is computed, used or not
PART = 1 << 14  # bundles whose extents are computed at a time: their arrays stay in the processor's cache


class Sizes(NamedTuple):
    """The planned reads of many batches.

    blocks: (reads,) int64, how many blocks each read has.
    starts: (batches + 1,) int64; batch b has the reads starts[b] … starts[b + 1] − 1.
    block: bytes of a block.
    """

    blocks: Counts
    starts: Counts
    block: int


def read_sizes(reads: Reads, layouts: Sequence[Sequence[Layout]], max_gap: int = 0) -> Sizes:
    """Compute the sizes of the reads of every batch, as `read_plan` plans them (chapter 52).

    Args:
        reads: which units each batch reads.
        layouts: for each layer a layout of bundles, or one for each field in ascending regions; all layouts
            have the same block.
        max_gap: how many bytes between two reads are read over, at most, to join them.

    Returns:
        The sizes, batch by batch in the order of offsets.

    Raises:
        DomainError: the layouts have several blocks, or max_gap is negative.
    """
    blocks = {layout.block for fields in layouts for layout in fields}
    if max_gap < 0 or len(blocks) != 1:
        raise DomainError(
            f"all layouts need the same block, and max_gap must be at least 0, not blocks {sorted(blocks)} "
            f"and a max_gap of {max_gap}"
        )
    (block,) = blocks
    sizes, counts = [], []
    for first, end, starts in _in_blocks(reads, layouts, block):
        begins = np.ones(len(first), bool)
        # Extents that are sorted by their beginnings have sorted ends too, so only neighbours can touch.
        np.greater(first[1:] - end[:-1], max_gap // block, out=begins[1:])
        begins[starts[:-1][starts[:-1] < len(first)]] = True  # the first of each batch
        at = np.flatnonzero(begins)
        last = np.append(at[1:], len(first))[: len(at)] - 1
        sizes.append(end.take(last) - first.take(at))
        counts.append(np.diff(np.searchsorted(at, starts)))
    return Sizes(np.concatenate(sizes), _starts(counts), block)


def separate_sizes(reads: Reads, layouts: Sequence[Sequence[Layout]]) -> Sizes:
    """Compute the sizes if every extent is a read of its own, as the paper counts (§4.2, Table 2).

    Args:
        reads: which units each batch reads.
        layouts: as `read_sizes` takes them.

    Returns:
        The sizes, batch by batch in the order of offsets.
    """
    block = layouts[0][0].block
    parts = list(_in_blocks(reads, layouts, block))
    sizes = np.concatenate([end - first for first, end, _ in parts])
    return Sizes(sizes, _starts([np.diff(starts) for _, _, starts in parts]), block)


def sequential_sizes(length: int, piece: int, block: int) -> Sizes:
    """Compute the sizes of one batch that reads a run of blocks front to back (decision 20).

    Args:
        length: bytes of the run, a multiple of block.
        piece: bytes of every read but the last, a multiple of block.
        block: bytes of a block.

    Returns:
        The sizes of that batch.
    """
    whole, rest = divmod(length, piece)
    sizes = np.array([piece] * whole + [rest] * (rest > 0), np.int64)
    return Sizes(sizes // block, np.array([0, len(sizes)]), block)


def batch_times(device: Device, sizes: Sizes) -> Counts:
    """Compute the `read_time` of every batch (chapter 50).

    Args:
        device: a device.
        sizes: the sizes of the reads of each batch.

    Returns:
        Nanoseconds, (batches,) int64.

    Raises:
        DomainError: a field of the device is impossible, or an int64 cannot hold the bytes of all reads, or
            the time that they take one after another.
    """
    check_device(device)
    reads, depth = np.diff(sizes.starts), device.queue_depth
    if int(sizes.blocks.sum()) * sizes.block >= 2**63:
        raise DomainError(
            f"{len(sizes.blocks)} reads in blocks of {sizes.block} bytes are more bytes than can be counted; "
            "correct the device's block"
        )
    slowest = service_time(device, int(sizes.blocks.max(initial=1)) * sizes.block, 1) + device.dispatch_ns
    if slowest * len(sizes.blocks) >= 2**63:
        raise DomainError(
            f"{len(sizes.blocks)} reads of up to {slowest} ns each may take longer than 292 years, "
            "which is more than can be counted; correct the device's latency and bandwidths"
        )
    # A trace has few sizes, so each is costed once, as in a full queue. Then the batches that do not fill the
    # queue, or whose longest read takes longer than the whole batch, are computed anew.
    shared = batch_sums(_costs(device, sizes, sizes.blocks, depth), sizes.starts)
    for few in np.unique(reads[(reads > 0) & (reads < depth)]).tolist():
        batches = np.flatnonzero(reads == few)
        blocks = sizes.blocks[sizes.starts[batches][:, None] + np.arange(few)]
        longest = _costs(device, sizes, blocks, 1).max(axis=1)
        shared[batches] = np.maximum(_costs(device, sizes, blocks, few).sum(axis=1), longest)
    longest = service_time(device, int(sizes.blocks.max(initial=1)) * sizes.block, 1)
    for batch in np.flatnonzero((reads >= depth) & (shared <= longest)).tolist():
        blocks = sizes.blocks[sizes.starts[batch] : sizes.starts[batch + 1]]
        alone = (service_time(device, n * sizes.block, 1) for n in set(blocks.tolist()))
        shared[batch] = max(shared[batch], *alone)
    times: Counts = shared + device.dispatch_ns * np.minimum(reads, depth)
    return times


def _in_blocks(
    reads: Reads, layouts: Sequence[Sequence[Layout]], block: int
) -> Iterator[tuple[Counts, Counts, Counts]]:
    """The first block of each extent, the block after its last, and (batches + 1,) where batches start.

    Extents ascend within a batch; some batches come at a time.
    """
    firsts, ends = [], []
    for layout in chain(*layouts):
        offset = layout.start + np.arange(layout.n) * layout.stride
        firsts.append(offset // block)
        ends.append(-(-(offset + layout.bundle_bytes) // block))
    # Both are looked up by place: positions lie together in a field, and fields in a layer.
    first, end = np.concatenate(firsts), np.concatenate(ends)
    fields, units = len(layouts[0]), np.array([of_layer[0].n for of_layer in layouts])
    begins = np.cumsum([0, *(fields * units[:-1])])
    lies = [None if layout.order is None else np.argsort(layout.order) for layout, *_ in layouts]
    for part in _parts(reads):
        counts = np.diff(part.starts)
        places = _positions(part, lies) + begins[part.layer].repeat(counts)
        if fields > 1:
            later = units[part.layer].repeat(counts)
            of_field = [places + field * later for field in range(fields)]
            edges = pairwise(part.starts.tolist())
            places = np.concatenate([each[start:stop] for start, stop in edges for each in of_field])
        yield first.take(places), end.take(places), fields * part.starts


def _parts(reads: Reads) -> Iterator[Reads]:
    """The same reads, some batches at a time, in at least one part."""
    edges = np.searchsorted(reads.starts[:-1], np.arange(0, len(reads.ids) + 1, PART))
    for first, last in pairwise(np.unique(np.append(edges, len(reads.layer))).tolist()):
        start, stop = reads.starts[first], reads.starts[last]
        starts = reads.starts[first : last + 1] - start
        yield reads._replace(ids=reads.ids[start:stop], starts=starts, layer=reads.layer[first:last])


def _positions(part: Reads, lies: Sequence[Counts | None]) -> Counts:
    """The positions of the units in their layers' layouts, ascending in each batch.

    lies: for each layer the position of every unit; None if that is its id.
    """
    positions = part.ids.astype(np.int64)
    for layer, (start, stop) in zip(part.layer.tolist(), pairwise(part.starts.tolist()), strict=True):
        of_layer = lies[layer]
        if of_layer is not None:
            positions[start:stop] = np.sort(of_layer.take(positions[start:stop]))
    return positions


def _starts(counts: Sequence[Counts]) -> Counts:
    return np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def _costs(device: Device, sizes: Sizes, blocks: Counts, outstanding: int) -> Counts:
    """The `service_time` of reads of these numbers of blocks, with `outstanding` reads under way."""
    largest = int(blocks.max(initial=0))
    # To find out which sizes occur takes longer than to cost a few that do not.
    few = largest <= FEW_SIZES
    costs = np.zeros(largest + 1, np.int64)
    for each in range(1, largest + 1) if few else np.unique(blocks).tolist():
        costs[each] = service_time(device, each * sizes.block, outstanding)
    return costs.take(blocks)


def batch_sums(values: Counts, starts: Counts) -> Counts:
    """The sum of the values of each batch, 0 for an empty one."""
    full = starts[1:] > starts[:-1]
    sums = np.zeros(len(full), np.int64)
    if full.any():
        sums[full] = np.add.reduceat(values, starts[:-1][full])
    return sums
