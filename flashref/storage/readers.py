"""Readers, simulated and real: the only way in which bundles are read. Chapter: specs/56-readers.md.

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

STALE = 0xA5  # the byte that fills a buffer of the memory reader when it is no longer valid
HUGE_PAGE = 2 * 1024 * 1024
REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)  # the errors of file systems without O_DIRECT


class Batch(NamedTuple):
    """One batch in the log of `recording_reader`."""

    extents: tuple[Extent, ...]
    nanoseconds: int


def memory_reader(image: Bytes | bytes, device: Device) -> Reader:
    """Make a reader of an image in memory, which reports the times of a simulated device.

    Every read overwrites the buffers of the previous one, so that a caller who keeps a view too long gets
    wrong bytes.

    Args:
        image: bytes, or (size,) uint8, which may be mapped from a file.
        device: the device, which gives the block and the times.

    Returns:
        The reader.

    Raises:
        ShapeError: the image is not a one-dimensional array of uint8.
        DomainError: a field of the device is outside its domain.

    Decision 18: reads are whole blocks, as planned. Requirements: RDR-1 to RDR-6.
    """
    check_device(device)
    stored = np.frombuffer(image, np.uint8) if isinstance(image, bytes) else image
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise ShapeError(
            f"an image must be a one-dimensional array of uint8, not {stored.dtype} of shape {stored.shape}"
        )
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
    """Make a reader that also logs every batch.

    Args:
        reader: the reader that reads.
        log: the extents and the time of every batch that did not fail are appended to it.

    Returns:
        The reader that logs.

    Requirement: RDR-13.
    """

    def read(extents: tuple[Extent, ...]) -> Read:
        result = reader(extents)
        log.append(Batch(tuple(extents), result.nanoseconds))
        return result

    return read


class DirectReader:
    """Reads a file past the page cache, with a thread for each outstanding read; its `read` is the reader.

    `direct` is False where only buffered reads are possible. Only one caller at a time may use it.

    Args:
        path: the file, such as an image.
        queue_depth: the most reads outstanding.
        block: the block of the device, in bytes; a power of two of at least 512.
        clock: gives the time in nanoseconds.
        preadv: a function that reads like `os.preadv`, which None stands for.

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
                    f"{path} cannot be read past the page cache here; its times say nothing about the disk",
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
        """Stop the workers and close the file; earlier buffers stay readable. Requirement: RDR-11."""
        held, self._held = self._held, None
        if held:
            held.close()

    def read(self, extents: tuple[Extent, ...]) -> Read:
        """Read one batch, at most queue_depth reads at a time.

        Args:
            extents: extents of whole blocks of the file.

        Returns:
            A buffer for each extent, valid until the next read, and the time in nanoseconds.

        Raises:
            LayoutError: an extent is not aligned or not inside the file; nothing has been read.
            ReadError: a read failed; the reader can still be used.

        Requirements: RDR-1 to RDR-3, RDR-7 to RDR-11.
        """
        if self._held is None:
            raise ReadError(f"the reader of {self.path} is closed; open another one")
        _check_extents(extents, self.block, self.size, str(self.path))
        if not extents:
            return Read((), 0)
        targets = _cut(self._room(sum(extent.length for extent in extents)), extents)
        # Only one thread at a time runs Python. So everything that a read needs is made before the clock
        # starts, and is freed after it stops. The workers share one iterator: each takes the next read when
        # its own read has completed.
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
                list(jobs)  # so that the other workers stop
                outcomes.put(error)
            else:
                outcomes.put(None)

        workers = min(self.queue_depth, len(extents))
        started = self._clock()
        try:
            for _ in range(workers):
                self._tasks.put(shard)
            errors = [error for error in (outcomes.get() for _ in range(workers)) if error]
        except BaseException:  # Ctrl-C: workers may still write into this memory, so it is not used again
            list(jobs)
            self._memory = np.empty(0, np.uint8)
            raise
        elapsed = self._clock() - started
        if errors:
            raise errors[0]
        return Read(_read_only(targets), elapsed)

    def _fill(self, target: memoryview, offset: int, done: int) -> None:
        """Read until the target is full; a system call may end at any byte, or be interrupted."""
        while done < len(target):
            position = offset + done
            # O_DIRECT cannot start inside a block; the buffered descriptor can.
            descriptor = self._buffered if position % self.block else self._descriptor
            try:
                count = self._preadv(descriptor, [target[done:]], position)
            except OSError as error:
                done += self._after_error(error, position)
                continue
            if count == 0:
                raise ReadError(f"{self.path} ends at byte {position}, but had {self.size} bytes when opened")
            done += count

    def _after_error(self, error: OSError, position: int) -> int:
        """0, the bytes that were read, if the call was only interrupted; else ReadError."""
        if isinstance(error, InterruptedError):
            return 0
        raise ReadError(f"{self.path} cannot be read at byte {position}: {error.strerror}") from error

    def _room(self, size: int) -> Bytes:
        """Page-aligned memory in huge pages, touched in advance so that page faults are not timed."""
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
        raise ReadError(f"{path} is not a regular file; give the path of an image")
    return descriptor, status.st_size


def _open_direct(path: Path, block: int) -> int | None:
    """A descriptor whose reads go past the page cache, or None where this is not possible."""
    if hasattr(os, "O_DIRECT"):
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            # Some file systems refuse only the first read.
            os.preadv(descriptor, [mmap.mmap(-1, max(block, mmap.PAGESIZE))], 0)
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
    """LayoutError unless every extent is aligned, not empty and inside the source."""
    for offset, length in extents:
        if offset % block or length % block or length < 1:
            raise LayoutError(
                f"a read must be whole blocks of {block} bytes, not {length} bytes at {offset}; use read_plan"
            )
        if offset < 0 or offset + length > size:
            raise LayoutError(f"{source} has {size} bytes, so {length} bytes at {offset} cannot be read")


def _cut(memory: Bytes, extents: Sequence[Extent]) -> tuple[Bytes, ...]:
    """Cut memory into a view for each extent, one after the other."""
    ends = np.cumsum([extent.length for extent in extents], dtype=np.int64).tolist()
    return tuple(memory[end - length : end] for end, (_, length) in zip(ends, extents, strict=True))


def _read_only(views: tuple[Bytes, ...]) -> tuple[Bytes, ...]:
    for view in views:
        view.setflags(write=False)
    return views
