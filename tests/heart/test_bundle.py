"""Chapter 40: bytes of bundles against slices of the matrices."""

import itertools

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from flashref import bundle_crc32, bundle_extents, bundle_layout, pack_bundles, same, unpack_bundles
from flashref.conformance.strategies import DTYPES, id_sets, read_only
from flashref.types import DomainError, Extent, IdsError, LayoutError, ShapeError

FIELDS = [("up",), ("up", "down"), ("gate", "up", "down")]
ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2}
FINITE_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE_HALVES = FINITE_HALVES[np.isfinite(FINITE_HALVES)]


@st.composite
def layouts(draw):
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    order = draw(st.none() | st.permutations(range(n)))
    block = draw(st.sampled_from([1, 2, 16, 64, 512]))
    start = block * draw(st.integers(0, 3))
    return bundle_layout(
        n, d, draw(st.sampled_from(DTYPES)), draw(st.sampled_from(FIELDS)), block, start, order
    )


@st.composite
def packings(draw):
    """(layout, matrices): any finite bits, in either memory order."""
    layout = draw(layouts())
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    matrices = {}
    for field in layout.fields:
        bits = rng.integers(0, 2**16, (layout.n, layout.d), np.uint16)
        if layout.dtype == "BF16":
            matrix = np.where(bits & 0x7F80 == 0x7F80, bits ^ 0x4000, bits)
        elif layout.dtype == "F16":
            matrix = np.where(bits & 0x7C00 == 0x7C00, bits ^ 0x4000, bits).view(np.float16)
        else:
            matrix = bits.view(np.float16).astype(np.float32)
            matrix = np.where(np.isfinite(matrix), matrix, np.float32(-0.0))
        matrices[field] = np.asfortranarray(matrix) if draw(st.booleans()) else matrix
    return layout, matrices


@pytest.mark.req("BND-1", "BND-2")
@given(layouts())
@example(bundle_layout(3, 4096, "F16"))  # 16 KiB, OPT 6.7B
@example(bundle_layout(3, 4544, "F16"))  # 17.75 KiB, Falcon 7B: no multiple of a block
@example(bundle_layout(3, 1024, "F16"))  # exactly a block
@example(bundle_layout(3, 1, "F16", ("up",), block=1))
def test_stride_is_the_smallest_that_keeps_bundles_in_blocks(layout):
    size = len(layout.fields) * layout.d * ITEMSIZE[layout.dtype]
    assert layout.bundle_bytes == size
    block = layout.block
    if size < block:
        powers = [2**i for i in range(12) if 2**i >= size]
        assert layout.stride == powers[0]
        event("shares a block")
    else:
        assert layout.stride == next(m for m in range(block, size + block, block) if m >= size)
        event("starts on a block")
    assert type(layout.stride) is int
    for extent in bundle_extents(layout, range(layout.n)):
        first, last = extent.offset // block, (extent.offset + extent.length - 1) // block
        assert first == last or extent.offset % block == 0
        assert size >= block or first == last


@pytest.mark.req("BND-3")
@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"d": 0},
        {"dtype": "F64"},
        {"fields": ()},
        {"fields": "up"},
        {"fields": ("up", "up")},
        {"block": 0},
        {"block": 24},
        {"block": 5},
        {"start": -4096},
        {"start": 100},
        {"start": -1, "block": 1},
        {"order": [0, 1]},
        {"order": [0, 1, 1]},
        {"order": [0, 1, 3]},
        {"order": [0, 1, 2, 2]},
        {"order": [0.0, 1.0, 2.0]},
        {"order": [[0, 1, 2]]},
    ],
    ids=str,
)
def test_impossible_layouts_are_refused(change):
    bundle_layout(n=3, d=2, dtype="F16")
    with pytest.raises(LayoutError):
        bundle_layout(**({"n": 3, "d": 2, "dtype": "F16"} | change))


@pytest.mark.req("BND-2")
def test_a_bundle_may_have_any_number_of_fields():
    layout = bundle_layout(2, 1, "F16", [str(number) for number in range(300)], block=1)
    assert layout.stride == 600


@pytest.mark.req("BND-4")
@given(packings())
def test_unpacking_gives_the_matrices_back(case):
    layout, matrices = case
    for matrix in matrices.values():
        read_only(matrix)
    packed = read_only(pack_bundles(layout, matrices))
    unpacked = unpack_bundles(layout, packed)
    assert list(unpacked) == list(layout.fields)
    for field, matrix in unpacked.items():
        assert same(matrix, np.ascontiguousarray(matrices[field]))
        assert not np.shares_memory(matrix, packed)


