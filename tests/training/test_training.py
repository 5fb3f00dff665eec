"""The fitting of predictors: the split of a text, labels, the early stop, ranks, thresholds and windows."""

import hurried_jax
import jax.numpy as jnp
import numpy as np
import pytest
from tools import train_tiny

from flashref.bounds import gamma, unit_roundoff
from flashref.ffn import active_neurons
from flashref.models.origin import Origin, Source
from flashref.models.predictors import ErrorCounts, count_errors, pool_errors
from flashref.training import low_rank
from flashref.training.choosing import (
    Curve,
    choose_ranks,
    choose_thresholds,
    curve_on,
    error_curve,
    tried_ranks,
)
from flashref.training.judging import residency
from flashref.training.low_rank import (
    LowRank,
    class_balanced_loss,
    fit_low_rank,
    initial_low_rank,
    stored,
)
from flashref.training.masks import WindowedPredictor, logits, predicted, resident, truly_active, widened
from flashref.training.plan import FitSchedule
from flashref.training.texts import cut_chunks, cut_parts, some_chunks, split_ranges, unseen_chunks
from flashref.types import FFN, DomainError, Predictor

ROUNDINGS = 16 * 2.0**-24  # of float32, more than the few operations of a hand-worked loss
hurried = hurried_jax.hurried


# --- the text


def test_a_text_is_split_into_whole_chunks_eight_to_one_to_one():
    assert split_ranges(1000, 10) == (((0, 800),), ((800, 900),), ((900, 1000),))
    assert split_ranges(39, 10) == (((0, 10),), ((10, 20),), ((20, 30),))
    with pytest.raises(
        DomainError, match=r"29 tokens is too short: .* 10 tokens each; .* at least 30 tokens"
    ):
        split_ranges(29, 10)
    with pytest.raises(DomainError, match="a context of 1 token has no next token to predict"):
        split_ranges(100, 1)


