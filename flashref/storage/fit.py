"""From measured batches to a Device: a robust fit of the soft roofline of specs/50-device.md.

Measured and chosen in the project's notes on storage: three sizes at four depths are enough if both axes
are covered; a fit to a few figures of one table is not.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.storage.device import LARGEST_FIELD, Device, read_time
from flashref.types import DomainError

Floats = npt.NDArray[np.float64]

NOISE = 0.15  # of a logarithm: a residual beyond this counts as an outlier
KNEE, KNEE_WEIGHT = 1.5, 0.3  # priors keep what the points do not show finite, and hardly move what they do
STREAM, STREAM_WEIGHT = 5e9, 0.05
STREAM_STARTS = (1e9, 2e10)  # slow or idle: the loss has a valley on each side
RANGE = 1000.0  # a limit that does not show is somewhere within so many times what was seen
SPLIT_BYTES = Device._field_defaults["split_bytes"]


class Point(NamedTuple):
    """A batch of `reads` reads of `size` bytes, `depth` at a time, and the nanoseconds of each repeat."""

    size: int
    depth: int
    reads: int
    nanoseconds: tuple[int, ...]


class Errors(NamedTuple):
    """Relative errors of one series against another, as fractions."""

    median: float
    p90: float
    max: float


def fit_device(points: Sequence[Point], dispatch_ns: int = 0) -> Device:
    """The device whose times are nearest to the points' medians, with the points' largest depth.

    A least-squares fit of logarithms with a soft_l1 loss, so that an outlier does not rule and a small
    read counts as much as a large one.

    Args:
        points: at least five, of several sizes and several depths.
        dispatch_ns: of the device, as `fit_dispatch` finds it.

    Raises:
        DomainError: the points are too few or too much alike.
    """
    from scipy.optimize import least_squares

    _check(points)
    measured = np.log([statistics.median(point.nanoseconds) for point in points])
    depth = max(point.depth for point in points)
    reads_per_s = max(p.reads * 1e9 / statistics.median(p.nanoseconds) for p in points)
    bytes_per_s = max(p.size * p.reads * 1e9 / statistics.median(p.nanoseconds) for p in points)
    alone_ns = min(statistics.median(p.nanoseconds) / p.reads * min(p.depth, p.reads) for p in points)

    def residuals(logarithms: Floats) -> Floats:
        latency, iops, bandwidth, stream, knee = np.exp(logarithms)
        errors = np.log(batch_ns(points, latency, iops, bandwidth, stream, knee, dispatch_ns)) - measured
        priors = (
            KNEE_WEIGHT * (logarithms[4] - math.log(KNEE)),
            STREAM_WEIGHT * (logarithms[3] - math.log(STREAM)),
        )
        return np.append(errors, priors)

    def fitted(stream: float) -> tuple[float, Floats]:
        start = np.log([alone_ns, reads_per_s, bytes_per_s, stream, KNEE])
        lowest, highest = start - math.log(RANGE), start + math.log(RANGE)
        lowest[4] = 0.0  # the knee is at least 1
        found = least_squares(residuals, start, bounds=(lowest, highest), loss="soft_l1", f_scale=NOISE)
        return float(found.cost), np.exp(found.x)

    _, (latency, iops, bandwidth, stream, knee) = min(map(fitted, STREAM_STARTS), key=lambda pair: pair[0])

    def whole(limit: float) -> int:
        # A limit that the points do not show may be fitted to anything; a device's numbers end somewhere.
        return min(max(1, round(limit)), LARGEST_FIELD)

    return Device(
        latency_ns=round(latency),
        max_iops=whole(iops),
        max_bandwidth=whole(bandwidth),
        stream_bandwidth=whole(stream),
        queue_depth=depth,
        dispatch_ns=dispatch_ns,
        knee=round(float(knee), 4),
    )


def fit_dispatch(device: Device, batches: Sequence[Point]) -> int:
    """The dispatch_ns that explains what a device does not: T = T_device + dispatch_ns · q'.

    It is fitted as in `fit_device`.

    Args:
        device: whose own dispatch_ns is left out.
        batches: small ones, each of which was waited for.

    Returns:
        Nanoseconds; 0 where nothing is left to explain.
    """
    from scipy.optimize import least_squares

    measured = np.array([statistics.median(point.nanoseconds) for point in batches])
    explained = np.array([point_time(device._replace(dispatch_ns=0), point) for point in batches], np.float64)
    workers = np.array([min(point.depth, point.reads) for point in batches])

    def residuals(dispatch: Floats) -> Floats:
        return np.asarray(np.log((explained + dispatch * workers) / measured))

    start = max(1.0, float(np.median((measured - explained) / workers)))
    found = least_squares(
        residuals, [start], bounds=(0, np.inf), loss="soft_l1", f_scale=NOISE, x_scale=start
    )
    return round(float(found.x[0]))


def batch_ns(
    points: Sequence[Point],
    latency_ns: float,
    max_iops: float,
    max_bandwidth: float,
    stream_bandwidth: float,
    knee: float,
    dispatch_ns: float,
) -> Floats:
    """read_time of each point in float64, unrounded, for parameters that are no integers yet."""
    size = np.array([point.size for point in points], np.float64)
    reads = np.array([point.reads for point in points], np.float64)
    outstanding = np.minimum([point.depth for point in points], reads)
    alone = latency_ns + np.minimum(size, SPLIT_BYTES) * (1e9 / stream_bandwidth)

    def service_time(depth: Floats | float) -> Floats:
        costs = np.stack(np.broadcast_arrays(alone / depth, 1e9 / max_iops, size * (1e9 / max_bandwidth)))
        largest = costs.max(axis=0)  # a power of the costs themselves could overflow
        return np.asarray(largest * ((costs / largest) ** knee).sum(axis=0) ** (1 / knee))

    busy = np.maximum(reads * service_time(outstanding), service_time(1.0))
    return np.asarray(busy + dispatch_ns * outstanding)


def point_time(device: Device, point: Point) -> int:
    """read_time of the point's batch on the device, at the point's depth."""
    return read_time(device._replace(queue_depth=point.depth), [point.size] * point.reads)


def point_errors(device: Device, points: Sequence[Point]) -> Errors:
    """How far the device's times are from the points' medians."""
    return relative_errors(
        [point_time(device, point) for point in points],
        [statistics.median(point.nanoseconds) for point in points],
    )


def split_half_noise(series: Sequence[Sequence[int]]) -> Errors:
    """How far the median of every second repeat is from the median of the others: no model does better.

    Args:
        series: the nanoseconds of each point or trace, round after round; at least two of each.
    """
    halves = [(statistics.median(repeats[::2]), statistics.median(repeats[1::2])) for repeats in series]
    return relative_errors([first for first, _ in halves], [second for _, second in halves])


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """Median, 90th percentile (interpolated) and largest of |predicted / measured - 1|."""
    errors = np.abs(np.array(predicted, np.float64) / np.array(measured, np.float64) - 1)
    median, p90, largest = np.quantile(errors, (0.5, 0.9, 1.0)).tolist()
    return Errors(median, p90, largest)


def _check(points: Sequence[Point]) -> None:
    varied: tuple[Callable[[Point], int], ...] = (lambda point: point.size, lambda point: point.depth)
    if len(points) < 5 or any(len(set(map(axis, points))) < 2 for axis in varied):
        raise DomainError("a device is fitted to at least five points of several sizes and several depths")
