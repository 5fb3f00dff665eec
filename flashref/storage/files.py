"""Regular files: read to the last byte that was asked for, and created whole or not at all.

The system may give or take less at a time than it was asked to; nobody above here has to think of it.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import warnings
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
    is raised meanwhile leaves nothing behind. What a killed process left goes first. Raises ImageError, for
    a full disk with the bytes needed.
    """
    folder = path.parent
    part = folder / f".{path.name}.{secrets.token_hex(8)}.part"
    if os.path.lexists(path):
        raise _exists(path)
    remove_stale_parts(path)
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, "")
        with _locked_part(part) as lock:
            descriptor = os.dup(lock)
            try:
                yield descriptor
                os.fsync(descriptor)
            finally:
                os.close(descriptor)  # before there is a name: some network disks say only here what failed
            _name(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free
            raise ImageError(
                f"{path}: needs {size} bytes, but {free} are free; make room or choose another disk"
            ) from error
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}); check the path") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def remove_stale_parts(path: Path) -> None:
    """Remove what killed processes left of a file of this name, with a warning each.

    What a living one writes is locked, and stays; where a file system has no locks, everything stays.
    """
    stale = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.part")
    with contextlib.suppress(OSError):
        for name in filter(stale.fullmatch, os.listdir(path.parent)):
            part = path.parent / name
            # Not there any more, or somebody else's: then it is not ours to remove.
            with contextlib.suppress(OSError), _opened(part, os.O_RDWR | os.O_NOFOLLOW) as descriptor:
                if _lock(descriptor, wait=False) and _is_named(part, descriptor):
                    os.unlink(part)
                    warnings.warn(f"{part}: left by a process that was killed, and removed now", stacklevel=2)


@contextlib.contextmanager
def _locked_part(part: Path) -> Iterator[int]:
    """A descriptor of the new file; while it is open nobody takes the file for stale."""
    while True:
        with _opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            # Between these two calls somebody else may have locked and removed it: then once more.
            if not _lock(descriptor, wait=True) or _is_named(part, descriptor):
                yield descriptor
                return


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file, for as long as it is open; False if another has it or there are no locks."""
    try:
        import fcntl  # not on every system

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _is_named(path: Path, descriptor: int) -> bool:
    """Whether the open file has this name still."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _name(part: Path, path: Path) -> None:
    """Give the finished file its name for good."""
    _link(part, path)
    try:
        _sync_folder(path.parent)
    except BaseException:  # nobody knows whether the name will last
        os.unlink(path)
        raise


def _exists(path: Path) -> ImageError:
    return ImageError(f"{path}: exists, and files are never overwritten; remove it or choose another name")


def _link(part: Path, path: Path) -> None:
    """Give the finished file its name, unless somebody else took it meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _rename(part, path)


def _rename(part: Path, path: Path) -> None:
    """The same where there are no hard links: one at a time in a folder looks whether the name is free.

    A lock, because it goes with a process that is killed; an empty file to reserve the name would stay.
    """
    import fcntl  # not on every system

    with _opened(path.parent, os.O_RDONLY) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(path):
            raise _exists(path)
        os.rename(part, path)


def _sync_folder(folder: Path) -> None:
    with _opened(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor; that it cannot be closed well says nothing, for nothing is written through it."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
