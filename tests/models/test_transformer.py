"""One token at a time: OPT against an evaluation of the whole text at once; generation; perplexity."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import CONFIG, CONTEXT, HEADS, VOCABULARY, WIDTH, random_weights, write_checkpoint
from random_models import write_family
from scipy.special import erf

import flashref
from flashref import same
from flashref.models import model as model_module
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.config import parse_config
from flashref.models.generate import (
    check_ids,
    generate,
    greedy,
    sampler,
)
from flashref.models.model import empty_cache, forward, load_model, one_at_a_time
from flashref.models.perplexity import perplexity
from flashref.models.tokens import decode_bytes, encode_bytes
from flashref.types import DomainError, ShapeError

TINY = Path(flashref.__file__).parent / "data" / "tiny"
ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "relu2": lambda z: np.maximum(z, 0) ** 2,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu": lambda z: z * (1 + erf(z / math.sqrt(2))) / 2,
    "gelu_new": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}
FFN_ACTIVATIONS = {  # by the FFN's names, with FATReLU's tau
    "relu": lambda z, tau: ACTIVATIONS["relu"](z),
    "squared_relu": lambda z, tau: ACTIVATIONS["relu2"](z),
    "fatrelu": lambda z, tau: np.where(z > tau, z, 0),
    "silu": lambda z, tau: ACTIVATIONS["silu"](z),
    "gelu_erf": lambda z, tau: ACTIVATIONS["gelu"](z),
    "gelu_tanh": lambda z, tau: ACTIVATIONS["gelu_new"](z),
}

# How close two ways to compute the logits of these small models are, as a share of the largest logit: at most
# 4 roundings of float32 and 17 of float64 were seen.
CLOSE_IN_FLOAT32, CLOSE_IN_FLOAT64 = 16 * 2.0**-24, 64 * 2.0**-53
FLOAT64_ROUNDINGS = 32 * 2.0**-53  # more than the logarithms, exponentials and sums of a hand-worked case


def plain_ffn(tensors, activation="relu"):
    """A feed-forward straight from the checkpoint's tensors, in the dtype of what it gets."""

    def feed_forward(layer, x):
        names = {part: f"model.decoder.layers.{layer}.{part}" for part in ("fc1", "fc2")}
        up, down = (tensors[f"{name}.weight"].astype(x.dtype) for name in names.values())
        up_bias, down_bias = (tensors.get(f"{name}.bias", np.zeros(1, x.dtype)) for name in names.values())
        h = ACTIVATIONS[activation]((up @ x + up_bias).astype(np.float64))
        return (down @ h + down_bias).astype(x.dtype)

    return feed_forward


def plain_ffns(ffns):
    """The same of FFNs as they are loaded, gated or not."""

    def feed_forward(layer, x):
        ffn = ffns[layer]
        up, down, gate, up_bias, gate_bias, down_bias = (
            None if array is None else flashref.types.widen(array).astype(x.dtype) for array in ffn[1:7]
        )
        pre = up @ x if up_bias is None else up @ x + up_bias
        if gate is None:
            h = FFN_ACTIVATIONS[ffn.activation](pre, ffn.tau)
        else:
            gate_pre = gate @ x if gate_bias is None else gate @ x + gate_bias
            h = FFN_ACTIVATIONS[ffn.activation](gate_pre, ffn.tau) * pre
        y = down.T @ h
        return (y if down_bias is None else y + down_bias).astype(x.dtype)

    return feed_forward


def whole_text_logits(tensors, ids, activation="relu"):
    """The definition for all tokens at once, in float64: a mask instead of a cache. (tokens, vocabulary)."""
    wide = {name.removeprefix("model.decoder."): array.astype(np.float64) for name, array in tensors.items()}

    def linear(name, x):
        return x @ wide[f"{name}.weight"].T + wide.get(f"{name}.bias", 0)

    def norm(name, x):
        deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        return (x - x.mean(axis=1, keepdims=True)) / deviation * wide.get(f"{name}.weight", 1) + wide.get(
            f"{name}.bias", 0
        )

    count, size = len(ids), WIDTH // HEADS
    x = wide["embed_tokens.weight"][ids] + wide["embed_positions.weight"][2 : count + 2]
    for layer in range(CONFIG["num_hidden_layers"]):
        name = f"layers.{layer}"
        normed = norm(f"{name}.self_attn_layer_norm", x)
        query, key, value = (
            linear(f"{name}.self_attn.{which}_proj", normed).reshape(count, HEADS, size) for which in "qkv"
        )
        scores = np.einsum("thi,shi->hts", query, key) / math.sqrt(size)
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights = scores / scores.sum(axis=2, keepdims=True)
        mixed = np.einsum("hts,shi->thi", weights, value).reshape(count, WIDTH)
        x = x + linear(f"{name}.self_attn.out_proj", mixed)
        h = ACTIVATIONS[activation](linear(f"{name}.fc1", norm(f"{name}.final_layer_norm", x)))
        x = x + linear(f"{name}.fc2", h)
    if "final_layer_norm.weight" in wide:
        x = norm("final_layer_norm", x)
    return x @ wide.get("lm_head.weight", wide["embed_tokens.weight"]).T


