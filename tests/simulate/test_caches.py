"""Cache policies over one pool, against models that take one unit at a time."""

from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from cache_models import EQUAL_SIZES, LFU, LRU, S3FIFO, Pinned, batches_of, counted, pools
from hypothesis import event, given
from hypothesis import strategies as st

from flashref.simulate.caches import classic
from flashref.simulate.caches.belady import belady
from flashref.simulate.caches.classic import lfu, lru, pinned, pinned_oracle
from flashref.simulate.caches.s3_fifo import s3_fifo
from flashref.simulate.trace import trace_of
from flashref.types import DomainError


def check(policy, cache, pool):
    """The reads of a policy are those of its model, and within its memory."""
    trace, sizes, capacity = pool
    reads = policy(trace, sizes, capacity)
    assert reads.ids.dtype == np.int32
    assert not reads.moved.any() and reads.moved.shape == (trace.tokens, trace.layers)
    for number, (token, layer, batch) in enumerate(batches_of(trace)):
        misses, new = cache.serve(token, batch)
        event("bypass" if len(new) < len(misses) else "all kept")
        assert (reads.token[number], reads.layer[number]) == (token, layer)
        ids = reads.ids[reads.starts[number] : reads.starts[number + 1]]
        assert ids.tolist() == [i for _, i in misses]
        assert reads.loaded[token, layer] == len(new)
        if layer == trace.layers - 1:
            resident = [sum(of == which for of, _ in cache.kept) for which in range(trace.layers)]
            assert reads.resident[token].tolist() == resident
    assert len(reads.starts) == len(reads.token) + 1 == len(reads.layer) + 1
    assert np.all(reads.resident @ sizes <= capacity)


CHUNKS = st.sampled_from([1, 2, 5, classic.CHUNK])  # a search goes on in the next one


@given(pools(), CHUNKS)
def test_lru_is_its_model(pool, chunk):
    with patch.object(classic, "CHUNK", chunk):
        check(lru, LRU(*pool[1:]), pool)


@given(pools(), st.integers(1, 5), CHUNKS)
def test_lfu_is_its_model(pool, period, chunk):
    with patch.object(classic, "CHUNK", chunk):
        check(lfu(period), LFU(*pool[1:], period), pool)


@given(pools(), st.sampled_from([0, 10, 30, 60, 100]))
def test_s3_fifo_is_its_model(pool, small_percent):
    check(s3_fifo(small_percent), S3FIFO(*pool[1:], small_percent), pool)


@given(pools())
def test_pinned_units_are_the_most_used_of_the_uncounted_tokens(pool):
    trace, sizes, capacity = pool
    if trace.first_counted == 0:
        with pytest.raises(DomainError, match="no warm-up tokens; give it some"):
            pinned(trace, sizes, capacity)
    else:
        warm = [batch for token, _, batch in batches_of(trace) if token < trace.first_counted]
        check(pinned, Pinned(sizes, capacity, warm), pool)


@given(pools())
def test_the_oracle_pins_the_most_used_of_the_whole_trace(pool):
    trace, sizes, capacity = pool
    check(pinned_oracle, Pinned(sizes, capacity, [batch for _, _, batch in batches_of(trace)]), pool)


@given(pools(sizes=EQUAL_SIZES), st.integers(0, 6))
@pytest.mark.parametrize("policy", [lru, belady])
def test_a_larger_memory_reads_no_more(policy, pool, more):
    trace, sizes, capacity = pool
    assert counted(policy(trace, sizes, capacity + more), trace) <= counted(
        policy(trace, sizes, capacity), trace
    )


@given(pools())
def test_without_memory_everything_is_read_and_with_all_of_it_each_unit_once(pool):
    trace, sizes, _ = pool
    everything = sum(n * size for n, size in zip(trace.units, sizes, strict=True))
    used = {unit for _, _, batch in batches_of(trace) for unit in batch}
    policies = [lru, lfu(2), s3_fifo(), pinned_oracle] + [belady] * (len(set(sizes)) == 1)
    for policy in policies:
        nothing = policy(trace, sizes, 0)
        assert nothing.ids.tolist() == trace.ids.tolist()
        assert nothing.starts.tolist() == trace.starts.tolist()
        assert not nothing.loaded.any()
        whole = policy(trace._replace(first_counted=0), sizes, everything)
        assert len(whole.ids) == len(used)


def one_layer(*sets, units=10):
    return trace_of([[np.array(ids, np.int64)] for ids in sets], [units])


def reads_by_token(reads):
    return [reads.ids[a:b].tolist() for a, b in pairwise(reads.starts.tolist())]


