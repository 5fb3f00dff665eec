"""Fits a Device to measured batches: a robust fit of the soft roofline of specs/50-device.md.

Three sizes of reads at four queue depths suffice for a fit, if they cover the range of both.
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

NOISE = 0.15  # a residual (a difference of logarithms) beyond this counts as an outlier
# Weak priors. They keep a parameter finite that the points do not determine, and hardly move any other.
KNEE, KNEE_WEIGHT = 1.5, 0.3
STREAM, STREAM_WEIGHT = 5e9, 0.05
# The fit starts from a low and from a high stream bandwidth, because the loss can have a minimum at each.
STREAM_STARTS = (1e9, 2e10)
RANGE = 1000.0  # a parameter may be this many times above or below the value that the fit starts from
SPLIT_BYTES = Device._field_defaults["split_bytes"]


class Point(NamedTuple):
    """A batch of `reads` reads of `size` bytes at a queue depth, and the nanoseconds of each repeat."""

    size: int
    depth: int
    reads: int
    nanoseconds: tuple[int, ...]


class Roofline(NamedTuple):
    """The fitted parameters of a device, in the units of `Device` but not yet rounded to integers."""

    latency_ns: float
    max_iops: float
    max_bandwidth: float
    stream_bandwidth: float
    knee: float


class Errors(NamedTuple):
    """The median, the 90th percentile and the largest of some relative errors, as fractions."""

    median: float
    p90: float
    max: float


def fit_device(points: Sequence[Point], dispatch_ns: int = 0) -> Device:
    """Fit a device to the medians of measured points.

    It is a least-squares fit of logarithms, so that small reads count as much as large ones, with a soft_l1
    loss, so that outliers count little.

    Args:
        points: at least five points, of several sizes and several depths.
        dispatch_ns: the device's dispatch time, as `fit_dispatch` finds it.

    Returns:
        The device; its queue depth is the largest depth of the points.

    Raises:
        DomainError: the points are too few or too similar.
    """
    from scipy.optimize import least_squares

    _check(points)
    measured = np.log([statistics.median(point.nanoseconds) for point in points])
    depth = max(point.depth for point in points)
    reads_per_s = max(p.reads * 1e9 / statistics.median(p.nanoseconds) for p in points)
    bytes_per_s = max(p.size * p.reads * 1e9 / statistics.median(p.nanoseconds) for p in points)
    alone_ns = min(statistics.median(p.nanoseconds) / p.reads * min(p.depth, p.reads) for p in points)

    def residuals(logarithms: Floats) -> Floats:
        roofline = Roofline(*np.exp(logarithms))
        errors = np.log(batch_ns(points, roofline, dispatch_ns)) - measured
        priors = (
            KNEE_WEIGHT * (logarithms[4] - math.log(KNEE)),
            STREAM_WEIGHT * (logarithms[3] - math.log(STREAM)),
        )
        return np.append(errors, priors)

    def fitted(stream: float) -> tuple[float, Roofline]:
        start = np.log([alone_ns, reads_per_s, bytes_per_s, stream, KNEE])
        lowest, highest = start - math.log(RANGE), start + math.log(RANGE)
        lowest[4] = 0.0  # the logarithm of the knee, which is at least 1
        found = least_squares(residuals, start, bounds=(lowest, highest), loss="soft_l1", f_scale=NOISE)
        return float(found.cost), Roofline(*np.exp(found.x).tolist())

    _, best = min(map(fitted, STREAM_STARTS), key=lambda pair: pair[0])

    def whole(limit: float) -> int:
        # A limit that the points do not determine may be fitted to more than a device's field can hold.
        return min(max(1, round(limit)), LARGEST_FIELD)

    return Device(
        latency_ns=round(best.latency_ns),
        max_iops=whole(best.max_iops),
        max_bandwidth=whole(best.max_bandwidth),
        stream_bandwidth=whole(best.stream_bandwidth),
        queue_depth=depth,
        dispatch_ns=dispatch_ns,
        knee=round(best.knee, 4),
    )


def fit_dispatch(device: Device, batches: Sequence[Point]) -> int:
    """Fit the dispatch time d that explains small batches: T = T_device + d · (number of workers).

    The loss is that of `fit_device`.

    Args:
        device: the fitted device; its own dispatch_ns is not used.
        batches: small batches, in which waking the workers takes a large share of the time.

    Returns:
        The dispatch time in nanoseconds; 0 if the device's time already explains the batches.
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


def batch_ns(points: Sequence[Point], roofline: Roofline, dispatch_ns: float) -> Floats:
    """Compute `read_time` of each point in float64 and without rounding, as a fit needs it.

    Args:
        points: the batches; their nanoseconds are not used.
        roofline: the parameters to compute the times with.
        dispatch_ns: the time to wake one worker.

    Returns:
        (points,) float64, nanoseconds.
    """
    latency_ns, max_iops, max_bandwidth, stream_bandwidth, knee = roofline
    size = np.array([point.size for point in points], np.float64)
    reads = np.array([point.reads for point in points], np.float64)
    outstanding = np.minimum([point.depth for point in points], reads)
    alone = latency_ns + np.minimum(size, SPLIT_BYTES) * (1e9 / stream_bandwidth)

    def service_time(depth: Floats | float) -> Floats:
        costs = np.stack(np.broadcast_arrays(alone / depth, 1e9 / max_iops, size * (1e9 / max_bandwidth)))
        largest = costs.max(axis=0)  # powers of the costs themselves could overflow
        return np.asarray(largest * ((costs / largest) ** knee).sum(axis=0) ** (1 / knee))

    busy = np.maximum(reads * service_time(outstanding), service_time(1.0))
    return np.asarray(busy + dispatch_ns * outstanding)


def point_time(device: Device, point: Point) -> int:
    """Compute the time of a point's batch on a device.

    Args:
        device: the device.
        point: the batch, whose queue depth is taken instead of the device's.

    Returns:
        Nanoseconds.
    """
    return read_time(device._replace(queue_depth=point.depth), [point.size] * point.reads)


def point_errors(device: Device, points: Sequence[Point]) -> Errors:
    """Compare a device's times with the medians of measured points.

    Args:
        device: the device.
        points: the measured points.

    Returns:
        The relative errors of the device.
    """
    return relative_errors(
        [point_time(device, point) for point in points],
        [statistics.median(point.nanoseconds) for point in points],
    )


def split_half_noise(series: Sequence[Sequence[int]]) -> Errors:
    """Measure the noise: the median of the even repeats against the median of the odd ones.

    No device can be expected to have smaller errors than this.

    Args:
        series: for each batch, the nanoseconds of its repeats; at least two.

    Returns:
        The relative differences.
    """
    halves = [(statistics.median(repeats[::2]), statistics.median(repeats[1::2])) for repeats in series]
    return relative_errors([first for first, _ in halves], [second for _, second in halves])


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """Summarise the relative errors |predicted / measured - 1|.

    Args:
        predicted, measured: equally many times.

    Returns:
        The median, the 90th percentile (interpolated) and the largest of the errors.
    """
    errors = np.abs(np.array(predicted, np.float64) / np.array(measured, np.float64) - 1)
    median, p90, largest = np.quantile(errors, (0.5, 0.9, 1.0)).tolist()
    return Errors(median, p90, largest)


def _check(points: Sequence[Point]) -> None:
    varied: tuple[Callable[[Point], int], ...] = (lambda point: point.size, lambda point: point.depth)
    if len(points) < 5 or any(len(set(map(axis, points))) < 2 for axis in varied):
        raise DomainError("a device is fitted to at least five points of several sizes and several depths")
