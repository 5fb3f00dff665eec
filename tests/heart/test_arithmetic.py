"""Chapter 05: sums and activations to the bit."""

import re
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import random_calls
from hypothesis import example, given
from hypothesis import strategies as st

from flashref import arithmetic, same, xla
from flashref.arithmetic import PIECE_BYTES, SLOPES, activate, ascending_sum, fast_ascending_sum
from flashref.bounds import CURVATURES
from flashref.conformance.definitions import exact_activation, scalar_sum
from flashref.conformance.requirements import specs_folder
from flashref.conformance.strategies import ACTIVATIONS, DYADIC_SIZES, plain_arrays, read_only
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.types import DomainError, ShapeError

SUMS = (ascending_sum, fast_ascending_sum)


@pytest.mark.req("ACC-3")
@pytest.mark.parametrize("sum_of", SUMS)
@given(st.data(), st.integers(0, 6), st.integers(0, 5), st.booleans(), st.booleans())
def test_a_sum_is_the_scalar_loop(sum_of, data, m, width, transposed, started):
    factors = data.draw(plain_arrays((m,)))
    rows = data.draw(plain_arrays((width, m))).T if transposed else data.draw(plain_arrays((m, width)))
    start = data.draw(plain_arrays((width,))) if started else None
    read_only((factors, rows, start))
    expected = scalar_sum(factors, rows, np.zeros(width) if start is None else start)
    assert same(sum_of(factors, rows, start), expected)


