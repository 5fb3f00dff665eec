"""Which neurons, as masks: the truly active A_t, the predicted P_t, and the resident C_t. In JAX.

The network and the predictor are those of `flashref.xla`, over any number of tokens. The window is not:
`xla.window_update` goes from token to token, while C_t of a matrix without a limit is one cumulative maximum
over the text, and a judgement of 65,536 tokens takes it in every layer.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flashref.types import FFN, Predictor, widen
from flashref.xla import pre_activations, predictor_logits

BEFORE_ANY = -(1 << 30)  # the token of a prediction that never was


class Windowed(NamedTuple):
    """A predictor, and for how many tokens, k, a neuron stays after its last prediction."""

    predictor: Predictor
    k: jax.Array


def truly_active(ffn: FFN, inputs: Any) -> jax.Array:
    """A_t of every token: z > tau, where tau is 0 for all but FATReLU (decision 7: what is not at rest).

    Args:
        ffn: the network, float32 on the device.
        inputs: (…, d) float32, what the up projection receives.

    Returns:
        (…, n) bool.
    """
    z: jax.Array = _each_token(partial(pre_activations, ffn=ffn))(inputs)
    return z > ffn.tau


def logits(predictor: Predictor, inputs: Any) -> jax.Array:
    """The logits of every token, (…, n) float32; arguments as for `predicted`."""
    found: jax.Array = _each_token(partial(predictor_logits, predictor=predictor))(inputs)
    return found


def predicted(predictor: Predictor, inputs: Any) -> jax.Array:
    """P_t of every token: logits strictly above the threshold (decision 4).

    Args:
        predictor: float32, on the device.
        inputs: (…, d) float32, what the up projection receives.

    Returns:
        (…, n) bool.
    """
    return logits(predictor, inputs) > predictor.threshold


def resident(windowed: Windowed, inputs: jax.Array) -> jax.Array:
    """C_t of a matrix without a limit: the neurons that were predicted for one of the last k tokens.

    Args:
        windowed: the predictor, and k.
        inputs: (tokens, d) float32 of one text, whose window is empty at first.

    Returns:
        (tokens, n) bool.
    """
    tokens = jnp.arange(len(inputs))[:, None]
    last_predicted = jnp.where(predicted(windowed.predictor, inputs), tokens, BEFORE_ANY)
    return jax.lax.cummax(last_predicted, axis=0) > tokens - windowed.k


def widened(predictor: Predictor) -> Predictor:
    """A stored predictor in float32, on the device."""
    a, b, bias, threshold = predictor
    wide: Any = None if bias is None else jnp.asarray(widen(bias))
    return Predictor(jnp.asarray(widen(a)), jnp.asarray(widen(b)), wide, jnp.float32(threshold))  # type: ignore[arg-type]


def _each_token(function: Any) -> Any:
    """A function of one token's (d,), over the tokens of (…, d)."""
    return jnp.vectorize(function, signature="(d)->(n)")
