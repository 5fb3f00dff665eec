"""Measures a disk with random reads past the page cache, and fits a Device to the measurements.

A disk's speed drifts, so measuring a point for longer would not help. Instead there are many short rounds,
each in a new random order, and the median of each point counts. All reads go through DirectReader, as in a
run.
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

SIZES = (4096, 65_536, 1_048_576)  # bytes of a read, each at all depths
DEPTHS = (1, 4, 8, 32)
# The small batches to which dispatch_ns is fitted.
BATCH_SIZE, BATCH_READS, BATCH_DEPTHS, BATCH_REPEATS = 16_384, (1, 4, 16, 64, 256), (8, 32), 5
BLOCK = 4096
FILE_BYTES = 4 * 2**30  # a smaller file might fit into a cache of the disk
ROUNDS, VERIFIED_ROUNDS = 8, 16  # about 6 s, and 30 s with verification
ROUND_NS = 60_000_000  # the time of one point in one round, about
LARGEST_BATCH = 2**27  # the most bytes of a batch, all of which DirectReader holds in memory
LARGEST_NOISE = 0.15  # the largest median noise that is accepted by default
IN_MEMORY = ("tmpfs", "ramfs")  # file systems in memory; newer kernels allow O_DIRECT there


class Job(NamedTuple):
    """A batch to be timed: reads of these sizes at a queue depth, `repeats` times in each round."""

    sizes: tuple[int, ...]
    depth: int
    repeats: int = 1


class Measured(NamedTuple):
    """Everything that was timed; mixed: for each batch of mixed reads, the nanoseconds of each round."""

    points: tuple[Point, ...]
    batches: tuple[Point, ...]
    mixed: tuple[tuple[int, ...], ...]


class Clock(NamedTuple):
    """Where times come from: the date of a calibration, and the nanoseconds of reads."""

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

    A file of random bytes is written into the folder, and is removed at the end or after an error. A file
    that a killed calibration left there is removed first. Only one calibration at a time can measure a disk.

    Args:
        folder: a folder on the disk.
        verified: also time mixed reads, which the device is not fitted to; it then takes 30 s instead of 6 s.
        file_bytes: the size of the file of random bytes; whole MiB.
        seed: the seed of the random offsets, order and bytes.
        largest_noise: the largest median noise of the measurements; a noisier disk is refused.
        clock: where times come from.
        progress: called with what is being done, how much of it is done, and how much there is.
        announce: called with a sentence on the file that is about to be written.

    Returns:
        The device, its errors, and all that was measured.

    Raises:
        CalibrationError: the disk cannot be measured; the message says what to do.
        ReadError: a read failed.
    """
    folder, generator = Path(folder), np.random.default_rng(seed)
    mixed = mixed_batches(np.random.default_rng(seed)) if verified else ()
    rounds = VERIFIED_ROUNDS if verified else ROUNDS
    with ExitStack() as held:
        held.enter_context(disk_alone(folder))
        remove_stale_scratch(folder)
        check_space(folder, file_bytes)
        # A small file shows whether the disk can be measured at all.
        with scratch_file(folder, BLOCK, generator) as path:
            system = file_system(folder)
            _open(path, 1, clock, system).close()
        announce(
            f"writing {file_bytes / 2**30:g} GiB of random bytes into {folder.resolve()}/{PREFIX}*.part; the "
            "file is removed at the end"
        )
        path = held.enter_context(scratch_file(folder, file_bytes, generator, progress))
        load = os.getloadavg()[0]
        depths = sorted({*DEPTHS, *BATCH_DEPTHS, *(MIXED_DEPTHS if mixed else ())})
        readers = {depth: held.enter_context(_open(path, depth, clock, system)).read for depth in depths}
        measured = measure(readers, file_bytes, rounds, generator, mixed, progress)
    conditions = Conditions(
        date=clock.now().isoformat(timespec="seconds"),
        kernel=f"{platform.system()} {platform.release()}",
        load_average=round(load, 2),
        python=platform.python_version(),
        engine="DirectReader: a preadv thread for each outstanding read",
        buffer=_buffer_kind(),
        direct=True,  # _open refuses buffered reads
        folder=str(folder.resolve()),
        file_system=system,
        file_bytes=file_bytes,
        rounds=rounds,
        seed=seed,
    )
    return conclude(measured, conditions, mixed, largest_noise)


