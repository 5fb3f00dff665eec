"""Judging predictors: errors, windows and perplexities against plain sets and the NumPy model."""

from functools import partial

import hurried_jax
import numpy as np
import pytest
import train_runs
from conftest import sampled
from random_models import CONTEXT, LAYERS, NEURONS, WIDTH, open_packed, write_family
from train_runs import QUICK, TEXT

from flashref.ffn import active_neurons, dense_ffn, sparse_ffn
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.model import load_model, one_at_a_time
from flashref.models.perplexity import measure_perplexities, perplexity
from flashref.models.predictors import ErrorCounts, load_predictors
from flashref.predictor import predict_active
from flashref.training import judging
from flashref.types import Predictor

# JAX and NumPy sum the same float32 values in different orders, which moves a perplexity by a few roundings:
# 4e-7 was the most that was measured.
ROUNDINGS = 32 * 2.0**-24

hurried = hurried_jax.hurried
train = train_runs.train
small = train_runs.small


def slow_sets(checkpoint, predictors, chunk):
    """Along the dense model: (active, predicted) sets of ids, [layer][token]."""
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    model, seen = load_model(checkpoint.config, partial(load_tensor, checkpoint)), [[] for _ in ffns]

    def dense(layer, x):
        seen[layer].append(
            (set(active_neurons(x, ffns[layer]).tolist()), set(predict_active(x, predictors[layer]).tolist()))
        )
        return dense_ffn(x, ffns[layer])

    forward = one_at_a_time(model, dense)
    for token in chunk:
        forward(token)
    return seen


def slow_perplexity(checkpoint, ids, length, chosen):
    """Of the NumPy model whose FFN sums chosen(layer, x, history) only; history: of this chunk and layer."""
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    model = load_model(checkpoint.config, partial(load_tensor, checkpoint))

    def fresh():
        history = [[] for _ in ffns]

        def feed_forward(layer, x):
            return sparse_ffn(x, ffns[layer], sorted(chosen(layer, x, history[layer])))

        return one_at_a_time(model, feed_forward)

    return perplexity(ids, length, fresh).perplexity


@pytest.mark.parametrize("dense_layer", sampled([None, 1], [1]))
def test_errors_windows_and_all_four_perplexities_are_those_of_plain_sets(tmp_path, dense_layer):
    checkpoint = open_checkpoint(write_family(tmp_path, "llama"))
    random = np.random.default_rng(5)
    predictors = [
        Predictor(
            random.normal(size=(3 + layer, WIDTH)).astype(np.float16),
            random.normal(size=(NEURONS, 3 + layer)).astype(np.float16),
            random.normal(size=NEURONS).astype(np.float16),
            1.5,
        )
        for layer in range(LAYERS)
    ]
    given = [None if layer == dense_layer else one for layer, one in enumerate(predictors)]
    chunks = random.integers(0, 256, (3, 12)).astype(np.int32)
    k, told = 3, []
    found = judging.judge_predictors(checkpoint, given, chunks, k, 4, lambda *said: told.append(said))
    ways = LAYERS * 4  # every text goes four ways through each layer
    assert told == [("judging", done * 3, ways * 3) for done in range(1, ways + 1)] and found.tokens == 36

    everything = set(range(NEURONS))
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]

    def p(layer, x):
        return everything if given[layer] is None else set(predict_active(x, given[layer]).tolist())

    def windowed(layer, x, history):
        history.append(p(layer, x))
        return set().union(*history[-k:])

    ways = {
        "dense": lambda layer, x, history: everything,
        "exact": lambda layer, x, history: set(active_neurons(x, ffns[layer]).tolist()),
        "predicted": lambda layer, x, history: p(layer, x),
        "resident": windowed,
    }
    for name, chosen in ways.items():
        expected = slow_perplexity(checkpoint, chunks.reshape(-1).tolist(), 12, chosen)
        assert getattr(found.perplexities, name) == pytest.approx(expected, rel=ROUNDINGS), name
    assert found.perplexities.exact == found.perplexities.dense
    assert len({round(value, 3) for value in found.perplexities}) == 3  # the others differ

    seen = [slow_sets(checkpoint, predictors, chunk.tolist()) for chunk in chunks]
    for layer, judged in enumerate(found.layers):
        pairs = [pair for chunk in seen for pair in chunk[layer]]
        active = sum(len(a) for a, _ in pairs)
        if layer == dense_layer:
            assert judged == (ErrorCounts(active, 36 * NEURONS - active, 0, 36 * NEURONS - active), None)
            continue
        missed, extra = sum(len(a - s) for a, s in pairs), sum(len(s - a) for a, s in pairs)
        assert judged.errors == (active, 36 * NEURONS - active, missed, extra)
        sizes = [
            len(set().union(*(s for _, s in chunk[layer][max(0, t - k + 1) : t + 1])))
            for chunk in seen
            for t in range(12)
        ]
        assert (judged.residency.kept[k - 1], judged.residency.largest[k - 1]) == (sum(sizes), max(sizes))
        assert len(judged.residency.kept) == 4 and judged.residency.tokens == 36
    total = judging.total_errors(given, found.layers)
    assert total.active == sum(v.errors.active for i, v in enumerate(found.layers) if i != dense_layer)

    (one,) = judging.sweep_thresholds(checkpoint, given, chunks, k, [1.5])
    kept = [v.residency.kept[k - 1] for v in found.layers if v.residency]
    assert one.errors == total and one.threshold == 1.5
    assert one.resident_share == sum(kept) / len(kept) / 36 / NEURONS


@pytest.mark.ci
def test_the_perplexities_are_those_of_a_run_from_flash_with_memory_for_all(small, train):
    """`flashref run` measures them token by token in NumPy; with every row in memory they are the same."""
    text = TEXT[: 2 * CONTEXT].encode()
    folder = small / "model"
    write_family(folder, "opt", "F16")
    assert train(folder, "--text", small / "text", *QUICK, "--threshold", "0.6").code == 0
    predictors = load_predictors(folder / "predictors.safetensors", LAYERS, NEURONS, WIDTH)
    opened = open_packed(folder, capacities=(NEURONS, NEURONS), window=3)
    flash = measure_perplexities(list(text), opened.decoder, opened.ffns, lambda *_: None)
    chunks = np.frombuffer(text, np.uint8).astype(np.int32).reshape(2, CONTEXT)
    found = judging.judge_predictors(open_checkpoint(folder), predictors.layers, chunks, 3, 5).perplexities
    assert (found.dense, found.resident) == pytest.approx((flash.dense, flash.flash), rel=ROUNDINGS)
    assert found.dense != found.resident != found.predicted
