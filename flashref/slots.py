"""The DRAM matrix without gaps: which neuron lies in which slot. Chapter: specs/70-slots.md.

Satisfies: SLT-1 to SLT-9.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.types import NEVER, Array, DomainError, Ids, IdsError, ShapeError, ascending_ids
from flashref.window import Delta


class Slots(NamedTuple):
    """Which neuron lies in which slot of the DRAM matrix (paper §3.3, `pointer` and `num_used`).

    ids: (capacity,) int64. Slots 0 … used − 1 are in use; behind them ids are stale, or NEVER.
    """

    ids: npt.NDArray[np.int64]
    used: int


class Moves(NamedTuple):
    """What a placement does to the DRAM matrix: slot source[j] → target[j]; then load's id j → put[j]."""

    source: Ids
    target: Ids
    put: Ids


def empty_slots(capacity: int) -> Slots:
    """The `capacity` slots of a matrix, of which none is in use (paper §3.3).

    Raises:
        DomainError: the capacity is negative.

    Requirement: SLT-1.
    """
    if capacity < 0:
        raise DomainError(f"a matrix has at least 0 rows, not {capacity}")
    return Slots(np.full(capacity, NEVER, np.int64), 0)


def swap_with_last(slots: Slots, delta: Delta) -> tuple[Slots, Moves]:
    """The paper's placement: the last neurons fill the holes, then new ones are appended (§3.3, Fig. 6).

    The holes below slot used − |evict|, in ascending order, are each filled from the highest surviving slot.
    Then the neurons of load are appended in ascending id.

    Args:
        slots: before the token; they are not changed.
        delta: what the token changes, as `window_update` gives it.

    Returns:
        The slots after the token, and the moves that make the matrix agree with them.

    Raises:
        IdsError: the delta does not belong to these slots.
        DomainError: the neurons do not fit the matrix.

    Requirements: SLT-2 to SLT-5.
    """
    survives = _survives(slots, delta)
    count = int(survives.sum())  # slots that survive
    target = np.flatnonzero(~survives[:count])
    source = (count + np.flatnonzero(survives[count:]))[::-1]
    put = np.arange(count, count + len(delta.load))
    return _placed(slots, delta, Moves(source, target, put), count + len(delta.load))


def fill_holes(slots: Slots, delta: Delta) -> tuple[Slots, Moves]:
    """The other placement: new neurons go straight into the lowest holes, so that fewer rows move.

    Further new neurons are appended. Holes that are left among the slots in use afterwards, in ascending
    order, are each filled from the highest surviving slot.

    Args, Returns, Raises: as for `swap_with_last`.

    Decision 11: the paper does not say why it moves rows first. Requirements: SLT-2, SLT-3, SLT-6, SLT-7.
    """
    survives = _survives(slots, delta)
    count = int(survives.sum()) + len(delta.load)  # slots in use afterwards
    holes = np.concatenate([np.flatnonzero(~survives), np.arange(slots.used, max(count, slots.used))])
    put, left = np.split(holes, [len(delta.load)])
    target = left[left < count]
    source = (count + np.flatnonzero(survives[count:]))[::-1]
    return _placed(slots, delta, Moves(source, target, put), count)


def apply_moves(matrix: Array, moves: Moves, rows: Array) -> Array:
    """The matrix after its moves: first slot source[j] → target[j], then rows[j] → put[j].

    Args:
        matrix: (capacity, …); it is not changed.
        moves: as a placement gives them.
        rows: (m, …) of the matrix's dtype, those of the neurons of load in ascending id.

    Returns:
        A new matrix.

    Raises:
        ShapeError: the number, shape or dtype of the rows is another.

    Requirements: SLT-8, SLT-9.
    """
    if rows.shape != (len(moves.put), *matrix.shape[1:]) or rows.dtype != matrix.dtype:
        raise ShapeError(
            f"new rows must be {matrix.dtype} of shape {(len(moves.put), *matrix.shape[1:])}, "
            f"not {rows.dtype} of shape {rows.shape}"
        )
    after = matrix.copy()
    after[moves.target] = matrix[moves.source]
    after[moves.put] = rows
    return after


def _survives(slots: Slots, delta: Delta) -> npt.NDArray[np.bool_]:
    """A mask over the used slots: which of them stay. Raises if the delta does not fit these slots."""
    for ids in (delta.load, delta.evict):
        ascending_ids(ids, np.iinfo(np.int64).max)
    used = slots.ids[: slots.used]
    leaves = np.isin(used, delta.evict, assume_unique=True)
    if leaves.sum() != len(delta.evict):
        raise IdsError("evict names a neuron that is in no slot; the delta belongs to another state")
    if np.isin(delta.load, used, assume_unique=True).any():
        raise IdsError("load names a neuron that is in a slot already; the delta belongs to another state")
    needed = slots.used - len(delta.evict) + len(delta.load)
    if needed > len(slots.ids):
        raise DomainError(f"{needed} rows do not fit a matrix of {len(slots.ids)}; the window bounds them")
    return ~leaves


def _placed(slots: Slots, delta: Delta, moves: Moves, used: int) -> tuple[Slots, Moves]:
    ids: Ids = slots.ids.copy()  # what lies behind the used slots stays as it was (Fig. 6)
    ids[moves.target] = slots.ids[moves.source]
    ids[moves.put] = delta.load
    return Slots(ids, used), moves
