"""Rows moved inside DRAM by a whole run, without its matrices: `flashref.slots`, all layers at once."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import Counts
from flashref.types import NEVER, Ids, IdsError

_FOREIGN = "a token evicts what is not in memory, or loads what is; the changes are not of one run"


class Changes(NamedTuple):
    """What every token loads and evicts, layer by layer: the `Delta`s of a whole run.

    units: of each layer; load_ids, evict_ids: int32, ascending within a layer of a token, and in any order;
    load_starts, evict_starts: (tokens·layers + 1,) int64, token t's layer l is ids[starts[t·layers + l] :
    starts[t·layers + l + 1]], as in ActivationTrace.
    """

    units: tuple[int, ...]
    load_ids: npt.NDArray[np.int32]
    load_starts: Counts
    evict_ids: npt.NDArray[np.int32]
    evict_starts: Counts


def moved_by_swap(changes: Changes) -> Counts:
    """Rows that `swap_with_last` moves: a hole takes the last row (paper §3.3, Fig. 6; decision 10).

    Returns:
        (tokens, layers) int64.

    Raises:
        IdsError: no window's memory can be the cause of these changes.
    """
    loads, _ = _lengths(changes)
    return _moved(changes, np.zeros_like(loads))


def moved_by_fill(changes: Changes) -> Counts:
    """Rows that `fill_holes` moves: new rows fill holes first (decision 11).

    Returns:
        (tokens, layers) int64.

    Raises:
        IdsError: no window's memory can be the cause of these changes.
    """
    return _moved(changes, np.minimum(*_lengths(changes)))


MOVES: Mapping[str, Callable[[Changes], Counts]] = MappingProxyType(
    {"swap_with_last": moved_by_swap, "fill_holes": moved_by_fill}
)


def _lengths(changes: Changes) -> tuple[Counts, Counts]:
    """How many are loaded, and evicted, by each token and layer."""
    layers = len(changes.units)
    loads, evicts = np.diff(changes.load_starts), np.diff(changes.evict_starts)
    return loads.reshape(-1, layers), evicts.reshape(-1, layers)


def _moved(changes: Changes, direct: Counts) -> Counts:
    """Both placements: `direct` of a layer's new rows go into its lowest holes, (tokens, layers).

    Of the holes left, those below the rows that remain take the highest rows; other new rows are appended.
    A step is a token, for all layers at once, on one table: row r of layer l is row first[l] + r, and its
    neuron i is neuron first[l] + i, for a layer has as many rows as neurons.
    """
    layers = len(changes.units)
    first = np.cumsum([0, *changes.units[:-1]])
    loads, evicts = _lengths(changes)
    used = np.cumsum(loads - evicts, axis=0)
    if np.any(used < 0) or np.any(used > changes.units):
        raise IdsError(_FOREIGN)
    count = first + used - loads + direct  # rows after the holes are gone, before the others are appended
    left = evicts - direct
    # Rows of a token and layer follow each other: down from the last one used, up from the count.
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
    """Where each layer's part of a token begins."""
    starts: Counts = np.cumsum(lengths, axis=1) - lengths
    return starts


def _leading(chosen: Counts, lengths: Counts) -> npt.NDArray[np.bool_]:
    """Mask over the parts of all layers, one after the other: the first `chosen` of each."""
    runs = np.stack([chosen, lengths - chosen], axis=1)
    return np.tile([True, False], len(lengths)).repeat(runs.ravel())
