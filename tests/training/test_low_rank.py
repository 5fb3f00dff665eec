"""The fit of one layer: its loss, its start, its end, and what is stored."""

import hurried_jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_ffns import planted, random_ffn

from flashref.bounds import gamma, unit_roundoff
from flashref.models.predictors import count_errors
from flashref.training import low_rank
from flashref.training.choosing import (
    choose_thresholds,
    curve_on,
)
from flashref.training.low_rank import (
    LowRank,
    class_balanced_loss,
    fit_low_rank,
    initial_low_rank,
    to_stored,
)
from flashref.training.masks import logits, predicted, truly_active, widened
from flashref.training.plan import FitSchedule
from flashref.types import Predictor

ROUNDINGS = 16 * 2.0**-24  # of float32, more than the few operations of a hand-worked loss
hurried = hurried_jax.hurried


def test_class_balanced_loss_of_a_case_worked_by_hand():
    # softplus(0) = ln 2 everywhere. Of 4 pairs 1 is active: weights 1 / (2 · 1/4) = 2 for it and
    # 1 / (2 · 3/4) = 2/3 for the others; the mean is (2 + 3 · 2/3) / 4 · ln 2 = ln 2.
    active = jnp.array([[True, False], [False, False]])
    loss = class_balanced_loss(jnp.zeros((2, 2)), active, jnp.float32(0.25))
    assert float(loss) == pytest.approx(np.log(2), rel=ROUNDINGS)
    # One logit of ln 3: softplus(−ln 3) = ln(4/3) if active, softplus(ln 3) = ln 4 if not.
    logits = jnp.array([[np.log(3.0), 0.0], [0.0, np.log(3.0)]])
    loss = class_balanced_loss(logits, active, jnp.float32(0.25))
    by_hand = (2 * np.log(4 / 3) + 2 / 3 * (2 * np.log(2) + np.log(4))) / 4
    assert float(loss) == pytest.approx(by_hand, rel=ROUNDINGS)


def unjudged(low):
    """What is fitted, as a predictor; its threshold is not looked at."""
    return Predictor(*low, threshold=np.nan)


QUICK = FitSchedule(steps=60, batch=256, every=20)


@pytest.mark.parametrize(("gated", "tau"), [(False, 0.0), (True, 0.75)])
def test_a_layer_whose_activity_is_of_low_rank_is_found(gated, tau):
    ffn = random_ffn("fatrelu" if tau else "relu", gated=gated, tau=tau, rank=3)
    inputs = planted(3000)
    predictor = to_stored(fit_low_rank(ffn, inputs[:1500], inputs[1500:2000], 3, QUICK).low)
    curve = curve_on(ffn, predictor, inputs[1500:2000])
    (threshold,) = choose_thresholds([curve], 0.01)
    sets = np.asarray(predicted(widened(predictor._replace(threshold=threshold)), inputs[2000:]))
    errors = count_errors(sets, np.asarray(truly_active(ffn, inputs[2000:])))
    assert errors.false_negative_rate < 0.02 and errors.false_positive_rate < 0.02


@pytest.mark.ci
def test_more_rank_means_fewer_errors_and_the_same_seed_the_same_bits():
    ffn, inputs = random_ffn("relu", rank=6), planted(1500)
    active = np.asarray(truly_active(ffn, inputs))
    fits = {rank: fit_low_rank(ffn, inputs[:1000], inputs[1000:], rank, QUICK) for rank in (3, 6)}
    wrong = {
        rank: int(((np.asarray(logits(unjudged(fit.low), inputs)) > 0) != active).sum())
        for rank, fit in fits.items()
    }
    assert wrong[3] > 2 * wrong[6]
    again = fit_low_rank(ffn, inputs[:1000], inputs[1000:], 6, QUICK)
    assert all(np.array_equal(one, other) for one, other in zip(fits[6].low, again.low, strict=True))
    assert again[1:] == fits[6][1:]


def test_a_fit_stops_when_held_out_text_does_not_improve_and_keeps_the_best(monkeypatch):
    ffn, inputs = random_ffn("relu"), planted(600)
    made, losses = [], iter([5.0, 3.0, 4.0, 2.0, 2.0, 6.0, 1.0])

    def step(fit, low, memory, ffn, share, x):
        made.append(low)
        return LowRank(low.a + 1, low.b, low.bias), memory

    monkeypatch.setattr(low_rank, "_step", step)
    monkeypatch.setattr(low_rank, "_loss", lambda low, ffn, share, x: next(losses))
    seen = []
    fit = FitSchedule(steps=100, batch=600, every=2, patience=2)
    fitted = fit_low_rank(ffn, inputs, inputs[:600], 2, fit, seen.append)
    # Measured after 0, 2, 4, 6, 8 and 10 steps: the best, 2.0, after 6; an equal one is none.
    assert (fitted.steps, fitted.loss, seen) == (10, 2.0, [2, 4, 6, 8, 10])
    assert np.array_equal(fitted.low.a, made[6].a) and not np.array_equal(fitted.low.a, made[5].a)


def test_held_out_loss_is_the_mean_over_all_its_tokens(monkeypatch):
    ffn, inputs = random_ffn("relu"), planted(300)
    seen = []

    def loss(low, ffn, share, x):
        seen.append(np.asarray(x))
        return float(len(seen))

    monkeypatch.setattr(low_rank, "_loss", loss)
    fitted = fit_low_rank(ffn, inputs, inputs[:250], 2, FitSchedule(batch=100, patience=0))
    assert np.array_equal(np.concatenate(seen), inputs[:250])
    assert fitted.loss == pytest.approx((1 * 100 + 2 * 100 + 3 * 50) / 250)


def test_the_start_of_a_fit_at_full_rank_is_the_layer_itself_scaled():
    ffn, inputs = random_ffn("fatrelu", tau=0.5), planted(2000)
    low = initial_low_rank(ffn, inputs, 8)
    found = np.asarray(logits(unjudged(low), inputs), np.float64)
    z = (
        inputs.astype(np.float64) @ np.asarray(ffn.up, np.float64).T
        + np.asarray(ffn.up_bias, np.float64)
        - 0.5
    )
    ratio = (found * z).sum(0) / (z * z).sum(0)  # the scale that fits each neuron best
    # Both products and the stored factors are rounded to float32; at full rank nothing else is lost.
    a, b, bias = (np.abs(np.asarray(part, np.float64)) for part in low)
    size = (np.abs(inputs).astype(np.float64) @ a.T) @ b.T + bias
    rounding = gamma(8 + 8 + 4, unit_roundoff("F32")) * size
    assert (np.abs(found - z * ratio) <= rounding + rounding.max(0)).all()  # the scale has errors too
    assert (ratio > 0).all()


def test_what_is_stored_is_finite_and_half_precision_of_the_same_logits():
    low = LowRank(
        jnp.array([[3e6, 1e6], [2.0, 3.0]]), jnp.array([[1e-5, 1.0], [-3e-5, 2.0]]), jnp.array([1.0, 1e6])
    )
    predictor = to_stored(low, 0.1)
    assert [part.dtype for part in predictor[:3]] == [np.float16] * 3
    x = np.array([[0.5, -0.25]], np.float32)
    found = np.asarray(logits(widened(predictor), x))
    expected = np.asarray(logits(unjudged(low._replace(bias=jnp.array([1.0, 65504.0]))), x))
    assert np.abs(found - expected).max() <= 8 * 2.0**-11 * 65504 and np.isfinite(found).all()
    assert abs(found[0, 0] - expected[0, 0]) <= 8 * 2.0**-11 * 20
    assert predictor.threshold == float(np.float32(0.1))
