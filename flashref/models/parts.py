"""The parts of which the blocks of several families are built.

The functions take arrays of NumPy or of JAX, and use what both have. Arrays may have any leading axes: none
for one token, (tokens,) for a text.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flashref.types import Array


class Linear(NamedTuple):
    """A linear map: weight (outputs, inputs), bias (outputs,) or None."""

    weight: Array
    bias: Array | None


class Norm(NamedTuple):
    """A norm: scale and shift, (d,) each, or None."""

    scale: Array | None
    shift: Array | None


class Heads(NamedTuple):
    """The heads of attention: query (…, heads, size), key and value (…, key heads, size)."""

    query: Array
    key: Array
    value: Array


Bias = Callable[[int], Array]  # from the number of keys to what is added to their scores, (heads, keys)


class Position(NamedTuple):
    """Where the tokens of a block stand, and what a block needs from outside.

    Attributes:
        positions: () or (tokens,), from 0.
        attend: lets these tokens attend to themselves and to every earlier one: from heads, and a bias of the
            scores or None, to (…, heads · size).
        feed_forward: the FFN, from what the up projection receives (decision 5: the predictor sees it, too).
    """

    positions: Array
    attend: Callable[[Heads, Bias | None], Array]
    feed_forward: Callable[[Array], Array]


class Rotary(NamedTuple):
    """Rotary positions.

    Attributes:
        frequencies: the radians by which each token turns a pair of values, rounded to float32. Value i of a
            head is turned together with value i + len(frequencies); values beyond these pairs stay.
        scale: the factor of sine and cosine.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0


def apply(linear: Linear, x: Array) -> Array:
    """Apply a linear map: (…, inputs) to (…, outputs)."""
    y: Array = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def layer_norm(x: Array, norm: Norm, epsilon: float) -> Array:
    """Compute the layer norm over the last axis, with the biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    y: Array = centred / ((centred * centred).mean(-1, keepdims=True) + epsilon) ** 0.5
    if norm.scale is not None:
        y = y * norm.scale
    return y if norm.shift is None else y + norm.shift


def rms_norm(x: Array, norm: Norm, epsilon: float) -> Array:
    """Divide x by the root of its mean square over the last axis, and scale it."""
    y: Array = x / ((x * x).mean(-1, keepdims=True) + epsilon) ** 0.5
    return y if norm.scale is None else y * norm.scale


def split_heads(x: Array, heads: int) -> Array:
    """Split (…, heads · size) into (…, heads, size)."""
    return x.reshape(*x.shape[:-1], heads, -1)


def split_fused(x: Array, key_heads: int, size: int) -> Heads:
    """Split (…, values) into heads: for each key head come the queries of its group, a key and a value."""
    groups = x.reshape(*x.shape[:-1], key_heads, -1, size)
    query = groups[..., :-2, :].reshape(*x.shape[:-1], -1, size)
    return Heads(query, groups[..., -2, :], groups[..., -1, :])


def rotate(x: Array, positions: Array, rotary: Rotary) -> Array:
    """Turn queries or keys, (…, heads, size), by their positions, (…); angles in float32, as transformers."""
    xp: Any = x.__array_namespace__()
    frequencies = xp.asarray(rotary.frequencies, dtype=xp.float32)
    angles = xp.asarray(positions, dtype=xp.float32)[..., None, None] * frequencies
    cosine, sine = (f(angles) * rotary.scale for f in (xp.cos, xp.sin))
    half = len(rotary.frequencies)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
    return xp.concatenate(turned, axis=-1)  # type: ignore[no-any-return]
