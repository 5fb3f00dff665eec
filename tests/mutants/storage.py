"""The engine's other half: plans, and bundles on flash."""

import numpy as np

from flashref.bundle import bundle_layout, pack_bundles
from flashref.storage.plan import read_plan
from flashref.types import STORED_DTYPES, Extent, ascending_ids


class Planner:
    """Chapter 52."""

    def check(self, extents, block, max_gap):
        read_plan([Extent(*extent) for extent in extents], block, max_gap)  # refuses

    def plan(self, extents, block, max_gap):
        self.check(extents, block, max_gap)
        reads = []
        for offset, length in sorted(extents):
            begin, end = offset // block * block, -(-(offset + length) // block) * block
            if reads and self.joins(begin - sum(reads[-1]), block, max_gap):
                first = reads[-1][0]
                reads[-1] = first, self.end(sum(reads[-1]), end) - first
            else:
                reads.append((begin, end - begin))
        return reads

    def joins(self, gap, block, max_gap):
        return gap <= max_gap

    def end(self, before, after):
        return max(before, after)


class Flash:
    """Chapters 40 and 60, for one layer."""

    planner = Planner

    def __init__(self, n, d, dtype, fields, block, start=0, order=None):
        self.layout = bundle_layout(n, d, dtype, fields, block, start, order)  # refuses
        self.n, self.d, self.dtype, self.fields = n, d, STORED_DTYPES[dtype], list(fields)
        self.block, self.start = block, start
        self.order = range(n) if order is None else np.asarray(order).tolist()
        self.bundle_bytes = len(self.fields) * d * self.dtype.itemsize
        self.stride = self.stride_of(self.bundle_bytes)

    def stride_of(self, size):
        if size >= self.block:
            return -(-size // self.block) * self.block
        stride = 1
        while stride < size:
            stride *= 2
        return stride

    def ids(self, ids):
        return ascending_ids(ids, self.n).tolist()

    def offset(self, neuron):
        return self.start + self.order.index(neuron) * self.stride

    def extents(self, ids):
        return [(self.offset(neuron), self.bundle_bytes) for neuron in ids]

    def check(self, matrices):
        pack_bundles(self.layout, dict(zip(self.fields, matrices, strict=False)))  # refuses

    def bundle(self, matrices, neuron):
        return b"".join(np.ascontiguousarray(matrix[neuron]).tobytes() for matrix in matrices)

    def padding(self):
        return bytes(self.stride - self.bundle_bytes)

    def pack(self, matrices):
        packed = b"".join(self.bundle(matrices, neuron) + self.padding() for neuron in self.order)
        return np.frombuffer(packed, np.uint8).copy()

    def unpack(self, packed):
        at = [self.offset(neuron) - self.start for neuron in range(self.n)]
        rows = self.rows([packed[offset : offset + self.bundle_bytes] for offset in at])
        return [rows[:, j].copy() for j in range(len(self.fields))]

    def rows(self, bundles):
        packed = np.frombuffer(b"".join(part.tobytes() for part in bundles), np.uint8).copy()
        return packed.view(self.dtype).reshape(len(bundles), len(self.fields), self.d)

    def plan(self, extents, max_gap):
        return self.planner().plan(extents, self.block, max_gap)

    def read(self, image, plan):
        """Where each byte that was read lies: offset of a read → its bytes."""
        return {offset: image[offset : offset + length] for offset, length in plan}

    def take(self, buffers, extent):
        begin = max(offset for offset in buffers if offset <= extent[0])
        return buffers[begin][extent[0] - begin :][: extent[1]]

    def gather(self, image, ids, max_gap):
        extents = self.extents(ids)
        plan = self.plan(extents, max_gap)
        buffers = self.read(image, plan)
        return self.rows([self.take(buffers, extent) for extent in extents]), self.cost(plan, extents)

    def cost(self, plan, extents):
        return [len(plan), sum(size for _, size in extents), sum(size for _, size in plan)]
