"""What others use instead of a window: least recently used, least frequently used, pinned hot units.

How a batch is served stands in `pool`; here is who leaves. S3-FIFO and Belady's optimum: `s3_fifo`, `belady`.
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
CHUNK = 16384  # uses that are searched at once for units that may leave


def lru(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    """The least recently used leaves first: the earliest last use by token, layer, then ascending id.

    Args:
        trace: which units each token activates.
        sizes: bytes of a unit of each layer, ≥ 1.
        capacity: bytes of the pool, ≥ 0.

    Raises:
        DomainError: a number is outside of its domain.
    """
    check_pool(trace, sizes, capacity)
    return _lowest_leaves(trace, sizes, capacity, np.ones(len(trace.ids) + 1, np.int8), trace.tokens)


def lfu(period: int) -> CachePolicy:
    """The least frequently used leaves first, among equals the least recently used (as in `lru`).

    A unit's count is of all its uses, in memory or not, this batch's included; before every period-th token
    all counts are halved and rounded down.

    Args:
        period: tokens, ≥ 1.

    Returns:
        The policy, a function as `lru` is.

    Raises:
        DomainError: the period is too small.
    """
    if period < 1:
        raise DomainError(f"counts are halved every token or less often, not every {period} tokens")

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
    """The units most used by the uncounted tokens are read at their first use and stay; no other is kept.

    Of equally used ones layer, then ascending id decides; the first that does not fit, all behind it, and
    what was not used are left out. sizes, capacity: bytes. DomainError, also if there are no such tokens.
    """
    if trace.first_counted == 0:
        raise DomainError("hot units are counted on uncounted tokens, and the trace has none; warm it first")
    return _pinned(trace, sizes, capacity, trace.first_counted)


def pinned_oracle(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    """`pinned` with the units most used by the whole trace, which nobody knows beforehand."""
    return _pinned(trace, sizes, capacity, trace.tokens)


def _pinned(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int, tokens: int) -> Reads:
    """Pinned by the uses of the first `tokens` tokens."""
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
    """Who has the lowest rank leaves first, of equal ranks the earliest last use.

    ranks: (m + 1,), of each use 1 + the unit's count after it; changed here: 0 as soon as the unit is used
    again or leaves, or if it bypasses. So the uses with a rank are what is in memory, the earliest use first;
    the last entry stands for "never used". period: tokens after which counts are halved.
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
    # Uses before searched[rank] have another rank by now, and no use has a rank below `lowest`.
    searched, lowest = [0] * (int(ranks.max()) + 1), 1

    def make_room(needed: int, stop: int) -> int:
        """Units with uses before `stop` leave until `needed` bytes are free; how many that made."""
        nonlocal lowest, now
        made = 0
        while made < needed:
            start = searched[lowest]
            if start == stop:
                lowest += 1
                continue
            end = min(start + CHUNK, stop)
            surely = -(-(needed - made) // largest)  # fewer cannot make room
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
            lowest = max(int(ranks[start:stop].min(initial=lowest)), 1)  # a bypass has 0
            now[layer] += new
            loaded[token, layer] = new
        resident[token] = now
    return reads_of(trace, hit, resident, loaded)
