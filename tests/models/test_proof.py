"""The proof of a run: it holds for a true one, and every kind of lie is found out; errors are counted."""

import numpy as np
import pytest
from proven_runs import COUNT, PROMPT, Recorder, decode
from random_models import DEVICE, LAYERS, NEURONS, WIDTH, open_packed, random_weights, write_model

from flashref import bundle_layout, pack_bundles, same
from flashref.decode import decode_layer, sum_predicted, sum_resident
from flashref.ffn import dense_ffn
from flashref.models import decoding
from flashref.models.decoding import decode_dense, flash_ffn
from flashref.models.generate import generate, greedy, sampler
from flashref.models.model import one_at_a_time
from flashref.models.perplexity import measure_perplexities, perplexity
from flashref.models.proof import Proof
from flashref.models.text import TextRequest
from flashref.storage.readers import memory_reader
from flashref.types import FFN, Extent, Read

LONG = 2 * len(PROMPT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_weights(rank=6))


@pytest.mark.parametrize("semantics", [sum_resident, sum_predicted])
@pytest.mark.parametrize("predictor", ["trained", "exact"])
@pytest.mark.parametrize("capacities", [(NEURONS, NEURONS), (9, 3), (0, 0)])
def test_a_true_run_is_proven(folder, semantics, predictor, capacities):
    opened = open_packed(folder, capacities, 3, predictor, semantics)
    decoded, proof = decode(opened, exact=predictor == "exact")
    assert proof.failure is None
    assert proof.steps == LAYERS * (len(PROMPT) - 1 + COUNT)
    assert len(decoded.new_ids) == COUNT and decoded.record.first_counted == len(PROMPT) - 1
    dense = decode_dense(opened.decoder.model, TextRequest(tuple(PROMPT), COUNT), opened.ffns)
    if predictor == "exact":
        assert decoded.new_ids == dense
        assert decoded.errors.false_negatives == decoded.errors.false_positives == 0
    else:
        assert decoded.errors.false_negatives > 0 and decoded.errors.false_positives > 0


@pytest.mark.parametrize(
    ("capacities", "window"), [((48, 48), 4), ((20, 14), 3), ((12, 7), 4), ((3, 0), 2), ((9, 9), 1)]
)
def test_overflows_and_bypass_against_plain_sets(folder, capacities, window):
    opened = open_packed(folder, capacities, window)
    decoded, proof = decode(opened)
    overflows = bypassed = 0
    for layer, capacity in enumerate(capacities):
        kept = []  # (token, its kept set), of the tokens that are still in the window
        for token, layers in enumerate(decoded.record.predicted):
            predicted = set(layers[layer].tolist())
            there = set().union(*(ids for _, ids in kept))
            kept = [(t, ids) for t, ids in kept if t > token - window]
            did_not_fit = len(predicted) > capacity
            while kept and len(predicted.union(*(ids for _, ids in kept))) > capacity:
                kept.pop(0)
                did_not_fit = True
            chosen = sorted(predicted & there)[:capacity]
            chosen += sorted(predicted - there)[: capacity - len(chosen)]
            kept.append((token, set(chosen)))
            overflows += did_not_fit
            bypassed += len(predicted) - len(chosen)
            step = proof.passes[token][layer][1]
            assert set(step.resident.tolist()) == set().union(*(ids for _, ids in kept))
    assert (decoded.account.overflows, proof.overflows, proof.bypassed) == (overflows, overflows, bypassed)
    assert (overflows > 0) == (capacities != (48, 48))
    assert (bypassed > 0) == (capacities not in ((48, 48), (20, 14)))


def test_errors_of_a_predictor_are_pooled_over_tokens_and_layers(folder):
    opened = open_packed(folder)
    decoded, proof = decode(opened)
    counts = np.zeros(4, int)
    for layers in proof.passes:
        for ffn, (x, step) in zip(opened.ffns, layers, strict=True):
            z = ffn.up.astype(np.float64) @ x + ffn.up_bias
            active, predicted = set(np.flatnonzero(z > 0).tolist()), set(step.predicted.tolist())
            inactive = set(range(NEURONS)) - active
            counts += [len(active), len(inactive), len(active - predicted), len(predicted & inactive)]
    assert decoded.errors == tuple(counts.tolist())
    assert decoded.errors.false_negative_rate == counts[2] / counts[0] > 0
    assert decoded.errors.false_positive_rate == counts[3] / counts[1] > 0


