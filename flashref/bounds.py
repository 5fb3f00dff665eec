"""Every tolerance there is: how far a right implementation may be from the exact value.

Chapter: specs/90-accuracy.md.

Satisfies: ACC-1, ACC-2, ACC-6 to ACC-9.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flashref.arithmetic import ACTIVATIONS, SLOPES, Float64s
from flashref.types import FFN, DomainError, Predictor, Vector, widen

TINY = 2.0**-126  # smallest normal float32: an operation that underflows is off by at most this much
ACTIVATION_ROUNDINGS = 4  # SiLU and GELU may be off by this many unit roundoffs of their value
CURVATURES: Mapping[str, float] = {
    "silu": 0.5,
    "gelu_erf": 0.8,
    "gelu_tanh": 0.8,
}  # no second derivative is larger
FLOAT64_SLACK = 1 + 2.0**-20  # covers the rounding of the bounds themselves: below 2^-28 for n, d < 2^24

_ROUNDOFF: Mapping[str, float] = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number of a float dtype (not NumPy's eps, which is twice it).

    Args:
        dtype: F64, F32, F16 or BF16.

    Raises:
        DomainError: it is none of these.

    Requirement: ACC-1.
    """
    if dtype not in _ROUNDOFF:
        raise DomainError(f"dtype {dtype!r} has no unit roundoff here; use one of {', '.join(_ROUNDOFF)}")
    return _ROUNDOFF[dtype]


def gamma(k: int, u: float) -> float:
    """Higham's γ(k) = k·u / (1 − k·u): the relative error of k roundings, in any order.

    Raises:
        DomainError: k·u is negative, or 1 or more.

    Requirement: ACC-2.
    """
    if not 0 <= k * u < 1:
        raise DomainError(f"γ needs 0 ≤ k·u < 1, but {k} roundings at {u} give {k * u}")
    return k * u / (1 - k * u)


def ffn_bound(x: Vector, ffn: FFN, u: float = 2.0**-24) -> Float64s:
    """How far any float implementation may be from the exact FFN, for each output.

    Sums may be in any order, with or without fused multiply-add; subnormals may be flushed.

    Args:
        x: (d,) float32.
        ffn: the network; for a sparse one, `take_neurons(ffn, active)`.
        u: the unit roundoff of the arithmetic that is judged.

    Returns:
        (d,) float64, absolute errors.

    Decision 17: only the reference has a fixed order of summing. Requirements: ACC-6, ACC-7.
    """
    a, e_a = _activated(x, ffn, u)
    h, e_h = a, e_a
    if ffn.gate is not None:
        v, e_v = _pre_activation(x, ffn.up, ffn.up_bias, u)
        h = a * v
        e_h = np.abs(a) * e_v + np.abs(v) * e_a + e_a * e_v
        e_h += u * (np.abs(a) + e_a) * (np.abs(v) + e_v) + TINY
    down = np.abs(_float64(ffn.down))
    largest = (np.abs(h) + e_h) @ down
    if ffn.down_bias is not None:
        largest = largest + np.abs(_float64(ffn.down_bias))
    terms = len(down) + 1
    return np.asarray((e_h @ down + gamma(terms, u) * largest + 2 * terms * TINY) * FLOAT64_SLACK)


def predictor_bound(x: Vector, predictor: Predictor, u: float = 2.0**-24) -> Float64s:
    """How far any float implementation's logits may be from the exact ones.

    The error of the first matrix–vector product passes through the second, which adds its own.

    Args:
        x: (d,) float32.
        predictor: two linear maps, for n neurons.
        u: the unit roundoff of the arithmetic that is judged.

    Returns:
        (n,) float64, absolute errors.

    Requirement: ACC-8.
    """
    t, e_t = _pre_activation(x, predictor.a, None, u)
    b = np.abs(_float64(predictor.b))
    largest = b @ (np.abs(t) + e_t)
    if predictor.bias is not None:
        largest = largest + np.abs(_float64(predictor.bias))
    terms = b.shape[1] + 1
    return np.asarray((b @ e_t + gamma(terms, u) * largest + 2 * terms * TINY) * FLOAT64_SLACK)


def exact_on_dyadic(n: int, d: int, bits: int, activation_name: str, gated: bool) -> bool:
    """Whether float32 is exact, in any order of summing, on entries k·2^−bits with |k| ≤ 2^bits.

    Args:
        n, d: neurons and inputs of the network.
        bits: entries of x, of the matrices and of the biases are multiples of 2^−bits.
        activation_name: one of ACTIVATIONS; SiLU and GELU are never exact.
        gated: whether the network has a gate.

    Raises:
        DomainError: a size is negative, or the name is unknown.

    Requirement: ACC-9.
    """
    if min(n, d, bits) < 0 or activation_name not in ACTIVATIONS:
        raise DomainError(
            f"sizes must be at least 0 and the activation known, not {n, d, bits, activation_name}"
        )
    if activation_name in ("relu", "fatrelu") and not gated:
        return (n * (d + 1) + 1) << (3 * bits) <= 1 << 24
    if activation_name in ("relu", "fatrelu", "squared_relu"):
        # A gated squared ReLU multiplies three pre-activations; the others two.
        factors = 3 if gated and activation_name == "squared_relu" else 2
        largest: int = n * (d + 1) ** factors + 1
        return largest << ((2 * factors + 1) * bits) <= 1 << 24
    return False


def _float64(weights: npt.NDArray[Any]) -> Float64s:
    return widen(weights).astype(np.float64)


def _pre_activation(
    x: Vector, matrix: npt.NDArray[Any], bias: npt.NDArray[Any] | None, u: float
) -> tuple[Float64s, Float64s]:
    """matrix·x + bias in float64, and how far a rounded evaluation may be from the exact one."""
    wide, x64 = _float64(matrix), x.astype(np.float64)
    z, size = wide @ x64, np.abs(wide) @ np.abs(x64)
    if bias is not None:
        z, size = z + _float64(bias), size + np.abs(_float64(bias))
    terms = len(x) + 1
    return z, (gamma(terms, u) * size + 2 * terms * TINY) * FLOAT64_SLACK


def _activated(x: Vector, ffn: FFN, u: float) -> tuple[Float64s, Float64s]:
    """The activation of the gate's (or up's) pre-activation, and its error."""
    matrix, bias = (ffn.up, ffn.up_bias) if ffn.gate is None else (ffn.gate, ffn.gate_bias)
    z, e_z = _pre_activation(x, matrix, bias, u)
    tau = np.float32(ffn.tau)
    a = ACTIVATIONS[ffn.activation](z, tau)
    if ffn.activation == "relu":
        return a, np.where(z + e_z > 0, e_z, 0.0)
    if ffn.activation == "squared_relu":
        error = 2 * np.abs(z) * e_z + e_z * e_z + u * (np.abs(z) + e_z) ** 2 + TINY
        return a, np.where(z + e_z > 0, error, 0.0)
    if ffn.activation == "fatrelu":
        # Discontinuous at τ: where z is within the error of τ, the neuron may count as active or not.
        either_way = np.abs(z - tau) <= e_z
        error = np.where(z > tau, e_z, 0.0)
        return a, np.where(either_way, np.abs(z) + e_z, error)
    slope = np.abs(SLOPES[ffn.activation](z)) + CURVATURES[ffn.activation] * e_z
    moved = slope * e_z  # the slope is nowhere larger on [z − e_z, z + e_z]
    return a, moved + ACTIVATION_ROUNDINGS * u * (np.abs(a) + moved) + TINY
