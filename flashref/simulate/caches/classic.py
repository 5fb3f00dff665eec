"""The classic caches: least recently used, least frequently used, and pinned units.

`pool` says how a batch is served; these policies say which unit leaves. `s3_fifo` and `belady` have modules
of their own.
"""

import numpy as np
import numpy.typing as npt

from flashref.simulate.caches.pool import (
    CachePolicy,
    check_pool,
    count_batches,
    reads_of,
    uses_before,
)
from flashref.simulate.trace import ActivationTrace, Mask, Reads, token_uses
from flashref.types import DomainError

Ranks = npt.NDArray[np.signedinteger]
CHUNK = 16384  # uses that are searched at a time for units that may leave


def lru(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    """Replay a cache from which the least recently used unit leaves first.

    Last uses are ordered by token, layer and ascending id.

    Args:
        trace: which units each token activates.
        sizes: bytes of a unit of each layer, ≥ 1.
        capacity: bytes of the pool, ≥ 0.

    Returns:
        What is read and kept.

    Raises:
        DomainError: a size or the capacity is impossible.
    """
    check_pool(trace, sizes, capacity)
    return _lowest_leaves(trace, sizes, capacity, np.ones(len(trace.ids) + 1, np.int8), trace.tokens)


def lfu(period: int) -> CachePolicy:
    """Make a cache from which the least frequently used unit leaves first, and of equals as in `lru`.

    A unit's count is the number of all its uses, in memory or not, with that of the present batch. Before
    every period-th token all counts are halved and rounded down.

    Args:
        period: tokens, ≥ 1.

    Returns:
        The policy, a function as `lru` is.

    Raises:
        DomainError: the period is below 1.
    """
    if period < 1:
        raise DomainError(f"an LFU cache halves its counts every N tokens, N at least 1, not {period}")

    def policy(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
        check_pool(trace, sizes, capacity)
        smallest = np.min_scalar_type(-trace.tokens - 2)
        ranks = np.ones(len(trace.ids) + 1, smallest)
        counts = np.zeros(sum(trace.units), smallest)
        for token in range(trace.tokens):
            at, units, _ = token_uses(trace, token)
            if token % period == 0:
                counts >>= 1
            counts[units] += 1
            ranks[at] += counts[units]
        return _lowest_leaves(trace, sizes, capacity, ranks, period)

    return policy


def pinned(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    """Replay a cache that pins the units which the warm-up tokens used most, and keeps no other.

    A pinned unit is read at its first use and stays. Units that were used equally often are ordered by layer
    and ascending id. The first unit that does not fit is left out, and so are all after it, and units that
    were not used at all.

    Args:
        trace, sizes, capacity: as `lru` takes them.

    Returns:
        What is read and kept.

    Raises:
        DomainError: a size or the capacity is impossible, or the trace has no warm-up tokens.
    """
    if trace.first_counted == 0:
        raise DomainError(
            "pinned keeps the units that the warm-up tokens use most, and this trace has no warm-up tokens; "
            "give it some (--warm)"
        )
    return _pinned(trace, sizes, capacity, trace.first_counted)


def pinned_oracle(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    """Replay `pinned` with the units that the whole trace uses most, which nobody can know beforehand.

    Args:
        trace, sizes, capacity: as `lru` takes them.

    Returns:
        What is read and kept.

    Raises:
        DomainError: a size or the capacity is impossible.
    """
    return _pinned(trace, sizes, capacity, trace.tokens)


def _pinned(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int, tokens: int) -> Reads:
    """Pin the units that the first `tokens` tokens use most."""
    check_pool(trace, sizes, capacity)
    counts = np.zeros(sum(trace.units), np.int64)
    for token in range(tokens):
        counts[token_uses(trace, token)[1]] += 1
    hottest = np.argsort(-counts, kind="stable")
    fits = np.cumsum(np.repeat(sizes, trace.units)[hottest]) <= capacity
    stays = np.zeros(len(counts), bool)
    stays[hottest[fits]] = True
    stays &= counts > 0

    first = uses_before(trace) < 0
    kept = np.concatenate([stays[token_uses(trace, token)[1]] for token in range(trace.tokens)])
    loaded = count_batches(trace, kept & first)
    return reads_of(trace, kept & ~first, np.cumsum(loaded, axis=0), loaded)


def _lowest_leaves(
    trace: ActivationTrace, sizes: tuple[int, ...], capacity: int, ranks: Ranks, period: int
) -> Reads:
    """Replay a cache from which the unit of the lowest rank leaves first, and of equals as in `lru`.

    ranks: (m + 1,), for each use 1 + the unit's count after it; the last entry stands for "never used". The
        ranks are changed here: they become 0 when the unit is used again, leaves or bypasses. So the uses
            with
        a rank above 0 are those of the units in memory, in the order of their last uses.
    period: after so many tokens the counts are halved.
    """
    ranks[-1] = 0
    layers, starts = trace.layers, trace.starts.tolist()
    previous = uses_before(trace)
    layer_of = np.tile(np.arange(layers), trace.tokens).astype(np.int16).repeat(np.diff(trace.starts))
    size_of, largest = np.array(sizes), max(sizes)
    hit: Mask = np.zeros(len(trace.ids), bool)
    loaded = np.zeros((trace.tokens, layers), np.int64)
    resident = np.zeros_like(loaded)
    now = np.zeros(layers, np.int64)
    free = capacity
    # No use before searched[rank] has this rank any more, and no use has a rank between 0 and `lowest`.
    searched, lowest = [0] * (int(ranks.max()) + 1), 1

    def make_room(needed: int, stop: int) -> int:
        """Free at least `needed` bytes of units whose last use is before `stop`; returns the bytes freed."""
        nonlocal lowest, now
        made = 0
        while made < needed:
            start = searched[lowest]
            if start == stop:
                lowest += 1
                continue
            end = min(start + CHUNK, stop)
            surely = -(-(needed - made) // largest)  # fewer units cannot make enough room
            leave = np.flatnonzero(ranks[start:end] == lowest)[:surely]
            searched[lowest] = start + int(leave[-1]) + 1 if len(leave) == surely else end
            if len(leave):
                ranks[start:end][leave] = 0
                left = np.bincount(layer_of[start:end].take(leave), minlength=layers)
                now -= left
                made += int(left @ size_of)
        return made

    for token in range(trace.tokens):
        if token % period == 0:
            past = ranks[: starts[token * layers]]
            past += 1  # 0 stays 0, and 1 + count becomes 1 + count // 2
            past >>= 1
            searched = [min(searched[max(2 * r - 1, 0) : 2 * r + 1], default=0) for r in range(len(searched))]
            lowest = (lowest + 1) // 2
        for layer in range(layers):
            start, stop = starts[token * layers + layer], starts[token * layers + layer + 1]
            before = previous[start:stop].astype(np.int64)
            there = ranks.take(before) > 0
            hit[start:stop] = there
            ranks[before] = 0
            hits = int(np.count_nonzero(there))
            fits = capacity // sizes[layer] - hits
            new = min(stop - start - hits, fits)
            if new < stop - start - hits:
                ranks[start:stop][~there & (np.cumsum(~there) > fits)] = 0
            if new * sizes[layer] > free:
                free += make_room(new * sizes[layer] - free, start)
            free -= new * sizes[layer]
            lowest = max(int(ranks[start:stop].min(initial=lowest)), 1)  # a unit that bypasses has rank 0
            now[layer] += new
            loaded[token, layer] = new
        resident[token] = now
    return reads_of(trace, hit, resident, loaded)
