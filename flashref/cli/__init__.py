"""The command line. This module loads next to nothing, so that Ctrl-C is answered from the start."""

import os
import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the words after `flashref`; None: those that the process was started with.

    Returns:
        The exit code: 0 if what was checked held, 1 if it did not, 2 for a user's mistake, 130 for Ctrl-C.
    """
    try:
        from flashref.cli import program
    except KeyboardInterrupt:
        print("flashref: interrupted", file=sys.stderr)
        return 130
    return program.run(arguments)


def command() -> None:
    """Run `flashref …` as a process of its own."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # an ignored one (nohup) stays ignored
        signal.signal(signal.SIGINT, _leave)  # a module that is half loaded might turn Ctrl-C into an error
    code = main()
    if code > 128 and "jax" in sys.modules:  # its threads still compute, and would crash the end
        os._exit(code)
    sys.exit(code)


def _leave(number: int, frame: object) -> None:
    """End the process at once; while no command runs, there is nothing to clean up."""
    os.write(2, b"flashref: interrupted\n")
    os._exit(128 + number)
