"""Chapter 56: both readers against plain slices; the one of memory, and the one that writes down."""

import os

import image_to_read
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from image_to_read import ALIGNED, BLOCK, DEVICE, IMAGE, contents, direct_reader, slices

from flashref import Extent
from flashref.storage.device import read_time
from flashref.storage.plan import plan_bytes, plan_io, read_plan
from flashref.storage.readers import memory_reader, recording_reader
from flashref.types import DomainError, LayoutError, ShapeError

folder = image_to_read.folder
shared = image_to_read.shared
path = image_to_read.path

WANTED = st.lists(st.builds(Extent, st.integers(0, IMAGE.size - 9000), st.integers(1, 9000)), max_size=10)


@pytest.mark.req("RDR-1", "RDR-3")
@given(extents=ALIGNED)
@example(extents=())
@example(extents=(Extent(0, IMAGE.size),))
@example(extents=(Extent(0, BLOCK),) * 9)  # more reads than workers, and the same again
def test_readers_give_the_bytes_of_the_image(shared, extents):
    for read in (shared.read, memory_reader(IMAGE, DEVICE), memory_reader(IMAGE.tobytes(), DEVICE)):
        result = read(extents)
        assert contents(result) == slices(extents)
        for buffer in result.buffers:
            assert buffer.dtype == np.uint8
            assert not buffer.flags.writeable
        assert type(result.nanoseconds) is int
        assert extents or result == ((), 0)


@pytest.mark.req("RDR-1", "RDR-4")
@given(wanted=WANTED, max_gap=st.sampled_from([0, BLOCK, 3 * BLOCK]))
def test_readers_agree_on_bytes_and_counters(shared, wanted, max_gap):
    plan = read_plan(wanted, BLOCK, max_gap)
    measured, simulated = shared.read(plan), memory_reader(IMAGE, DEVICE)(plan)
    for extent in wanted:
        expected = IMAGE[extent.offset :][: extent.length].tobytes()
        assert plan_bytes(plan, measured.buffers, extent).tobytes() == expected
        assert plan_bytes(plan, simulated.buffers, extent).tobytes() == expected
    costs = [plan_io(plan, wanted, result.nanoseconds) for result in (measured, simulated)]
    assert costs[0][:3] == costs[1][:3]
    assert simulated.nanoseconds == read_time(DEVICE, [read.length for read in plan])


@pytest.mark.req("RDR-2")
@pytest.mark.parametrize(
    ("extent", "message"),
    [
        ((1, BLOCK), "whole blocks"),
        ((0, BLOCK - 1), "whole blocks"),
        ((0, 0), "whole blocks"),
        ((BLOCK, -BLOCK), "whole blocks"),
        ((-BLOCK, BLOCK), "bytes"),
        ((IMAGE.size, BLOCK), "bytes"),
        ((IMAGE.size - BLOCK, 2 * BLOCK), "bytes"),
        ((2**62, BLOCK), "bytes"),
    ],
)
def test_impossible_reads_are_refused_before_anything_is_read(path, extent, message):
    batch = (Extent(0, BLOCK), Extent(*extent))
    read = memory_reader(IMAGE, DEVICE)
    kept = read((Extent(BLOCK, BLOCK),))
    with pytest.raises(LayoutError, match=message):
        read(batch)
    assert contents(kept) == slices([Extent(BLOCK, BLOCK)])

    calls = []
    with direct_reader(path, preadv=lambda *call: calls.append(call) or os.preadv(*call)) as reader:
        with pytest.raises(LayoutError, match=message):
            reader.read(batch)
        assert calls == []
        assert contents(reader.read(batch[:1])) == slices(batch[:1])


@pytest.mark.req("RDR-4")
def test_the_memory_reader_takes_the_devices_time():
    read = memory_reader(IMAGE, DEVICE)
    batch = (Extent(0, BLOCK), Extent(8 * BLOCK, 3 * BLOCK))
    assert read(batch).nanoseconds == read_time(DEVICE, [BLOCK, 3 * BLOCK])
    assert read(batch).nanoseconds != read_time(DEVICE, [BLOCK, BLOCK])


@pytest.mark.req("RDR-5")
def test_the_memory_reader_copies():
    image = IMAGE.copy()
    result = memory_reader(image, DEVICE)((Extent(0, BLOCK),))
    image[:] = 0
    assert contents(result) == slices([Extent(0, BLOCK)])


@pytest.mark.req("RDR-6")
@pytest.mark.parametrize("following", [(), (Extent(0, BLOCK),), (Extent(0, 20 * BLOCK),)])
def test_a_view_kept_too_long_is_nonsense(following):
    read = memory_reader(IMAGE, DEVICE)
    kept = read((Extent(9 * BLOCK, BLOCK), Extent(3 * BLOCK, 2 * BLOCK)))
    read(following)
    assert contents(kept)[1] == b"\xa5" * (2 * BLOCK)
    assert contents(kept)[0] != slices([Extent(9 * BLOCK, BLOCK)])[0]


@pytest.mark.req("RDR-6")
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_memory_reader_uses_its_memory_again(blocks):
    read = memory_reader(IMAGE, DEVICE)
    before, after = read((Extent(0, 3 * BLOCK),)), read((Extent(0, blocks * BLOCK),))
    assert np.shares_memory(before.buffers[0], after.buffers[0])


@pytest.mark.req("RDR-2")
def test_a_block_may_be_one_byte():
    read = memory_reader(IMAGE, DEVICE._replace(block=1))
    batch = (Extent(IMAGE.size - 1, 1), Extent(5, 2))
    assert contents(read(batch)) == slices(batch)
    for extent in ((-1, 2), (IMAGE.size, 1), (0, 0)):
        with pytest.raises(LayoutError):
            read((Extent(*extent),))


def test_images_may_be_mapped(path):
    mapped = np.memmap(path, np.uint8, mode="r")
    assert contents(memory_reader(mapped, DEVICE)((Extent(BLOCK, BLOCK),))) == slices([Extent(BLOCK, BLOCK)])


@pytest.mark.parametrize(
    "image", [np.zeros(8, np.int8), np.zeros((2, 4096), np.uint8), np.zeros((), np.uint8)]
)
def test_images_that_are_not_bytes_are_refused(image):
    with pytest.raises(ShapeError, match="one-dimensional array of uint8"):
        memory_reader(image, DEVICE)


def test_an_impossible_device_is_refused_at_once():
    with pytest.raises(DomainError, match="queue_depth"):
        memory_reader(IMAGE, DEVICE._replace(queue_depth=0))


@pytest.mark.req("RDR-13")
def test_recording_writes_down_batches_and_passes_everything_on():
    log = []
    plain, read = memory_reader(IMAGE, DEVICE), recording_reader(memory_reader(IMAGE, DEVICE), log)
    batches = [(Extent(0, BLOCK),), (), (Extent(BLOCK, BLOCK), Extent(0, 2 * BLOCK))]
    for batch in batches:
        result = read(batch)
        assert contents(result) == slices(batch)
        assert result.nanoseconds == plain(batch).nanoseconds
    with pytest.raises(LayoutError):
        read((Extent(1, 1),))
    assert [entry.extents for entry in log] == batches
    assert [entry.nanoseconds for entry in log] == [plain(batch).nanoseconds for batch in batches]
