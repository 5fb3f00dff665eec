"""Traces and what they say, against plain Python sets."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref.conformance.strategies import id_sets
from flashref.simulate.statistics import (
    closest_friends,
    coactivation,
    coactivation_curve,
    gap_counts,
    kept_counts,
    use_statistics,
)
from flashref.simulate.trace import trace_of
from flashref.types import DomainError, IdsError


@st.composite
def sets_of_tokens(draw, fewest_tokens=1):
    """(units of each layer, [token][layer] → set)."""
    units = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    tokens = draw(st.integers(fewest_tokens, 9))
    return units, [[set(draw(id_sets(n))) for n in units] for _ in range(tokens)]


def as_trace(units, sets, first_counted=0):
    arrays = [[np.array(sorted(ids), np.int64) for ids in layers] for layers in sets]
    return trace_of(arrays, units, first_counted)


def union(sets, layer, first, last):
    """Of the tokens first … last, those before the first of all left out."""
    return set().union(*(layers[layer] for layers in sets[max(first, 0) : last + 1]))


@given(sets_of_tokens(), st.data())
def test_a_trace_holds_the_sets_it_was_made_of(case, data):
    units, sets = case
    first_counted = data.draw(st.integers(0, len(sets) - 1))
    trace = as_trace(units, sets, first_counted)
    assert (trace.units, trace.layers, trace.tokens) == (tuple(units), len(units), len(sets))
    assert trace.first_counted == first_counted
    assert trace.ids.dtype == np.int32 and trace.starts.dtype == np.int64
    assert trace.starts[0] == 0 and trace.starts[-1] == len(trace.ids)
    for token, layers in enumerate(sets):
        for layer, ids in enumerate(layers):
            active = trace.active(token, layer)
            assert active.dtype == np.int64 and active.tolist() == sorted(ids)


@pytest.mark.parametrize(
    ("units", "sets", "first_counted", "error"),
    [
        ([], [[]], 0, DomainError),
        ([0], [[[]]], 0, DomainError),
        ([3], [], 0, DomainError),
        ([3], [[[0]]], 1, DomainError),
        ([3], [[[0]]], -1, DomainError),
        ([3], [[[3]]], 0, IdsError),
        ([3], [[[1, 0]]], 0, IdsError),
        ([3], [[[0], [0]]], 0, ValueError),
    ],
)
def test_what_is_no_trace_is_refused(units, sets, first_counted, error):
    with pytest.raises(error):
        trace_of([[np.array(ids, np.int64) for ids in layers] for layers in sets], units, first_counted)


@given(sets_of_tokens(), st.integers(1, 10))
def test_gaps_and_windows_are_those_of_the_sets(case, windows):
    units, sets = case
    gaps = gap_counts(as_trace(units, sets), windows)
    kept = kept_counts(gaps)
    for token in range(len(sets)):
        for layer in range(len(units)):
            now = sets[token][layer]
            for g in range(1, windows + 1):
                recent = union(sets, layer, token - g + 1, token - 1)
                last_used_then = now & union(sets, layer, token - g, token - g) if g <= token else set()
                assert gaps[token, layer, g - 1] == len(last_used_then - recent)
                assert kept[token, layer, g - 1] == len(union(sets, layer, token - g + 1, token))
            long_ago = now - union(sets, layer, token - windows, token - 1)
            assert gaps[token, layer, windows] == len(long_ago)


def mean(values):
    values = list(values)
    return float(Fraction(sum(values), len(values)))


@given(sets_of_tokens(fewest_tokens=2), st.data())
def test_statistics_are_means_over_the_sets(case, data):
    units, sets = case
    tokens = len(sets)
    windows = data.draw(st.integers(1, tokens - 1))
    found = use_statistics(as_trace(units, sets), windows)
    for layer, n in enumerate(units):
        assert found.density[layer] == pytest.approx(mean(len(layers[layer]) for layers in sets) / n)
        for k in range(1, windows + 1):
            unions = [len(union(sets, layer, t - k + 1, t)) for t in range(tokens)]
            new = [len(sets[t][layer] - union(sets, layer, t - k, t - 1)) for t in range(k, tokens)]
            assert found.s_agg[layer, k - 1] == pytest.approx(mean(unions[k - 1 :]) / n)
            assert found.new[layer, k - 1] == pytest.approx(mean(new) / n)
            assert found.mean_resident[layer, k - 1] == pytest.approx(mean(unions))
            assert found.largest_resident[layer, k - 1] == max(unions)
    assert found.largest_resident.dtype == np.int64
    shape = (len(units), windows)
    assert {part.shape for part in found[1:]} == {shape} and found.density.shape == shape[:1]


def test_a_case_worked_by_hand():
    # One layer of four: {0, 1}, {1}, {2}, {0}.
    found = use_statistics(as_trace([4], [[{0, 1}], [{1}], [{2}], [{0}]]), 3)
    assert found.density.tolist() == [5 / 16]
    assert found.s_agg.tolist() == [[5 / 16, (2 + 2 + 2) / 12, (3 + 3) / 8]]
    assert found.new.tolist() == [[2 / 12, 2 / 8, 0.0]]  # 2 after {1}, 0 after {2}; of the last two; 0 is old
    assert found.mean_resident.tolist() == [[5 / 4, (2 + 2 + 2 + 2) / 4, (2 + 2 + 3 + 3) / 4]]
    assert found.largest_resident.tolist() == [[2, 2, 3]]


@pytest.mark.parametrize("windows", [0, 3, 4])
def test_windows_that_the_trace_is_too_short_for_are_refused(windows):
    with pytest.raises(DomainError, match=r"trace of 3 tokens; give 1 to 2"):
        use_statistics(as_trace([2], [[{0}], [{1}], [{0}]]), windows)


@given(sets_of_tokens(), st.data())
def test_coactivation_counts_the_tokens_in_which_both_are_active(case, data):
    units, sets = case
    layer = data.draw(st.integers(0, len(units) - 1))
    n = units[layer]
    ids = data.draw(id_sets(n))
    trace = as_trace(units, sets)
    together = [[sum({i, j} <= layers[layer] for layers in sets) for j in range(n)] for i in range(n)]
    found = coactivation(trace, layer, np.array(ids, np.int64))
    assert found.dtype == np.int64 and found.tolist() == [together[i] for i in ids]

    unit = data.draw(st.integers(0, n - 1))
    uses = together[unit][unit]
    if uses:
        curve = coactivation_curve(trace, layer, unit)
        assert curve.tolist() == [count / uses for count in sorted(together[unit], reverse=True)]
    else:
        with pytest.raises(DomainError, match="never active"):
            coactivation_curve(trace, layer, unit)

    if n == 1:
        return
    count = data.draw(st.integers(1, n - 1))
    friends = closest_friends(trace, layer, count)
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: (-together[i][j], j))[:count]
        assert friends.ids[i].tolist() == others
        shares = [together[i][j] / max(together[i][i], 1) for j in others]
        assert friends.share[i].tolist() == pytest.approx(shares, rel=1e-6)


def test_friends_of_a_layer_larger_than_a_block_of_rows():
    # Units i and i + 600 of 1200 are active together, in token i % 7.
    n = 1200
    sets = [[{i for i in range(n) if i % 600 % 7 == token}] for token in range(7)]
    friends = closest_friends(as_trace([n], sets), 0)
    peers = [min(j for j in range(n) if j != i and j % 600 % 7 == i % 600 % 7) for i in range(n)]
    assert friends.ids[:, 0].tolist() == peers and (friends.share == 1).all()


@pytest.mark.parametrize("count", [0, 3])
def test_more_friends_than_others_are_refused(count):
    with pytest.raises(DomainError, match="each has 1 to 2 friends, not"):
        closest_friends(as_trace([3], [[{0}]]), 0, count)