def model_of(tensors, dtype=np.float32, **config):
    """The model straight from arrays, as it could come out of an image."""
    text = json.dumps(CONFIG | config)
    return load_model(parse_config(text), tensors.__getitem__, dtype)


def all_logits(model, ids, feed_forward):
    forward_one = one_at_a_time(model, feed_forward)
    return np.stack([forward_one(token_id) for token_id in ids])


IDS = [3, 0, 6, 3]


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_token_by_token_equals_the_whole_text_at_once(activation):
    tensors = random_weights(seed=1)
    feed_forward = plain_ffn(tensors, activation)
    expected = whole_text_logits(tensors, IDS, activation)
    size = np.abs(expected).max()
    double = all_logits(model_of(tensors, np.float64, activation_function=activation), IDS, feed_forward)
    assert double.dtype == np.float64 and np.abs(double - expected).max() < CLOSE_IN_FLOAT64 * size
    single = all_logits(model_of(tensors, activation_function=activation), IDS, feed_forward)
    assert single.dtype == np.float32 and np.abs(single - expected).max() < CLOSE_IN_FLOAT32 * size


def test_scores_whose_exponential_overflows():
    tensors = random_weights(seed=7)
    for layer in range(2):
        tensors[f"model.decoder.layers.{layer}.self_attn.q_proj.weight"] *= 1000
    got = all_logits(model_of(tensors, np.float64), IDS, plain_ffn(tensors))
    expected = whole_text_logits(tensors, IDS)
    assert np.abs(got - expected).max() < CLOSE_IN_FLOAT64 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_parts_that_a_model_may_lack(tied, final_norm, norms, biases):
    tensors = random_weights(2, "F32", biases, norms, final_norm, tied)
    if final_norm and not norms:
        tensors["model.decoder.final_layer_norm.weight"] = np.ones(WIDTH)  # makes the definition normalise
    config = {
        "enable_bias": biases,
        "layer_norm_elementwise_affine": norms,
        "_remove_final_layer_norm": not final_norm,
        "tie_word_embeddings": tied,
    }
    got = all_logits(model_of(tensors, np.float64, **config), IDS, plain_ffn(tensors))
    expected = whole_text_logits(tensors, IDS)
    assert np.abs(got - expected).max() < CLOSE_IN_FLOAT64 * np.abs(expected).max()


def test_a_case_worked_by_hand():
    # d 2, one head, no weights in the way: identity maps, zero biases, an FFN that gives (1, 0).
    # Token 0 is (3, 1), its position (0, 0): x = (3, 1), normalised (1, −1) up to the epsilon of 1e-5.
    # Attention to itself alone gives (1, −1): x = (4, 0). The FFN gets (1, −1), so x = (5, 0).
    # The tokens are (3, 1) and (0, 2), so the logits are 15 and 0.
    tensors = {
        "model.decoder.embed_tokens.weight": np.array([[3, 1], [0, 2]], np.float32),
        "model.decoder.embed_positions.weight": np.array([[9, 9], [9, 9], [0, 0], [1, 0]], np.float32),
    }
    for which in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tensors[f"model.decoder.layers.0.self_attn.{which}.weight"] = np.eye(2, dtype=np.float32)
    config = parse_config(
        json.dumps(
            CONFIG
            | {
                "num_hidden_layers": 1,
                "hidden_size": 2,
                "word_embed_proj_dim": 2,
                "num_attention_heads": 1,
                "max_position_embeddings": 2,
                "vocab_size": 2,
                "enable_bias": False,
                "layer_norm_elementwise_affine": False,
                "_remove_final_layer_norm": True,
            }
        )
    )
    model = load_model(config, tensors.__getitem__)
    seen = []

    def feed_forward(layer, x):
        seen.append((layer, x))
        return np.array([1, 0], np.float32)

    logits, cache = forward(model, empty_cache(model), 0, feed_forward)
    shrunk = 1 / math.sqrt(1 + 1e-5)  # the variance is 1
    np.testing.assert_allclose(logits, [3 * (4 + shrunk) + (1 - shrunk), 2 * (1 - shrunk)], atol=2e-6)
    x = np.array([3 + shrunk, 1 - shrunk])
    deviation = math.sqrt(x.var() + 1e-5)
    np.testing.assert_allclose(seen[0][1], (x - x.mean()) / deviation, atol=1e-6)
    assert seen[0][0] == 0 and seen[0][1].dtype == np.float32
    # Token 1 at position 1: x = (0, 2) + (1, 0) = (1, 2), of variance 1/4, normalised (−s, s).
    # Scores against (1, −1) and itself: −2 s / √2 and 2 s² / √2, values those very vectors.
    s = 0.5 / math.sqrt(0.25 + 1e-5)
    scores = np.array([-2 * s * shrunk, 2 * s * s]) / math.sqrt(2)
    first = np.exp(scores[0]) / np.exp(scores).sum()
    mixed = first * np.array([shrunk, -shrunk]) + (1 - first) * np.array([-s, s])
    x = np.array([1, 2]) + mixed + np.array([1, 0])
    logits, _ = forward(model, cache, 1, feed_forward)
    np.testing.assert_allclose(logits, [3 * x[0] + x[1], 2 * x[1]], atol=2e-6)


