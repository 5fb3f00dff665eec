"""Progress: how a long function reports how far it has come."""

from collections.abc import Callable

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def unseen(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""