def test_lfu_ages_by_hand():
    # Unit 0 is used six times, then never; 1 and 2 take turns in the other of two places.
    trace = one_layer(*[[0]] * 6, *[[1], [2]] * 4)
    first = [[0], [], [], [], [], []]
    assert reads_by_token(lfu(100)(trace, (1,), 2)) == first + [[1], [2]] * 4
    # Halved before token 6, the count of 0 is 3. Token 11 is the third use of 2: of 0 and 1, which have been
    # used three times too, 0 is the older one and leaves, and both others stay.
    assert reads_by_token(lfu(6)(trace, (1,), 2)) == first + [[1], [2]] * 3 + [[], []]


def test_s3_fifo_by_hand():
    # Ten places, one of them small. Units 0 … 9 fill them: 0 the small queue, 1 … 9 the main one.
    fill = [[i] for i in range(10)]
    # 10 comes for 0, whose name the ghost takes; 11 comes for 10, a one-hit wonder; 0 is known, so it comes
    # for 11 and joins the main queue, which is over its share then: 12 comes for 1, and 13 for 12.
    trace = one_layer(*fill, [10], [11], [0], [12], [13], list(range(14)), units=14)
    last = reads_by_token(s3_fifo()(trace, (1,), 10))[-1]
    assert last == [1, 10, 11, 12]
    # A unit that was used twice while in the small queue goes on to the main one instead.
    trace = one_layer(*fill, [0], [0], [10], list(range(11)), units=14)
    assert reads_by_token(s3_fifo()(trace, (1,), 10))[-1] == [1]
    # Used once, it leaves.
    trace = one_layer(*fill, [0], [10], list(range(11)), units=14)
    assert reads_by_token(s3_fifo()(trace, (1,), 10))[-1] == [0]


def test_three_uses_are_all_that_s3_fifo_remembers():
    # Two places, one of them small. 0 fills it, 1 the main queue, and 1 is used six times. Then 0, 2, 3, 5
    # come back soon after they left: each joins the main queue and leaves it while 1 goes round.
    trace = one_layer([0], *[[1]] * 6, [2], [0], [2], [3], [4], [3], [5], [1])
    assert reads_by_token(s3_fifo(50)(trace, (1,), 2))[-2:] == [[5], []]
    trace = one_layer([0], *[[1]] * 6, [2], [0], [2], [3], [4], [3], [5], [6], [5], [7], [1])
    assert reads_by_token(s3_fifo(50)(trace, (1,), 2))[-2:] == [[7], [1]]


def test_what_s3_fifo_knows_again_begins_unused():
    # 0 is used once before it leaves the small queue. It comes back to the main one, which 1, then 0 leave.
    trace = one_layer([0], [1], [0], [2], [0], [3], [2], [4], [0])
    assert reads_by_token(s3_fifo(50)(trace, (1,), 2))[-1] == [0]


def test_a_main_queue_in_use_gives_nothing_though_it_is_over_its_share():
    # Four places, two of them small; 0 comes back from the ghost, so the main queue holds 2, 3 and 0. A batch
    # that uses these and 5 takes the place of 4, the only one in the small queue.
    trace = one_layer([0], [1], [2], [3], [4], [0], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5])
    assert reads_by_token(s3_fifo(50)(trace, (1,), 4))[-2:] == [[5], [1, 4]]


@st.composite
def busy_pools(draw):
    """Many tokens, few units, and memory for most of them: names return, and the main queue overflows."""
    sets = draw(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=20, max_size=40))
    trace = trace_of([[np.flatnonzero(chosen)] for chosen in sets], [6])
    return trace, (1,), draw(st.integers(3, 5))


@given(busy_pools(), st.sampled_from([30, 50, 70]))
def test_s3_fifo_is_its_model_when_most_of_memory_is_in_use(pool, small_percent):
    check(s3_fifo(small_percent), S3FIFO(*pool[1:], small_percent), pool)


@pytest.mark.parametrize("policy", [lru, lfu(3), s3_fifo(), pinned_oracle, belady])
def test_impossible_memories_are_refused(policy):
    trace = trace_of([[np.array([0]), np.array([1])]], [2, 2])
    with pytest.raises(DomainError, match="at least 0 bytes"):
        policy(trace, (1, 1), -1)
    for sizes in [(1,), (1, 0), (1, 1, 1)]:
        with pytest.raises(DomainError, match="each of 2 layers"):
            policy(trace, sizes, 5)


def test_impossible_policies_are_refused():
    trace = trace_of([[np.array([0]), np.array([1])]], [2, 2])
    with pytest.raises(DomainError, match="units of one size only"):
        belady(trace, (1, 2), 5)
    with pytest.raises(DomainError, match="halves its counts every N tokens"):
        lfu(0)
    for percent in (-1, 101):
        with pytest.raises(DomainError, match="0 to 100 percent"):
            s3_fifo(percent)
