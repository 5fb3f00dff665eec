"""The device model: the time of a batch of reads, in whole nanoseconds. Chapter: specs/50-device.md.

Satisfies: DEV-1 to DEV-15.
"""

import heapq
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from flashref.types import DomainError


class Device(NamedTuple):
    """The parameters of a storage device (chapter 50); a limit of 0 stands for no limit.

    latency_ns, dispatch_ns: nanoseconds; max_iops: reads per second; max_bandwidth, stream_bandwidth: bytes
    per second; split_bytes, block: bytes; queue_depth: the most reads outstanding; knee: the exponent of the
    roofline, from 1 (costs add up) to inf (the largest decides).
    """

    latency_ns: int
    max_iops: int
    max_bandwidth: int
    stream_bandwidth: int = 0
    split_bytes: int = 131_072
    queue_depth: int = 32
    block: int = 4096
    dispatch_ns: int = 0
    knee: float = 1.0


# Chapter 50 gives the origin and the error of each figure. paper_m1max was tuned to the paper's Table 2.
PRESETS: Mapping[str, Device] = MappingProxyType(
    {
        "paper_m1max": Device(108_600, 220_500, 6_100_000_000, stream_bandwidth=1_690_000_000, knee=1.615),
        "paper_m1max_fig2b": Device(
            111_000, 170_900, 6_344_000_000, stream_bandwidth=1_300_000_000, knee=2.403
        ),
        "this_vm": Device(53_000, 80_000, 2_750_000_000, knee=1.05),
        "nvme_gen3": Device(52_000, 600_000, 3_500_000_000, knee=1.5),
        "nvme_gen4": Device(49_600, 1_000_000, 7_400_000_000, knee=1.45),
        "nvme_gen5": Device(33_000, 2_000_000, 12_400_000_000, knee=1.5),
        "ufs40": Device(100_000, 204_000, 3_750_000_000),
        "ufs30": Device(120_000, 54_000, 2_280_000_000, knee=1.5),
        "emmc51": Device(120_000, 8_000, 280_000_000, queue_depth=1),
        "sd_a2": Device(205_000, 0, 90_000_000, queue_depth=1),
    }
)


LARGEST_FIELD = 2**53  # larger numbers are rounded by other readers of JSON; in ns, it is 104 days


def check_device(device: Device) -> Device:
    """Check the fields of a device.

    Args:
        device: the device to check.

    Returns:
        The same device.

    Raises:
        DomainError: a field has the wrong type or a value outside its domain.

    Decision 16: every field is an integer, except the knee. Requirement: DEV-1.
    """
    for name, value in device._asdict().items():
        if name != "knee" and (type(value) is not int or value < 0):
            raise DomainError(f"a device's {name} must be an integer of at least 0, not {value!r:.40}")
        if name != "knee" and value > LARGEST_FIELD:
            raise DomainError(
                f"a device's {name} must be at most 2^53; this one has {len(str(value))} digits"
            )
    if device.queue_depth < 1:
        raise DomainError("a device's queue_depth must be at least 1, not 0; give 1 for one read at a time")
    if device.block < 1 or device.block & (device.block - 1):
        raise DomainError(f"a device's block must be a power of two, not {device.block}")
    if type(device.knee) is not float or not device.knee >= 1:
        raise DomainError(f"a device's knee must be a float from 1.0 to inf, not {device.knee!r}")
    return device


@lru_cache(maxsize=65_536)  # a trace repeats the same few sizes token after token
def service_time(device: Device, size: int, outstanding: int) -> int:
    """The service time of one read of a batch: the soft roofline, rounded up.

    The arguments are not checked, since this is called for every size of every batch.

    Args:
        device: a device that `check_device` accepts.
        size: the size of the read in bytes, a Python int ≥ 1.
        outstanding: how many reads are outstanding, including this one, a Python int ≥ 1.

    Returns:
        Nanoseconds.

    Paper: section 2.2, Fig. 2b. Requirements: DEV-2, DEV-3.
    """
    command = min(size, device.split_bytes) if device.split_bytes else size
    alone = device.latency_ns + _nanoseconds(command, device.stream_bandwidth)
    costs = (
        alone / outstanding,
        _nanoseconds(1, device.max_iops),
        _nanoseconds(size, device.max_bandwidth),
    )
    return math.ceil(_norm(costs, device.knee))


