"""How many rows a placement moves in memory: `flashref.slots` for a whole run and all layers at once."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import Counts
from flashref.types import NEVER, Ids, IdsError

_FOREIGN = "a token evicts a unit that is not in memory, or loads one that is; give the changes of one run"


class Changes(NamedTuple):
    """What every token loads and evicts, layer by layer: the `Delta`s of a whole run.

    units: how many units each layer has.
    load_ids: int32, ascending within a layer of a token.
    evict_ids: int32, in any order within a layer of a token.
    load_starts, evict_starts: (tokens·layers + 1,) int64, where each token and layer begins, as in
        ActivationTrace.
    """

    units: tuple[int, ...]
    load_ids: npt.NDArray[np.int32]
    load_starts: Counts
    evict_ids: npt.NDArray[np.int32]
    evict_starts: Counts


def moved_by_swap(changes: Changes) -> Counts:
    """Count the rows that `swap_with_last` moves: a hole takes the last row (paper §3.3, Fig. 6).

    Args:
        changes: what every token loads and evicts.

    Returns:
        The rows that each token moves in each layer, (tokens, layers) int64.

    Raises:
        IdsError: a token evicts a unit that is not in memory, or loads one that is.
    """
    loads, _ = _lengths(changes)
    return _moved(changes, np.zeros_like(loads))


def moved_by_fill(changes: Changes) -> Counts:
    """Count the rows that `fill_holes` moves: new rows fill holes first (decision 11).

    Args:
        changes: what every token loads and evicts.

    Returns:
        The rows that each token moves in each layer, (tokens, layers) int64.

    Raises:
        IdsError: a token evicts a unit that is not in memory, or loads one that is.
    """
    return _moved(changes, np.minimum(*_lengths(changes)))


MOVES: Mapping[str, Callable[[Changes], Counts]] = MappingProxyType(
    {"swap_with_last": moved_by_swap, "fill_holes": moved_by_fill}
)


def _lengths(changes: Changes) -> tuple[Counts, Counts]:
    """How many units each token and layer loads, and how many it evicts."""
    layers = len(changes.units)
    loads, evicts = np.diff(changes.load_starts), np.diff(changes.evict_starts)
    return loads.reshape(-1, layers), evicts.reshape(-1, layers)


def _moved(changes: Changes, direct: Counts) -> Counts:
    """The rows that either placement moves; the first `direct` new rows of a layer fill its lowest holes.

    direct: (tokens, layers).

    Holes that are left below the number of remaining rows take the highest rows; the other new rows are
    appended. A step is one token in all layers, on one table: row r of layer l is row first[l] + r, and its
    neuron i is neuron first[l] + i, for a layer has at most as many rows as neurons.
    """
    layers = len(changes.units)
    first = np.cumsum([0, *changes.units[:-1]])
    loads, evicts = _lengths(changes)
    used = np.cumsum(loads - evicts, axis=0)
    if np.any(used < 0) or np.any(used > changes.units):
        raise IdsError(_FOREIGN)
    count = first + used - loads + direct  # rows once the holes are gone and before new rows are appended
    left = evicts - direct
    # In a token and layer, rows are taken from the last one downwards, and appended from `count` upwards.
    tail_from = count + left - 1 + _starts(left)
    put_from = (count - _starts(loads - direct)).astype(np.int32)

    row_of = np.full(sum(changes.units), NEVER, np.int32)  # int32 sorts twice as fast, and stays in cache
    neuron_in = np.full(sum(changes.units), NEVER)
    steps = np.arange(max(loads.sum(axis=1).max(initial=0), evicts.sum(axis=1).max(initial=0)))
    steps32 = steps.astype(np.int32)

    def place(neurons: Ids, rows: npt.NDArray[np.int32]) -> None:
        neuron_in[rows.astype(np.int64)] = neurons
        row_of[neurons] = rows

    begins = np.zeros_like(loads)
    ends = np.zeros(len(loads), np.int64)
    evict_edges, load_edges = changes.evict_starts[::layers].tolist(), changes.load_starts[::layers].tolist()
    for token in range(len(loads)):
        evict = changes.evict_ids[evict_edges[token] : evict_edges[token + 1]].astype(np.int64)
        evict += first.repeat(evicts[token])
        load = changes.load_ids[load_edges[token] : load_edges[token + 1]].astype(np.int64)
        load += first.repeat(loads[token])

        holes = row_of.take(evict)
        holes.sort()
        if len(holes) and holes[0] == NEVER:
            raise IdsError(_FOREIGN)
        if direct[token].any():
            lowest, smallest = _leading(direct[token], evicts[token]), _leading(direct[token], loads[token])
            place(load.compress(smallest), holes.compress(lowest))
            load, holes = load.compress(~smallest), holes.compress(~lowest)

        tail = tail_from[token].repeat(left[token])
        tail -= steps[: len(tail)]
        above = holes >= count[token].repeat(left[token])
        neuron_in[holes.compress(above)] = NEVER
        holes = holes.compress(~above)
        last = neuron_in.take(tail)
        place(last.compress(last != NEVER), holes)

        put = put_from[token].repeat(loads[token] - direct[token])
        put += steps32[: len(put)]
        place(load, put)
        begins[token], ends[token] = holes.searchsorted(first), len(holes)
    return np.diff(begins, append=ends[:, np.newaxis])


def _starts(lengths: Counts) -> Counts:
    """Where the part of each layer begins in a token."""
    starts: Counts = np.cumsum(lengths, axis=1) - lengths
    return starts


def _leading(chosen: Counts, lengths: Counts) -> npt.NDArray[np.bool_]:
    """A mask over the parts of all layers, one after another, that has the first `chosen` of each part."""
    runs = np.stack([chosen, lengths - chosen], axis=1)
    return np.tile([True, False], len(lengths)).repeat(runs.ravel())
