"""Cases of the sliding window (chapter 30)."""

from collections.abc import Sequence

from tools.vector_cases.make import REFUSED, exactly, ids, subset, vector

from flashref.conformance.vectors.files import Vector
from flashref.definitions import window_model
from flashref.types import Ids

Sets = Sequence[Sequence[int]]  # of consecutive tokens in one layer


def windows_model(
    k: int, capacities: Sequence[int], actives: Sequence[Sequence[Sequence[Ids]]]
) -> list[list[list[list[Ids]]]]:
    """[load, evict, bypass] of every sequence, token and layer; each layer has a window of its own."""
    sequences = []
    for sequence in actives:
        layers = [
            [
                [ids(sorted(part)) for part in (step.load, step.evict, step.bypass)]
                for step in window_model(k, capacity, of_layer)
            ]
            for capacity, of_layer in zip(capacities, zip(*sequence, strict=True), strict=True)
        ]
        sequences.append([list(token) for token in zip(*layers, strict=True)])
    return sequences


def cases() -> list[Vector]:
    """Every case of `run_window`."""
    return [*_by_hand(), *_drawn(), *_refusals()]


def _case(
    name: str, requirements: str, flags: str, comment: str, n: int, k: int, capacities: Sequence[int],
    actives: Sequence[Sequence[Sequence[Ids]]],
) -> Vector:  # fmt: skip
    due = exactly(windows_model(k, capacities, actives))
    return vector(f"run_window/{name}", requirements, flags, comment, (n, k, list(capacities), actives), due)


def _by_hand() -> list[Vector]:
    made = []
    every = list(range(6))
    for what, requirements, flags, comment, n, k, capacity, tokens in (
        ("example", "WIN-1 WIN-3 WIN-4 WIN-5", "eviction",
         "fails if a neuron that the same token needs is evicted, or read again",
         8, 2, 8, [[1, 2], [3], [2, 5]]),
        ("example_of_two_rows", "WIN-4 WIN-5 WIN-6 WIN-7", "capacity shrink",
         "fails if a token that does not fit loses neurons",
         8, 2, 2, [[1, 2], [3], [2, 3, 5]]),
        ("window_of_one_token", "WIN-8 WIN-4", "eviction",
         "fails if k = 1 keeps nothing, or a token too many",
         6, 1, 6, [[0, 1, 2], [1, 2, 3], [], [3], [3]]),
        ("window_of_all_tokens", "WIN-8 WIN-3", "eviction",
         "fails if something is evicted although the window never ends",
         6, 9, 6, [[0], [1], [2], [3], [0], [4], [5], [0, 5]]),
        ("token_t_counts", "WIN-3 WIN-4", "eviction",
         "fails if a window of k holds k tokens beside the newest, or k − 1",
         4, 3, 4, [[0], [1], [2], [3], [3], [3], [0]]),
        ("needed_again_when_it_leaves", "WIN-4 WIN-5", "eviction",
         "fails if the row that this very token needs is evicted and read",
         4, 2, 4, [[0, 1], [2], [0], [1], [0]]),
        ("empty_tokens", "WIN-3 WIN-4", "boundary stale",
         "fails if a token that predicts nothing does not count as one",
         4, 2, 4, [[], [0, 3], [], [], [0], []]),
        ("full_tokens", "WIN-3 WIN-5", "boundary", "fails if the full set is special",
         6, 2, 6, [every, every, [], every, [], [], every]),
        ("one_neuron", "WIN-1 WIN-3", "boundary", "fails if a layer of one neuron is special",
         1, 2, 1, [[0], [], [], [0], [0]]),
        ("capacity_of_0", "WIN-4 WIN-6 WIN-7", "capacity boundary",
         "fails if nothing to keep means nothing to compute with",
         6, 3, 0, [[1, 2], [2], [], every]),
        ("capacity_of_1", "WIN-6 WIN-7", "capacity",
         "fails if what is there is not kept first, or the smallest new id is not next",
         6, 3, 1, [[1, 2], [2], [1, 2], [0, 2], [1, 2], [5]]),
        ("capacity_below_one_token", "WIN-6 WIN-7", "capacity",
         "fails if a neuron is neither kept nor read past the cache",
         6, 3, 3, [[0, 1, 2, 3, 4], [3, 4, 5], [0, 4, 5], every, [5]]),
        ("capacity_of_one_token", "WIN-6 WIN-7", "capacity counters",
         "fails if loads are skipped silently: right, but read again",
         6, 2, 3, [[0, 1, 2], [0, 1, 2], [1, 2, 3], [1, 2, 3], [3, 4, 5]]),
        ("shrinks_and_room_returns", "WIN-6 WIN-3", "shrink stale",
         "fails if a token that left to make room comes back",
         8, 4, 4, [[0, 1], [2, 3], [4, 5], [4], [4], [0, 2], [6]]),
        ("shrinks_by_two", "WIN-6 WIN-3", "shrink", "fails if only one token may leave at a time",
         8, 4, 3, [[0], [1], [2], [3, 4, 5], [3], [0]]),
        ("oldest_leaves_but_is_shared", "WIN-4 WIN-6", "shrink",
         "fails if a neuron leaves with the oldest although a newer token has it",
         6, 3, 3, [[0, 1], [1, 2], [3], [1], [0]]),
        ("bypass_is_not_remembered", "WIN-6 WIN-7", "capacity stale",
         "fails if a neuron that was read once counts as there",
         6, 3, 2, [[0, 1, 2], [2], [2, 3], [0, 1, 2]]),
    ):  # fmt: skip
        sequence = [[ids(token)] for token in tokens]
        made.append(_case(f"by_hand/{what}", requirements, flags, comment, n, k, [capacity], [sequence]))
    return made


