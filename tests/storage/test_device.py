"""Chapter 50: the device model against rational arithmetic and plain recurrences."""

import json
import math
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashref import Device, same
from flashref.storage import device as device_module
from flashref.storage.device import (
    PRESETS,
    check_device,
    completion_times,
    device_from_json,
    device_to_json,
    read_time,
)
from flashref.types import DomainError

EXACT_KNEES = st.sampled_from([1.0, math.inf])
KNEES = st.one_of(EXACT_KNEES, st.floats(1, 12))
BYTES = st.one_of(st.integers(1, 300_000), st.integers(1, 64).map(lambda blocks: 4096 * blocks))


def limits(most):
    return st.one_of(st.just(0), st.integers(1, most))


def devices(knees=KNEES, most_dispatch=30_000):
    return st.builds(
        Device,
        latency_ns=st.integers(0, 200_000),
        max_iops=limits(1_000_000),
        max_bandwidth=limits(10**10),
        stream_bandwidth=limits(10**10),
        split_bytes=st.sampled_from([0, 512, 16_384, 131_072]),
        queue_depth=st.integers(1, 12),
        block=st.just(4096),
        dispatch_ns=st.integers(0, most_dispatch),
        knee=knees,
    )


def batches(smallest=0):
    equal = st.builds(lambda size, count: [size] * count, BYTES, st.integers(max(smallest, 1), 40))
    return st.one_of(st.lists(BYTES, min_size=smallest, max_size=20), equal)


def rational_costs(device, size, outstanding):
    """The three costs of the chapter's service time, by the letter."""
    alone = Fraction(device.latency_ns)
    if device.stream_bandwidth:
        command = size if device.split_bytes == 0 else min(size, device.split_bytes)
        alone += Fraction(command, device.stream_bandwidth) * 10**9
    costs = [alone / outstanding]
    costs.append(Fraction(10**9, device.max_iops) if device.max_iops else Fraction(0))
    costs.append(Fraction(10**9 * size, device.max_bandwidth) if device.max_bandwidth else Fraction(0))
    return costs


def defined_service_time(device, size, outstanding):
    costs = rational_costs(device, size, outstanding)
    if device.knee == 1:
        return math.ceil(sum(costs))
    if device.knee == math.inf:
        return math.ceil(max(costs))
    with localcontext(prec=40):
        power = Decimal(device.knee)
        total = sum((Decimal(c.numerator) / Decimal(c.denominator)) ** power for c in costs)
        return int((total ** (1 / power)).to_integral_value(ROUND_CEILING))


def defined_time(device, sizes):
    if not sizes:
        return 0
    outstanding = min(device.queue_depth, len(sizes))
    shared = sum(defined_service_time(device, size, outstanding) for size in sizes)
    longest = max(defined_service_time(device, size, 1) for size in sizes)
    return max(shared, longest) + device.dispatch_ns * outstanding


def defined_completions(device, sizes):
    workers = min(device.queue_depth, len(sizes))
    free = [device.dispatch_ns * workers] * workers
    served, times = 0, []
    for size in sizes:
        worker = free.index(min(free))
        served = max(served, free[worker]) + defined_service_time(device, size, workers)
        free[worker] = max(served, free[worker] + defined_service_time(device, size, 1))
        times.append(free[worker])
    return tuple(times)


def slack(device, reads):
    """What rounding may cost: nothing where the arithmetic is exact, else 1 ns a read."""
    return 0 if device.knee in (1, math.inf) else reads


@pytest.mark.req("DEV-2", "DEV-4")
@given(devices(EXACT_KNEES), batches())
@example(Device(0, 0, 0), [1, 2])  # no cost at all
@example(Device(50_000, 3, 7, queue_depth=4), [4096] * 3)  # fewer reads than the depth; thirds and sevenths
def test_time_equals_the_definition(device, sizes):
    assert read_time(device, sizes) == defined_time(device, sizes)


