"""What a trace says about sparsity: density, aggregated use, windows, and which units are active together.

Everything about windows follows from the gaps between the uses of a unit (paper §3.1.2), which are found in
one pass. Co-activation is the subject of the paper's Fig. 12 and appendix D.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import ActivationTrace, Counts, TokenNumbers, token_uses
from flashref.types import DomainError, Ids, ascending_ids

Shares = npt.NDArray[np.float64]
CHUNK = 512  # units whose companions are counted at a time: with 16,384 others that takes 32 MiB


class UseStatistics(NamedTuple):
    """Use and windows of a trace, layer by layer; all but `density` have a column for each k = 1, 2, …

    density: (layers,) the mean of |P_t| / n.
    s_agg: (layers, windows) the mean of |P_(t-k+1) ∪ … ∪ P_t| / n over the tokens with k − 1 before them.
    new: (layers, windows) the mean of |P_t \\ (P_(t-k) ∪ … ∪ P_(t-1))| / n over the tokens with k before
        them.
    mean_resident, largest_resident: (layers, windows) |C_t| in units over all tokens, beginning with an empty
        window, as a model stores them with its predictors.
    """

    density: Shares
    s_agg: Shares
    new: Shares
    mean_resident: Shares
    largest_resident: Counts


def use_statistics(trace: ActivationTrace, windows: int) -> UseStatistics:
    """Compute the use and the windows of a trace, warm-up tokens included (paper §3.1.2, Fig. 4a).

    Args:
        trace: a trace of more than `windows` tokens.
        windows: the longest window in tokens, ≥ 1.

    Returns:
        The statistics for windows of 1 … `windows` tokens.

    Raises:
        DomainError: the trace is too short for such windows.
    """
    if not 1 <= windows < trace.tokens:
        raise DomainError(
            f"windows of up to {windows} tokens cannot be measured on a trace of {trace.tokens} tokens; "
            f"give 1 to {trace.tokens - 1}"
        )
    gaps = gap_counts(trace, windows)
    kept = kept_counts(gaps)
    loaded = _longer(gaps)
    units = np.array(trace.units)
    ks = range(1, windows + 1)
    # From token k − 1 on the window is full, and from token k on it was full before the token came.
    s_agg = [kept[k - 1 :, :, k - 1].mean(0) / units for k in ks]
    new = [loaded[k:, :, k - 1].mean(0) / units for k in ks]
    density = gaps.sum(2).mean(0) / units
    return UseStatistics(density, np.stack(s_agg, 1), np.stack(new, 1), kept.mean(0), kept.max(0))


def gap_counts(trace: ActivationTrace, windows: int) -> Counts:
    """Count for each gap g how many units of P_t were last used g tokens before t.

    Args:
        trace: which units each token activates.
        windows: the longest gap that is told apart, in tokens.

    Returns:
        (tokens, layers, windows + 1) int64: index g − 1 for g = 1 … windows; the last index counts the units
        that were last used longer ago, or never.
    """
    return previous_uses(trace, windows)[1]


def previous_uses(trace: ActivationTrace, windows: int) -> tuple[TokenNumbers, Counts]:
    """Find the previous use of each use's unit, and count the gaps.

    Args:
        trace: which units each token activates, in m uses.
        windows: the longest gap that is told apart, in tokens.

    Returns:
        (m,) the token of the previous use, negative if there is none; and the counts of `gap_counts`.
    """
    tokens, layers = trace.tokens, trace.layers
    smallest = np.min_scalar_type(-tokens - windows - 1)  # the smallest integers, for less memory
    previous = np.empty(len(trace.ids), smallest)
    last = np.full(sum(trace.units), -windows - 1, smallest)  # longer ago than any window reaches
    gaps = np.empty((tokens, layers, windows + 1), np.int64)
    for token in range(tokens):
        at, units, counts = token_uses(trace, token)
        before = previous[at] = last.take(units)
        last[units] = token
        cell = (np.arange(layers) * (windows + 1) + token - 1).repeat(counts)
        cell -= np.maximum(before, token - windows - 1)
        gaps[token] = np.bincount(cell, minlength=gaps[token].size).reshape(gaps[token].shape)
    return previous, gaps


def kept_counts(gaps: Counts) -> Counts:
    """Compute |C_t| for windows of 1, 2, … tokens, if there are rows enough.

    Args:
        gaps: the counts of `gap_counts`.

    Returns:
        (tokens, layers, windows) int64.
    """
    tokens, _, columns = gaps.shape
    change = _longer(gaps)  # what token t adds to C_(t-1)
    unused = gaps.sum(2)  # of P_t, in the k tokens after t
    for k in range(1, min(columns, tokens)):
        unused[: tokens - k] -= gaps[k:, :, k - 1]
        change[k:, :, k - 1] -= unused[: tokens - k]  # token t drops what was last used at t − k
    return np.cumsum(change, 0)


def coactivation(trace: ActivationTrace, layer: int, ids: Ids) -> Counts:
    """Count in how many tokens units are active together.

    Args:
        trace: which units each token activates.
        layer: a layer of n units.
        ids: units of the layer, (m,) strictly ascending.

    Returns:
        (m, n) int64, for each of these units and each unit of the layer; a unit with itself has the number of
        tokens in which it is active.

    Raises:
        IdsError: the ids are not strictly ascending ids of the layer.
    """
    return _together(_mask(trace, layer), ascending_ids(ids, trace.units[layer])).astype(np.int64)


def coactivation_curve(trace: ActivationTrace, layer: int, unit: int) -> Shares:
    """Compute how often the units of a layer are active together with one of them (the paper's Fig. 12a).

    Args:
        trace: which units each token activates.
        layer: a layer of n units.
        unit: the unit.

    Returns:
        (n,) descending: in what share of the tokens in which the unit is active each unit of the layer is
        active too; the first is the unit itself.

    Raises:
        DomainError: the unit is never active.
    """
    together = coactivation(trace, layer, np.array([unit]))[0]
    if together[unit] == 0:
        raise DomainError(f"unit {unit} of layer {layer} is never active, so nothing is active with it")
    return np.asarray(np.sort(together)[::-1] / together[unit])


class Friends(NamedTuple):
    """The closest friends of every unit of a layer, the closest first.

    ids: (n, count) int64; no unit is its own friend, and of two that are as close the lower id comes first.
    share: (n, count) in what share of the tokens in which the unit is active its friend is active too; 0 for
        a unit that is never active.
    """

    ids: Counts
    share: Shares


def closest_friends(trace: ActivationTrace, layer: int, count: int = 1) -> Friends:
    """Find the units that are most often active together with each unit of a layer (paper appendix D).

    Args:
        trace: which units each token activates.
        layer: a layer of n units.
        count: how many friends to find for each unit, from 1 to n − 1.

    Returns:
        The friends.

    Raises:
        DomainError: the layer does not have so many other units.
    """
    n = trace.units[layer]
    if not 1 <= count < n:
        raise DomainError(f"layer {layer} has {n} units, so each has 1 to {n - 1} friends, not {count}")
    mask = _mask(trace, layer)
    uses = mask.sum(0)
    ids, share = np.empty((n, count), np.int64), np.empty((n, count))
    for rows in _row_blocks(n):
        together = _together(mask, rows)
        every = np.arange(len(rows))
        together[every, rows] = -1
        for rank in range(count):
            ids[rows, rank] = np.argmax(together, axis=1)  # the lowest id of the closest ones
            share[rows, rank] = together[every, ids[rows, rank]] / np.maximum(uses[rows], 1)
            together[every, ids[rows, rank]] = -1
    return Friends(ids, share)


def _longer(gaps: Counts) -> Counts:
    """How many units of P_t were last used more than k tokens ago, for each k: those that a window reads."""
    return np.asarray(np.cumsum(gaps[:, :, ::-1], axis=2)[:, :, -2::-1])


def _mask(trace: ActivationTrace, layer: int) -> npt.NDArray[np.bool_]:
    """Whether each unit of a layer is active in each token, (tokens, n)."""
    mask = np.zeros((trace.tokens, trace.units[layer]), bool)
    for token in range(trace.tokens):
        mask[token, trace.active(token, layer)] = True
    return mask


def _together(mask: npt.NDArray[np.bool_], rows: Ids) -> npt.NDArray[np.float32]:
    """Count with a product of matrices, in float32, which is exact for up to 2^24 tokens."""
    active = mask.astype(np.float32)
    return np.asarray(active[:, rows].T @ active)


def _row_blocks(n: int) -> Iterator[Ids]:
    for first in range(0, n, CHUNK):
        yield np.arange(first, min(first + CHUNK, n))
