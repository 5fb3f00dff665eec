"""Cases of the dense and the sparse network (chapter 10): structure, exactly, and what must be refused."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tools.vector_cases.make import (
    REFUSED,
    dyadic,
    ffn_bounded,
    ffn_exactly,
    ids,
    stored,
    subset,
    vector,
)

from flashref.conformance.definitions import exact_active
from flashref.conformance.vectors.files import Vector
from flashref.types import FFN, Array

STEPS = ("relu", "squared_relu", "fatrelu")  # exact on dyadic data
DTYPES = ("F32", "F16", "BF16")
BIASES = ("up_bias", "gate_bias", "down_bias")
# |entry| is a multiple of 2^−bits; the first sizes and the last fill float32's 24 bits almost ().
DYADIC_SIZES = {
    ("relu", False): (7, 5, 3), ("relu", True): (7, 5, 2),
    ("fatrelu", False): (7, 5, 3), ("fatrelu", True): (7, 5, 2),
    ("squared_relu", False): (7, 5, 2), ("squared_relu", True): (7, 4, 2),
}  # fmt: skip
Draw = Callable[[str, tuple[int, ...], str], Array]


def network(
    key: str,
    n: int,
    d: int,
    dtype: str,
    activation: str,
    gated: bool,
    biases: Sequence[str],
    draw: Draw,
    tau: float = 0.0,
) -> FFN:
    """A network whose arrays follow from the key."""

    def part(name: str, *shape: int) -> Array:
        return draw(f"{key}/{name}", shape, dtype)

    def bias(name: str, size: int) -> Array | None:
        return part(name, size) if name in biases else None

    return FFN(
        activation,
        part("up", n, d),
        part("down", n, d),
        part("gate", n, d) if gated else None,
        bias("up_bias", n),
        bias("gate_bias", n) if gated else None,
        bias("down_bias", d),
        tau,
    )


def case(
    name: str, requirements: str, flags: str, comment: str, x: Array, ffn: FFN, active: Any = None
) -> Vector:
    """A case whose expectation is exact if it is flagged dyadic, else bounded."""
    sparse = name.startswith("sparse_ffn/")
    assert sparse == (active is not None), name
    expectation = (ffn_exactly if "dyadic" in flags.split() else ffn_bounded)(x, ffn, active)
    return vector(name, requirements, flags, comment, (x, *ffn, active) if sparse else (x, *ffn), expectation)


def cases() -> list[Vector]:
    """The exact cases of both operations, and the refusals."""
    return [*_dyadic_dense(), *_dyadic_sparse(), *_taus(), *_refusals()]


def _dyadic(name: str, activation: str, gated: bool, dtype: str, biases: Sequence[str]) -> tuple[Array, FFN]:
    n, d, bits = DYADIC_SIZES[activation, gated]

    def draw(key: str, shape: tuple[int, ...], dtype: str) -> Array:
        return dyadic(key, shape, dtype, bits)

    tau = 0.25 if activation == "fatrelu" else 0.0
    return dyadic(f"{name}/x", (d,), "F32", bits), network(
        name, n, d, dtype, activation, gated, biases, draw, tau
    )


def _dyadic_dense() -> list[Vector]:
    made = []
    for activation in STEPS:
        for gated in (False, True):
            for dtype in DTYPES:
                name = f"dense_ffn/dyadic/{activation}_{'gated' if gated else 'plain'}_{dtype}"
                biases = BIASES if dtype != "F16" else ()
                made.append(case(name, "FFN-1 TYP-5", "dyadic activation bias",
                                 f"fails if {activation} is another function, or a term of a sum is missing",
                                 *_dyadic(name, activation, gated, dtype, biases)))  # fmt: skip
    for bias in BIASES:
        name = f"dense_ffn/dyadic/only_{bias}"
        made.append(case(name, "FFN-1", "dyadic bias", f"fails if {bias} is lost",
                         *_dyadic(name, "relu", True, "F32", (bias,))))  # fmt: skip
    for n, d in ((1, 1), (1, 7), (33, 1), (37, 3), (0, 3)):
        name = f"dense_ffn/dyadic/n{n}_d{d}"
        ffn = network(name, n, d, "F32", "relu", False, ("down_bias",), dyadic)
        made.append(case(name, "FFN-1 FFN-8" if n == 0 else "FFN-1", "dyadic boundary tail",
                         "fails if sizes are rounded to a multiple, or a size of 0 or 1 is special",
                         dyadic(f"{name}/x", (d,)), ffn))  # fmt: skip
    name = "dense_ffn/dyadic/zeros_of_both_signs"
    zeros = FFN(
        "relu", stored([0.0, -0.0, -0.0, 0.0], (2, 2), "F32"), stored([-0.0, 1, -1, -0.0], (2, 2), "F32")
    )
    made.append(case(name, "FFN-1", "dyadic boundary", "fails if a zero becomes something else",
                     stored([-0.0, 0.0], (2,), "F32"), zeros))  # fmt: skip
    return made


def _dyadic_sparse() -> list[Vector]:
    made = []
    for number, (activation, gated) in enumerate(DYADIC_SIZES):
        for turn in (0, 1):
            dtype = DTYPES[(number + turn) % 3]
            name = f"sparse_ffn/dyadic/{activation}_{'gated' if gated else 'plain'}_{dtype}"
            x, ffn = _dyadic(name, activation, gated, dtype, BIASES)
            made.append(case(name, "FFN-4 TYP-5", "dyadic activation bias",
                             "fails if another set than the one asked for is summed, or a bias is left out",
                             x, ffn, subset(f"{name}/active", len(ffn.up), 60)))  # fmt: skip

    def of(name: str, gated: bool = False, biases: Sequence[str] = BIASES) -> tuple[str, Array, FFN]:
        name = f"sparse_ffn/dyadic/{name}"
        return name, *_dyadic(name, "relu", gated, "F32", biases)

    def add(
        made_of: tuple[str, Array, FFN], active: Any, requirements: str, flags: str, comment: str
    ) -> None:
        name, x, ffn = made_of
        made.append(case(name, requirements, f"dyadic {flags}", comment, x, ffn, ids(active)))

    empty = "fails if nothing active means nothing to add, or an error"
    add(of("empty_set_with_biases"), [], "FFN-4 FFN-8", "boundary bias", empty)
    add(of("empty_set_without_down_bias", biases=()), [], "FFN-4 FFN-8", "boundary", empty)
    add(of("empty_set_gated", gated=True), [], "FFN-4 FFN-8", "boundary bias", empty)
    add(of("first_neuron_only"), [0], "FFN-4", "boundary", "fails if neuron 0 stands for none")
    add(of("last_neuron_only"), [6], "FFN-4", "boundary tail", "fails if the last neuron is dropped")
    add(
        of("every_neuron"),
        range(7),
        "FFN-4 FFN-6",
        "boundary",
        "fails if the full set is not the dense network",
    )
    add(
        of("all_but_one", gated=True),
        [0, 1, 2, 4, 5, 6],
        "FFN-4",
        "order",
        "fails if ids are taken for positions",
    )
    for gated in (False, True):
        made_of = of(f"exactly_the_active_{'gated' if gated else 'plain'}", gated)
        add(made_of, sorted(exact_active(*made_of[1:])), "FFN-4 FFN-6", "activation",
            "fails if leaving out what is not active changes the dense result")  # fmt: skip
    off = stored([-1, -1, 1, 1], (2, 2), "F32")
    ones = stored([1, 1], (2,), "F32")
    made.append(case("sparse_ffn/dyadic/bias_of_skipped_neurons", "FFN-4", "dyadic bias",
                     "fails if a neuron that is left out adds act(up_bias), as a mask before the bias does",
                     ones, FFN("relu", off, stored([0.5, 0.5, 0.25, 0.5], (2, 2), "F32"), None, ones),
                     ids([1])))  # fmt: skip
    made.append(case("sparse_ffn/dyadic/chosen_but_not_active", "FFN-4 FFN-6", "dyadic activation",
                     "fails if a chosen neuron is taken to fire: its activation is still 0",
                     ones, FFN("relu", off, stored([1, 1, 0.25, 0.5], (2, 2), "F32")),
                     ids([0, 1])))  # fmt: skip
    made.append(case("sparse_ffn/dyadic/bias_wakes_a_neuron", "FFN-4 FFN-6", "dyadic bias",
                     "fails if activity is decided before the bias is added",
                     ones, FFN("relu", stored([-0.5, 0, 0.5, 0], (2, 2), "F32"),
                               stored([1, 0, 0, 1], (2, 2), "F32"),
                               None, stored([1, -1], (2,), "F32")), ids([0, 1])))  # fmt: skip
    name = "sparse_ffn/dyadic/tail_of_33"
    ffn = network(name, 33, 3, "F16", "relu", False, ("up_bias",), dyadic)
    made.append(case(name, "FFN-4", "dyadic tail", "fails if rows beyond a multiple of 32 are dropped",
                     dyadic(f"{name}/x", (3,)), ffn, ids([0, 31, 32])))  # fmt: skip
    return made


def _taus() -> list[Vector]:
    """FATReLU's threshold: z itself beyond it, strictly, compared as a float32."""
    made = []
    x = stored([1, 0.5], (2,), "F32")
    up = stored([0.5, 0, 0.5, 0.25, 0.25, 0, -1, 0], (4, 2), "F32")  # z = 0.5, 0.625, 0.25, −1
    down = stored([1, 0, 0, 1, 1, 1, 1, 1], (4, 2), "F32")
    for tau, what in ((0.5, "tie"), (0.25, "smaller"), (0.0, "zero"), (1.0, "none_beyond")):
        for operation in ("dense_ffn", "sparse_ffn"):
            active = ids([0, 1, 3]) if operation == "sparse_ffn" else None
            made.append(case(f"{operation}/fatrelu/tau_{what}", "FFN-4" if active is not None else "FFN-1",
                             "dyadic threshold activation",
                             "fails if the output is z − tau, if z = tau is active, or if tau is not used",
                             x, FFN("fatrelu", up, down, tau=tau), active))  # fmt: skip
    made.append(case("dense_ffn/fatrelu/tau_is_rounded_to_float32", "FFN-1", "dyadic threshold",
                     "fails if tau is compared in float64: as a float32 it is 0.5, which z must exceed",
                     x, FFN("fatrelu", up, down, tau=0.5 - 2.0**-40)))  # fmt: skip
    made.append(case("dense_ffn/fatrelu/tau_of_another_activation", "FFN-1", "dyadic threshold",
                     "fails if tau is applied although the activation is relu",
                     x, FFN("relu", up, down, tau=0.5)))  # fmt: skip
    made.append(case("dense_ffn/fatrelu/gate_decides", "FFN-1", "dyadic threshold activation",
                     "fails if tau is applied to the up projection of a gated network",
                     x, FFN("fatrelu", up[::-1], down, up, tau=0.5)))  # fmt: skip
    return made


