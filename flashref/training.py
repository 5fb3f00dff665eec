"""Fitting predictors: from what the up projection receives to which neurons will fire.

Paper section 3.1 (Fig. 3b); decisions 4 (threshold), 5 (input), 6 (shape and loss), 22 (rates).
Pure functions over arrays: recording the inputs from a model, and choosing which text is for
fitting, for choosing and for judging, is the caller's part.  Names: d the width, n the neurons of
a layer, r the rank of its predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from flashref.types import Predictor

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class LowRank(NamedTuple):
    """A predictor while it is fitted, float32: a (r, d), b (n, r), bias (n,); no threshold yet."""

    a: jax.Array
    b: jax.Array
    bias: jax.Array


class Fit(NamedTuple):
    """How long and how fast to fit: Adam whose rate falls to 0 by a cosine."""

    steps: int = 1500
    batch: int = 4096
    rate: float = 3e-3
    seed: int = 0


def class_balanced_loss(logits: jax.Array, active: jax.Array, share: jax.Array) -> jax.Array:
    """Binary cross-entropy in which the active and the inactive weigh the same (decision 6).

    logits, active: (tokens, n); share: () of (token, neuron) pairs active in the whole text, so
    that a batch's own share does not move the weights.
    """
    weight = jnp.where(active, 1 / (2 * share), 1 / (2 * (1 - share)))
    return (weight * jax.nn.softplus(jnp.where(active, -logits, logits))).mean()


def initial_low_rank(inputs: Floats, up: Floats, up_bias: Floats, rank: int) -> LowRank:
    """The rank-r map nearest in mean square to the pre-activations, each taken at variance 1.

    inputs (tokens, d), up (n, d), up_bias (n,).  It is the truncated SVD of the up projection seen
    through the covariance of its inputs; the fit starts from here instead of from noise.  What the
    map leaves out is noise to it, and a logit is steep where that noise is small: 1.7 / its
    standard deviation makes a logistic function of a normal one.
    """
    x = inputs.astype(np.float64)
    centre = x.mean(0)
    covariance = np.cov(x, rowvar=False) + 1e-6 * np.eye(x.shape[1])
    root = np.linalg.cholesky(covariance)
    scale = 1 / np.maximum(np.linalg.norm(up @ root, axis=1), 1e-6)
    left, values, right = np.linalg.svd(scale[:, None] * (up @ root), full_matrices=False)
    a = np.linalg.solve(root.T, right[:rank].T).T
    b = left[:, :rank] * values[:rank]
    bias = scale * (up @ centre + up_bias) - b @ (a @ centre)
    steep = 1.7 / np.sqrt(np.maximum(1 - (b**2).sum(1), 0.02))
    parts = (a, steep[:, None] * b, steep * bias)
    return LowRank(*(jnp.asarray(part, jnp.float32) for part in parts))


def low_rank_logits(x: jax.Array, low: LowRank) -> jax.Array:
    """Logits (tokens, n) of inputs (tokens, d): two linear maps, nothing between them."""
    return (x @ low.a.T) @ low.b.T + low.bias


def fit_low_rank(inputs: Floats, up: Floats, up_bias: Floats, rank: int, fit: Fit) -> LowRank:
    """Fit a predictor of one ReLU layer; its labels are up · x + up_bias > 0 in float32.

    inputs (tokens, d), up (n, d), up_bias (n,).  Deterministic from fit.seed on one machine.
    """
    schedule = optax.cosine_decay_schedule(fit.rate, fit.steps)
    update = optax.adam(schedule, b2=0.99)
    random = np.random.default_rng(fit.seed)
    sample = inputs[random.integers(0, len(inputs), 8 * fit.batch)]
    share = jnp.float32(max(truly_active(sample, up, up_bias).mean(), 1e-6))

    @jax.jit
    def step(
        low: LowRank, memory: optax.OptState, x: jax.Array, up: jax.Array, up_bias: jax.Array
    ) -> tuple[LowRank, optax.OptState]:
        active = x @ up.T + up_bias > 0
        slopes = jax.grad(lambda low: class_balanced_loss(low_rank_logits(x, low), active, share))(low)
        changes, memory = update.update(slopes, memory, low)
        return optax.apply_updates(low, changes), memory

    low = initial_low_rank(sample, up, up_bias, rank)
    memory = update.init(low)
    for _ in range(fit.steps):
        x = inputs[random.integers(0, len(inputs), fit.batch)]
        low, memory = step(low, memory, jnp.asarray(x), jnp.asarray(up), jnp.asarray(up_bias))
    return low


def stored(low: LowRank, threshold: float = 0.0) -> Predictor:
    """The predictor as a file has it: F16 maps and bias, a threshold that float32 holds."""
    a, b, bias = (np.ascontiguousarray(part, np.float16) for part in low)
    return Predictor(a, b, bias, float(np.float32(threshold)))


def truly_active(inputs: Floats, up: Floats, up_bias: Floats) -> Flags:
    """Which neurons of a ReLU layer fire, (tokens, n): z > 0 (decision 7)."""
    return inputs @ up.T + up_bias > 0


def predictor_logits(inputs: Floats, predictor: Predictor) -> Floats:
    """Logits (tokens, n) of the stored numbers, in float32."""
    a, b = predictor.a.astype(np.float32), predictor.b.astype(np.float32)
    logits = (inputs @ a.T) @ b.T
    if predictor.bias is not None:
        logits = logits + predictor.bias.astype(np.float32)
    return np.asarray(logits, np.float32)


class Curve(NamedTuple):
    """A layer's errors at every threshold of a grid, all (thresholds,)."""

    thresholds: Floats
    false_negatives: Counts
    false_positives: Counts


