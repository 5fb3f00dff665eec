"""One pool of memory for the units of all layers: what all cache policies, and Belady's optimum, share.

A policy is a function of a trace, of the bytes of a unit of each layer, and of a capacity in bytes. Memory is
empty at first. Each layer of a token asks for all its units at once, in a batch. Every cache serves a batch
like this:

1. A unit that is in memory is a hit. All other units of the batch are misses, and are read.
2. Misses are kept in ascending id, as many as fit beside the hits. The others are used but not kept (bypass).
   So a unit never leaves for another unit of its own batch.
3. If the kept misses do not fit beside everything in memory, other units leave first, one by one, in the
   order of the policy, until they fit.

The kept bytes never exceed the capacity. `Reads` has one batch for each token and layer, and `resident` is
counted after a token's last layer. No row moves, for a new unit takes the place of one that left.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import ActivationTrace, Counts, Mask, Reads, token_uses
from flashref.types import DomainError

CachePolicy = Callable[[ActivationTrace, tuple[int, ...], int], Reads]
Units = npt.NDArray[np.int64]  # each is a unit's id plus the number of units in the layers before


def check_pool(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> None:
    """Refuse impossible sizes and capacities.

    Args:
        trace: which units each token activates.
        sizes: bytes of a unit of each layer.
        capacity: bytes of the pool.

    Raises:
        DomainError: a size is missing or below 1, or the capacity is below 0.
    """
    if len(sizes) != trace.layers or min(sizes) < 1:
        raise DomainError(
            f"a cache needs the bytes of a unit, at least 1, for each of {trace.layers} layers, not {sizes}"
        )
    if capacity < 0:
        raise DomainError(f"a cache must have at least 0 bytes, not {capacity}")


def uses_before(trace: ActivationTrace) -> npt.NDArray[np.int32]:
    """For each use the number of the use before of the same unit, (m,); −1 if there was none."""
    previous = np.empty(len(trace.ids), np.int32)
    last = np.full(sum(trace.units), -1, np.int32)
    for token in range(trace.tokens):
        at, units, _ = token_uses(trace, token)
        previous[at] = last[units]
        last[units] = np.arange(at.start, at.stop, dtype=np.int32)
    return previous


def uses_after(trace: ActivationTrace) -> npt.NDArray[np.int32]:
    """For each use the number of the next use of the same unit, (m,); m if there is none."""
    following = np.empty(len(trace.ids), np.int32)
    after = np.full(sum(trace.units), len(trace.ids), np.int32)
    for token in reversed(range(trace.tokens)):
        at, units, _ = token_uses(trace, token)
        following[at] = after[units]
        after[units] = np.arange(at.start, at.stop, dtype=np.int32)
    return following


def count_batches(trace: ActivationTrace, chosen: Mask) -> Counts:
    """How many uses are chosen in each batch, (tokens, layers), from a mask over all uses, (m,)."""
    starts = trace.starts.tolist()
    counts = [np.count_nonzero(chosen[start:stop]) for start, stop in pairwise(starts)]
    return np.array(counts, np.int64).reshape(-1, trace.layers)


def reads_of(trace: ActivationTrace, hit: Mask, resident: Counts, loaded: Counts) -> Reads:
    """Make the reads of a policy.

    Args:
        trace: which units each token activates.
        hit: (m,) whether each use found its unit in memory; all others are read.
        resident: (tokens, layers) units in memory after each token.
        loaded: (tokens, layers) units that were put into memory.

    Returns:
        The reads, batch by batch.
    """
    miss = ~hit
    token, layer = np.divmod(np.arange(trace.tokens * trace.layers), trace.layers)
    starts = np.concatenate([[0], np.cumsum(count_batches(trace, miss))])
    return Reads(trace.ids[miss], starts, token, layer, resident, loaded, np.zeros_like(loaded))
