"""Measures a disk: shuffled rounds of reads past the page cache, and the Device that explains them.

A disk's speed drifts, so that measuring a point for longer buys nothing: many short rounds in a new order
each time, and the median of each point. Everything is read with DirectReader, as flashref reads itself.
"""

import datetime
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashref.storage.calibration import Calibration, CalibrationError, Conditions
from flashref.storage.fit import Point, fit_device, fit_dispatch, point_errors, split_half_noise
from flashref.storage.progress import Progress, unseen
from flashref.storage.readers import DirectReader
from flashref.storage.scratch import (
    PREFIX,
    check_space,
    disk_alone,
    file_system,
    remove_stale_scratch,
    scratch_file,
)
from flashref.storage.verification import MIXED_DEPTHS, MixedBatch, mixed_batches, verify
from flashref.types import Extent, Reader

SIZES = (4096, 65_536, 1_048_576)
DEPTHS = (1, 4, 8, 32)
BATCH_SIZE, BATCH_READS, BATCH_DEPTHS, BATCH_REPEATS = 16_384, (1, 4, 16, 64, 256), (8, 32), 5
BLOCK = 4096
FILE_BYTES = 4 * 2**30  # a smaller file might lie in a cache behind the system's back
ROUNDS, VERIFIED_ROUNDS = 8, 16  # about 6 s, and 30
ROUND_NS = 60_000_000
LARGEST_BATCH = 2**27  # bytes of one round: DirectReader has memory for a whole batch
LARGEST_NOISE = 0.15
IN_MEMORY = ("tmpfs", "ramfs")  # newer kernels grant O_DIRECT there too


class Job(NamedTuple):
    """A batch to be timed: reads of these sizes, `depth` at a time, `repeats` times a round."""

    sizes: tuple[int, ...]
    depth: int
    repeats: int = 1


class Measured(NamedTuple):
    """Everything that was timed. traces: the nanoseconds of each, round after round."""

    points: tuple[Point, ...]
    batches: tuple[Point, ...]
    traces: tuple[tuple[int, ...], ...]


class Clock(NamedTuple):
    """Where times come from: the date of a calibration, and the nanoseconds of a read."""

    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now().astimezone()
    nanoseconds: Callable[[], int] = time.perf_counter_ns


SYSTEM_CLOCK = Clock()


def calibrate(
    folder: str | os.PathLike[str] = ".",
    *,
    verified: bool = False,
    file_bytes: int = FILE_BYTES,
    seed: int = 0,
    largest_noise: float = LARGEST_NOISE,
    clock: Clock = SYSTEM_CLOCK,
    progress: Progress = unseen,
    announce: Callable[[str], None] = lambda what: None,
) -> Calibration:
    """Measure the disk of a folder with random reads past the page cache, and fit a device to it.

    A file of random bytes is written into the folder, and removed whatever happens; what a killed
    calibration left there is removed first. One calibration at a time has a disk.

    Args:
        folder: on the disk.
        verified: also time mixed reads, which the device is not fitted to: 30 s in place of 6.
        file_bytes: of the file of random bytes, whole MiB.
        seed: of offsets, order and bytes.
        largest_noise: a disk whose measurements differ more, in the median, is refused.
        clock: where times come from.
        progress: called with what is being done.
        announce: called with what is written, once it is known to be possible.

    Returns:
        The device, how far to trust it, and all that was measured.

    Raises:
        CalibrationError: the disk cannot be measured, with advice.
        ReadError: a read failed.
    """
    folder, generator = Path(folder), np.random.default_rng(seed)
    traces = mixed_batches(np.random.default_rng(seed)) if verified else ()
    rounds = VERIFIED_ROUNDS if verified else ROUNDS
    with ExitStack() as held:
        held.enter_context(disk_alone(folder))
        remove_stale_scratch(folder)
        check_space(folder, file_bytes)
        with scratch_file(
            folder, BLOCK, generator
        ) as path:  # a small file tells whether a large one is worth it
            system = file_system(folder)
            _open(path, 1, clock, system).close()
        announce(
            f"writes {file_bytes / 2**30:g} GiB of random bytes into {folder.resolve()}/{PREFIX}*.part, "
            "and removes them"
        )
        path = held.enter_context(scratch_file(folder, file_bytes, generator, progress))
        load = os.getloadavg()[0]
        depths = sorted({*DEPTHS, *BATCH_DEPTHS, *(MIXED_DEPTHS if traces else ())})
        readers = {depth: held.enter_context(_open(path, depth, clock, system)).read for depth in depths}
        measured = measure(readers, file_bytes, rounds, generator, traces, progress)
    conditions = Conditions(
        date=clock.now().isoformat(timespec="seconds"),
        kernel=f"{platform.system()} {platform.release()}",
        load_average=round(load, 2),
        python=platform.python_version(),
        engine="DirectReader: a preadv thread for each outstanding read",
        buffer=_buffer_kind(),
        direct=True,  # _open refuses anything else
        folder=str(folder.resolve()),
        file_system=system,
        file_bytes=file_bytes,
        rounds=rounds,
        seed=seed,
    )
    return conclude(measured, conditions, traces, largest_noise)


