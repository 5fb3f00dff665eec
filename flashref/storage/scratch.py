"""The file of random bytes that a calibration reads, and the disk that the file is on."""

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
SPARE_BYTES = 2**28  # bytes that stay free on the disk
PIECE = 2**24  # bytes that are made and written at a time


@contextmanager
def disk_alone(folder: Path) -> Iterator[None]:
    """Lock the disk of a folder against other calibrations while the context lasts.

    The lock is on the mount point of the disk's file system.

    Args:
        folder: a folder on the disk.

    Raises:
        CalibrationError: another calibration has the disk.
    """
    with locked_folder(mount_point(folder)) as ours:
        if not ours:
            raise CalibrationError(
                f"{folder}: another calibration is measuring this disk right now, and two would measure each "
                "other; wait until it has finished"
            )
        yield


def remove_stale_scratch(folder: Path) -> None:
    """Remove the files of random bytes that killed calibrations left, with a warning for each.

    Args:
        folder: the folder to look through.
    """
    remove_stale(folder, rf"{PREFIX}{TOKEN}\.part")


@contextmanager
def scratch_file(
    folder: Path,
    size: int,
    generator: np.random.Generator,
    progress: Progress = unseen,
) -> Iterator[Path]:
    """Write and sync a file of random bytes, and remove it when the context ends.

    The bytes are random because a disk need not store zeros at all.

    Args:
        folder: the folder to write the file into.
        size: the size of the file, in bytes.
        generator: the generator of the bytes.
        progress: called with what is being done, the bytes done and the bytes in total.

    Returns:
        A context whose value is the path of the file.

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
                f"{folder}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        try:
            _fill(descriptor, size, generator, progress)
        except OSError as error:
            raise CalibrationError(
                f"{folder}: {size:,} bytes could not be written ({error.strerror}); make room, or choose "
                "another folder"
            ) from error
        yield part


def check_space(folder: Path, size: int) -> None:
    """Check that a disk has room for a file, with SPARE_BYTES to spare.

    Args:
        folder: a folder on the disk.
        size: the size of the file, in bytes.

    Raises:
        CalibrationError: there is no such folder, or too little room.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CalibrationError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    if free < size + SPARE_BYTES:
        raise CalibrationError(
            f"{folder}: the file of random bytes needs {size + SPARE_BYTES:,} bytes, but {free:,} are free; "
            "make room, or choose another folder or a smaller --size"
        )


def mount_point(folder: Path) -> Path:
    """The mount point of the file system that the folder is on."""
    found = folder.resolve()
    while not found.is_mount() and found != found.parent:
        found = found.parent
    return found


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Find the type of the file system that a folder is on.

    Args:
        folder: the folder.
        mounts: the file in which the system lists its mounts.

    Returns:
        A name such as "ext4", or "unknown" where the system does not say.
    """
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return "unknown"
    # A space in a mount point is written as \040.
    found = [(point.replace("\\040", " "), kind) for _, point, kind, *_ in lines]
    within = [(len(point), kind) for point, kind in found if folder.resolve().is_relative_to(point)]
    return max(within, key=lambda pair: pair[0], default=(0, "unknown"))[1]


def _remove(part: Path) -> None:
    with suppress(OSError):  # the file may never have been made
        part.unlink()


def _fill(descriptor: int, size: int, generator: np.random.Generator, progress: Progress) -> None:
    for offset in range(0, size, PIECE):
        piece = np.frombuffer(generator.bytes(min(PIECE, size - offset)), np.uint8)
        write_all(descriptor, piece, offset)
        progress("writing random bytes", offset + piece.size, size)
    os.fsync(descriptor)
