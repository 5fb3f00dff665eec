"""A device against batches of mixed reads: their names, their own depths and medians, and the limits."""

import itertools

import numpy as np
import pytest
import simulated_disk
from simulated_disk import MIB, MIXED

from flashref.storage.device import Device
from flashref.storage.fit import Errors
from flashref.storage.verification import MixedBatch, holds, mixed_batches, verify

calibration = simulated_disk.calibration


def test_mixed_batches_are_what_they_are_called():
    assert len(MIXED) == 20
    assert {(batch.kind, batch.depth) for batch in MIXED} == set(
        itertools.product(("neuron", "small", "log-uniform", "bimodal"), (1, 4, 8, 16, 32))
    )
    for kind, _, sizes in MIXED:
        assert 200 <= len(sizes) <= 2000 and all(type(size) is int for size in sizes)
        if kind == "neuron":
            assert all(size % 16_384 == 0 for size in sizes)
            assert 0.7 < sizes.count(16_384) / len(sizes) < 0.9
        elif kind == "small":
            assert set(sizes) == {4096, 8192, 12_288, 16_384, 32_768}
        elif kind == "bimodal":
            assert set(sizes) == {8192, MIB} and 0.04 < sizes.count(MIB) / len(sizes) < 0.18
        else:
            assert all(size % 4096 == 0 and 4096 <= size <= MIB for size in sizes)
            below = sum(size < 65_536 for size in sizes) / len(sizes)  # half of eight doublings
            assert 0.4 < below < 0.6 and max(sizes) > 900_000
    assert mixed_batches(np.random.default_rng(4)) == MIXED != mixed_batches(np.random.default_rng(5))


def test_a_verification_is_of_each_batchs_own_depth_and_median():
    device = Device(100_000, 0, 0, queue_depth=32)  # a read alone takes 100 µs, and q share that
    batches = [MixedBatch("a", 1, (4096,) * 4), MixedBatch("b", 4, (4096, 8192) * 2)]
    found = verify(device, batches, [(400_000, 500_000, 600_000), (100_000, 100_000, 1)])
    assert [batch.predicted_ns for batch in found.traces] == [400_000, 100_000]
    assert [batch.bytes for batch in found.traces] == [16_384, 24_576]
    assert found.error == pytest.approx((0.1, 0.18, 0.2))  # 400 for 500, and exact
    assert found.noise.max == pytest.approx(0.499995)  # 50,000.5 against 100,000


@pytest.mark.parametrize(
    ("median", "p90", "good"), [(0.08, 0.15, True), (0.0801, 0.1, False), (0.01, 0.1501, False)]
)
def test_a_device_is_verified_within_8_and_15_percent(calibration, median, p90, good):
    found = calibration.verification._replace(error=Errors(median, p90, 1.0))
    assert holds(found) is good
