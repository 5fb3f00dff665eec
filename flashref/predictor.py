"""The low-rank predictor: which neurons will fire. Chapter: specs/20-predictor.md.

Satisfies: PRD-1 to PRD-7.
"""

import math
from typing import NamedTuple

import numpy as np

from flashref.arithmetic import fast_ascending_sum
from flashref.bounds import predictor_bound
from flashref.types import DomainError, Ids, Predictor, ShapeError, Vector, stored_dtype, widen


class Band(NamedTuple):
    """How far rounding may change a predictor's answer: ids that must be predicted, and ids that may be."""

    must: Ids
    may: Ids


def predict_active(x: Vector, predictor: Predictor) -> Ids:
    """The neurons whose logit exceeds the threshold (paper §3.1, Fig. 3b).

    Args:
        x: (d,) float32, the very vector that the up projection receives (decision 5).
        predictor: two linear maps and a threshold.

    Returns:
        Strictly ascending ids.

    Raises:
        ShapeError: x or the predictor has the wrong shape or dtype.
        DomainError: the threshold is NaN.

    Requirements: PRD-1 to PRD-4.
    """
    return np.flatnonzero(_logits(x, predictor) > np.float32(predictor.threshold))


def active_band(x: Vector, predictor: Predictor) -> Band:
    """What every right implementation must predict, and what it may predict as well.

    Args, Raises: as for `predict_active`.

    Returns:
        The ids whose logit exceeds the threshold by more than the bound, and those for which it is within it.

    Requirements: PRD-5, PRD-6.
    """
    _check(x, predictor)
    x64, a64 = x.astype(np.float64), widen(predictor.a).astype(np.float64)
    logits = widen(predictor.b).astype(np.float64) @ (a64 @ x64)
    if predictor.bias is not None:
        logits = logits + widen(predictor.bias)
    bound = predictor_bound(x, predictor)
    threshold = float(np.float32(predictor.threshold))
    must = logits - bound > threshold
    return Band(np.flatnonzero(must), np.flatnonzero(~must & (logits + bound > threshold)))


def logit_threshold(probability: float) -> float:
    """The threshold on logits for a threshold on probabilities: the float32 nearest to ln(p / (1 − p)).

    Args:
        probability: between 0 and 1; the paper has 0.5, and 0.7 for Persimmon.

    Raises:
        DomainError: the probability is 0, 1 or beyond.

    Requirement: PRD-7.
    """
    if not 0 < probability < 1:
        raise DomainError(f"a probability must lie between 0 and 1, not {probability}")
    return float(np.float32(math.log(probability) - math.log1p(-probability)))


def _logits(x: Vector, predictor: Predictor) -> Vector:
    """The logits: both products are summed in ascending order, and the bias comes last (decision 17)."""
    _check(x, predictor)
    low_rank = fast_ascending_sum(x, widen(predictor.a).T)
    logits = fast_ascending_sum(low_rank, widen(predictor.b).T)
    return logits if predictor.bias is None else logits + widen(predictor.bias)


def _check(x: Vector, predictor: Predictor) -> None:
    a, b, bias, threshold = predictor
    if a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0]:
        raise ShapeError(f"a predictor needs a (r, d) and b (n, r), not {a.shape} and {b.shape}")
    if bias is not None and bias.shape != b.shape[:1]:
        raise ShapeError(f"a predictor's bias must be ({len(b)},), not {bias.shape}")
    for array in (a, b) if bias is None else (a, b, bias):
        stored_dtype(array)
    if x.dtype != np.float32 or x.shape != a.shape[1:]:
        raise ShapeError(f"x must be float32 of shape {a.shape[1:]}, not {x.dtype} of shape {x.shape}")
    if math.isnan(threshold):
        raise DomainError("a predictor's threshold must be a number, not NaN")
