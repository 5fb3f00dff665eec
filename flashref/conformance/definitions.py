"""The definitions of the spec in exact arithmetic and plain Python: slow, and obvious.

Nothing here calls a chapter module: what these functions say is what those are judged by.
"""

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from flashref.types import FFN, Array, Predictor


def exact(array: Array) -> Any:
    """Give every element as an exact Fraction, in nested lists; uint16 is read as bfloat16."""
    if array.dtype == np.uint16:
        bits = [struct.unpack("<f", struct.pack("<I", int(v) << 16))[0] for v in array.ravel()]
        return _reshaped([Fraction(v) for v in bits], array.shape)
    return _reshaped([Fraction(float(v)) for v in array.ravel()], array.shape)


def _reshaped(flat: list[Fraction], shape: tuple[int, ...]) -> Any:
    if len(shape) == 1:
        return flat
    return [flat[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]


def _dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0))


def exact_activation(name: str, z: Fraction, tau: float) -> Fraction:
    """act(z) of chapter 10; SiLU and GELU to 60 digits."""
    if name == "relu":
        return max(z, Fraction(0))
    if name == "squared_relu":
        return max(z, Fraction(0)) ** 2
    if name == "fatrelu":
        return z if z > Fraction(float(np.float32(tau))) else Fraction(0)
    if abs(z) > 300:  # within 10^−120 of its limit, and the digits of e^−z would not fit in memory
        return max(z, Fraction(0))
    with mpmath.workdps(60):
        v = mpmath.mpf(z.numerator) / z.denominator
        if name == "silu":
            value = v / (1 + mpmath.exp(-v))
        elif name == "gelu_tanh":
            inner = mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf("0.044715") * v**3)
            value = v / 2 * (1 + mpmath.tanh(inner))
        elif name == "gelu_erf":
            value = v / 2 * mpmath.erfc(-v / mpmath.sqrt(2))
        else:
            raise ValueError(f"activation {name!r} has no definition here")
        return Fraction(mpmath.nstr(value, 50, min_fixed=0, max_fixed=0) if value else 0)


def exact_ffn(x: Array, ffn: FFN, active: Iterable[int] | None = None) -> list[Fraction]:
    """Compute y of chapter 10 exactly.

    Args:
        x: (d,) float32.
        ffn: the network.
        active: the ids that are summed; None: all.

    Returns:
        d Fractions; SiLU and GELU to 60 digits.
    """
    n, d = ffn.up.shape
    values, up, down = exact(x), exact(ffn.up), exact(ffn.down)
    gate = None if ffn.gate is None else exact(ffn.gate)
    bias = [None if b is None else exact(b) for b in (ffn.up_bias, ffn.gate_bias, ffn.down_bias)]
    up_bias, gate_bias, down_bias = bias
    y = list(down_bias) if down_bias is not None else [Fraction(0)] * d
    for i in range(n) if active is None else active:
        z = _dot(values, up[i]) + (up_bias[i] if up_bias else 0)
        if gate is None:
            h = exact_activation(ffn.activation, z, ffn.tau)
        else:
            g = _dot(values, gate[i]) + (gate_bias[i] if gate_bias else 0)
            h = exact_activation(ffn.activation, g, ffn.tau) * z
        y = [a + h * b for a, b in zip(y, down[i], strict=True)]
    return y


def exact_active(x: Array, ffn: FFN) -> set[int]:
    """Find the ids that chapter 10's table calls active."""
    matrix, bias = (ffn.up, ffn.up_bias) if ffn.gate is None else (ffn.gate, ffn.gate_bias)
    sums = [_dot(exact(x), row) for row in exact(matrix)]
    z = sums if bias is None else [a + b for a, b in zip(sums, exact(bias), strict=True)]
    if ffn.activation in ("relu", "squared_relu", "fatrelu"):
        bar = Fraction(float(np.float32(ffn.tau))) if ffn.activation == "fatrelu" else 0
        return {i for i, value in enumerate(z) if value > bar}
    return set(range(len(z)))


def exact_logits(x: Array, predictor: Predictor) -> list[Fraction]:
    """Compute z of chapter 20, one Fraction for each neuron."""
    values = exact(x)
    t = [_dot(row, values) for row in exact(predictor.a)]
    z = [_dot(row, t) for row in exact(predictor.b)]
    if predictor.bias is not None:
        z = [p + q for p, q in zip(z, exact(predictor.bias), strict=True)]
    return z


def scalar_sum(factors: Iterable[Any], rows: Iterable[Any], start: Iterable[Any]) -> Array:
    """Compute chapter 05's ascending sum, one float32 operation at a time."""
    total = [np.float32(s) for s in start]
    for factor, row in zip(factors, rows, strict=True):
        for j, value in enumerate(row):
            total[j] = np.float32(total[j] + np.float32(factor * value))
    return np.array(total, np.float32)


