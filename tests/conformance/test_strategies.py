"""The strategies that others use: what they promise is what they draw."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from flashref import active_neurons, dense_ffn, gather_rows, pack_bundles, same, sparse_ffn
from flashref.conformance.strategies import (
    active_sets,
    devices,
    dyadic_cases,
    fault_schedules,
    layouts,
    traces,
)
from flashref.storage.device import Device, check_device, read_time
from flashref.storage.faults import Fault, faulty_reader
from flashref.storage.readers import memory_reader
from flashref.types import STORED_DTYPES, Extent, FlashrefError, ReadError


@given(dyadic_cases())
def test_a_user_s_three_lines_hold_for_the_reference(case):
    x, ffn = case
    assert same(sparse_ffn(x, ffn, active_neurons(x, ffn)), dense_ffn(x, ffn))


@given(st.data(), st.integers(1, 12))
def test_active_sets_ascend_and_stay_below_n(data, n):
    ids = data.draw(active_sets(n))
    event("empty" if len(ids) == 0 else "full" if len(ids) == n else "some")
    assert ids.dtype == np.int64
    assert sorted(set(ids.tolist())) == ids.tolist()
    assert set(ids.tolist()) <= set(range(n))


@given(
    st.data(),
    st.integers(1, 40),
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
)
def test_a_trace_has_the_density_and_the_drift_that_were_asked_for(data, n, density, drift):
    sets = data.draw(traces(n, tokens=6, density=density, drift=drift))
    size = max(1, round(density * n))
    replaced = min(n - size, round(drift * size))
    assert [len(ids) for ids in sets] == [size] * 6
    for before, after in pairwise(sets):
        assert len(set(after.tolist()) - set(before.tolist())) == replaced
        assert after.tolist() == sorted(after.tolist())


@given(layouts(), devices(), st.data())
def test_layouts_and_devices_can_be_used(layout, device, data):
    check_device(device)
    assert read_time(device, [4096]) >= 0
    shape, dtype = (layout.n, layout.d), STORED_DTYPES[layout.dtype]
    packed = pack_bundles(layout, {field: np.zeros(shape, dtype) for field in layout.fields})
    image = np.concatenate(
        [np.zeros(layout.start, np.uint8), packed, np.zeros(-len(packed) % layout.block, np.uint8)]
    )
    ids = data.draw(active_sets(layout.n))
    read = memory_reader(image, device._replace(block=layout.block))
    assert len(gather_rows(read, layout, ids).rows) == len(ids)


def bytes_read(faults, extents=((0, 8), (16, 8))):
    image = np.arange(1, 33, dtype=np.uint8)
    read = faulty_reader(memory_reader(image, Device(0, 0, 0, block=8)), faults)
    return [np.concatenate(read(tuple(Extent(*e) for e in extents)).buffers).copy() for _ in range(2)]


def test_a_fault_is_what_its_schedule_says_and_strikes_its_batch_only():
    sound = np.r_[1:9, 17:25].astype(np.uint8)
    first, second = bytes_read({1: Fault("flip", 8 * 9 + 2)})
    assert same(first, sound)
    assert (second ^ sound).tolist() == [0] * 9 + [4] + [0] * 6
    first, second = bytes_read({0: Fault("torn", 5)})
    assert first.tolist() == [*range(1, 6)] + [0] * 11
    assert same(second, sound)
    with pytest.raises(ReadError, match="batch 1 failed"):
        bytes_read({1: Fault("error", 0)})


@given(fault_schedules(3))
def test_every_drawn_fault_is_one_that_the_reader_knows(schedule):
    assert set(schedule) <= {0, 1, 2}
    try:
        assert len(bytes_read(schedule)) == 2
    except FlashrefError:
        event("error")
        assert "error" in {fault.kind for fault in schedule.values()}
