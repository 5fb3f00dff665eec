"""The paper's sliding window over a whole trace at once: `window_update` for all tokens and layers.

A neuron that is used at token p and next at token t is read at t unless the window before t reaches back to
p. So the gaps between uses, which are found once for a trace, decide what every window and every budget
reads.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.placement import Changes
from flashref.simulate.statistics import kept_counts, previous_uses
from flashref.simulate.trace import ActivationTrace, Counts, Mask, Reads, TokenNumbers, token_uses
from flashref.types import DomainError

CountMoves = Callable[[Changes], Counts]


class Uses(NamedTuple):
    """A trace whose uses are linked, for windows of up to `longest` tokens.

    trace: the trace, of m uses.
    previous: (m,) the token in which the same unit was used before; negative if there is none.
    next: (m,) the token in which the same unit is used next; the number of tokens if there is none.
    unions: (tokens, layers, longest) int64, |P_(t-j) ∪ … ∪ P_t| for j = 0 … longest − 1.
    """

    trace: ActivationTrace
    previous: TokenNumbers
    next: TokenNumbers
    unions: Counts

    @property
    def longest(self) -> int:
        """The longest window that these uses can be replayed with, in tokens."""
        return int(self.unions.shape[2])


class _Steps(NamedTuple):
    """What happens to each use, (m,): whether its unit is loaded, bypasses, or is evicted before the next.

    leave: (tokens·layers,) the token that evicts the units which each token and layer used last.
    """

    load: Mask
    bypass: Mask
    evict: Mask
    leave: Counts


def uses_of(trace: ActivationTrace, longest: int) -> Uses:
    """Link the uses of a trace, once for every window and every budget.

    Args:
        trace: which units each token activates.
        longest: the longest window that will be asked for, in tokens.

    Returns:
        The linked trace.
    """
    tokens = trace.tokens
    previous, gaps = previous_uses(trace, min(longest, tokens))
    following = np.empty_like(previous)
    last = np.full(sum(trace.units), tokens, previous.dtype)
    for token in reversed(range(tokens)):
        at, units, _ = token_uses(trace, token)
        following[at] = last.take(units)
        last[units] = token
    return Uses(trace, previous, following, kept_counts(gaps))


def windowed(
    uses: Uses, k: int, capacities: Sequence[int], bypass_rows: int, count_moves: CountMoves
) -> Reads:
    """Replay a window: token by token the same as `window_update` and `read_batches`.

    Args:
        uses: the trace, linked for windows of at least k tokens.
        k: tokens of the window, ≥ 1.
        capacities: rows of each layer, ≥ 0; neurons beyond them bypass (decision 8).
        bypass_rows: rows of the bypass buffer, ≥ 1 (DEC-10).
        count_moves: counts the rows that the placement moves in memory.

    Returns:
        What is read and kept.

    Raises:
        DomainError: k, a capacity or `bypass_rows` is impossible.

    Paper: §3.1.2.
    """
    trace = uses.trace
    layers, tokens = trace.layers, trace.tokens
    if k < 1 or uses.longest < min(k, tokens) or bypass_rows < 1:
        raise DomainError(
            f"a window needs k from 1 to {uses.longest}, which its uses were linked for, and at least one "
            f"bypass row, not k = {k} and {bypass_rows} rows"
        )
    if len(capacities) != layers or min(capacities) < 0:
        raise DomainError(f"a window needs rows ≥ 0 for each of {layers} layers, not {list(capacities)}")
    reach = (uses.unions[:, :, :k] <= np.array(capacities)[:, None]).sum(axis=2)
    steps = _steps_without_bypass(uses, reach)
    for layer in np.flatnonzero((reach == 0).any(axis=0)).tolist():
        _step_through(uses, layer, k, capacities[layer], steps)

    loads = np.flatnonzero(steps.load)
    loaded, (evict_ids, evicted) = _per_batch(trace, loads), _evictions(trace, steps)
    changes = Changes(trace.units, trace.ids[loads], _starts(loaded), evict_ids, _starts(evicted))
    shape = tokens, layers
    read_ids, starts, token_of, layer_of = _batches(trace, steps, loads, bypass_rows)
    return Reads(
        read_ids,
        starts,
        token_of,
        layer_of,
        resident=np.cumsum((loaded - evicted).reshape(shape), axis=0),
        loaded=loaded.reshape(shape),
        moved=count_moves(changes),
    )


def unwindowed(trace: ActivationTrace) -> Reads:
    """Replay a trace without keeping anything: every predicted neuron is read, in a batch for each layer.

    Args:
        trace: which units each token activates.

    Returns:
        What is read and kept (decision 20: no row moves).
    """
    nothing = np.zeros((trace.tokens, trace.layers), np.int64)
    batch = np.arange(trace.tokens * trace.layers)
    token, layer = np.divmod(batch, trace.layers)
    return Reads(trace.ids, trace.starts, token, layer, nothing, nothing, nothing)


def _steps_without_bypass(uses: Uses, reach: Counts) -> _Steps:
    """The steps of layers in which every P_t fits; the window before t has the last reach[t − 1] tokens."""
    trace, dtype = uses.trace, uses.previous.dtype
    tokens, layers = trace.tokens, trace.layers
    counts = np.diff(trace.starts)
    oldest = np.maximum(np.arange(tokens)[:, None] - reach + 1, 0)  # the oldest token in the window after t
    before = np.vstack([np.zeros((1, layers), np.int64), oldest[:-1]])
    leave = np.stack([column.searchsorted(np.arange(tokens), side="right") for column in oldest.T], axis=1)
    load = uses.previous < before.astype(dtype).reshape(-1).repeat(counts)
    evict = uses.next > leave.astype(dtype).reshape(-1).repeat(counts)
    return _Steps(load, np.zeros(len(load), bool), evict, leave.reshape(-1))


def _step_through(uses: Uses, layer: int, k: int, capacity: int, steps: _Steps) -> None:
    """The steps of a layer in which some P_t does not fit, so that what is kept depends on what was kept."""
    trace = uses.trace
    last = np.full(trace.units[layer], -1, np.int64)  # the last use of each resident unit
    kept_at = [np.zeros(0, np.int64)] * trace.tokens

    def still(token: int) -> Counts:
        """The uses of a token whose units are still in memory and were not used since."""
        at = kept_at[token]
        return np.compress(last[trace.ids[at]] == at, at)

    oldest = 0
    for token in range(trace.tokens):
        batch = token * trace.layers + layer
        at = np.arange(trace.starts[batch], trace.starts[batch + 1])
        ids = trace.ids[at]
        was_resident = last[ids] >= 0
        kept = np.sort(np.argsort(~was_resident, kind="stable")[:capacity])
        steps.load[at] = False
        steps.load[at[kept]] = ~was_resident[kept]
        steps.bypass[at] = True
        steps.bypass[at[kept]] = False
        steps.evict[at] = False
        last[ids[kept]] = at[kept]
        kept_at[token] = at[kept]

        rows, start = len(ids), token
        while start > max(token - k + 1, oldest) and rows + len(still(start - 1)) <= capacity:
            start -= 1
            rows += len(still(start))
        for left in range(oldest, start):
            gone = still(left)
            steps.evict[gone] = True
            steps.leave[left * trace.layers + layer] = token
            last[trace.ids[gone]] = -1
        oldest = start


def _per_batch(trace: ActivationTrace, at: Counts) -> Counts:
    """How many of these uses, ascending, each token and layer has."""
    return np.diff(np.searchsorted(at, trace.starts))


def _starts(counts: Counts) -> Counts:
    return np.concatenate([[0], np.cumsum(counts)])


def _evictions(trace: ActivationTrace, steps: _Steps) -> tuple[npt.NDArray[np.int32], Counts]:
    """The units that each token and layer evicts, those of the earliest use first; and how many they are."""
    at = np.flatnonzero(steps.evict)
    counts = _per_batch(trace, at)
    used = np.flatnonzero(counts)  # the tokens and layers whose units leave later
    batch = steps.leave[used] * trace.layers + used % trace.layers
    evicted = np.zeros(trace.tokens * trace.layers, np.int64)
    np.add.at(evicted, batch, counts[used])
    ids, edges = trace.ids[at], _starts(counts).tolist()
    in_order = used[np.argsort(batch, kind="stable")].tolist()
    return np.concatenate([ids[:0], *(ids[edges[each] : edges[each + 1]] for each in in_order)]), evicted


def _batches(
    trace: ActivationTrace, steps: _Steps, loads: Counts, bypass_rows: int
) -> tuple[npt.NDArray[np.int32], Counts, Counts, Counts]:
    """The ids, starts, token and layer of batches; what is loaded comes with the first bypass buffer."""
    bypass = np.flatnonzero(steps.bypass)
    read = np.flatnonzero(steps.load | steps.bypass) if len(bypass) else loads
    reads, bypassing = _per_batch(trace, read), _per_batch(trace, bypass)
    parts = np.maximum(-(-bypassing // bypass_rows), 1)
    token, layer = np.divmod(np.repeat(np.arange(len(parts)), parts), trace.layers)
    if parts.max() > 1:
        rank = np.arange(len(bypass)) - np.repeat(_starts(bypassing)[:-1], bypassing)
        part = np.zeros(len(read), np.int64)
        part[np.flatnonzero(steps.bypass[read])] = rank // bypass_rows
        part += np.repeat(_starts(parts)[:-1], reads)
        read = read[np.argsort(part, kind="stable")]
        reads = np.bincount(part, minlength=len(token))
    return trace.ids[read], _starts(reads), token, layer
