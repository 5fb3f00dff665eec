"""Chapter 70: placements against lists, step by step, and the matrix against a dict id → row."""

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from flashref import same
from flashref.conformance.strategies import read_only
from flashref.definitions import fill_holes_model, swap_with_last_model
from flashref.slots import Moves, Slots, apply_moves, empty_slots, fill_holes, swap_with_last
from flashref.types import NEVER, DomainError, IdsError, ShapeError
from flashref.window import Delta

PLACEMENTS = [swap_with_last, fill_holes]


def ids(values=()):
    return np.array(sorted(values), np.int64)


MODELS = {swap_with_last: swap_with_last_model, fill_holes: fill_holes_model}


@st.composite
def steps(draw, tokens=8):
    """(capacity, [(evict, load), …]): every delta fits the slots that the ones before leave."""
    n = draw(st.integers(1, 12))
    capacity = draw(st.integers(0, n))
    there: set[int] = set()
    deltas = []
    for _ in range(draw(st.integers(1, tokens))):
        evict = draw(st.sets(st.sampled_from(sorted(there)))) if there else set()
        stay = there - evict
        outside = sorted(set(range(n)) - there)
        room = capacity - len(stay)
        load = set(draw(st.permutations(outside))[: draw(st.integers(0, room))])
        deltas.append((evict, load))
        there = stay | load
    return capacity, deltas


@pytest.mark.req("SLT-2", "SLT-4", "SLT-5", "SLT-6", "SLT-7")
@pytest.mark.parametrize("place", PLACEMENTS)
@given(case=steps())
@example(case=(3, [(set(), {0, 1, 2}), ({2}, set())]))  # the hole is the last row
@example(case=(4, [(set(), {0, 1, 2, 3}), ({0, 3}, set())]))  # the last row is itself deleted
@example(case=(4, [(set(), {0, 1, 2, 3}), ({0, 1, 2, 3}, {4, 5})]))
def test_a_placement_does_what_its_text_says(place, case):
    capacity, deltas = case
    slots, by_hand = empty_slots(capacity), []
    for evict, load in deltas:
        stale = slots.ids.copy()
        read_only(slots)
        slots, moves = place(slots, Delta(ids(load), ids(evict), ids()))
        by_hand, moved = MODELS[place](by_hand, evict, load)
        assert slots.ids[: slots.used].tolist() == by_hand
        assert slots.ids.dtype == np.int64
        assert len(moves.source) == len(moves.target) == moved <= len(evict)
        untouched = np.setdiff1d(np.arange(capacity), np.concatenate([moves.target, moves.put]))
        assert same(slots.ids[untouched], stale[untouched])
        # Holes ascend and are filled from the highest row down, new rows go up in ascending id.
        assert same(moves.target, np.unique(moves.target))
        assert same(moves.source, np.unique(moves.source)[::-1])
        assert same(moves.put, np.unique(moves.put))
        event(f"{min(moved, 2)} moved")


@pytest.mark.req("SLT-6")
@given(steps(tokens=1), st.data())
def test_filling_holes_never_moves_more(case, data):
    capacity, [(_, load)] = case
    slots, _ = swap_with_last(empty_slots(capacity), Delta(ids(load), ids(), ids()))
    evict = data.draw(st.sets(st.sampled_from(sorted(load)))) if load else set()
    new = {100 + i for i in range(data.draw(st.integers(0, capacity - len(load) + len(evict))))}
    delta = Delta(ids(new), ids(evict), ids())
    assert len(fill_holes(slots, delta)[1].source) <= len(swap_with_last(slots, delta)[1].source)


@pytest.mark.req("SLT-8")
@pytest.mark.parametrize("place", PLACEMENTS)
@given(case=steps())
def test_used_rows_are_always_those_of_their_neurons(place, case):
    capacity, deltas = case
    stored = np.arange(12 * 6, dtype=np.float16).reshape(12, 2, 3)
    slots, matrix = empty_slots(capacity), np.full((capacity, 2, 3), -1, np.float16)
    expected: dict[int, np.ndarray] = {}
    for evict, load in deltas:
        slots, moves = place(slots, Delta(ids(load), ids(evict), ids()))
        before = read_only(matrix).copy()
        after = apply_moves(matrix, read_only(moves), read_only(stored[sorted(load)]))
        assert same(matrix, before)
        matrix = after
        expected = {i: row for i, row in expected.items() if i not in evict}
        expected |= {i: stored[i] for i in load}
        assert sorted(slots.ids[: slots.used].tolist()) == sorted(expected)
        for j, neuron in enumerate(slots.ids[: slots.used].tolist()):
            assert same(matrix[j], expected[neuron])


@pytest.mark.req("SLT-1")
def test_empty_slots():
    assert same(empty_slots(2), Slots(np.int64([NEVER, NEVER]), 0))
    assert empty_slots(0).ids.size == 0
    with pytest.raises(DomainError, match="at least 0 rows"):
        empty_slots(-1)


@pytest.mark.req("SLT-3")
@pytest.mark.parametrize("place", PLACEMENTS)
def test_a_delta_of_another_state_is_refused(place):
    slots = Slots(np.int64([4, 2, 7]), 2)  # 7 is stale
    place(slots, Delta(ids([3]), ids([4]), ids()))
    with pytest.raises(IdsError, match="evict names"):
        place(slots, Delta(ids(), ids([7]), ids()))
    for evict in ([], [2]):
        with pytest.raises(IdsError, match="load names"):
            place(slots, Delta(ids([2]), ids(evict), ids()))
    with pytest.raises(DomainError, match="4 rows do not fit"):
        place(slots, Delta(ids([3, 5]), ids(), ids()))
    for load, evict in (([5, 3], []), ([], [4, 2])):
        with pytest.raises(IdsError, match="strictly ascending"):
            place(slots, Delta(np.int64(load), np.int64(evict), ids()))
    assert slots.ids.tolist() == [4, 2, 7]


@pytest.mark.req("SLT-9")
def test_rows_that_do_not_fit_are_refused():
    matrix = np.zeros((3, 2), np.float16)
    moves = Moves(ids(), ids(), ids([0, 1]))
    apply_moves(matrix, moves, np.ones((2, 2), np.dtype(np.float16, copy=True)))  # equal, not the same object
    for shape, dtype in (((1, 2), "f2"), ((2, 3), "f2"), ((2, 2), "f4"), ((2, 2), "u1")):
        wrong = np.ones(shape, dtype)
        with pytest.raises(ShapeError, match="new rows must be"):
            apply_moves(matrix, moves, wrong)
    assert not matrix.any()
