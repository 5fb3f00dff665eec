"""Hypothesis strategies for FFNs, predictors, id sets and inputs; sizes small, contents free."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashref.numerics import exact_on_dyadic
from flashref.types import FFN, Predictor

ACTIVATIONS = ("relu", "squared_relu", "fatrelu", "silu", "gelu_tanh", "gelu_erf")
DTYPES = ("F32", "F16", "BF16")


def stored(array, dtype):
    """float32 values in a stored dtype; they must fit, as dyadic ones do."""
    if dtype == "BF16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype({"F32": np.float32, "F16": np.float16}[dtype])


def dyadic_arrays(shape, bits):
    """float32 arrays of k · 2^−bits, |k| ≤ 2^bits."""
    whole = hnp.arrays(np.int16, shape, elements=st.integers(-(2**bits), 2**bits))
    return whole.map(lambda k: (k / 2.0**bits).astype(np.float32))


def plain_arrays(shape, dtype="F32", limit=1e4):
    """Arrays of a stored dtype with finite entries up to ±limit, subnormals and both zeros included."""
    if dtype == "BF16":
        return plain_arrays(shape, "F32", limit).map(lambda a: stored(a, "BF16"))
    width = {"F32": 32, "F16": 16}[dtype]
    return hnp.arrays(
        {32: np.float32, 16: np.float16}[width], shape, elements=st.floats(-limit, limit, width=width)
    )


@st.composite
def ffns(draw, arrays, n, d, dtype="F32", activation=None, gated=None):
    """An FFN with or without gate and each bias; `arrays(shape)` gives its contents."""
    activation = draw(st.sampled_from(ACTIVATIONS)) if activation is None else activation
    gated = draw(st.booleans()) if gated is None else gated

    def maybe(shape, present=None):
        present = draw(st.booleans()) if present is None else present
        return stored_or_same(draw(arrays(shape)), dtype) if present else None

    return FFN(
        activation,
        up=maybe((n, d), True),
        down=maybe((n, d), True),
        gate=maybe((n, d), gated),
        up_bias=maybe((n,)),
        gate_bias=maybe((n,)) if gated else None,
        down_bias=maybe((d,)),
        tau=draw(st.sampled_from([0.0, 0.25, 0.5])) if activation == "fatrelu" else 0.0,
    )


def stored_or_same(array, dtype):
    return stored(array, dtype) if array.dtype == np.float32 else array


DYADIC_SIZES = {
    (activation, gated): [
        (n, d, bits)
        for n in (1, 2, 3, 5, 8)
        for d in (1, 2, 3, 6)
        for bits in (1, 2, 3)
        if exact_on_dyadic(n, d, bits, activation, gated)
    ]
    for activation in ACTIVATIONS[:3]
    for gated in (False, True)
}


@st.composite
def dyadic_cases(draw, dtypes=DTYPES):
    """(x, ffn) on which float32 is exact in every order."""
    activation, gated = draw(st.sampled_from(sorted(DYADIC_SIZES)))
    n, d, bits = draw(st.sampled_from(DYADIC_SIZES[activation, gated]))

    def arrays(shape):
        return dyadic_arrays(shape, bits)

    ffn = draw(ffns(arrays, n, d, draw(st.sampled_from(dtypes)), activation, gated))
    return draw(arrays((d,))), ffn


@st.composite
def plain_cases(draw, dtypes=DTYPES):
    """(x, ffn) anywhere in the domain."""
    n, d = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from(dtypes))
    activation = draw(st.sampled_from(ACTIVATIONS))
    # |gelu_tanh|'s inner cube and products of three stay far below float32's largest number.
    limit = draw(st.sampled_from([1.0, 8.0, 1e4]))
    ffn = draw(ffns(lambda shape: plain_arrays(shape, dtype, limit), n, d, dtype, activation))
    return draw(plain_arrays((d,), "F32", limit)), ffn


@st.composite
def predictors(draw, arrays, n, d, dtype="F32"):
    r = draw(st.integers(1, 3))
    bias = stored_or_same(draw(arrays((n,))), dtype) if draw(st.booleans()) else None
    a, b = (stored_or_same(draw(arrays(shape)), dtype) for shape in ((r, d), (n, r)))
    return Predictor(a, b, bias, draw(st.sampled_from([-0.5, 0.0, 0.25])))


def id_sets(n):
    """Strictly ascending ids below n, the empty and the full set included."""
    chosen = st.lists(st.booleans(), min_size=n, max_size=n)  # st.sets is empty every second time
    return chosen.map(lambda mask: [i for i, included in enumerate(mask) if included])


def read_only(value):
    """The value with every array in it locked, so that a change of an input raises."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif isinstance(value, tuple):
        for part in value:
            read_only(part)
    return value
