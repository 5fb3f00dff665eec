"""The cases of the vectors: plain functions from nothing to cases, from exact definitions only (chapter 94).

Inputs follow from each case's own id. A published case is never edited: it gets a `withdrawn`, and another
follows.
"""

from functools import cache

from tools.vector_cases import (
    bundles,
    decode,
    ffn,
    ffn_bounded,
    gather,
    plan,
    predictor,
    slots,
    window,
)
from tools.vector_cases.notes import NOTES

from flashref.conformance.vectors.files import Vector, VectorGroup

SPEC = "1.1"  # of groups whose newest case is of the first vectors; a group that grows gets its own here
GROWN: dict[str, str] = {}


@cache
def all_groups() -> tuple[VectorGroup, ...]:
    """Every group, by operation and name; the cases of a group in the order of their making."""
    vectors: list[Vector] = []
    for module in (predictor, ffn, ffn_bounded, bundles, plan, gather, window, slots, decode):
        vectors += module.cases()
    groups: dict[tuple[str, str], list[Vector]] = {}
    for vector in vectors:
        operation, name, _ = vector.id.split("/")
        groups.setdefault((operation, name), []).append(vector)
    return tuple(_group(*key, groups[key]) for key in sorted(groups))


def _group(operation: str, name: str, vectors: list[Vector]) -> VectorGroup:
    flags = {flag for vector in vectors for flag in vector.flags}
    notes = {flag: NOTES[flag] for flag in sorted(flags)}
    return VectorGroup(operation, name, GROWN.get(f"{operation}/{name}", SPEC), notes, vectors)