def test_the_cache_grows_by_one_and_runs_repeat_bit_for_bit():
    tensors = random_weights(seed=3)
    model, feed_forward = model_of(tensors), plain_ffn(tensors)
    assert same(all_logits(model, IDS, feed_forward), all_logits(model, IDS, feed_forward))
    cache = empty_cache(model)
    for step, token_id in enumerate(IDS):
        assert cache.length == step
        _, cache = forward(model, cache, token_id, feed_forward)
        assert np.all(cache.keys[:, :, : step + 1].any(axis=3)) and not cache.keys[:, :, step + 1 :].any()
    with pytest.raises(DomainError, match=f"room for {CONTEXT} tokens of a context of {CONTEXT};"):
        forward(model, cache, 0, feed_forward)


def test_a_cache_has_room_for_what_was_asked_and_no_more_than_the_context():
    tensors = random_weights(seed=3)
    model, feed_forward = model_of(tensors), plain_ffn(tensors)
    whole, few = empty_cache(model), empty_cache(model, 2)
    shapes = [cache.keys.shape[2] for cache in (whole, few, empty_cache(model, CONTEXT + 1))]
    assert shapes == [CONTEXT, 2, CONTEXT] and few.values.shape == few.keys.shape
    for token_id in IDS[:2]:
        (expected, whole), (found, few) = (
            forward(model, cache, token_id, feed_forward) for cache in (whole, few)
        )
        assert same(expected, found)
    with pytest.raises(DomainError, match=f"it has room for 2 tokens of a context of {CONTEXT}; begin again"):
        forward(model, few, 0, feed_forward)
    forward_one = one_at_a_time(model, feed_forward, 1)
    forward_one(IDS[0])
    with pytest.raises(DomainError, match="it has room for 1 tokens"):
        forward_one(IDS[0])


def test_a_spent_cache_is_refused_but_a_failed_token_may_be_tried_again():
    tensors = random_weights(seed=4)
    model, feed_forward = model_of(tensors), plain_ffn(tensors)

    def failing(layer, x):
        if layer == 1:
            raise OSError("the disk went away")
        return feed_forward(layer, x)

    cache = empty_cache(model)
    _, second = forward(model, cache, IDS[0], feed_forward)
    with pytest.raises(DomainError, match="passed on already"):
        forward(model, cache, IDS[0], feed_forward)
    with pytest.raises(OSError, match="went away"):
        forward(model, second, 5, failing)
    logits, _ = forward(model, second, IDS[1], feed_forward)
    assert same(logits, all_logits(model, IDS[:2], feed_forward)[1])


def test_the_ffn_gets_vectors_of_its_own_and_the_weights_stay():
    tensors = random_weights(seed=5)
    copies = {name: array.copy() for name, array in tensors.items()}
    model, plain = model_of(tensors), plain_ffn(tensors)
    expected = all_logits(model, IDS, plain)
    seen = []

    def spoiling(layer, x):
        seen.append(layer)
        y = plain(layer, x)
        x[:] = np.nan
        return y

    assert same(all_logits(model, IDS, spoiling), expected)
    assert seen == [0, 1] * len(IDS)
    assert all(same(tensors[name], copies[name]) for name in copies)


