"""Cases of whole decoding: predictor, window, slots, reads and sums together (chapter 80)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tools.vector_cases.bundles import THREE, TWO, bundle_bytes
from tools.vector_cases.ffn import BIASES, Draw, network
from tools.vector_cases.make import (
    REFUSED,
    UNIT_ROUNDOFF,
    About,
    chosen_rows,
    dyadic,
    float32_exactly,
    float64_bounded,
    real,
    vector,
)
from tools.vector_cases.predictor import drawn, predicted_ids

from flashref.conformance.adapter import COUNTERS, PLACEMENTS, SEMANTICS
from flashref.conformance.definitions import bound_by_formula, exact_ffn
from flashref.conformance.vectors.files import Expectation, Vector
from flashref.definitions import decode_model
from flashref.types import FFN, Array, Predictor

Layer = tuple[FFN, Predictor]


class Run(NamedTuple):
    """The arguments of a run beside its layers and inputs."""

    k: int
    capacities: Sequence[int]
    semantics: str = "resident"
    placement: str = "swap_with_last"
    block: int = 32
    max_gap: int = 0
    bypass_rows: int = 16


def cases() -> list[Vector]:
    """Every case of `run_decode`."""
    return [*_both_semantics(), *_shapes(), *_bounded(), *_refusals()]


def _two_bits(key: str, shape: tuple[int, ...], dtype: str) -> Array:
    return dyadic(key, shape, dtype, 2)


class Layers(NamedTuple):
    """Layers of one kind. biases: the names of the network's; threshold, biased: of the predictors."""

    n: int
    d: int
    count: int = 1
    dtype: str = "F32"
    activation: str = "relu"
    gated: bool = False
    biases: Sequence[str] = BIASES
    draw: Draw = _two_bits
    threshold: float = 0.0
    biased: bool = False


def _drawn_layers(name: str, of: Layers) -> list[Layer]:
    """Layers whose predictors are dyadic and know nothing of their networks: often wrong."""
    tau = 0.25 if of.activation == "fatrelu" else 0.0
    kind = (of.n, of.d, of.dtype, of.activation, of.gated, of.biases, of.draw, tau)
    return [
        (
            network(f"{name}/{layer}/ffn", *kind),
            drawn(f"{name}/{layer}/predictor", of.n, of.d, 2, biased=of.biased, threshold=of.threshold),
        )
        for layer in range(of.count)
    ]


def _case(about: About, of: Layers, text: tuple[int, int], run: Run, bounded: bool = False) -> Vector:
    """A run of a text of (sequences, tokens)."""
    name = f"run_decode/{about.name}"
    layers, (sequences, tokens), d = _drawn_layers(name, of), text, of.d
    xs = dyadic(f"{name}/xs", (sequences, tokens, d), "F32", 2)
    shape = (sequences, tokens, len(layers))
    ys, bounds = np.zeros((*shape, d), np.float64), np.zeros((*shape, d), np.float64)
    # Rows moved depend on the order of slots, which is free.
    counters = {counter: np.zeros(shape, np.int64) for counter in COUNTERS if counter != "moved_rows"}
    for s in range(sequences):
        for layer, (ffn, predictor) in enumerate(layers):
            fields = TWO if ffn.gate is None else THREE
            dtype = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[ffn.up.dtype.name]
            predicted = [predicted_ids(x, predictor).tolist() for x in xs[s]]
            steps = decode_model(
                bundle_bytes(d, dtype, fields), predicted, run.k, run.capacities[layer],
                run.placement, run.block, run.max_gap, run.bypass_rows,
            )  # fmt: skip
            for t, step in enumerate(steps):
                chosen = sorted(step.in_dram) if run.semantics == "resident" else predicted[t]
                y = exact_ffn(xs[s, t], ffn, chosen)
                if bounded:
                    bound = bound_by_formula(xs[s, t], chosen_rows(ffn, chosen), UNIT_ROUNDOFF)
                    ys[s, t, layer], bounds[s, t, layer] = float64_bounded(y, bound)
                else:
                    ys[s, t, layer] = float32_exactly(y)
                for counter in counters:
                    counters[counter][s, t, layer] = step.counters[counter]
    arguments = ([list(layer) for layer in layers], xs, run.k, list(run.capacities), *run[2:])
    if bounded:
        expectation = Expectation("bounded", [ys, counters], bounds)
    else:
        expectation = Expectation("exact_but_for_zero_sign", [ys.astype(np.float32), counters])
    return vector(*about._replace(name=name), arguments, expectation)


def _both_semantics() -> list[Vector]:
    """One layer of nine neurons, five tokens: what changes is the rows that there are, and what is summed."""
    made = []
    for number, capacity in enumerate((0, 1, 3, 6, 9)):
        for turn, semantics in enumerate(SEMANTICS):
            placement = PLACEMENTS[(number + turn) % 2]
            name = f"{semantics}/capacity_{capacity}"
            run = Run((1, 2, 3)[number % 3], [capacity], semantics, placement, max_gap=(0, 64)[number % 2])
            about = About(name, "DEC-1 DEC-2 DEC-3 DEC-7", "dyadic semantics capacity counters",
                          "fails if other rows are summed than the semantics choose")  # fmt: skip
            made.append(_case(about, Layers(9, 3), (1, 6), run))
    return made


