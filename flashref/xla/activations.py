"""The six activations in float32, within 4u of their values (chapter 90).

In plain float32 an exponent of −50 that is off by one rounding costs fifty of them: jax's own erfc is 66 u
off, gelu_erf with it 237 u, gelu_tanh 181 u. So exponents are formed as unevaluated sums hi + lo.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a · b as hi + lo (Dekker): halves of 12 bits multiply exactly, fused or not."""
    a_high, b_high = _high_half(a), _high_half(b)
    a_low, b_low = a - a_high, b - b_high
    product = a * b
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a + b as hi + lo (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _high_half(value: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)


def _times_exp(factor: jax.Array, rest: jax.Array, hi: jax.Array, lo: jax.Array) -> jax.Array:
    """factor · e^(hi + lo) for hi ≤ 0 and small lo, also where e^hi alone would be flushed to zero."""
    far = hi < -64
    scaled = (factor + (rest + factor * lo)) * jnp.exp(hi + jnp.where(far, 37.0, 0.0))
    return scaled * jnp.where(far, math.exp(-37), 1.0)


def _times_sigmoid(z: jax.Array, hi: jax.Array, lo: jax.Array) -> jax.Array:
    """z · σ(hi + lo): one division, and far to the left the exponential alone."""
    e = jnp.exp(-jnp.maximum(hi, -64))
    return jnp.where(
        hi < -64, _times_exp(z, jnp.zeros_like(z), jnp.minimum(hi, 0), lo), z / (1 + (e - e * lo))
    )


@jax.custom_jvp
def _silu(z: jax.Array) -> jax.Array:
    return _times_sigmoid(z, z, jnp.zeros_like(z))


def _silu_slope(z: jax.Array) -> jax.Array:
    s = jax.nn.sigmoid(z)
    return s + z * s * (1 - s)


# 2 √(2/π) and 0.044715 times it, each as hi + lo.
_S = (1.5957691669464111, -4.534068054340423e-08)
_C = (0.07135481387376785, 2.3988324659995897e-09)


@jax.custom_jvp
def _gelu_tanh(z: jax.Array) -> jax.Array:
    """z σ(2v), v = √(2/π)(z + 0.044715 z³); beyond ±32 it is 0 or z."""
    near = jnp.clip(z, -32, 32)
    square, rest = _product(near, near)
    cubic, lo = _product(square, jnp.full_like(z, _C[0]))
    slope, error = _sum(cubic, jnp.full_like(z, _S[0]))
    lo = error + (lo + (rest * _C[0] + square * _C[1]) + _S[1])
    hi, rest = _product(near, slope)
    return _times_sigmoid(z, hi, rest + near * lo)


def _gelu_tanh_slope(z: jax.Array) -> jax.Array:
    near = jnp.clip(z, -32, 32)
    s = jax.nn.sigmoid(near * (_S[0] + _C[0] * near * near))
    return s + near * s * (1 - s) * (_S[0] + 3 * _C[0] * near * near)


# (1.25 + a) · ½ e^(a²/2) erfc(a/√2) for 0 ≤ a ≤ 14.6, highest power first; minimax, 0.02 u off.
_ERFC = (
    -7.0264985e-05,
    -7.55499568e-05,
    0.000649124326,
    -0.00014093722,
    -0.00487788487,
    0.0158163402,
    -0.0244810898,
    0.0106732138,
    0.0450944155,
    -0.139302894,
    0.495655864,
)


@jax.custom_jvp
def _gelu_erf(z: jax.Array) -> jax.Array:
    """½ z erfc(−z/√2): e^(−z²/2) times a polynomial in (a − 4)/(a + 4), a = |z| (jax's erfc is 66 u off)."""
    a = jnp.minimum(jnp.abs(z), 32)
    square, rest = _product(a, a)
    t = (a - 4) / (a + 4)
    polynomial = jnp.full_like(z, _ERFC[0])
    for coefficient in _ERFC[1:-1]:
        polynomial = polynomial * t + coefficient
    scaled, scaled_low = _sum(polynomial * t, jnp.full_like(z, _ERFC[-1]))
    top, top_low = _product(z, scaled)
    base, base_low = _sum(a, jnp.full_like(z, 1.25))
    ratio = top / base
    back, back_low = _product(ratio, base)
    missing = (((top - back) - back_low) + (top_low + z * scaled_low) - ratio * base_low) / base
    tail = _times_exp(ratio, missing, -square / 2, -rest / 2)
    return jnp.where(z < 0, tail, z - tail)


def _gelu_erf_slope(z: jax.Array) -> jax.Array:
    near = jnp.clip(z, -32, 32)
    density = jnp.exp(-near * near / 2) / math.sqrt(2 * math.pi)
    return jax.scipy.special.erfc(-near / math.sqrt(2)) / 2 + near * density


# Their own operations would be differentiated term by term; the slopes are simpler.
_silu.defjvps(lambda change, _, z: change * _silu_slope(z))
_gelu_tanh.defjvps(lambda change, _, z: change * _gelu_tanh_slope(z))
_gelu_erf.defjvps(lambda change, _, z: change * _gelu_erf_slope(z))


def _relu(z: jax.Array) -> jax.Array:
    return jnp.where(z > 0, z, 0)


# Each over float32 and τ. An activation of 0 is 0, so a row of zeros adds nothing: padding needs no mask.
ACTIVATIONS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "relu": lambda z, tau: _relu(z),
    "squared_relu": lambda z, tau: _relu(z) * _relu(z),
    "fatrelu": lambda z, tau: jnp.where(z > tau, z, 0),
    "silu": lambda z, tau: _silu(z),
    "gelu_tanh": lambda z, tau: _gelu_tanh(z),
    "gelu_erf": lambda z, tau: _gelu_erf(z),
}