@pytest.mark.parametrize("wrong", [np.zeros(WIDTH), np.zeros(WIDTH + 1, np.float32), np.float32(0)])
def test_an_ffn_of_another_shape_or_dtype_is_refused(wrong):
    model = model_of(random_weights())
    with pytest.raises(ShapeError, match="the FFN must give float32"):
        forward(model, empty_cache(model), 0, lambda layer, x: wrong)


@pytest.mark.parametrize("token_id", [-1, VOCABULARY])
def test_ids_outside_the_vocabulary_are_refused(token_id):
    model = model_of(random_weights())
    with pytest.raises(DomainError, match="outside the vocabulary"):
        forward(model, empty_cache(model), token_id, lambda layer, x: x)
    with pytest.raises(DomainError, match=rf"token id {token_id} is outside the vocabulary; use 0 … 6"):
        check_ids([0, token_id], VOCABULARY)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_from_files_is_the_model_of_their_values(tmp_path, dtype, shards):
    stored = random_weights(6, dtype)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, stored, shards))
    asked = []

    def load(name):
        asked.append(name)
        return load_tensor(checkpoint, name)

    model = load_model(checkpoint.config, load)
    assert sorted(asked) == sorted(name for name in stored if not name.endswith(("fc1.weight", "fc2.weight")))
    widened = {name: flashref.types.widen(array) for name, array in stored.items()}
    ffns = [load_ffn(checkpoint, layer) for layer in range(2)]
    for resident, ffn in zip(model.ffns, ffns, strict=True):
        assert same(resident.up_bias, ffn.up_bias) and same(resident.down_bias, ffn.down_bias)
        assert resident.gate is None and resident.gate_bias is None
    got = all_logits(model, IDS, lambda layer, x: flashref.ffn.dense_ffn(x, ffns[layer]))
    expected = whole_text_logits(widened, IDS)
    assert np.abs(got - expected).max() < CLOSE_IN_FLOAT32 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("opt", {}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
        ("opt", {"word_embed_proj_dim": 8, "tie_word_embeddings": False}),
        ("falcon", {"alibi": True, "new_decoder_architecture": False, "parallel_attn": False, "bias": True}),
        ("persimmon", {}),
        ("phi", {"qk_layernorm": True}),
        ("llama", {}),
    ],
)
def test_weights_that_stay_as_they_are_stored_give_the_same_logits(
    tmp_path, monkeypatch, family, config, dtype
):
    monkeypatch.setattr(model_module, "HEAD_ROWS", 85)  # of 256: in three pieces, and a row
    checkpoint = open_checkpoint(write_family(tmp_path, family, dtype, **config))
    load = partial(load_tensor, checkpoint)
    feed_forward = plain_ffns([load_ffn(checkpoint, layer) for layer in range(checkpoint.config.layers)])
    stored, wide = (load_model(checkpoint.config, load, dtype) for dtype in (None, np.float32))
    assert stored.ends.tokens.dtype == {"F16": np.float16, "BF16": np.uint16}[dtype]
    ids = [3, 200, 255, 3]
    expected, rows = all_logits(wide, ids, feed_forward), []

    def widen(array):
        rows.append(len(array) if array.ndim == 2 else 1)
        return flashref.types.widen(array)

    monkeypatch.setattr(model_module, "widen", widen)
    found = all_logits(stored, ids, feed_forward)
    assert max(rows) == 85  # never a whole head
    assert found.dtype == np.float32 and found.shape == (4, 256)
    assert np.abs(found - expected).max() < CLOSE_IN_FLOAT32 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("opt", {}),
        ("opt", {"enable_bias": False}),
        ("falcon", {"bias": True}),
        ("persimmon", {}),
        ("phi", {"activation_name": "gelu_new"}),
        ("llama", {"mlp_bias": True, "activation_name": "fatrelu", "hidden_act_param": 0.25}),
    ],
)
def test_what_of_an_ffn_is_resident_is_the_checkpoints(tmp_path, family, config):
    checkpoint = open_checkpoint(write_family(tmp_path, family, "BF16", **config))
    model = load_model(checkpoint.config, partial(load_tensor, checkpoint))
    for layer, resident in enumerate(model.ffns):
        ffn = load_ffn(checkpoint, layer)
        for part in ("activation", "up_bias", "gate_bias", "down_bias", "tau"):
            assert same(getattr(resident, part), getattr(ffn, part))
        assert resident.gate is None and (family != "llama" or resident.gate_bias is not None)