@pytest.mark.req("ACC-3")
@pytest.mark.parametrize("shape", [(1000, 1), (1000, 2), (300, 129), (300, 256), (300, 301)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_long_sums_of_either_memory_order_are_the_scalar_loop(shape, order, monkeypatch):
    rng = np.random.default_rng(7)
    factors, rows = rng.standard_normal(shape[0], np.float32), rng.standard_normal(shape, np.float32)
    expected = ascending_sum(factors, rows)
    assert same(expected[:2], scalar_sum(factors, rows[:, :2], np.zeros(min(2, shape[1]))))
    assert same(ascending_sum(factors, np.asarray(rows, order=order)), expected)
    assert same(fast_ascending_sum(factors, np.asarray(rows, order=order)), expected)
    monkeypatch.setattr("flashref.arithmetic.PIECE_BYTES", 64)  # many pieces, the same bits
    assert same(fast_ascending_sum(factors, np.asarray(rows, order=order)), expected)
    assert PIECE_BYTES == 2**20


@pytest.mark.req("ACC-3")
@given(st.data())
def test_the_fast_sum_has_the_bits_of_the_definition(data):
    width = data.draw(st.sampled_from([1, 2, 255, 256, 257]) | st.integers(0, 600))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    factors = rng.standard_normal(data.draw(st.integers(0, 40)), np.float32)
    rows = np.ldexp(rng.standard_normal((len(factors), width), np.float32), rng.integers(-140, 60))
    rows = data.draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray]))(rows)
    start = data.draw(st.sampled_from([None, rng.standard_normal(width, np.float32)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashref.arithmetic.PIECE_BYTES", data.draw(st.sampled_from([64, 4096, PIECE_BYTES])))
        assert same(fast_ascending_sum(factors, rows, start), ascending_sum(factors, rows, start))


@pytest.mark.parametrize(
    ("width", "in_c"), [(1, True), (255, True), (256, False), (257, False), (300, False)]
)
def test_short_rows_are_summed_by_a_loop_in_c(width, in_c, monkeypatch):
    calls, accumulate = [], np.add.accumulate

    class Add:
        @staticmethod
        def accumulate(*args, **options):
            calls.append(args)
            return accumulate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "add", Add)
        fast_ascending_sum(np.ones(2, np.float32), np.ones((2, width), np.float32))
    assert bool(calls) is in_c


@pytest.mark.parametrize(("width", "at_once"), [(0, 16), (1, 16), (2, 8), (3, 5), (16, 1), (17, 1), (300, 1)])
def test_products_are_held_a_piece_at_a_time(width, at_once, monkeypatch):
    pieces, multiply = [], np.multiply
    with monkeypatch.context() as patch:
        patch.setattr("flashref.arithmetic.PIECE_BYTES", 64)
        patch.setattr(np, "multiply", lambda a, b, **k: pieces.append(len(b)) or multiply(a, b, **k))
        fast_ascending_sum(np.ones(40, np.float32), np.ones((40, width), np.float32))
    assert pieces == [at_once] * (40 // at_once) + [40 % at_once] * (40 % at_once > 0)


@pytest.mark.parametrize("width", [2, 300])
def test_a_result_keeps_no_products_in_memory(width):
    assert fast_ascending_sum(np.ones(2, np.float32), np.ones((2, width), np.float32)).base is None


@pytest.mark.req("ACC-4")
@pytest.mark.parametrize("sum_of", SUMS)
@given(st.data(), st.integers(1, 6), st.integers(1, 4))
def test_rows_with_a_zero_product_change_no_bit(sum_of, data, m, width):
    factors, rows = data.draw(plain_arrays((m,))), data.draw(plain_arrays((m, width)))
    at = data.draw(st.integers(0, m))
    zero = data.draw(st.sampled_from([np.float32(0.0), np.float32(-0.0)]))
    more_factors = np.insert(factors, at, zero)
    more_rows = np.insert(rows, at, data.draw(plain_arrays((width,))), axis=0)
    assert same(sum_of(more_factors, more_rows), sum_of(factors, rows))


@pytest.mark.parametrize("sum_of", SUMS)
def test_sums_of_other_dtypes_or_shapes_are_refused(sum_of):
    for factors, rows in [
        (np.zeros(2), np.zeros((2, 1), np.float32)),
        (np.zeros(2, np.float16), np.zeros((2, 1), np.float32)),
        (np.zeros(2, np.float32), np.zeros((2, 1))),
        (np.zeros(2, np.float32), np.zeros((2, 1), np.float16)),
        (np.zeros(2, np.float32), np.zeros((3, 1), np.float32)),
        (np.zeros(2, np.float32), np.zeros((1, 1), np.float32)),
        (np.zeros(2, np.float32), np.zeros(2, np.float32)),
        (np.float32(2), np.zeros((1, 1), np.float32)),
        (np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)),
        (np.zeros(2, np.float32), np.zeros((2, 1, 1), np.float32)),
    ]:
        with pytest.raises(ShapeError, match="a sum needs"):
            sum_of(factors, rows)
    one = np.ones(1, np.float32), np.ones((1, 2), np.float32)
    of_other_shapes = [np.zeros(shape, np.float32) for shape in ((1,), (3,), (1, 2))]
    for start in (np.zeros(2), np.zeros(2, np.float16), *of_other_shapes):
        with pytest.raises(ShapeError, match="a sum of width 2 starts from"):
            sum_of(*one, start)


@pytest.mark.req("ACC-5")
@pytest.mark.parametrize("name", ACTIVATIONS)
@given(z=plain_arrays((4,), limit=30.0), tau=st.sampled_from([0.0, 0.01, 0.5]))
@example(z=np.float32([-8, -0.0, 1e-38, 0.5]), tau=0.5)  # 1 + erf is 2 % off at −8; a tie at τ
@example(z=np.float32([-30, -5.5, 30, 1e-20]), tau=0.0)
def test_an_activation_is_its_definition_rounded_once(name, z, tau):
    values = activate(name, z, tau)
    assert values.dtype == np.float32
    for value, v in zip(values, z, strict=True):
        truth = exact_activation(name, Fraction(float(v)), tau)
        nearest = np.float32(mpmath.mpf(truth.numerator) / truth.denominator)
        if name in SLOPES:
            assert abs(Fraction(float(value)) - truth) <= Fraction(float(np.spacing(np.abs(nearest))))
        else:
            assert value == nearest


@pytest.mark.req("ACC-5")
@pytest.mark.parametrize("name", SPARSE_ACTIVATIONS)
def test_a_neuron_that_is_off_gives_a_positive_zero(name):
    assert same(activate(name, np.float32([-0.0, -1, 0])), np.zeros(3, np.float32))
    assert activate(name, np.float32([0.5])) > 0  # τ is 0 if it is not given


@pytest.mark.parametrize("name", SLOPES)
def test_a_slope_is_the_derivative_of_the_exact_activation(name):
    z, step = np.linspace(-30, 30, 241), Fraction(1, 10**12)  # the difference is off by about step²
    for value, v in zip(SLOPES[name](z), map(Fraction, z.tolist()), strict=True):
        ends = (exact_activation(name, v + side * step, 0.0) for side in (1, -1))
        due = (next(ends) - next(ends)) / (2 * step)
        # A dozen roundings; no intermediate value is larger than 1 + |z| where σ is not 0 or 1.
        assert abs(Fraction(float(value)) - due) <= 32 * Fraction(2) ** -53 * (1 + abs(v))


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(DomainError, match="'swish' is unknown; use one of relu, "):
        activate("swish", np.float32([1]))


def test_an_activation_stands_in_every_place_that_chapter_05_lists():
    known = set(arithmetic.ACTIVATIONS)
    table = re.findall(r"^\| `(\w+)`", (specs_folder() / "10-ffn.md").read_text(), re.M)
    assert set(table) == known
    assert set(SLOPES) == set(CURVATURES) == known - set(SPARSE_ACTIVATIONS)
    assert set(xla.ACTIVATIONS) == known
    assert set(ACTIVATIONS) == set(random_calls.ACTIVATIONS) == known
    assert ACTIVATIONS[: len(SPARSE_ACTIVATIONS)] == SPARSE_ACTIVATIONS
    assert {name for name, _ in DYADIC_SIZES} == set(SPARSE_ACTIVATIONS)
