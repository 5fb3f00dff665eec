"""Belady's optimum: the fewest reads that any policy can make in one pool of equal units.

A unit that is kept from one use to its next spares one read, and takes one place between the two. The most
such intervals are kept by going through them in the order in which they begin. Whenever more intervals are
open than there are places, those that end last are dropped (Belady 1966; here with bypass: a unit that is not
worth a place is read, used and not kept).
"""

import numpy as np
import numpy.typing as npt

from flashref.simulate.caches.pool import check_pool, count_batches, reads_of, uses_after
from flashref.simulate.trace import ActivationTrace, Mask, Reads
from flashref.types import DomainError


def belady(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    """Replay the policy that knows the future: no other makes fewer reads in the counted tokens.

    The warm-up tokens read what they need, and keep only what a counted token uses. Of intervals that end in
    one batch, those of the highest ids are dropped first.

    Args:
        trace: which units each token activates.
        sizes: bytes of a unit of each layer, all equal.
        capacity: bytes of the pool, ≥ 0; it is never exceeded after a batch.

    Returns:
        What is read and kept.

    Raises:
        DomainError: a size or the capacity is impossible, or sizes differ, for which this is not the optimum.
    """
    check_pool(trace, sizes, capacity)
    if len(set(sizes)) > 1:
        raise DomainError(
            f"Belady's rule is an optimum for units of one size only, not for {sorted(set(sizes))} bytes"
        )
    following = uses_after(trace)
    following[following < trace.starts[trace.first_counted * trace.layers]] = len(following)
    spared = _spared(trace, following, capacity // sizes[0])

    # A read that is spared ends an interval; the interval began at the use before.
    begins, ends = spared.take(following), spared[:-1]
    begun, ended = count_batches(trace, begins), count_batches(trace, ends)
    return reads_of(trace, ends, np.cumsum(begun - ended, axis=0), count_batches(trace, begins & ~ends))


def _spared(trace: ActivationTrace, following: npt.NDArray[np.int32], places: int) -> Mask:
    """The uses that find their unit in memory, a mask of (m + 1,): there the kept intervals end.

    following: (m,) the use at which the interval that begins at each use ends; m if it ends nowhere. Uses are
        numbered by token, layer and ascending id, so that the interval which ends last has the highest
        number.
    """
    layers, tokens, starts = trace.layers, trace.tokens, trace.starts.tolist()
    lengths = np.diff(trace.starts[::layers], append=len(following) + 1)
    token_of = np.arange(tokens + 1).astype(np.min_scalar_type(tokens)).repeat(lengths)
    spared = np.zeros(len(following) + 1, bool)
    # How many open intervals end in each token and layer, and in each token: so the last ones are found fast.
    in_batch = np.zeros((tokens, layers), np.int64)
    in_token = np.zeros(tokens, np.int64)
    opened, last = 0, 0  # no open interval ends at `last` or later
    for token in range(tokens):
        for layer in range(layers):
            start, stop = starts[token * layers + layer], starts[token * layers + layer + 1]
            ends = following[start:stop].astype(np.int64)
            begun = np.bincount(token_of.take(ends), minlength=tokens + 1)[:-1]
            ended = int(in_batch[token, layer])
            in_batch[token, layer] = 0
            in_batch[:, layer] += begun
            in_token += begun
            opened += int(begun.sum()) - ended
            if opened <= places:
                ends = ends.compress(ends < len(following))
                spared[ends] = True
                last = int(ends.max(initial=last - 1)) + 1
                continue

            # Find the first end to drop: its token, its layer, and its number.
            from_end = np.cumsum(in_token[::-1])
            back = int(np.searchsorted(from_end, opened - places))
            at = tokens - 1 - back
            drop = opened - places - int(from_end[back] - in_token[at])
            in_token[at] -= drop
            in_token[at + 1 :] = 0
            in_batch[at + 1 :] = 0
            from_end = np.cumsum(in_batch[at, ::-1])
            back = int(np.searchsorted(from_end, drop))
            of = layers - 1 - back
            drop -= int(from_end[back] - in_batch[at, of])
            in_batch[at, of] -= drop
            in_batch[at, of + 1 :] = 0
            first, behind = starts[at * layers + of], starts[at * layers + of + 1]
            spared[ends.compress(ends < behind)] = True
            cut = first + int(np.flatnonzero(spared[first:behind])[-drop])
            spared[cut : max(behind, last)] = False
            opened, last = places, cut
    return spared
