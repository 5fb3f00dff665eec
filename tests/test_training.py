"""The fitting of predictors, and the split of the text that the shipped ones were made from."""

import numpy as np
import pytest

pytest.importorskip("optax", reason="fitting predictors needs the extra `train`")

import jax.numpy as jnp

from flashref import training
from flashref.data import train_tiny
from flashref.numerics import gamma, unit_roundoff
from flashref.transformer.predictors import Errors, count_errors, pool_errors

ROUNDINGS = 16 * 2.0**-24  # of float32, more than the few operations of a hand-worked loss


def test_class_balanced_loss_of_a_case_worked_by_hand():
    # softplus(0) = ln 2 everywhere. Of 4 pairs 1 is active: weights 1 / (2 · 1/4) = 2 for it and
    # 1 / (2 · 3/4) = 2/3 for the others; the mean is (2 + 3 · 2/3) / 4 · ln 2 = ln 2.
    active = jnp.array([[True, False], [False, False]])
    loss = training.class_balanced_loss(jnp.zeros((2, 2)), active, jnp.float32(0.25))
    assert float(loss) == pytest.approx(np.log(2), rel=ROUNDINGS)
    # One logit of ln 3: softplus(−ln 3) = ln(4/3) if active, softplus(ln 3) = ln 4 if not.
    logits = jnp.array([[np.log(3.0), 0.0], [0.0, np.log(3.0)]])
    loss = training.class_balanced_loss(logits, active, jnp.float32(0.25))
    by_hand = (2 * np.log(4 / 3) + 2 / 3 * (2 * np.log(2) + np.log(4))) / 4
    assert float(loss) == pytest.approx(by_hand, rel=ROUNDINGS)


def planted(tokens, d=16, n=24, rank=3, seed=0):
    random = np.random.default_rng(seed)
    up = random.normal(size=(n, rank)) @ random.normal(size=(rank, d))
    up_bias = random.normal(size=n) - 2
    inputs = random.normal(size=(tokens, d))
    return tuple(array.astype(np.float32) for array in (inputs, up, up_bias))


def test_a_fit_recovers_a_planted_predictor_of_low_rank():
    inputs, up, up_bias = planted(6000)
    fit = training.Fit(steps=60, batch=512)
    low = training.fit_low_rank(inputs[:4000], up, up_bias, rank=3, fit=fit)
    fitted = training.stored(low)
    active = training.truly_active(inputs[:4000], up, up_bias)
    curve = training.error_curve(training.predictor_logits(inputs[:4000], fitted), active)
    (threshold,) = training.choose_thresholds([curve], allowed=int(0.01 * active.sum()))
    logits = training.predictor_logits(inputs[4000:], fitted)
    errors = count_errors(logits > np.float32(threshold), training.truly_active(inputs[4000:], up, up_bias))
    assert errors.false_negative_rate < 0.03
    assert errors.false_positive_rate < 0.03


def test_more_rank_means_fewer_errors_and_the_same_seed_the_same_bits():
    inputs, up, up_bias = planted(3000, rank=6)
    active = training.truly_active(inputs, up, up_bias)
    fit = training.Fit(steps=40, batch=512)
    wrong = []
    for rank in (3, 6):
        low = training.fit_low_rank(inputs, up, up_bias, rank, fit)
        wrong.append(int(((training.predictor_logits(inputs, training.stored(low)) > 0) != active).sum()))
    assert wrong[0] > 2 * wrong[1]
    again = training.fit_low_rank(inputs, up, up_bias, 6, fit)
    assert all(np.array_equal(one, other) for one, other in zip(low, again, strict=True))


def test_the_start_of_a_fit_at_full_rank_is_the_layer_itself_scaled():
    inputs, up, up_bias = planted(2000)
    low = training.initial_low_rank(inputs, up, up_bias, 16)
    logits = np.asarray(training.low_rank_logits(inputs, low), np.float64)
    z = inputs.astype(np.float64) @ up.T + up_bias
    ratio = (logits * z).sum(0) / (z * z).sum(0)  # the scale that fits each neuron best
    # Both products and the stored factors are rounded to float32; at full rank nothing else is lost.
    a, b, bias = (np.abs(np.asarray(part, np.float64)) for part in low)
    size = (np.abs(inputs).astype(np.float64) @ a.T) @ b.T + bias
    rounding = gamma(16 + 16 + 4, unit_roundoff("F32")) * size
    assert (np.abs(logits - z * ratio) <= rounding + rounding.max(0)).all()  # the scale has errors too
    assert (ratio > 0).all()


