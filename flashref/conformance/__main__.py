"""`python -m flashref.conformance ADAPTER`: a Python adapter behind the stdio protocol (chapter 96)."""

import os
import sys

from flashref.conformance.adapter import AdapterError, load_adapter
from flashref.conformance.transport.process import REFUSED
from flashref.conformance.transport.stdio import serve


def main(words: list[str]) -> int:
    """Serve a Python adapter on stdin and stdout.

    Args:
        words: one word, module or module:attribute.

    Returns:
        The exit status: 0 after stop, 1 after a message that is not understood, 2 if there is no adapter.
    """
    if len(words) != 1:
        print("usage: python -m flashref.conformance ADAPTER, a module or module:attribute", file=sys.stderr)
        return 2
    # The adapter may print, and read: its stdout is our stderr, its stdin is empty.
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        try:
            return serve(load_adapter(words[0]), requests, answers)
        except AdapterError as error:
            print(f"{REFUSED}{error}", file=sys.stderr)
            return 2
        except (BrokenPipeError, KeyboardInterrupt):  # the kit is gone, or the user has had enough
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
