"""A file to measure a disk with: random, really there, and gone afterwards; and the disk it is on."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from flashref.storage.calibration import CalibrationError
from flashref.storage.files import TOKEN, locked_folder, locked_part, remove_stale, write_all
from flashref.storage.progress import Progress, unseen

PREFIX = "flashref-calibrate-"
SPARE_BYTES = 2**28  # left free on the disk
PIECE = 2**24


@contextmanager
def disk_alone(folder: Path) -> Iterator[None]:
    """Keep other calibrations away from the disk that this folder is on, by a lock on its mount point.

    Raises:
        CalibrationError: another calibration has the disk.
    """
    with locked_folder(mount_point(folder)) as ours:
        if not ours:
            raise CalibrationError(
                f"{folder}: another calibration is measuring this disk right now, and two would measure each "
                "other; wait until it is done"
            )
        yield


def remove_stale_scratch(folder: Path) -> None:
    """Remove the files of random bytes that killed calibrations left, with a warning for each."""
    remove_stale(folder, rf"{PREFIX}{TOKEN}\.part")


@contextmanager
def scratch_file(
    folder: Path,
    size: int,
    generator: np.random.Generator,
    progress: Progress = unseen,
) -> Iterator[Path]:
    """A synced file of random bytes, for a disk may keep zeros for free; it is removed whatever happens.

    Args:
        folder: on the disk.
        size: bytes.
        generator: of the bytes.
        progress: called with the bytes written.

    Raises:
        CalibrationError: the file cannot be written.
    """
    check_space(folder, size)
    part = folder / f"{PREFIX}{secrets.token_hex(8)}.part"
    with ExitStack() as held:
        held.callback(_remove, part)
        try:
            descriptor = held.enter_context(locked_part(part))
        except OSError as error:
            raise CalibrationError(
                f"{folder}: cannot be written ({error.strerror}); choose a folder"
            ) from error
        try:
            _fill(descriptor, size, generator, progress)
        except OSError as error:
            raise CalibrationError(
                f"{folder}: {size} bytes could not be written ({error.strerror}); make room, or choose "
                "another folder"
            ) from error
        yield part


def check_space(folder: Path, size: int) -> None:
    """See that a file fits into the folder, and a little more.

    Raises:
        CalibrationError: there is no such folder, or less room.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be written ({error.strerror}); choose a folder") from error
    if free < size + SPARE_BYTES:
        raise CalibrationError(
            f"{folder}: {size + SPARE_BYTES} bytes are needed for a file of random bytes, but {free} "
            "are free; make room, choose another folder, or a smaller --size"
        )


def mount_point(folder: Path) -> Path:
    """The root of the file system that the folder is on."""
    found = folder.resolve()
    while not found.is_mount() and found != found.parent:
        found = found.parent
    return found


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that the folder is on.

    Args:
        folder: that is asked about.
        mounts: where the system lists what is mounted.

    Returns:
        A name such as "ext4", or "unknown" where the system does not say.
    """
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return "unknown"
    found = [(point.replace("\\040", " "), kind) for _, point, kind, *_ in lines]  # a space, as mounts has it
    within = [(len(point), kind) for point, kind in found if folder.resolve().is_relative_to(point)]
    return max(within, key=lambda pair: pair[0], default=(0, "unknown"))[1]


def _remove(part: Path) -> None:
    with suppress(OSError):  # it was never made
        part.unlink()


def _fill(descriptor: int, size: int, generator: np.random.Generator, progress: Progress) -> None:
    for offset in range(0, size, PIECE):
        piece = np.frombuffer(generator.bytes(min(PIECE, size - offset)), np.uint8)
        write_all(descriptor, piece, offset)
        progress("writing random bytes", offset + piece.size, size)
    os.fsync(descriptor)
