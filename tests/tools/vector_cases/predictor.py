"""Cases of the predictor (chapter 20)."""

from fractions import Fraction
from typing import Any

import numpy as np
from tools.vector_cases.make import (
    REFUSED,
    UNIT_ROUNDOFF,
    dyadic,
    exactly,
    ids,
    real,
    stored,
    vector,
)

from flashref.conformance.definitions import exact_logits, logits_bound_by_formula
from flashref.conformance.vectors.files import Expectation, Vector
from flashref.types import Array, Ids, Predictor

INFINITY = float("inf")


def predicted_ids(x: Array, predictor: Predictor) -> Ids:
    """The ids whose exact logit exceeds the threshold, as a float32."""
    threshold = float(np.float32(predictor.threshold))  # ±inf compares with every rational as it should
    return ids(i for i, z in enumerate(exact_logits(x, predictor)) if z > threshold)


def cases() -> list[Vector]:
    """Every case of `predict_active`."""
    return [*_dyadic(), *_thresholds(), *_bands(), *_refusals()]


def _case(name: str, requirements: str, flags: str, comment: str, x: Array, predictor: Predictor) -> Vector:
    expectation = exactly(predicted_ids(x, predictor))
    return vector(f"predict_active/{name}", requirements, flags, comment, (x, *predictor), expectation)


def drawn(
    key: str, n: int, d: int, r: int, dtypes: str = "F32 F32 F32", biased: bool = True, threshold: float = 0.0
) -> Predictor:
    """A dyadic predictor that follows from the key; dtypes: of a, b and bias."""
    of_a, of_b, of_bias = dtypes.split()
    bias = dyadic(f"{key}/bias", (n,), of_bias) if biased else None
    return Predictor(dyadic(f"{key}/a", (r, d), of_a), dyadic(f"{key}/b", (n, r), of_b), bias, threshold)


def _dyadic() -> list[Vector]:
    made = []
    sizes = ((1, 1, 1), (9, 5, 1), (9, 5, 2), (33, 3, 3), (7, 1, 3), (13, 8, 2))
    dtypes = ("F32 F32 F32", "F16 F16 F16", "BF16 BF16 BF16", "F16 BF16 F32", "BF16 F32 F16", "F32 F16 F32")
    for number, ((n, d, r), stored_as) in enumerate(zip(sizes, dtypes, strict=True)):
        name = f"dyadic/n{n}_d{d}_r{r}"
        predictor = drawn(
            f"predict_active/{name}", n, d, r, stored_as, number % 2 == 0, (-0.5, 0.0, 0.25)[number % 3]
        )
        made.append(_case(name, "PRD-1 TYP-5", "dyadic tail threshold",
                          "fails if a nonlinearity stands between the factors, a term or the bias is missing",
                          dyadic(f"predict_active/{name}/x", (d,)), predictor))  # fmt: skip
    sign = Predictor(stored([-1], (1, 1), "F32"), stored([-1, 1], (2, 1), "F32"), None, 0.0)
    made.append(_case("dyadic/negative_between_the_factors", "PRD-1", "dyadic activation",
                      "fails if a ReLU stands between the factors: −1 · −1 is a positive logit",
                      stored([1], (1,), "F32"), sign))  # fmt: skip
    name = "dyadic/zero_input"
    made.append(_case(name, "PRD-1", "dyadic boundary", "fails if a logit of 0 exceeds the threshold 0",
                      stored([0, -0.0, 0], (3,), "F32"),
                      drawn(f"predict_active/{name}", 9, 3, 2, biased=False)))  # fmt: skip
    return made


