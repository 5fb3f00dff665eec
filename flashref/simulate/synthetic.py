"""Synthetic traces: a random process with two parameters, and a density for each layer.

In a layer of density d, a share φ·d of the neurons is always active. Every other neuron has a rate of its own
from Beta(m·c, (1 − m)·c) with m = (d − φ·d) / (1 − φ·d), and is active in each token with that probability,
independently. So the layer's mean density is d, few neurons do most of the work, and the aggregated use of k
≥ 1 tokens is s_agg(k) = φd + (1 − φd)·(1 − Π_{j<k} ((1 − m)·c + j) / (c + j)), a ratio of Beta functions.

The process leaves out that neighbouring tokens are more alike than distant ones, and that neurons depend on
each other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import ActivationTrace
from flashref.types import DomainError

Shares = npt.NDArray[np.float64]
LEVELS = 256  # values of a random byte


class ActivationProcess(NamedTuple):
    """The parameters of the process.

    always: φ, the share of a layer's density that is always active, from 0 to 1.
    concentration: c > 0, how close the rates of the other neurons are to each other.
    """

    always: float
    concentration: float


# What the fits below give, to four digits; tests/simulate/test_synthetic.py fits them again.
# Falcon: to Fig. 4a, with the density 0.1246, at most 1.55 % off. OPT: to the 24 % kept and the 2.4 % new of
# section C.1, with k = 5 and the densities of Fig. 9a.
FALCON_PROCESS = ActivationProcess(0.6706, 8.107)
OPT_PROCESS = ActivationProcess(0.5045, 9.504)


def expected_use(process: ActivationProcess, densities: npt.ArrayLike, k: npt.ArrayLike) -> Shares:
    """Compute s_agg(k), the expected share of a layer's neurons that k tokens in a row use.

    Args:
        process: the process.
        densities: densities from 0 to 1.
        k: whole numbers ≥ 0, of a shape that broadcasts with that of the densities.

    Returns:
        Shares of the neurons, of the common shape.

    Raises:
        DomainError: the process, a density or a k is impossible.
    """
    _check(process, densities)
    tokens = np.asarray(k)
    if tokens.dtype.kind not in "iu" or tokens.min(initial=0) < 0:
        raise DomainError("s_agg(k) is defined for whole numbers k ≥ 0")
    return _expected_use(process.always, process.concentration, np.asarray(densities, np.float64), tokens)


def fit_use_curve(points: Sequence[tuple[int, float]]) -> tuple[ActivationProcess, float]:
    """Fit a process and a density to a curve of aggregated use, so that the largest relative error is least.

    Args:
        points: at least three pairs of k ≥ 1 and a share between 0 and 1.

    Returns:
        The process, and the density.

    Raises:
        DomainError: there are too few points, or a point is impossible.
    """
    k = np.array([point[0] for point in points], np.int64)
    use = np.array([point[1] for point in points], np.float64)
    if len(points) < 3 or k.min() < 1 or use.min() <= 0 or use.max() >= 1:
        raise DomainError("a curve of use needs at least three points, with k ≥ 1 and shares between 0 and 1")

    def errors(unknown: Shares) -> Shares:
        always, concentration, density = _bounded(unknown)
        return _expected_use(always, concentration, np.asarray(density), k) / use - 1

    first = use[np.argmin(k)]
    best = _minimax(errors, [_unbounded(always, c, first) for always in (0.2, 0.7) for c in (2.0, 20.0)])
    always, concentration, density = _bounded(best)
    return ActivationProcess(always, concentration), density


def fit_window(densities: Sequence[float], window: int, kept: float, new: float) -> ActivationProcess:
    """Fit a process to the mean shares of all layers' neurons that a window keeps and loads.

    No process may give both shares. The larger of the two relative errors is made least; `expected_use` tells
    how large it is.

    Args:
        densities: the density of each layer, from 0 to 1.
        window: k in tokens, ≥ 1.
        kept: s_agg(k), between 0 and 1.
        new: s_agg(k + 1) − s_agg(k), below `kept`: what the window loads for a token, for before a token
            comes it has the k tokens before (decision 1).

    Returns:
        The process.

    Raises:
        DomainError: a number is impossible.
    """
    _check(ActivationProcess(0.5, 1.0), densities)
    if window < 1 or not 0 < new < kept < 1:
        raise DomainError("a window of k ≥ 1 tokens keeps a share of the neurons and loads a smaller share")
    layers = np.asarray(densities, np.float64)[:, None]
    tokens = np.array([window, window + 1])

    def errors(unknown: Shares) -> Shares:
        always, concentration, _ = _bounded(unknown)
        use = _expected_use(always, concentration, layers, tokens).mean(0)
        return np.array([use[0] / kept - 1, (use[1] - use[0]) / new - 1])

    best = _minimax(errors, [_unbounded(always, c, 0.5) for always in (0.2, 0.7) for c in (2.0, 20.0)])
    return ActivationProcess(*_bounded(best)[:2])


def synthetic_trace(
    rng: np.random.Generator,
    process: ActivationProcess,
    densities: Sequence[float],
    units: Sequence[int],
    tokens: int,
    first_counted: int = 0,
) -> ActivationTrace:
    """Draw a trace from a process; which units of a layer are active often is random too.

    Args:
        rng: the generator; equal generators give equal traces.
        process: the process.
        densities: the density of each layer, from 0 to 1.
        units: how many units each layer has.
        tokens: how many tokens the trace has, with those of the warm-up.
        first_counted: the first token whose costs count.

    Returns:
        The trace.

    Raises:
        DomainError: the process is impossible, the lists do not match, or no token would count.
    """
    _check(process, densities)
    if len(densities) != len(units) or not units or min(units) < 1 or not 0 <= first_counted < tokens:
        raise DomainError(
            "a trace needs a density and a number of units for each layer, and a token that counts, not "
            f"{len(densities)} densities, {len(units)} layers and {tokens} tokens from {first_counted} on"
        )
    rates = np.concatenate([_rates(rng, process, d, n) for d, n in zip(densities, units, strict=True)])
    layer_start = np.concatenate([[0], np.cumsum(units)])
    # A random byte is below `level` with the whole 256ths of a rate; the rest of it comes as rare extras.
    level = np.floor(LEVELS * np.minimum(rates, 1 - 1 / LEVELS)).astype(np.uint8)
    always = rates == 1
    extras, extra_starts = _extras(rng, (rates - level / LEVELS) / (1 - level / LEVELS), ~always, tokens)
    words = -(-len(rates) // 8)
    mask = np.empty(len(rates), bool)
    ids, lengths = [], [np.zeros(1, np.int64)]
    for token in range(tokens):
        draws = rng.integers(0, 1 << 64, words, np.uint64).view(np.uint8)[: len(rates)]
        np.less(draws, level, out=mask)
        np.logical_or(mask, always, out=mask)
        mask[extras[extra_starts[token] : extra_starts[token + 1]]] = True
        active = np.flatnonzero(mask)
        counts = np.diff(np.searchsorted(active, layer_start))
        ids.append((active - np.repeat(layer_start[:-1], counts)).astype(np.int32))
        lengths.append(counts)
    return ActivationTrace(
        tuple(map(int, units)), np.concatenate(ids), np.cumsum(np.concatenate(lengths)), first_counted
    )


def _extras(
    rng: np.random.Generator, chances: Shares, among: npt.NDArray[np.bool_], tokens: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which neurons are active in each token with small chances < 1: indices, and where each token's begin.

    The events of a Poisson process are spread over the tokens: so a token gets none with probability 1 −
    chance.
    """
    neurons = np.flatnonzero(among)
    events = np.repeat(neurons, rng.poisson(-tokens * np.log1p(-chances[neurons])))
    at = rng.integers(0, tokens, len(events)).astype(np.min_scalar_type(tokens))  # small integers sort faster
    starts = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=tokens))])
    return events[np.argsort(at, kind="stable")], starts


