"""Orders on flash: permutations that bring together what is used."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref.conformance.strategies import id_sets
from flashref.simulate.orders import ORDERS, by_coactivation, by_use, natural
from flashref.simulate.trace import trace_of, trace_tokens
from flashref.types import DomainError


@st.composite
def traces(draw):
    units = draw(st.lists(st.integers(1, 12), min_size=1, max_size=2))
    tokens = draw(st.integers(1, 8))
    predicted = [[draw(id_sets(n)) for n in units] for _ in range(tokens)]
    return trace_of(predicted, units, draw(st.integers(0, tokens - 1)))


@pytest.mark.parametrize("name", ORDERS)
@given(traces())
def test_an_order_has_every_neuron_once(name, trace):
    orders = ORDERS[name](trace)
    assert len(orders) == trace.layers
    for order, n in zip(orders, trace.units, strict=True):
        assert order is None or sorted(order.tolist()) == list(range(n))


@given(traces())
def test_by_use_descends_in_the_uses_of_the_tokens_that_are_not_counted(trace):
    for layer, order in enumerate(by_use(trace)):
        seen = range(trace.first_counted or trace.tokens)
        uses = Counter(unit for token in seen for unit in trace.active(token, layer).tolist())
        assert order.tolist() == sorted(range(trace.units[layer]), key=lambda unit: (-uses[unit], unit))


def test_pairs_that_are_active_together_become_neighbours():
    together = [[0, 3, 5], [0, 3, 5], [1, 4], [1, 4], [1, 4], [2]]
    (order,) = by_coactivation(trace_of([[ids] for ids in together], [6]))
    # 1 and 4 are together three times, 0, 3 and 5 twice: chains 0–3–5 (or another walk of the three), 1–4, 2.
    places = {unit: place for place, unit in enumerate(order.tolist())}
    assert abs(places[1] - places[4]) == 1
    assert max(places[u] for u in (0, 3, 5)) - min(places[u] for u in (0, 3, 5)) == 2


def test_a_ring_is_cut_and_no_neuron_gets_three_neighbours():
    star = trace_of([[[0, 1]], [[0, 2]], [[0, 3]], [[0, 1]], [[0, 2]], [[1, 2]]], [4])
    (order,) = by_coactivation(star)
    # 0–1 and 0–2 twice, then 0–3 and 1–2 once: 0 has both sides taken, and 1–2 would close a ring.
    assert order.tolist() == [1, 0, 2, 3]


def test_what_is_counted_teaches_nothing():
    learnt = trace_of([[[0, 1]], [[2, 3]], [[1, 2]]], [4], 2)
    assert by_coactivation(learnt)[0].tolist() == [0, 1, 2, 3]
    assert by_use(trace_of([[[3]], [[0]], [[0]]], [4], 1))[0].tolist() == [3, 0, 1, 2]
    assert natural(learnt) == [None]


def test_tokens_of_a_trace():
    trace = trace_of([[[0], [1]], [[1], []], [[0, 1], [0]]], [2, 2], 1)
    part = trace_tokens(trace, 1, 3)
    assert (part.tokens, part.first_counted) == (2, 0)
    assert [part.active(*divmod(at, 2)).tolist() for at in range(4)] == [[1], [], [0, 1], [0]]
    for start, stop in ((0, 0), (-1, 2), (2, 4)):
        with pytest.raises(DomainError):
            trace_tokens(trace, start, stop)
