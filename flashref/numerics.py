"""Arithmetic of the reference, and every tolerance there is. Chapter: specs/90-accuracy.md.

Satisfies: ACC-1 to ACC-9.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.types import FFN, DomainError, Matrix, Predictor, ShapeError, Vector, widen

Float64s = npt.NDArray[np.float64]

TINY = 2.0**-126  # smallest normal float32: what flushing to zero, or gradual underflow, may cost
PIECE_BYTES = 1 << 20  # products held at a time: what a cache holds is added up to twice as fast
NARROW = 256  # rows so short that a Python loop over them costs more than their sums
ACTIVATION_ROUNDINGS = 4  # units in the last place that SiLU and GELU may be off
FLOAT64_SLACK = 1 + 2.0**-20  # the bounds' own float64 rounding: below 2^-28 of them for n, d < 2^24

_ROUNDOFF: Mapping[str, float] = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number of a float dtype (not NumPy's eps, which is twice it).

    dtype: F64, F32, F16 or BF16; else DomainError. Requirement: ACC-1.
    """
    if dtype not in _ROUNDOFF:
        raise DomainError(f"dtype {dtype!r} has no unit roundoff here; use one of {', '.join(_ROUNDOFF)}")
    return _ROUNDOFF[dtype]


def gamma(k: int, u: float) -> float:
    """Higham's γ(k) = k·u / (1 − k·u): the relative error of k roundings, in any order.

    Raises DomainError unless k·u < 1. Requirement: ACC-2.
    """
    if not 0 <= k * u < 1:
        raise DomainError(f"γ needs 0 ≤ k·u < 1, but {k} roundings at {u} give {k * u}")
    return k * u / (1 - k * u)


def ascending_sum(factors: Vector, rows: Matrix, start: Vector | None = None) -> Vector:
    """start + Σ_i factors[i] · rows[i], i ascending, one rounded product and one rounded sum at a time.

    factors: (m,), rows: (m, w), start: (w,), +0 if absent; all float32; result (w,) float32.
    Raises ShapeError. Decision 17. Requirements: ACC-3, ACC-4.
    """
    if factors.dtype != np.float32 or rows.dtype != np.float32 or rows.shape[:1] != factors.shape:
        raise ShapeError(
            f"a sum needs float32 factors (m,) and rows (m, w), "
            f"not {factors.dtype} {factors.shape} and {rows.dtype} {rows.shape}"
        )
    total = np.zeros(rows.shape[1], np.float32) if start is None else start.astype(np.float32)
    at_once = max(1, PIECE_BYTES // (4 * max(1, rows.shape[1])))
    for first in range(0, len(rows), at_once):
        piece = slice(first, first + at_once)
        # C order, then row by row: np.add.reduce sums a Fortran-ordered product pairwise.
        products = np.multiply(factors[piece, None], rows[piece], order="C")
        if rows.shape[1] < NARROW:  # the same loop in C: accumulate is sequential by definition
            products[0] += total
            total = np.add.accumulate(products, axis=0, out=products)[-1]
        else:
            for product in products:
                total += product
    return total.copy()


def _sigmoid(z: Float64s) -> Float64s:
    with np.errstate(over="ignore"):  # exp(−z) = inf is right: the result is 0
        return np.asarray(1 / (1 + np.exp(-z)))


def _normal_cdf(z: Float64s) -> Float64s:
    # erfc, not 1 + erf: the latter cancels, and is 2 % off at z = −8.
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.tolist()], np.float64)


def _gelu_inner(z: Float64s) -> Float64s:
    return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


# Each over float64 and τ; the first three are exact there until the one rounding to float32.
ACTIVATIONS: Mapping[str, Callable[[Float64s, np.float32], Float64s]] = {
    "relu": lambda z, tau: np.where(z > 0, z, 0.0),
    "squared_relu": lambda z, tau: np.where(z > 0, z * z, 0.0),
    "fatrelu": lambda z, tau: np.where(z > tau, z, 0.0),
    "silu": lambda z, tau: z * _sigmoid(z),
    "gelu_erf": lambda z, tau: z * _normal_cdf(z),
    # 1 + tanh(v) = 2 σ(2v): the same function without the cancellation at negative z.
    "gelu_tanh": lambda z, tau: z * _sigmoid(_gelu_inner(z)),
}


def _silu_slope(z: Float64s) -> Float64s:
    s = _sigmoid(z)
    return s + z * s * (1 - s)


def _gelu_erf_slope(z: Float64s) -> Float64s:
    return _normal_cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(z: Float64s) -> Float64s:
    s = _sigmoid(_gelu_inner(z))
    inner_slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    return s + z * s * (1 - s) * inner_slope


class Smooth(NamedTuple):
    """The slope of a smooth activation, and a bound on the size of its second derivative."""

    slope: Callable[[Float64s], Float64s]
    curvature: float


SMOOTH: Mapping[str, Smooth] = {
    "silu": Smooth(_silu_slope, 0.5),
    "gelu_erf": Smooth(_gelu_erf_slope, 0.8),
    "gelu_tanh": Smooth(_gelu_tanh_slope, 0.8),
}


def activate(name: str, z: Vector, tau: float = 0.0) -> Vector:
    """The activation of each element, evaluated in float64 and rounded once to float32.

    z: (m,) float32; tau: FATReLU's threshold, used as the nearest float32. DomainError for an unknown name.
    Requirement: ACC-5.
    """
    if name not in ACTIVATIONS:
        raise DomainError(f"activation {name!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](z.astype(np.float64), np.float32(tau)).astype(np.float32)


def ffn_bound(x: Vector, ffn: FFN, u: float = 2.0**-24) -> Float64s:
    """How far any float implementation may be from the exact FFN, an element: (d,) float64.

    x: (d,) float32; u: unit roundoff of the arithmetic. Sums may be in any order, with or without fused
    multiply-add; subnormals may be flushed. Decision 17. Requirements: ACC-6, ACC-7.
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
    """How far any float implementation's logits may be from the exact ones: (n,) float64.

    x: (d,) float32. Two matrix–vector products, each with the error of its sums. Requirement: ACC-8.
    """
    t, e_t = _pre_activation(x, predictor.a, None, u)
    b = np.abs(_float64(predictor.b))
    largest = b @ (np.abs(t) + e_t)
    if predictor.bias is not None:
        largest = largest + np.abs(_float64(predictor.bias))
    terms = b.shape[1] + 1
    return np.asarray((b @ e_t + gamma(terms, u) * largest + 2 * terms * TINY) * FLOAT64_SLACK)


def exact_on_dyadic(n: int, d: int, bits: int, activation_name: str, gated: bool) -> bool:
    """Whether float32 is exact on entries k·2^−bits, |k| ≤ 2^bits, in any order of summing.

    n neurons, d inputs, of x, matrices and biases; SiLU and GELU never are. Raises DomainError for negative
    sizes or an unknown name. Requirement: ACC-9.
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
        # Discontinuous at τ: a neuron that close may go either way.
        either_way = np.abs(z - tau) <= e_z
        error = np.where(z > tau, e_z, 0.0)
        return a, np.where(either_way, np.abs(z) + e_z, error)
    slope, curvature = SMOOTH[ffn.activation]
    moved = (np.abs(slope(z)) + curvature * e_z) * e_z  # no slope on [z − e_z, z + e_z] is larger
    return a, moved + ACTIVATION_ROUNDINGS * u * (np.abs(a) + moved) + TINY
