"""Mixed traces, which a device was not fitted to: the error that a user of the device may expect."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flashref.storage.calibration import MeasuredBatch, Verification
from flashref.storage.device import Device, read_time
from flashref.storage.fit import relative_errors, split_half_noise

KIB = 1024
MIXED_DEPTHS = (1, 4, 8, 16, 32)
SMALL_READS = (600, 1200, 1500, 1800, 2000)  # at each depth: 20 to 100 ms on an SSD
LARGE_READS = (200, 400, 500, 600, 666)
LIMIT_MEDIAN, LIMIT_P90 = 0.08, 0.15  # what a repeated measurement of a shared disk can be held to


class MixedBatch(NamedTuple):
    """One batch of mixed reads: their sizes in bytes, in order, `depth` of them at a time."""

    kind: str
    depth: int
    sizes: tuple[int, ...]


def mixed_batches(generator: np.random.Generator) -> tuple[MixedBatch, ...]:
    """Twenty traces: four mixtures at five depths.

    The mixtures are "neuron", bundles of 16 KiB in short runs, as `bundle_extents` joins them; "small", 4 to
    32 KiB; "log-uniform", 4 KiB to 1 MiB; "bimodal", 8 KiB, and one in ten of 1 MiB.

    Args:
        generator: of the sizes.
    """
    traces = []
    for depth, small, large in zip(MIXED_DEPTHS, SMALL_READS, LARGE_READS, strict=True):
        mixtures = {
            "neuron": 16 * generator.geometric(0.8, small),
            "small": generator.choice([4, 8, 12, 16, 32], small),
            "log-uniform": 4 * np.rint(2 ** generator.uniform(0, 8, large)).astype(np.int64),
            "bimodal": np.where(generator.random(large) < 0.1, 1024, 8),
        }
        traces += [MixedBatch(kind, depth, tuple((sizes * KIB).tolist())) for kind, sizes in mixtures.items()]
    return tuple(traces)


def verify(
    device: Device, traces: Sequence[MixedBatch], nanoseconds: Sequence[Sequence[int]]
) -> Verification:
    """The device's times beside the median of each trace's repeats.

    Args:
        device: to verify.
        traces: that were timed.
        nanoseconds: of each trace, every repeat.
    """
    measured = tuple(
        MeasuredBatch(
            kind,
            depth,
            len(sizes),
            sum(sizes),
            read_time(device._replace(queue_depth=depth), sizes),
            tuple(repeats),
        )
        for (kind, depth, sizes), repeats in zip(traces, nanoseconds, strict=True)
    )
    error = relative_errors(
        [trace.predicted_ns for trace in measured],
        [statistics.median(trace.nanoseconds) for trace in measured],
    )
    return Verification(error, split_half_noise(nanoseconds), measured)


def holds(verification: Verification) -> bool:
    """Whether the median error is at most 8 % and the 90th percentile at most 15 %."""
    return verification.error.median <= LIMIT_MEDIAN and verification.error.p90 <= LIMIT_P90
