"""A reader that fails on purpose, at given batches: what a disk, a cable or a torn write may do."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flashref.types import Extent, Read, Reader, ReadError

FAULT_KINDS = ("error", "flip", "torn")


class Fault(NamedTuple):
    """One thing that goes wrong with a batch.

    kind: "error" (nothing is delivered), "flip" (one bit differs), "torn" (from a byte on, all is zeros);
    at: the bit, or the byte, counted over the batch and wrapped at its end.
    """

    kind: str
    at: int


def faulty_reader(read: Reader, faults: Mapping[int, Fault]) -> Reader:
    """`read`, but batch number i (empty ones are not counted) meets faults[i]; "error" raises ReadError."""
    number = -1

    def faulty(extents: tuple[Extent, ...]) -> Read:
        nonlocal number
        number += bool(extents)
        buffers, nanoseconds = read(extents)
        fault = faults.get(number)
        if fault is None or not extents:
            return Read(buffers, nanoseconds)
        if fault.kind == "error":
            raise ReadError(f"batch {number} failed, as its schedule says")
        data = np.concatenate(buffers)
        if fault.kind == "flip":
            data[fault.at // 8 % len(data)] ^= np.uint8(1 << fault.at % 8)
        else:
            data[fault.at % len(data) :] = 0
        ends = np.cumsum([len(buffer) for buffer in buffers])[:-1]
        return Read(tuple(np.split(data, ends)), nanoseconds)

    return faulty
