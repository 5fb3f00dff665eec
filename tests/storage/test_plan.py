"""Chapter 52: the plan against sets of block numbers, and the bytes against slices."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashref import Extent
from flashref.definitions import plan_model
from flashref.storage.plan import plan_bytes, plan_io, read_plan
from flashref.types import DomainError, LayoutError

IMAGE = np.random.default_rng(52).integers(0, 256, 4096, np.uint8)

BLOCKS = st.sampled_from([1, 8, 64, 512])
EXTENTS = st.lists(st.builds(Extent, st.integers(0, 2000), st.integers(1, 300)), max_size=12)
GAPS = st.one_of(st.integers(0, 600), st.sampled_from([0, 8, 63, 64, 128, 511, 512, 1024]))


def wanted_blocks(extents, block):
    return {byte // block for offset, length in extents for byte in range(offset, offset + length)}


@pytest.mark.req("PLN-1", "PLN-2", "PLN-3")
@given(EXTENTS, BLOCKS, GAPS)
@example([Extent(0, 300), Extent(10, 5), Extent(299, 2)], 8, 0)  # one inside another, one across its end
@example([Extent(0, 64), Extent(64, 64), Extent(192, 1)], 64, 0)  # touching, then a gap of one block
@example([Extent(0, 64), Extent(192, 1)], 64, 127)
@example([Extent(0, 64), Extent(192, 1)], 64, 128)
def test_plan_equals_the_definition(extents, block, max_gap):
    expected = plan_model(extents, block, max_gap)
    assert read_plan(extents, block, max_gap) == tuple(Extent(*read) for read in expected)


@pytest.mark.req("PLN-1", "PLN-2", "PLN-3")
@given(EXTENTS, BLOCKS, GAPS)
def test_a_plan_loses_no_byte_and_wastes_no_more_than_allowed(extents, block, max_gap):
    plan = read_plan(extents, block, max_gap)
    read = [
        number for offset, length in plan for number in range(offset // block, (offset + length) // block)
    ]
    assert all(offset % block == 0 and length % block == 0 and length > 0 for offset, length in plan)
    assert len(read) == len(set(read))
    wanted = wanted_blocks(extents, block)
    assert wanted <= set(read)
    joins = len(read_plan(extents, block, 0)) - len(plan)
    assert (len(read) - len(wanted)) * block <= joins * max_gap
    for (offset, length), (following, _) in pairwise(plan):
        assert following - (offset + length) > max_gap


@pytest.mark.req("PLN-4")
@given(EXTENTS, BLOCKS, GAPS, st.randoms())
def test_order_and_repetition_do_not_matter(extents, block, max_gap, random):
    plan = read_plan(extents, block, max_gap)
    shuffled = random.sample(extents, len(extents)) + extents[:2]
    assert read_plan(shuffled, block, max_gap) == plan
    assert read_plan(iter(extents), block, max_gap) == plan
    assert read_plan(plan, block, max_gap) == plan


def test_nothing_wanted_is_nothing_read():
    assert read_plan([], 4096, 0) == ()
    assert plan_io((), [], 0) == (0, 0, 0, 0)


def test_offsets_stay_exact_beyond_the_reach_of_float64():
    assert read_plan([Extent(2**60 + 1, 1)], 4096, 0) == (Extent(2**60, 4096),)


@pytest.mark.req("PLN-5")
@pytest.mark.parametrize(("block", "max_gap"), [(0, 0), (-4, 0), (3, 0), (5, 0), (4095, 0), (4096, -1)])
def test_impossible_rounding_is_refused(block, max_gap):
    with pytest.raises(DomainError):
        read_plan([Extent(0, 1)], block, max_gap)


@pytest.mark.req("PLN-5")
@pytest.mark.parametrize("extent", [Extent(0, 0), Extent(5, -1), Extent(-1, 4), Extent(-4096, 4096)])
def test_impossible_extents_are_refused(extent):
    with pytest.raises(LayoutError, match=str(extent.offset)):
        read_plan([Extent(0, 1), extent], 4096, 0)


@pytest.mark.req("PLN-6", "PLN-8")
@given(EXTENTS, BLOCKS, GAPS)
def test_every_extent_is_found_in_what_was_read(extents, block, max_gap):
    plan = read_plan(extents, block, max_gap)
    buffers = [IMAGE[offset : offset + length].copy() for offset, length in plan]
    for extent in extents:
        found = plan_bytes(plan, buffers, extent)
        assert found.dtype == np.uint8
        assert found.tobytes() == IMAGE[extent.offset :][: extent.length].tobytes()
        assert any(np.shares_memory(found, buffer) for buffer in buffers)
    cost = plan_io(plan, extents, 17)
    useful, read = sum(e.length for e in extents), sum(len(buffer) for buffer in buffers)
    assert cost == (len(buffers), useful, read, 17)


@pytest.mark.req("PLN-7")
@pytest.mark.parametrize(
    "extent", [(-1, 2), (3, 2), (4, 1), (7, 2), (8, 5), (11, 2), (12, 1), (8, 0), (9, -1)]
)
def test_bytes_that_were_not_read_are_refused(extent):
    plan = (Extent(0, 4), Extent(8, 4))
    buffers = (IMAGE[0:4], IMAGE[8:12])
    with pytest.raises(LayoutError, match="no read of the plan"):
        plan_bytes(plan, buffers, Extent(*extent))


@pytest.mark.req("PLN-7")
def test_a_missing_buffer_or_one_too_many_is_refused():
    with pytest.raises(LayoutError, match="2 reads"):
        plan_bytes((Extent(0, 4), Extent(8, 4)), (IMAGE[0:4],), Extent(0, 1))
    with pytest.raises(LayoutError):
        plan_bytes((), (), Extent(0, 1))
    with pytest.raises(LayoutError, match="1 reads"):
        plan_bytes((Extent(0, 4),), (IMAGE[0:4], IMAGE[4:8]), Extent(0, 1))


@pytest.mark.req("PLN-6")
def test_a_plan_may_have_any_number_of_reads():
    plan = tuple(Extent(offset, 4) for offset in range(0, 4096, 8))
    buffers = tuple(IMAGE[offset : offset + 4] for offset, _ in plan)
    assert plan_bytes(plan, buffers, Extent(4089, 2)).tobytes() == IMAGE[4089:4091].tobytes()
