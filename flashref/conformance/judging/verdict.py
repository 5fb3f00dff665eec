"""What became of one requirement, or of one vector."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

PASS, FAIL, UNSUPPORTED, DEVIATES, NOT_RUN = "pass", "fail", "unsupported", "deviates", "not run"
NOT_DETERMINISTIC, KIT_ERROR = "not deterministic", "kit error"
OVERWRITES = "overwrites results"
GOOD = (PASS, UNSUPPORTED, DEVIATES)  # every other kind of verdict is a failure


class Verdict(NamedTuple):
    """What became of one requirement, or of one vector.

    Attributes:
        requirement: its id, or the vector's.
        kind: pass, unsupported, deviates, not run, fail, or the word of a misbehaviour.
        text: why.
        cases: how many cases were judged, up to the first failure if there was one.
        seconds: how long that took.
        repeat: the case that failed, as a text that `repeat` and `--repro` take; None if there is none.
        skipped: reason → how many cases the adapter skipped for it, up to the first failure.
    """

    requirement: str
    kind: str
    text: str
    cases: int
    seconds: float
    repeat: str | None = None
    skipped: Mapping[str, int] = MappingProxyType({})
