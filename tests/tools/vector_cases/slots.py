"""Cases of the rows of the DRAM matrix (chapter 70)."""

from collections.abc import Iterable, Sequence

import numpy as np
from tools.vector_cases.bundles import finite_bits
from tools.vector_cases.make import REFUSED, exactly, ids, subset, vector

from flashref.conformance.adapter import PLACEMENTS
from flashref.conformance.vectors.files import Vector
from flashref.definitions import window_model
from flashref.types import Array, Ids

Step = tuple[Sequence[int], Sequence[int]]  # load, evict


def delta(load: Iterable[int] = (), evict: Iterable[int] = (), bypass: Iterable[int] = ()) -> list[Ids]:
    """A step's [load, evict, bypass]."""
    return [ids(load), ids(evict), ids(bypass)]


def cases() -> list[Vector]:
    """Every case of `run_slots`."""
    return [*_by_hand(), *_drawn(), *_refusals()]


def _case(
    name: str, requirements: str, flags: str, comment: str, capacity: int, placement: str,
    deltas: Sequence[list[Ids]], dtype: str = "F32",
) -> Vector:  # fmt: skip
    """The rows of the j-th step's loads follow from the case's id; the expected ones ascend by id."""
    rows: list[Array] = []
    of: dict[int, Array] = {}
    due = []
    for number, (load, evict, _) in enumerate(deltas):
        rows.append(finite_bits(f"run_slots/{name}/{number}", (len(load), 3), dtype))
        of = {neuron: row for neuron, row in of.items() if neuron not in evict}
        of |= dict(zip(load.tolist(), rows[-1], strict=True))
        matrix = np.stack([of[neuron] for neuron in sorted(of)]) if of else np.zeros((0, 3), rows[-1].dtype)
        due.append([ids(sorted(of)), matrix])
    arguments = (capacity, placement, list(deltas), rows)
    return vector(f"run_slots/{name}", requirements, flags, comment, arguments, exactly(due))


def _by_hand() -> list[Vector]:
    made = []
    lost = "fails if a row is lost, doubled, or lies under another neuron's id"
    for what, flags, comment, capacity, steps in (
        ("figure_6", "swap", lost, 10, [([1, 10, 15], []), ([5], []), ([7, 9], [10])]),
        ("figure_6_in_two_steps", "swap", lost, 10, [([1, 10, 15], []), ([5], []), ([], [10]), ([7, 9], [])]),
        ("hole_is_the_last_row", "swap",
         "fails if the last row is moved onto itself, or behind the used rows", 4,
         [([0, 1, 2], []), ([], [2]), ([5], [])]),
        ("last_row_leaves_too", "swap", "fails if a row that is itself evicted fills a hole", 5,
         [([0, 1, 2, 3, 4], []), ([], [0, 4]), ([7, 8], [])]),
        ("every_second_row_leaves", "swap", lost, 7,
         [([0, 1, 2, 3, 4, 5, 6], []), ([], [0, 2, 4, 6]), ([9], [1])]),
        ("first_half_leaves", "swap", lost, 6, [([0, 1, 2, 3, 4, 5], []), ([], [0, 1, 2])]),
        ("last_half_leaves", "swap counters", "fails if moves are counted where no row moves", 6,
         [([0, 1, 2, 3, 4, 5], []), ([], [3, 4, 5])]),
        ("all_leave", "boundary swap", lost, 3, [([0, 1, 2], []), ([], [0, 1, 2]), ([4], [])]),
        ("all_leave_and_others_come", "boundary stale", "fails if a stale row is shown under a new id", 3,
         [([0, 1, 2], []), ([3, 4, 5], [0, 1, 2]), ([0, 1, 2], [3, 4, 5])]),
        ("as_many_come_as_leave", "counters", lost, 4, [([2, 4, 6, 8], []), ([3, 5], [4, 6]), ([1], [8])]),
        ("fewer_come_than_leave", "swap counters", lost, 5,
         [([0, 1, 2, 3, 4], []), ([9], [0, 1, 2]), ([7], [4])]),
        ("more_come_than_leave", "counters", lost, 6, [([3, 5], []), ([0, 1, 2], [5]), ([8], [])]),
        ("nothing_happens", "boundary", "fails if a step without change changes something", 3,
         [([], []), ([1], []), ([], []), ([], [1])]),
        ("exactly_full", "capacity boundary", "fails if the last row of the matrix is not used", 2,
         [([0, 1], []), ([2], [0]), ([3], [1])]),
        ("no_rows", "capacity boundary", "fails if a matrix of no rows is special", 0, [([], []), ([], [])]),
    ):  # fmt: skip
        for placement in PLACEMENTS:
            requirement = "SLT-4" if placement == "swap_with_last" else "SLT-6"
            deltas = [delta(load, evict) for load, evict in steps]
            made.append(
                _case(
                    f"{placement}/{what}",
                    f"SLT-2 SLT-8 {requirement}",
                    flags,
                    comment,
                    capacity,
                    placement,
                    deltas,
                )
            )
    return made


def _drawn() -> list[Vector]:
    """Deltas of a window over many tokens, with a bypass that must not take a row."""
    made = []
    for number, placement in enumerate(PLACEMENTS):
        for turn, (dtype, k, capacity, percent) in enumerate(
            (("F16", 3, 9, 30), ("BF16", 2, 5, 40), ("F32", 4, 13, 20))
        ):
            name = f"{placement}/window_{dtype}"
            actives = [subset(f"run_slots/{name}/{token}", 13, percent).tolist() for token in range(9)]
            steps = list(window_model(k, capacity, actives))
            deltas = [
                delta(*(sorted(part) for part in (step.load, step.evict, step.bypass))) for step in steps
            ]
            requirement = ("SLT-4", "SLT-6")[number]
            made.append(_case(name, f"SLT-2 SLT-8 {requirement}", "stale swap counters",
                              "fails if rows and ids part ways over many tokens, or the bypass takes a row",
                              capacity, placement, deltas, dtype))  # fmt: skip
            assert turn != 1 or any(step.bypass for step in steps), name
    return made


def _refusals() -> list[Vector]:
    made = []
    first = delta([0, 1, 2])
    for number, (what, requirement, second, rows, comment) in enumerate((
        ("evicts_what_is_not_there", "SLT-3", delta(evict=[3]), 0,
         "fails if an unknown id is ignored, or evicts another row"),
        ("loads_what_is_there", "SLT-3", delta([1]), 1, "fails if a neuron gets a second row"),
        ("loads_what_it_evicts", "SLT-3", delta([1], [1]), 1, "fails if a neuron is both loaded and evicted"),
        ("more_than_the_matrix_holds", "SLT-3", delta([3, 4]), 2,
         "fails if rows are written beyond the matrix"),
        ("loads_out_of_order", "SLT-3 TYP-2", delta([4, 3], [0]), 2,
         "fails if ids are sorted silently: rows belong to them"),
        ("a_row_too_few", "SLT-9", delta([3], [0]), 0, "fails if a missing row leaves a stale one"),
    )):  # fmt: skip
        placement = PLACEMENTS[number % 2]
        given = [
            finite_bits(f"run_slots/refusals/{what}/{j}", (m, 2), "F32") for j, m in enumerate((3, rows))
        ]
        made.append(vector(f"run_slots/refusals/{what}", requirement, "refusal", comment,
                           (4, placement, [first, second], given), REFUSED))  # fmt: skip
    return made