@pytest.mark.req("BND-4")
def test_every_finite_half_survives():
    values = FINITE_HALVES.reshape(-1, 32)
    assert values.size == 63_488
    layout = bundle_layout(len(values), 32, "F16")
    unpacked = unpack_bundles(layout, pack_bundles(layout, {"up": values, "down": values[::-1]}))
    assert same(unpacked["up"], values)
    assert same(unpacked["down"], np.ascontiguousarray(values[::-1]))


@pytest.mark.req("BND-5", "BND-7")
@given(packings())
def test_a_bundle_is_the_rows_of_its_neuron_and_then_zeros(case):
    layout, matrices = case
    packed = pack_bundles(layout, matrices).tobytes()
    assert len(packed) == layout.n * layout.stride
    order = range(layout.n) if layout.order is None else layout.order.tolist()
    for p, neuron in enumerate(order):
        rows = b"".join(
            matrices[field][neuron].astype(matrices[field].dtype.newbyteorder("<")).tobytes()
            for field in layout.fields
        )
        at = p * layout.stride
        assert packed[at : at + layout.stride] == rows.ljust(layout.stride, b"\0")
        [extent] = bundle_extents(layout, [neuron])
        assert extent == Extent(layout.start + at, len(rows))


@pytest.mark.req("BND-6")
def test_what_cannot_be_packed_is_refused_by_field():
    layout = bundle_layout(2, 2, "".join(("F", "16")))  # as a file gives it: equal, not the same object
    good = {"up": np.ones((2, 2), np.float16), "down": np.ones((2, 2), np.float16)}
    pack_bundles(layout, good)
    for shape, dtype in (((2, 3), "f2"), ((2, 1), "f2"), (4, "f2"), ((2, 2), "f4"), ((2, 2), "u2")):
        wrong = np.ones(shape, dtype)
        with pytest.raises(ShapeError, match="'down' must be F16"):
            pack_bundles(layout, good | {"down": wrong})
    with pytest.raises(ShapeError, match="'down' is missing"):
        pack_bundles(layout, {"up": good["up"]})
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(DomainError, match="'down' holds a value that is not finite"):
            pack_bundles(layout, good | {"down": np.float16([[1, 1], [value, 1]])})
    not_finite = np.uint16([[0x3F80, 0x7F80], [0, 0]])
    with pytest.raises(DomainError, match="not finite"):
        pack_bundles(layout._replace(dtype="BF16"), {"up": not_finite, "down": not_finite})


def test_all_2048_other_halves_are_refused():
    layout = bundle_layout(1, 1, "F16", ("up",))
    others = [b for b in range(2**16) if b & 0x7C00 == 0x7C00]
    assert len(others) == 2048
    for bits in others:
        with pytest.raises(DomainError):
            pack_bundles(layout, {"up": np.uint16([[bits]]).view(np.float16)})


def test_other_bytes_are_not_unpacked():
    layout = bundle_layout(2, 2, "F16")
    size = layout.n * layout.stride
    for wrong in (
        np.zeros(size - 1, np.uint8),
        np.zeros(size + 1, np.uint8),
        np.zeros(size, np.int8),
        np.zeros(size, bool),
    ):
        with pytest.raises(ShapeError, match="packed bundles must be"):
            unpack_bundles(layout, wrong)


@pytest.mark.req("BND-7")
@given(layouts(), st.data())
def test_an_extent_depends_on_its_id_only(layout, data):
    ids = data.draw(id_sets(layout.n))
    extents = bundle_extents(layout, ids)
    assert extents == tuple(bundle_extents(layout, [i])[0] for i in ids)
    everything = sorted(bundle_extents(layout, range(layout.n)))
    for left, right in itertools.pairwise(everything):
        assert left.offset + left.length <= right.offset
    assert everything[-1].offset + layout.stride <= layout.start + layout.n * layout.stride


@pytest.mark.req("BND-8")
def test_offsets_beyond_two_to_the_53_are_exact():
    layout = bundle_layout(2**40, 2**20, "F32", start=4096)
    [extent] = bundle_extents(layout, [2**40 - 1])
    assert extent == Extent(4096 + (2**40 - 1) * 2**23, 2**23)
    assert all(type(v) is int for v in extent)


@pytest.mark.req("BND-9")
@pytest.mark.parametrize("bad", [[3], [-1], [1, 0], [1, 1]])
def test_bad_ids_are_refused(bad):
    with pytest.raises(IdsError):
        bundle_extents(bundle_layout(3, 2, "F16"), bad)


def test_the_checksum_of_a_bundle_is_the_crc_of_all_its_bytes():
    # Bit by bit: the remainder of the bytes, least bit first, by the polynomial that zlib uses.
    padded = np.uint8([7, 0, 255, 0])
    remainder = 0xFFFFFFFF
    for byte in padded.tolist():
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ 0xEDB88320 * (remainder & 1)
    assert bundle_crc32(padded) == remainder ^ 0xFFFFFFFF
