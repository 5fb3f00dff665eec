"""What every case is made of: numbers that follow from its id, exact values, and one rounding at the end.

Inputs are exact in their stored dtype as they are drawn, so nothing depends on how a machine rounds.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.definitions import bound_by_formula, exact_ffn
from flashref.conformance.vectors.files import Expectation, Vector
from flashref.types import FFN, Array, Ids

UNIT_ROUNDOFF = 2.0**-24  # of float32; an implementation that accumulates in float64 stays within it too
SIGNIFICANT_BITS = {"F32": 24, "F16": 11, "BF16": 8}


def numbers(key: str) -> Iterator[int]:
    """64-bit numbers from the key alone: SHA-256 of `key:0`, `key:1`, … in little-endian words."""
    counter = 0
    while True:
        digest = hashlib.sha256(f"{key}:{counter}".encode()).digest()
        yield from (int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8))
        counter += 1


def stored(values: Iterable[float], shape: tuple[int, ...], dtype: str) -> Array:
    """Values that the stored dtype holds exactly, as an array of it; BF16 as the upper half of a float32."""
    wide = np.array(list(values), np.float32).reshape(shape)
    if dtype == "BF16":
        return np.asarray((wide.view(np.uint32) >> 16).astype(np.uint16))
    return wide.astype({"F32": np.float32, "F16": np.float16}[dtype])


def from_bits(patterns: Sequence[int], shape: tuple[int, ...], dtype: str) -> Array:
    """An array of a stored dtype from its bit patterns."""
    unsigned = np.array(patterns, {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}[dtype])
    floats = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[dtype]
    return unsigned.view(floats).reshape(shape)


def dyadic(key: str, shape: tuple[int, ...], dtype: str = "F32", bits: int = 3) -> Array:
    """Entries j · 2^−bits with |j| ≤ 2^bits: sums of their products are exact in every order."""
    steps = 2 ** (bits + 1) + 1
    drawn = numbers(key)
    return stored([(next(drawn) % steps - 2**bits) / 2**bits for _ in range(math.prod(shape))], shape, dtype)


def real(key: str, shape: tuple[int, ...], dtype: str = "F32", low: int = -4, high: int = 0) -> Array:
    """Entries ±(1 + m) · 2^e with every significant bit drawn, and low ≤ e ≤ high."""
    fraction, drawn = 2 ** (SIGNIFICANT_BITS[dtype] - 1), numbers(key)

    def entry() -> float:
        word = next(drawn)
        exponent = low + (word >> 32) % (high - low + 1)
        return (-1.0 if word & 1 else 1.0) * math.ldexp(1 + (word >> 1) % fraction / fraction, exponent)

    return stored([entry() for _ in range(math.prod(shape))], shape, dtype)


def ids(values: Iterable[int]) -> Ids:
    """An int64 array."""
    return np.array(list(values), np.int64)


def subset(key: str, n: int, percent: int) -> Ids:
    """Ascending ids below n, each with this probability."""
    drawn = numbers(key)
    return ids(i for i in range(n) if next(drawn) % 100 < percent)


def permutation(key: str, n: int) -> Ids:
    """0 … n − 1 in an order that follows from the key."""
    drawn = numbers(key)
    return ids(index for _, index in sorted((next(drawn), index) for index in range(n)))


class About(NamedTuple):
    """What a case is called, and what it is for; requirements and flags are words."""

    name: str
    requirements: str
    flags: str
    comment: str


def vector(
    name: str,
    requirements: str,
    flags: str,
    comment: str,
    arguments: Sequence[Any],
    expectation: Expectation,
    withdrawn: str | None = None,
) -> Vector:
    """A case; its id begins with its operation, requirements and flags are words."""
    operation = name.split("/")[0]
    assert len(arguments) == len(OPERATIONS[operation]), name
    return Vector(
        name,
        operation,
        tuple(requirements.split()),
        tuple(flags.split()),
        tuple(arguments),
        expectation,
        comment,
        withdrawn,
    )


REFUSED = Expectation("error")


def exactly(result: Any) -> Expectation:
    """These bits."""
    return Expectation("exact", result)


def float32_exactly(values: Sequence[Fraction]) -> Array:
    """Exact values that float32 holds."""
    array = np.array([float(value) for value in values], np.float32)
    assert all(Fraction(float(got)) == due for got, due in zip(array, values, strict=True)), values
    return array


def float64_bounded(values: Sequence[Fraction], bounds: Sequence[Fraction]) -> tuple[Array, Array]:
    """The values rounded once to float64, and their bounds rounded up.

    A bound also covers its value's rounding, and the one subtraction by which a reader compares.
    """
    nearest = [float(value) for value in values]
    covered = [
        (bound + abs(Fraction(near) - value)) * (1 + Fraction(1, 2**52))
        for near, value, bound in zip(nearest, values, bounds, strict=True)
    ]
    up = [float(bound) for bound in covered]
    up = [
        near if Fraction(near) >= bound else math.nextafter(near, math.inf)
        for near, bound in zip(up, covered, strict=True)
    ]
    return np.array(nearest, np.float64), np.array(up, np.float64)


def chosen_rows(ffn: FFN, active: Sequence[int] | None) -> FFN:
    """The network of these neurons, row by row."""
    if active is None:
        return ffn

    def rows(of: Array | None) -> Array | None:
        return None if of is None else of[ids(active)]

    up, down, gate, up_bias, gate_bias = (
        rows(of) for of in (ffn.up, ffn.down, ffn.gate, ffn.up_bias, ffn.gate_bias)
    )
    assert up is not None and down is not None
    return FFN(ffn.activation, up, down, gate, up_bias, gate_bias, ffn.down_bias, ffn.tau)


def ffn_exactly(x: Array, ffn: FFN, active: Sequence[int] | None = None) -> Expectation:
    """The network's output on dyadic data: these bits, but for the sign of a zero."""
    return Expectation("exact_but_for_zero_sign", float32_exactly(exact_ffn(x, ffn, active)))


def ffn_bounded(x: Array, ffn: FFN, active: Sequence[int] | None = None) -> Expectation:
    """The network's exact output, and how far a float32 implementation may be from it."""
    y, bound = float64_bounded(
        exact_ffn(x, ffn, active), bound_by_formula(x, chosen_rows(ffn, active), UNIT_ROUNDOFF)
    )
    return Expectation("bounded", y, bound)
