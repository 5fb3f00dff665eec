"""Cases of gathering rows from an image (chapter 60)."""

import numpy as np
from tools.vector_cases.bundles import (
    THREE,
    TWO,
    Bundles,
    bundle_bytes,
    extents_model,
    finite_bits,
    packed,
)
from tools.vector_cases.make import REFUSED, exactly, ids, numbers, permutation, vector

from flashref.conformance.vectors.files import Vector
from flashref.definitions import plan_model
from flashref.types import Array


def cases() -> list[Vector]:
    """Every case of `gather_rows`."""
    made = []
    rows = "fails if a row of another neuron, field or offset is returned, or bits change"
    cost = "fails if gaps are read over that should not be, or reads and bytes are counted otherwise"
    for what, requirements, flags, comment, n, d, dtype, fields, block, start, ordered, wanted, max_gap in (
        ("below_a_block", "GTH-1 GTH-3", "layout counters", rows, 13, 3, "F32", TWO, 64, 0, False,
         [0, 4, 5, 12], 0),
        ("in_another_order", "GTH-1 GTH-3", "order layout", rows, 13, 3, "F16", THREE, 64, 64, True,
         [0, 4, 5, 12], 0),
        ("in_another_order_over_gaps", "GTH-1 GTH-3", "order gap", rows, 11, 4, "BF16", TWO, 16, 32, True,
         [1, 3, 8, 9], 48),
        ("at_a_block", "GTH-1 GTH-3", "layout counters", rows, 5, 4, "F32", TWO, 32, 32, False, [1, 2, 4], 0),
        ("above_a_block", "GTH-1 GTH-3", "layout counters", rows, 5, 5, "F32", THREE, 32, 0, False, [0, 1, 4],
         0),
        ("gap_just_allowed", "GTH-1 GTH-3", "gap counters", cost, 9, 2, "F32", TWO, 16, 16, False,
         [0, 3, 5, 8], 32),
        ("gap_not_allowed", "GTH-1 GTH-3", "gap counters", cost, 9, 2, "F32", TWO, 16, 16, False,
         [0, 3, 5, 8], 31),
        ("two_in_one_block", "GTH-1 GTH-3", "counters", cost, 9, 2, "F16", TWO, 16, 16, False, [2, 3], 0),
        ("no_ids", "GTH-6 GTH-3", "boundary counters", "fails if no ids read something", 4, 2, "F16", TWO, 16,
         0, False, [], 64),
        ("every_id", "GTH-1 GTH-3", "boundary tail counters", rows, 11, 3, "BF16", TWO, 16, 0, True,
         range(11), 0),
        ("last_id_only", "GTH-1 GTH-3", "boundary tail", rows, 11, 3, "F16", THREE, 128, 256, False, [10], 0),
        ("one_neuron_of_one_value", "GTH-1 GTH-3", "boundary", rows, 1, 1, "F32", ("up",), 16, 0, False, [0],
         0),
    ):  # fmt: skip
        name = f"gather_rows/images/{what}"
        of = Bundles(n, d, dtype, list(fields), block, start, permutation(name, n) if ordered else None)
        image, matrices = _image(name, of)
        extents = extents_model(of, wanted)
        reads = plan_model(extents, block, max_gap)
        due = [
            np.stack([matrix[ids(wanted)] for matrix in matrices], axis=1),
            ids(
                [
                    len(reads),
                    len(extents) * bundle_bytes(d, dtype, fields),
                    sum(length for _, length in reads),
                ]
            ),
        ]
        arguments = (image, *of, ids(wanted), max_gap)
        made.append(vector(name, requirements, flags, comment, arguments, exactly(due)))
    of = Bundles(4, 2, "F32", list(TWO), 16, 16)
    image, _ = _image("gather_rows/refusals", of)
    for what, wanted in (
        ("id_beyond_the_last", [0, 4]),
        ("id_negative", [-1, 2]),
        ("ids_out_of_order", [2, 1]),
        ("ids_repeated", [1, 1]),
    ):
        made.append(vector(f"gather_rows/refusals/{what}", "GTH-2 TYP-2", "refusal",
                           "fails if an id is clamped or wrapped, or ids are sorted silently",
                           (image, *of, ids(wanted), 0), REFUSED))  # fmt: skip
    return made


def _image(name: str, of: Bundles) -> tuple[Array, list[Array]]:
    """Bytes that end on a block, with the bundles at `start` behind bytes of something else; the matrices."""
    matrices = [finite_bits(f"{name}/{field}", (of.n, of.d), of.dtype) for field in of.fields]
    drawn = numbers(f"{name}/before")
    before = bytes(next(drawn) % 256 for _ in range(of.start))
    data = before + packed(matrices, of.d, of.dtype, of.fields, of.block, of.order).tobytes()
    return np.frombuffer(data + bytes(-len(data) % of.block), np.uint8).copy(), matrices
