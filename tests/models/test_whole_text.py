"""Whole texts in JAX against the model in NumPy, one token at a time: every family, judged by float64."""

import json
from functools import cache, partial
from typing import NamedTuple

import hurried_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import to_dtype
from conftest import sampled
from scipy.special import logsumexp
from test_transformer import plain_ffns

from flashref import xla
from flashref.bounds import gamma
from flashref.ffn import active_neurons, dense_ffn, sparse_ffn, take_neurons
from flashref.models import model as numpy_model
from flashref.models import whole_text
from flashref.models.checkpoint import tensor_shapes
from flashref.models.config import parse_config
from flashref.models.families import FAMILIES
from flashref.models.family import fill
from flashref.models.model import Model, load_model, one_at_a_time
from flashref.types import FFN, widen

hurried = hurried_jax.hurried

TIMES = 4  # as far again as NumPy's float32 is from float64: another order, another kernel
TOKENS = 24
VOCABULARY = 19
OPT = {
    "model_type": "opt",
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "ffn_dim": 23,
    "num_attention_heads": 3,
    "max_position_embeddings": TOKENS,
    "vocab_size": VOCABULARY,
    "activation_function": "relu",
}
FALCON = {
    "model_type": "falcon",
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "num_attention_heads": 6,
    "vocab_size": VOCABULARY,
    "activation": "relu",
}
OTHERS = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 23,
    "num_attention_heads": 3,
    "max_position_embeddings": TOKENS,
    "vocab_size": VOCABULARY,
}
CONFIGS = {
    "OPT": (OPT, "F16"),
    "OPT 350m": (OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 7}, "F32"),
    "Falcon 40B": (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, "F32"),
    "Falcon RW": (
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        "F32",
    ),
    "Persimmon": (OTHERS | {"model_type": "persimmon", "hidden_act": "relu2"}, "F32"),
    "Phi": (OTHERS | {"model_type": "phi", "hidden_act": "gelu_new", "num_key_value_heads": 1}, "BF16"),
    "Llama": (
        OTHERS
        | {"model_type": "llama", "hidden_act": "fatrelu", "hidden_act_param": 0.25, "mlp_bias": True}
        | {"tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 1.5}},
        "F32",
    ),
}


class Case(NamedTuple):
    """A random model: in float64, in float32, as it is stored, and its FFNs."""

    double: Model
    single: Model
    stored: Model
    ffns: list[FFN]


class Passed(NamedTuple):
    """Texts through a model: what every up projection received (layers, texts, tokens, d), and the losses."""

    inputs: np.ndarray
    losses: np.ndarray


def random_case(values, dtype, seed=0):
    config = parse_config(json.dumps(values))
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config):
        noise = random.standard_normal(shape)
        if len(shape) == 2:
            noise *= 1 if "embed" in name else shape[1] ** -0.5
        else:
            noise = 0.3 * noise + name.endswith("weight")  # a norm's scale is about 1
        tensors[name] = to_dtype(noise.astype(np.float32), dtype)
    load = tensors.__getitem__
    ffns = [
        fill(FAMILIES[config.family].ffn(config, layer), lambda leaf: load(leaf.name))
        for layer in range(config.layers)
    ]
    ffns = [ffn._replace(down=np.ascontiguousarray(ffn.down.T)) for ffn in ffns]
    return Case(*(load_model(config, load, dtype) for dtype in (np.float64, np.float32, None)), ffns)


CASES = {name: random_case(*config) for name, config in CONFIGS.items()}
IDS = np.random.default_rng(1).integers(0, VOCABULARY, (3, TOKENS))


def in_numpy(model, feed_forward, ids=IDS):
    """One token at a time; losses in the model's own arithmetic."""
    double = model.ends.tokens.dtype == np.float64
    shape = (model.config.layers, *ids.shape, model.config.width)
    inputs = np.zeros(shape, np.float64 if double else np.float32)
    losses = []
    for text, token_ids in enumerate(ids):
        place = [0]

        def recording(layer, x, text=text, place=place):
            assert x.dtype == inputs.dtype
            inputs[layer, text, place[0]] = x
            return feed_forward(layer, x)

        forward = one_at_a_time(model, recording)
        for position, token_id in enumerate(token_ids.tolist()):
            place[0] = position
            logits = forward(token_id)
            if position + 1 < len(token_ids):
                losses.append(logsumexp(logits) - logits[token_ids[position + 1]])
    return Passed(inputs, np.array(losses).reshape(len(ids), -1))


def in_jax(case, ids, choose=whole_text.every_neuron, chosen_by=None):
    """All texts at once, from the weights as they are stored."""
    model, inputs = case.stored, []
    hidden = whole_text.embed_texts(model, ids)
    for layer, (block, ffn) in enumerate(zip(model.blocks, case.ffns, strict=True)):
        by = None if chosen_by is None else chosen_by[layer]
        hidden, received = whole_text.pass_block(model.config, block, ffn, hidden, choose, by)
        assert hidden.dtype == received.dtype == jnp.float32
        inputs.append(np.asarray(received))
    return Passed(np.stack(inputs), np.asarray(whole_text.losses(model, hidden, ids)))


@cache
def dense_in_numpy(name):
    """The dense model in float64 and in float32."""
    double, single, _, ffns = CASES[name]
    return in_numpy(double, plain_ffns(ffns)), in_numpy(single, lambda layer, x: dense_ffn(x, ffns[layer]))