def test_chunks_do_not_overlap_and_drop_the_rest():
    ids = np.arange(20, dtype=np.int32)
    assert cut_chunks(ids, [(0, 11)], 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut_chunks(ids, [(0, 3), (10, 15)], 4).tolist() == [[0, 1, 2, 10], [11, 12, 13, 14]]


def test_a_chunk_that_occurs_in_an_earlier_part_is_dropped_wherever_it_stands_there():
    ids = np.random.default_rng(0).integers(0, 256, 100).astype(np.int32)
    ranges = split_ranges(100, 5)  # 80, 10, 10
    ids[80:85] = ids[33:38]  # across two chunks of the part to fit on
    ids[90:95] = ids[87:92].copy()  # hence not a chunk of any part: it overlaps where the parts meet
    ids[95:100] = ids[85:90]
    parts = cut_parts(ids, ranges, 5)
    assert parts.fit.tolist() == ids[:80].reshape(-1, 5).tolist()
    assert parts.choose.tolist() == [ids[85:90].tolist()]
    assert parts.judge.tolist() == [ids[90:95].tolist()]
    ids[90:95] = ids[2:7]
    with pytest.raises(DomainError, match="no part of the text is left to judge on"):
        cut_parts(ids, ranges, 5)
    with pytest.raises(DomainError, match="no part of the text is left to choose on"):
        cut_parts(np.zeros(100, np.int32), ranges, 5)


def test_some_chunks_are_drawn_once_each_and_stay_in_order():
    chunks = np.arange(40, dtype=np.int32).reshape(20, 2)
    some = some_chunks(chunks, 7, seed=0)
    rows = some[:, 0].tolist()
    assert len(some) == 7 and rows == sorted(set(rows)) and rows != list(range(0, 14, 2))
    assert some_chunks(chunks, 99, 0).tolist() == chunks.tolist()
    assert len(some_chunks(chunks, 0, 0)) == 1


def origin(fit, choose, judge):
    return Origin("f", "relu", 0.0, Source(*fit), Source(*choose), Source(*judge))


def test_of_the_text_that_predictors_are_made_of_only_what_they_have_not_seen_is_judged():
    ids = np.random.default_rng(1).integers(0, 256, 100).astype(np.int32)
    ids[90:95] = ids[7:12]  # seen after all
    (fit,), (choose,), (judge,) = split_ranges(100, 5)
    of_one = origin(("a", (fit,)), ("a", (choose,)), ("a", (judge,)))
    chunks, what = unseen_chunks(ids, "a", of_one, 5)
    assert chunks.tolist() == [ids[95:].tolist()] and "nothing was fitted or chosen on" in what
    chunks, what = unseen_chunks(ids, "b", of_one, 5)
    assert chunks.shape == (20, 5) and "another text" in what
    chunks, what = unseen_chunks(ids, "b", None, 5)
    assert chunks.shape == (20, 5) and "does not say" in what
    with pytest.raises(DomainError, match="takes at least one chunk of 5 tokens"):
        unseen_chunks(ids[:4], "b", of_one, 5)


def test_a_held_out_file_of_its_own_is_judged_and_the_texts_of_the_fit_are_refused():
    ids = np.arange(100, dtype=np.int32)
    apart = origin(("a", ((0, 50),)), ("b", ((0, 100),)), ("c", ((0, 60),)))
    assert unseen_chunks(ids, "c", apart, 5)[0].tolist() == ids[:60].reshape(-1, 5).tolist()
    for seen in "ab":
        with pytest.raises(DomainError, match="were fitted on this text, or their thresholds were"):
            unseen_chunks(ids, seen, apart, 5)


def test_a_part_to_judge_on_without_a_chunk_is_refused_and_one_of_two_texts_is_whole():
    ids = np.arange(100, dtype=np.int32)
    with pytest.raises(DomainError, match="takes at least one chunk of 5 tokens"):
        unseen_chunks(ids, "c", origin(("a", ((0, 50),)), ("b", ((0, 100),)), ("c", ((0, 4),))), 5)
    # Chosen on another text, whose ranges say nothing of this one.
    ids[50:55] = ids[95:]
    apart = origin(("a", ((0, 50),)), ("b", ((50, 95),)), ("a", ((95, 100),)))
    assert unseen_chunks(ids, "a", apart, 5)[0].tolist() == [[95, 96, 97, 98, 99]]


@pytest.mark.parametrize("part", [(), ((0, 0),), ((5, 7),)])
@pytest.mark.parametrize("which", [1, 2])
def test_an_origin_that_leaves_a_part_without_a_chunk_is_refused(which, part):
    parts = [((0, 50),), ((50, 75),), ((75, 100),)]
    parts[which] = part
    with pytest.raises(DomainError, match="no part of the text is left to"):
        unseen_chunks(np.arange(100, dtype=np.int32), "a", origin(*(("a", part) for part in parts)), 5)


def test_a_part_to_fit_on_that_is_shorter_than_a_chunk_repeats_nothing():
    of_one = origin(("a", ((0, 3),)), ("a", ((50, 75),)), ("a", ((75, 100),)))
    assert unseen_chunks(np.arange(100, dtype=np.int32), "a", of_one, 5)[0].size == 25


def test_a_text_of_one_chunk_again_and_again_is_refused():
    ids = np.tile(np.arange(5, dtype=np.int32), 3)
    with pytest.raises(DomainError, match="no part of the text is left to choose on"):
        cut_parts(ids, split_ranges(15, 5), 5)


def test_the_texts_to_fit_to_choose_and_to_judge_on_share_no_verse():
    # Every verse of this Bible is unique, so a verse in two of the texts would be an overlap.
    books = {"Ge": 2000, "1Sm": 900, "2Sm": 900, "Rev": 1000}
    lines = [b"A title"]
    for book, verses in books.items():
        lines += [f"{book}1:{i} verse {book} {i} {'x' * 80}.".encode() for i in range(verses)]
    text = b"\n".join(lines) + b"\n"
    split = train_tiny.split_text(text)
    assert split.verses == b"".join(line.split(b" ", 1)[1] + b"\n" for line in lines[1:])
    fit, choose, judge = (train_tiny.pieces(split.verses, part) for part in split.ranges)
    assert len(choose) == len(judge) == 65_536
    kinds = [set(part.splitlines()[:-1]) for part in (fit, choose, judge)]
    assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])
    unused = len(split.verses) - len(fit) - len(choose) - len(judge)
    assert 0 <= unused < 2 * len(lines[-1])  # the two broken lines
    for part in (fit, choose, judge):
        assert part.startswith(b"verse ")


# --- labels