@pytest.mark.req("DEV-3")
@given(devices(st.floats(1, 64)), batches(1))
@example(Device(3000, 250_000, 0, knee=2.0), [512])
@example(Device(0, 0, 0, knee=2.0), [512])  # no cost at all
def test_time_with_another_knee_is_within_a_nanosecond_a_read(device, sizes):
    assert abs(read_time(device, sizes) - defined_time(device, sizes)) <= len(sizes)
    assert abs(read_time(device, sizes[:1]) - defined_time(device, sizes[:1])) <= 1


@pytest.mark.req("DEV-3")
def test_the_knee_is_the_exponent():
    # 3000 ns of latency and 4000 ns a read: 7000 added, 5000 at right angles, 4000 the larger alone.
    times = [read_time(Device(3000, 250_000, 0, knee=knee), [512]) for knee in (1.0, 2.0, math.inf)]
    assert times == [7000, 5000, 4000]


@pytest.mark.req("DEV-2")
@given(BYTES, st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**10))
def test_one_read_at_depth_one_pays_every_cost(size, latency, iops, bandwidth):
    device = Device(latency, iops, bandwidth, queue_depth=1)
    exact = latency + Fraction(10**9, iops) + Fraction(size * 10**9, bandwidth)
    assert read_time(device, [size]) == math.ceil(exact)
    assert read_time(device, [size] * 5) == 5 * math.ceil(exact)


@pytest.mark.req("DEV-4")
@given(devices(), batches(), st.randoms())
def test_order_does_not_matter(device, sizes, random):
    shuffled = random.sample(sizes, len(sizes))
    assert read_time(device, shuffled) == read_time(device, sizes)


@pytest.mark.req("DEV-5", "DEV-6")
@given(devices(), batches(1), st.data())
def test_more_to_read_takes_longer(device, sizes, data):
    before = read_time(device, sizes)
    index = data.draw(st.integers(0, len(sizes) - 1))
    grown = [size + data.draw(BYTES) * (i == index) for i, size in enumerate(sizes)]
    assert read_time(device, grown) >= before - slack(device, len(sizes))
    if len(sizes) >= device.queue_depth:
        assert read_time(device, [*sizes, data.draw(BYTES)]) >= before - slack(device, len(sizes))


@pytest.mark.req("DEV-6")
@given(devices(), BYTES, st.integers(1, 40))
@example(Device(100, 0, 0, queue_depth=5), 4096, 4)  # 4 · 25, then 5 · 20
@example(Device(10, 0, 0, queue_depth=5), 4096, 4)  # 4 · ⌈2.5⌉ = 12, then 5 · 2 = 10
def test_one_more_of_equal_reads(device, size, count):
    assert read_time(device, [size] * (count + 1)) >= read_time(device, [size] * count) - count


@pytest.mark.req("DEV-5", "DEV-6")
@given(devices(most_dispatch=0), batches(1), st.integers(1, 10**10), st.data())
def test_a_better_device_is_not_slower(device, sizes, more, data):
    before = read_time(device, sizes) + slack(device, len(sizes))
    field = data.draw(st.sampled_from(["max_iops", "max_bandwidth", "stream_bandwidth"]))
    limit = getattr(device, field)
    assert read_time(device._replace(**{field: limit and limit + more}), sizes) <= before
    assert read_time(device._replace(**{field: 0}), sizes) <= before
    assert read_time(device._replace(queue_depth=device.queue_depth + more % 20), sizes) <= before


@pytest.mark.req("DEV-7")
@given(devices(), batches(1))
def test_no_limit_is_beaten(device, sizes):
    time = read_time(device, sizes)
    assert time >= device.latency_ns
    assert time * device.max_iops >= 10**9 * len(sizes) or not device.max_iops
    assert time * device.max_bandwidth >= 10**9 * sum(sizes) or not device.max_bandwidth


@pytest.mark.req("DEV-8")
@given(devices(EXACT_KNEES), BYTES, BYTES, batches())
def test_joining_reads_while_the_queue_stays_full(device, first, second, others):
    device = device._replace(queue_depth=min(device.queue_depth, len(others) + 1))
    before = read_time(device, [first, second, *others])
    joined = read_time(device, [first + second, *others])
    alone = read_time(device._replace(queue_depth=1), [first + second])
    assert joined <= max(before, alone + device.dispatch_ns * device.queue_depth)
    if not device.stream_bandwidth:
        assert joined <= before


