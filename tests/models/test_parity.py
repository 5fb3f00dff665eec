"""All families beside another project's code: transformers on the CPU, with seeded random weights.

Its default attention, sdpa, is used: its `eager` one takes softmax in float32 even of a float64 model.
"""

import inspect
import json
import shlex
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from family_configs import NEEDED
from test_transformer import TINY, plain_ffns

from flashref.ffn import dense_ffn
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.config import parse_config
from flashref.models.generate import generate
from flashref.models.model import load_model, one_at_a_time
from flashref.types import ImageError

torch = pytest.importorskip("torch", reason="torch is not installed; it comes with the dev extra")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")

torch.set_num_threads(1)  # several threads wait for each other where the cores are shared: 13 times slower

NEW_TOKENS = 64
AGREEMENT = 1e-5  # of the largest |logit|, both in float64
PROMPT = [5, 0, 52, 17, 17, 3, 41, 1, 2]
CONTEXT = len(PROMPT) + NEW_TOKENS
TAU = 0.25


class Case(NamedTuple):
    """A configuration that nothing divides. old: config.json as it was before transformers 5."""

    family: str
    layers: int
    width: int
    heads: int
    config: dict
    stored: str = "float32"
    shard: str = "5GB"
    old: bool = False


def opt(layers, width, neurons, heads, activation="relu", stored="float32", shard="5GB", **parts):
    narrow = {"word_embed_proj_dim": width} | parts
    config = {"ffn_dim": neurons, "activation_function": activation} | narrow
    return Case("OPT", layers, width, heads, config, stored, shard)


def falcon(layers, width, heads, activation="relu", stored="float32", shard="5GB", old=False, **parts):
    return Case("Falcon", layers, width, heads, {"activation": activation} | parts, stored, shard, old)


def of_family(family, layers, width, neurons, heads, activation, stored="float32", **parts):
    shard, old = parts.pop("shard", "5GB"), parts.pop("old", False)
    config = {"intermediate_size": neurons, "hidden_act": activation} | parts
    return Case(family, layers, width, heads, config, stored, shard, old)


persimmon, phi, llama = (partial(of_family, family) for family in ("Persimmon", "Phi", "Llama"))


def rope(kind, theta=10_000.0, **parts):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | parts}