def exact_slope(name: str, z: Fraction) -> Fraction:
    """|act′(z)| of SiLU and GELU, from the definition by a difference quotient of 60 digits."""
    step = Fraction(1, 10**20)
    low, high = (exact_activation(name, z + s, 0) for s in (-step, step))
    return abs(high - low) / (2 * step)


def bound_by_formula(x: Array, ffn: FFN, u: float) -> list[Fraction]:
    """Compute ffn_bound of chapter 90 line by line, in exact arithmetic, without the widening at its end."""
    tiny = Fraction(1, 2**126)
    curvature = {"silu": Fraction(1, 2), "gelu_erf": Fraction(4, 5), "gelu_tanh": Fraction(4, 5)}
    n, d = ffn.up.shape
    values = exact(x)
    tau = Fraction(float(np.float32(ffn.tau)))

    def pre(row: list[Fraction], bias: Fraction) -> tuple[Fraction, Fraction]:
        size = _dot(_sizes(values), _sizes(row)) + abs(bias)
        z = _dot(values, row) + bias
        return z, _gamma(d + 1, u) * size + 2 * (d + 1) * tiny

    def activated(z: Fraction, e: Fraction) -> tuple[Fraction, Fraction]:
        a = exact_activation(ffn.activation, z, ffn.tau)
        if ffn.activation == "relu":
            return a, e if z + e > 0 else Fraction(0)
        if ffn.activation == "squared_relu":
            error = 2 * abs(z) * e + e * e + Fraction(u) * (abs(z) + e) ** 2 + tiny
            return a, error if z + e > 0 else Fraction(0)
        if ffn.activation == "fatrelu":
            return a, abs(z) + e if abs(z - tau) <= e else e if z > tau else Fraction(0)
        m = (exact_slope(ffn.activation, z) + curvature[ffn.activation] * e) * e
        return a, m + 4 * Fraction(u) * (abs(a) + m) + tiny

    def biases(of: Array | None) -> Any:
        return [Fraction(0)] * n if of is None else exact(of)

    up, down = exact(ffn.up), exact(ffn.down)
    gate = up if ffn.gate is None else exact(ffn.gate)
    gate_bias = biases(ffn.up_bias if ffn.gate is None else ffn.gate_bias)
    sizes = [Fraction(0)] * d if ffn.down_bias is None else [abs(b) for b in exact(ffn.down_bias)]
    errors = [Fraction(0)] * d
    for i, up_bias in enumerate(biases(ffn.up_bias)):
        h, e_h = activated(*pre(gate[i], gate_bias[i]))
        if ffn.gate is not None:
            a, e_a, (v, e_v) = h, e_h, pre(up[i], up_bias)
            h = a * v
            e_h = abs(a) * e_v + abs(v) * e_a + e_a * e_v
            e_h += Fraction(u) * (abs(a) + e_a) * (abs(v) + e_v) + tiny
        errors = [e + e_h * abs(w) for e, w in zip(errors, down[i], strict=True)]
        sizes = [s + (abs(h) + e_h) * abs(w) for s, w in zip(sizes, down[i], strict=True)]
    return [e + _gamma(n + 1, u) * s + 2 * (n + 1) * tiny for e, s in zip(errors, sizes, strict=True)]


def logits_bound_by_formula(x: Array, predictor: Predictor, u: float) -> list[Fraction]:
    """Compute predictor_bound of chapter 90 in exact arithmetic."""
    tiny = Fraction(1, 2**126)
    values, a, b = exact(x), exact(predictor.a), exact(predictor.b)
    bias = [Fraction(0)] * len(b) if predictor.bias is None else exact(predictor.bias)
    d, r = len(values), len(a)
    t = [abs(_dot(row, values)) for row in a]
    e_t = [_gamma(d + 1, u) * _dot(_sizes(row), _sizes(values)) + 2 * (d + 1) * tiny for row in a]
    t_at_most = [size + e for size, e in zip(t, e_t, strict=True)]
    return [
        _dot(_sizes(row), e_t)
        + _gamma(r + 1, u) * (_dot(_sizes(row), t_at_most) + abs(c))
        + 2 * (r + 1) * tiny
        for row, c in zip(b, bias, strict=True)
    ]


def _sizes(values: Sequence[Fraction]) -> list[Fraction]:
    return [abs(value) for value in values]


def _gamma(k: int, u: float) -> Fraction:
    return k * Fraction(u) / (1 - k * Fraction(u))
