"""Cases of the layout of bundles, of packing and of unpacking (chapter 40)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tools.vector_cases.make import (
    REFUSED,
    SIGNIFICANT_BITS,
    About,
    dyadic,
    exactly,
    from_bits,
    ids,
    numbers,
    permutation,
    real,
    vector,
)

from flashref.conformance.vectors.files import Vector
from flashref.definitions import packed_model, stride_model
from flashref.types import Array, Ids

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TWO, THREE = ("up", "down"), ("gate", "up", "down")


def bundle_bytes(d: int, dtype: str, fields: Sequence[str]) -> int:
    """Bytes of one neuron's rows."""
    return len(fields) * d * ITEM_BYTES[dtype]


class Bundles(NamedTuple):
    """The arguments that describe a layout, in the order of chapter 96."""

    n: int
    d: int
    dtype: str
    fields: Sequence[str]
    block: int
    start: int = 0
    order: Ids | None = None


def extents_model(of: Bundles, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Chapter 40's (offset, length) of each id."""
    length = bundle_bytes(of.d, of.dtype, of.fields)
    stride, order = stride_model(length, of.block), [] if of.order is None else of.order.tolist()
    positions = {neuron: position for position, neuron in enumerate(order)}
    return [(of.start + positions.get(i, i) * stride, length) for i in wanted]


def packed(
    matrices: Sequence[Array], d: int, dtype: str, fields: Sequence[str], block: int, order: Ids | None
) -> Array:
    """Chapter 40's bytes."""
    data = packed_model(
        matrices,
        stride_model(bundle_bytes(d, dtype, fields), block),
        None if order is None else order.tolist(),
    )
    return np.frombuffer(data, np.uint8).copy()


def cases() -> list[Vector]:
    """Every case of `bundle_layout`, `pack_bundles` and `unpack_bundles`."""
    return [*_layouts(), *_layout_refusals(), *_packings(), *_packing_refusals()]


def _layouts() -> list[Vector]:
    made = []
    small = "fails if the stride is not the next power of two below a block, and its next multiple above"
    far = "fails if offsets are kept in 32 bits, or in floats"
    for what, requirements, flags, comment, arguments in (
        ("a_power_of_two_below_a_block", "BND-1 BND-2 BND-7", "layout", small,
         (4, 128, "F16", TWO, 4096, 0, [0, 1, 2, 3])),
        ("padded_to_a_power_of_two", "BND-1 BND-2 BND-7", "layout", small,
         (9, 96, "F16", TWO, 4096, 0, [0, 1, 8])),
        ("three_fields", "BND-1 BND-2 BND-7", "layout", small, (5, 10, "F32", THREE, 512, 512, [0, 4])),
        ("a_byte_below_a_block", "BND-1 BND-2", "layout boundary", small,
         (3, 31, "BF16", TWO, 128, 128, [0, 1, 2])),
        ("equal_to_a_block", "BND-1 BND-2", "layout boundary", small,
         (3, 32, "BF16", TWO, 128, 0, [0, 1, 2])),
        ("above_a_block", "BND-1 BND-2", "layout boundary", small, (3, 33, "BF16", TWO, 128, 0, [0, 1, 2])),
        ("no_multiple_of_a_block", "BND-1 BND-2 BND-7", "layout", small,
         (6, 4544, "F16", TWO, 4096, 8192, [1, 5])),
        ("exact_multiple_of_a_block", "BND-1 BND-2", "layout boundary", small,
         (6, 4096, "F16", TWO, 4096, 0, [1, 5])),
        ("block_of_one_byte", "BND-1 BND-7", "boundary", small, (4, 3, "F16", TWO, 1, 7, [0, 3])),
        ("one_neuron", "BND-1 BND-7", "boundary", small, (1, 1, "F32", ("up",), 4096, 0, [0])),
        ("no_ids", "BND-7", "boundary", "fails if no ids are not no extents", (4, 8, "F32", TWO, 64, 0, [])),
        ("any_field_names", "BND-1", "layout", "fails if fields are taken for known names instead of counted",
         (4, 8, "F32", ("a", "b", "c", "d"), 64, 64, [2])),
        ("beyond_31_bits", "BND-7 BND-8", "offsets", far,
         (10**7, 4096, "F32", TWO, 4096, 0, [65535, 65536, 131071])),
        ("beyond_32_bits", "BND-7 BND-8", "offsets", far,
         (10**7, 4096, "F32", TWO, 4096, 4096, [0, 131072, 9_999_999])),
        ("start_beyond_32_bits", "BND-7 BND-8", "offsets", far, (4, 8, "F16", TWO, 4096, 3 * 2**32, [1, 3])),
        ("beyond_53_bits", "BND-7 BND-8", "offsets", far, (9, 1, "F16", ("up",), 1, 2**53, [0, 1, 3, 8])),
        ("stride_beyond_32_bits", "BND-1 BND-8", "offsets", far,
         (5, 3 * 2**30 + 1, "F16", TWO, 2**20, 0, [1, 4])),
    ):  # fmt: skip
        *of, wanted = arguments
        made.append(_layout(About(what, requirements, flags, comment), Bundles(*of), wanted))
    for what, wanted in (("some", [1, 2, 6]), ("all", list(range(7)))):
        name = f"bundle_layout/layouts/in_another_order_{what}"
        about = About(f"in_another_order_{what}", "BND-7", "order",
                      "fails if an id is taken for its position, or the order for its inverse")  # fmt: skip
        made.append(_layout(about, Bundles(7, 3, "F32", THREE, 16, 48, permutation(name, 7)), wanted))
    return made


def _layout(about: About, of: Bundles, wanted: Sequence[int]) -> Vector:
    stride = stride_model(bundle_bytes(of.d, of.dtype, of.fields), of.block)
    extents = np.array(extents_model(of, wanted), np.int64).reshape(-1, 2)
    about = about._replace(name=f"bundle_layout/layouts/{about.name}")
    arguments = (*of._replace(fields=list(of.fields)), ids(wanted))
    return vector(*about, arguments, exactly([stride, extents]))


def _layout_refusals() -> list[Vector]:
    good: dict[str, Any] = {"n": 4, "d": 2, "dtype": "F32", "fields": list(TWO), "block": 16, "start": 0,
                            "order": None, "ids": ids([1])}  # fmt: skip
    domain: dict[str, dict[str, Any]] = {
        "no_neurons": {"n": 0, "ids": ids([])},
        "no_width": {"d": 0},
        "float64": {"dtype": "F64"},
        "no_fields": {"fields": []},
        "a_field_twice": {"fields": ["up", "up"]},
        "block_of_three": {"block": 3},
        "block_of_zero": {"block": 0},
        "start_within_a_block": {"start": 8},
        "start_negative": {"start": -16},
        "order_with_a_repetition": {"order": ids([0, 1, 1, 3])},
        "order_too_short": {"order": ids([0, 2, 1])},
    }
    of_ids = {
        "id_beyond_the_last": [0, 4],
        "id_negative": [-1],
        "ids_out_of_order": [3, 1],
        "ids_repeated": [2, 2],
    }
    made = [
        vector(f"bundle_layout/refusals/{what}", "BND-3", "refusal", "fails if it is taken, or made to fit",
               list({**good, **change}.values()), REFUSED)
        for what, change in domain.items()
    ]  # fmt: skip
    return made + [
        vector(f"bundle_layout/refusals/{what}", "BND-9 TYP-2", "refusal",
               "fails if ids are clamped, wrapped or sorted",
               list({**good, "ids": ids(wanted)}.values()), REFUSED)
        for what, wanted in of_ids.items()
    ]  # fmt: skip


def finite_bits(key: str, shape: tuple[int, int], dtype: str) -> Array:
    """Bit patterns of all kinds: every exponent but that of infinities and NaN, both signs."""
    significant = SIGNIFICANT_BITS[dtype] - 1
    exponents = 2 ** ({"F32": 32, "F16": 16, "BF16": 16}[dtype] - 1 - significant) - 1
    drawn = numbers(key)
    patterns = []
    for index in range(shape[0] * shape[1]):
        word = next(drawn)
        exponent = 0 if index % 4 == 0 else word % exponents  # subnormals and zeros more often
        fraction = 0 if index % 8 == 4 else (word >> 8) % 2**significant
        patterns.append(((word >> 63) * exponents + (word >> 63) + exponent << significant) + fraction)
    return from_bits(patterns, shape, dtype)


def _packings() -> list[Vector]:
    made = []
    number = 0
    for dtype in ("F32", "F16", "BF16"):
        for what, n, d, block in (
            ("below_a_block", 5, 3, 64),
            ("at_a_block", 3, 8, 16 * ITEM_BYTES[dtype]),
            ("above_a_block", 4, 5, 16),
        ):
            number += 1
            key = f"packing/{dtype}_{what}"
            fields = THREE if what == "below_a_block" else TWO
            order = permutation(key, n) if number % 2 else None
            matrices = [finite_bits(f"{key}/{field}", (n, d), dtype) for field in fields]
            data = packed(matrices, d, dtype, fields, block, order)
            arguments = (n, d, dtype, list(fields), block, order)
            flags = "layout order " + {"F32": "underflow", "F16": "fp16", "BF16": "bf16"}[dtype]
            made.append(vector(f"pack_bundles/patterns/{dtype}_{what}", "BND-4 BND-5", flags,
                               "fails if fields, rows or bytes change places, or the padding is not zero",
                               (*arguments, matrices), exactly(data)))  # fmt: skip
            made.append(vector(f"unpack_bundles/patterns/{dtype}_{what}", "BND-4 BND-5", flags,
                               "fails if a bit of a weight changes, or padding is taken for a weight",
                               (*arguments, data), exactly(matrices)))  # fmt: skip
    subnormal = [sign | 1 << bit for sign in (0, 0x8000) for bit in range(10)]
    edges = from_bits(
        [*subnormal, 0, 0x8000, 0x7BFF, 0xFBFF, 0x0400, 0x3FF, 0x3C01, 0xBC01, 0x83FF, 0x8400, 1, 0x8001],
        (4, 8),
        "F16",
    )
    data = packed([edges], 8, "F16", ("up",), 16, None)
    for operation, given, due in (("pack_bundles", [edges], data), ("unpack_bundles", data, [edges])):
        made.append(vector(f"{operation}/patterns/F16_edges", "BND-4", "fp16",
                           "fails if a subnormal or the sign of a zero is lost",
                           (4, 8, "F16", ["up"], 16, None, given), exactly(due)))  # fmt: skip
    return made


def _packing_refusals() -> list[Vector]:
    key = "pack_bundles/refusals"
    up, down = dyadic(f"{key}/up", (3, 2)), real(f"{key}/down", (3, 2))
    half, brain = (dyadic(f"{key}/half", (3, 2), dtype) for dtype in ("F16", "BF16"))

    def with_bits(array: Array, pattern: int) -> Array:
        changed = array.copy()
        changed[2, 1] = np.array(pattern, f"u{array.itemsize}").view(array.dtype)
        return changed

    made = []
    for what, dtype, matrices, comment in (
        ("a_field_missing", "F32", [up], "fails if a missing field becomes zeros"),
        ("a_row_missing", "F32", [up, down[:2]], "fails if a missing row becomes zeros"),
        ("transposed", "F32", [up, down.T], "fails if (d, n) is taken for (n, d)"),
        ("another_dtype", "F16", [up, down], "fails if float32 is packed where float16 belongs"),
        ("infinity_F32", "F32", [up, with_bits(down, 0xFF800000)], "fails if an infinity is packed"),
        ("not_a_number_F32", "F32", [up, with_bits(down, 0x7FC00001)], "fails if NaN is packed"),
        ("infinity_F16", "F16", [half, with_bits(half, 0x7C00)], "fails if float16's infinity is packed"),
        ("not_a_number_BF16", "BF16", [brain, with_bits(brain, 0xFF81)], "fails if bfloat16's NaN is packed"),
    ):
        made.append(
            vector(
                f"{key}/{what}",
                "BND-6",
                "refusal",
                comment,
                (3, 2, dtype, list(TWO), 16, None, matrices),
                REFUSED,
            )
        )
    whole = packed([up, down], 2, "F32", TWO, 16, None)
    for what, data in (
        ("a_byte_short", whole[:-1]),
        ("a_bundle_too_long", np.concatenate([whole, whole[:16]])),
    ):
        made.append(vector(f"unpack_bundles/refusals/{what}", "BND-4", "refusal",
                           "fails if bytes are cut or filled up",
                           (3, 2, "F32", list(TWO), 16, None, data), REFUSED))  # fmt: skip
    return made