def test_errors_are_pooled_counts_and_nothing_of_nothing_is_nothing():
    active = np.array([[True, True, False, False]])
    predicted = np.array([[True, False, True, False]])
    one = count_errors(predicted, active)
    assert one == Errors(2, 2, 1, 1)
    none = count_errors(np.zeros((1, 4), bool), np.zeros((1, 4), bool))
    assert none.false_negative_rate == 0
    assert count_errors(active, np.ones((1, 4), bool)).false_positive_rate == 0
    assert pool_errors([one, none]) == Errors(2, 6, 1, 1)


def test_error_curve_counts_what_a_strict_comparison_counts():
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 20)).astype(np.float32)
    active = random.random((50, 20)) < 0.2
    curve = training.error_curve(logits, active)
    for index in (0, 640, 800, 903, 1600):
        counts = count_errors(logits > curve.thresholds[index], active)
        assert counts.false_negatives == curve.false_negatives[index]
        assert counts.false_positives == curve.false_positives[index]


def curve_of(missed, extra):
    thresholds = np.arange(len(missed), dtype=np.float32)
    return training.Curve(thresholds, np.array(missed), np.array(extra))


def test_thresholds_spend_the_allowed_misses_where_they_save_most():
    steep = curve_of([0, 10, 20], [1000, 100, 0])
    flat = curve_of([0, 10, 20], [100, 90, 80])
    assert training.choose_thresholds([steep, flat], allowed=10) == [1.0, 0.0]
    with pytest.raises(ValueError, match="at most 3"):
        training.choose_thresholds([curve_of([5, 6], [1, 0])], allowed=3)


def test_ranks_go_to_the_layer_that_gains_by_them():
    hard = [curve_of([0], [extra]) for extra in (900, 500, 200)]
    easy = [curve_of([0], [extra]) for extra in (50, 45, 44)]
    assert training.choose_ranks((2, 4, 6), [hard, easy], total=8, allowed=0) == [6, 2]
    assert training.choose_ranks((2, 4, 6), [hard, easy], total=11, allowed=0) == [6, 5]
    assert training.choose_ranks((2, 4, 6), [hard, easy], total=99, allowed=0) == [6, 6]


def test_residency_equals_the_union_of_the_last_k_sets():
    random = np.random.default_rng(1)
    context, chunks, n = 6, 3, 10
    predicted = random.random((context * chunks, n)) < 0.3
    found = training.residency(predicted, context, windows=4)
    for k in range(1, 5):
        sizes, new = [], []
        for chunk in predicted.reshape(chunks, context, n):
            sets = [set(np.flatnonzero(row)) for row in chunk]
            kept = [set().union(*sets[max(0, t - k + 1) : t + 1]) for t in range(context)]
            sizes += [len(each) for each in kept]
            new += [len(sets[t] - (kept[t - 1] if t else set())) for t in range(context)]
        assert found.largest[k - 1] == max(sizes)
        assert found.mean[k - 1] == np.float32(np.mean(sizes))
        assert found.new[k - 1] == np.float32(np.mean(new))


def test_the_texts_to_fit_to_choose_and_to_judge_on_share_no_verse():
    # Every verse of this Bible is unique, so a verse in two of the texts would be an overlap.
    books = {"Ge": 2000, "1Sm": 900, "2Sm": 900, "Rev": 1000}
    lines = [b"A title"]
    for book, verses in books.items():
        lines += [f"{book}1:{i} verse {book} {i} {'x' * 80}.".encode() for i in range(verses)]
    text = b"\n".join(lines) + b"\n"
    split = train_tiny.split_text(text)
    assert len(split.development) == len(split.held_out) == 65_536
    kinds = [set(part.splitlines()[:-1]) for part in split]
    assert all(not (one & other) for one, other in ((kinds[0], kinds[1]), (kinds[0], kinds[2])))
    assert not kinds[1] & kinds[2]
    spare = 4 * len(lines[-1])  # the references left out and two broken lines are not in any text
    assert len(text) - len(b"".join(split)) < len(lines) * 12 + spare
    for part in split:
        assert part.startswith(b"verse ")


def test_chunks_do_not_overlap_and_drop_the_rest():
    assert train_tiny.chunks(bytes(range(11)), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