def random_ffn(activation, n=24, d=8, gated=False, tau=0.0, rank=None, seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    decides = normal(n, rank) @ normal(rank, d) if rank else normal(n, d)
    bias = normal(n) - 2
    other = normal(n, d) if gated else None
    if gated:
        return FFN(activation, other, normal(n, d), decides, None, bias, None, tau)
    return FFN(activation, decides, normal(n, d), None, bias, None, None, tau)


@pytest.mark.parametrize(
    ("activation", "gated", "tau"),
    [("relu", False, 0.0), ("squared_relu", True, 0.0), ("fatrelu", False, 0.75), ("fatrelu", True, 0.75)],
)
def test_labels_are_the_neurons_that_the_definition_calls_active(activation, gated, tau):
    ffn = random_ffn(activation, gated=gated, tau=tau)
    inputs = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    found = np.asarray(truly_active(ffn, inputs))
    numpy = FFN(*(np.asarray(part) if hasattr(part, "dtype") else part for part in ffn))
    assert [np.flatnonzero(row).tolist() for row in found] == [
        active_neurons(x, numpy).tolist() for x in inputs
    ]
    assert 0 < found.mean() < 0.5


@pytest.mark.parametrize(("activation", "tau"), [("relu", 0.0), ("fatrelu", 0.5)])
def test_a_neuron_on_the_threshold_is_neither_active_nor_predicted(activation, tau):
    x = jnp.array([[tau, 1.0], [tau + 2.0**-20, 1.0]], jnp.float32)
    one = jnp.array([[1.0, 0.0]])
    assert np.asarray(truly_active(FFN(activation, one, one, tau=tau), x)).tolist() == [[False], [True]]
    predictor = Predictor(one, jnp.array([[1.0]]), None, tau)
    assert np.asarray(predicted(predictor, x)).tolist() == [[False], [True]]


# --- fitting


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


def planted(tokens, d=8, seed=3):
    return np.random.default_rng(seed).normal(size=(tokens, d)).astype(np.float32)


QUICK = FitSchedule(steps=60, batch=256, every=20)


@pytest.mark.parametrize(("gated", "tau"), [(False, 0.0), (True, 0.75)])
def test_a_layer_whose_activity_is_of_low_rank_is_found(gated, tau):
    ffn = random_ffn("fatrelu" if tau else "relu", gated=gated, tau=tau, rank=3)
    inputs = planted(3000)
    predictor = stored(fit_low_rank(ffn, inputs[:1500], inputs[1500:2000], 3, QUICK).low)
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
    predictor = stored(low, 0.1)
    assert [part.dtype for part in predictor[:3]] == [np.float16] * 3
    x = np.array([[0.5, -0.25]], np.float32)
    found = np.asarray(logits(widened(predictor), x))
    expected = np.asarray(logits(unjudged(low._replace(bias=jnp.array([1.0, 65504.0]))), x))
    assert np.abs(found - expected).max() <= 8 * 2.0**-11 * 65504 and np.isfinite(found).all()
    assert abs(found[0, 0] - expected[0, 0]) <= 8 * 2.0**-11 * 20
    assert predictor.threshold == float(np.float32(0.1))


# --- errors, thresholds, ranks


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


# --- windows


def sets_of(chunk, k):
    """C_t by its definition: the union of the last k sets (decision 1)."""
    sets = [set(np.flatnonzero(row).tolist()) for row in chunk]
    return sets, [set().union(*sets[max(0, t - k + 1) : t + 1]) for t in range(len(sets))]


def test_residency_equals_the_union_of_the_last_k_sets():
    flags = np.random.default_rng(1).random((3, 6, 10)) < 0.3
    found = residency(flags, windows=8)  # longer than a text, too
    assert found.tokens == 18
    for k in range(1, 9):
        sizes, new = [], []
        for chunk in flags:
            sets, kept = sets_of(chunk, k)
            sizes += [len(each) for each in kept]
            new += [len(sets[t] - (kept[t - 1] if t else set())) for t in range(6)]
        assert (found.kept[k - 1], found.largest[k - 1], found.new[k - 1]) == (
            sum(sizes),
            max(sizes),
            sum(new),
        )


@pytest.mark.parametrize("k", [1, 3, 9])
def test_resident_neurons_are_the_union_of_the_last_k_predicted_sets(k):
    random = np.random.default_rng(2)
    predictor = Predictor(
        random.normal(size=(2, 4)).astype(np.float16),
        random.normal(size=(12, 2)).astype(np.float16),
        None,
        0.5,
    )
    x, wide = random.normal(size=(7, 4)).astype(np.float32), widened(predictor)
    _, kept = sets_of(np.asarray(predicted(wide, x)), k)
    found = np.asarray(resident(WindowedPredictor(wide, jnp.int32(k)), jnp.asarray(x)))
    assert [set(np.flatnonzero(row).tolist()) for row in found] == kept
