"""One pool of memory for the units of all layers: what every cache policy and Belady's optimum share.

A policy is a function of a trace, the bytes of a unit of each layer, and a capacity in bytes. Memory is empty
at first. A token's layer asks for its whole set at once, a batch, and every cache serves it like this:

1. What is in memory is a hit. All other units of the batch, the misses, are read.
2. Misses are kept in ascending id, as many as fit beside the hits; the rest is used and not kept (bypass).
   So a unit never leaves for another one of its own batch.
3. If the kept ones do not fit beside all that is in memory, others leave first, in the policy's order, one
   by one, until they do.

The kept bytes never exceed the capacity. `Reads` has one batch a token and layer; `resident` is counted after
a token's last layer; no row moves, for a new unit takes the place of one that left.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import ActivationTrace, Counts, Mask, Reads, token_uses
from flashref.types import DomainError

CachePolicy = Callable[[ActivationTrace, tuple[int, ...], int], Reads]
Units = npt.NDArray[np.int64]  # of the pool: unit i of layer l, and all units of the layers before it


def check_pool(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> None:
    """Refuses sizes (bytes of a unit of each layer) and capacities (bytes) that cannot be: DomainError."""
    if len(sizes) != trace.layers or min(sizes) < 1:
        raise DomainError(
            f"a cache needs the bytes of a unit, at least 1, of each of {trace.layers} layers, not {sizes}"
        )
    if capacity < 0:
        raise DomainError(f"a cache has at least 0 bytes, not {capacity}")


def uses_before(trace: ActivationTrace) -> npt.NDArray[np.int32]:
    """(m,) for each use: which use of the trace was the unit's one before, −1 if there was none."""
    previous = np.empty(len(trace.ids), np.int32)
    last = np.full(sum(trace.units), -1, np.int32)
    for token in range(trace.tokens):
        at, units, _ = token_uses(trace, token)
        previous[at] = last[units]
        last[units] = np.arange(at.start, at.stop, dtype=np.int32)
    return previous


def uses_after(trace: ActivationTrace) -> npt.NDArray[np.int32]:
    """(m,) for each use: which use of the trace is the unit's next one, m if there is none."""
    following = np.empty(len(trace.ids), np.int32)
    after = np.full(sum(trace.units), len(trace.ids), np.int32)
    for token in reversed(range(trace.tokens)):
        at, units, _ = token_uses(trace, token)
        following[at] = after[units]
        after[units] = np.arange(at.start, at.stop, dtype=np.int32)
    return following


def count_batches(trace: ActivationTrace, chosen: Mask) -> Counts:
    """(tokens, layers): how many of the chosen uses, (m,), are in each batch."""
    starts = trace.starts.tolist()
    counts = [np.count_nonzero(chosen[start:stop]) for start, stop in pairwise(starts)]
    return np.array(counts, np.int64).reshape(-1, trace.layers)


def reads_of(trace: ActivationTrace, hit: Mask, resident: Counts, loaded: Counts) -> Reads:
    """A policy's reads: all uses that are no hits, (m,), batch by batch."""
    miss = ~hit
    token, layer = np.divmod(np.arange(trace.tokens * trace.layers), trace.layers)
    starts = np.concatenate([[0], np.cumsum(count_batches(trace, miss))])
    return Reads(trace.ids[miss], starts, token, layer, resident, loaded, np.zeros_like(loaded))
