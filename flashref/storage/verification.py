"""Verifies a device on batches of mixed reads, which it was not fitted to."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flashref.storage.calibration import MeasuredBatch, Verification
from flashref.storage.device import Device, read_time
from flashref.storage.fit import relative_errors, split_half_noise

KIB = 1024
MIXED_DEPTHS = (1, 4, 8, 16, 32)
SMALL_READS = (600, 1200, 1500, 1800, 2000)  # at each depth; they take 20 to 100 ms on an SSD
LARGE_READS = (200, 400, 500, 600, 666)
LIMIT_MEDIAN, LIMIT_P90 = 0.08, 0.15  # errors that a repeated measurement of a shared disk stays below


class MixedBatch(NamedTuple):
    """A batch of reads of several sizes, in bytes and in order; kind: the name of the mixture."""

    kind: str
    depth: int
    sizes: tuple[int, ...]


def mixed_batches(generator: np.random.Generator) -> tuple[MixedBatch, ...]:
    """Draw twenty batches: four mixtures at five queue depths.

    The mixtures are "neuron" (short runs of bundles of 16 KiB, as `read_plan` joins them), "small" (4 to 32
    KiB), "log-uniform" (4 KiB to 1 MiB) and "bimodal" (8 KiB, and one read in ten of 1 MiB).

    Args:
        generator: the generator of the sizes.

    Returns:
        The batches.
    """
    batches = []
    for depth, small, large in zip(MIXED_DEPTHS, SMALL_READS, LARGE_READS, strict=True):
        mixtures = {
            "neuron": 16 * generator.geometric(0.8, small),
            "small": generator.choice([4, 8, 12, 16, 32], small),
            "log-uniform": 4 * np.rint(2 ** generator.uniform(0, 8, large)).astype(np.int64),
            "bimodal": np.where(generator.random(large) < 0.1, 1024, 8),
        }
        batches += [
            MixedBatch(kind, depth, tuple((sizes * KIB).tolist())) for kind, sizes in mixtures.items()
        ]
    return tuple(batches)


def verify(
    device: Device, batches: Sequence[MixedBatch], nanoseconds: Sequence[Sequence[int]]
) -> Verification:
    """Compare a device's times with the medians of measured batches.

    Args:
        device: the device to verify.
        batches: the batches that were measured.
        nanoseconds: for each batch, the nanoseconds of its repeats.

    Returns:
        The errors of the device, the noise, and each batch's times.
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
        for (kind, depth, sizes), repeats in zip(batches, nanoseconds, strict=True)
    )
    error = relative_errors(
        [batch.predicted_ns for batch in measured],
        [statistics.median(batch.nanoseconds) for batch in measured],
    )
    return Verification(error, split_half_noise(nanoseconds), measured)


def holds(verification: Verification) -> bool:
    """Decide whether a device is exact enough.

    Args:
        verification: the errors of the device.

    Returns:
        Whether the median error is at most 8 % and the 90th percentile at most 15 %.
    """
    return verification.error.median <= LIMIT_MEDIAN and verification.error.p90 <= LIMIT_P90