@pytest.mark.req("DEV-8")
def test_joining_the_only_two_reads_costs_parallelism():
    device = PRESETS["paper_m1max_fig2b"]
    assert read_time(device, [16_384] * 2) // 1000 == 123  # 123.8 µs
    assert read_time(device, [32_768]) // 1000 == 136


def test_a_batch_is_no_faster_than_its_longest_read():
    device = PRESETS["paper_m1max_fig2b"]
    assert read_time(device, [131_072, 4096]) == read_time(device, [131_072]) == 212_169


def test_large_reads_are_split():
    device = Device(1000, 0, 0, stream_bandwidth=10**9, split_bytes=2000)
    assert [read_time(device, [size]) for size in (1000, 2000, 2001, 9000)] == [2000, 3000, 3000, 3000]
    assert read_time(device._replace(split_bytes=0), [9000]) == 10_000


def test_dispatch_is_paid_for_each_worker_that_wakes():
    device = Device(0, 0, 10**9, queue_depth=8, dispatch_ns=20_000)
    assert [read_time(device, [1000] * n) for n in (0, 1, 3, 16)] == [0, 21_000, 63_000, 176_000]


@pytest.mark.req("DEV-10")
@given(devices(EXACT_KNEES), batches())
# While one long read runs, the other worker is ahead of the server, which must not save up the time.
@example(Device(1000, 10**6, 0, stream_bandwidth=10**9, queue_depth=2), [100_000] + [1] * 60)
def test_completions_equal_the_recurrence(device, sizes):
    assert completion_times(device, sizes) == defined_completions(device, sizes)


@pytest.mark.req("DEV-11")
@given(devices(), batches(1))
@example(Device(100_000, 0, 0, queue_depth=4), [4096] * 5)  # the last read waits alone
def test_closed_form_bounds_the_event_simulation(device, sizes):
    last, closed = max(completion_times(device, sizes)), read_time(device, sizes)
    longest = read_time(device._replace(queue_depth=1, dispatch_ns=0), [max(sizes)])
    assert closed <= last + slack(device, len(sizes))
    assert last <= closed + longest + slack(device, len(sizes))


@pytest.mark.req("DEV-11")
@given(devices(), BYTES, st.integers(1, 6))
def test_full_rounds_of_equal_reads_equal_the_closed_form(device, size, rounds):
    sizes = [size] * (rounds * device.queue_depth)
    assert abs(max(completion_times(device, sizes)) - read_time(device, sizes)) <= slack(device, len(sizes))


def test_a_last_round_of_one_read_pays_its_latency():
    device = Device(100_000, 0, 0, queue_depth=4)
    assert read_time(device, [4096] * 5) == 125_000
    assert completion_times(device, [4096] * 5) == (100_000,) * 4 + (200_000,)


@pytest.mark.req("DEV-9")
@pytest.mark.parametrize("sizes", [[0], [-1], [4096, 0], [1.0], [np.int64(4096)], [True], ["4096"]])
@pytest.mark.parametrize("function", [read_time, completion_times])
def test_impossible_sizes_are_refused(function, sizes):
    with pytest.raises((DomainError, TypeError)):
        function(PRESETS["this_vm"], sizes)


def test_equal_reads_are_costed_once(monkeypatch):
    evaluations = []
    norm = device_module._norm
    monkeypatch.setattr(device_module, "_norm", lambda *costs: evaluations.append(costs) or norm(*costs))
    device = Device(98_765, 43_210, 987_654_321, knee=1.234)  # no other test's device: costs are cached
    assert read_time(device, [8192, 4096] * 5000) > 0
    completion_times(device, [8192, 4096] * 5000)
    assert len(evaluations) == 4  # two sizes, alone and in the queue


BAD_FIELDS = [
    ("latency_ns", -1),
    ("latency_ns", 1.0),
    ("latency_ns", True),
    ("latency_ns", None),
    ("max_iops", -5),
    ("max_iops", "fast"),
    ("max_bandwidth", 6.1e9),
    ("stream_bandwidth", -1),
    ("split_bytes", -1),
    ("queue_depth", 0),
    ("queue_depth", -1),
    ("block", 0),
    ("block", 4095),
    ("block", 5),
    ("dispatch_ns", -1),
    ("knee", 0.99),
    ("knee", 0),
    ("knee", -math.inf),
    ("knee", True),
    ("knee", None),
    ("knee", "1.5"),
]


