"""A simulated disk, readers that take its time, and its calibration."""

import datetime

import numpy as np
import pytest

from flashref.storage.calibrate import conclude, measure
from flashref.storage.calibration import Conditions
from flashref.storage.device import Device, read_time
from flashref.storage.verification import mixed_batches
from flashref.types import Read

MIB = 2**20
FILE_BYTES = 16 * MIB
NOW = datetime.datetime(2026, 11, 22, 7, 30, tzinfo=datetime.UTC)
DISK = Device(
    60_000,
    70_000,
    2_500_000_000,
    stream_bandwidth=5_000_000_000,
    dispatch_ns=20_000,
    knee=1.5,
    queue_depth=32,
)
CONDITIONS = Conditions(
    "2026-11-22", "Linux 6.1", 0.5, "3.11", "threads", "huge pages", True, "/disk", "ext4", FILE_BYTES, 4, 0
)
MIXED = mixed_batches(np.random.default_rng(4))


def simulated_readers(device, log=None):
    """Readers of a disk that is this device; log: what they were asked for."""

    def reader(depth):
        def read(extents):
            assert all(offset % 4096 == 0 and 0 <= offset <= FILE_BYTES - size for offset, size in extents)
            sizes = [extent.length for extent in extents]
            if log is not None:
                log.append((depth, extents))
            return Read((), read_time(device._replace(queue_depth=depth), sizes))

        return read

    return {depth: reader(depth) for depth in (1, 4, 8, 16, 32)}


def measured_on(device, rounds=4, mixed=(), **options):
    generator = np.random.default_rng(1)
    return measure(simulated_readers(device, **options), FILE_BYTES, rounds, generator, mixed)


# A test file takes the fixtures that it needs as its own: calibration = simulated_disk.calibration


@pytest.fixture(scope="module")
def calibration():
    """Of the simulated disk, verified."""
    return conclude(measured_on(DISK, mixed=MIXED), CONDITIONS, MIXED)
