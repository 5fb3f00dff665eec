"""What became of one requirement, or of one vector."""

from typing import NamedTuple

PASS, FAIL, UNSUPPORTED, DEVIATES, NOT_RUN = "pass", "fail", "unsupported", "deviates", "not run"
NOT_DETERMINISTIC, KIT_ERROR = "not deterministic", "kit error"
OVERWRITES = "overwrites results"
GOOD = (PASS, UNSUPPORTED, DEVIATES)  # every other kind of verdict is a failure


class Verdict(NamedTuple):
    """What became of one requirement, or of one vector.

    requirement: its id, or the vector's; kind: pass, unsupported, deviates, fail, or the word of a
    misbehaviour; text: why; cases: judged, up to the first failure if there was one; seconds: until then;
    repeat: the text of the case that failed, which `repeat` and `--repro` take, or None.
    """

    requirement: str
    kind: str
    text: str
    cases: int
    seconds: float
    repeat: str | None = None
