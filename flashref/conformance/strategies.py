"""Hypothesis strategies for anyone's tests: networks, active sets, traces, layouts, devices, faults.

Sizes are small and contents free; the empty, the full and the one-neuron set are always possible. Dyadic data
(ACC-9) makes float32 exact in every order, so that a test of structure needs no tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashref.bounds import exact_on_dyadic
from flashref.bundle import Layout, bundle_layout
from flashref.storage.device import Device
from flashref.storage.faults import FAULT_KINDS, Fault
from flashref.types import FFN, Array, Predictor, Vector

ACTIVATIONS = ("relu", "squared_relu", "fatrelu", "silu", "gelu_tanh", "gelu_erf")
DTYPES = ("F32", "F16", "BF16")
# (n, d): few, so that a compiler of shapes is not kept busy; one is odd, none but one a multiple of 4.
SIZES = ((1, 1), (2, 3), (3, 1), (5, 4), (8, 6), (11, 3))
LARGE = (37, 27)  # the most that keeps the bounds' teeth: n · d ≤ 1024 (ACC-7)

Value = TypeVar("Value")
Shape = tuple[int, ...]
Arrays = Callable[[Shape], st.SearchStrategy[Array]]


def stored(array: Array, dtype: str) -> Array:
    """Store float32 values as F32, F16 or BF16 (bits); the last two cut digits, but none of dyadic values."""
    if dtype == "BF16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype({"F32": np.float32, "F16": np.float16}[dtype])


def dyadic_arrays(shape: Shape, bits: int) -> st.SearchStrategy[Array]:
    """Draw float32 arrays of j · 2^−bits with |j| ≤ 2^bits."""
    whole = hnp.arrays(np.int16, shape, elements=st.integers(-(2**bits), 2**bits))
    return whole.map(lambda j: (j / 2.0**bits).astype(np.float32))


def seeded_dyadic(random: np.random.Generator, shape: Shape, bits: int) -> Array:
    """Make a float32 array of j · 2^−bits with |j| ≤ 2^bits; unlike drawn ones, it has few equal elements."""
    whole = random.integers(-(2**bits), 2**bits, shape, endpoint=True)
    return np.asarray(whole / 2**bits, np.float32)


def plain_arrays(
    shape: Shape, dtype: str = "F32", limit: float = 1e4, subnormals: bool = True
) -> st.SearchStrategy[Array]:
    """Draw arrays of finite values in a stored dtype, both zeros included.

    Args:
        shape: of the arrays.
        dtype: F32, F16 or BF16 (as bits).
        limit: no value is larger.
        subnormals: whether subnormal values are drawn.
    """
    if dtype == "F16":
        halves = st.floats(-limit, limit, width=16, allow_subnormal=subnormals)
        return hnp.arrays(np.float16, shape, elements=halves)
    singles = st.floats(-limit, limit, width=32, allow_subnormal=subnormals)
    arrays = hnp.arrays(np.float32, shape, elements=singles)
    return arrays if dtype == "F32" else arrays.map(lambda array: stored(array, "BF16"))


@st.composite
def ffns(
    draw: st.DrawFn,
    arrays: Arrays,
    n: int,
    d: int,
    dtype: str = "F32",
    activation: str | None = None,
    gated: bool | None = None,
) -> FFN:
    """Draw an FFN, with or without each bias.

    Args:
        draw: given by Hypothesis.
        arrays: shape → a strategy for arrays in float32 or `dtype`.
        n: neurons.
        d: width.
        dtype: of the weights.
        activation: None: any.
        gated: whether it has a gate; None: either.
    """
    activation = draw(st.sampled_from(ACTIVATIONS)) if activation is None else activation
    gated = draw(st.booleans()) if gated is None else gated

    def contents(shape: Shape) -> Array:
        array = draw(arrays(shape))
        return stored(array, dtype) if array.dtype == np.float32 else array

    def maybe(shape: Shape) -> Array | None:
        return contents(shape) if draw(st.booleans()) else None

    return FFN(
        activation,
        up=contents((n, d)),
        down=contents((n, d)),
        gate=contents((n, d)) if gated else None,
        up_bias=maybe((n,)),
        gate_bias=maybe((n,)) if gated else None,
        down_bias=maybe((d,)),
        tau=draw(st.sampled_from([0.0, 0.25, 0.5])) if activation == "fatrelu" else 0.0,
    )


DYADIC_SIZES = {
    (activation, gated): [
        (n, d, bits) for n, d in SIZES for bits in (1, 2, 3) if exact_on_dyadic(n, d, bits, activation, gated)
    ]
    for activation in ACTIVATIONS[:3]
    for gated in (False, True)
}


@st.composite
def dyadic_cases(draw: st.DrawFn, dtypes: Sequence[str] = DTYPES) -> tuple[Vector, FFN]:
    """Draw (x, ffn) on which float32 is exact in every order (ACC-9), with weights in one of the dtypes."""
    activation, gated = draw(st.sampled_from(sorted(DYADIC_SIZES)))
    n, d, bits = draw(st.sampled_from(DYADIC_SIZES[activation, gated]))

    def arrays(shape: Shape) -> st.SearchStrategy[Array]:
        return dyadic_arrays(shape, bits)

    ffn = draw(ffns(arrays, n, d, draw(st.sampled_from(dtypes)), activation, gated))
    return draw(arrays((d,))), ffn


@st.composite
def plain_cases(
    draw: st.DrawFn,
    dtypes: Sequence[str] = DTYPES,
    sizes: Sequence[tuple[int, int]] = SIZES,
    subnormals: bool = True,
) -> tuple[Vector, FFN]:
    """Draw (x, ffn) anywhere in the domain.

    Args:
        draw: given by Hypothesis.
        dtypes: of the weights.
        sizes: pairs (n, d).
        subnormals: whether subnormal values are drawn.
    """
    n, d = draw(st.sampled_from(sizes))
    dtype = draw(st.sampled_from(dtypes))
    # |gelu_tanh|'s inner cube and products of three stay far below float32's largest number.
    limit = draw(st.sampled_from([1.0, 8.0, 1e4]))
    ffn = draw(ffns(lambda shape: plain_arrays(shape, dtype, limit, subnormals), n, d, dtype))
    return draw(plain_arrays((d,), "F32", limit, subnormals)), ffn


@st.composite
def predictors(draw: st.DrawFn, arrays: Arrays, n: int, d: int, dtype: str = "F32") -> Predictor:
    """Draw a predictor of rank 1 to 3, with or without bias; the arguments are those of `ffns`."""

    def contents(shape: Shape) -> Array:
        array = draw(arrays(shape))
        return stored(array, dtype) if array.dtype == np.float32 else array

    r = draw(st.integers(1, 3))
    bias = contents((n,)) if draw(st.booleans()) else None
    return Predictor(contents((r, d)), contents((n, r)), bias, draw(st.sampled_from([-0.5, 0.0, 0.25])))


def id_sets(n: int) -> st.SearchStrategy[list[int]]:
    """Draw strictly ascending ids below n, the empty and the full set included."""
    chosen = st.lists(st.booleans(), min_size=n, max_size=n)  # st.sets is empty every second time
    return chosen.map(lambda mask: [i for i, included in enumerate(mask) if included])


def active_sets(n: int) -> st.SearchStrategy[Array]:
    """Draw `id_sets` as the int64 arrays that every function of flashref takes."""
    return id_sets(n).map(lambda ids: np.array(ids, np.int64))


@st.composite
def traces(draw: st.DrawFn, n: int, tokens: int, density: float, drift: float) -> list[Array]:
    """Draw the active sets of consecutive tokens.

    Args:
        draw: given by Hypothesis.
        n: neurons.
        tokens: how many sets.
        density: each set holds round(density · n) neurons, and at least one.
        drift: from a token to the next, this share of the members is replaced by neurons that were not
            active, as far as there are any; 0 repeats the first set, 1 replaces all of it.
    """
    random = draw(st.randoms(use_true_random=False))
    size = min(n, max(1, round(density * n)))
    active = random.sample(range(n), size)
    sets = []
    for _ in range(tokens):
        sets.append(np.array(sorted(active), np.int64))
        others = sorted(set(range(n)) - set(active))
        new = random.sample(others, min(len(others), round(drift * size)))
        active = random.sample(active, size - len(new)) + new
    return sets


@st.composite
def layouts(draw: st.DrawFn, dtypes: Sequence[str] = DTYPES) -> Layout:
    """Draw layouts with bundles below, at and above the block, in any order, behind any start."""
    n, d = draw(st.sampled_from(SIZES))
    block = 2 ** draw(st.integers(0, 7))
    return bundle_layout(
        n,
        d,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from([("up", "down"), ("gate", "up", "down"), ("up",), ("down", "up")])),
        block,
        block * draw(st.integers(0, 5)),
        draw(st.none() | st.permutations(range(n))),
    )


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """Draw storage devices, ideal ones without any limit included."""
    limit = st.just(0)
    return Device(
        latency_ns=draw(st.integers(0, 10**7)),
        max_iops=draw(limit | st.integers(1, 10**7)),
        max_bandwidth=draw(limit | st.integers(1, 10**11)),
        stream_bandwidth=draw(limit | st.integers(1, 10**11)),
        split_bytes=draw(st.integers(1, 2**20)),
        queue_depth=draw(st.integers(1, 64)),
        block=2 ** draw(st.integers(0, 14)),
        dispatch_ns=draw(st.integers(0, 10**5)),
        knee=draw(st.sampled_from([1.0, 2.0, float("inf")])),
    )


def fault_schedules(batches: int) -> st.SearchStrategy[dict[int, Fault]]:
    """Draw what goes wrong with some batches, as number → Fault, for `storage.faults.faulty_reader`."""
    faults = st.builds(Fault, st.sampled_from(FAULT_KINDS), st.integers(0, 2**16))
    return st.dictionaries(st.integers(0, batches - 1), faults)


def read_only(value: Value) -> Value:
    """Lock every array in a value, so that a change of an input raises; returns the value."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif isinstance(value, tuple):
        parts: tuple[Any, ...] = value
        for part in parts:
            read_only(part)
    return value
