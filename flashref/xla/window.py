"""The sliding window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flashref.types import NEVER, DomainError
from flashref.xla.padded import INT32_MAX, Padded, ascending_ids, entry, places, rows_of, valid_ids


class Window(NamedTuple):
    """flashref.window.Window in JAX: k, capacity, token () int32; last (n,) int32 (paper §3.1.2)."""

    k: jax.Array
    capacity: jax.Array
    token: jax.Array
    last: jax.Array


class Delta(NamedTuple):
    """flashref.window.Delta in JAX: what one token loads, evicts and bypasses."""

    load: Padded
    evict: Padded
    bypass: Padded


def empty_window(n: int, k: int, capacity: int) -> Window:
    """Make the window before the first token.

    Args:
        n: neurons of the layer, a Python int like the others.
        k: tokens in the window.
        capacity: rows of the layer's DRAM matrix.

    Raises:
        DomainError: n or k is below 1, the capacity is negative, or one of them is beyond int32.
    """
    if not (1 <= n <= INT32_MAX and 1 <= k <= INT32_MAX and 0 <= capacity <= INT32_MAX):
        raise DomainError(f"a window needs n, k ≥ 1 and capacity ≥ 0 in int32, not {n}, {k}, {capacity}")
    return Window(jnp.int32(k), jnp.int32(capacity), jnp.int32(0), jnp.full(n, NEVER, jnp.int32))


def resident_neurons(window: Window) -> Padded:
    """List the ids in DRAM, C_t: every neuron whose stamp is not NEVER (paper §3.3)."""
    return ascending_ids(window.last != NEVER)


def window_update(window: Window, active: Padded) -> tuple[Window, Delta, jax.Array]:
    """Take one token into the window (paper §3.1.2, Fig. 4b).

    The window includes its own token (decision 1), evictions come before loads (decision 2), and what does
    not fit passes by (decision 8).

    Args:
        window: before the token.
        active: the ids that the token predicts.

    Returns:
        The window after the token, what to load, evict and bypass, and whether the ids are valid. If not, the
        window is unchanged and the delta empty.
    """
    k, capacity, token, stamps = window
    n = len(stamps)
    valid = valid_ids(active, n)
    predicted = jnp.zeros(n, bool).at[rows_of(active, valid, n)].set(True, mode="drop")
    was_resident = stamps != NEVER

    # So many others have room beside the predicted; the next newest of them leaves, with all as old as it.
    room = capacity - predicted.sum(dtype=jnp.int32)
    others = jnp.sort(jnp.where(predicted, NEVER, stamps), descending=True)
    too_old = jnp.where(room < 0, token - 1, entry(others, room, NEVER))
    start = jnp.maximum(jnp.maximum(token - k, too_old) + 1, 0)

    # Rows that are there already stay first, then new ones in ascending id.
    newness = jnp.where(predicted, jnp.where(was_resident, 0, n) + places(stamps), 2 * n)
    kept = predicted & (newness < entry(jnp.sort(newness), capacity, 2 * n))

    stays = kept | (stamps >= start)
    after = Window(k, capacity, token + 1, jnp.where(stays, jnp.where(kept, token, stamps), NEVER))
    changes = stays & ~was_resident, was_resident & ~stays, predicted & ~kept
    delta = Delta(*(ascending_ids(change & valid) for change in changes))
    return _unless(valid, after, window), delta, valid


def _unless(valid: jax.Array, after: Window, before: Window) -> Window:
    return Window(*(jnp.where(valid, new, old) for new, old in zip(after, before, strict=True)))
