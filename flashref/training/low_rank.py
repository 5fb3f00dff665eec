"""Fits the predictor of one layer, from the layer's own weights on, with a class-balanced loss."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flashref.training.layers import Floats
from flashref.training.masks import logits, truly_active
from flashref.training.plan import FitSchedule
from flashref.types import FFN, Predictor


class LowRank(NamedTuple):
    """A predictor while it is fitted, in float32 and without a threshold: a (r, d), b (n, r), bias (n,)."""

    a: jax.Array
    b: jax.Array
    bias: jax.Array


class Fitted(NamedTuple):
    """The best predictor of a fit, its loss on held-out text, and the number of steps that the fit took."""

    low: LowRank
    steps: int
    loss: float


def fit_low_rank(
    ffn: FFN,
    inputs: Floats,
    held_out: Floats,
    rank: int,
    fit: FitSchedule,
    advance: Callable[[int], None] = lambda step: None,
) -> Fitted:
    """Fit the predictor of one layer to its truly active neurons, by the layer's own float32 arithmetic.

    Args:
        ffn: the layer, float32 on the device.
        inputs: (tokens, d) float32, what the up projection receives in the text to fit on.
        held_out: (tokens, d) float32, the same in the text to choose on.
        rank: the rank of the predictor.
        fit: the schedule. On one machine its seed decides every bit of the result.
        advance: called with the number of steps taken, whenever the loss has been measured.

    Returns:
        The predictor with the least loss on held-out text, among all whose loss was measured.
    """
    random = np.random.default_rng(fit.seed)
    sample = inputs[random.integers(0, len(inputs), 8 * fit.batch)]
    share = jnp.clip(_share(ffn, jnp.asarray(sample)), 1e-6, 1 - 1e-6)
    pieces = np.split(held_out, range(fit.batch, len(held_out), fit.batch))

    def measured(low: LowRank) -> float:
        each = [float(_loss(low, ffn, share, jnp.asarray(piece))) for piece in pieces]
        return float(np.average(each, weights=[len(piece) for piece in pieces]))

    low = initial_low_rank(ffn, sample, rank)
    memory = _optimiser(fit).init(low)
    best, best_loss, best_step, step = low, measured(low), 0, 0
    while step < fit.steps and step - best_step < fit.every * fit.patience:
        x = inputs[random.integers(0, len(inputs), fit.batch)]
        low, memory = _step(fit, low, memory, ffn, share, jnp.asarray(x))
        step += 1
        if step % fit.every == 0 or step == fit.steps:
            loss = measured(low)
            if loss < best_loss:
                best, best_loss, best_step = low, loss, step
            advance(step)
    return Fitted(best, step, best_loss)


def class_balanced_loss(logits: jax.Array, active: jax.Array, share: jax.Array) -> jax.Array:
    """Binary cross-entropy in which the active and the inactive weigh the same (decision 6).

    Args:
        logits: (tokens, n).
        active: (tokens, n) mask.
        share: (), the share of active neurons, which sets the weights. It is counted on many tokens, because
            a batch's own share would vary from batch to batch.

    Returns:
        () float32, the mean loss of a neuron.
    """
    weight = jnp.where(active, 1 / (2 * share), 1 / (2 * (1 - share)))
    return (weight * jax.nn.softplus(jnp.where(active, -logits, logits))).mean()


def initial_low_rank(ffn: FFN, inputs: Floats, rank: int) -> LowRank:
    """The low-rank map that is nearest in mean square to the pre-activations, each scaled to variance 1.

    It is the truncated SVD of the up projection (of the gate projection where there is one) times the square
    root of the inputs' covariance. A fit that starts here needs far fewer steps than one from random weights.
    Each logit is scaled by 1.7 / σ, where σ is the standard deviation of what the map leaves out: with this
    factor the logistic function is close to the normal distribution function.

    Args:
        ffn: the layer.
        inputs: (tokens, d) float32, a sample of what the layer's up projection receives.
        rank: the rank of the map.

    Returns:
        The predictor that a fit starts from.
    """
    weight, given = (ffn.up, ffn.up_bias) if ffn.gate is None else (ffn.gate, ffn.gate_bias)
    weight = np.asarray(weight, np.float64)
    above = (np.zeros(len(weight)) if given is None else np.asarray(given, np.float64)) - ffn.tau
    x = inputs.astype(np.float64)
    centre = x.mean(0)
    covariance = np.cov(x, rowvar=False).reshape(2 * weight.shape[1:])
    covariance += 1e-6 * max(np.trace(covariance) / len(centre), 1e-6) * np.eye(len(centre))
    root = np.linalg.cholesky(covariance)
    scale = 1 / np.maximum(np.linalg.norm(weight @ root, axis=1), 1e-6)
    left, values, right = np.linalg.svd(scale[:, None] * (weight @ root), full_matrices=False)
    a = np.linalg.solve(root.T, right[:rank].T).T
    b = left[:, :rank] * values[:rank]
    bias = scale * (weight @ centre + above) - b @ (a @ centre)
    steep = 1.7 / np.sqrt(np.maximum(1 - (b**2).sum(1), 0.02))
    parts = (a, steep[:, None] * b, steep * bias)
    return LowRank(*(jnp.asarray(part, jnp.float32) for part in parts))


def to_stored(low: LowRank, threshold: float = 0.0) -> Predictor:
    """Convert a predictor to what its file stores: F16 maps and bias, and a threshold rounded to float32.

    Each row of a and column of b are scaled by opposite powers of two, so that both fit into F16. This
    changes no logit.

    Args:
        low: the fitted predictor.
        threshold: its threshold, a logit.

    Returns:
        The predictor in its stored dtypes.
    """
    a, b, bias = (np.asarray(part) for part in low)
    sizes = [np.maximum(np.abs(part).max(axis), 1e-30) for part, axis in ((a, 1), (b, 0))]
    shift = np.exp2(np.round(np.log2(sizes[0] / sizes[1]) / 2))
    largest = np.finfo(np.float16).max
    a, b, bias = (
        np.ascontiguousarray(np.clip(part, -largest, largest), np.float16)
        for part in (a / shift[:, None], b * shift, bias)
    )
    return Predictor(a, b, bias, float(np.float32(threshold)))


def _optimiser(fit: FitSchedule) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(fit.rate, fit.steps), b2=0.99)


@jax.jit
def _share(ffn: FFN, x: jax.Array) -> jax.Array:
    return truly_active(ffn, x).mean()


@jax.jit
def _loss(low: LowRank, ffn: FFN, share: jax.Array, x: jax.Array) -> jax.Array:
    without_threshold = Predictor(*low, threshold=0.0)  # type: ignore[arg-type]  # arrays of JAX
    return class_balanced_loss(logits(without_threshold, x), truly_active(ffn, x), share)


@partial(jax.jit, static_argnums=0)
def _step(
    fit: FitSchedule, low: LowRank, memory: optax.OptState, ffn: FFN, share: jax.Array, x: jax.Array
) -> tuple[LowRank, optax.OptState]:
    slopes = jax.grad(_loss)(low, ffn, share, x)
    changes, memory = _optimiser(fit).update(slopes, memory, low)
    return optax.apply_updates(low, changes), memory
