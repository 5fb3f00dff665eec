"""What came out of a run, counted and as JSON; nothing in it depends on a clock: two runs can be compared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flashref import SPEC_VERSION
from flashref.conformance.judging.runner import (
    DEVIATES,
    FAIL,
    GOOD,
    NOT_RUN,
    PASS,
    UNSUPPORTED,
    Verdict,
    failure_text,
)
from flashref.conformance.transport.codec import case_from_text

_NAMES = {PASS: "pass", DEVIATES: "deviate", UNSUPPORTED: "unsupported", FAIL: "fail", NOT_RUN: "not run"}


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many there are of each: every misbehaviour is a fail, and what was not run is counted by itself."""
    numbers = dict.fromkeys(_NAMES.values(), 0)
    for verdict in verdicts:
        numbers[_NAMES.get(verdict.kind, _NAMES[FAIL])] += 1
    return numbers


def summary_line(verdicts: Sequence[Verdict], vectors: Sequence[Verdict]) -> str:
    """`spec 1.1: 52 pass, 2 deviate, 3 unsupported, 1 fail; vectors: 380 pass, …`."""
    parts = [f"spec {SPEC_VERSION}: {_counted(verdicts)}"] if verdicts else []
    parts += [f"vectors: {_counted(vectors)}"] if vectors else []
    return "; ".join(parts) or f"spec {SPEC_VERSION}: nothing was judged"


def held(verdicts: Iterable[Verdict]) -> bool:
    """Whether none of them is a failure."""
    return all(verdict.kind in GOOD for verdict in verdicts)


def report_json(
    name: str,
    version: str,
    profile: str,
    verdicts: Sequence[Verdict],
    groups: Mapping[str, Sequence[Verdict]],
) -> dict[str, Any]:
    """The whole run. groups: operation → the verdicts on its vectors."""
    every = [verdict for group in groups.values() for verdict in group]
    return {
        "name": name,
        "version": version,
        "spec": SPEC_VERSION,
        "profile": profile,
        "verdicts": [
            {
                "requirement": verdict.requirement,
                "kind": verdict.kind,
                "text": verdict.text,
                "cases": verdict.cases,
                "repeat": verdict.repeat,
            }
            for verdict in verdicts
        ],
        "vectors": [
            {
                "operation": operation,
                "kind": group_kind(group),
                "cases": len(group),
                **counts(group),
                "failures": [
                    {"case": verdict.requirement, "kind": verdict.kind, "text": verdict.text}
                    for verdict in group
                    if verdict.kind not in GOOD
                ],
            }
            for operation, group in groups.items()
        ],
        "summary": {"requirements": counts(verdicts), "vectors": counts(every)},
    }


def group_kind(group: Sequence[Verdict]) -> str:
    """One word for the vectors of an operation: the first failure's, or what most deserves to be said."""
    kinds = [verdict.kind for verdict in group]
    bad = [kind for kind in kinds if kind not in GOOD]
    return next((kind for kind in (*bad, PASS, DEVIATES) if kind in kinds), UNSUPPORTED)


def failure_of(verdict: Verdict, target: str) -> str:
    """A failed requirement or vector in full. target: the implementation, as a command line names it."""
    if "/" in verdict.requirement:
        again = f"  repeat: flashref conformance {target} --repro {verdict.requirement}"
        return f"{verdict.requirement} [vector]\n  {verdict.kind}: {verdict.text}\n{again}"
    case = case_from_text(verdict.repeat) if verdict.repeat is not None else None
    return failure_text(verdict, case, target)


def _counted(verdicts: Sequence[Verdict]) -> str:
    numbers = counts(verdicts)
    always = [_NAMES[kind] for kind in (PASS, DEVIATES, UNSUPPORTED, FAIL)]
    shown = [*always, *(["not run"] if numbers["not run"] else [])]
    return ", ".join(f"{numbers[name]} {name}" for name in shown)
