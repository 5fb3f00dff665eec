"""S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), for batches.

Three queues: a small one for what is new, a main one for what was used again, and a ghost with the names of
what left the small one. A unit in memory has a frequency from 0 to 3. A batch is served as `pool` says; here:

1. The frequency of every hit grows by one, up to 3. Of the misses that will be kept, those whose names the
   ghost has are known ones; it forgets them.
2. Who leaves: first the main queue gives units while it is over its share, then the small one, and if that is
   empty the main one again, each from its tail and only until there is room.
   The small queue passes what was used more than once on to the head of the main one, with frequency 0; the
   rest leaves, and the ghost takes its name. The main queue takes what was used back at its head, with a
   frequency lower by one; the rest leaves. A hit of this very batch counts as used, whatever its frequency.
3. New units join in ascending id, with frequency 0: known ones the head of the main queue, others that of
   the small one; but until a unit has left for the first time, the main one once the small has its share.

The ghost holds names of at most as many bytes as the main queue's share; the oldest are forgotten. With equal
sizes and batches of one unit this is the authors' libCacheSim, request by request. The paper's listing lacks
the last sentence of 3, and also evicts from the main queue whenever it is full.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.caches.pool import CachePolicy, Units, check_pool, reads_of
from flashref.simulate.trace import ActivationTrace, Counts, Mask, Reads, token_uses
from flashref.types import DomainError

MOST_USED = 3  # frequencies have two bits
FORGOTTEN = -1
NOBODY: Units = np.zeros(0, np.int64)
SMALL, MAIN, GHOST = range(3)


def s3_fifo(small_percent: int = 10) -> CachePolicy:
    """S3-FIFO as a policy.

    Args:
        small_percent: of the capacity, 0 to 100, for the small queue.

    Returns:
        The policy, a function as `lru` is.

    Raises:
        DomainError: the percentage is none.
    """
    if not 0 <= small_percent <= 100:
        raise DomainError(f"the small queue has 0 to 100 percent of the capacity, not {small_percent}")

    def policy(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
        check_pool(trace, sizes, capacity)
        return _replay(trace, sizes, capacity, capacity * small_percent // 100)

    return policy


class _Queues(NamedTuple):
    """The three queues, and what is known of every unit of the pool; changed in place.

    small, main: from the tail to the head, in pieces; ghost: names by the batch that they left in, forgotten
    as soon as `named` has another batch. held: bytes of small (until a unit leaves), main and ghost; now:
    units in memory by layer.
    """

    size_of: Counts  # of a unit of each layer
    layer_of: Counts
    kept: Mask
    in_main: Mask  # of what is kept
    busy: Mask  # hits of the batch that is served
    frequency: npt.NDArray[np.int8]
    named: npt.NDArray[np.int32]
    small: deque[Units]
    main: deque[Units]
    ghost: deque[tuple[int, Units]]
    held: list[int]
    now: Counts


def _replay(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int, small_share: int) -> Reads:
    """All batches of a trace, step by step as the module says."""
    everyone = sum(trace.units)
    queues = _Queues(
        size_of=np.array(sizes),
        layer_of=np.repeat(np.arange(trace.layers), trace.units),
        kept=np.zeros(everyone, bool),
        in_main=np.zeros(everyone, bool),
        busy=np.zeros(everyone, bool),
        frequency=np.zeros(everyone, np.int8),
        named=np.full(everyone, FORGOTTEN, np.int32),
        small=deque(),
        main=deque(),
        ghost=deque(),
        held=[0, 0, 0],
        now=np.zeros(trace.layers, np.int64),
    )
    hit = np.zeros(len(trace.ids), bool)
    loaded = np.zeros((trace.tokens, trace.layers), np.int64)
    resident = np.zeros_like(loaded)
    free, has_evicted, starts = capacity, False, trace.starts.tolist()
    for token in range(trace.tokens):
        at, of_token, _ = token_uses(trace, token)
        for layer, size in enumerate(sizes):
            batch = token * trace.layers + layer
            units = of_token[starts[batch] - at.start : starts[batch + 1] - at.start]
            there = queues.kept.take(units)
            hit[starts[batch] : starts[batch + 1]] = there
            hits = units.compress(there)
            queues.frequency[hits] = np.minimum(queues.frequency.take(hits) + 1, MOST_USED)
            new = units.compress(~there)[: capacity // size - len(hits)]
            known = queues.named.take(new) != FORGOTTEN
            queues.named[new] = FORGOTTEN
            queues.held[GHOST] -= int(np.count_nonzero(known)) * size

            if len(new) * size > free:
                has_evicted = True
                free += _make_room(queues, len(new) * size - free, capacity - small_share, batch, hits)
            if not has_evicted:  # beyond its share the small queue takes nothing
                room = -(-max(small_share - queues.held[SMALL], 0) // size)
                known |= np.cumsum(~known) > room
            _join(queues, new, known, size)
            free -= len(new) * size
            queues.now[layer] += len(new)
            loaded[token, layer] = len(new)
        resident[token] = queues.now
    return reads_of(trace, hit, resident, loaded)


def _make_room(queues: _Queues, needed: int, main_share: int, batch: int, hits: Units) -> int:
    """Units leave until `needed` bytes are free; how many that made. hits: of this batch, which stay."""
    queues.busy[hits] = True
    stays = int(queues.size_of.take(queues.layer_of.take(hits.compress(queues.in_main.take(hits)))).sum())
    over = min(queues.held[MAIN] - main_share, queues.held[MAIN] - stays)
    made = _main_gives(queues, min(needed, over))
    if made < needed:
        made += _small_gives(queues, needed - made, main_share, batch)
    made += _main_gives(queues, needed - made)
    queues.busy[hits] = False
    return made


def _main_gives(queues: _Queues, needed: int) -> int:
    """The main queue gives at least so many bytes: what was used goes round once more."""
    made = 0
    while made < needed:
        going, left, bytes_left = _give(queues, queues.main, 0, needed - made)
        queues.frequency[going] = np.maximum(queues.frequency.take(going) - 1, 0)
        queues.main.append(going)
        queues.held[MAIN] -= bytes_left
        made += bytes_left
    return made


def _small_gives(queues: _Queues, needed: int, main_share: int, batch: int) -> int:
    """The small queue gives what it can up to `needed` bytes: to the main queue, or away and to the ghost."""
    going, left, made = _give(queues, queues.small, 1, needed)
    queues.frequency[going] = 0
    queues.in_main[going] = True
    queues.main.append(going)
    queues.held[MAIN] += _bytes_of(queues, going)

    queues.named[left] = batch
    queues.ghost.append((batch, left))
    queues.held[GHOST] += made
    largest = int(queues.size_of.max())
    while queues.held[GHOST] > main_share:
        number, names = queues.ghost.popleft()
        names = names.compress(queues.named.take(names) == number)
        surely = -(-(queues.held[GHOST] - main_share) // largest)
        queues.named[names[:surely]] = FORGOTTEN
        queues.held[GHOST] -= _bytes_of(queues, names[:surely])
        if len(names) > surely:
            queues.ghost.appendleft((number, names[surely:]))
    return made


def _give(queues: _Queues, queue: deque[Units], used: int, needed: int) -> tuple[Units, Units, int]:
    """From the tail, until `needed` bytes leave or the queue has ended: who goes on, who leaves, its bytes.

    Who has a frequency above `used`, or is busy, goes on.
    """
    going, leaving, made = [NOBODY], [NOBODY], 0
    largest = int(queues.size_of.max())
    while made < needed and queue:
        units = queue.popleft()
        if len(units) == 0:
            continue
        goes = (queues.frequency.take(units) > used) | queues.busy.take(units)
        surely = -(-(needed - made) // largest)  # fewer cannot make room
        leave = np.flatnonzero(~goes)[:surely]
        seen = int(leave[-1]) + 1 if len(leave) == surely else len(units)
        if seen < len(units):
            queue.appendleft(units[seen:])
        going.append(units[:seen].compress(goes[:seen]))
        leaving.append(units.take(leave))
        made += _bytes_of(queues, leaving[-1])
    left = np.concatenate(leaving)
    queues.kept[left] = False
    queues.now[:] -= np.bincount(queues.layer_of.take(left), minlength=len(queues.now))
    return np.concatenate(going), left, made


def _join(queues: _Queues, new: Units, joins_main: Mask, size: int) -> None:
    """New units, in ascending id, at the head of the main or the small queue."""
    queues.frequency[new] = 0
    queues.kept[new] = True
    queues.in_main[new] = joins_main
    queues.main.append(new.compress(joins_main))
    queues.small.append(new.compress(~joins_main))
    main = int(np.count_nonzero(joins_main))
    queues.held[MAIN] += main * size
    queues.held[SMALL] += (len(new) - main) * size


def _bytes_of(queues: _Queues, units: Units) -> int:
    return int(queues.size_of.take(queues.layer_of.take(units)).sum())