def conclude(
    measured: Measured,
    conditions: Conditions,
    traces: Sequence[MixedBatch] = (),
    largest_noise: float = LARGEST_NOISE,
) -> Calibration:
    """Fit the device that explains what was measured.

    Args:
        measured: everything that was timed.
        conditions: under which it was.
        traces: that were timed to verify the device by.
        largest_noise: of the median, beyond which there is no telling.

    Raises:
        CalibrationError: the disk was too unsteady to tell.
    """
    noise = split_half_noise([point.nanoseconds for point in measured.points])
    if noise.median > largest_noise:
        raise CalibrationError(
            f"{conditions.folder}: the same reads took {noise.median:.0%} more or less from one half of the "
            f"rounds to the other, more than {largest_noise:.0%}; stop other work on this disk and "
            "processor, then try again, or take such a device with --accept-noise"
        )
    # What wakes the workers is 1 % of a round at most: explained first, then taken out.
    dispatch_ns = fit_dispatch(fit_device(measured.points), measured.batches)
    device = fit_device(measured.points, dispatch_ns)
    return Calibration(
        device,
        point_errors(device, measured.points),
        noise,
        conditions,
        measured.points,
        measured.batches,
        verify(device, traces, measured.traces) if traces else None,
    )


def measure(
    readers: Mapping[int, Reader],
    file_bytes: int,
    rounds: int,
    generator: np.random.Generator,
    traces: Sequence[MixedBatch] = (),
    progress: Progress = unseen,
) -> Measured:
    """Time points of about 60 ms, small batches and traces: all in every round, each time in a new order.

    Args:
        readers: for each depth, one that keeps so many reads outstanding.
        file_bytes: of the file that they read.
        rounds: how often everything is timed.
        generator: of offsets and order.
        traces: to verify the device by.
        progress: called with the rounds done.
    """
    grid = [
        Job((size,) * _reads_for(readers[depth], file_bytes, size, depth, generator), depth)
        for size in SIZES
        for depth in DEPTHS
    ]
    small = [
        Job((BATCH_SIZE,) * reads, depth, BATCH_REPEATS) for reads in BATCH_READS for depth in BATCH_DEPTHS
    ]
    uniform = grid + small
    jobs = uniform + [Job(trace.sizes, trace.depth) for trace in traces]
    times: list[list[int]] = [[] for _ in jobs]
    for done in range(rounds):
        for index in generator.permutation(len(jobs)).tolist():
            sizes, depth, repeats = jobs[index]
            for _ in range(repeats):
                extents = random_extents(sizes, file_bytes, generator)
                times[index].append(readers[depth](extents).nanoseconds)
        progress("measuring", done + 1, rounds)
    series = [tuple(repeats) for repeats in times]
    points = tuple(
        Point(job.sizes[0], job.depth, len(job.sizes), repeats)
        for job, repeats in zip(uniform, series, strict=False)
    )
    return Measured(points[: len(grid)], points[len(grid) :], tuple(series[len(points) :]))


def random_extents(
    sizes: Sequence[int], file_bytes: int, generator: np.random.Generator
) -> tuple[Extent, ...]:
    """A read of each size, at any block of the file where it fits.

    Args:
        sizes: of the reads, in bytes.
        file_bytes: of the file.
        generator: of the offsets.
    """
    blocks = (file_bytes - np.array(sizes, np.int64)) // BLOCK + 1
    offsets = generator.integers(0, blocks) * BLOCK
    return tuple(map(Extent, offsets.tolist(), sizes))


def _reads_for(read: Reader, file_bytes: int, size: int, depth: int, generator: np.random.Generator) -> int:
    """How many reads take about 60 ms; at least two for each that is outstanding."""
    trial = min(8 * depth, LARGEST_BATCH // size)
    elapsed = read(random_extents((size,) * trial, file_bytes, generator)).nanoseconds
    wanted = trial * ROUND_NS // elapsed
    return max(2 * depth, min(wanted, LARGEST_BATCH // size))


def _open(path: Path, depth: int, clock: Clock, system: str) -> DirectReader:
    """A reader past the page cache, or CalibrationError: a cache in memory would flatter by 9 to 45."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reader = DirectReader(path, depth, BLOCK, clock=clock.nanoseconds)
    if not reader.direct or system in IN_MEMORY:
        reader.close()
        raise CalibrationError(
            f"{path.parent}: reads past the page cache are not possible on this file system ({system}), so "
            "that memory would be measured instead of a disk; choose a folder on a disk of its own"
        )
    return reader


def _buffer_kind() -> str:
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "anonymous memory"
    return "anonymous memory in 4 KiB pages" if "[never]" in setting else "anonymous memory in huge pages"