def parts(passed):
    """What is compared on its own: the inputs of each layer, and the losses."""
    return [*passed.inputs, passed.losses]


def ratios(found, single, double):
    """How much farther each part is from float64 than NumPy's float32 is."""
    for ours, theirs, exact in zip(parts(found), parts(single), parts(double), strict=True):
        assert ours.shape == exact.shape and ours.dtype == np.float32 and exact.dtype == np.float64
        yield np.abs(ours - exact).max() / np.abs(theirs - exact).max()


@pytest.mark.parametrize("name", list(CASES))
def test_inputs_and_losses_are_those_of_one_token_at_a_time(name):
    double, single = dense_in_numpy(name)
    found = list(ratios(in_jax(CASES[name], IDS), single, double))
    assert max(found) <= TIMES
    print(f"{name}: {max(found):.2f} times NumPy's distance from float64")


@pytest.mark.parametrize("name", ["OPT 350m", "Falcon RW", "Llama"])
def test_a_text_among_others_is_what_it_is_alone(name):
    case = CASES[name]
    double, single = dense_in_numpy(name)
    for text in range(len(IDS)):
        single_one, double_one = (Passed(of.inputs[:, [text]], of.losses[[text]]) for of in (single, double))
        assert max(ratios(in_jax(case, IDS[[text]]), single_one, double_one)) <= TIMES


@pytest.mark.parametrize("name", ["OPT", "Phi"])
def test_numpy_computes_the_same_from_weights_that_stay_as_they_are_stored(name, monkeypatch):
    monkeypatch.setattr(numpy_model, "HEAD_ROWS", 5)
    case = CASES[name]
    assert case.stored.ends.tokens.dtype == case.ffns[0].up.dtype != np.float32
    double, single = dense_in_numpy(name)
    stored = in_numpy(case.stored, lambda layer, x: dense_ffn(x, case.ffns[layer]))
    assert max(ratios(stored, single, double)) <= TIMES


@pytest.mark.parametrize("name", list(CASES))
def test_later_tokens_change_nothing_earlier(name):
    changed = IDS.copy()
    changed[:, TOKENS // 2 :] = (changed[:, TOKENS // 2 :] + 1) % VOCABULARY
    one, other = in_jax(CASES[name], IDS), in_jax(CASES[name], changed)
    half = TOKENS // 2
    assert (one.inputs[:, :, :half] == other.inputs[:, :, :half]).all()
    assert (one.losses[:, : half - 1] == other.losses[:, : half - 1]).all()
    assert (one.inputs[:, :, half:] != other.inputs[:, :, half:]).any(axis=-1).all()


def by_mask(by, inputs):
    """The neurons of a mask; the others instead where `flip` and a token's first input is positive."""
    mask, flip = by
    return mask ^ (flip & (inputs[:, :1] > 0))


@pytest.mark.parametrize("name", sampled(CASES, {"OPT", "Llama"}))
def test_neurons_that_are_not_chosen_add_nothing(name):
    case = CASES[name]
    masks = np.random.default_rng(2).random((2, case.single.config.neurons)) < 0.5
    for flip in (False, True):

        def chosen(layer, x, flip=flip):
            return np.flatnonzero(masks[layer] ^ (flip and x[0] > 0))

        def exact(layer, x, chosen=chosen):
            return plain_ffns([take_neurons(case.ffns[layer], chosen(layer, x))])(0, x)

        def single(layer, x, chosen=chosen):
            return sparse_ffn(x, case.ffns[layer], chosen(layer, x))

        found = in_jax(case, IDS, by_mask, [(mask, np.bool_(flip)) for mask in masks])
        assert max(ratios(found, in_numpy(case.single, single), in_numpy(case.double, exact))) <= TIMES
    nothing = in_jax(case, IDS, by_mask, [(np.zeros_like(mask), np.bool_(False)) for mask in masks])
    silent = case._replace(ffns=[ffn._replace(down=np.zeros_like(ffn.down)) for ffn in case.ffns])
    assert (nothing.losses == in_jax(silent, IDS).losses).all()  # only the down bias is left


@pytest.mark.parametrize("name", ["OPT", "Phi", "Llama"])
def test_pre_activations_say_which_neurons_are_truly_active(name):
    case = CASES[name]
    ffn = case.ffns[1]
    x = np.random.default_rng(3).standard_normal((5, case.single.config.width)).astype(np.float32)
    wide = fill(ffn, widen)
    z = np.asarray(jax.jit(jax.vmap(partial(xla.pre_activations, ffn=wide)))(x))
    assert z.shape == (5, case.single.config.neurons)
    matrix, bias = (wide.up, wide.up_bias) if wide.gate is None else (wide.gate, wide.gate_bias)
    bias = np.zeros(len(matrix)) if bias is None else bias
    for row, token in zip(z, x, strict=True):
        # A sum of d products and a bias in any order: d + 1 roundings of what is summed.
        summed = np.abs(matrix.astype(np.float64)) @ np.abs(token) + np.abs(bias)
        error = gamma(len(token) + 1, 2.0**-24) * summed
        if ffn.activation in ("relu", "squared_relu", "fatrelu"):
            clear = np.abs(row - ffn.tau) > 2 * error
            active = np.isin(np.arange(len(row)), active_neurons(token, ffn))
            assert (active == (row > ffn.tau))[clear].all() and clear.sum() > len(row) - 2
        else:
            assert (np.abs(row - (matrix.astype(np.float64) @ token + bias)) <= error).all()