def read_time(device: Device, sizes: Sequence[int]) -> int:
    """The time of one batch of reads, in closed form (paper §2.2, Fig. 2b).

    Args:
        device: the device that is read.
        sizes: the size of each read in bytes, in the order of the plan; Python ints ≥ 1.

    Returns:
        Nanoseconds; 0 for an empty batch.

    Raises:
        DomainError: the device or a size is not in its domain.

    Requirements: DEV-2 to DEV-9.
    """
    counts = _checked_counts(device, sizes)
    if not counts:
        return 0
    outstanding = min(device.queue_depth, len(sizes))
    shared = sum(count * service_time(device, size, outstanding) for size, count in counts.items())
    longest = max(service_time(device, size, 1) for size in counts)
    return max(shared, longest) + device.dispatch_ns * outstanding


def completion_times(device: Device, sizes: Sequence[int]) -> tuple[int, ...]:
    """When each read of a batch completes.

    min(queue_depth, N) workers feed a first-in-first-out server; each worker takes the next read when its own
    read has completed.

    Args, Raises: as for `read_time`.

    Returns:
        Nanoseconds since the batch was issued, in the order of `sizes`.

    Requirements: DEV-9 to DEV-11.
    """
    if not _checked_counts(device, sizes):
        return ()
    outstanding = min(device.queue_depth, len(sizes))
    served = device.dispatch_ns * outstanding
    free = [served] * outstanding  # a heap of the times at which each worker can take its next read
    times = []
    for size in sizes:
        start = free[0]
        served = max(served, start) + service_time(device, size, outstanding)
        done = max(served, start + service_time(device, size, 1))
        heapq.heapreplace(free, done)
        times.append(done)
    return tuple(times)


def device_to_json(device: Device) -> str:
    """Write a device as the text of a JSON file.

    Args:
        device: the device.

    Returns:
        One object with a line for each field; an infinite knee is written as "inf".

    Raises:
        DomainError: as for `check_device`.

    Requirement: DEV-12.
    """
    fields = check_device(device)._asdict()
    if device.knee == math.inf:
        fields["knee"] = "inf"  # JSON has no number for it
    return json.dumps(fields, indent=2, allow_nan=False) + "\n"


def device_from_json(text: str | bytes) -> Device:
    """Read a device from the text of a JSON file.

    Args:
        text: the file's content; every field must be given, and no other.

    Returns:
        The device.

    Raises:
        DomainError: the text does not describe a device.

    Requirements: DEV-12, DEV-13.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise DomainError(f"a device must be a JSON object, but this text is not one: {error}") from error
    if not isinstance(fields, dict):
        raise DomainError(f"a device must be a JSON object, not a {type(fields).__name__}")
    unknown, missing = set(fields) - set(Device._fields), set(Device._fields) - set(fields)
    if unknown:
        raise DomainError(f"a device has no field {sorted(unknown)[0]!r}; it has {', '.join(Device._fields)}")
    if missing:
        raise DomainError(f"the device's field {sorted(missing)[0]!r} is missing; write 0 for no such limit")
    if fields["knee"] == "inf" or (type(fields["knee"]) is int and 0 < fields["knee"] < 2**53):
        fields["knee"] = float(fields["knee"])
    return check_device(Device(**fields))


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("it names a field twice")
    return fields


def _checked_counts(device: Device, sizes: Sequence[int]) -> Counter[int]:
    """Size → how many reads have it; a batch of thousands of reads has only a few sizes."""
    check_device(device)
    counts = Counter(sizes)
    if set(map(type, sizes)) - {int} or min(counts, default=1) < 1:
        raise DomainError("the sizes of reads must be Python ints of at least 1 byte; leave empty reads out")
    return counts


def _nanoseconds(amount: int, per_second: int) -> Fraction:
    return Fraction(amount * 10**9, per_second) if per_second else Fraction(0)


def _norm(costs: tuple[Fraction, ...], knee: float) -> Fraction:
    largest = max(costs)
    if knee == 1:
        return sum(costs, Fraction(0))
    if largest == 0:
        return largest
    # Only the factor, from 1 to 3, is rounded. So no limit is exceeded, and a single cost or a knee of inf
    # gives an exact result.
    factor = math.fsum(float(cost / largest) ** knee for cost in costs) ** (1 / knee)
    return largest * Fraction(factor)
