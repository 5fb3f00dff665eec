"""Masks of neurons in JAX: the truly active A_t, the predicted P_t and the resident C_t of every token.

The FFN and the predictor are those of `flashref.xla`, applied to many tokens at once. The window is computed
here in another way: `xla.window_update` goes from token to token, whereas without a limit on the rows C_t is
one cumulative maximum over the text, which is fast enough for 65,536 tokens in every layer.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flashref.types import FFN, Predictor, widen
from flashref.xla import pre_activations, predictor_logits

BEFORE_ANY = -(1 << 30)  # stands for the last predicting token of a neuron that no token has predicted


class WindowedPredictor(NamedTuple):
    """A predictor and the length k of its window, in tokens."""

    predictor: Predictor
    k: jax.Array


def truly_active(ffn: FFN, inputs: Any) -> jax.Array:
    """The truly active neurons A_t of every token: those whose pre-activation exceeds tau (decision 7).

    Args:
        ffn: the layer, float32 on the device; its tau is 0 unless the activation is FATReLU.
        inputs: (…, d) float32, what the up projection receives.

    Returns:
        (…, n) bool.
    """
    z: jax.Array = _each_token(partial(pre_activations, ffn=ffn))(inputs)
    return z > ffn.tau


def logits(predictor: Predictor, inputs: Any) -> jax.Array:
    """The predictor's logits of every token, (…, n) float32; the arguments are those of `predicted`."""
    found: jax.Array = _each_token(partial(predictor_logits, predictor=predictor))(inputs)
    return found


def predicted(predictor: Predictor, inputs: Any) -> jax.Array:
    """The predicted neurons P_t of every token: those whose logit exceeds the threshold (decision 4).

    Args:
        predictor: the predictor, float32 on the device.
        inputs: (…, d) float32, what the up projection receives.

    Returns:
        (…, n) bool.
    """
    return logits(predictor, inputs) > predictor.threshold


def resident(windowed: WindowedPredictor, inputs: jax.Array) -> jax.Array:
    """The resident neurons C_t of every token: those predicted for one of the last k tokens.

    The DRAM matrix has as many rows as the window needs.

    Args:
        windowed: the predictor, and k.
        inputs: (tokens, d) float32, what the up projection receives in one text.

    Returns:
        (tokens, n) bool.
    """
    tokens = jnp.arange(len(inputs))[:, None]
    last_predicted = jnp.where(predicted(windowed.predictor, inputs), tokens, BEFORE_ANY)
    return jax.lax.cummax(last_predicted, axis=0) > tokens - windowed.k


def widened(predictor: Predictor) -> Predictor:
    """Convert a stored predictor to float32, on the device."""
    a, b, bias, threshold = predictor
    wide: Any = None if bias is None else jnp.asarray(widen(bias))
    return Predictor(jnp.asarray(widen(a)), jnp.asarray(widen(b)), wide, jnp.float32(threshold))  # type: ignore[arg-type]


def _each_token(function: Any) -> Any:
    """Apply a function of one token's input (d,) to all tokens of (…, d)."""
    return jnp.vectorize(function, signature="(d)->(n)")
