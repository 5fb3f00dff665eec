"""The window of a whole trace at once is window_update and read_batches, token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref.conformance.strategies import id_sets
from flashref.decode import read_batches
from flashref.simulate.placement import moved_by_fill, moved_by_swap
from flashref.simulate.trace import trace_of
from flashref.simulate.window import unwindowed, uses_of, windowed
from flashref.slots import empty_slots, fill_holes, swap_with_last
from flashref.types import DomainError, same
from flashref.window import empty_window, resident_neurons, window_update

PLACEMENTS = [(swap_with_last, moved_by_swap), (fill_holes, moved_by_fill)]


@st.composite
def runs(draw):
    """units, predicted[token][layer], k, capacities, bypass_rows."""
    units = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    tokens = draw(st.integers(1, 12))
    predicted = [[draw(id_sets(n)) for n in units] for _ in range(tokens)]
    k = draw(st.integers(1, min(tokens, 6)))
    capacities = [draw(st.integers(0, n + 1)) for n in units]
    return units, predicted, k, capacities, draw(st.integers(1, 4))


def batches_of(reads):
    return [
        (int(token), int(layer), reads.ids[start:stop].tolist())
        for token, layer, start, stop in zip(
            reads.token, reads.layer, reads.starts[:-1], reads.starts[1:], strict=True
        )
    ]


@pytest.mark.parametrize(("place", "count_moves"), PLACEMENTS, ids=["swap_with_last", "fill_holes"])
@given(runs())
def test_every_batch_set_and_move_is_what_window_update_gives(place, count_moves, run):
    units, predicted, k, capacities, bypass_rows = run
    windows = [empty_window(n, k, rows) for n, rows in zip(units, capacities, strict=True)]
    slots = [empty_slots(rows) for rows in capacities]
    batches, resident, loaded, moved = [], [], [], []
    for token, layers in enumerate(predicted):
        for layer, ids in enumerate(layers):
            windows[layer], delta = window_update(windows[layer], ids)
            slots[layer], moves = place(slots[layer], delta)
            batches += [(token, layer, batch.tolist()) for batch in read_batches(delta, bypass_rows)]
            resident.append(len(resident_neurons(windows[layer])))
            loaded.append(len(delta.load))
            moved.append(len(moves.source))

    trace = trace_of(predicted, units)
    reads = windowed(uses_of(trace, 6), k, capacities, bypass_rows, count_moves)
    assert batches_of(reads) == batches
    assert reads.resident.reshape(-1).tolist() == resident
    assert reads.loaded.reshape(-1).tolist() == loaded
    assert reads.moved.reshape(-1).tolist() == moved


@given(runs())
def test_unions_are_those_of_sets(run):
    units, predicted, _, _, _ = run
    uses = uses_of(trace_of(predicted, units), len(predicted))
    assert uses.longest == len(predicted)
    for token in range(len(predicted)):
        for layer in range(len(units)):
            union: set[int] = set()
            for back in range(token + 1):
                union |= set(map(int, predicted[token - back][layer]))
                assert uses.unions[token, layer, back] == len(union)


def test_uses_know_the_token_before_and_the_one_after():
    trace = trace_of([[[0, 2], [1]], [[2], []], [[0, 2], []]], [4, 2])
    uses = uses_of(trace, 2)
    assert [max(token, -1) for token in uses.previous.tolist()] == [-1, -1, -1, 0, 0, 1]
    assert uses.next.tolist() == [2, 1, 3, 2, 3, 3]


def test_without_a_window_every_predicted_neuron_is_read_and_none_kept():
    trace = trace_of([[[0], [1, 2]], [[0, 1], []]], [2, 3])
    reads = unwindowed(trace)
    assert batches_of(reads) == [(0, 0, [0]), (0, 1, [1, 2]), (1, 0, [0, 1]), (1, 1, [])]
    assert not (reads.resident.any() or reads.loaded.any() or reads.moved.any())


def test_uses_are_linked_once_for_every_window():
    trace = trace_of([[[0]]] * 4, [1])
    uses = uses_of(trace, 3)
    before = [array.copy() for array in (uses.previous, uses.next, uses.unions)]
    for k in (1, 2, 3):
        windowed(uses, k, [0], 1, moved_by_swap)
    assert all(map(same, before, (uses.previous, uses.next, uses.unions)))


@pytest.mark.parametrize(
    ("k", "capacities", "bypass_rows"),
    [(0, [1], 1), (4, [1], 1), (1, [1], 0), (1, [-1], 1), (1, [1, 1], 1), (1, [], 1)],
)
def test_what_cannot_be_is_refused(k, capacities, bypass_rows):
    uses = uses_of(trace_of([[[0]]] * 5, [1]), 3)
    with pytest.raises(DomainError):
        windowed(uses, k, capacities, bypass_rows, moved_by_swap)


def test_a_trace_is_checked():
    for predicted, units, first_counted in [
        ([], [1], 0),
        ([[[0]]], [1], 1),
        ([[[0]]], [0], 0),
        ([[]], [], 0),
    ]:
        with pytest.raises(DomainError):
            trace_of([[np.array(ids) for ids in layers] for layers in predicted], units, first_counted)
