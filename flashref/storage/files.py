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

from flashref.types import DomainError, ImageError

# What file systems without hard links answer to link().
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
TOKEN = "[0-9a-f]{16}"  # what tells temporary files of one name apart


def open_regular(path: Path) -> io.FileIO:
    """The file, open for reading.

    Raises:
        OSError: the file cannot be opened.
        ValueError: there is something else of this name.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait for a writer
        raise ValueError("is not a regular file")
    return open(path, "rb", buffering=0)


def read_exactly(file: io.FileIO, length: int, what: str) -> bytearray:
    """The next bytes of a file.

    Args:
        file: open for reading.
        length: bytes.
        what: the bytes belong to, for the message.

    Raises:
        ValueError: the file ends before.
    """
    data = bytearray(length)
    read_into(file, np.frombuffer(data, np.uint8), what)
    return data


def read_into(file: io.FileIO, buffer: npt.NDArray[np.uint8], what: str) -> None:
    """Fill a buffer with the next bytes of a file.

    Args:
        file: open for reading.
        buffer: (length,) uint8.
        what: the bytes belong to, for the message.

    Raises:
        ValueError: the file ends before.
    """
    done = 0
    while done < buffer.size:
        got = file.readinto(buffer[done:].data)
        if not got:
            raise ValueError(f"the file ends inside {what}")
        done += got


def write_all(descriptor: int, piece: npt.NDArray[np.uint8], offset: int) -> None:
    """Write all of a piece at an offset.

    Args:
        descriptor: of a file that is open for writing.
        piece: (length,) uint8.
        offset: in the file, in bytes.

    Raises:
        OSError: the disk is full, or fails.
    """
    done = 0
    while done < piece.size:
        done += os.pwrite(descriptor, piece[done:].data, offset + done)
    if hasattr(os, "posix_fadvise"):  # Linux: the disk starts now, and the sync at the end has little to do
        os.posix_fadvise(descriptor, offset, done, os.POSIX_FADV_DONTNEED)


def require_new_file(path: Path) -> None:
    """Say at the start what would keep `create_file` from writing a file at the end.

    Raises:
        DomainError: there is a file of this name, or its folder cannot be written.
    """
    if os.path.lexists(path):
        raise DomainError(f"{path}: exists, and files are never overwritten; choose another name")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DomainError(f"{path}: {path.parent} is no folder that can be written; choose another")


def save_file(path: Path, content: bytes) -> None:
    """Write a new file that appears whole or not at all; errors as for `create_file`."""
    with create_file(path, len(content)) as descriptor:
        write_all(descriptor, np.frombuffer(content, np.uint8), 0)


@contextlib.contextmanager
def create_file(path: Path, size: int) -> Iterator[int]:
    """A descriptor of a new file that appears under its name whole or not at all.

    It is written under a temporary name, synced, then linked: an existing file is never replaced, and
    whatever is raised meanwhile leaves nothing behind. What a killed process left is removed first.

    Args:
        path: of the new file.
        size: bytes that it will have.

    Raises:
        ImageError: the file exists or cannot be written; for a full disk, how many bytes are needed.
    """
    folder = path.parent
    part = folder / f".{path.name}.{secrets.token_hex(8)}.part"
    if os.path.lexists(path):
        raise _exists(path)
    remove_stale_parts(path)
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, "")
        with locked_part(part) as lock:
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
    """Remove what killed processes left of a file of this name; see `remove_stale`."""
    remove_stale(path.parent, rf"\.{re.escape(path.name)}\.{TOKEN}\.part")


def remove_stale(folder: Path, pattern: str) -> None:
    """Remove the temporary files of processes that were killed, with a warning for each.

    A file of a process that still lives is locked, and stays; where a file system has no locks, all stay.

    Args:
        folder: that is looked through.
        pattern: a regular expression that the whole name of such a file matches.
    """
    with contextlib.suppress(OSError):
        for name in filter(re.compile(pattern).fullmatch, os.listdir(folder)):
            part = folder / name
            # Not there any more, or somebody else's: then it is not ours to remove.
            with contextlib.suppress(OSError), _opened(part, os.O_RDWR | os.O_NOFOLLOW) as descriptor:
                if _lock(descriptor, wait=False) and _is_named(part, descriptor):
                    os.unlink(part)
                    warnings.warn(f"{part}: left by a process that was killed, and removed now", stacklevel=2)


@contextlib.contextmanager
def locked_part(part: Path) -> Iterator[int]:
    """A descriptor of a new file; while it is open, `remove_stale` leaves the file alone."""
    while True:
        with _opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            # Between these two calls somebody else may have locked and removed it: then once more.
            if not _lock(descriptor, wait=True) or _is_named(part, descriptor):
                yield descriptor
                return


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder while this lasts; gives False if somebody else has locked it.

    Where a file system has no locks, or the folder cannot be opened, everybody gets it. A folder that has
    been removed by the one who had it is made again.
    """
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            folder.mkdir(exist_ok=True)
            continue
        except OSError:
            yield True
            return
        try:
            ours = _lock(descriptor, wait=False) is not False
            if ours and not _is_named(folder, descriptor):
                continue
            yield ours
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file, for as long as it is open; False if another has it, None if there are no locks."""
    try:
        import fcntl  # not on every system

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
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