def test_one_flipped_bit_is_found_out(folder):
    opened = open_packed(folder)
    unchecked = tuple(layer._replace(checksums=None) for layer in opened.decoder.layers)
    reads = []

    def flipping(extents):
        result = opened.decoder.read(extents)
        reads.append(extents)
        if len(reads) != 12:
            return result
        buffers = [buffer.copy() for buffer in result.buffers]
        buffers[-1][17] ^= 4
        return Read(tuple(buffers), result.nanoseconds)

    _, proof = decode(opened, opened.decoder._replace(layers=unchecked, read=flipping))
    assert len(reads) > 12
    last = reads[11][-1]
    assert proof.failure == f"the {last.length} bytes at {last.offset} are not the checkpoint's"
    _, proof = decode(opened, opened.decoder._replace(layers=unchecked))
    assert proof.failure is None


def test_a_flipped_bit_of_padding_counts_too():
    # 3 bundles of 2 · 3 · 4 = 24 bytes, stride 32, in blocks of 64: half of the last is nobody's.
    weights = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
    ffn = FFN("relu", weights, -weights)
    device, order = DEVICE._replace(block=64), np.array([2, 0, 1])
    for of in (None, order):
        layout = bundle_layout(3, 3, "F32", block=64, start=64, order=of)
        image = np.zeros(192, np.uint8)
        image[64:160] = pack_bundles(layout, {"up": weights, "down": -weights})
        for changed in (None, *range(64, 192)):
            stored = image.copy()
            if changed is not None:
                stored[changed] ^= 1
            proof = Proof([ffn], None, sum_resident, exact=False)
            read = proof.checking_reader(memory_reader(stored, device), [layout], [ffn])
            read((Extent(64, 128),))
            assert (proof.failure is not None) == (changed is not None and changed < 160)
        proof = Proof([ffn], None, sum_resident, exact=False)
        proof.checking_reader(memory_reader(image, device), [layout], [ffn])((Extent(0, 64),))
        assert proof.failure == "the 64 bytes at 0 are not the checkpoint's"  # of no layer at all


@pytest.mark.parametrize(
    "lie", [{"window": 4}, {"window": 2}, {"capacities": (8, 20)}, {"capacities": (20, 48)}]
)
def test_a_window_that_keeps_other_tokens_or_rows_is_found_out(folder, lie):
    truth = {"capacities": (20, 14), "window": 3}
    opened = open_packed(folder, **truth)
    _, proof = decode(opened)
    assert proof.failure is None and proof.overflows > 0
    _, proof = decode(opened, open_packed(folder, **(truth | lie)).decoder)
    assert "the resident set is not what the window keeps" in proof.failure


def changed_step(monkeypatch, change, at=8):
    """decode_layer, whose answer is changed in one step."""
    steps = []

    def lying(*arguments):
        steps.append(decode_layer(*arguments))
        y, state, step = steps[-1]
        return change(y, state, step) if len(steps) == at else steps[-1]

    monkeypatch.setattr(decoding, "decode_layer", lying)


def test_a_resident_set_with_one_neuron_more_or_less_is_found_out(folder, monkeypatch):
    opened = open_packed(folder)
    for change in (lambda ids: ids[1:], lambda ids: np.union1d(ids, NEURONS - 1 - np.arange(NEURONS))):
        changed_step(
            monkeypatch, lambda y, state, step, c=change: (y, state, step._replace(resident=c(step.resident)))
        )
        _, proof = decode(opened)
        assert proof.failure.startswith("layer 1: the resident set")  # the eighth step


def test_one_bit_of_the_output_is_found_out(folder, monkeypatch):
    def change(y, state, step):
        y = y.copy()
        y[5] = np.nextafter(y[5], np.float32(np.inf))
        return y, state, step

    changed_step(monkeypatch, change)
    _, proof = decode(open_packed(folder))
    assert proof.failure == "layer 1: the output differs from what the definition gives in memory"


@pytest.mark.parametrize("exact", [True, False])
def test_a_neuron_that_is_left_out_of_the_sum_is_found_out(folder, exact):
    opened = open_packed(folder, predictor="exact", semantics=sum_predicted)
    _, proof = decode(
        opened, opened.decoder._replace(semantics=lambda predicted, in_dram: predicted[1:]), exact
    )
    assert "the output differs" in proof.failure


@pytest.mark.parametrize(("told", "done"), [(sum_resident, sum_predicted), (sum_predicted, sum_resident)])
def test_other_semantics_than_it_says_are_found_out(folder, told, done):
    opened = open_packed(folder, semantics=told)
    _, proof = decode(opened, opened.decoder._replace(semantics=done))
    assert "the output differs" in proof.failure


def test_a_predictor_that_claims_to_be_exact_is_found_out(folder):
    _, proof = decode(open_packed(folder), exact=True)
    assert "the output differs" in proof.failure