def conclude(
    measured: Measured,
    conditions: Conditions,
    mixed: Sequence[MixedBatch] = (),
    largest_noise: float = LARGEST_NOISE,
) -> Calibration:
    """Fit a device to the measurements of a disk.

    Args:
        measured: everything that was timed.
        conditions: the conditions of the measurement.
        mixed: the batches of mixed reads that were timed, if the device is to be verified.
        largest_noise: the largest median noise that is accepted.

    Returns:
        The device, its errors, and all that was measured.

    Raises:
        CalibrationError: the disk was too unsteady.
    """
    noise = split_half_noise([point.nanoseconds for point in measured.points])
    if noise.median > largest_noise:
        raise CalibrationError(
            f"{conditions.folder}: the times of the same reads differed by {noise.median:.0%} between two "
            f"halves of the rounds, and at most {largest_noise:.0%} is accepted; stop other work on this "
            "disk and processor and try again, or accept more noise with --accept-noise"
        )
    # Waking the workers takes at most 1 % of a round, so a first fit may leave it out.
    dispatch_ns = fit_dispatch(fit_device(measured.points), measured.batches)
    device = fit_device(measured.points, dispatch_ns)
    return Calibration(
        device,
        point_errors(device, measured.points),
        noise,
        conditions,
        measured.points,
        measured.batches,
        verify(device, mixed, measured.mixed) if mixed else None,
    )


def measure(
    readers: Mapping[int, Reader],
    file_bytes: int,
    rounds: int,
    generator: np.random.Generator,
    mixed: Sequence[MixedBatch] = (),
    progress: Progress = unseen,
) -> Measured:
    """Time points of about 60 ms, small batches and mixed reads, all in every round and in random order.

    Args:
        readers: queue depth → a reader that keeps as many reads outstanding.
        file_bytes: the size of the file that they read.
        rounds: how often everything is timed.
        generator: the generator of the offsets and the order.
        mixed: the batches of mixed reads, if the device is to be verified.
        progress: called with what is being done, the rounds done and the rounds in total.

    Returns:
        All times.
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
    jobs = uniform + [Job(batch.sizes, batch.depth) for batch in mixed]
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
    """Draw an extent of each size, at a random block of the file.

    Args:
        sizes: the sizes of the reads, in bytes.
        file_bytes: the size of the file.
        generator: the generator of the offsets.

    Returns:
        The extents, which lie inside the file.
    """
    blocks = (file_bytes - np.array(sizes, np.int64)) // BLOCK + 1
    offsets = generator.integers(0, blocks) * BLOCK
    return tuple(map(Extent, offsets.tolist(), sizes))


def _reads_for(read: Reader, file_bytes: int, size: int, depth: int, generator: np.random.Generator) -> int:
    """How many reads take about 60 ms; at least twice the queue depth."""
    trial = min(8 * depth, LARGEST_BATCH // size)
    elapsed = read(random_extents((size,) * trial, file_bytes, generator)).nanoseconds
    wanted = trial * ROUND_NS // elapsed
    return max(2 * depth, min(wanted, LARGEST_BATCH // size))


def _open(path: Path, depth: int, clock: Clock, system: str) -> DirectReader:
    """A reader past the page cache, or CalibrationError; reads from a cache are 9 to 45 times as fast."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reader = DirectReader(path, depth, BLOCK, clock=clock.nanoseconds)
    if not reader.direct or system in IN_MEMORY:
        reader.close()
        raise CalibrationError(
            f"{path.parent}: this file system ({system}) cannot be read past the page cache, so memory would "
            "be measured instead of a disk; choose a folder on another disk"
        )
    return reader


def _buffer_kind() -> str:
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "anonymous memory"
    return "anonymous memory in 4 KiB pages" if "[never]" in setting else "anonymous memory in huge pages"