CASES = {
    "OPT: 12 layers, 3 heads of 5": opt(12, 15, 37, 3),
    "OPT: 12 layers, F16, shards": opt(12, 35, 101, 5, stored="float16", shard="40KB"),
    "OPT: 1 layer, 1 head, 1 neuron": opt(1, 7, 1, 1),
    "OPT: GELU, no biases, untied": opt(3, 21, 50, 7, "gelu", enable_bias=False, tie_word_embeddings=False),
    "OPT: squared ReLU, norms without weights, F16": opt(
        2, 33, 67, 11, "relu2", "float16", layer_norm_elementwise_affine=False
    ),
    "OPT: SiLU, no final norm, BF16": opt(5, 27, 31, 9, "silu", "bfloat16", _remove_final_layer_norm=True),
    "OPT: GELU by tanh, heads of 1": opt(3, 13, 29, 13, "gelu_new"),
    "OPT: the shape of the tiny model, F16": opt(4, 128, 1024, 4, stored="float16"),
    "OPT 350m: norms after, narrow embeddings": opt(
        12, 35, 51, 5, do_layer_norm_before=False, word_embed_proj_dim=11
    ),
    "OPT 350m: wide embeddings, untied, F16": opt(
        3, 21, 40, 3, stored="float16", do_layer_norm_before=False, word_embed_proj_dim=29,
        tie_word_embeddings=False,
    ),
    "OPT: norms before, narrow embeddings": opt(2, 15, 37, 3, word_embed_proj_dim=7),
    # One head of keys and values; 4 d neurons, as the config says nothing.
    "Falcon 7B: 12 layers, 5 heads of 6": falcon(12, 30, 5),
    "Falcon 7B: biases, sequential, linear, as of old": falcon(
        3, 42, 3, bias=True, parallel_attn=False, num_ln_in_parallel_attn=2, old=True, ffn_hidden_size=55,
        **rope("linear", factor=2.5),
    ),
    "Falcon 40B: 9 heads in 3 groups, F16, shards": falcon(
        3, 54, 9, stored="float16", shard="40KB", new_decoder_architecture=True, num_kv_heads=3,
        tie_word_embeddings=False, ffn_hidden_size=101,
    ),
    "Falcon 40B: 12 layers, a group a head, biases": falcon(
        12, 30, 3, "gelu", new_decoder_architecture=True, bias=True, ffn_hidden_size=33
    ),
    "Falcon 11B: one norm, BF16": falcon(
        2, 40, 10, stored="bfloat16", new_decoder_architecture=True, num_kv_heads=2,
        num_ln_in_parallel_attn=1,
    ),
    "Falcon RW: 12 layers, 5 heads of 10": falcon(
        12, 50, 5, alibi=True, multi_query=False, parallel_attn=False, bias=True, ffn_hidden_size=37
    ),
    "Falcon RW: 12 heads of 3, parallel, F16": falcon(
        3, 36, 12, stored="float16", alibi=True, multi_query=False
    ),
    "Falcon: ALiBi in groups": falcon(
        2, 18, 6, alibi=True, new_decoder_architecture=True, num_kv_heads=2, layer_norm_epsilon=1e-3
    ),
    "Falcon: rotary, a key a head": falcon(3, 28, 7, multi_query=False, **rope("default", 500.0)),
    "Persimmon: 12 layers, 3 heads of 8": persimmon(12, 24, 37, 3, "relu2"),
    "Persimmon: no head norms, tied, F16, shards": persimmon(
        3, 60, 101, 5, "relu2", "float16", shard="40KB", qk_layernorm=False, tie_word_embeddings=True
    ),
    "Persimmon: 6 of 20 values turned, as of old": persimmon(
        2, 60, 77, 3, "relu", old=True, **rope("default", 25_000.0, partial_rotary_factor=0.3)
    ),
    "Persimmon: whole heads turned, BF16": persimmon(
        2, 30, 41, 5, "gelu", "bfloat16", **rope("default", partial_rotary_factor=1.0)
    ),
    "Persimmon: dynamic": persimmon(
        2, 36, 50, 3, "relu2", **rope("dynamic", factor=3.0), layer_norm_eps=1e-2
    ),
    "Persimmon: linear, one head": persimmon(3, 28, 1, 1, "relu2", **rope("linear", factor=4.0)),
    "Phi-2: 12 layers, 5 heads of 10, 4 of them turned": phi(
        12, 50, 67, 5, "relu", **rope("default", partial_rotary_factor=0.4)
    ),
    "Phi: grouped, head norms, as of old": phi(
        3, 54, 71, 9, "gelu_new", num_key_value_heads=3, qk_layernorm=True, old=True, layer_norm_eps=1e-2,
        **rope("linear", partial_rotary_factor=0.7, factor=1.7),
    ),
    "Phi: one key head, F16, shards": phi(
        3, 56, 99, 7, "relu", "float16", shard="40KB", num_key_value_heads=1
    ),
    "Phi: tied": phi(2, 36, 45, 3, "relu", tie_word_embeddings=True, layer_norm_eps=1e-2),
    "Phi: BF16, yarn": phi(
        2, 72, 31, 3, "silu", "bfloat16",
        **rope("yarn", factor=4.0, original_max_position_embeddings=32, partial_rotary_factor=0.5),
    ),
    "Phi: 1 neuron, dynamic": phi(1, 24, 1, 3, "relu2", **rope("dynamic", factor=2.0)),
    "Llama: 12 layers, 9 heads in 3 groups": llama(12, 54, 71, 9, "silu", num_key_value_heads=3),
    "Llama: ReLU, biases, heads of another width": llama(
        3, 35, 37, 5, "relu", head_dim=10, attention_bias=True, mlp_bias=True
    ),
    "Llama: FATReLU, one key head": llama(
        3, 42, 101, 7, "fatrelu", num_key_value_heads=1, hidden_act_param=TAU, mlp_bias=True
    ),
    "Llama: linear, as of old, F16, shards": llama(
        3, 30, 55, 3, "relu", "float16", shard="40KB", old=True, **rope("linear", factor=8.0)
    ),
    "Llama: dynamic, tied, BF16": llama(
        2, 40, 33, 5, "silu", "bfloat16", tie_word_embeddings=True, **rope("dynamic", factor=2.0)
    ),
    "Llama 3": llama(
        3, 96, 65, 3, "relu", num_key_value_heads=1, **rope(
            "llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=40,
        ), old=True, rms_norm_eps=1e-2,
    ),
    "Llama: yarn": llama(
        2, 96, 65, 3, "silu", **rope("yarn", 500.0, factor=3.0, original_max_position_embeddings=32)
    ),
    "Llama: yarn of given turns and scales": llama(
        2, 64, 65, 2, "silu", **rope(
            "yarn", 500.0, factor=3.0, original_max_position_embeddings=64, truncate=False, beta_fast=8,
            beta_slow=0.5, mscale=0.7, mscale_all_dim=1.3,
        ),
    ),
    "Llama: yarn of a given scale": llama(
        1, 22, 65, 1, "silu", **rope("yarn", 50.0, factor=3.0, attention_factor=0.5)
    ),
}  # fmt: skip


