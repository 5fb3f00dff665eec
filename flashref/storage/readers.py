"""Readers: the only way that bundles are read; simulated and real alike. Chapter: specs/56-readers.md.

Satisfies: RDR-1 to RDR-13.
"""

import errno
import mmap
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from flashref.storage.device import Device, check_device, read_time
from flashref.types import DomainError, Extent, LayoutError, Read, Reader, ReadError, ShapeError

Bytes = npt.NDArray[np.uint8]
Shard = Callable[[], None]

STALE = 0xA5  # what a buffer of the memory reader holds once it is no longer valid
HUGE_PAGE = 2 * 1024 * 1024
REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)  # what file systems without O_DIRECT answer


class Batch(NamedTuple):
    """One batch as recording_reader logs it."""

    extents: tuple[Extent, ...]
    nanoseconds: int


def memory_reader(image: Bytes | bytes, device: Device) -> Reader:
    """A reader of an image in memory, or mapped into it, whose times are those of a device.

    Every read overwrites the buffers of the one before, so that a caller who keeps a view is found out.

    Args:
        image: bytes, or (size,) uint8.
        device: whose block is kept to, and whose time is taken.

    Raises:
        ShapeError: the image is no row of uint8.
        DomainError: the device is not in its domain.

    Decision 18: reads are whole blocks, as the plan has them. Requirements: RDR-1 to RDR-6.
    """
    check_device(device)
    stored = np.frombuffer(image, np.uint8) if isinstance(image, bytes) else image
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise ShapeError(f"an image must be a row of uint8, not {stored.dtype} of shape {stored.shape}")
    scratch, used = np.empty(0, np.uint8), 0

    def read(extents: tuple[Extent, ...]) -> Read:
        nonlocal scratch, used
        _check_extents(extents, device.block, stored.size, "the image")
        scratch[:used] = STALE
        used = sum(extent.length for extent in extents)
        if used > scratch.size:
            scratch = np.empty(used, np.uint8)
        targets = _cut(scratch, extents)
        for (offset, length), target in zip(extents, targets, strict=True):
            target[:] = stored[offset : offset + length]
        return Read(_read_only(targets), read_time(device, [extent.length for extent in extents]))

    return read


def recording_reader(reader: Reader, log: list[Batch]) -> Reader:
    """The same reader, which also logs every batch.

    Args:
        reader: that is asked.
        log: gets the extents and the time of every batch that did not fail.

    Requirement: RDR-13.
    """

    def read(extents: tuple[Extent, ...]) -> Read:
        result = reader(extents)
        log.append(Batch(tuple(extents), result.nanoseconds))
        return result

    return read


