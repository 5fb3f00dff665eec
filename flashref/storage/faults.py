"""Injects faults into reads, as a disk, a cable, a torn write or a signal may cause them.

A schedule (number → Fault) says what goes wrong and when; `random_faults` draws one from a seed. It applies
either to whole batches (`faulty_reader`) or to the system calls of a DirectReader (`faulty_preadv`).
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.storage.readers import STALE
from flashref.types import DomainError, Extent, Read, Reader, ReadError

FAULT_KINDS = ("error", "flip", "torn", "slow")  # faults of a batch or of a system call
CALL_KINDS = ("short", "interrupted")  # faults of a system call only
SLOWEST_NS = 10_000_000  # the longest delay that `random_faults` draws

Preadv = Callable[[int, list[Any], int], int]  # as in `os`


class Fault(NamedTuple):
    """One fault of a batch or of a system call.

    kind: "error" (the read fails), "flip" (one bit is flipped), "torn" (all bytes after some byte are zero)
    or "slow" (the read takes longer); for a system call also "short" (it reads fewer bytes than asked, at
    least one) and "interrupted" (EINTR before anything is read).
    at: the bit to flip, the first zero byte, or the bytes of a short read, each modulo what was read; for
    "slow", the delay in nanoseconds.
    """

    kind: str
    at: int


def random_faults(
    seed: int | np.random.Generator, number: int, share: float, kinds: Sequence[str] = FAULT_KINDS
) -> dict[int, Fault]:
    """Draw a schedule of faults; equal seeds give equal schedules.

    Args:
        seed: the seed, or a generator.
        number: how many batches or calls the schedule covers.
        share: the probability that a batch or call has a fault.
        kinds: the kinds of faults, which are equally likely.

    Returns:
        The number of a batch or call → its fault.
    """
    rng = np.random.default_rng(seed)
    schedule = {}
    for position in np.flatnonzero(rng.random(number) < share).tolist():
        kind = kinds[int(rng.integers(len(kinds)))]
        schedule[position] = Fault(kind, int(rng.integers(SLOWEST_NS if kind == "slow" else 1 << 32)))
    return schedule


def faulty_reader(read: Reader, faults: Mapping[int, Fault]) -> Reader:
    """Make a reader whose batches have faults: "error" raises ReadError, "slow" adds to the batch's time.

    Args:
        read: a reader that works.
        faults: the number of a batch, from 0 → its fault; empty batches are not counted.

    Returns:
        The reader with faults.

    Raises:
        DomainError: a batch cannot have a fault of this kind.
    """
    _require_kinds(faults, FAULT_KINDS)
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
        if fault.kind == "slow":
            return Read(buffers, nanoseconds + fault.at)
        data = np.concatenate(buffers)
        _damage(data, fault)
        data.setflags(write=False)
        ends = np.cumsum([len(buffer) for buffer in buffers])[:-1]
        return Read(tuple(np.split(data, ends)), nanoseconds)

    return faulty


def faulty_preadv(
    faults: Mapping[int, Fault],
    wait: Callable[[int], object] = lambda nanoseconds: time.sleep(nanoseconds / 1e9),
    preadv: Preadv = os.preadv,
) -> Preadv:
    """Make a `preadv` for a DirectReader whose calls have faults: "error" is EIO, "slow" waits first.

    The bytes that a short call leaves out are overwritten. With a queue depth above 1, it is not known which
    call belongs to which read.

    Args:
        faults: the number of a call, from 0 in the order of the calls → its fault.
        wait: waits for a number of nanoseconds.
        preadv: a `preadv` that works.

    Returns:
        The `preadv` with faults.

    Raises:
        DomainError: the kind of a fault is unknown.
    """
    _require_kinds(faults, (*FAULT_KINDS, *CALL_KINDS))
    numbers, lock = count(), threading.Lock()

    def faulty(descriptor: int, buffers: list[Any], offset: int) -> int:
        with lock:
            fault = faults.get(next(numbers))
        if fault is None:
            return preadv(descriptor, buffers, offset)
        if fault.kind == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if fault.kind == "interrupted":
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        if fault.kind == "slow":
            wait(fault.at)
            return preadv(descriptor, buffers, offset)
        [buffer] = buffers
        # O_DIRECT cannot read a part of a block: so all is read, and a short call keeps the beginning.
        delivered = np.frombuffer(buffer, np.uint8)[: preadv(descriptor, buffers, offset)]
        if fault.kind == "short" and len(delivered):
            delivered = delivered[: max(1, fault.at % len(delivered))]
            np.frombuffer(buffer, np.uint8)[len(delivered) :] = STALE
        elif len(delivered):
            _damage(delivered, fault)
        return len(delivered)

    return faulty


def _damage(data: npt.NDArray[np.uint8], fault: Fault) -> None:
    """Flip one bit, or set all bytes from one byte on to zero."""
    if fault.kind == "flip":
        data[fault.at // 8 % len(data)] ^= np.uint8(1 << fault.at % 8)
    else:
        data[fault.at % len(data) :] = 0


def _require_kinds(faults: Mapping[int, Fault], known: Sequence[str]) -> None:
    for fault in faults.values():
        if fault.kind not in known:
            raise DomainError(
                f"a fault of the kind {fault.kind!r} is not possible here; use {', '.join(known)}"
            )