class FATReLU(torch.nn.Module):
    """transformers has no such activation; models bring it as code of their own."""

    def forward(self, x):
        return torch.where(x > TAU, x, 0.0)


@pytest.fixture(autouse=True)
def transformers_made_whole(monkeypatch):
    """FATReLU; and an RMS norm that is float64 in a float64 model (transformers' own goes by float32)."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setitem(transformers.activations.ACT2FN, "fatrelu", FATReLU)
    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaRMSNorm, "forward", forward)


def random_model(case):
    """A model of transformers whose every parameter is random, biases and norms too, of unit-sized sums."""
    config = getattr(transformers, f"{case.family}Config")(
        vocab_size=53,
        hidden_size=case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **json.loads(
            json.dumps({"max_position_embeddings": CONTEXT} | case.config)
        ),  # it adds to what it gets
    )
    model = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(20231212)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise if "embed" in name else noise * parameter.shape[1] ** -0.5)
            parameter.data = parameter.to(getattr(torch, case.stored))  # the rotary tables stay in float32
    return model


def write(case, folder):
    """The model, in a directory as transformers writes it, or wrote it before version 5."""
    model = random_model(case)
    model.save_pretrained(folder, max_shard_size=case.shard)
    if case.old:
        file = Path(folder) / "config.json"
        values = json.loads(file.read_text())
        scaling = values.pop("rope_parameters")
        beside = {key: scaling.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in scaling}
        kind = scaling.pop("rope_type")
        values |= {**beside, "rope_scaling": None if kind == "default" else {"type": kind} | scaling}
        file.write_text(json.dumps(values))
        read = transformers.AutoConfig.from_pretrained(folder).rope_parameters
        known = model.config.rope_parameters
        assert {key: read[key] for key in known} == known  # transformers understands the same
    return model


def their_logits(model, ids):
    """Of all tokens at once, (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def their_cached_logits(model, prompt, tokens):
    """Of the prompt at once, then of each token with transformers' own cache."""
    found, cache = [], None
    # transformers 5.24 calls it by another name than those before.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.no_grad():
        for part in [prompt, *([token_id] for token_id in tokens)]:
            out = model(torch.tensor([part]), **{name: cache}, use_cache=True)
            found.append(out.logits[0].double().numpy())
            cache = getattr(out, name)
    return np.concatenate(found)


def our_model(checkpoint, dtype):
    """Ours, one token at a time: in float32 with the reference's own FFN, in float64 with NumPy's sums."""
    model = load_model(checkpoint.config, partial(load_tensor, checkpoint), dtype)
    ffns = [load_ffn(checkpoint, layer) for layer in range(checkpoint.config.layers)]
    if dtype == np.float32:
        return one_at_a_time(model, lambda layer, x: dense_ffn(x, ffns[layer]))
    return one_at_a_time(model, plain_ffns(ffns))


def our_text(checkpoint, dtype, prompt, new_tokens):
    """The greedy tokens, and the logits of every token that was passed on, the prompt's too."""
    forward_one, logits = our_model(checkpoint, dtype), []

    def recording(token_id):
        logits.append(forward_one(token_id))
        return logits[-1]

    sizes = {"context": checkpoint.config.context, "vocabulary": checkpoint.config.vocabulary}
    tokens = [token_id for token_id, _ in generate(recording, prompt, new_tokens, **sizes)]
    return tokens, np.stack(logits)


def check_parity(model, checkpoint, prompt, new_tokens):
    """The three comparisons of issue 5, item 2; gives the figures."""
    tokens, logits = our_text(checkpoint, np.float64, prompt, new_tokens)
    ids = [*prompt, *tokens[:-1]]
    expected = their_cached_logits(model.double(), prompt, tokens[:-1])
    size = np.abs(expected).max()
    double = np.abs(logits - expected).max() / size
    assert double <= AGREEMENT

    chosen_from = expected[len(prompt) - 1 :]
    top = np.sort(chosen_from, axis=1)
    clear = top[:, -1] - top[:, -2] > AGREEMENT * size
    assert clear.sum() >= new_tokens - 2  # the comparison says something
    assert np.array_equal(np.array(tokens)[clear], chosen_from.argmax(axis=1)[clear])

    single = our_model(checkpoint, np.float32)
    our_error = np.abs(np.stack([single(token_id) for token_id in ids]) - expected).max()
    their_error = np.abs(their_logits(model.float(), ids) - expected).max()
    assert our_error <= 4 * their_error
    return double, our_error / their_error


@pytest.mark.parametrize("name", list(CASES))
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path, name):
    case = CASES[name]
    model = write(case, tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (case.shard != "5GB")
    double, ratio = check_parity(model, open_checkpoint(tmp_path), PROMPT, NEW_TOKENS)
    print(f"{name}: {double:.1e} of the largest logit in float64; float32 {ratio:.2f} times their error")


LONG = {
    "rotary": of_family("Llama", 1, 30, 17, 3, "relu"),
    "partial rotary": of_family("Phi", 1, 60, 17, 3, "relu"),  # 10 of 20: no power of two
    "ALiBi": falcon(1, 30, 5, alibi=True, multi_query=False),  # its positions are rounded beyond 256
}


@pytest.mark.parametrize("name", list(LONG))
def test_positions_of_a_long_text_are_those_of_transformers(tmp_path, name):
    tokens = 2000
    case = LONG[name]._replace(config=LONG[name].config | {"max_position_embeddings": tokens})
    model = write(case, tmp_path)
    ids = np.random.default_rng(5).integers(0, 53, tokens).tolist()
    expected = their_logits(model.double(), ids)
    ours = our_model(open_checkpoint(tmp_path), np.float64)
    found = np.stack([ours(token_id) for token_id in ids])
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= AGREEMENT
    print(f"{name}: {error:.1e} of the largest logit in float64, {tokens} tokens")


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        *((family, {}) for family in NEEDED),
        ("falcon", {"new_decoder_architecture": True}),
        ("falcon", {"multi_query": False}),
    ],
)
def test_what_a_config_does_not_say_is_what_transformers_takes(family, parts):
    said = {"model_type": family} | NEEDED[family] | parts
    in_full = transformers.AutoConfig.for_model(**json.loads(json.dumps(said))).to_dict()
    assert len(in_full) > 2 * len(said)
    assert parse_config(json.dumps(said)) == parse_config(json.dumps(in_full))


