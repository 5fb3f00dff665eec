"""The network and its predictor."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashref.types import FFN, Array, DomainError, Predictor, ShapeError
from flashref.xla.activations import ACTIVATIONS
from flashref.xla.padded import Padded, Weights, ascending_ids, take_rows, valid_ids, widen

# An activation changes the program, not its data; every other field is a leaf.
jax.tree_util.register_pytree_node(
    FFN, lambda ffn: (ffn[1:], ffn.activation), lambda name, rest: FFN(name, *rest)
)


def dense_ffn(x: jax.Array, ffn: FFN) -> jax.Array:
    """The FFN over all its neurons: (d,) float32 → (d,) float32 (paper §3.1, Fig. 3b).

    Raises ShapeError, DomainError; a τ that is negative or not finite gives NaN.
    """
    _check(x, ffn)
    tau = jnp.asarray(ffn.tau, jnp.float32)
    up = _affine(ffn.up, x, ffn.up_bias)
    if ffn.gate is None:
        h = ACTIVATIONS[ffn.activation](up, tau)
    else:
        h = ACTIVATIONS[ffn.activation](_affine(ffn.gate, x, ffn.gate_bias), tau) * up
    y = _affine(widen(ffn.down).T, h, ffn.down_bias)
    return jnp.where((tau >= 0) & jnp.isfinite(tau), y, jnp.nan)


def sparse_ffn(x: jax.Array, ffn: FFN, active: Padded) -> tuple[jax.Array, jax.Array]:
    """The FFN over these neurons and no others, (d,) float32, and valid; NaN if the ids are not valid.

    Raises ShapeError, DomainError; paper §3.1. The down bias is added whatever the set.
    """
    _check(x, ffn)  # before the ids hide what does not fit
    taken, valid = take_neurons(ffn, active)
    return jnp.where(valid, dense_ffn(x, taken), jnp.nan), valid


def take_neurons(ffn: FFN, ids: Padded) -> tuple[FFN, jax.Array]:
    """The FFN of these neurons, then of neurons of zeros, which add nothing; and valid."""

    def rows(of: Array | None) -> Any:
        return None if of is None else take_rows(of, ids)[0]

    taken = ffn._replace(
        up=rows(ffn.up),
        down=rows(ffn.down),
        gate=rows(ffn.gate),
        up_bias=rows(ffn.up_bias),
        gate_bias=rows(ffn.gate_bias),
    )
    return taken, valid_ids(ids, len(ffn.up))


def predict_active(x: jax.Array, predictor: Predictor, m: int | None = None) -> Padded:
    """The ids whose logit exceeds the threshold, ascending, in m places, n if None (paper §3.1, Fig. 3b).

    x: (d,) float32. With more ids than places the set is not valid. Raises ShapeError.
    """
    a, b, bias, threshold = predictor
    if a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0] or x.shape != a.shape[1:]:
        raise ShapeError(
            f"a predictor needs a (r, d), b (n, r) and x (d,), not {a.shape}, {b.shape}, {x.shape}"
        )
    if x.dtype != np.float32 or (bias is not None and bias.shape != b.shape[:1]):
        raise ShapeError(
            f"a predictor needs float32 x and a bias ({len(b)},) or none, not {x.dtype} and {bias}"
        )
    logits = _affine(b, _affine(a, x, None), bias)
    return ascending_ids(logits > jnp.asarray(threshold, jnp.float32), m)


def _affine(matrix: Weights, x: jax.Array, bias: Weights | None) -> jax.Array:
    product = jnp.matmul(widen(matrix), x, precision=jax.lax.Precision.HIGHEST)
    return product if bias is None else product + widen(bias)


def _check(x: jax.Array, ffn: FFN) -> None:
    """Refuses while tracing what shapes and dtypes show."""
    if ffn.activation not in ACTIVATIONS:
        raise DomainError(f"activation {ffn.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    if ffn.up.ndim != 2:
        raise ShapeError(f"up must be (n, d), not {ffn.up.shape}")
    n, d = ffn.up.shape
    shapes = {
        "up": (n, d),
        "down": (n, d),
        "gate": (n, d),
        "up_bias": (n,),
        "gate_bias": (n,),
        "down_bias": (d,),
    }
    for name, shape in shapes.items():
        array = getattr(ffn, name)
        if array is not None and (array.shape != shape or array.dtype != ffn.up.dtype):
            raise ShapeError(
                f"{name} must be {ffn.up.dtype} {shape} as up is, not {array.dtype} {array.shape}"
            )
    if ffn.gate is None and ffn.gate_bias is not None:
        raise ShapeError("gate_bias needs a gate")
    if x.dtype != np.float32 or x.shape != (d,):
        raise ShapeError(f"x must be float32 of shape ({d},), not {x.dtype} of shape {x.shape}")
