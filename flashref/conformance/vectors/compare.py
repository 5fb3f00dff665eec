"""A result beside what a vector expects of it: the first difference, in numbers (chapter 94)."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flashref.conformance.adapter import OPERATIONS, Facts
from flashref.conformance.transport.subject import unchanged
from flashref.conformance.vectors.files import Expectation, Vector
from flashref.conformance.words import excess, number
from flashref.types import Array, Ids
from flashref.window import Delta

_DELTA = re.compile(r"^result\[(\d+)\]\[(\d+)\]\[(\d+)\]\[(\d+)\]")
SMALLEST_NORMAL = 2.0**-126  # of float32
_ARITHMETIC = ("predict_active", "dense_ffn", "sparse_ffn", "run_decode")  # the others only move bytes
_PACKED = ("unpack_bundles", "gather_rows")  # their weights come as bytes
_PLACEMENT = OPERATIONS["run_decode"].index("placement")
_DTYPE_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint16): "BF16"}


def beyond_facts(facts: Facts, vector: Vector) -> str | None:
    """Say why an implementation need not run this case: a dtype, a size or subnormals that it does not take.

    Returns:
        The reason; None if it must run the case.
    """
    names = OPERATIONS[vector.operation]
    # x is float32 whatever the weights are stored as.
    weights = [
        array
        for name, value in zip(names, vector.arguments, strict=True)
        if name not in ("x", "xs", "image", "packed")
        for array in _arrays(value)
        if array.dtype in _DTYPE_NAMES
    ]
    dtypes = {_DTYPE_NAMES[array.dtype] for array in weights}
    dtypes |= {value for name, value in zip(names, vector.arguments, strict=True) if name == "dtype"}
    if other := sorted(dtypes & set(_DTYPE_NAMES.values()) - facts.dtypes):
        return f"the implementation does not take {', '.join(other)}"
    most, named = facts.max_elements, dict(zip(names, vector.arguments, strict=True))
    packed = named["n"] * named["d"] if vector.operation in _PACKED else 0
    if most is not None and max(packed, *(array.size for array in weights), 0) > most:
        return f"the implementation takes at most {most} elements"
    if facts.flushes_subnormals and vector.operation in _ARITHMETIC:
        inputs = [*weights, *(array for value in vector.arguments for array in _arrays(value))]
        if any(_has_subnormals(array) for array in inputs):
            return "the implementation flushes subnormals, and the case has some"
    return None


def difference_of(vector: Vector, result: Any) -> str | None:
    """Compare a result with what a vector expects; not for vectors that expect a refusal.

    Args:
        vector: the case.
        result: the operation's answer, as `checked_result` gives it.

    Returns:
        What is wrong, with the worst or first element; None if nothing is.
    """
    expectation, due = vector.expectation, vector.expectation.result
    if expectation.kind == "either":
        return _outside_band(result, expectation)
    if vector.operation == "run_slots":
        by_id = [[np.sort(ids), rows[np.argsort(ids, kind="stable")]] for ids, rows, _ in result]
        return _first_difference(by_id, due, "step") or _wrong_moves(vector, result)
    if vector.operation == "run_decode":
        (ys, counters), (due, due_counters) = result, due
        wrong_counter = _first_difference(counters, due_counters, "counter") or _too_many_moves(
            vector, counters
        )
    else:
        ys, wrong_counter = result, None
    if vector.operation == "run_window":
        difference = _first_difference(result, due, "result")
        return difference and _DELTA.sub(_named_delta, difference)
    if expectation.kind == "bounded":
        return _beyond_bound(ys, due, expectation.bound) or wrong_counter
    return (
        _first_difference(ys, due, "result", expectation.kind == "exact_but_for_zero_sign") or wrong_counter
    )


def _named_delta(place: re.Match[str]) -> str:
    """A place in the result of run_window in words: `evict, sequence 0, token 2, layer 0`."""
    sequence, token, layer, part = map(int, place.groups())
    return f"{Delta._fields[part]}, sequence {sequence}, token {token}, layer {layer}"


def _arrays(value: Any) -> Iterator[Array]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)


def _has_subnormals(array: Array) -> bool:
    if array.dtype == np.uint16:
        return bool(np.any((array & 0x7F80 == 0) & (array & 0x7F != 0)))
    return array.dtype == np.float32 and bool(np.any((array != 0) & (abs(array) < SMALLEST_NORMAL)))


def moves_due(placement: str, before: Sequence[int], evict: Collection[int], loads: int) -> int:
    """Count the rows that a placement must move.

    Args:
        placement: swap_with_last or fill_holes.
        before: the ids in the order of their slots.
        evict: the ids that leave.
        loads: how many ids come.

    Requirements: SLT-4, SLT-6.
    """
    holes = [j for j, neuron in enumerate(before) if neuron in evict]
    count = len(before) - len(evict)
    if placement == "fill_holes":
        holes, count = holes[loads:], count + loads
    return sum(hole < count for hole in holes)


def most_moves(placement: str, evicted: Any, loaded: Any) -> Any:
    """The most rows that a placement may move, in any order of slots: one for each hole it must fill."""
    return np.maximum(evicted - (loaded if placement == "fill_holes" else 0), 0)


def _wrong_moves(vector: Vector, result: Any) -> str | None:
    """The order of slots is free (chapter 70), so moves follow from the one that the answer itself shows."""
    _, placement, deltas, _ = vector.arguments
    before: list[int] = []
    for step, ((load, evict, _), (ids, _, moved)) in enumerate(zip(deltas, result, strict=True)):
        due = moves_due(placement, before, set(evict.tolist()), len(load))
        if moved != due:
            return f"step[{step}] moved {moved} rows, but the slots before it, {before}, have {due} to move"
        before = ids.tolist()
    return None


def _too_many_moves(vector: Vector, counters: Mapping[str, Array]) -> str | None:
    """In run_decode the order of slots does not show, so only the largest number of moves is known."""
    if "moved_rows" not in counters:
        return None
    moved, due = counters["moved_rows"], vector.expectation.result[1]
    most = most_moves(vector.arguments[_PLACEMENT], due["evicted"], due["loaded"])
    if np.all((moved >= 0) & (moved <= most)):
        return None
    return f"counter moved_rows is {moved.tolist()}, but there are at most {most.tolist()} rows to move"


def _outside_band(got: Ids, expectation: Expectation) -> str | None:
    assert expectation.must is not None and expectation.may is not None
    ids = set(got.tolist())
    must, may = set(expectation.must.tolist()), set(expectation.may.tolist())
    if sorted(ids) != got.tolist():
        return f"the ids {got.tolist()} are not strictly ascending"
    if must - ids:
        return f"misses the ids {sorted(must - ids)}, whose logits exceed the threshold beyond doubt"
    if ids - must - may:
        return f"has the ids {sorted(ids - must - may)}, whose logits lie below it beyond doubt"
    return None


def _beyond_bound(got: Array, exact: Array, bound: Array | None) -> str | None:
    """The worst element, if one is further from the exact value than its bound allows."""
    assert bound is not None
    errors = np.abs(got.astype(np.float64) - exact)
    if np.all(errors <= bound):  # false for NaN
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(errors <= bound, 0, np.nan_to_num(errors / bound, nan=np.inf, posinf=np.inf))
    worst = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    error = float(errors[worst]) if np.isfinite(got[worst]) else None
    return (
        f"worst element {_index(worst)}: got {_shown(got[worst])}, exact {_shown(exact[worst])}; "
        f"{excess(error, bound[worst])}"
    )


def _first_difference(got: Any, due: Any, where: str, free_zeros: bool = False) -> str | None:
    """Where two nested results differ first; counters that an implementation does not give are not judged."""
    if isinstance(due, Mapping):
        pairs = [(f"{where} {key}", got[key], due[key]) for key in due if key in got]
    elif isinstance(due, list):
        if len(got) != len(due):
            return f"{where}: got {len(got)} parts, expected {len(due)}"
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(got, due, strict=True))]
    elif isinstance(due, np.ndarray):
        return _array_difference(got, due, where, free_zeros)
    else:
        return None if unchanged(got, due) else f"{where}: got {got}, expected {due}"
    differences = (_first_difference(a, b, name, free_zeros) for name, a, b in pairs)
    return next((difference for difference in differences if difference), None)


def _array_difference(got: Array, due: Array, where: str, free_zeros: bool) -> str | None:
    if got.dtype == due.dtype == np.int64 and got.ndim == due.ndim == 1 and max(got.size, due.size) < 30:
        a, b = got.tolist(), due.tolist()
        return None if a == b else f"{where}: got {a}, expected {b}"
    if got.shape != due.shape or got.dtype != due.dtype:
        given, expected = (f"{array.dtype} of shape {array.shape}" for array in (got, due))
        return f"{where}: got {given}, expected {expected}"
    bits = np.dtype(f"u{due.itemsize}")
    differ = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(due).view(bits)
    if free_zeros and due.dtype.kind == "f":
        differ &= ~((got == 0) & (due == 0))
    if not differ.any():
        return None
    first = np.unravel_index(int(np.argmax(differ)), differ.shape)
    return (
        f"{where}: {int(differ.sum())} of {differ.size} elements differ; "
        f"element {_index(first)}: got {_shown(got[first])}, expected {_shown(due[first])}"
    )


def _index(position: tuple[Any, ...]) -> str:
    return ", ".join(str(int(part)) for part in position)


def _shown(value: Any) -> str:
    """A float in hexadecimal and decimal, an integer as itself."""
    return number(value) if isinstance(value, np.floating) else str(int(value))
