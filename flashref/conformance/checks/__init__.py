"""One check for each requirement that binds every implementation, by id, and the checks that words name."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from flashref.conformance.checks import (
    adapter,
    bundle,
    decode,
    ffn,
    gather,
    logits,
    machine,
    plan,
    predictor,
    slots,
    stdio,
    window,
)
from flashref.conformance.checks.check import Check
from flashref.conformance.requirements import requirements
from flashref.conformance.words import near
from flashref.types import FlashrefError

_MODULES = (adapter, stdio, ffn, predictor, window, bundle, plan, gather, slots, decode, machine, logits)
CHECKS: Mapping[str, Check] = {check.requirement: check for module in _MODULES for check in module.CHECKS}


def in_order(checks: Iterable[Check]) -> list[Check]:
    """The checks in the order of the chapters."""
    places = {name: place for place, name in enumerate(requirements())}
    return sorted(checks, key=lambda check: places.get(check.requirement, len(places)))


def checks_named(words: str | Sequence[str] | None) -> list[Check]:
    """Find the checks that words name.

    Args:
        words: ids such as FFN-4, and areas, as FFN or FFN-*; in any case, with blanks or commas between them.
            None: every check.

    Returns:
        The checks, in the order of the chapters.

    Raises:
        FlashrefError: a word names no check; the sentence says which ids are near.
    """
    if words is None:
        return in_order(CHECKS.values())
    text = words if isinstance(words, str) else " ".join(words)
    chosen: set[str] = set()
    for word in re.split(r"[\s,]+", text.upper()):
        found = {name for name in CHECKS if fnmatch.fnmatchcase(name, word) or name.startswith(f"{word}-")}
        if word and not found:
            raise FlashrefError(_unknown(word))
        chosen |= found
    if not chosen:
        raise FlashrefError("no requirement is named; write ids such as FFN-4, or areas such as FFN")
    return in_order(CHECKS[name] for name in chosen)


def _unknown(word: str) -> str:
    if (known := requirements().get(word)) is not None:
        why = (
            "it binds flashref only" if known.testable else f"it is [{known.kind}], so no test can decide it"
        )
        return f"{word} has no check: {why}"
    areas = sorted({name.partition("-")[0] for name in CHECKS})
    others = near(word, [*CHECKS, *areas]) or f"; the areas are {', '.join(areas)}"
    return f"no check is called {word!r}{others}"
