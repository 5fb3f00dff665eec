"""What all commands have in common: arguments are parsed, errors are one sentence, signals clean up."""

import argparse
import difflib
import gc
import io
import os
import re
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from flashref import SPEC_VERSION, __version__
from flashref.cli import calibrate, conformance, pack, paper, simulate, spec, train, vectors
from flashref.cli import run as run_command
from flashref.types import FlashrefError

DESCRIPTION = """
The executable reference of "LLM in a flash": runs language models whose feed-forward weights lie on flash,
judges other implementations, and simulates what a model would cost on a device. `flashref run` alone runs a
small model that is shipped; each command has its own --help.
"""
COMMANDS = (run_command, pack, train, vectors, conformance, calibrate, simulate, paper, spec)


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. It is no SystemExit, which Hypothesis takes for a failure of what it tests."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number  # as a shell has it


class HelpFormatter(argparse.HelpFormatter):
    """argparse's own, but lines end between words only, never at a hyphen."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make the left column wide enough for the names of commands, whose indent argparse forgets."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = textwrap.wrap(" ".join(text.split()), width - len(indent), break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake answered in one sentence and exit code 2."""

    def __init__(self, **options: Any) -> None:
        """Argparse's options."""
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Say the mistake in one sentence on stderr, point to the help, and end with exit code 2."""
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Name the arguments that no option takes, and the option that is nearest to the first of them."""
        name = arguments[0].partition("=")[0]
        near = did_you_mean(name, self._option_string_actions) if name.startswith("-") else ""
        plural = "s" if len(arguments) > 1 else ""
        self.error(f"unknown argument{plural}: {' '.join(arguments)}{near}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)" with the known word that is nearest; an empty text if none is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def run(arguments: Sequence[str] | None) -> int:
    """Run a command line.

    Args:
        arguments: the words after `flashref`; None: those that the process was started with.

    Returns:
        The exit code. What went wrong was said in one sentence on stderr.
    """
    prog = "flashref"
    if sys.stdout is None:
        return _mistake(prog, "stdout is closed, so no result could be shown; send it to a file or a pipe")
    warnings.showwarning = _one_line_warning  # type: ignore[assignment]  # it takes more and uses the first
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a stdout that is not Unicode shows ? for unknown characters
    try:
        options = _parsed(prog, arguments)
        prog = f"{prog} {options.command}"
        with _leaving_nothing_when_ended():
            code: int = options.run(options)
            # That the reader of stdout has gone (| head) may show only when the last bytes are flushed.
            sys.stdout.flush()
        return code
    except FlashrefError as error:
        return _mistake(prog, str(error))
    except MemoryError as error:
        what = f"not enough memory ({error})" if str(error) else "not enough memory"
        return _mistake(prog, f"{what}; free some, or ask for less")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell shows SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        what = f"{where}{error.strerror or error}; check the path, its permissions and the disk"
        return _mistake(prog, what)
    except Ended as ended:
        return ended.code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing half-written was left", file=sys.stderr)
        return 130


def _parsed(prog: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=DESCRIPTION)
    version = f"{prog} {__version__}, spec {SPEC_VERSION}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_parser(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.unknown(unknown)
    return options


@contextmanager
def _leaving_nothing_when_ended() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that temporary files are removed.

    A signal that is ignored, as nohup does, stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if _in_garbage_collection(frame):  # Python drops what is raised there, so the signal comes again
            threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    before = {number: signal.getsignal(number) for number in numbers}
    heard = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _in_garbage_collection(frame: FrameType | None) -> bool:
    """Return whether a callback of the garbage collector is running; JAX has one."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None and frame.f_code not in callbacks:
        frame = frame.f_back
    return frame is not None


def _mistake(prog: str, sentence: str) -> int:
    print(f"{prog}: {sentence}", file=sys.stderr)
    return 2


def _one_line_warning(message: Warning | str, *_: object) -> None:
    print(f"flashref: warning: {message}", file=sys.stderr)