def test_heads_in_groups_are_heads_with_repeated_keys_and_values(tmp_path):
    # Falcon's fused map and ALiBi: 6 heads of 4 in 2 groups, as query, key and value of each head in turn.
    config = {"hidden_size": 24, "num_attention_heads": 6, "alibi": True}
    folder = write_family(tmp_path / "2", "falcon", **config)
    grouped = open_checkpoint(folder)
    tensors = {name: load_tensor(grouped, name) for name in grouped.tensors}
    text = json.loads(grouped.config_text) | {"num_kv_heads": 6}
    repeated = dict(tensors)
    for name in [name for name in tensors if "query_key_value" in name]:
        groups = tensors[name].reshape(2, 3 + 2, 4, 24)
        heads = [np.stack([group[query], *group[3:]]) for group in groups for query in range(3)]
        repeated[name] = np.concatenate(heads).reshape(-1, 24)
    feed_forward = plain_ffns([load_ffn(grouped, layer) for layer in range(grouped.config.layers)])
    found, expected = (
        all_logits(load_model(config, values.__getitem__, np.float64), [3, 200, 255, 3], feed_forward)
        for config, values in (
            (grouped.config, tensors),
            (parse_config(json.dumps(text)), repeated),
        )
    )
    assert np.abs(found - expected).max() < CLOSE_IN_FLOAT64 * np.abs(expected).max()


def test_the_shipped_model_loads_and_foresees_its_own_text():
    checkpoint = open_checkpoint(TINY)
    config = checkpoint.config
    model = load_model(config, partial(load_tensor, checkpoint))
    ffns = [load_ffn(checkpoint, layer) for layer in range(config.layers)]
    tensors = {name: load_tensor(checkpoint, name) for name in checkpoint.tensors}
    assert [ffn.up.shape for ffn in ffns] == [(config.neurons, config.width)] * config.layers
    text = (TINY / "held_out.txt").read_bytes()[:256]
    wide = {name: flashref.types.widen(array) for name, array in tensors.items()}
    found = perplexity(text, config.context, lambda: one_at_a_time(model, plain_ffn(wide)))
    assert found.tokens == 254 and found.nats < 2  # chance is ln 256 = 5.5


def test_greedy_takes_the_lowest_of_equals():
    assert greedy(np.array([1, 3, 2, 3], np.float32)) == 1
    assert greedy(np.array([-2, -2], np.float32)) == 0
    assert type(greedy(np.zeros(3, np.float32))) is int


def test_a_seed_repeats_and_temperature_0_is_greedy():
    logits = np.array([0, 1, 2, 2, -9], np.float32)
    draws = [[choose(logits) for _ in range(50)] for choose in (sampler(1.3, 7), sampler(1.3, 7))]
    assert draws[0] == draws[1] != [sampler(1.3, 8)(logits) for _ in range(50)]
    assert type(draws[0][0]) is int
    for cold in (0, 1e-320, 1e-6):
        assert sampler(cold, 0)(np.array([0, 1, 2, 1], np.float32)) == 2
    assert sampler(1, 0)(np.array([0, -np.float32(3e38)], np.float32)) == 0
    for temperature in (-1, math.nan, math.inf):
        with pytest.raises(DomainError, match="temperature must be"):
            sampler(temperature, 0)
    with pytest.raises(DomainError, match="seed must be"):
        sampler(1, -1)


@pytest.mark.parametrize(("uniform", "token_id"), [(0.0, 1), (0.5, 2), (1 - 2**-53, 2)])
def test_a_token_of_no_weight_is_never_drawn(monkeypatch, uniform, token_id):
    class Fixed:
        def random(self):
            return uniform

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Fixed())
    assert sampler(1, 0)(np.array([-2000, 0, 0, -2000], np.float32)) == token_id


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_sampler_follows_softmax(temperature):
    # Pearson's statistic of k = 5 kinds is about chi-square with 4 degrees of freedom, whose upper tail
    # is exp(−t/2)(1 + t/2): 1.0e-6 at t = 33.4. The seed is fixed, so the test cannot flicker.
    logits = np.array([0, 1, 2, 0.5, -1], np.float32)
    expected = np.exp(logits.astype(np.float64) / temperature)
    expected *= 20_000 / expected.sum()
    choose = sampler(temperature, 12)
    counts = np.bincount([choose(logits) for _ in range(20_000)], minlength=5)
    assert expected.min() > 5 and ((counts - expected) ** 2 / expected).sum() < 33.4


