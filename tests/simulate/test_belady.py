"""Belady's optimum: as few reads as any choice can have, and no other policy has fewer."""

from itertools import combinations

from cache_models import EQUAL_SIZES, batches_of, counted, pools
from hypothesis import example, given
from hypothesis import strategies as st

from flashref.conformance.strategies import active_sets
from flashref.simulate.caches.belady import belady
from flashref.simulate.caches.classic import lfu, lru, pinned, pinned_oracle
from flashref.simulate.caches.s3_fifo import s3_fifo
from flashref.simulate.trace import trace_of
from flashref.window import empty_window, window_update


@st.composite
def tiny_pools(draw):
    """At most five units of one size, so that everything a memory can hold is soon listed."""
    units = draw(st.sampled_from([[5], [2, 3], [1, 1, 2]]))
    sets = [[draw(active_sets(n)) for n in units] for _ in range(draw(st.integers(1, 8)))]
    size = draw(st.integers(1, 3))
    trace = trace_of(sets, units, draw(st.integers(0, len(sets) - 1)))
    return trace, (size,) * len(units), draw(st.integers(0, size * (sum(units) + 1)))


def fewest_reads(trace, places):
    """By trying everything: after each batch memory holds any `places` of what was there or was asked for."""
    fewest = {frozenset(): 0}
    for token, _, batch in batches_of(trace):
        after = {}
        for kept, reads in fewest.items():
            misses = len(set(batch) - kept) if token >= trace.first_counted else 0
            choice = sorted(kept | set(batch))
            for subset in combinations(choice, min(places, len(choice))):
                known = after.get(frozenset(subset), reads + misses)
                after[frozenset(subset)] = min(known, reads + misses)
        fewest = after
    return min(fewest.values())


@given(tiny_pools())
@example((trace_of([[[0]], [[1]], [[1]], [[0]]], [2], 3), (1,), 1))  # sparing token 2 a read is worth nothing
def test_belady_reads_as_few_as_any_choice_can(pool):
    trace, sizes, capacity = pool
    assert counted(belady(trace, sizes, capacity), trace) == fewest_reads(trace, capacity // sizes[0])


@given(pools(sizes=EQUAL_SIZES))
@example((trace_of([[[0], [0]], [[0], [0]]], [1, 1]), (1, 1), 1))
def test_what_belady_keeps_is_what_it_does_not_read_again(pool):
    trace, sizes, capacity = pool
    reads = belady(trace, sizes, capacity)
    asked = list(batches_of(trace))
    read = [
        {(layer, int(i)) for i in reads.ids[reads.starts[number] : reads.starts[number + 1]]}
        for number, (_, layer, _) in enumerate(asked)
    ]
    kept = set()
    for number, (token, layer, batch) in enumerate(asked):
        assert set(batch) - read[number] == set(batch) & kept
        kept -= set(batch)
        for unit in batch:
            uses = [later for later in range(number + 1, len(asked)) if unit in asked[later][2]]
            if uses and unit not in read[uses[0]]:
                kept.add(unit)
        assert reads.loaded[token, layer] == len(kept & read[number])
        assert len(kept) * sizes[0] <= capacity
        if layer == trace.layers - 1:
            resident = [sum(of == which for of, _ in kept) for which in range(trace.layers)]
            assert reads.resident[token].tolist() == resident
    assert not reads.moved.any() and reads.moved.shape == (trace.tokens, trace.layers)


@given(pools(sizes=EQUAL_SIZES), st.integers(1, 5), st.data())
def test_nothing_reads_fewer_than_belady(pool, k, data):
    trace, sizes, capacity = pool
    optimum = counted(belady(trace, sizes, capacity), trace)
    policies = [lru, lfu(1), lfu(3), s3_fifo(), s3_fifo(50), pinned_oracle]
    for policy in policies + [pinned] * (trace.first_counted > 0):
        assert optimum <= counted(policy(trace, sizes, capacity), trace)

    # The paper's window, with the places shared out between the layers.
    left, windows = capacity // sizes[0], []
    for n in trace.units:
        rows = data.draw(st.integers(0, min(left, n)))
        left -= rows
        windows.append(empty_window(n, k, rows))
    read = 0
    for token in range(trace.tokens):
        for layer in range(trace.layers):
            windows[layer], delta = window_update(windows[layer], trace.active(token, layer))
            if token >= trace.first_counted:
                read += len(delta.load) + len(delta.bypass)
    assert optimum <= read
