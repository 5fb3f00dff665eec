"""The DRAM matrix without gaps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flashref.types import NEVER, DomainError, ShapeError
from flashref.xla.padded import (
    INT32_MAX,
    Padded,
    ascending_ids,
    descending_ids,
    entry,
    inside,
    live,
    places,
    rows_of,
    valid_ids,
)
from flashref.xla.window import Delta


class Slots(NamedTuple):
    """flashref.slots.Slots in JAX: ids (capacity,) int32, used () int32 (paper §3.3)."""

    ids: jax.Array
    used: jax.Array


class Moves(NamedTuple):
    """flashref.slots.Moves in JAX: row source[j] → target[j], then new row j → put[j]; sources descend."""

    source: Padded
    target: Padded
    put: Padded


def empty_slots(capacity: int) -> Slots:
    """Make the slots of a matrix of `capacity` rows, none in use (paper §3.3).

    Raises:
        DomainError: the capacity is negative or beyond int32.
    """
    if not 0 <= capacity <= INT32_MAX:
        raise DomainError(f"a matrix has at least 0 rows, and int32 counts them, not {capacity}")
    return Slots(jnp.full(capacity, NEVER, jnp.int32), jnp.int32(0))


def swap_with_last(slots: Slots, delta: Delta) -> tuple[Slots, Moves, jax.Array]:
    """Place rows as the paper does (§3.3, Fig. 6): the last rows fill the holes, new rows are appended.

    Args:
        slots: before the token.
        delta: what the token loads and evicts.

    Returns:
        The slots after the token, the moves for `apply_moves`, and whether the delta is valid: its ids
        ascend, evicted neurons are in slots and loaded ones are not, and the rows suffice. If not, the slots
        are unchanged and nothing moves.
    """
    survives, valid = _survives(slots, delta)
    count = slots.used - delta.evict.size
    row = places(slots.ids)
    put = Padded(count + places(delta.load.ids), delta.load.size)
    target = ascending_ids(~survives & (row < count))
    return _placed(slots, delta, Moves(descending_ids(survives & (row >= count)), target, put), valid)


def fill_holes(slots: Slots, delta: Delta) -> tuple[Slots, Moves, jax.Array]:
    """Place new rows into the lowest holes, and fill the other holes with the last rows.

    Args, Returns: as for `swap_with_last`.
    """
    survives, valid = _survives(slots, delta)
    count = slots.used - delta.evict.size + delta.load.size
    row = places(slots.ids)
    holes = ascending_ids(~survives, len(delta.load.ids) + 1)  # rows never used come last
    first_left = entry(holes.ids, delta.load.size, len(row))
    target = ascending_ids(~survives & (row >= first_left) & (row < count))
    put = Padded(holes.ids[:-1], delta.load.size)
    return _placed(slots, delta, Moves(descending_ids(survives & (row >= count)), target, put), valid)


def apply_moves(matrix: jax.Array, moves: Moves, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Move rows of a matrix: row source[j] → target[j], then new row j → put[j].

    Args:
        matrix: (capacity, …).
        moves: of a placement.
        rows: (m, …) of the same dtype, one for each place of `put`.

    Returns:
        The matrix after the moves; and whether they are valid: no row lies outside of the matrix. If not, the
        matrix is unchanged.

    Raises:
        ShapeError: the new rows have another shape or dtype.
    """
    if rows.shape != (len(moves.put.ids), *matrix.shape[1:]) or rows.dtype != matrix.dtype:
        raise ShapeError(
            f"new rows must be {matrix.dtype} of shape {(len(moves.put.ids), *matrix.shape[1:])}, "
            f"not {rows.dtype} of shape {rows.shape}"
        )
    capacity = len(matrix)
    valid = moves.source.size == moves.target.size
    for part in moves:
        valid &= inside(part, capacity)
    if capacity == 0:  # nothing to gather from
        return matrix, valid
    moved = matrix.at[rows_of(moves.source, valid, capacity)].get(mode="fill", fill_value=0)
    after = matrix.at[rows_of(moves.target, valid, capacity)].set(moved, mode="drop")
    return after.at[rows_of(moves.put, valid, capacity)].set(rows, mode="drop"), valid


def _survives(slots: Slots, delta: Delta) -> tuple[jax.Array, jax.Array]:
    """Say which rows are in use and not evicted, and whether the delta fits these slots."""
    used = places(slots.ids) < slots.used
    leaves = used & _is_among(slots.ids, delta.evict)
    valid = valid_ids(delta.load, INT32_MAX) & valid_ids(delta.evict, INT32_MAX)
    valid &= leaves.sum(dtype=jnp.int32) == delta.evict.size
    valid &= ~jnp.any(used & _is_among(slots.ids, delta.load))
    valid &= slots.used - delta.evict.size + delta.load.size <= len(slots.ids)
    return used & ~leaves, valid


def _placed(slots: Slots, delta: Delta, moves: Moves, valid: jax.Array) -> tuple[Slots, Moves, jax.Array]:
    moves = Moves(*(Padded(part.ids, jnp.where(valid, part.size, 0)) for part in moves))
    ids, _ = apply_moves(slots.ids, moves, delta.load.ids)  # the table moves as the matrix does
    used = slots.used - delta.evict.size + delta.load.size
    return Slots(ids, jnp.where(valid, used, slots.used)), moves, valid


def _is_among(values: jax.Array, ascending: Padded) -> jax.Array:
    """Which values are in the set, by bisection; its padding is above every id."""
    m = len(ascending.ids)
    if m == 0:
        return jnp.zeros(values.shape, bool)
    ids = jnp.where(live(ascending), ascending.ids, INT32_MAX)
    place = jnp.minimum(jnp.searchsorted(ids, values), m - 1)
    return ids[place] == values
