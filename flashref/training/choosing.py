"""Choosing ranks and thresholds, by the errors that they make on text that nothing was fitted on."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flashref.training.layers import AT_ONCE, Floats
from flashref.training.masks import logits, truly_active, widened
from flashref.types import FFN, DomainError, Predictor

Masks = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

LIMIT = 8.0  # thresholds lie between −8 and 8: probabilities of 0.03 % and 99.97 %
EDGES = np.linspace(-LIMIT, LIMIT, 1601, dtype=np.float32)
PRICES = np.geomspace(1e-3, 1e5, 400)  # of a false negative, in false positives


class Curve(NamedTuple):
    """A layer's errors at every threshold of a grid, (thresholds,) each, and how many pairs are active."""

    thresholds: Floats
    false_negatives: Counts
    false_positives: Counts
    active: int


def error_curve(logits: Floats, active: Masks) -> Curve:
    """Count the errors at 1,601 thresholds between −8 and 8.

    Args:
        logits: (tokens, n).
        active: (tokens, n) mask of the truly active neurons.
    """
    place = (logits + LIMIT) * ((len(EDGES) - 1) / (2 * LIMIT))
    bins = np.clip(np.ceil(place), 0, len(EDGES)).astype(np.int64)  # bin j: edge j-1 < logit ≤ edge j
    at = [np.bincount(bins[which], minlength=len(EDGES) + 1) for which in (active, ~active)]
    missed = np.cumsum(at[0])[:-1]
    extra = at[1].sum() - np.cumsum(at[1])[:-1]
    return Curve(EDGES, missed, extra, int(active.sum()))


def curve_on(ffn: FFN, predictor: Predictor, inputs: Floats) -> Curve:
    """The errors of a stored predictor.

    Args:
        ffn: the layer, float32 on the device.
        predictor: of this layer, as it is stored.
        inputs: (tokens, d), what the layer's up projection received.
    """
    wide = widened(predictor)
    size = max(AT_ONCE // len(ffn.up), 1)
    curves = [
        error_curve(
            *map(np.asarray, _logits_and_active(ffn, wide, jnp.asarray(inputs[first : first + size])))
        )
        for first in range(0, len(inputs), size)
    ]
    return Curve(EDGES, *(sum(parts) for parts in list(zip(*curves, strict=True))[1:]))


def choose_thresholds(curves: Sequence[Curve], rate: float) -> list[float]:
    """The thresholds with the fewest false positives that miss at most a share of the active neurons.

    At the best choice one false negative costs the same number of false positives in every layer; the lowest
    such price that keeps to the limit is taken.

    Args:
        curves: of each layer.
        rate: the share of the active neurons of all layers that may be missed.

    Returns:
        A threshold for each layer.

    Raises:
        DomainError: no price keeps to the limit.
    """
    allowed = _allowed(curves, rate)
    for price in PRICES:
        best = [_cheapest(curve, float(price)) for curve in curves]
        if sum(missed for _, missed, _ in best) <= allowed:
            return [threshold for threshold, _, _ in best]
    raise _unreachable(rate)


def tried_ranks(total: int, layers: int, largest: int) -> tuple[int, ...]:
    """Ranks to try in every layer: half, one, one and a half and two times the mean; at most the largest."""
    mean = total // layers
    return tuple(sorted({min(max(mean * halves // 2, 1), largest) for halves in (1, 2, 3, 4)}))


def choose_ranks(
    ranks: Sequence[int], curves: Sequence[Sequence[Curve]], total: int, rate: float
) -> list[int]:
    """The ranks with the fewest false positives.

    Between two ranks that were tried, errors are taken to fall in a line. At the lowest price of a false
    negative that keeps to the limit, one rank after the other goes to the layer that saves most by it.

    Args:
        ranks: that were tried, ascending.
        curves: of each layer, one for each of these ranks.
        total: the most that the chosen ranks may add up to.
        rate: the share of the active neurons of all layers that may be missed.

    Returns:
        A rank for each layer.

    Raises:
        DomainError: no price keeps to the limit.
    """
    allowed = _allowed([row[0] for row in curves], rate)
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
    raise _unreachable(rate)


@jax.jit
def _logits_and_active(ffn: FFN, predictor: Predictor, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return logits(predictor, x), truly_active(ffn, x)


def _allowed(curves: Sequence[Curve], rate: float) -> int:
    return int(rate * sum(curve.active for curve in curves))


def _cheapest(curve: Curve, price: float) -> tuple[float, int, int]:
    """Threshold, false negatives and false positives at which their sum costs least."""
    index = int(np.argmin(curve.false_positives + price * curve.false_negatives))
    return (
        float(curve.thresholds[index]),
        int(curve.false_negatives[index]),
        int(curve.false_positives[index]),
    )


def _unreachable(rate: float) -> DomainError:
    return DomainError(
        f"no ranks and thresholds miss at most {rate:.3g} of the active neurons; allow more with "
        "--false-negatives, or give more ranks"
    )
