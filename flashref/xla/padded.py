"""Sets of ids in arrays of fixed length, and rows by id."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flashref.types import STORED_DTYPES, Array, IdsError, ShapeError

INT32_MAX = 2**31 - 1
Weights = Array | jax.Array


class Padded(NamedTuple):
    """At most m ids or rows: ids (m,) int32, of which the first size () int32 are meant."""

    ids: jax.Array
    size: jax.Array


def pad_ids(ids: npt.ArrayLike, m: int) -> Padded:
    """Make a caller's ids `Padded`, in NumPy; the function that takes them checks their range and order.

    Args:
        ids: (≤ m,) integers of any width.
        m: places.

    Raises:
        IdsError: the ids are no list of integers, or int32 or m places would cut them.
    """
    given = np.asarray(ids)
    if given.size == 0:
        given = given.astype(np.int32)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise IdsError(f"ids must be a list of integers, not {given.dtype} of shape {given.shape}")
    if len(given) > m:
        raise IdsError(f"{len(given)} ids do not fit {m} places")
    if np.any(given > INT32_MAX) or np.any(given < -INT32_MAX):
        raise IdsError(f"ids must fit int32, but they span {given.min()} … {given.max()}")
    padded = np.zeros(m, np.int32)
    padded[: len(given)] = given
    return Padded(padded, np.int32(len(given)))  # type: ignore[arg-type]


def ascending_ids(mask: jax.Array, m: int | None = None) -> Padded:
    """The ids of a mask (n,), then n, in m places, n if None. With more ids than places it is not valid."""
    ids = jnp.sort(jnp.where(mask, places(mask), len(mask)))
    if m is not None:
        ids = jnp.pad(ids[:m], (0, max(0, m - len(mask))), constant_values=len(mask))
    return Padded(ids, mask.sum(dtype=jnp.int32))


def descending_ids(mask: jax.Array) -> Padded:
    """List the ids of a mask (n,) from the highest to the lowest, in n places."""
    ids, size = ascending_ids(mask[::-1])
    return Padded(len(mask) - 1 - ids, size)


def valid_ids(padded: Padded, n: int | jax.Array) -> jax.Array:
    """Say whether ids are right (decision 24: nothing can be raised, so a flag comes back).

    Args:
        padded: the ids.
        n: neurons of the layer.

    Returns:
        () bool: the ids are strictly ascending in 0 … n − 1, and no more than there are places.

    Raises:
        IdsError: the ids are not int32.
    """
    ids = padded.ids
    return inside(padded, n) & jnp.all((ids[1:] > ids[:-1]) | ~live(padded)[1:])


def inside(padded: Padded, n: int | jax.Array) -> jax.Array:
    """Say whether there are at most as many ids as places, and each lies in 0 … n − 1, in any order."""
    ids, size = padded
    if ids.dtype != np.int32:
        raise IdsError(f"ids must be int32, not {ids.dtype}; pad_ids narrows them without losing any")
    return jnp.all((ids >= 0) & (ids < n) | ~live(padded)) & (size >= 0) & (size <= len(ids))


def live(padded: Padded) -> jax.Array:
    """Mask over the places: which hold an id of the set."""
    return places(padded.ids) < padded.size


def places(array: jax.Array) -> jax.Array:
    """0 … m − 1 for an array (m, …)."""
    return jnp.arange(len(array), dtype=jnp.int32)


def rows_of(padded: Padded, valid: jax.Array, n: int) -> jax.Array:
    """The ids, and n in place of padding: gathers fill it, scatters drop it. All n if not valid."""
    return jnp.where(live(padded) & valid, padded.ids, n)


def entry(array: jax.Array, index: jax.Array, beyond: int) -> jax.Array:
    """array[index] for index ≥ 0, and `beyond` behind its end; of an index below 0, nothing is promised."""
    return array.at[index].get(mode="fill", fill_value=beyond)


def take_rows(matrix: Weights, ids: Padded) -> tuple[jax.Array, jax.Array]:
    """Take rows out of a matrix, bit for bit.

    Args:
        matrix: (n, …) of a stored dtype.
        ids: of the rows.

    Returns:
        (m, …) of the same dtype, with zeros behind the set, or NaN everywhere if the ids are not valid; and
        whether they are valid.

    Raises:
        ShapeError: the matrix has another dtype.
    """
    _check_stored(matrix)
    valid = valid_ids(ids, len(matrix))
    if len(matrix) == 0:  # XLA gathers nothing from nothing
        rows = jnp.zeros((len(ids.ids), *matrix.shape[1:]), matrix.dtype)
    else:
        wanted = rows_of(ids, valid, len(matrix))
        rows = jnp.asarray(matrix).at[wanted].get(mode="fill", fill_value=0)
    nan = jnp.uint16(0x7FC0) if matrix.dtype == np.uint16 else jnp.asarray(jnp.nan, matrix.dtype)
    return jnp.where(valid, rows, nan), valid


def widen(weights: Weights) -> jax.Array:
    """Widen stored weights to float32: exactly, but for BF16 subnormals on a device that flushes them.

    Raises:
        ShapeError: the weights have no stored dtype.
    """
    _check_stored(weights)
    if weights.dtype == np.uint16:
        return jax.lax.bitcast_convert_type(weights.astype(np.uint32) << np.uint32(16), jnp.float32)
    return jnp.asarray(weights).astype(jnp.float32)


def _check_stored(weights: Weights) -> None:
    if weights.dtype not in STORED_DTYPES.values():
        raise ShapeError(f"weights must be F32, F16 or BF16 (as uint16 bits), not {weights.dtype}")
