"""How long work says how far it has come."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much


def unseen(what: str, done: int, total: int) -> None:
    """The progress that nobody looks at."""