def error_curve(logits: Floats, active: Flags, low: float = -8.0, high: float = 8.0) -> Curve:
    """Count errors at 1,601 thresholds between low and high; logits, active: (tokens, n)."""
    edges = np.linspace(low, high, 1601, dtype=np.float32)
    place = (logits - low) * ((len(edges) - 1) / (high - low))
    bins = np.clip(np.ceil(place), 0, len(edges)).astype(np.int64)  # bin j: edge j-1 < logit ≤ edge j
    at = [np.bincount(bins[which], minlength=len(edges) + 1) for which in (active, ~active)]
    missed = np.cumsum(at[0])[:-1]
    extra = at[1].sum() - np.cumsum(at[1])[:-1]
    return Curve(edges, missed, extra)


PRICES = np.geomspace(1e-3, 1e5, 400)  # of a false negative, in false positives


def _cheapest(curve: Curve, price: float) -> tuple[float, int, int]:
    """Threshold, false negatives and false positives at which their sum costs least."""
    index = int(np.argmin(curve.false_positives + price * curve.false_negatives))
    return (
        float(curve.thresholds[index]),
        int(curve.false_negatives[index]),
        int(curve.false_positives[index]),
    )


def choose_thresholds(curves: Sequence[Curve], allowed: int) -> list[float]:
    """A threshold per layer: fewest false positives in all, with at most so many false negatives.

    At the best choice one false negative costs the same number of false positives in every layer;
    the lowest such price that keeps to the limit is taken.  Raises ValueError if none does.
    """
    for price in PRICES:
        best = [_cheapest(curve, float(price)) for curve in curves]
        if sum(missed for _, missed, _ in best) <= allowed:
            return [threshold for threshold, _, _ in best]
    raise ValueError(f"no thresholds give at most {allowed} false negatives")


def choose_ranks(
    ranks: Sequence[int], curves: Sequence[Sequence[Curve]], total: int, allowed: int
) -> list[int]:
    """A rank per layer, together at most total, for the fewest false positives.

    curves[layer][i] belongs to ranks[i] (ascending); between two of them errors are taken to fall
    in a line.  At the lowest price of a false negative that keeps to the limit, one rank after the
    other goes to the layer that saves most by it.  Raises ValueError if no price keeps to it.
    """
    grid = np.arange(ranks[0], ranks[-1] + 1)
    spare = min(total, len(curves) * ranks[-1]) - len(curves) * ranks[0]
    every = np.arange(len(curves))
    for price in PRICES:
        best = np.array([[_cheapest(curve, float(price))[1:] for curve in row] for row in curves])
        missed, extra = (
            np.array([np.interp(grid, ranks, row) for row in best[:, :, which]]) for which in (0, 1)
        )
        saved = -np.diff(extra + price * missed, axis=1, append=np.inf)  # by one rank more
        chosen = np.zeros(len(curves), np.int64)
        for _ in range(spare):
            chosen[np.argmax(saved[every, chosen])] += 1
        if missed[every, chosen].sum() <= allowed:
            return [int(rank) for rank in grid[chosen]]
    raise ValueError(f"no ranks and thresholds give at most {allowed} false negatives")


class Residency(NamedTuple):
    """Rows kept with a window of k = 1, 2, ... tokens (index k - 1) and no limit (decision 1)."""

    mean: Floats
    largest: npt.NDArray[np.int32]
    new: Floats  # mean number of rows read per token


def residency(predicted: Flags, context: int, windows: int = 5) -> Residency:
    """|C_t| and |P_t \\ C_(t-1)| over chunks of a context, each with an empty window at first.

    predicted: (chunks · context, n), the sets P_t; C_t is the union of the last k of them.
    """
    sets = predicted.reshape(-1, context, predicted.shape[1])
    union = np.zeros_like(sets)
    mean, largest, new = [], [], []
    for k in range(1, windows + 1):
        union[:, k - 1 :] |= sets[:, : context - k + 1]
        counts = union.sum(2)
        before = np.zeros_like(union)
        before[:, 1:] = union[:, :-1]
        mean.append(counts.mean())
        largest.append(counts.max())
        new.append((sets & ~before).sum(2).mean())
    return Residency(np.array(mean, np.float32), np.array(largest, np.int32), np.array(new, np.float32))
