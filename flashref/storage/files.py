"""Regular files: read to the last byte that was asked for, and created whole or not at all.

The system may give or take less at a time than it was asked to; nobody above here has to think of it.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flashref.types import ImageError

# What file systems without hard links answer to link().
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def open_regular(path: Path) -> io.FileIO:
    """The file, open for reading. Raises OSError, or ValueError if there is something else of this name."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait for a writer
        raise ValueError("is not a regular file")
    return open(path, "rb", buffering=0)


def read_exactly(file: io.FileIO, length: int, what: str) -> bytearray:
    """The next bytes, or ValueError naming what they belong to if the file ends before."""
    data = bytearray(length)
    read_into(file, np.frombuffer(data, np.uint8), what)
    return data


def read_into(file: io.FileIO, buffer: npt.NDArray[np.uint8], what: str) -> None:
    """Fill the buffer with the next bytes, or ValueError naming what they belong to."""
    done = 0
    while done < buffer.size:
        got = file.readinto(buffer[done:].data)
        if not got:
            raise ValueError(f"the file ends inside {what}")
        done += got


def write_all(descriptor: int, piece: npt.NDArray[np.uint8], offset: int) -> None:
    """Write all of a piece at this offset. Raises OSError."""
    done = 0
    while done < piece.size:
        done += os.pwrite(descriptor, piece[done:].data, offset + done)
    if hasattr(os, "posix_fadvise"):  # Linux: the disk starts now, and the sync at the end has little to do
        os.posix_fadvise(descriptor, offset, done, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def create_file(path: Path, size: int) -> Iterator[int]:
    """A descriptor of a new file of `size` bytes that appears under its name whole or not at all.

    Written under a temporary name, synced, then linked: an existing file is never replaced, and whatever
    is raised meanwhile leaves nothing behind. Raises ImageError, for a full disk with the bytes needed.
    """
    folder = path.parent
    temporary = folder / f".{path.name}.{secrets.token_hex(8)}.part"
    if os.path.lexists(path):
        raise _exists(path)
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, "")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _link(temporary, path)
        try:
            _sync_folder(folder)
        except BaseException:  # nobody knows whether the name will last
            os.unlink(path)
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free
            raise ImageError(
                f"{path}: needs {size} bytes, but {free} are free; make room or choose another disk"
            ) from error
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}); check the path") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _exists(path: Path) -> ImageError:
    return ImageError(f"{path}: exists, and files are never overwritten; remove it or choose another name")


def _link(temporary: Path, path: Path) -> None:
    """Give the finished file its name, unless somebody else took it meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _rename(temporary, path)


def _rename(temporary: Path, path: Path) -> None:
    """The same where there are no hard links: one at a time in a folder looks whether the name is free.

    A lock, because it goes with a process that is killed; an empty file to reserve the name would stay.
    """
    import fcntl  # not on every system

    with _opened(path.parent) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(path):
            raise _exists(path)
        os.rename(temporary, path)


def _sync_folder(folder: Path) -> None:
    with _opened(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder; that it cannot be closed well says nothing about the files in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
