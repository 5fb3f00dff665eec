"""Storage that fails on purpose: what a disk, a cable, a torn write or a signal may do to a read.

A schedule, number → Fault, says what goes wrong and when; `random_faults` draws one from a seed. It strikes
whole batches (`faulty_reader`), or the system calls below a DirectReader (`faulty_preadv`).
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

FAULT_KINDS = ("error", "flip", "torn", "slow")  # of a batch, and of a system call
CALL_KINDS = ("short", "interrupted")  # of a system call only
SLOWEST_NS = 10_000_000  # the most that random_faults slows anything down

Preadv = Callable[[int, list[Any], int], int]  # as in `os`


class Fault(NamedTuple):
    """One thing that goes wrong with a batch, or with a system call.

    kind: "error" (nothing is delivered), "flip" (one bit differs), "torn" (from a byte on, all is zeros),
    "slow"; and of a call "short" (fewer bytes than asked, at least one), "interrupted" (EINTR, nothing yet).
    at: the bit, the byte, or for "short" how many bytes, wrapped at the end of what was read; for "slow" ns.
    """

    kind: str
    at: int


def random_faults(
    seed: int | np.random.Generator, number: int, share: float, kinds: Sequence[str] = FAULT_KINDS
) -> dict[int, Fault]:
    """A schedule of faults; equal seeds give equal schedules.

    Args:
        seed: of the schedule.
        number: of batches or calls that it is for.
        share: the probability with which each of them meets a fault.
        kinds: of faults, which come equally often.

    Returns:
        The number of a batch or call → its fault.
    """
    rng = np.random.default_rng(seed)
    schedule = {}
    for struck in np.flatnonzero(rng.random(number) < share).tolist():
        kind = kinds[int(rng.integers(len(kinds)))]
        schedule[struck] = Fault(kind, int(rng.integers(SLOWEST_NS if kind == "slow" else 1 << 32)))
    return schedule


def faulty_reader(read: Reader, faults: Mapping[int, Fault]) -> Reader:
    """A reader whose batches meet faults: "error" raises ReadError, "slow" adds to the batch's time.

    Args:
        read: the reader that works.
        faults: number of a batch, from 0, → its fault; empty batches are not counted.

    Raises:
        DomainError: a fault is of a kind that no batch can meet.
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
    """A `preadv` for a DirectReader whose calls meet faults: "error" is EIO, "slow" waits first.

    What a short call did not deliver is overwritten. Which read a call belongs to is certain only with a
    queue depth of 1.

    Args:
        faults: number of a call, from 0 and in the order of coming in, → its fault.
        wait: waits for so many nanoseconds.
        preadv: the one that works.

    Raises:
        DomainError: a fault is of an unknown kind.
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
        # O_DIRECT takes no part of a block: all is read, and a short call keeps the beginning.
        delivered = np.frombuffer(buffer, np.uint8)[: preadv(descriptor, buffers, offset)]
        if fault.kind == "short" and len(delivered):
            delivered = delivered[: max(1, fault.at % len(delivered))]
            np.frombuffer(buffer, np.uint8)[len(delivered) :] = STALE
        elif len(delivered):
            _damage(delivered, fault)
        return len(delivered)

    return faulty


def _damage(data: npt.NDArray[np.uint8], fault: Fault) -> None:
    """One bit, or all from one byte on."""
    if fault.kind == "flip":
        data[fault.at // 8 % len(data)] ^= np.uint8(1 << fault.at % 8)
    else:
        data[fault.at % len(data) :] = 0


def _require_kinds(faults: Mapping[int, Fault], known: Sequence[str]) -> None:
    for fault in faults.values():
        if fault.kind not in known:
            raise DomainError(
                f"a fault of the kind {fault.kind!r} cannot strike here; use {', '.join(known)}"
            )
