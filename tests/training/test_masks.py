"""Masks of neurons against the definitions: truly active, predicted, and resident in a window."""

import hurried_jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_ffns import random_ffn

from flashref.ffn import active_neurons
from flashref.training.judging import residency
from flashref.training.masks import WindowedPredictor, predicted, resident, truly_active, widened
from flashref.types import FFN, Predictor

hurried = hurried_jax.hurried


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