def _thresholds() -> list[Vector]:
    made = []
    key = "predict_active/thresholds"
    x, predictor = dyadic(f"{key}/x", (5,)), drawn(key, 17, 5, 2)
    logits = sorted(exact_logits(x, predictor))
    tie = float(logits[8])  # the logit of one of the middle neurons, exactly
    for what, threshold, comment in (
        ("minus_infinity", -INFINITY, "fails if −inf is not below every logit"),
        ("low", -0.5, "fails if a raised threshold adds an id: compare the other cases of this group"),
        ("minus_zero", -0.0, "fails if the sign of a zero matters"),
        ("high", 0.5, "fails if a raised threshold adds an id"),
        ("tie", tie, "fails if a logit equal to the threshold counts as active"),
        ("infinity", INFINITY, "fails if any logit exceeds +inf"),
    ):
        made.append(_case(f"thresholds/{what}", "PRD-1 PRD-3", "dyadic threshold", comment, x,
                          predictor._replace(threshold=threshold)))  # fmt: skip
    levels = Predictor(
        stored([1], (1, 1), "F32"), stored([-1, -0.5, -0.25, 0, 0.25, 0.5, 1], (7, 1), "F32"), None, 0.0
    )
    for what, threshold, comment in (
        (
            "negative_tie",
            -0.5,
            "fails if the threshold is scaled: 0.9 of a negative one lets other neurons in",
        ),
        ("probability", 0.25, "fails if a probability is compared instead of the logit"),
        ("just_below_a_logit", 0.5 - 2.0**-25, "fails if the threshold has less than float32's 24 bits"),
        ("rounded_to_float32", 0.5 - 2.0**-40, "fails if the threshold is not a float32: it is 0.5, a tie"),
    ):
        made.append(_case(f"thresholds/{what}", "PRD-1", "dyadic threshold", comment,
                          stored([1], (1,), "F32"), levels._replace(threshold=threshold)))  # fmt: skip
    return made


def _bands() -> list[Vector]:
    """Thresholds at a logit that rounding blurs: within the bound either answer is right."""
    made = []
    for number, dtype in enumerate(("F32", "F16", "BF16", "F32", "F16", "BF16")):
        name = f"predict_active/bands/{dtype}_{'with' if number < 3 else 'without'}_bias"
        n, d, r = 12, 7, 3
        x = real(f"{name}/x", (d,))
        predictor = Predictor(
            real(f"{name}/a", (r, d), dtype),
            real(f"{name}/b", (n, r), dtype),
            real(f"{name}/bias", (n,), dtype) if number < 3 else None,
            0.0,
        )
        logits = exact_logits(x, predictor)
        predictor = predictor._replace(threshold=float(np.float32(float(logits[number]))))
        bounds = logits_bound_by_formula(x, predictor, UNIT_ROUNDOFF)
        threshold = Fraction(predictor.threshold)
        must = [i for i in range(n) if logits[i] - bounds[i] > threshold]
        may = [i for i in range(n) if logits[i] + bounds[i] > threshold and i not in must]
        assert number in may, name
        made.append(vector(name, "PRD-5 TYP-5", "precision threshold",
                           "fails if more than the rounding of float32 decides who is active",
                           (x, *predictor), Expectation("either", must=ids(must), may=ids(may))))  # fmt: skip
    return made


def _refusals() -> list[Vector]:
    name = "predict_active/refusals"
    x, good = dyadic(f"{name}/x", (3,)), drawn(name, 4, 3, 2)
    wrong: dict[str, tuple[Array, Any, str]] = {
        "threshold_not_a_number": (x, good._replace(threshold=float("nan")), "fails if NaN is taken"),
        "b_of_another_rank": (x, good._replace(b=dyadic(f"{name}/b3", (4, 3))),
                              "fails if factors that do not fit are taken"),
        "b_transposed": (x, good._replace(b=good.b.T), "fails if b (r, n) is taken: rows belong to neurons"),
        "bias_a_value_short": (x, good._replace(bias=x), "fails if a missing bias goes unnoticed"),
        "a_float64": (x, good._replace(a=good.a.astype(np.float64)),
                      "fails if weights of no stored dtype are taken"),
        "x_too_long": (dyadic(f"{name}/long", (4,)), good, "fails if x is cut to fit"),
        "x_of_one_value": (x[:1], good, "fails if x is broadcast"),
        "x_float16": (x.astype(np.float16), good, "fails if an input of another dtype is taken"),
    }  # fmt: skip
    return [
        vector(f"{name}/{what}", "PRD-4", "refusal", comment, (given, *predictor), REFUSED)
        for what, (given, predictor, comment) in wrong.items()
    ]
