"""What a trace says of sparsity: density, aggregated use, windows, and which units fire together.

Everything about windows follows from the gaps between the uses of a unit (paper §3.1.2), found in one pass;
co-activation is the paper's Fig. 12 and appendix D.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import ActivationTrace, Counts, TokenNumbers, token_uses
from flashref.types import DomainError, Ids, ascending_ids

Shares = npt.NDArray[np.float64]
ROWS = 512  # units whose companions are counted at a time: with 16,384 others, 32 MiB


class UseStatistics(NamedTuple):
    """Use and windows of a trace, layer by layer; all but `density` have a column for each k = 1, 2, …

    density: (layers,), mean |P_t| / n. s_agg: mean |P_(t-k+1) ∪ … ∪ P_t| / n over the tokens that have k − 1
    before them; new: mean |P_t \\ (P_(t-k) ∪ … ∪ P_(t-1))| / n over those that have k. mean_resident,
    largest_resident: |C_t| in units over all tokens, the window empty at first, as stored with predictors.
    """

    density: Shares
    s_agg: Shares
    new: Shares
    mean_resident: Shares
    largest_resident: Counts


def use_statistics(trace: ActivationTrace, windows: int) -> UseStatistics:
    """Use and windows of a trace; its uncounted tokens take part (paper §3.1.2, Fig. 4a).

    Args:
        trace: of more than `windows` tokens.
        windows: the longest window in tokens, ≥ 1.

    Returns:
        Statistics for windows of 1 … `windows` tokens.

    Raises:
        DomainError: the trace is too short for such windows.
    """
    if not 1 <= windows < trace.tokens:
        raise DomainError(
            f"windows of up to {windows} tokens cannot be measured on a trace of {trace.tokens}; "
            f"ask for 1 to {trace.tokens - 1}"
        )
    gaps = gap_counts(trace, windows)
    kept = kept_counts(gaps)
    loaded = _longer(gaps)
    units = np.array(trace.units)
    ks = range(1, windows + 1)
    # [k − 1:] has the tokens with a full window, [k:] those before which one lies.
    s_agg = [kept[k - 1 :, :, k - 1].mean(0) / units for k in ks]
    new = [loaded[k:, :, k - 1].mean(0) / units for k in ks]
    density = gaps.sum(2).mean(0) / units
    return UseStatistics(density, np.stack(s_agg, 1), np.stack(new, 1), kept.mean(0), kept.max(0))


def gap_counts(trace: ActivationTrace, windows: int) -> Counts:
    """How many units of P_t were last used g tokens before t: (tokens, layers, windows + 1).

    Index g − 1 for g = 1 … windows; the last index: longer ago, or never.
    """
    return previous_uses(trace, windows)[1]


def previous_uses(trace: ActivationTrace, windows: int) -> tuple[TokenNumbers, Counts]:
    """The token of the use before of each use's unit, (m,), negative if there is none; and gap_counts."""
    tokens, layers = trace.tokens, trace.layers
    smallest = np.min_scalar_type(-tokens - windows - 1)  # less memory to go through later
    previous = np.empty(len(trace.ids), smallest)
    last = np.full(sum(trace.units), -windows - 1, smallest)  # long enough ago for token 0
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
    """|C_t| of an unbounded matrix for k = 1, 2, …: (tokens, layers, windows), from `gap_counts`."""
    tokens, _, columns = gaps.shape
    change = _longer(gaps)  # what token t adds to C_(t-1)
    unused = gaps.sum(2)  # of P_t, in the k tokens after t
    for k in range(1, min(columns, tokens)):
        unused[: tokens - k] -= gaps[k:, :, k - 1]
        change[k:, :, k - 1] -= unused[: tokens - k]  # token t drops what was last used at t − k
    return np.cumsum(change, 0)


def coactivation(trace: ActivationTrace, layer: int, ids: Ids) -> Counts:
    """In how many tokens units are active together.

    Args:
        trace: which units each token activates.
        layer: whose units.
        ids: (m,) strictly ascending.

    Returns:
        (m, n): for each of these units and each of the layer's n; a unit with itself: how often it is active.

    Raises:
        IdsError: the ids are not strictly ascending ids of the layer.
    """
    return _together(_mask(trace, layer), ascending_ids(ids, trace.units[layer])).astype(np.int64)


def coactivation_curve(trace: ActivationTrace, layer: int, unit: int) -> Shares:
    """How often the units of a layer are active together with one of them (the paper's Fig. 12a).

    Args:
        trace: which units each token activates.
        layer: whose units.
        unit: the one.

    Returns:
        (n,) descending: of the times the unit is active, the share in which each unit of the layer is; rank 1
        is the unit itself.

    Raises:
        DomainError: the unit is never active.
    """
    together = coactivation(trace, layer, np.array([unit]))[0]
    if together[unit] == 0:
        raise DomainError(f"unit {unit} of layer {layer} is never active, so nothing is active with it")
    return np.asarray(np.sort(together)[::-1] / together[unit])


class Friends(NamedTuple):
    """The closest friends of every unit of a layer, the closest first, (n, count) both.

    ids: int64, no unit its own friend, the lower id first where two are as close; share: of the times the
    unit is active, those in which the friend is too; 0 for a unit that is never active.
    """

    ids: Counts
    share: Shares


def closest_friends(trace: ActivationTrace, layer: int, count: int = 1) -> Friends:
    """The units that are most often active together with each unit of a layer (paper appendix D).

    Args:
        trace: which units each token activates.
        layer: whose units.
        count: friends of each unit, from 1 to one less than the layer has units.

    Raises:
        DomainError: there are not so many others.
    """
    n = trace.units[layer]
    if not 1 <= count < n:
        raise DomainError(f"a unit of layer {layer} has {n - 1} others, so ask for 1 to {n - 1} friends")
    mask = _mask(trace, layer)
    uses = mask.sum(0)
    ids, share = np.empty((n, count), np.int64), np.empty((n, count))
    for rows in _row_blocks(n):
        together = _together(mask, rows)
        every = np.arange(len(rows))
        together[every, rows] = -1
        for rank in range(count):
            ids[rows, rank] = np.argmax(together, axis=1)  # the lowest id of those that are as close
            share[rows, rank] = together[every, ids[rows, rank]] / np.maximum(uses[rows], 1)
            together[every, ids[rows, rank]] = -1
    return Friends(ids, share)


def _longer(gaps: Counts) -> Counts:
    """What is read under a window of k: the units of P_t last used more than k tokens ago, for each k."""
    return np.asarray(np.cumsum(gaps[:, :, ::-1], axis=2)[:, :, -2::-1])


def _mask(trace: ActivationTrace, layer: int) -> npt.NDArray[np.bool_]:
    """Which units of a layer are active: (tokens, n)."""
    mask = np.zeros((trace.tokens, trace.units[layer]), bool)
    for token in range(trace.tokens):
        mask[token, trace.active(token, layer)] = True
    return mask


def _together(mask: npt.NDArray[np.bool_], rows: Ids) -> npt.NDArray[np.float32]:
    """Counts as a product of matrices: float32, in which whole numbers up to 2^24 tokens are exact."""
    active = mask.astype(np.float32)
    return np.asarray(active[:, rows].T @ active)


def _row_blocks(n: int) -> Iterator[Ids]:
    for first in range(0, n, ROWS):
        yield np.arange(first, min(first + ROWS, n))
