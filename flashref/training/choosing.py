"""Chooses ranks and thresholds by the errors that they make on text that nothing was fitted on."""

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

LIMIT = 8.0  # the grid of thresholds goes from −8 to 8: probabilities of 0.03 % and 99.97 %
EDGES = np.linspace(-LIMIT, LIMIT, 1601, dtype=np.float32)
PRICES = np.geomspace(1e-3, 1e5, 400)  # how many false positives a false negative may cost


class Curve(NamedTuple):
    """A layer's errors at every threshold of a grid.

    thresholds, false_negatives, false_positives: (thresholds,) each; active: the number of pairs of a token
    and a neuron in which the neuron is truly active.
    """

    thresholds: Floats
    false_negatives: Counts
    false_positives: Counts
    active: int


def error_curve(logits: Floats, active: Masks) -> Curve:
    """Count the errors that each of 1,601 thresholds between −8 and 8 makes.

    Args:
        logits: (tokens, n) float32, the predictor's logits.
        active: (tokens, n) bool, the truly active neurons.

    Returns:
        The errors at each threshold.
    """
    position = (logits + LIMIT) * ((len(EDGES) - 1) / (2 * LIMIT))
    bins = np.clip(np.ceil(position), 0, len(EDGES)).astype(np.int64)  # bin j: edge j-1 < logit ≤ edge j
    of_active, of_inactive = (np.bincount(bins[mask], minlength=len(EDGES) + 1) for mask in (active, ~active))
    false_negatives = np.cumsum(of_active)[:-1]
    false_positives = of_inactive.sum() - np.cumsum(of_inactive)[:-1]
    return Curve(EDGES, false_negatives, false_positives, int(active.sum()))


def curve_on(ffn: FFN, predictor: Predictor, inputs: Floats) -> Curve:
    """Count the errors of a stored predictor at each of the 1,601 thresholds.

    Args:
        ffn: the layer, float32 on the device.
        predictor: the layer's predictor, as its file stores it.
        inputs: (tokens, d) float32, what the layer's up projection received.

    Returns:
        The errors at each threshold.
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
    """Choose the thresholds with the fewest false positives among those that keep to a false negative rate.

    At the best choice, one false negative costs the same number of false positives in every layer. The lowest
    such price that keeps to the rate is taken.

    Args:
        curves: the errors of each layer's predictor.
        rate: the largest false negative rate, over all layers together.

    Returns:
        A threshold for each layer, a logit.

    Raises:
        DomainError: no price keeps to the rate.
    """
    allowed = _allowed(curves, rate)
    for price in PRICES:
        best = [_cheapest(curve, float(price)) for curve in curves]
        if sum(false_negatives for _, false_negatives, _ in best) <= allowed:
            return [threshold for threshold, _, _ in best]
    raise _unreachable(rate)


def tried_ranks(total: int, layers: int, largest: int) -> tuple[int, ...]:
    """Choose the ranks to try in every layer: ½, 1, 1½ and 2 times the mean rank.

    Args:
        total: the largest sum of the layers' ranks.
        layers: the number of layers.
        largest: the largest rank that a layer can have.

    Returns:
        The ranks, ascending.
    """
    mean = total // layers
    return tuple(sorted({min(max(mean * halves // 2, 1), largest) for halves in (1, 2, 3, 4)}))


def choose_ranks(
    ranks: Sequence[int], curves: Sequence[Sequence[Curve]], total: int, rate: float
) -> list[int]:
    """Choose the ranks with the fewest false positives among those that keep to a false negative rate.

    Between two ranks that were tried, the errors are interpolated linearly. At the lowest price of a false
    negative that keeps to the rate, each further rank goes to the layer whose errors it lowers most.

    Args:
        ranks: the ranks that were tried, ascending.
        curves: for each layer, the errors at each of these ranks.
        total: the largest sum of the chosen ranks.
        rate: the largest false negative rate, over all layers together.

    Returns:
        A rank for each layer.

    Raises:
        DomainError: no price keeps to the rate.
    """
    allowed = _allowed([row[0] for row in curves], rate)
    grid = np.arange(ranks[0], ranks[-1] + 1)
    spare = min(total, len(curves) * ranks[-1]) - len(curves) * ranks[0]
    every = np.arange(len(curves))
    for price in PRICES:
        best = np.array([[_cheapest(curve, float(price))[1:] for curve in row] for row in curves])
        false_negatives, false_positives = (
            np.array([np.interp(grid, ranks, row) for row in best[:, :, kind]]) for kind in (0, 1)
        )
        cost = false_positives + price * false_negatives
        saved = -np.diff(cost, axis=1, append=np.inf)  # what one rank more saves
        chosen = np.zeros(len(curves), np.int64)
        for _ in range(spare):
            chosen[np.argmax(saved[every, chosen])] += 1
        if false_negatives[every, chosen].sum() <= allowed:
            return [int(rank) for rank in grid[chosen]]
    raise _unreachable(rate)


@jax.jit
def _logits_and_active(ffn: FFN, predictor: Predictor, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return logits(predictor, x), truly_active(ffn, x)


def _allowed(curves: Sequence[Curve], rate: float) -> int:
    """How many false negatives a false negative rate allows in all layers together."""
    return int(rate * sum(curve.active for curve in curves))


def _cheapest(curve: Curve, price: float) -> tuple[float, int, int]:
    """The threshold at which the errors cost least, with its false negatives and false positives."""
    index = int(np.argmin(curve.false_positives + price * curve.false_negatives))
    return (
        float(curve.thresholds[index]),
        int(curve.false_negatives[index]),
        int(curve.false_positives[index]),
    )


def _unreachable(rate: float) -> DomainError:
    return DomainError(
        f"no ranks and thresholds reach a false negative rate of {rate:.3g}; allow more false negatives with "
        "--false-negatives, or larger predictors with --share or --ranks"
    )
