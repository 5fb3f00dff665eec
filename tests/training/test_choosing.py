"""Error curves, and the thresholds and ranks that are chosen by them."""

import hurried_jax
import numpy as np
import pytest

from flashref.models.predictors import ErrorCounts, count_errors, pool_errors
from flashref.training.choosing import (
    Curve,
    choose_ranks,
    choose_thresholds,
    error_curve,
    tried_ranks,
)
from flashref.types import DomainError

hurried = hurried_jax.hurried


def test_errors_are_pooled_counts_and_nothing_of_nothing_is_nothing():
    active = np.array([[True, True, False, False]])
    sets = np.array([[True, False, True, False]])
    one = count_errors(sets, active)
    assert one == ErrorCounts(2, 2, 1, 1)
    none = count_errors(np.zeros((1, 4), bool), np.zeros((1, 4), bool))
    assert none.false_negative_rate == 0
    assert count_errors(active, np.ones((1, 4), bool)).false_positive_rate == 0
    assert pool_errors([one, none]) == ErrorCounts(2, 6, 1, 1)


def test_error_curve_counts_what_a_strict_comparison_counts():
    random = np.random.default_rng(0)
    on = random.integers(-40, 40, (50, 20)) / 4  # each on a threshold, or beyond all
    logits = (on + random.choice([0, 0.003, 0.007], on.shape)).astype(np.float32)  # and some between two
    active = random.random((50, 20)) < 0.2
    curve = error_curve(logits, active)
    assert curve.active == active.sum()
    for index in (0, 1, 640, 800, 825, 903, 1599, 1600):
        counts = count_errors(logits > curve.thresholds[index], active)
        assert counts.false_negatives == curve.false_negatives[index]
        assert counts.false_positives == curve.false_positives[index]


def curve_of(missed, extra, active=100):
    thresholds = np.arange(len(missed), dtype=np.float32)
    return Curve(thresholds, np.array(missed), np.array(extra), active)


def test_thresholds_spend_the_allowed_misses_where_they_save_most():
    steep = curve_of([0, 10, 20], [1000, 100, 0])
    flat = curve_of([0, 10, 20], [100, 90, 80])
    assert choose_thresholds([steep, flat], 0.05) == [1.0, 0.0]  # 10 of 200
    with pytest.raises(DomainError, match=r"a false negative rate of 0\.03; .* --false-negatives"):
        choose_thresholds([curve_of([5, 6], [1, 0])], 0.03)


def test_ranks_go_to_the_layer_that_gains_by_them():
    hard = [curve_of([0], [extra]) for extra in (900, 500, 200)]
    easy = [curve_of([0], [extra]) for extra in (50, 45, 44)]
    assert choose_ranks((2, 4, 6), [hard, easy], 8, 0.0) == [6, 2]
    assert choose_ranks((2, 4, 6), [hard, easy], 11, 0.0) == [6, 5]
    assert choose_ranks((2, 4, 6), [hard, easy], 99, 0.0) == [6, 6]
    with pytest.raises(DomainError, match="a false negative rate of 0;"):
        choose_ranks((2,), [[curve_of([1], [0])]], 2, 0.0)


def test_ranks_are_tried_around_what_the_share_pays_for():
    assert tried_ranks(67, 4, 128) == (8, 16, 24, 32)  # the tiny model
    assert tried_ranks(5, 4, 128) == (1, 2)
    assert tried_ranks(400, 4, 120) == (50, 100, 120)
