"""Which neurons: the truly active A_t, the predicted P_t, and those that a window keeps, C_t. In JAX.

Every function here takes tokens in rows and gives a row of n flags a token; those with two arguments are
a `choose` of flashref.models.whole_text.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flashref.models.whole_text import pre_activations
from flashref.types import FFN, Predictor, widen

BEFORE_ANY = -(1 << 30)  # the token of a prediction that never was


class Windowed(NamedTuple):
    """A predictor, and for how many tokens, k, a neuron stays after its last prediction."""

    predictor: Predictor
    k: jax.Array


def truly_active(ffn: FFN, inputs: Any) -> jax.Array:
    """A_t: z > tau, and tau is 0 but for FATReLU (decision 7). inputs: (…, tokens, d)."""
    return pre_activations(ffn, inputs) > ffn.tau


def low_rank_logits(low: Any, inputs: Any) -> jax.Array:
    """Logits (…, tokens, n): two linear maps, nothing between. low: has a, b and bias, in float32."""
    logits: jax.Array = (inputs @ low.a.T) @ low.b.T
    return logits if low.bias is None else logits + low.bias


def predicted(predictor: Predictor, inputs: Any) -> jax.Array:
    """P_t: logits strictly above the threshold (decision 4). inputs: (…, tokens, d)."""
    return low_rank_logits(predictor, inputs) > predictor.threshold


def resident(windowed: Windowed, inputs: jax.Array) -> jax.Array:
    """C_t of a matrix without a limit: predicted for one of the last k tokens. inputs: (tokens, d)."""
    return last_predicted(predicted(windowed.predictor, inputs)) > _tokens(len(inputs)) - windowed.k


def last_predicted(sets: jax.Array) -> jax.Array:
    """The token for which a neuron was last predicted (decision 9). sets: (tokens, n), each a P_t."""
    return jax.lax.cummax(jnp.where(sets, _tokens(len(sets)), BEFORE_ANY), axis=0)


def widened(predictor: Predictor) -> Predictor:
    """A stored predictor in float32, on the device."""
    a, b, bias, threshold = predictor
    wide: Any = None if bias is None else jnp.asarray(widen(bias))
    return Predictor(jnp.asarray(widen(a)), jnp.asarray(widen(b)), wide, jnp.float32(threshold))  # type: ignore[arg-type]


def _tokens(count: int) -> jax.Array:
    return jnp.arange(count)[:, None]