def test_the_first_failure_stays(folder):
    opened = open_packed(folder)
    decoder = open_packed(folder, window=1).decoder
    _, proof = decode(opened, decoder)
    first = proof.failure
    proof.checking_reader(opened.decoder.read, [], [])((Extent(0, 4096),))  # of no layer: it fails, too
    assert proof.failure == first is not None


def test_cold_empties_the_windows_before_the_first_new_token(folder):
    opened = open_packed(folder, (NEURONS, NEURONS), semantics=sum_predicted)
    warm, warm_proof = decode(opened)
    cold, cold_proof = decode(opened, cold=True)
    assert warm_proof.failure is cold_proof.failure is None
    # With predicted semantics no window can change the text; the trace begins with the first counted pass.
    assert cold.new_ids == warm.new_ids
    assert (cold.record.first_counted, len(cold.record.predicted)) == (0, COUNT)
    for recorded, due in zip(cold.record.predicted, warm.record.predicted[len(PROMPT) - 1 :], strict=True):
        assert same(tuple(recorded), tuple(due))
    first = len(PROMPT) - 1
    for _, step in cold_proof.passes[first]:
        assert same(step.resident, step.load) and same(step.load, step.predicted)
    assert any(len(step.resident) > len(step.predicted) for _, step in warm_proof.passes[first])
    assert cold.errors == warm.errors


def test_windows_that_are_emptied_unasked_are_found_out(folder):
    opened = open_packed(folder, (NEURONS, NEURONS))
    proof = Proof(opened.ffns, opened.budget, sum_resident, exact=False)
    observe = proof.observer()
    emptied = iter([flash_ffn(opened.decoder, observe) for _ in range(2)])
    feed_forward, passes = next(emptied), []

    def forward(token_id):
        nonlocal feed_forward
        if len(passes) == 5:
            feed_forward = next(emptied)
        passes.append(token_id)
        return forward_one(token_id)

    forward_one = one_at_a_time(opened.decoder.model, lambda layer, x: feed_forward(layer, x))
    list(generate(forward, PROMPT, COUNT, greedy, context=64, vocabulary=256))
    assert "the resident set" in proof.failure


def test_the_dense_text_is_that_of_dense_ffns(folder):
    opened = open_packed(folder)
    forward = one_at_a_time(opened.decoder.model, lambda layer, x: dense_ffn(x, opened.ffns[layer]))
    choose, expected = sampler(1.5, 4), []
    for token_id in PROMPT:
        logits = forward(token_id)
    for _ in range(COUNT):
        expected.append(choose(logits))
        logits = forward(expected[-1])
    request = TextRequest(tuple(PROMPT), COUNT, temperature=1.5, seed=4)
    assert decode_dense(opened.decoder.model, request, opened.ffns) == tuple(expected)


def test_perplexities_are_teacher_forced_with_empty_windows_a_chunk(folder):
    opened = open_packed(folder, (NEURONS, NEURONS), semantics=sum_resident)
    text_ids = np.random.default_rng(0).integers(0, 256, 80).tolist()  # a context of 64, and 16 more
    proof = Recorder(opened.ffns, opened.budget, sum_resident, exact=False)
    seen = []
    found = measure_perplexities(
        text_ids, opened.decoder, opened.ffns, lambda *a: seen.append(a), proof.observer
    )
    assert proof.failure is None
    assert len(proof.passes) == 63 + 15
    assert seen[-1] == ("perplexity", 2 * (63 + 15), 160)
    for first in (0, 63):
        assert all(same(step.resident, step.predicted) for _, step in proof.passes[first])
    dense = perplexity(
        text_ids,
        64,
        lambda: one_at_a_time(opened.decoder.model, lambda layer, x: dense_ffn(x, opened.ffns[layer])),
    )
    assert found.dense == dense.perplexity != found.flash
    exact = open_packed(folder, (5, 5), predictor="exact")
    proof = Proof(exact.ffns, exact.budget, sum_resident, exact=True)
    found = measure_perplexities(text_ids, exact.decoder, exact.ffns, lambda *a: None, proof.observer)
    assert proof.failure is None and found.dense == found.flash == dense.perplexity


def test_the_width_of_the_model_is_what_the_layers_get(folder):
    opened = open_packed(folder, (7, 9), window=2)
    for layer, state in enumerate(opened.decoder.layers):
        resident = opened.decoder.model.ffns[layer]
        assert state.window.k == 2 and state.window.capacity == (7, 9)[layer]
        assert state.matrix.shape == ((7, 9)[layer], 2, WIDTH) and state.bypass_rows == 3
        assert same(state.resident, resident) and resident.up_bias is not None
        assert same(state.checksums, opened.image.checksums[layer][0]) and state.max_gap == 0
        assert same(state.layout, opened.layouts[layer])
