"""S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), for batches.

There are three queues: the small queue for new units, the main queue for units that were used again, and the
ghost with the names of units that left the small queue. A unit in memory has a frequency from 0 to 3. A batch
is served as `pool` says, with these rules:

1. The frequency of every hit grows by one, up to 3. A miss that will be kept and whose name the ghost has is
   a known unit; the ghost forgets its name.
2. Units leave, from the tail of a queue and only until there is room, first from the main queue while it is
   over its share, then from the small queue, and once that is empty from the main queue again. The small
   queue passes a unit that was used more than once on to the head of the main queue, with frequency 0. Its
   other units leave, and the ghost takes their names. The main queue takes a unit that was used back at its
   head, with a frequency lower by one. Its other units leave. A hit of the present batch counts as used,
   whatever its frequency.
3. New units join in ascending id, with frequency 0: known units at the head of the main queue, others at the
   head of the small queue. But as long as no unit has ever left, units that go beyond the share of the small
   queue join the main queue.

The names in the ghost stand for at most as many bytes as the main queue's share; the oldest names are
forgotten. With equal sizes and batches of one unit this is the authors' libCacheSim, request by request. The
paper's listing lacks the last sentence of rule 3, and also evicts from the main queue whenever it is full.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.caches.pool import CachePolicy, Units, check_pool, reads_of
from flashref.simulate.trace import ActivationTrace, Counts, Mask, Reads, token_uses
from flashref.types import DomainError

MOST_USED = 3  # the highest frequency, which has two bits
FORGOTTEN = -1
NOBODY: Units = np.zeros(0, np.int64)
SMALL, MAIN, GHOST = range(3)


def s3_fifo(small_percent: int = 10) -> CachePolicy:
    """Make an S3-FIFO cache.

    Args:
        small_percent: the small queue's share of the capacity, from 0 to 100.

    Returns:
        The policy, a function as `lru` is.

    Raises:
        DomainError: the share is not from 0 to 100.
    """
    if not 0 <= small_percent <= 100:
        raise DomainError(f"the small queue takes 0 to 100 percent of the capacity, not {small_percent}")

    def policy(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
        check_pool(trace, sizes, capacity)
        return _replay(trace, sizes, capacity, capacity * small_percent // 100)

    return policy


class _Queues(NamedTuple):
    """The three queues, and what is known of every unit of the pool; all is changed in place.

    small, main: units from the tail to the head, in pieces.
    ghost: units with the batch in which they left; a name is forgotten once `named` has another batch.
    held: bytes of the small queue (counted until a unit leaves), of the main queue and of the ghost.
    now: units in memory in each layer.
    """

    size_of: Counts  # bytes of a unit of each layer
    layer_of: Counts  # the layer of each unit
    kept: Mask  # whether each unit is in memory
    in_main: Mask  # whether a unit in memory is in the main queue
    busy: Mask  # whether a unit is a hit of the present batch
    frequency: npt.NDArray[np.int8]
    named: npt.NDArray[np.int32]  # the batch in which each unit left, or FORGOTTEN
    small: deque[Units]
    main: deque[Units]
    ghost: deque[tuple[int, Units]]
    held: list[int]
    now: Counts


def _replay(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int, small_share: int) -> Reads:
    """Serve all batches of a trace, step by step as the module says."""
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
            if not has_evicted:  # what goes beyond the share of the small queue joins the main queue
                room = -(-max(small_share - queues.held[SMALL], 0) // size)
                known |= np.cumsum(~known) > room
            _join(queues, new, known, size)
            free -= len(new) * size
            queues.now[layer] += len(new)
            loaded[token, layer] = len(new)
        resident[token] = queues.now
    return reads_of(trace, hit, resident, loaded)


def _make_room(queues: _Queues, needed: int, main_share: int, batch: int, hits: Units) -> int:
    """Free at least `needed` bytes, but not of the hits of this batch; returns the bytes freed."""
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
    """Let units leave the main queue, `needed` bytes at least; a unit that was used goes round once more."""
    made = 0
    while made < needed:
        going, left, bytes_left = _give(queues, queues.main, 0, needed - made)
        queues.frequency[going] = np.maximum(queues.frequency.take(going) - 1, 0)
        queues.main.append(going)
        queues.held[MAIN] -= bytes_left
        made += bytes_left
    return made


def _small_gives(queues: _Queues, needed: int, main_share: int, batch: int) -> int:
    """Let units leave the small queue, up to `needed` bytes; a unit that was used goes to the main queue."""
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
    """Go through a queue from its tail until `needed` bytes leave or the queue has ended.

    Returns the units that go on, because their frequency is above `used` or they are busy; the units that
    leave; and the bytes that leave.
    """
    going, leaving, made = [NOBODY], [NOBODY], 0
    largest = int(queues.size_of.max())
    while made < needed and queue:
        units = queue.popleft()
        if len(units) == 0:
            continue
        goes = (queues.frequency.take(units) > used) | queues.busy.take(units)
        surely = -(-(needed - made) // largest)  # fewer units cannot make enough room
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
    """Put new units, in ascending id, at the head of the main or of the small queue."""
    queues.frequency[new] = 0
    queues.kept[new] = True
    queues.in_main[new] = joins_main
    queues.main.append(new.compress(joins_main))
    queues.small.append(new.compress(~joins_main))
    main = int(np.count_nonzero(joins_main))
    queues.held[MAIN] += main * size
    queues.held[SMALL] += (len(new) - main) * size


def _bytes_of(queues: _Queues, units: Units) -> int:
    """The bytes of these units."""
    return int(queues.size_of.take(queues.layer_of.take(units)).sum())
