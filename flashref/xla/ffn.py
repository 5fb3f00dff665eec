"""The network and its predictor, for one token; `jax.vmap` makes them functions of many."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashref.types import FFN, Array, DomainError, Predictor, ShapeError
from flashref.xla.activations import ACTIVATIONS
from flashref.xla.padded import Padded, Weights, ascending_ids, take_rows, valid_ids, widen


def dense_ffn(x: jax.Array, ffn: FFN) -> jax.Array:
    """Compute the FFN over all its neurons (paper §3.1, Fig. 3b).

    Args:
        x: (d,) float32.
        ffn: the network.

    Returns:
        (d,) float32; NaN if tau is negative or not finite.

    Raises:
        ShapeError, DomainError: what shapes, dtypes and the activation's name show while tracing.
    """
    return sum_neurons(neuron_values(x, ffn), ffn)


def pre_activations(x: jax.Array, ffn: FFN) -> jax.Array:
    """Compute what the activation is applied to: the gate's pre-activations if there is a gate, else up's.

    Args, Raises: as for `dense_ffn`.

    Returns:
        (n,) float32.
    """
    _check(x, ffn)
    if ffn.gate is not None:
        return _affine(x, widen(ffn.gate).T, ffn.gate_bias)
    return _affine(x, widen(ffn.up).T, ffn.up_bias)


def neuron_values(x: jax.Array, ffn: FFN) -> jax.Array:
    """Compute the value of every neuron, by which its row of `down` is multiplied.

    Args, Raises: as for `dense_ffn`.

    Returns:
        (n,) float32: the activation, times up's pre-activation if there is a gate.
    """
    h = ACTIVATIONS[ffn.activation](pre_activations(x, ffn), jnp.asarray(ffn.tau, jnp.float32))
    return h if ffn.gate is None else h * _affine(x, widen(ffn.up).T, ffn.up_bias)


def sum_neurons(values: jax.Array, ffn: FFN) -> jax.Array:
    """Sum the rows of `down`, each times its neuron's value, and the down bias.

    Args:
        values: (n,) float32, as `neuron_values` gives them; 0 leaves a neuron out.
        ffn: the network.

    Returns:
        (d,) float32; NaN if tau is negative or not finite.
    """
    tau = jnp.asarray(ffn.tau, jnp.float32)
    y = _affine(values, widen(ffn.down), ffn.down_bias)
    return jnp.where((tau >= 0) & jnp.isfinite(tau), y, jnp.nan)


def sparse_ffn(x: jax.Array, ffn: FFN, active: Padded) -> tuple[jax.Array, jax.Array]:
    """Compute the FFN over these neurons and no others (paper §3.1); the down bias is always added.

    Args:
        x: (d,) float32.
        ffn: the whole network.
        active: the ids.

    Returns:
        (d,) float32, NaN if the ids are not valid; and whether they are.

    Raises:
        ShapeError, DomainError: as for `dense_ffn`.
    """
    _check(x, ffn)  # before the ids hide what does not fit
    taken, valid = take_neurons(ffn, active)
    return jnp.where(valid, dense_ffn(x, taken), jnp.nan), valid


def take_neurons(ffn: FFN, ids: Padded) -> tuple[FFN, jax.Array]:
    """Cut the FFN of some neurons out of a network.

    Args:
        ffn: the whole network.
        ids: of the neurons.

    Returns:
        The FFN of m neurons, those behind the set of zeros, which add nothing; and whether the ids are valid.
    """

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
    """Predict the active neurons: the ids whose logit exceeds the threshold, ascending (paper §3.1, Fig. 3b).

    Args:
        x: (d,) float32.
        predictor: of the layer.
        m: places for ids; None: n. With more ids than places the set is not valid.

    Raises:
        ShapeError: as for `predictor_logits`.
    """
    return ascending_ids(predictor_logits(x, predictor) > jnp.asarray(predictor.threshold, jnp.float32), m)


def predictor_logits(x: jax.Array, predictor: Predictor) -> jax.Array:
    """Compute the logit of every neuron: two linear maps with nothing between them.

    Args:
        x: (d,) float32.
        predictor: of the layer.

    Returns:
        (n,) float32.

    Raises:
        ShapeError: an array has the wrong shape or dtype.
    """
    a, b, bias, _ = predictor
    if a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0] or x.shape != a.shape[1:]:
        raise ShapeError(
            f"a predictor needs a (r, d), b (n, r) and x (d,), not {a.shape}, {b.shape}, {x.shape}"
        )
    if x.dtype != np.float32 or (bias is not None and bias.shape != b.shape[:1]):
        raise ShapeError(
            f"a predictor needs float32 x and a bias ({len(b)},) or none, not {x.dtype} and {bias}"
        )
    return _affine(_affine(x, widen(a).T, None), widen(b).T, bias)


def _affine(x: jax.Array, matrix: jax.Array, bias: Weights | None) -> jax.Array:
    # The vector first: under vmap this is one product of matrices, without a transposition.
    product = jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)
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
