"""Checks of chapter 70: ids and rows after every step against a dict, moves by the answer's own order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.adapter import PLACEMENTS, Facts
from flashref.conformance.checks.check import (
    Call,
    Check,
    ask,
    dtypes_of,
    expect_bits,
    expect_equal,
    expect_ids,
    ints,
    must_refuse,
)
from flashref.conformance.strategies import stored
from flashref.conformance.transport.subject import Breach, Subject
from flashref.conformance.vectors.compare import moves_due
from flashref.types import STORED_DTYPES, Array

OPERATIONS = ("run_slots",)
FIELDS, WIDTH = 2, 3
Deltas = Sequence[tuple[Sequence[int], Sequence[int]]]  # (evict, load) a step


def rows_of(load: Sequence[int], step: int, dtype: str) -> Array:
    """New rows (m, fields, d) whose bits tell the neuron, the step, and the place in the row."""
    place = np.arange(FIELDS * WIDTH).reshape(FIELDS, WIDTH)
    bits = np.array([neuron * 256 + step * 8 + place for neuron in load], np.uint16)
    bits = bits.reshape(len(load), FIELDS, WIDTH)
    return bits.astype(np.float32) if dtype == "F32" else bits.view(STORED_DTYPES[dtype])


def call_of(capacity: int, placement: str, dtype: str, deltas: Deltas, note: str = "") -> Call:
    """run_slots of these steps."""
    steps = [[ints(load), ints(evict), ints([])] for evict, load in deltas]
    rows = [rows_of(load, step, dtype) for step, (_, load) in enumerate(deltas)]
    return Call("run_slots", (capacity, placement, steps, rows), note)


@st.composite
def fitting(draw: st.DrawFn) -> tuple[int, list[tuple[list[int], list[int]]]]:
    """(capacity, deltas): each delta fits the slots that those before it leave."""
    n = draw(st.integers(1, 12))
    capacity = draw(st.integers(0, n))
    there: set[int] = set()
    deltas = []
    for _ in range(draw(st.integers(1, 8))):
        evict = draw(_some(sorted(there)))
        outside = draw(st.permutations(sorted(set(range(n)) - there)))
        room = min(capacity - len(there) + len(evict), len(outside))
        load = sorted(outside[: draw(st.integers(0, room))])
        deltas.append((evict, load))
        there = there - set(evict) | set(load)
    return capacity, deltas


def _some(ids: list[int]) -> st.SearchStrategy[list[int]]:
    """Any of the ids, none and all included."""
    chosen = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))
    return chosen.map(lambda mask: [i for i, included in zip(ids, mask, strict=True) if included])


def runs(*placements: str) -> Callable[[Facts], st.SearchStrategy[Call]]:
    """run_slots under one of these placements."""

    @st.composite
    def cases(draw: st.DrawFn, facts: Facts) -> Call:
        capacity, deltas = draw(fitting())
        dtype = draw(st.sampled_from(dtypes_of(facts)))
        return call_of(capacity, draw(st.sampled_from(placements)), dtype, deltas)

    return lambda facts: cases(facts)


BY_HAND: tuple[tuple[int, Deltas], ...] = (
    (3, [([], [0, 1, 2]), ([2], [])]),  # the hole is the last row
    (4, [([], [0, 1, 2, 3]), ([0, 3], [])]),  # the last row is itself deleted
    (4, [([], [0, 1, 2, 3]), ([0, 1], [])]),  # two holes, two moves
    (4, [([], [0, 1, 2, 3]), ([0, 1, 2, 3], [4, 5])]),  # everything goes
    (10, [([], [1, 5, 10, 15]), ([10], [7, 9])]),  # Fig. 6
    (4, [([], [0, 1, 2, 3]), ([0, 1, 3], [4])]),  # one hole is filled by a new row, one by the last
    (2, [([], []), ([], [0, 1]), ([], []), ([0, 1], []), ([], [0, 1])]),  # nothing, twice; then again
)


def examples(*placements: str) -> Callable[[Facts], list[Call]]:
    """The cases that caught real engines."""

    def of(facts: Facts) -> list[Call]:
        dtype = dtypes_of(facts)[0]
        return [call_of(capacity, p, dtype, deltas) for capacity, deltas in BY_HAND for p in placements]

    return of


class SlotsStep(NamedTuple):
    """One step of an answer of run_slots, and what the answer itself shows to have been there before."""

    where: str
    placement: str
    before: list[int]
    load: list[int]
    evict: list[int]
    ids: Array
    rows: Array
    moved: int
    expected: dict[int, Array]  # id → the row that it was given


def steps_of(call: Call, answer: Any) -> Iterator[SlotsStep]:
    """Every step of an answer of run_slots."""
    _, placement, deltas, rows = call.arguments
    before: list[int] = []
    expected: dict[int, Array] = {}
    for t, ((load, evict, _), new, (ids, after, moved)) in enumerate(zip(deltas, rows, answer, strict=True)):
        for neuron in evict.tolist():
            expected.pop(neuron)
        expected |= dict(zip(load.tolist(), new, strict=True))
        yield SlotsStep(
            f"step {t}", placement, before, load.tolist(), evict.tolist(), ids, after, moved, expected
        )
        before = ids.tolist()


def judge_ids(subject: Subject, call: Call) -> None:
    """The used slots hold each resident id once."""
    for step in steps_of(call, ask(subject, call)):
        expect_ids(f"{step.where}: ids in slots, sorted", np.sort(step.ids), step.expected)


def judge_rows(subject: Subject, call: Call) -> None:
    """Every used slot holds the row of its id."""
    for step in steps_of(call, ask(subject, call)):
        for neuron, row in zip(step.ids.tolist(), step.rows, strict=True):
            if neuron not in step.expected:
                raise Breach("fail", f"{step.where}: a slot names neuron {neuron}, which is not resident")
            expect_bits(f"{step.where}: the row of neuron {neuron}", row, step.expected[neuron])
        expect_ids(f"{step.where}: ids in slots, sorted", np.sort(step.ids), step.expected)


def judge_moves(subject: Subject, call: Call) -> None:
    """Rows moved: as many as there are holes to fill, by the slots that the answer itself showed."""
    for step in steps_of(call, ask(subject, call)):
        due = moves_due(step.placement, step.before, step.evict, len(step.load))
        expect_equal(f"{step.where}: rows moved by {step.placement}", step.moved, due)


@st.composite
def bad_deltas(draw: st.DrawFn, facts: Facts) -> Call:
    """A delta at the end that does not fit what is there."""
    capacity, deltas = draw(fitting())
    there: set[int] = set()
    for evict, load in deltas:
        there = there - set(evict) | set(load)
    kinds: dict[str, tuple[list[int], list[int]]] = {
        "an evicted neuron that is in no slot": ([99], []),
        "more rows than there are": ([], list(range(100, 101 + capacity - len(there)))),
    }
    if there:
        kinds["a loaded neuron that is in a slot already"] = ([], [min(there)])
        kinds["a neuron that is loaded and evicted"] = ([min(there)], [min(there)])
    if len(there) > 1:
        kinds["evicted ids that descend"] = (sorted(there)[::-1], [])
    if capacity - len(there) > 1:
        kinds["loaded ids that descend"] = ([], [101, 100])
    note = draw(st.sampled_from(list(kinds)))
    dtype, placement = draw(st.sampled_from(dtypes_of(facts))), draw(st.sampled_from(PLACEMENTS))
    return call_of(capacity, placement, dtype, [*deltas, kinds[note]], note)


def bad_delta_examples(facts: Facts) -> list[Call]:
    """Each kind of delta that does not fit, under each placement."""
    bad: dict[str, tuple[list[int], list[int]]] = {
        "an evicted neuron that is in no slot": ([9], []),
        "more rows than there are": ([], [7, 8, 9]),
        "a loaded neuron that is in a slot already": ([], [0]),
        "a neuron that is loaded and evicted": ([0], [0]),
        "evicted ids that descend": ([1, 0], []),
        "loaded ids that descend": ([], [9, 8]),
    }
    dtype = dtypes_of(facts)[0]
    return [
        call_of(4, p, dtype, [([], [0, 1]), delta], note) for note, delta in bad.items() for p in PLACEMENTS
    ]


@st.composite
def bad_rows(draw: st.DrawFn, facts: Facts) -> Call:
    """New rows of another number, shape or dtype than the matrix has."""
    dtype, placement = draw(st.sampled_from(dtypes_of(facts))), draw(st.sampled_from(PLACEMENTS))
    good = call_of(4, placement, dtype, [([], [0, 1]), ([0], [2, 3])])
    capacity, _, deltas, [first, rows] = good.arguments
    other = stored(np.zeros(rows.shape, np.float32), "F16" if dtype == "F32" else "F32")
    bad = {
        "a row too few": rows[:1],
        "a row too many": np.concatenate([rows, rows[:1]]),
        "rows of another width": rows[:, :, :2].copy(),
        "rows with a field less": rows[:, :1].copy(),
        "rows of another dtype": other,
    }
    note = draw(st.sampled_from(list(bad)))
    return Call("run_slots", (capacity, placement, deltas, [first, bad[note]]), note)


CHECKS = (
    Check("SLT-2", OPERATIONS, runs(*PLACEMENTS), judge_ids, examples(*PLACEMENTS)),
    Check("SLT-3", OPERATIONS, bad_deltas, must_refuse, bad_delta_examples),
    Check("SLT-4", OPERATIONS, runs("swap_with_last"), judge_moves, examples("swap_with_last")),
    Check("SLT-6", OPERATIONS, runs("fill_holes"), judge_moves, examples("fill_holes")),
    Check("SLT-8", OPERATIONS, runs(*PLACEMENTS), judge_rows, examples(*PLACEMENTS)),
    Check("SLT-9", OPERATIONS, bad_rows, must_refuse),
)
