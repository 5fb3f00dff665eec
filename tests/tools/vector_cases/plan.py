"""Cases of the read plan (chapter 52)."""

from collections.abc import Sequence

import numpy as np
from tools.vector_cases.make import REFUSED, exactly, numbers, vector

from flashref.conformance.vectors.files import Vector
from flashref.definitions import plan_model
from flashref.types import Array

Extents = Sequence[tuple[int, int]]
BUNDLES = ((17_000, 3000), (0, 3000), (3500, 3000))  # chapter 52's example


def pairs(extents: Extents) -> Array:
    """(offset, length) as an array (m, 2) of int64."""
    return np.array(extents, np.int64).reshape(-1, 2)


def cases() -> list[Vector]:
    """Every case of `read_plan`."""
    made = []
    rounded = "fails if reads do not begin and end on blocks, or a block is read twice"
    merged = "fails if a gap of more than max_gap is read over, or one of max_gap is not"
    anyhow = "fails if the order or the repetition of extents matters"
    far = "fails if offsets are kept in 32 bits, or in floats"
    plans: Sequence[tuple[str, str, str, str, Extents, int, int]] = (
        ("no_extents", "PLN-2 PLN-3", "boundary", "fails if nothing wanted is not nothing read", (), 4096, 0),
        ("one_byte", "PLN-1 PLN-2", "boundary", rounded, ((4095, 1),), 4096, 0),
        ("ends_on_a_block", "PLN-1 PLN-2", "boundary", rounded, ((4096, 4096),), 4096, 0),
        ("a_byte_over_a_block", "PLN-1 PLN-2", "boundary", rounded, ((4096, 4097),), 4096, 0),
        ("touching", "PLN-1 PLN-2", "gap", "fails if touching reads stay apart", ((0, 16), (16, 16), (40, 8)),
         16, 0),
        ("gap_of_a_block", "PLN-1 PLN-3", "gap", merged, ((0, 16), (32, 16)), 16, 0),
        ("gap_allowed_by_a_byte_too_few", "PLN-1 PLN-3", "gap", merged, BUNDLES, 4096, 8191),
        ("gap_just_allowed", "PLN-1 PLN-3", "gap", merged, BUNDLES, 4096, 8192),
        ("gap_below_a_block", "PLN-1 PLN-3", "gap", merged, ((0, 1), (33, 1), (79, 1)), 16, 15),
        ("gaps_one_by_one", "PLN-1 PLN-3", "gap", merged, ((0, 8), (24, 8), (48, 8), (80, 8)), 8, 16),
        ("unordered_and_repeated", "PLN-2 PLN-4", "order", anyhow,
         ((70, 5), (3, 4), (70, 5), (20, 1), (3, 4)), 16, 0),
        ("one_within_another", "PLN-2 PLN-4", "order", anyhow, ((0, 200), (10, 5), (30, 2), (190, 40)), 16,
         0),
        ("plan_of_a_plan", "PLN-4", "gap", "fails if planning a plan changes it", ((0, 8192), (16384, 4096)),
         4096, 0),
        ("block_of_one_byte", "PLN-1 PLN-2", "boundary", rounded, ((5, 3), (9, 1), (8, 1)), 1, 0),
        ("block_of_one_byte_with_gaps", "PLN-1 PLN-3", "boundary gap", merged, ((5, 3), (10, 1), (14, 1)), 1,
         2),
        ("beyond_32_bits", "PLN-1 PLN-2", "offsets", far, ((2**32 - 8, 16), (2**31 - 1, 2), (2**33 + 5, 1)),
         16, 0),
        ("beyond_53_bits", "PLN-1 PLN-2", "offsets", far, ((2**53 + 1, 1), (2**53 + 3, 1), (2**60 + 1, 2)), 1,
         0),
    )  # fmt: skip
    for what, requirements, flags, comment, extents, block, max_gap in plans:
        due = exactly(pairs(plan_model(extents, block, max_gap)))
        made.append(
            vector(
                f"read_plan/plans/{what}", requirements, flags, comment, (pairs(extents), block, max_gap), due
            )
        )
    for number, max_gap in enumerate((0, 32, 100)):
        drawn = numbers(f"read_plan/plans/many_{number}")
        many = [(next(drawn) % 1500, 1 + next(drawn) % 40) for _ in range(14)]
        due = exactly(pairs(plan_model(many, 16, max_gap)))
        made.append(vector(f"read_plan/plans/many_{number}", "PLN-1 PLN-2 PLN-3 PLN-4", "gap order counters",
                           merged,
                           (pairs(many), 16, max_gap), due))  # fmt: skip
    wrong: Sequence[tuple[str, Extents, int, int, str]] = (
        ("block_of_three", BUNDLES, 3, 0, "fails if a block that is no power of two is taken"),
        ("block_of_zero", BUNDLES, 0, 0, "fails if a block of no bytes is taken"),
        ("gap_negative", BUNDLES, 16, -1, "fails if a negative max_gap is taken for 0"),
        ("extent_empty", ((0, 16), (32, 0)), 16, 0,
         "fails if an extent without a byte is planned or skipped"),
        ("extent_before_0", ((-16, 16),), 16, 0,
         "fails if an extent before the first byte is planned or cut"),
    )  # fmt: skip
    for what, extents, block, max_gap, comment in wrong:
        made.append(
            vector(
                f"read_plan/refusals/{what}",
                "PLN-5",
                "refusal",
                comment,
                (pairs(extents), block, max_gap),
                REFUSED,
            )
        )
    return made
