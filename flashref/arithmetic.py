"""What a sum and an activation mean, to the bit. Chapter: specs/05-arithmetic.md.

Satisfies: ACC-3 to ACC-5.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from flashref.types import DomainError, Matrix, ShapeError, Vector

Float64s = npt.NDArray[np.float64]

PIECE_BYTES = 1 << 20  # of products made at once: sums are up to twice as fast while these fit a cache
NARROW = 256  # values in a row; in narrower rows a Python loop over the rows costs more than their sums


def ascending_sum(factors: Vector, rows: Matrix, start: Vector | None = None) -> Vector:
    """start + Σ_i factors[i] · rows[i], i ascending: one rounded product and one rounded sum at a time.

    This loop is the definition; `fast_ascending_sum` gives its bits sooner.

    Args:
        factors: (m,) float32.
        rows: (m, w) float32, in any memory order.
        start: (w,) float32; zeros (+0) if None.

    Returns:
        (w,) float32, a new array.

    Raises:
        ShapeError: an array has another shape or dtype.

    Decision 17: both sums of the reference ascend. Requirements: ACC-3, ACC-4.
    """
    total = _checked_start(factors, rows, start)
    for factor, row in zip(factors, rows, strict=True):
        total = total + factor * row
    return total


def fast_ascending_sum(factors: Vector, rows: Matrix, start: Vector | None = None) -> Vector:
    """The bits of `ascending_sum`, sooner: as many products are made at once as fit a cache.

    Args, Returns, Raises: as for `ascending_sum`. Requirements: ACC-3, ACC-4.
    """
    total = _checked_start(factors, rows, start)
    at_once = max(1, PIECE_BYTES // (4 * max(1, rows.shape[1])))
    for first in range(0, len(rows), at_once):
        piece = slice(first, first + at_once)
        # Added row by row, since np.add.reduce may sum in pairs; in C order, so that a row lies together.
        products = np.multiply(factors[piece, None], rows[piece], order="C")
        if rows.shape[1] < NARROW:  # the same loop in C: accumulate is sequential by definition
            products[0] += total
            total = np.add.accumulate(products, axis=0, out=products)[-1]
        else:
            for product in products:
                total += product
    return total.copy()  # it may be a view of the products


def activate(name: str, z: Vector, tau: float = 0.0) -> Vector:
    """The activation of each element, evaluated in float64 and rounded once to float32.

    Args:
        name: one of ACTIVATIONS.
        z: (m,) float32, pre-activations.
        tau: FATReLU's threshold, used as the nearest float32.

    Returns:
        (m,) float32.

    Raises:
        DomainError: the name is unknown.

    Requirement: ACC-5.
    """
    if name not in ACTIVATIONS:
        raise DomainError(f"activation {name!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](z.astype(np.float64), np.float32(tau)).astype(np.float32)


def _checked_start(factors: Vector, rows: Matrix, start: Vector | None) -> Vector:
    """A copy of start, or zeros. Raises ShapeError if the three arrays do not fit each other."""
    wrong = factors.dtype != np.float32 or rows.dtype != np.float32
    if wrong or factors.ndim != 1 or rows.ndim != 2 or len(rows) != len(factors):
        raise ShapeError(
            f"a sum needs float32 factors (m,) and rows (m, w), "
            f"not {factors.dtype} {factors.shape} and {rows.dtype} {rows.shape}"
        )
    width = rows.shape[1]
    if start is None:
        return np.zeros(width, np.float32)
    if start.dtype != np.float32 or start.shape != (width,):
        raise ShapeError(
            f"a sum of width {width} starts from float32 ({width},), not {start.dtype} {start.shape}"
        )
    return start.copy()


def _sigmoid(z: Float64s) -> Float64s:
    with np.errstate(over="ignore"):  # exp(−z) = inf is right: the result is 0
        return np.asarray(1 / (1 + np.exp(-z)))


def _normal_cdf(z: Float64s) -> Float64s:
    # erfc, not 1 + erf: the latter cancels, and is 2 % off at z = −8.
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.tolist()], np.float64)


def _twice_gelu_inner(z: Float64s) -> Float64s:
    return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


# Functions of float64 values and τ. The first three are exact but for their one rounding to float32.
# Chapter 05 lists every other place that must know a new activation.
ACTIVATIONS: Mapping[str, Callable[[Float64s, np.float32], Float64s]] = {
    "relu": lambda z, tau: np.where(z > 0, z, 0.0),
    "squared_relu": lambda z, tau: np.where(z > 0, z * z, 0.0),
    "fatrelu": lambda z, tau: np.where(z > tau, z, 0.0),
    "silu": lambda z, tau: z * _sigmoid(z),
    "gelu_erf": lambda z, tau: z * _normal_cdf(z),
    # 1 + tanh(v) = 2 σ(2v): the same function without the cancellation at negative z.
    "gelu_tanh": lambda z, tau: z * _sigmoid(_twice_gelu_inner(z)),
}


def _silu_slope(z: Float64s) -> Float64s:
    s = _sigmoid(z)
    return s + z * s * (1 - s)


def _gelu_erf_slope(z: Float64s) -> Float64s:
    return _normal_cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(z: Float64s) -> Float64s:
    s = _sigmoid(_twice_gelu_inner(z))
    inner_slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    return s + z * s * (1 - s) * inner_slope


# The derivative of each smooth activation, from which chapter 90 derives the bound of its error.
SLOPES: Mapping[str, Callable[[Float64s], Float64s]] = {
    "silu": _silu_slope,
    "gelu_erf": _gelu_erf_slope,
    "gelu_tanh": _gelu_tanh_slope,
}
