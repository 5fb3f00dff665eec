"""Packs images, stopping before every system call that changes anything, to be told whether to go on.

A line on stdin asks for a packing: the checkpoint's folder, the image's path, and `links`, or `no-links` for
a file system without hard links. A process of its own then says the name of each call on stdout, and waits
for a letter: g goes on, r never stops again, k is killed, h writes half of the piece and is killed. The last
line is "ended" and how: ok, killed, or the error.
"""

import errno
import fcntl
import os
import signal
import stat
import sys
from pathlib import Path

from flashref.models.checkpoint import open_checkpoint
from flashref.storage.image import pack_image
from flashref.types import ImageError

CALLS = ((os, "open pwrite fsync close link rename unlink"), (fcntl, "flock"))


def say(*words):
    os.write(1, (" ".join(words) + "\n").encode())


def no_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")


def locked(descriptor, how):
    """What is locked, and how."""
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "part", str(how)


def stop_before_calls():
    stopping = True

    def stepped(name, call):
        def step(*args):
            nonlocal stopping
            if stopping:
                say(name, *locked(*args)) if name == "flock" else say(name)
                letter = os.read(0, 1)
                stopping = letter != b"r"
                if letter == b"h":
                    descriptor, piece, offset = args
                    call(descriptor, piece[: len(piece) // 2], offset)
                if letter in b"hk":
                    os.kill(os.getpid(), signal.SIGKILL)
            # A kill takes nothing away that was written: nobody need wait for the disk.
            return None if name == "fsync" else call(*args)

        return step

    for module, names in CALLS:
        for name in names.split():
            setattr(module, name, stepped(name, getattr(module, name)))


def pack(folder, path, links):
    checkpoint = open_checkpoint(Path(folder))
    if links == "no-links":
        os.link = no_links
    stop_before_calls()
    try:
        pack_image(path, checkpoint.tensors, dict(enumerate(checkpoint.layers)), checkpoint.config_text)
    except ImageError as error:
        return str(error)
    return "ok"


def main():
    for request in iter(read_line, b""):
        child = os.fork()
        if child == 0:
            say("ended", pack(*request.decode().split()))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            say("ended", "killed" if os.WIFSIGNALED(status) else "with a traceback")
    sys.exit()


def read_line():
    """A line, byte by byte: what follows is for the packing process."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


if __name__ == "__main__":
    main()