def test_every_family_has_six_configurations_and_one_of_twelve_layers():
    for family in ("OPT", "Falcon", "Persimmon", "Phi", "Llama"):
        cases = [case for case in CASES.values() if case.family == family]
        assert len(cases) >= 6 and max(case.layers for case in cases) == 12
        assert {case.stored for case in cases} == {"float32", "float16", "bfloat16"}


def test_transformers_own_generation_gives_the_same_text(tmp_path):
    model = random_model(CASES["OPT: 12 layers, 3 heads of 5"])
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    prompt = torch.tensor([PROMPT])
    theirs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    ours, _ = our_text(checkpoint, np.float32, PROMPT, NEW_TOKENS)
    assert ours == theirs[0, len(PROMPT) :].tolist()


def test_the_conversion_that_a_refusal_names_works(tmp_path, monkeypatch):
    model = random_model(CASES["OPT: 1 layer, 1 head, 1 neuron"])
    old = tmp_path / "old"
    model.config.save_pretrained(old)
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    with pytest.raises(ImageError) as caught:
        open_checkpoint(old)
    text = str(caught.value)
    _, _, program, *folders = shlex.split(text[text.index("python -c") :])
    monkeypatch.setattr("sys.argv", ["-c", *folders])
    exec(program)
    checkpoint = open_checkpoint(folders[1])
    name = checkpoint.layers[0]["down"]
    assert np.array_equal(load_tensor(checkpoint, name), model.state_dict()[name].numpy())


def test_the_shipped_model_gives_the_same_in_transformers():
    model = transformers.OPTForCausalLM.from_pretrained(TINY, dtype="auto").eval()
    text = (TINY / "held_out.txt").read_bytes()
    check_parity(model, open_checkpoint(TINY), list(text[:60]), NEW_TOKENS)
