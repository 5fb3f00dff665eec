"""Rows moved by a whole run: the vectorised placements against `flashref.slots`, step by step."""

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from flashref.conformance.strategies import active_sets
from flashref.simulate.placement import Changes, moved_by_fill, moved_by_swap
from flashref.slots import empty_slots, fill_holes, swap_with_last
from flashref.types import IdsError
from flashref.window import empty_window, window_update


@st.composite
def runs(draw):
    """units, k, capacities and predicted[token][layer] of a window's run."""
    units = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    capacities = [draw(st.integers(0, n)) for n in units]
    tokens = draw(st.integers(1, 10))
    sets = [[draw(active_sets(n)) for n in units] for _ in range(tokens)]
    return units, draw(st.integers(1, 4)), capacities, sets


def ids(*values):
    return np.array(values, np.int64)


def deltas_of(units, k, capacities, sets):
    windows = [empty_window(n, k, capacity) for n, capacity in zip(units, capacities, strict=True)]
    for layers in sets:
        deltas = []
        for layer, active in enumerate(layers):
            windows[layer], delta = window_update(windows[layer], active)
            deltas.append(delta)
        yield deltas


def changes_of(units, deltas):
    def rows(field):
        sets = [getattr(delta, field) for layers in deltas for delta in layers]
        starts = np.cumsum([0, *map(len, sets)], dtype=np.int64)
        return np.concatenate(sets).astype(np.int32), starts

    return Changes(tuple(units), *rows("load"), *rows("evict"))


@pytest.mark.parametrize(("place", "moved"), [(swap_with_last, moved_by_swap), (fill_holes, moved_by_fill)])
@given(run=runs())
@example(
    run=([4], 1, [4], [[ids(0, 1, 2, 3)], [ids(3)], [ids(0, 3)]])
)  # a hole at the end, and one that moves
@example(run=([3, 5], 2, [3, 0], [[ids(0), ids(1, 4)], [ids(2), ids()]]))  # a layer without room
def test_rows_moved_are_those_of_the_slots_step_by_step(place, moved, run):
    units, k, capacities, sets = run
    slots = [empty_slots(n) for n in units]
    deltas = list(deltas_of(units, k, capacities, sets))
    expected = []
    for layers in deltas:
        steps = [place(before, delta) for before, delta in zip(slots, layers, strict=True)]
        slots = [after for after, _ in steps]
        expected.append([len(moves.source) for _, moves in steps])
    event("rows moved" if np.any(expected) else "none")
    counts = moved(changes_of(units, deltas))
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


def changes(load, evict):
    """One layer of four neurons."""
    starts = [np.cumsum([0, *map(len, sets)], dtype=np.int64) for sets in (load, evict)]
    flat = [np.array([i for part in sets for i in part], np.int32) for sets in (load, evict)]
    return Changes((4,), flat[0], starts[0], flat[1], starts[1])


@pytest.mark.parametrize("moved", [moved_by_swap, moved_by_fill])
@pytest.mark.parametrize(
    "foreign",
    [
        changes(load=[[0]], evict=[[1]]),  # never loaded
        changes(load=[[0], [], []], evict=[[], [0], [0]]),  # twice
        changes(load=[[0, 1], [0, 1, 2]], evict=[[], []]),  # more than the layer has
        changes(load=[[0, 1], [2, 3]], evict=[[], [0, 3]]),  # of its own token
    ],
)
def test_changes_that_no_memory_can_have_are_refused(moved, foreign):
    with pytest.raises(IdsError, match="give the changes of one run"):
        moved(foreign)
