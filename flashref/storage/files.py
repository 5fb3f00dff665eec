"""Reads regular files completely, and creates files that appear whole or not at all.

The system may read or write fewer bytes at a time than it was asked for; the functions here go on until all
bytes are done.
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

# The errors by which link() says that a file system has no hard links.
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
TOKEN = "[0-9a-f]{16}"  # a pattern for the random part of a temporary file's name


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file for reading.

    Args:
        path: the path of the file.

    Returns:
        The file, unbuffered.

    Raises:
        OSError: the file cannot be opened, or is a folder, a pipe or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: opening a pipe waits for a writer
        raise OSError(errno.EINVAL, "not a regular file")
    return open(path, "rb", buffering=0)


def read_exactly(file: io.FileIO, length: int, what: str) -> bytearray:
    """Read the next bytes of a file.

    Args:
        file: a file that is open for reading.
        length: the number of bytes.
        what: what the bytes belong to, for the message.

    Returns:
        The bytes.

    Raises:
        ValueError: the file ends before the last of them.
    """
    data = bytearray(length)
    read_into(file, np.frombuffer(data, np.uint8), what)
    return data


def read_into(file: io.FileIO, buffer: npt.NDArray[np.uint8], what: str) -> None:
    """Fill a buffer with the next bytes of a file.

    Args:
        file: a file that is open for reading.
        buffer: (length,) uint8.
        what: what the bytes belong to, for the message.

    Raises:
        ValueError: the file ends before the buffer is full.
    """
    done = 0
    while done < buffer.size:
        got = file.readinto(buffer[done:].data)
        if not got:
            raise ValueError(f"the file ends inside {what}")
        done += got


def write_all(descriptor: int, piece: npt.NDArray[np.uint8], offset: int) -> None:
    """Write all bytes of a piece at an offset.

    Args:
        descriptor: the descriptor of a file that is open for writing.
        piece: (length,) uint8.
        offset: the place in the file, in bytes.

    Raises:
        OSError: the disk is full or fails.
    """
    done = 0
    while done < piece.size:
        done += os.pwrite(descriptor, piece[done:].data, offset + done)
    if hasattr(os, "posix_fadvise"):  # Linux then starts to write at once, and the sync at the end is short
        os.posix_fadvise(descriptor, offset, done, os.POSIX_FADV_DONTNEED)


def require_new_file(path: Path) -> None:
    """Check at the start of some work that `create_file` will be able to write its result at the end.

    Args:
        path: the file that will be written.

    Raises:
        DomainError: there is a file of this name, or its folder cannot be written.
    """
    if os.path.lexists(path):
        raise DomainError(f"{path}: exists, and files are never overwritten; choose another name")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DomainError(f"{path}: there is no folder {path.parent} that can be written; choose another")


def save_file(path: Path, content: bytes) -> None:
    """Write a new file that appears whole or not at all.

    Args:
        path: the new file.
        content: its bytes.

    Raises:
        ImageError: as for `create_file`.
    """
    with create_file(path, len(content)) as descriptor:
        write_all(descriptor, np.frombuffer(content, np.uint8), 0)


@contextlib.contextmanager
def create_file(path: Path, size: int) -> Iterator[int]:
    """Create a file that appears under its name whole or not at all.

    The file is written under a temporary name, synced, and then linked to its name. An existing file is never
    replaced, and if anything is raised, no file is left. Temporary files of killed processes are removed
    first.

    Args:
        path: the new file.
        size: the size that it will have, in bytes.

    Returns:
        A context whose value is a descriptor to write to; the file gets its name when the context ends.

    Raises:
        ImageError: the file exists or cannot be written; on a full disk, the message says how many bytes are
            needed.
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
                os.close(descriptor)  # before the file is named: some network disks report errors only here
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
    """Remove the temporary files that killed processes left beside a file, as `remove_stale` does.

    Args:
        path: the file that they would have become.
    """
    remove_stale(path.parent, rf"\.{re.escape(path.name)}\.{TOKEN}\.part")


def remove_stale(folder: Path, pattern: str) -> None:
    """Remove the temporary files of processes that were killed, with a warning for each.

    A running process keeps its files locked, so they stay. On a file system without locks, all files stay.

    Args:
        folder: the folder to look through.
        pattern: a regular expression for the whole name of such a file.
    """
    with contextlib.suppress(OSError):
        for name in filter(re.compile(pattern).fullmatch, os.listdir(folder)):
            part = folder / name
            # An OSError means that the file is gone or belongs to another user; it is left alone.
            with contextlib.suppress(OSError), _opened(part, os.O_RDWR | os.O_NOFOLLOW) as descriptor:
                if _lock(descriptor, wait=False) and _is_named(part, descriptor):
                    os.unlink(part)
                    warnings.warn(f"{part}: left by a process that was killed, and removed now", stacklevel=2)


@contextlib.contextmanager
def locked_part(part: Path) -> Iterator[int]:
    """Create a file and lock it while the context lasts, so that `remove_stale` leaves it alone.

    Args:
        part: the new file.

    Returns:
        A context whose value is a descriptor to write to.

    Raises:
        OSError: the file exists or cannot be created.
    """
    while True:
        with _opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            # Another process may lock and remove the file between these two calls; then it is made again.
            if not _lock(descriptor, wait=True) or _is_named(part, descriptor):
                yield descriptor
                return


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder while the context lasts.

    If the process that had the lock has removed the folder, the folder is made again.

    Args:
        folder: the folder.

    Returns:
        A context whose value is False if another process has locked the folder. It is True if this process
        has locked it, and also where there are no locks or the folder cannot be opened.
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
    """Lock a file until it is closed; False if another process has it, None if there are no locks."""
    try:
        import fcntl  # not on every system

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_named(path: Path, descriptor: int) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _name(part: Path, path: Path) -> None:
    """Give the finished file its name, and sync the folder."""
    _link(part, path)
    try:
        _sync_folder(path.parent)
    except BaseException:  # the name might be lost when the power fails
        os.unlink(path)
        raise


def _exists(path: Path) -> ImageError:
    return ImageError(f"{path}: exists, and files are never overwritten; remove it or choose another name")


def _link(part: Path, path: Path) -> None:
    """Give the finished file its name, unless another process has taken it meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _rename(part, path)


def _rename(part: Path, path: Path) -> None:
    """Do the same without hard links: with the folder locked, see that the name is free, and rename.

    A lock ends with its process, whereas an empty file that reserves the name would stay after a kill.
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
    """Open a file; an error in closing it is ignored, since nothing is written through the descriptor."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