def _drawn() -> list[Vector]:
    made = []
    everything = "WIN-1 WIN-3 WIN-4 WIN-5 WIN-6 WIN-7"

    def traces(
        name: str, n: int, sequences: int, tokens: int, layers: int, percent: int
    ) -> list[list[list[Ids]]]:
        return [
            [
                [subset(f"run_window/{name}/{s}/{t}/{layer}", n, percent) for layer in range(layers)]
                for t in range(tokens)
            ]
            for s in range(sequences)
        ]

    for k, capacity, percent in (
        (1, 9, 30),
        (2, 0, 30),
        (2, 5, 30),
        (3, 7, 30),
        (4, 17, 20),
        (5, 12, 15),
        (3, 6, 60),
    ):
        name = f"drawn/k{k}_capacity{capacity}_of_17"
        made.append(_case(name, everything, "eviction capacity shrink",
                          "fails if any of the window's rules is another one, over many tokens",
                          17, k, [capacity], traces(name, 17, 1, 14, 1, percent)))  # fmt: skip
    name = "drawn/three_sequences"
    made.append(_case(name, everything, "batch stale",
                      "fails if sequences share a window, or their sets are united",
                      9, 3, [6], traces(name, 9, 3, 6, 1, 30)))  # fmt: skip
    name = "drawn/twelve_layers"
    made.append(_case(name, everything, "layers stale",
                      "fails if the window moves once a layer, or layer 10 comes before layer 2",
                      9, 3, [2 + layer % 8 for layer in range(12)],
                      traces(name, 9, 1, 6, 12, 30)))  # fmt: skip
    name = "drawn/two_sequences_of_two_layers"
    made.append(_case(name, everything, "batch layers",
                      "fails if a layer or a sequence takes another's capacity or state",
                      11, 2, [3, 11], traces(name, 11, 2, 5, 2, 40)))  # fmt: skip
    return made


def _refusals() -> list[Vector]:
    fine = [[[ids([0, 2])], [ids([1])]]]
    wrong = "fails if an id is clamped or wrapped, or ids are sorted silently"
    domain = "fails if an argument outside the domain is taken"
    return [
        vector(f"run_window/refusals/{what}", requirements, "refusal", comment, arguments, REFUSED)
        for what, requirements, comment, arguments in (
            ("id_beyond_the_last", "TYP-2", wrong, (4, 2, [4], [[[ids([0])], [ids([4])]]])),
            ("id_negative", "TYP-2", wrong, (4, 2, [4], [[[ids([-1, 2])]]])),
            ("ids_out_of_order", "TYP-2", wrong, (4, 2, [4], [[[ids([0])], [ids([2, 1])]]])),
            ("ids_repeated", "TYP-2", wrong, (4, 2, [4], [[[ids([3, 3])]]])),
            ("window_of_no_token", "WIN-1", domain, (4, 0, [4], fine)),
            ("capacity_negative", "WIN-1", domain, (4, 2, [-1], fine)),
            ("no_neurons", "WIN-1", domain, (0, 2, [4], [[[ids([])]]])),
        )
    ]
