"""Checks of chapter 20: predicted sets against exact logits, three-valued where rounding decides."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from flashref.bounds import predictor_bound, unit_roundoff
from flashref.conformance.adapter import Facts
from flashref.conformance.checks.check import Call, Check, ask, dtypes_of, expect_ids, must_refuse, sizes_of
from flashref.conformance.definitions import exact_logits
from flashref.conformance.strategies import dyadic_arrays, plain_arrays, predictors
from flashref.conformance.transport.subject import Breach, Subject
from flashref.types import Array, Predictor


def call_of(x: Array, predictor: Predictor, note: str = "") -> Call:
    """predict_active of this predictor."""
    return Call("predict_active", (x, *predictor), note)


@st.composite
def dyadic_predictions(draw: st.DrawFn, facts: Facts) -> Call:
    """Entries j/4 with r ≤ 3 and d ≤ 6: logits are multiples of 2^-6 below 19, exact in any order.

    The threshold is often exactly a logit, or the float32 beside one, and now and then infinite.
    """
    n, d = draw(st.sampled_from(sizes_of(facts)))
    dtype = draw(st.sampled_from(dtypes_of(facts)))
    x = draw(dyadic_arrays((d,), 2))
    predictor = draw(predictors(lambda shape: dyadic_arrays(shape, 2), n, d, dtype))
    ties = [float(z) for z in exact_logits(x, predictor)]
    # The nearest float32 on either side, but for those of 0, which are subnormal.
    beside = [float(np.nextafter(np.float32(z), np.float32(to))) for z in ties if z for to in (-100, 100)]
    infinite = [float("inf"), float("-inf")]
    threshold = draw(st.sampled_from(ties) | st.sampled_from([predictor.threshold, *beside, *infinite]))
    return call_of(x, predictor._replace(threshold=threshold))


@st.composite
def plain_predictions(draw: st.DrawFn, facts: Facts) -> Call:
    """Any finite data, with a threshold that is often next to a logit."""
    n, d = draw(st.sampled_from(sizes_of(facts)))
    dtype, limit = draw(st.sampled_from(dtypes_of(facts))), draw(st.sampled_from([1.0, 1e4]))
    subnormals = not facts.flushes_subnormals
    x = draw(plain_arrays((d,), "F32", limit, subnormals))
    predictor = draw(predictors(lambda shape: plain_arrays(shape, dtype, limit, subnormals), n, d, dtype))
    near = [float(np.float32(float(z))) for z in exact_logits(x, predictor)]
    threshold = draw(st.one_of(st.sampled_from(near), st.just(predictor.threshold)))
    return call_of(x, predictor._replace(threshold=threshold))


def judge_exact(subject: Subject, call: Call) -> None:
    """Exactly the ids whose logit exceeds the threshold."""
    x, predictor = call.arguments[0], Predictor(*call.arguments[1:])
    above = [i for i, z in enumerate(exact_logits(x, predictor)) if z > predictor.threshold]
    expect_ids("predicted ids", ask(subject, call), above)


def judge_band(subject: Subject, call: Call) -> None:
    """Every id beyond the rounding band, and none before it."""
    x, predictor = call.arguments[0], Predictor(*call.arguments[1:])
    got = set(ask(subject, call).tolist())
    bounds = predictor_bound(x, predictor, unit_roundoff("F32")).tolist()
    threshold = Fraction(predictor.threshold)
    for i, (z, bound) in enumerate(zip(exact_logits(x, predictor), bounds, strict=True)):
        over = z - threshold
        if (over > Fraction(bound)) and i not in got:
            how = (
                f"exceeds the threshold by {float(over):.3g}, more than the bound {bound:.3g}, and is missing"
            )
            raise Breach("fail", f"neuron {i}: its logit {float(z)!r} {how}")
        if (over + Fraction(bound) <= 0) and i in got:
            how = f"is {float(-over):.3g} below the threshold, the bound is {bound:.3g}, and is predicted"
            raise Breach("fail", f"neuron {i}: its logit {float(z)!r} {how}")
    if not got <= set(range(len(predictor.b))):
        raise Breach("fail", f"ids {sorted(got)} of a layer of {len(predictor.b)} neurons")


@st.composite
def rising(draw: st.DrawFn, facts: Facts) -> list[Call]:
    """The same prediction at a threshold, and at a higher one."""
    low = draw(plain_predictions(facts))
    *rest, threshold = low.arguments
    higher = [threshold, *(float(np.float32(threshold + step)) for step in (0.25, 1.0, 100.0)), float("inf")]
    return [low, low._replace(arguments=(*rest, draw(st.sampled_from(higher[1:]))))]


def judge_rising(subject: Subject, calls: list[Call]) -> None:
    """The set at the higher threshold is within that at the lower one."""
    low, high = (ask(subject, call).tolist() for call in calls)
    if added := sorted(set(high) - set(low)):
        raise Breach("fail", f"raising the threshold added the ids {added}: {low} became {high}")


@st.composite
def bad_predictors(draw: st.DrawFn, facts: Facts) -> Call:
    """A prediction with one thing that does not fit."""
    n, d = draw(st.sampled_from(sizes_of(facts)))
    x = np.ones(d, np.float32)
    good = Predictor(np.ones((2, d), np.float32), np.ones((n, 2), np.float32), None, 0.0)
    bad: dict[str, tuple[Array, Predictor]] = {
        "an x with an element more": (np.ones(d + 1, np.float32), good),
        "an x in float64": (np.ones(d), good),
        "a of another width": (x, good._replace(a=np.ones((2, d + 1), np.float32))),
        "b of another rank": (x, good._replace(b=np.ones((n, 3), np.float32))),
        "a bias with an element more": (x, good._replace(bias=np.ones(n + 1, np.float32))),
        "weights in float64": (x, good._replace(b=np.ones((n, 2)))),
        "a threshold that is NaN": (x, good._replace(threshold=float("nan"))),
    }
    note = draw(st.sampled_from(list(bad)))
    return call_of(*bad[note], note)


OPERATIONS = ("predict_active",)
CHECKS = (
    Check("PRD-1", OPERATIONS, dyadic_predictions, judge_exact),
    Check("PRD-3", OPERATIONS, rising, judge_rising),
    Check("PRD-4", OPERATIONS, bad_predictors, must_refuse),
    Check("PRD-5", OPERATIONS, plain_predictions, judge_band),
)