def _refusals() -> list[Vector]:
    name = "sparse_ffn/refusals/network"
    x = dyadic(f"{name}/x", (3,))
    good = network(name, 4, 3, "F32", "relu", False, ("up_bias", "down_bias"), dyadic)
    gated = network(name, 4, 3, "F32", "relu", True, (), dyadic)
    wrong: dict[str, tuple[Array, FFN, str]] = {
        "down_transposed": (x, good._replace(down=good.down.T),
                            "fails if down (d, n) is taken: rows belong to neurons"),
        "down_a_row_short": (x, good._replace(down=good.down[:3]), "fails if a missing row goes unnoticed"),
        "gate_a_row_short": (x, gated._replace(gate=gated.up[:3]),
                             "fails if a gate of another size is taken"),
        "up_bias_of_length_d": (x, good._replace(up_bias=x), "fails if a bias of another length is taken"),
        "down_bias_of_length_n": (x, good._replace(down_bias=good.up_bias),
                                  "fails if a bias of another length is taken"),
        "gate_bias_without_gate": (x, good._replace(gate_bias=good.up_bias),
                                   "fails if a bias of nothing is ignored"),
        "mixed_dtypes": (x, good._replace(down=good.down.astype(np.float16)),
                         "fails if matrices of two dtypes are taken"),
        "x_too_long": (dyadic(f"{name}/long", (4,)), good, "fails if x is cut to fit"),
        "x_of_one_value": (x[:1], good, "fails if x is broadcast"),
        "x_float64": (x.astype(np.float64), good, "fails if an input of another dtype is taken"),
        "unknown_activation": (x, good._replace(activation="sigmoid"),
                               "fails if an unknown activation becomes another"),
        "tau_negative": (x, good._replace(tau=-0.5),
                         "fails if a negative tau is taken, whatever the activation"),
        "tau_infinite": (x, good._replace(tau=float("inf")), "fails if an infinite tau is taken"),
        "tau_not_a_number": (x, good._replace(tau=float("nan")),
                             "fails if NaN is taken, with which nothing compares"),
    }  # fmt: skip
    made = []
    for number, (what, (given, ffn, comment)) in enumerate(wrong.items()):
        active = ids([]) if number % 2 else ids([0, 2])  # refused whichever ids are asked for
        made.append(
            vector(f"sparse_ffn/refusals/{what}", "FFN-9", "refusal", comment, (given, *ffn, active), REFUSED)
        )
        if number % 3 == 0:
            made.append(
                vector(f"dense_ffn/refusals/{what}", "FFN-9", "refusal", comment, (given, *ffn), REFUSED)
            )
    for what, wanted, comment in (
        ("id_beyond_the_last", [0, 4], "fails if an id is clamped to the last neuron"),
        ("id_negative", [-1, 2], "fails if −1 is taken for the last neuron"),
        ("ids_out_of_order", [2, 1], "fails if ids are sorted silently"),
        ("ids_repeated", [1, 1], "fails if a neuron is summed twice, or a repetition dropped silently"),
    ):
        made.append(
            vector(
                f"sparse_ffn/refusals/{what}",
                "FFN-8 TYP-2",
                "refusal",
                comment,
                (x, *good, ids(wanted)),
                REFUSED,
            )
        )
    return made
