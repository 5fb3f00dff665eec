"""The deviations file: what an implementation knowingly does otherwise, with a reason for each (TOML).

[[deviation]]
requirement = "GTH-2"                # or case = "gather_rows/images/start"
reason = "clamps ids, see issue 12"
until = "0.4"                        # optional: later versions of the implementation fail again
"""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flashref.conformance.words import near
from flashref.types import FlashrefError

_KEYS = {"requirement", "case", "reason", "until"}


class DeviationError(FlashrefError):
    """A deviations file that cannot be read, or that is out of date."""


class Deviation(NamedTuple):
    """One entry of a deviations file.

    Attributes:
        requirement, case: the id of a requirement, or of a vector; the other one is None.
        reason: why the implementation deviates.
        until: the last version of the implementation that deviates; None: every version.
    """

    requirement: str | None
    case: str | None
    reason: str
    until: str | None

    @property
    def what(self) -> str:
        """The id, whichever it is."""
        return self.requirement or self.case or ""


class Deviations(NamedTuple):
    """The entries in force: id → reason."""

    requirements: Mapping[str, str]
    cases: Mapping[str, str]


def read_deviations(path: Path, checks: Collection[str], cases: Collection[str]) -> tuple[Deviation, ...]:
    """Read a deviations file.

    Args:
        path: of the file.
        checks: the ids of the requirements that have a check.
        cases: the ids of the vectors.

    Returns:
        Its entries, in their order.

    Raises:
        DeviationError: the file is no TOML, or an entry is unknown, stands twice, or has no reason.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeviationError(f"{path}: cannot be read: {error.strerror}; name a deviations file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeviationError(f"{path}: is no TOML: {error}") from None
    entries = content.get("deviation", [])
    tables = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if "deviations" in content:
        raise DeviationError(f"{path}: has [[deviations]], which is not read; write [[deviation]]")
    if set(content) - {"deviation"} or not tables:
        raise DeviationError(f"{path}: holds something else than [[deviation]] tables; remove it")
    deviations = [_deviation(f"{path}: deviation {i}", entry) for i, entry in enumerate(entries, 1)]
    for number, one in enumerate(deviations, 1):
        where = f"{path}: deviation {number}"
        if one.what in (earlier.what for earlier in deviations[: number - 1]):
            raise DeviationError(f"{where}: {one.what} is there twice; keep one of them")
        if one.requirement is not None and one.requirement not in checks:
            others = near(one.requirement, checks)
            raise DeviationError(f"{where}: no check is called {one.requirement!r}{others}")
        if one.case is not None and one.case not in cases:
            raise DeviationError(f"{where}: no vector is called {one.case!r}{near(one.case, cases, 2)}")
    return tuple(deviations)


def in_force(deviations: Sequence[Deviation], version: str) -> Deviations:
    """Choose the deviations that count for a version of the implementation.

    Args:
        deviations: as `read_deviations` gives them.
        version: as the adapter declares it.

    Raises:
        DeviationError: a deviation ends with a version, and the implementation's own has no number.
    """
    requirements: dict[str, str] = {}
    cases: dict[str, str] = {}
    for deviation in deviations:
        if deviation.until is not None:
            now, last = _numbers(version), _numbers(deviation.until)
            if now is None:
                raise DeviationError(
                    f"the deviation of {deviation.what} ends with version {deviation.until}, but the adapter "
                    f"calls its version {version!r}; give it a number such as 1.2, or remove `until`"
                )
            if last is not None and now > last:
                continue
        if deviation.requirement is not None:
            requirements[deviation.requirement] = deviation.reason
        else:
            cases[deviation.what] = deviation.reason
    return Deviations(requirements, cases)


def _deviation(where: str, entry: Mapping[str, Any]) -> Deviation:
    if unknown := sorted(set(entry) - _KEYS):
        raise DeviationError(f"{where}: has the unknown key {unknown[0]!r}; use {', '.join(sorted(_KEYS))}")
    if not all(isinstance(text, str) and text.strip() for text in entry.values()):
        raise DeviationError(f"{where}: has an empty text, or something else than a text; write one")
    if ("requirement" in entry) == ("case" in entry):
        raise DeviationError(f"{where}: must name a requirement or a case, and not both")
    if "reason" not in entry:
        raise DeviationError(f"{where}: has no reason; write why the implementation deviates")
    if "until" in entry and _numbers(entry["until"]) is None:
        raise DeviationError(f"{where}: until = {entry['until']!r} is no version; write one such as 1.2")
    return Deviation(entry.get("requirement"), entry.get("case"), entry["reason"], entry.get("until"))


def _numbers(version: str) -> tuple[int, ...] | None:
    """The numbers that a version begins with: 0.4.0, 0.4 and v0.4rc1 are all (0, 4)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    if match is None:
        return None
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
