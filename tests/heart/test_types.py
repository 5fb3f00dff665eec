"""Chapter 00: equality, ids and stored dtypes."""

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashref import same
from flashref.bundle import Layout
from flashref.decode import ResidentFFN
from flashref.storage.device import Device
from flashref.types import (
    FFN,
    NEVER,
    DomainError,
    Extent,
    IdsError,
    ShapeError,
    ascending_ids,
    stored_dtype,
    widen,
)


def test_what_is_not_given_is_as_the_chapters_say():
    assert NEVER == -1
    assert same(Device(1, 2, 3), Device(1, 2, 3, 0, 131_072, 32, 4096, 0, 1.0))
    assert same(FFN("relu", NEVER, NEVER), FFN("relu", NEVER, NEVER, None, None, None, None, 0.0))
    assert same(ResidentFFN("relu"), ResidentFFN("relu", None, None, None, None, 0.0))


def test_bytes_of_rows_and_bundles():
    layout = Layout(5, 7, "F16", ("gate", "up", "down"), 64, 0, 64, None)
    assert (layout.row_bytes, layout.bundle_bytes) == (14, 42)
    assert layout._replace(dtype="F32", fields=("up",)).bundle_bytes == 28


@pytest.mark.req("TYP-1")
def test_same_is_equality_of_bits():
    a = np.float32([1, -0.0, 3])
    assert same(a, a.copy())
    assert same((a, 1, "x", None, 2.5), (a.copy(), 1, "x", None, 2.5))
    assert same(float("nan"), float("nan"))
    assert same(np.float32("nan"), np.float32("nan"))
    assert same((10**9, "xy") * 300, (int("1000000000"), "".join("xy")) * 300)  # equal, not identical
    assert same(a, a.view(np.dtype(np.float32, copy=True)))
    for container in ([a], {"a": a}, {1}):
        with pytest.raises(DomainError, match="cannot be compared"):
            same(container, container)
    different = [
        (a, np.float32([1, 0.0, 3])),
        (a, a.astype(np.float64)),
        (a, a[:2]),
        (a, a.reshape(1, 3)),
        (np.zeros(2, bool), np.zeros(2, np.int8)),
        (a, (1, -0.0, 3)),
        (Extent(0, 1), (0, 1)),
        ((1,), (1, 2)),
        ((1, a), (1, a + 1)),
        (1, 1.0),
        (0.0, -0.0),
        (1, True),
        (None, 0),
        (np.float32(0), np.float32(-0.0)),
        (np.float64(1), 1.0),
        (float("nan"), -float("nan")),
    ]
    for left, right in different:
        assert not same(left, right)
        assert not same(right, left)


@pytest.mark.req("TYP-2")
@given(st.lists(st.integers(-2, 8)), st.integers(1, 6))
@example([0, 2, 1], 3)
@example([0, 2, 2], 3)
def test_ids_are_refused_unless_strictly_ascending_and_in_range(ids, n):
    good = all(0 <= i < n for i in ids) and ids == sorted(set(ids))
    if good:
        assert ascending_ids(ids, n).tolist() == ids
    else:
        with pytest.raises(IdsError):
            ascending_ids(ids, n)


@pytest.mark.req("TYP-2")
@pytest.mark.parametrize("bad", [[0.0], ["0"], [True], [[0, 1]], [[]], 0, np.uint64([2**63]), [2**70]])
def test_what_is_no_list_of_integers_is_refused(bad):
    with pytest.raises(IdsError):
        ascending_ids(bad, 5)


@pytest.mark.req("TYP-3")
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_ids_are_int64_of_their_own(dtype):
    given_ids = np.array([1, 4], dtype)
    ids = ascending_ids(given_ids, 5)
    assert same(ids, np.int64([1, 4]))
    assert not np.shares_memory(ids, given_ids)
    assert same(ascending_ids([], 5), np.int64([]))


@pytest.mark.req("TYP-4")
def test_names_of_stored_dtypes():
    named = {name: stored_dtype(np.zeros(2, name)) for name in ("<f4", "<f2", "<u2")}
    assert named == {"<f4": "F32", "<f2": "F16", "<u2": "BF16"}
    for other in (np.float64, np.int16, np.uint8, np.dtype(">f4")):
        with pytest.raises(ShapeError, match="weights must be"):
            stored_dtype(np.zeros(2, other))


@pytest.mark.req("TYP-5")
def test_widening_is_exact_on_every_finite_half_and_bfloat():
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits[np.isfinite(bits.view(np.float16))]
    assert len(halves) == 63_488
    expected = [struct.unpack("<e", struct.pack("<H", b))[0] for b in halves.tolist()]
    assert same(widen(halves.view(np.float16)), np.array(expected, np.float32))
    as_float = [struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in bits.tolist()]
    finite = np.isfinite(as_float)
    assert same(widen(bits[finite]), np.array(as_float, np.float32)[finite])


def test_widening_float32_copies_nothing():
    weights = np.float32([1, -0.0])
    assert np.shares_memory(widen(weights), weights)