@pytest.mark.req("DEV-1")
@pytest.mark.parametrize(("field", "value"), [*BAD_FIELDS, ("knee", math.nan), ("latency_ns", np.int64(5))])
def test_impossible_devices_are_refused(field, value):
    bad = PRESETS["nvme_gen4"]._replace(**{field: value})
    for use in (check_device, device_to_json, lambda device: read_time(device, [4096])):
        with pytest.raises(DomainError, match=field):
            use(bad)
    with pytest.raises(DomainError, match=field):
        completion_times(bad, [4096])


@pytest.mark.req("DEV-1")
@pytest.mark.parametrize("field", [name for name in Device._fields if name != "knee"])
def test_numbers_that_are_exact_everywhere_are_a_device_and_larger_ones_none(field):
    largest = PRESETS["nvme_gen4"]._replace(**{field: 2**53})
    assert check_device(largest) is largest
    for value in (2**54, 10**30):
        with pytest.raises(DomainError, match=rf"{field} must be at most 2\^53"):
            check_device(largest._replace(**{field: value}))


@pytest.mark.req("DEV-1")
@pytest.mark.parametrize("block", [1, 512, 4096, 2**20])
def test_powers_of_two_are_blocks(block):
    device = Device(0, 0, 0, block=block)
    assert check_device(device) is device


@pytest.mark.req("DEV-12")
@given(devices(st.one_of(KNEES, st.floats(1, allow_nan=False))))
def test_a_device_survives_its_file(device):
    text = device_to_json(device)
    assert same(device_from_json(text), device)
    assert same(device_from_json(text.encode()), device)
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


@pytest.mark.req("DEV-12")
def test_a_file_has_a_field_a_line():
    text = device_to_json(Device(1, 2, 3, knee=float("inf")))  # not the object math.inf
    lines = text.split("\n")
    assert lines[:2] == ["{", '  "latency_ns": 1,']
    assert lines[9:] == ['  "knee": "inf"', "}", ""]


@pytest.mark.req("DEV-13")
@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_files_of_impossible_devices_are_refused(field, value):
    fields = PRESETS["nvme_gen4"]._asdict() | {field: value}
    with pytest.raises(DomainError, match=field):
        device_from_json(json.dumps(fields))


GOOD = device_to_json(PRESETS["nvme_gen4"])


@pytest.mark.req("DEV-13")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this text is not one"),
        ("{", "this text is not one"),
        (b"\xff\xfe{}x", "this text is not one"),
        ("[" * 100_000, "this text is not one"),
        ('{"latency_ns": ' + "9" * 5000 + "}", "this text is not one"),
        ("[]", "not a list"),
        ("3", "not a int"),
        ("{}", "is missing"),
        (GOOD.replace('"knee"', '"knees"'), "no field 'knees'"),
        (json.dumps(dict.fromkeys(map(str, range(300)))), "no field '0'"),
        (GOOD.replace("{", '{"block": 4096,'), "twice"),
        (GOOD.replace('  "max_iops": 1000000,\n', ""), "'max_iops' is missing"),
        (GOOD.replace("1.45", "NaN"), "knee"),
        (GOOD.replace("1.45", "1" + "0" * 400), "knee"),
        (GOOD.replace("1.45", "-1" + "0" * 400), "knee"),
        (GOOD.replace("1.45", str(2**53)), "knee"),
        (GOOD.replace("1.45", "0"), "knee"),
    ],
)
def test_files_that_are_no_device_are_refused(text, message):
    with pytest.raises(DomainError, match=message):
        device_from_json(text)


@pytest.mark.req("DEV-13")
def test_a_whole_knee_is_a_number_too():
    for knee in (1, 2, 2**53 - 1):
        assert same(device_from_json(GOOD.replace("1.45", str(knee))).knee, float(knee))
