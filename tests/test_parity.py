"""OPT beside another project's: transformers' OPTForCausalLM on the CPU, with seeded random weights."""

import json
import shlex
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from test_transformer import TINY, plain_ffn

from flashref.ffn import dense_ffn
from flashref.transformer.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.transformer.generate import generate
from flashref.transformer.opt import load_model, one_at_a_time
from flashref.types import ImageError, widen

torch = pytest.importorskip("torch", reason="torch is not installed; it comes with the dev extra")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")

torch.set_num_threads(1)  # several threads wait for each other where the cores are shared: 13 times slower

NEW_TOKENS = 64
AGREEMENT = 1e-5  # of the largest |logit|, both in float64


class Case(NamedTuple):
    """A configuration that nothing divides."""

    layers: int
    width: int
    neurons: int
    heads: int
    activation: str = "relu"
    stored: str = "float32"
    shard: str = "5GB"
    parts: dict[str, bool] = {}  # noqa: RUF012 (never changed)


CASES = {
    "12 layers, 3 heads of 5": Case(12, 15, 37, 3),
    "12 layers, F16, shards": Case(12, 35, 101, 5, stored="float16", shard="40KB"),
    "1 layer, 1 head, 1 neuron": Case(1, 7, 1, 1),
    "GELU, no biases, untied": Case(
        3, 21, 50, 7, "gelu", parts={"enable_bias": False, "tie_word_embeddings": False}
    ),
    "squared ReLU, norms without weights, F16": Case(
        2, 33, 67, 11, "relu2", "float16", parts={"layer_norm_elementwise_affine": False}
    ),
    "SiLU, no final norm, BF16": Case(
        5, 27, 31, 9, "silu", "bfloat16", parts={"_remove_final_layer_norm": True}
    ),
    "GELU by tanh, heads of 1": Case(3, 13, 29, 13, "gelu_new"),
    "the shape of the tiny model, F16": Case(4, 128, 1024, 4, stored="float16"),
}
PROMPT = [5, 0, 52, 17, 17, 3, 41, 1, 2]


def random_model(case):
    """A model of transformers whose every parameter is random, biases and norms too, of unit-sized sums."""
    config = transformers.OPTConfig(
        vocab_size=53,
        hidden_size=case.width,
        num_hidden_layers=case.layers,
        ffn_dim=case.neurons,
        num_attention_heads=case.heads,
        max_position_embeddings=len(PROMPT) + NEW_TOKENS,
        activation_function=case.activation,
        word_embed_proj_dim=case.width,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **case.parts,
    )
    model = transformers.OPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(20231212)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "layer_norm.weight" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise if "embed" in name else noise * parameter.shape[1] ** -0.5)
    return model.to(getattr(torch, case.stored))


def their_logits(model, ids):
    """Of all tokens at once, (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def their_cached_logits(model, prompt, tokens):
    """Of the prompt at once, then of each token with transformers' own cache."""
    found, cache = [], None
    with torch.no_grad():
        for part in [prompt, *([token_id] for token_id in tokens)]:
            out = model(torch.tensor([part]), past_key_values=cache, use_cache=True)
            found.append(out.logits[0].double().numpy())
            cache = out.past_key_values
    return np.concatenate(found)


def our_model(checkpoint, dtype):
    """Ours, one token at a time: in float32 with the reference's own FFN, in float64 with NumPy's sums."""
    model = load_model(checkpoint.config, partial(load_tensor, checkpoint), dtype)
    if dtype == np.float32:
        ffns = [load_ffn(checkpoint, layer) for layer in range(checkpoint.config.layers)]
        return one_at_a_time(model, lambda layer, x: dense_ffn(x, ffns[layer]))
    wide = {name: widen(load_tensor(checkpoint, name)).astype(dtype) for name in checkpoint.tensors}
    return one_at_a_time(model, plain_ffn(wide, json.loads(checkpoint.config_text)["activation_function"]))


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
    model = random_model(case)
    model.save_pretrained(tmp_path, max_shard_size=case.shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (case.shard != "5GB")
    double, ratio = check_parity(model, open_checkpoint(tmp_path), PROMPT, NEW_TOKENS)
    print(f"{name}: {double:.1e} of the largest logit in float64; float32 {ratio:.2f} times their error")


def test_transformers_own_generation_gives_the_same_text(tmp_path):
    model = random_model(CASES["12 layers, 3 heads of 5"])
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
    model = random_model(CASES["1 layer, 1 head, 1 neuron"])
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


@pytest.mark.skipif(not (TINY / "model.safetensors").exists(), reason="the tiny model is not trained yet")
def test_the_shipped_model_gives_the_same_in_transformers():
    model = transformers.OPTForCausalLM.from_pretrained(TINY, dtype="auto").eval()
    text = (TINY / "held_out.txt").read_bytes()
    check_parity(model, open_checkpoint(TINY), list(text[:60]), NEW_TOKENS)