class DirectReader:
    """A reader of a file past the page cache, with a thread for each outstanding read; pass `.read` on.

    `direct` is False where only buffered reads are possible. It serves one caller at a time.

    Args:
        path: of an image.
        queue_depth: reads that are outstanding at a time.
        block: bytes, a power of two of at least 512.
        clock: nanoseconds.
        preadv: reads, as `os.preadv` does; None for that.

    Raises:
        DomainError: queue_depth or block is not in its domain.
        ReadError: the file cannot be opened or read.

    Paper §2.2, §4. Requirements: RDR-1 to RDR-3, RDR-7 to RDR-12.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        queue_depth: int = 32,
        block: int = 4096,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        preadv: Callable[[int, list[Any], int], int] | None = None,
    ) -> None:
        if queue_depth < 1 or block < 512 or block & (block - 1):
            raise DomainError(
                f"a reader needs a queue_depth ≥ 1 and a block that is a power of two ≥ 512, "
                f"not {queue_depth} and {block}"
            )
        self.path, self.queue_depth, self.block = Path(path), queue_depth, block
        self._clock, self._preadv = clock, preadv or os.preadv
        self._memory = np.empty(0, np.uint8)
        self._tasks: SimpleQueue[Shard | None] = SimpleQueue()
        with ExitStack() as held:
            self._buffered, self.size = _open_buffered(self.path)
            held.callback(os.close, self._buffered)
            descriptor = _open_direct(self.path, block)
            self.direct = descriptor is not None
            if descriptor is not None:
                self._descriptor = descriptor
                held.callback(os.close, descriptor)
            else:
                self._descriptor = self._buffered
                warnings.warn(
                    f"{path} cannot be read past the page cache here; times say nothing about the disk",
                    RuntimeWarning,
                    stacklevel=2,
                )
            workers: list[threading.Thread] = []
            held.callback(_dismiss, workers, self._tasks)
            for _ in range(queue_depth):
                worker = threading.Thread(target=_work, args=(self._tasks,), daemon=True)
                worker.start()
                workers.append(worker)
            self._held: ExitStack | None = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and close the file; buffers that were given stay readable. Requirement: RDR-11."""
        held, self._held = self._held, None
        if held:
            held.close()

    def read(self, extents: tuple[Extent, ...]) -> Read:
        """Read one batch, at most queue_depth reads at a time.

        Args:
            extents: whole blocks of the file.

        Returns:
            A buffer for each extent, valid until the next read, and the nanoseconds that the clock measured.

        Raises:
            LayoutError: an extent is not aligned, or not in the file; nothing has been read.
            ReadError: a read failed; the reader can be used again.

        Requirements: RDR-1 to RDR-3, RDR-7 to RDR-11.
        """
        if self._held is None:
            raise ReadError(f"the reader of {self.path} is closed; open another one")
        _check_extents(extents, self.block, self.size, str(self.path))
        if not extents:
            return Read((), 0)
        targets = _cut(self._room(sum(extent.length for extent in extents)), extents)
        # While one thread runs Python the others cannot: all that a read needs is made before the clock
        # starts, and freed after it stops. The workers share one iterator: each takes the next read when its
        # own is done.
        prepared = [
            ([view.data], position, length) for view, (position, length) in zip(targets, extents, strict=True)
        ]
        jobs = iter(prepared)
        outcomes: SimpleQueue[BaseException | None] = SimpleQueue()

        def shard() -> None:
            preadv, descriptor = self._preadv, self._descriptor
            try:
                for views, position, length in jobs:
                    try:
                        done = preadv(descriptor, views, position)
                    except OSError as error:
                        done = self._after_error(error, position)
                    if done < length:
                        self._fill(views[0], position, done)
            except BaseException as error:
                list(jobs)  # the others need not go on
                outcomes.put(error)
            else:
                outcomes.put(None)

        workers = min(self.queue_depth, len(extents))
        started = self._clock()
        try:
            for _ in range(workers):
                self._tasks.put(shard)
            errors = [error for error in (outcomes.get() for _ in range(workers)) if error]
        except BaseException:  # Ctrl-C: workers may still be writing, so the next batch gets other memory
            list(jobs)
            self._memory = np.empty(0, np.uint8)
            raise
        elapsed = self._clock() - started
        if errors:
            raise errors[0]
        return Read(_read_only(targets), elapsed)

    def _fill(self, target: memoryview, offset: int, done: int) -> None:
        """Read on until the target is full: a system call may stop short, or be interrupted, at any byte."""
        while done < len(target):
            position = offset + done
            # O_DIRECT cannot go on inside a block; the buffered descriptor can.
            descriptor = self._buffered if position % self.block else self._descriptor
            try:
                count = self._preadv(descriptor, [target[done:]], position)
            except OSError as error:
                done += self._after_error(error, position)
                continue
            if count == 0:
                raise ReadError(f"{self.path} ends at byte {position}, before the {self.size} it had")
            done += count

    def _after_error(self, error: OSError, position: int) -> int:
        """The bytes that were read after all: none, if the call was only interrupted; else ReadError."""
        if isinstance(error, InterruptedError):
            return 0
        raise ReadError(f"{self.path} cannot be read at byte {position}: {error.strerror}") from error

    def _room(self, size: int) -> Bytes:
        """Page-aligned memory in huge pages, touched, so that neither faults nor 4 KiB segments are timed."""
        if size > self._memory.size:
            mapped = -(-size // HUGE_PAGE) * HUGE_PAGE
            memory = mmap.mmap(-1, mapped, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            self._memory = np.frombuffer(memory, np.uint8)  # unmapped when the last view of it is gone
            self._memory[:: mmap.PAGESIZE] = 0
        return self._memory


def _work(tasks: SimpleQueue[Shard | None]) -> None:
    while (shard := tasks.get()) is not None:
        shard()
        del shard  # it holds the batch's memory


def _dismiss(workers: list[threading.Thread], tasks: SimpleQueue[Shard | None]) -> None:
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join()


def _open_buffered(path: Path) -> tuple[int, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ReadError(f"{path} cannot be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ReadError(f"{path} is not a file; give the path of an image")
    return descriptor, status.st_size


def _open_direct(path: Path, block: int) -> int | None:
    """A descriptor whose reads go past the page cache, or None where there is no such thing."""
    if hasattr(os, "O_DIRECT"):
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            os.preadv(descriptor, [mmap.mmap(-1, max(block, mmap.PAGESIZE))], 0)  # some refuse only here
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            if error.errno not in REFUSED:
                raise ReadError(f"{path} cannot be read: {error.strerror}") from error
            return None
        return descriptor
    import fcntl  # not on every system, and needed on macOS only

    if not hasattr(fcntl, "F_NOCACHE"):
        return None
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
    return descriptor


def _check_extents(extents: Sequence[Extent], block: int, size: int, source: str) -> None:
    """LayoutError unless every extent is aligned, not empty, and inside the source."""
    for offset, length in extents:
        if offset % block or length % block or length < 1:
            raise LayoutError(
                f"a read must be whole blocks of {block} bytes, not {length} bytes at {offset}; use read_plan"
            )
        if offset < 0 or offset + length > size:
            raise LayoutError(f"{source} has {size} bytes; it cannot give {length} bytes at {offset}")


def _cut(memory: Bytes, extents: Sequence[Extent]) -> tuple[Bytes, ...]:
    """One view a read, one after the other."""
    ends = np.cumsum([extent.length for extent in extents], dtype=np.int64).tolist()
    return tuple(memory[end - length : end] for end, (_, length) in zip(ends, extents, strict=True))


def _read_only(views: tuple[Bytes, ...]) -> tuple[Bytes, ...]:
    for view in views:
        view.setflags(write=False)
    return views
