"""A file to measure a disk with: random, really there, and gone afterwards."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from flashref.storage.calibration import CalibrationError
from flashref.storage.files import write_all
from flashref.storage.progress import Progress, unseen

PREFIX = "flashref-calibrate-"
SPARE_BYTES = 2**28  # left free on the disk
PIECE = 2**24


@contextmanager
def scratch_file(
    folder: Path,
    size: int,
    generator: np.random.Generator,
    advance: Progress = unseen,
) -> Iterator[Path]:
    """A synced file of random bytes, for a disk may keep zeros for free; removed whatever happens.

    Raises CalibrationError.
    """
    check_space(folder, size)
    try:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX, suffix=".part")  # noqa: SIM115
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be written ({error.strerror}); choose a folder") from error
    with file:
        try:
            for offset in range(0, size, PIECE):
                piece = np.frombuffer(generator.bytes(min(PIECE, size - offset)), np.uint8)
                write_all(file.fileno(), piece, offset)
                advance("writing random bytes", offset + piece.size, size)
            os.fsync(file.fileno())
        except OSError as error:
            raise CalibrationError(
                f"{folder}: {size} bytes could not be written ({error.strerror}); make room, or choose "
                "another folder"
            ) from error
        yield Path(file.name)


def check_space(folder: Path, size: int) -> None:
    """CalibrationError unless a file of so many bytes fits into the folder, and a little more."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be written ({error.strerror}); choose a folder") from error
    if free < size + SPARE_BYTES:
        raise CalibrationError(
            f"{folder}: {size + SPARE_BYTES} bytes are needed for a file of random bytes, but {free} "
            "are free; make room, choose another folder, or a smaller --size"
        )


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that the folder is on, such as ext4; "unknown" where it is not said."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return "unknown"
    found = [(point.replace("\\040", " "), kind) for _, point, kind, *_ in lines]  # a space, as mounts has it
    within = [(len(point), kind) for point, kind in found if folder.resolve().is_relative_to(point)]
    return max(within, key=lambda pair: pair[0], default=(0, "unknown"))[1]