def counting_model(vocabulary=7):
    """A model that foresees the next id after the newest, and the tokens that it was given."""
    given = []

    def forward_one(token_id):
        given.append(token_id)
        return np.eye(vocabulary, dtype=np.float32)[(token_id + 1) % vocabulary]

    return forward_one, given


def test_generation_passes_the_prompt_and_all_new_tokens_but_the_last():
    forward_one, given = counting_model()
    steps = generate(forward_one, [5, 2], 3, context=5, vocabulary=7)
    assert given == []
    tokens = []
    for token_id, logits in steps:
        tokens.append(token_id)
        assert len(given) == 1 + len(tokens)  # the caller can account each step as it comes
        assert greedy(logits) == token_id
    assert tokens == [3, 4, 5] and given == [5, 2, 3, 4]
    forward_one, given = counting_model()
    assert [t for t, _ in generate(forward_one, (1,), 2, lambda logits: 6, context=9, vocabulary=7)] == [6, 6]
    assert given == [1, 6]


@pytest.mark.parametrize(
    ("prompt", "count", "text"),
    [
        ([], 1, "the prompt is empty; give at least one token"),
        ([0, 7], 1, "token id 7 is outside the vocabulary; use 0 … 6"),
        ([-1], 1, "token id -1 is outside"),
        ([0, 0], 4, "4 new tokens after a prompt of 2 do not fit the context of 5; ask for 1 … 3"),
        ([0, 0], 0, "0 new tokens .* ask for 1 … 3"),
        ([0] * 5, 1, "the prompt has 5 tokens, but the context is 5; shorten it to 4"),
        ([0] * 6, 1, "the prompt has 6 tokens, but the context is 5; shorten it to 4"),
    ],
)
def test_what_generation_refuses_before_the_first_pass(prompt, count, text):
    forward_one, given = counting_model()
    with pytest.raises(DomainError, match=text):
        generate(forward_one, prompt, count, context=5, vocabulary=7)
    assert given == []


def test_perplexity_by_hand():
    # Logits 0 and ln 3: the next id has 1/4 or 3/4. Chunks of 3: (0 1 1) (1 0 0) (0): 4 foreseen tokens.
    begun, given = [], []

    def fresh():
        begun.append(len(given))

        def forward_one(token_id):
            given.append(token_id)
            return np.array([0, math.log(3)], np.float32)

        return forward_one

    found = perplexity([0, 1, 1, 1, 0, 0, 0], 3, fresh)
    stored = float(np.float32(math.log(3)))
    by_hand = (2 * math.log1p(math.exp(-stored)) + 2 * math.log1p(math.exp(stored))) / 4
    assert found.nats == pytest.approx(by_hand, rel=FLOAT64_ROUNDINGS)
    assert found.perplexity == math.exp(found.nats) and found.tokens == 4
    assert given == [0, 1, 1, 0] and begun == [0, 2]
    flat = perplexity(b"\0\0", 128, lambda: lambda _: np.zeros(256, np.float32))
    assert flat.perplexity == pytest.approx(256, rel=FLOAT64_ROUNDINGS)
    huge = perplexity([0, 1], 2, lambda: lambda _: np.array([3e38, -3e38], np.float32))
    assert huge.nats == 2 * float(np.float32(3e38)) and huge.perplexity == math.inf


@pytest.mark.parametrize(("ids", "context"), [([], 4), ([1], 4), ([1, 2, 3], 1)])
def test_perplexity_of_nothing_is_refused(ids, context):
    with pytest.raises(DomainError, match="have no perplexity; give at least two"):
        perplexity(ids, context, lambda: lambda _: np.zeros(4, np.float32))


def test_text_is_bytes_and_bytes_need_not_be_text():
    assert encode_bytes("Aé") == [65, 195, 169]
    assert decode_bytes(encode_bytes("In the beginning, ἐν ἀρχῇ")) == "In the beginning, ἐν ἀρχῇ"
    assert decode_bytes([65, 195, 66, 255]) == "A\ufffdB\ufffd"
    assert decode_bytes([]) == "" and encode_bytes("") == []
    assert encode_bytes(b"\xff\xfe".decode("utf-8", "surrogateescape")) == [255, 254]
    with pytest.raises(DomainError, match="lone surrogates"):
        encode_bytes("\ud800")
    for bad in (-1, 256):
        with pytest.raises(DomainError, match="is not a byte"):
            decode_bytes([bad])