def _shapes() -> list[Vector]:
    full, seven, never, always = "DEC-1 DEC-2 DEC-3 DEC-7", Layers(7, 3), 100.0, -100.0
    pieces = "fails if a bypass that is longer than its buffer loses neurons, or is counted as one batch"
    pieced = seven._replace(threshold=-0.5)
    runs = [
        (f"bypass/{rows}_rows", f"{full} DEC-10", "capacity counters", pieces, pieced, (1, 5),
         Run(2, [2], "predicted", PLACEMENTS[rows % 2], bypass_rows=rows))
        for rows in (1, 2, 7)
    ]  # fmt: skip
    runs += [
        ("bypass/2_rows_resident", f"{full} DEC-10", "capacity counters", pieces, pieced, (1, 5),
         Run(3, [3], "resident", "fill_holes", bypass_rows=2)),
        ("bypass/no_matrix", f"{full} DEC-10", "capacity counters", pieces, seven._replace(threshold=-0.25),
         (1, 4), Run(2, [0], "resident", bypass_rows=3)),
        ("sets/always_empty", full, "boundary bias", "fails if a token without neurons is not the down bias",
         seven._replace(threshold=never), (1, 3), Run(2, [4])),
        ("sets/always_full", full, "boundary capacity", "fails if the full set is special",
         seven._replace(threshold=always), (1, 3), Run(2, [7])),
        ("sets/without_biases", full, "bias", "fails if a bias is expected", seven._replace(biases=()),
         (1, 4), Run(2, [5])),
        ("dtypes/gated_F16", full, "layout bias",
         "fails if the gate's row is missing in the bundle, or stands elsewhere",
         seven._replace(gated=True, dtype="F16", biased=True), (1, 6), Run(2, [4], "predicted", block=64)),
        ("dtypes/gated_BF16", full, "layout bf16", "fails if bfloat16 bits are taken for float16",
         seven._replace(gated=True, dtype="BF16", activation="fatrelu"), (1, 6), Run(2, [4], block=4)),
        ("dtypes/squared_relu_F16", full, "activation", "fails if relu is not squared",
         seven._replace(dtype="F16", activation="squared_relu"), (1, 6),
         Run(3, [5], "predicted", "fill_holes")),
        ("dtypes/fatrelu_F32", full, "threshold activation", "fails if tau is not used in decoding",
         seven._replace(activation="fatrelu", biased=True), (1, 6), Run(3, [5], block=16, max_gap=64)),
        ("batches/three_sequences", f"{full} DEC-9", "batch stale",
         "fails if sequences share a window, rows or an active set", Layers(7, 3), (3, 4), Run(2, [4])),
        ("batches/two_sequences_two_layers", f"{full} DEC-9", "batch layers stale",
         "fails if a layer or a sequence takes another's rows", Layers(5, 2, count=2), (2, 5),
         Run(2, [2, 4], "predicted", "fill_holes")),
        ("batches/twelve_layers", f"{full} DEC-9", "layers stale",
         "fails if layer 10 is taken for layer 2, or the window moves once a layer instead of once a token",
         Layers(5, 2, count=12, biases=("down_bias",)), (1, 6), Run(2, [layer % 6 for layer in range(12)])),
        ("window/longer_than_the_text", full, "eviction",
         "fails if something is evicted although the window never ends", seven, (1, 5),
         Run(40, [7], "resident", "fill_holes")),
        ("window/of_one_token", full, "eviction semantics",
         "fails if rows of the token before are still summed", seven, (1, 6), Run(1, [7], "resident")),
        ("blocks/bundles_above_a_block", full, "layout counters",
         "fails if padding is not read, or counted as useful", Layers(6, 5), (1, 6), Run(2, [4], block=16)),
        ("blocks/gaps_read_over", full, "gap counters",
         "fails if a gap is not read over, or its bytes are counted as useful", Layers(13, 2), (1, 6),
         Run(2, [6], "predicted", block=16, max_gap=32)),
        ("blocks/larger_than_a_layer", full, "counters",
         "fails if the end of an image is not read in whole blocks", Layers(3, 1), (1, 3),
         Run(2, [3], block=4096)),
    ]  # fmt: skip
    return [
        _case(About(name, requirements, f"dyadic {flags}", comment), of, text, run)
        for name, requirements, flags, comment, of, text, run in runs
    ]


def _bounded() -> list[Vector]:
    made = []
    for number, (activation, gated, dtype) in enumerate(
        (
            ("silu", True, "F32"),
            ("gelu_tanh", False, "F16"),
            ("gelu_erf", False, "BF16"),
            ("relu", False, "F32"),
        )
    ):
        name = f"bounded/{activation}_{dtype}"
        comment = "fails if rows lose bits on their way through storage, or sums are kept in 16 bits"
        about = About(name, "DEC-3 DEC-6 DEC-7", "precision activation", comment)
        layers = Layers(7, 4, 1, dtype, activation, gated, draw=real)
        run = Run(2, [4], SEMANTICS[number % 2], PLACEMENTS[number % 2], block=64)
        made.append(_case(about, layers, (1, 3), run, bounded=True))
    return made


def _refusals() -> list[Vector]:
    name = "run_decode/refusals"
    layers = [list(layer) for layer in _drawn_layers(name, Layers(4, 2))]
    xs = dyadic(f"{name}/xs", (1, 2, 2), "F32", 2)
    return [
        vector(f"{name}/{what}", requirement, "refusal", "fails if an argument outside the domain is taken",
               (layers, xs, run.k, list(run.capacities), *run[2:]), REFUSED)
        for what, requirement, run in (
            ("window_of_no_token", "DEC-1", Run(0, [2])),
            ("capacity_negative", "DEC-1", Run(2, [-1])),
            ("no_bypass_row", "DEC-10", Run(2, [2], bypass_rows=0)),
        )
    ]  # fmt: skip
