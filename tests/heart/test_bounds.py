"""Chapter 90: bounds against exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from flashref import active_neurons, dense_ffn, same, sparse_ffn
from flashref.arithmetic import ACTIVATIONS as KNOWN
from flashref.arithmetic import SLOPES, activate, ascending_sum
from flashref.bounds import CURVATURES, exact_on_dyadic, ffn_bound, gamma, predictor_bound, unit_roundoff
from flashref.conformance.definitions import (
    bound_by_formula,
    exact_ffn,
    exact_logits,
    logits_bound_by_formula,
)
from flashref.conformance.strategies import (
    ACTIVATIONS,
    dyadic_cases,
    plain_arrays,
    plain_cases,
    predictors,
)
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.types import FFN, DomainError, Predictor, widen


@pytest.mark.req("ACC-1")
def test_unit_roundoff_is_half_the_spacing_at_one():
    for name, dtype in (("F64", np.float64), ("F32", np.float32), ("F16", np.float16)):
        assert unit_roundoff(name) == float(np.nextafter(dtype(1), dtype(2)) - dtype(1)) / 2
    one, following = widen(np.uint16([0x3F80, 0x3F81]))
    assert unit_roundoff("BF16") == (following - one) / 2
    with pytest.raises(DomainError, match="unit roundoff"):
        unit_roundoff("F8")


@pytest.mark.req("ACC-2")
@given(st.integers(0, 10**7), st.sampled_from([2.0**-8, 2.0**-24, 2.0**-53]))
@example(256, 2.0**-8)
def test_gamma_is_highams(k, u):
    product = k * Fraction(u)
    if product >= 1:
        with pytest.raises(DomainError, match="γ needs"):
            gamma(k, u)
    else:
        assert math.isclose(gamma(k, u), product / (1 - product), rel_tol=4 * 2.0**-53)
    with pytest.raises(DomainError, match="γ needs"):
        gamma(-1, u)


@pytest.mark.parametrize("name", SLOPES)
def test_slope_and_curvature_are_those_of_the_activation(name):
    z = np.linspace(-12, 12, 240_001)
    slope, curvature = SLOPES[name], CURVATURES[name]
    step = z[1] - z[0]
    numeric = np.gradient(KNOWN[name](z, np.float32(0)), step)
    # Central differences are off by at most step²/6 · |third derivative| (< 2), one-sided ones by step.
    assert np.abs(slope(z) - numeric)[1:-1].max() < step**2
    assert np.abs(np.gradient(slope(z), step)).max() <= curvature


def evaluations(x, ffn):
    """Correct float32 evaluations that differ in rounding: BLAS, backwards, wide inside, fused, flushed."""
    up, down = widen(ffn.up), widen(ffn.down)
    gate = None if ffn.gate is None else widen(ffn.gate)
    biases = [None if b is None else widen(b) for b in (ffn.up_bias, ffn.gate_bias, ffn.down_bias)]

    def evaluate(product, dtype, finish=lambda v: v):
        cast = [None if b is None else b.astype(dtype) for b in biases]

        def pre(matrix, bias):
            z = product(matrix.astype(dtype), x.astype(dtype))
            return finish(z if bias is None else z + bias)

        def act(z):
            if dtype == np.float32:
                return finish(activate(ffn.activation, z, ffn.tau))
            return KNOWN[ffn.activation](z, np.float32(ffn.tau))

        z = pre(up, cast[0])
        h = act(z) if gate is None else finish(act(pre(gate, cast[1])) * z)
        y = product(down.T.astype(dtype), h)
        return (y if cast[2] is None else y + cast[2]).astype(np.float32)

    def backwards(matrix, v):
        total = np.zeros(len(matrix), matrix.dtype)
        for k in reversed(range(len(v))):
            total = total + matrix[:, k] * v[k]
        return total

    def fused(matrix, v):  # one rounding a step, as fused multiply-add; float64 holds the product exactly
        total = np.zeros(len(matrix), np.float32)
        for k in range(len(v)):
            total = (matrix[:, k].astype(np.float64) * v[k] + total).astype(np.float32)
        return total

    def flushed(v):
        return np.where(np.abs(v) < 2.0**-126, np.float32(0), v).astype(v.dtype)

    def flushing(matrix, v):  # the result of every operation; inputs are read as they are (chapter 90)
        total = np.zeros(len(matrix), np.float32)
        for k in range(len(v)):
            total = flushed(total + flushed(matrix[:, k] * v[k]))
        return total

    yield "ascending", dense_ffn(x, ffn)
    yield "blas", evaluate(lambda m, v: m @ v, np.float32)
    yield "backwards", evaluate(backwards, np.float32)
    yield "float64 inside", evaluate(lambda m, v: m @ v, np.float64)
    yield "fused", evaluate(fused, np.float32)
    yield "flushed", evaluate(flushing, np.float32, flushed)


@pytest.mark.req("ACC-6", "FFN-2")
@given(plain_cases())
@example((np.float32([-1.9995]), FFN("relu", np.float32([[-1.1754944e-38]]), np.float32([[0.0625]]))))
@example(
    (np.float32([-4810] * 6), FFN("relu", np.float32([[-5.703e-42] * 6] * 8), np.float32([[979] * 6] * 8)))
)
def test_the_ffn_bound_holds_for_every_order(case):
    x, ffn = case
    event(ffn.activation)
    truth, bound = exact_ffn(x, ffn), ffn_bound(x, ffn)
    assert np.isfinite(bound).all()
    for name, y in evaluations(x, ffn):
        for got, want, most in zip(y, truth, bound, strict=True):
            assert abs(Fraction(float(got)) - want) <= Fraction(float(most)), name


# Its z + e_z is exactly 0, if no operation but those on subnormals rounds.
AT_THE_EDGE = FFN(
    "relu", np.float32([[0]]), np.float32([[1]]), up_bias=np.float32([-(2.0**-124) * (1 + 2.0**-20)])
)


def assert_slightly_above(bounds, formula):
    """Above the formula by its widening, 2^−20 in one to four factors of a term; float64 rounds besides."""
    for bound, value in zip(bounds, formula, strict=True):
        least, most = (1 + Fraction(k, 2**26) for k in (63, 5 * 64))
        assert least * value <= Fraction(float(bound)) <= most * value


@pytest.mark.req("ACC-6")
@given(plain_cases(), st.sampled_from([2.0**-24, 2.0**-11]))
@example((np.float32([2.0**-80]), FFN("relu", np.float32([[2.0**-69]]), np.float32([[1]]))), 2.0**-24)
@example((np.float32([1]), FFN("fatrelu", np.float32([[0.5]]), np.float32([[1]]), tau=0.5)), 2.0**-24)
@example(
    (np.float32([1]), FFN("relu", np.float32([[1]]), np.float32([[1]]), up_bias=np.float32([-1]))), 2.0**-24
)
@example((np.float32([0]), AT_THE_EDGE), 0.0)
@example((np.float32([0]), AT_THE_EDGE._replace(activation="squared_relu")), 0.0)
def test_the_ffn_bound_is_the_formula_of_the_chapter(case, u):
    x, ffn = case
    # Where float64 cannot tell z from the edge of a case, either branch of the formula is right.
    event(ffn.activation)
    assert_slightly_above(ffn_bound(x, ffn, u), bound_by_formula(x, ffn, u))
    assert same(ffn_bound(x, ffn), ffn_bound(x, ffn, 2.0**-24))


@pytest.mark.req("ACC-6")
def test_as_far_from_tau_as_its_error_a_neuron_may_go_either_way():
    z = -AT_THE_EDGE.up_bias  # off: an error of |z| besides that of z; on: that of z alone
    ffn = AT_THE_EDGE._replace(activation="fatrelu", up_bias=z)
    assert ffn_bound(np.float32([0]), ffn, 0.0) > 2.5 * z


@pytest.mark.req("ACC-8")
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.sampled_from([2.0**-24, 2.0**-11]))
def test_the_predictor_bound_is_the_formula_of_the_chapter(data, n, d, u):
    x, predictor = data.draw(plain_arrays((d,))), data.draw(predictors(plain_arrays, n, d))
    assert_slightly_above(predictor_bound(x, predictor, u), logits_bound_by_formula(x, predictor, u))
    assert same(predictor_bound(x, predictor), predictor_bound(x, predictor, 2.0**-24))


@pytest.mark.req("ACC-6")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_the_ffn_bound_has_teeth(activation, gated):
    # On Gaussian data of 32 × 16 it must notice bfloat16 weights, and the loss of the smallest contribution
    # (of the median one where the activation's tail makes contributions as small as one likes).
    rng = np.random.default_rng(11)
    x = rng.standard_normal(16, np.float32)
    up, down, gate = (rng.standard_normal((32, 16), np.float32) for _ in range(3))
    ffn = FFN(activation, up, down, gate if gated else None)
    bound = ffn_bound(x, ffn)
    contributions = [sparse_ffn(x, ffn, [i]) for i in active_neurons(x, ffn)]
    contributions.sort(key=lambda y: np.abs(y).max())
    lost = contributions[len(contributions) // 2 if activation in SLOPES else 0]
    assert (np.abs(lost) > 2 * bound).any()
    coarse = widen((down.view(np.uint32) >> 16).astype(np.uint16))
    assert (np.abs(dense_ffn(x, ffn._replace(down=coarse)) - dense_ffn(x, ffn)) > 2 * bound).any()


@pytest.mark.req("ACC-8")
@given(st.data(), st.integers(1, 5), st.integers(1, 4))
@example(None, 1, 1)
def test_the_predictor_bound_holds_for_every_order(data, n, d):
    if data is None:  # underflow in both products
        x = np.float32([2.0**-80])
        predictor = Predictor(np.float32([[2.0**-69]]), np.float32([[1 / 3]]), None, 0.0)
    else:
        x, predictor = data.draw(plain_arrays((d,))), data.draw(predictors(plain_arrays, n, d))
    truth, bound = exact_logits(x, predictor), predictor_bound(x, predictor)
    zero = np.zeros(len(predictor.b), np.float32) if predictor.bias is None else predictor.bias
    t = ascending_sum(x, predictor.a.T)
    answers = [
        ascending_sum(t, predictor.b.T) + zero,
        predictor.b @ (predictor.a @ x) + zero,
        ascending_sum(t[::-1], predictor.b.T[::-1]) + zero,
    ]
    for answer in answers:
        for got, want, most in zip(answer, truth, bound, strict=True):
            assert abs(Fraction(float(got)) - want) <= Fraction(float(most))


@pytest.mark.req("ACC-9")
@given(dyadic_cases())
def test_dyadic_data_is_exact_in_every_order(case):
    x, ffn = case
    truth = [float(v) for v in exact_ffn(x, ffn)]
    for name, y in evaluations(x, ffn):
        assert y.tolist() == truth, name


@pytest.mark.req("ACC-9")
@pytest.mark.parametrize("activation", SPARSE_ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_dyadic_limits_are_the_largest_values(activation, gated):
    # All entries 1 give the largest sums; the limit must hold them below 2^24 units of the smallest step.
    factors = (2 if activation == "squared_relu" else 1) + gated
    for n in (1, 7, 8, 10, 11, 64):
        for d in (1, 6, 64):
            for bits in (1, 2, 3):
                largest = n * (d + 1) ** factors + 1
                unit = Fraction(1, 2 ** ((2 * factors + 1) * bits))
                fits = largest / unit <= 2**24
                assert exact_on_dyadic(n, d, bits, activation, gated) == fits
    for bits in (1, 2, 3):  # without inputs, only the biases count
        units = 2 ** (24 - (2 * factors + 1) * bits)
        for n in (units - 1, units, units + 1):
            assert exact_on_dyadic(n, 0, bits, activation, gated) == (n < units)
        assert not exact_on_dyadic(units // 2**factors, 1, bits, activation, gated)
    assert not exact_on_dyadic(1, 1, 1, "silu", False)


@pytest.mark.req("ACC-9")
@pytest.mark.parametrize("bad", [(-1, 0, 0, "relu"), (0, -1, 0, "relu"), (0, 0, -1, "relu"), (0, 0, 0, "no")])
def test_dyadic_data_of_impossible_sizes_is_refused(bad):
    assert exact_on_dyadic(0, 0, 0, "relu", False)
    with pytest.raises(DomainError, match="sizes must be"):
        exact_on_dyadic(*bad, False)