def _rates(rng: np.random.Generator, process: ActivationProcess, density: float, n: int) -> Shares:
    """The rate at which each neuron of a layer is active."""
    always = int(process.always * density * n)
    # The mean rate of the others, so that the layer's density is exact although `always` is a whole number.
    mean = min((density * n - always) / (n - always), 1.0) if always < n else 1.0
    a, b = mean * process.concentration, (1 - mean) * process.concentration
    rates = rng.beta(a, b, n) if a > 0 and b > 0 else np.full(n, mean)
    rates[rng.permutation(n)[:always]] = 1.0
    return rates


def _expected_use(always: float, concentration: float, density: Shares, k: npt.NDArray[np.int64]) -> Shares:
    d, tokens = np.broadcast_arrays(density, k)
    mean = _of_others(always, d)
    never_used = np.zeros(d.shape)  # the logarithm of the probability
    with np.errstate(divide="ignore"):  # the logarithm of 0, where every neuron is active
        for j in range(int(k.max(initial=0))):
            factor = np.log1p(-mean * concentration / (concentration + j))
            never_used += np.where(j < tokens, factor, 0.0)
    return np.where(tokens > 0, always * d - (1 - always * d) * np.expm1(never_used), 0.0)


def _of_others(always: float, density: Shares) -> Shares:
    """The mean rate of the neurons that are not always active."""
    rest = 1 - always * density
    return np.divide(density - always * density, rest, out=np.ones(density.shape), where=rest > 0)


def _check(process: ActivationProcess, densities: npt.ArrayLike) -> None:
    given = np.asarray(densities, np.float64)
    if not (0 <= process.always <= 1 and 0 < process.concentration < np.inf):
        raise DomainError(
            f"a process needs `always` from 0 to 1 and a finite concentration above 0, not {process}"
        )
    if not ((given >= 0) & (given <= 1)).all():
        raise DomainError("a density is a share of the neurons, from 0 to 1")


def _unbounded(always: float, concentration: float, density: float) -> Shares:
    """The parameters as three numbers without limits."""
    logits = np.log([always / (1 - always), density / (1 - density)])
    return np.array([logits[0], np.log(concentration), logits[1]])


def _bounded(unknown: Shares) -> tuple[float, float, float]:
    """The parameters (always, concentration, density) that such numbers stand for."""
    always, density = 1 / (1 + np.exp(-np.clip(unknown[[0, 2]], -30, 30)))
    return float(always), float(np.exp(np.clip(unknown[1], -30, 30))), float(density)


def _minimax(errors: Callable[[Shares], Shares], starts: Sequence[Shares]) -> Shares:
    """The parameters whose largest |error| is least: the smallest t with −t ≤ error ≤ t."""
    from scipy.optimize import minimize  # slow to import

    def slack(x: Shares) -> Shares:
        off = errors(x[:-1])
        return np.concatenate([x[-1] - off, x[-1] + off])

    best, least = starts[0], np.inf
    for start in starts:
        found = minimize(
            lambda x: x[-1],
            np.append(start, np.abs(errors(start)).max()),
            method="SLSQP",
            constraints={"type": "ineq", "fun": slack},
            options={"maxiter": 500, "ftol": 1e-12},
        ).x[:-1]
        largest = np.abs(errors(found)).max()
        if largest < least:
            best, least = found, largest
    return best
