"""What the blocks of several families are built of.

The functions take arrays of NumPy, or of JAX: they use what both have, and the arrays' own namespace. Any
leading axes: none for one token, (tokens,) for a text.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flashref.types import Array


class Linear(NamedTuple):
    """A linear map: weight (outputs, inputs), bias (outputs,) or None."""

    weight: Array
    bias: Array | None


class Norm(NamedTuple):
    """A norm's scale and shift, (d,) each; None where the model has none."""

    scale: Array | None
    shift: Array | None


class Heads(NamedTuple):
    """What attention works on: query (…, heads, size), key and value (…, key heads, size)."""

    query: Array
    key: Array
    value: Array


Bias = Callable[[int], Array]  # how many keys, to what their scores get more (heads, keys)


class Position(NamedTuple):
    """Where a block's tokens stand, and what surrounds its arithmetic.

    positions: () or (tokens,), from 0. attend: causal attention of these tokens to themselves and to every
    earlier one, with a bias of the scores or None; gives (…, heads · size). feed_forward: the FFN, from the
    very vector that the up projection receives (decision 5).
    """

    positions: Array
    attend: Callable[[Heads, Bias | None], Array]
    feed_forward: Callable[[Array], Array]


class Rotary(NamedTuple):
    """Rotary positions: radians a token of each pair of values, as float32 has them; scale of sine, cosine.

    The first 2 · len(frequencies) values of a head are turned, value i together with value
    i + len(frequencies); the others stay.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0


def apply(linear: Linear, x: Array) -> Array:
    """The linear map of x: (…, inputs) to (…, outputs)."""
    y: Array = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def layer_norm(x: Array, norm: Norm, epsilon: float) -> Array:
    """Layer norm over the last axis, with the biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    y: Array = centred / ((centred * centred).mean(-1, keepdims=True) + epsilon) ** 0.5
    if norm.scale is not None:
        y = y * norm.scale
    return y if norm.shift is None else y + norm.shift


def rms_norm(x: Array, norm: Norm, epsilon: float) -> Array:
    """Division by the root of the mean square over the last axis."""
    y: Array = x / ((x * x).mean(-1, keepdims=True) + epsilon) ** 0.5
    return y if norm.scale is None else y * norm.scale


def split_heads(x: Array, heads: int) -> Array:
    """(…, heads · size) to (…, heads, size)."""
    return x.reshape(*x.shape[:-1], heads, -1)


def split_fused(x: Array, key_heads: int, size: int) -> Heads:
    """(…, values) to heads: for each key head its group's queries, one key and one value after the other."""
    groups = x.reshape(*x.shape[:-1], key_heads, -1, size)
    query = groups[..., :-2, :].reshape(*x.shape[:-1], -1, size)
    return Heads(query, groups[..., -2, :], groups[..., -1, :])


def rotate(x: Array, positions: Array, rotary: Rotary) -> Array:
    """Queries or keys (…, heads, size), turned by their positions (…); angles in float32, as transformers."""
    xp: Any = x.__array_namespace__()
    frequencies = xp.asarray(rotary.frequencies, dtype=xp.float32)
    angles = xp.asarray(positions, dtype=xp.float32)[..., None, None] * frequencies
    cosine, sine = (f(angles) * rotary.scale for f in (xp.cos, xp.sin))
    half = len(rotary.frequencies)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
    return xp.concatenate(turned, axis=-1)  # type: ignore[no-any-return]
