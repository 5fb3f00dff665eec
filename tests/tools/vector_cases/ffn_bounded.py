"""Cases of the dense and the sparse network (chapter 10) where results round, and every kind of weight."""

import numpy as np
from tools.vector_cases.ffn import BIASES, DTYPES, STEPS, case, network
from tools.vector_cases.make import from_bits, ids, real, stored, subset

from flashref.conformance.vectors.files import Vector
from flashref.types import FFN, Array

SMOOTH = ("silu", "gelu_tanh", "gelu_erf")


def cases() -> list[Vector]:
    """The bounded cases of both operations."""
    return [*_activations(), *_extremes(), *_stored_values()]


def _activations() -> list[Vector]:
    made = []
    for number, activation in enumerate(STEPS + SMOOTH):
        for gated in (False, True):
            for turn, operation in enumerate(("dense_ffn", "sparse_ffn")):
                dtype = DTYPES[(number + gated + turn) % 3]
                name = f"{operation}/bounded/{activation}_{'gated' if gated else 'plain'}_{dtype}"
                biases = BIASES if (number + gated) % 2 else BIASES[:2]
                tau = 0.5 if activation == "fatrelu" else 0.0
                ffn = network(name, 7, 5, dtype, activation, gated, biases, real, tau)
                active = subset(f"{name}/active", 7, 60) if operation == "sparse_ffn" else None
                made.append(case(name, "FFN-5" if turn else "FFN-2", "precision activation bias",
                                 f"fails if {activation} is another function, or less than float32 is used",
                                 real(f"{name}/x", (5,)), ffn, active))  # fmt: skip

    return made


def _extremes() -> list[Vector]:
    made = []
    for activation in SMOOTH:
        for where, z in (("minus_8", -8), ("minus_5", -5), ("40", 40)):
            name = f"dense_ffn/bounded/{activation}_at_{where}"
            ffn = FFN(
                activation,
                stored([1, 0, 0.5, 0.25], (2, 2), "F32"),
                real(f"{name}/down", (2, 2), low=0, high=1),
            )
            made.append(case(name, "FFN-2", "activation precision",
                             "fails if the activation cancels (1 + erf, 1 + tanh), or overflows on the way",
                             stored([z, 1], (2,), "F32"), ffn))  # fmt: skip

    def draw_large(key: str, shape: tuple[int, ...], dtype: str) -> Array:
        return real(key, shape, dtype, -2, 0)

    for n, d, dtype in ((61, 13, "F32"), (16, 64, "F16")):
        name = f"dense_ffn/bounded/n{n}_d{d}_{dtype}"
        ffn = network(name, n, d, dtype, "relu", False, (), draw_large)
        made.append(case(name, "FFN-2", "precision tail",
                         "fails if a term is missing, or sums are kept in 16 bits",
                         real(f"{name}/x", (d,)), ffn))  # fmt: skip
    name = "sparse_ffn/bounded/cancelling_sums"
    down = real(f"{name}/down", (4, 3))
    down[1::2] = -down[::2]
    up = np.repeat(real(f"{name}/up", (2, 3), high=6), 2, axis=0)
    made.append(case(name, "FFN-5", "precision", "fails if weights or sums have less than float32's 24 bits",
                     abs(real(f"{name}/x", (3,))), FFN("relu", abs(up), down),
                     ids([0, 1, 2, 3])))  # fmt: skip

    def draw_wide(key: str, shape: tuple[int, ...], dtype: str) -> Array:
        return real(key, shape, dtype, -40, 30)

    name = "sparse_ffn/bounded/wide_range"
    ffn = network(name, 5, 4, "F32", "relu", False, BIASES, draw_wide)
    made.append(case(name, "FFN-5", "precision",
                     "fails if large weights overflow, or small ones vanish too early",
                     real(f"{name}/x", (4,), low=-10, high=20), ffn, ids([0, 2, 3, 4])))  # fmt: skip
    return made


def _stored_values() -> list[Vector]:
    """One neuron with h = 1, so that y is the row of down: every value that must be decoded."""
    made = []
    small = [
        sign | pattern
        for sign in (0, 0x8000)
        for pattern in (1, 2, 3, 0x0F, 0x10, 0x1FF, 0x200, 0x2AA, 0x3FF)
    ]
    patterns = {
        "F16": [*small, 0, 0x8000, 0x0400, 0x8400, 0x3C00, 0x3C01, 0x7BFF, 0xFBFF, 0x3555, 0xB555],
        "BF16": [0, 0x8000, 0x0080, 0x8080, 0x3C00, 0x3F80, 0xBF81, 0x7E7F, 0x4049, 0xC2AA],
    }
    for dtype, bits in patterns.items():
        for operation in ("dense_ffn", "sparse_ffn"):
            d = len(bits)
            up = stored([1] + [0] * (d - 1), (1, d), dtype)
            x = stored([1] + [0] * (d - 1), (d,), "F32")
            active = ids([0]) if operation == "sparse_ffn" else None
            made.append(case(f"{operation}/bounded/every_kind_of_{dtype}_value",
                             "FFN-5 TYP-5" if active is not None else "FFN-2 TYP-5",
                             "fp16" if dtype == "F16" else "bf16",
                             "fails if a stored value is decoded wrongly: subnormals, zeros, the largest",
                             x, FFN("relu", up, from_bits(bits, (1, d), dtype)), active))  # fmt: skip
    for dtype, bits in (("F32", [1, 0x007FFFFF, 0x80000001, 0x00400000]), ("BF16", [1, 0x7F, 0x8001, 0x40])):
        made.append(case(f"dense_ffn/bounded/subnormal_{dtype}", "FFN-2 TYP-5", "underflow",
                         "fails if a subnormal weight is read as another number; as zero is within the bound",
                         stored([1, 0, 0, 0], (4,), "F32"),
                         FFN("relu", stored([1, 0, 0, 0], (1, 4), dtype),
                             from_bits(bits, (1, 4), dtype))))  # fmt: skip
    name = "dense_ffn/bounded/products_that_underflow"
    made.append(case(name, "FFN-2", "underflow", "fails if a correct float32 kernel is not within the bound",
                     stored([-1.9995116], (1,), "F32"),
                     FFN("relu", from_bits([0x80800000], (1, 1), "F32"),
                         stored([0.0625], (1, 1), "F32"))))  # fmt: skip
    return made
