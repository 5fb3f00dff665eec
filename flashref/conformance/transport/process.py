"""A process that answers lines with lines: started, asked, waited for, and ended with all that it started."""

import contextlib
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

from flashref.conformance.adapter import AdapterError
from flashref.conformance.transport.subject import Died

GRACE = 2.0  # seconds that a process gets to end by itself
REFUSED = "flashref.conformance: "  # begins what `python -m flashref.conformance` says before it gives up
TAIL = 8000  # bytes of stderr that are kept
SHOWN = 200  # characters of a line that is no answer


class EngineProcess:
    """A running command, its pipes, and the file of its stderr."""

    def __init__(self, words: Sequence[str]) -> None:
        if not words:
            raise AdapterError("the command is empty; name the program that speaks chapter 96's messages")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (`end` closes it)
        try:
            self._popen = subprocess.Popen(
                words,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # a group of its own, killed with all that it started
            )
        except (OSError, ValueError) as error:
            self._stderr.close()
            why = error.strerror if isinstance(error, OSError) else error
            raise AdapterError(f"the command {shlex.join(words)!r} cannot be started: {why}") from error
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)

    def ask(self, request: bytes, timeout: float) -> bytes:
        """Send a request, and wait for the line that answers it.

        Writes and reads in turns, as each is possible, so that neither side waits for the other for ever.

        Args:
            request: with the line break at its end.
            timeout: seconds from the first byte sent to the last byte of the answer.

        Returns:
            The line, without the line break.

        Raises:
            Died: no whole line came in time, more than one line came, or the process ended.
        """
        deadline = time.monotonic() + timeout
        unsent, parts = memoryview(request), list[bytes]()
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        poll.register(self._stdin, select.POLLOUT)
        while not (parts and b"\n" in parts[-1]):
            unsent = self._write(unsent, poll)
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                began = b"".join(parts)
                what = f"only {shortened(began)}" if began else "no answer"
                unread = f", with {len(unsent)} bytes of the request unread" if unsent else ""
                raise Died("hangs", f"{what} within {timeout:g} s{unread}")
            with contextlib.suppress(BlockingIOError):
                part = os.read(self._stdout, 1 << 16)
                if not part:
                    raise Died("crashes", self._how_it_ended(b"".join(parts)))
                parts.append(part)
        line, _, more = b"".join(parts).partition(b"\n")
        if more:
            raise Died("garbage", f"more than one line: {shortened(more)} follows the answer")
        return line

    def _write(self, unsent: memoryview, poll: select.poll) -> memoryview:
        """Write what the pipe takes, return the rest. A process that closed its stdin may still answer."""
        if unsent:
            try:
                unsent = unsent[os.write(self._stdin, unsent) :]
            except BlockingIOError:
                return unsent
            except BrokenPipeError:
                unsent = unsent[len(unsent) :]
            if not unsent:
                poll.unregister(self._stdin)
        return unsent

    def _how_it_ended(self, began: bytes) -> str:
        after = f" after {shortened(began)}" if began else ""
        try:
            status = self._popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            return f"it closed its stdout instead of answering{after}"
        if status < 0:
            return f"it was killed by {signal.Signals(-status).name} instead of answering{after}"
        return f"it exited with status {status} instead of answering{after}"

    def status(self) -> int | None:
        """Give its exit status if it ends by itself within GRACE seconds, else None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(GRACE)
        return None

    def stop(self, request: bytes) -> None:
        """Send a last request, and wait for the process to end by itself for at most GRACE seconds."""
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):  # a full pipe, or nobody there: it is killed anyway
            os.write(self._stdin, request)
        self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(GRACE)

    def end(self) -> str:
        """Kill the process and what it started, and close its pipes; return the end of its stderr."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._popen.stdin.close()
        self._popen.stdout.close()
        with self._stderr as file:
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), TAIL, max(size - TAIL, 0)).decode(errors="replace")


def shortened(line: bytes) -> str:
    """A line, or what there is of one, for a sentence."""
    text = line.decode(errors="replace").rstrip("\n")
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def split_command(line: str) -> list[str]:
    """Split a command line into words, as a shell does. Raises AdapterError for an open quotation."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise AdapterError(
            f"the command {line!r} cannot be split into words: {str(error).lower()}"
        ) from error
