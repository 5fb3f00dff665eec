"""Chapter 20: predicted sets against exact logits, and the band of roundings."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from flashref import Predictor, active_band, predict_active, same
from flashref.conformance.definitions import exact_logits, scalar_sum
from flashref.conformance.strategies import DTYPES, dyadic_arrays, plain_arrays, predictors, read_only
from flashref.predictor import logit_threshold
from flashref.types import DomainError, ShapeError, widen


@st.composite
def dyadic_predictors(draw):
    # Entries k/4 with r ≤ 3 and d ≤ 6: logits are multiples of 2^−6 below 3·6 + 1, exact in float32.
    n, d = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    predictor = draw(predictors(lambda shape: dyadic_arrays(shape, 2), n, d, draw(st.sampled_from(DTYPES))))
    return draw(dyadic_arrays((d,), 2)), predictor


@st.composite
def plain_predictors(draw):
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(DTYPES))
    limit = draw(st.sampled_from([1.0, 1e4]))
    predictor = draw(predictors(lambda shape: plain_arrays(shape, dtype, limit), n, d, dtype))
    return draw(plain_arrays((d,), "F32", limit)), predictor


@pytest.mark.req("PRD-1")
@given(dyadic_predictors())
@example(
    (np.float32([1, 1]), Predictor(np.float32([[0.25, 0]]), np.float32([[1], [1.25]]), None, 0.25))
)  # a tie is not enough
def test_the_ids_are_those_above_the_threshold(case):
    x, predictor = read_only(case)
    above = [i for i, z in enumerate(exact_logits(x, predictor)) if z > Fraction(predictor.threshold)]
    event("a tie" if Fraction(predictor.threshold) in exact_logits(x, predictor) else "no tie")
    assert same(predict_active(x, predictor), np.array(above, np.int64))
    must, may = active_band(x, predictor)
    assert set(must.tolist()) <= set(above) <= set(must.tolist()) | set(may.tolist())


@pytest.mark.req("PRD-2")
@given(plain_predictors())
def test_logits_are_the_scalar_loops(case):
    x, predictor = read_only(case)
    t = scalar_sum(x, widen(predictor.a).T, np.zeros(len(predictor.a)))
    z = scalar_sum(t, widen(predictor.b).T, np.zeros(len(predictor.b)))
    if predictor.bias is not None:
        z = np.array([np.float32(a + b) for a, b in zip(z, widen(predictor.bias), strict=True)])
    for threshold in [float(v) for v in z] + [predictor.threshold]:  # each logit is a tie once
        expected = [i for i, v in enumerate(z) if v > np.float32(threshold)]
        assert predict_active(x, predictor._replace(threshold=threshold)).tolist() == expected


@pytest.mark.req("PRD-3")
@given(plain_predictors(), st.floats(0, 100, width=32))
def test_a_higher_threshold_adds_nothing(case, more):
    x, predictor = case
    higher = predictor._replace(threshold=float(np.float32(predictor.threshold + more)))
    assert set(predict_active(x, higher)) <= set(predict_active(x, predictor))


@pytest.mark.req("PRD-5", "PRD-6")
@given(plain_predictors())
def test_every_order_of_summing_answers_within_the_band(case):
    x, predictor = case
    a, b = widen(predictor.a), widen(predictor.b)
    bias = np.zeros(len(b), np.float32) if predictor.bias is None else widen(predictor.bias)
    exact = exact_logits(x, predictor)
    # The threshold sits on a logit, where roundings differ most.
    predictor = predictor._replace(threshold=float(np.float32(float(exact[0]))))
    must, may = active_band(x, predictor)
    assert same(must, np.unique(must))
    assert same(may, np.unique(may))
    assert not set(must) & set(may)
    threshold = np.float32(predictor.threshold)
    answers = [
        set(predict_active(x, predictor)),
        set(np.flatnonzero(b @ (a @ x) + bias > threshold)),
        set(np.flatnonzero(bias + b[:, ::-1] @ (a[:, ::-1] @ x[::-1])[::-1] > threshold)),
        {i for i, z in enumerate(exact) if z > Fraction(float(threshold))},
    ]
    for answer in answers:
        assert set(must) <= answer <= set(must) | set(may)


@pytest.mark.req("PRD-1")
def test_a_predictor_may_have_any_rank():
    predictor = Predictor(np.ones((300, 1), np.float32), np.ones((2, 300), np.float32), None, 299.5)
    assert predict_active(np.float32([1]), predictor).tolist() == [0, 1]


@pytest.mark.req("PRD-5")
def test_the_band_is_narrow():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((8, 64), np.float32), rng.standard_normal((1000, 8), np.float32)
    must, may = active_band(rng.standard_normal(64, np.float32), Predictor(a, b, None, 0.0))
    assert 300 < len(must) < 700
    assert len(may) < 5


@pytest.mark.req("PRD-5")
def test_the_band_is_open_at_both_ends():
    bound = 2.0**-124 * (1 + 2.0**-20)  # of a logit of 0 that two subnormal roundings may have moved
    for threshold, band in ((-bound, ([], [0])), (0.0, ([], [0])), (bound, ([], []))):
        predictor = Predictor(np.float32([[0]]), np.float32([[0]]), None, threshold)
        assert tuple(ids.tolist() for ids in active_band(np.float32([0]), predictor)) == band


@pytest.mark.req("PRD-7")
@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
@example(0.49999999335958)  # so near a tie that float64 cannot tell
def test_the_threshold_is_the_nearest_float32(probability):
    with localcontext() as context:
        context.prec = 400
        p = Decimal(probability)
        truth = (p / (1 - p)).ln()
        got = np.float32(logit_threshold(probability))
        assert got == logit_threshold(probability)
        error = abs(Decimal(float(got)) - truth)
        # Two logarithms in float64, each within a unit in the last place, and their difference rounded.
        float64 = Decimal(2.0**-51) * (abs(p.ln()) + abs((1 - p).ln()))
        for neighbour in (np.nextafter(got, np.float32(-np.inf)), np.nextafter(got, np.float32(np.inf))):
            assert error <= abs(Decimal(float(neighbour)) - truth) + float64


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(DomainError, match="between 0 and 1"):
        logit_threshold(bad)


@pytest.mark.req("PRD-4")
def test_what_does_not_fit_is_refused():
    f = np.float32
    good = Predictor(np.ones((2, 3), f), np.ones((4, 2), f), np.ones(4, f), 0.0)
    x = np.ones(3, f)
    predict_active(x, good)
    for bad in (
        good._replace(a=np.ones((3, 3), f)),
        good._replace(a=np.ones((1, 3), f)),
        good._replace(a=np.ones(2, f)),
        good._replace(a=np.ones((2, 3, 1), f)),
        good._replace(b=np.ones(4, f)),
        good._replace(b=np.ones((4, 2, 1), f)),
        good._replace(bias=np.ones(3, f)),
        good._replace(bias=np.ones(5, f)),
        good._replace(a=np.ones((2, 3))),
        good._replace(bias=np.ones(4)),
    ):
        for function in (predict_active, active_band):
            with pytest.raises(ShapeError, match=r"a predictor|weights must be"):
                function(x, bad)
    for other in (np.ones(2, f), np.ones(4, f), np.ones(3), np.ones(3, np.float16), np.ones((1, 3), f)):
        with pytest.raises(ShapeError, match="x must be"):
            predict_active(other, good)
    with pytest.raises(DomainError, match="threshold"):
        predict_active(x, good._replace(threshold=float("nan")))
