"""Chapter 30: the window against plain Python sets over the full history."""

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from flashref import empty_window, resident_neurons, same, window_update
from flashref.definitions import window_model
from flashref.types import NEVER, DomainError, IdsError


@st.composite
def histories(draw):
    n = draw(st.integers(1, 12))
    k = draw(st.integers(1, 6))
    capacity = draw(st.integers(0, n))
    tokens = draw(st.lists(st.sets(st.integers(0, n - 1)), min_size=1, max_size=15))
    return n, k, capacity, tokens


def run(n, k, capacity, tokens):
    window = empty_window(n, k, capacity)
    for token in tokens:
        window, delta = window_update(window, sorted(token))
        yield window, delta


@pytest.mark.req("WIN-2", "WIN-3", "WIN-4", "WIN-7")
@given(histories())
@example((1, 1, 0, [{0}, set(), {0}]))  # no room at all
@example((4, 3, 2, [{0}, {1}, {2}, set(), {0}]))  # room returns, token 0 must not
@example((4, 2, 4, [{0, 1, 2, 3}, {3}, {0}]))  # everything, then one
@example((5, 3, 2, [{3, 4}, {0, 3, 4}, {0, 1, 2}]))  # bypass beside rows that are there
def test_sets_equal_the_definition(history):
    n, k, capacity, tokens = history
    expected = window_model(k, capacity, tokens)
    for (window, delta), (after, load, evict, bypass, _) in zip(run(*history), expected, strict=True):
        event("bypass" if bypass else "room")
        assert resident_neurons(window).tolist() == sorted(after)
        assert delta.load.tolist() == sorted(load)
        assert delta.evict.tolist() == sorted(evict)
        assert delta.bypass.tolist() == sorted(bypass)


@pytest.mark.req("WIN-5", "WIN-6")
@given(histories())
def test_a_token_reads_what_is_missing_and_no_more(history):
    n, _, capacity, tokens = history
    before: set[int] = set()
    for token, (window, delta) in zip(tokens, run(*history), strict=True):
        load, evict, bypass = (set(ids.tolist()) for ids in delta)
        assert load | bypass == token - before
        assert not (load & evict or load & bypass or evict & bypass)
        after = set(resident_neurons(window).tolist())
        assert after == (before - evict) | load
        assert token <= after | bypass
        assert len(after) <= capacity
        before = after


@pytest.mark.req("WIN-6")
def test_a_token_that_left_does_not_come_back():
    # Capacity 2: tokens 0 and 1 fill it, token 2 pushes token 0 out; two empty tokens make room again.
    resident = [resident_neurons(window).tolist() for window, _ in run(4, 5, 2, [{0}, {1}, {2}, set(), {3}])]
    assert resident == [[0], [0, 1], [1, 2], [1, 2], [2, 3]]


@pytest.mark.req("WIN-3")
def test_a_million_tokens_later_a_token_that_does_not_fit_is_still_bypassed():
    window, delta = window_update(empty_window(3, 1, 1)._replace(token=10**6), [0, 2])
    assert [ids.tolist() for ids in delta] == [[0], [], [2]]
    assert window.token == 10**6 + 1


@pytest.mark.req("WIN-8")
@given(st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=12))
def test_the_two_ends_of_the_window(tokens):
    before: set[int] = set()
    for token, (_, delta) in zip(tokens, run(10, 1, 10, tokens), strict=True):
        assert set(delta.load.tolist()) == token - before
        before = token
    for _, delta in run(10, len(tokens), 10, tokens):
        assert delta.evict.size == 0


@pytest.mark.req("WIN-9")
@given(histories())
def test_inputs_do_not_change_and_results_repeat(history):
    window = empty_window(*history[:3])
    window.last.setflags(write=False)
    for token in history[3]:
        active = np.array(sorted(token), np.int64)
        active.setflags(write=False)
        stamps = window.last.copy()
        first, second = window_update(window, active), window_update(window, active)
        assert same(first, second)
        assert same(window.last, stamps)
        window = first[0]


@pytest.mark.req("WIN-1")
def test_an_empty_window_holds_nothing():
    window = empty_window(3, 2, 1)
    assert window.token == 0
    assert window.last.dtype == np.int64
    assert window.last.tolist() == [NEVER] * 3
    assert resident_neurons(window).size == 0


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_impossible_windows_are_refused(bad):
    with pytest.raises(DomainError, match="a window needs"):
        empty_window(*bad)


@pytest.mark.parametrize("bad", [[5], [-1], [1, 1], [2, 1], [0.0], [[0]]])
def test_bad_ids_are_refused(bad):
    with pytest.raises(IdsError):
        window_update(empty_window(5, 1, 5), bad)
