"""Checkpoints: what is read is what was written, and every mistake is one clear sentence."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    CONFIG,
    CONTEXT,
    HEADS,
    LAYERS,
    NEURONS,
    VOCABULARY,
    WIDTH,
    random_weights,
    to_dtype,
    write_checkpoint,
    write_file,
)
from random_models import write_family
from safetensors.numpy import load_file

from flashref import same
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.config import parse_config
from flashref.types import DomainError, FlashrefError, ImageError, ShapeError

UP = "model.decoder.layers.1.fc1.weight"
DOWN = "model.decoder.layers.1.fc2.weight"


def refusal(folder, kind=ImageError):
    """The sentence with which a folder is refused."""
    with pytest.raises(kind) as caught:
        open_checkpoint(folder)
    assert isinstance(caught.value, FlashrefError)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    return text


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_comes_back_bit_for_bit(tmp_path, dtype, shards):
    tensors = random_weights(dtype=dtype)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", tensors, shards))
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        assert same(load_tensor(checkpoint, name), array)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_an_ffn_is_neuron_major_in_the_stored_dtype(tmp_path, dtype, shards):
    tensors = random_weights(dtype=dtype)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, shards, activation_function="gelu_new"))
    ffn = load_ffn(checkpoint, 1)
    assert same(ffn.up, tensors[UP])
    assert ffn.down.shape == (NEURONS, WIDTH) and ffn.down.flags.c_contiguous
    for neuron in range(NEURONS):
        assert same(ffn.down[neuron], tensors[DOWN][:, neuron].copy())
    assert same(ffn.up_bias, tensors["model.decoder.layers.1.fc1.bias"])
    assert same(ffn.down_bias, tensors["model.decoder.layers.1.fc2.bias"])
    assert (ffn.activation, ffn.gate, ffn.gate_bias) == ("gelu_tanh", None, None)


def test_what_an_opened_checkpoint_says(tmp_path):
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path, random_weights())))
    config = checkpoint.config
    sizes = (LAYERS, WIDTH, NEURONS, HEADS, HEADS, WIDTH // HEADS, CONTEXT, VOCABULARY)
    assert config[:12] == ("opt", *sizes, "relu", 0.0, True)
    assert config.family_config == (WIDTH, True, True, True, True)
    assert checkpoint.config_text == json.dumps(CONFIG, sort_keys=True, separators=(",", ":"))
    assert parse_config(checkpoint.config_text) == config
    assert dict(checkpoint.layers[1]) == {"up": UP, "down": DOWN}
    assert len(checkpoint.layers) == LAYERS


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("relu", "relu"),
        ("relu2", "squared_relu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("gelu", "gelu_erf"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
    ],
)
def test_activations_are_named_as_the_ffn_names_them(theirs, ours):
    assert parse_config(json.dumps(CONFIG | {"activation_function": theirs})).activation == ours


def test_parts_that_the_config_leaves_out_are_not_needed(tmp_path):
    tensors = random_weights(biases=False, norms=False, final_norm=False, tied=False)
    variants = {
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "_remove_final_layer_norm": True,
        "tie_word_embeddings": False,
        "word_embed_proj_dim": None,
    }
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, **variants))
    ffn = load_ffn(checkpoint, 0)
    assert ffn.up_bias is None and ffn.down_bias is None
    for key, missing in {
        "enable_bias": "q_proj.bias",
        "layer_norm_elementwise_affine": "layer_norm.weight",
    }.items():
        assert missing in refusal(write_checkpoint(tmp_path, tensors, **(variants | {key: True})))
    shared = random_weights(final_norm=False)
    assert "model.decoder.final_layer_norm.weight" in refusal(write_checkpoint(tmp_path, shared))
    untied = refusal(write_checkpoint(tmp_path, random_weights(), tie_word_embeddings=False))
    assert "lm_head.weight" in untied


def test_a_directory_that_is_none(tmp_path):
    assert "no such folder" in refusal(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "is a file; give the folder" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"not json", b'{"model_type": NaN}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_config_that_is_not_json(tmp_path, text):
    write_checkpoint(tmp_path, random_weights())
    (tmp_path / "config.json").write_bytes(text)
    assert "config.json: is not JSON in UTF-8" in refusal(tmp_path)


def test_a_config_that_is_json_of_another_kind(tmp_path):
    write_checkpoint(tmp_path, random_weights())
    (tmp_path / "config.json").write_text("[1]")
    assert "not an object" in refusal(tmp_path)


def test_a_config_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    write_checkpoint(tmp_path, random_weights())
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "config.json: cannot be read (Permission denied)" in refusal(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "ffn_dim",
        "num_attention_heads",
        "max_position_embeddings",
        "vocab_size",
        "activation_function",
    ],
)
def test_a_config_without_a_needed_key(tmp_path, key):
    folder = write_checkpoint(tmp_path, random_weights(), **{key: None})
    assert f"config.json lacks {key}; give the whole config.json of the model" in refusal(folder)


@pytest.mark.parametrize("value", [0, -1, 6.0, "6", True, [6]])
def test_a_config_with_an_impossible_value(tmp_path, value):
    folder = write_checkpoint(tmp_path, random_weights(), ffn_dim=value)
    assert f"ffn_dim {value!r}; it must be a positive integer" in refusal(folder)
    folder = write_checkpoint(tmp_path, random_weights(), enable_bias=1)
    assert "enable_bias 1; it must be true or false" in refusal(folder)
    folder = write_checkpoint(tmp_path, random_weights(), num_attention_heads=4)
    assert "hidden_size 6, which num_attention_heads 4 does not divide" in refusal(folder)


EMBEDDINGS = {"opt": "model.decoder.embed_tokens.weight", "falcon": "transformer.word_embeddings.weight"}
EMBEDDINGS |= dict.fromkeys(("persimmon", "phi", "llama"), "model.embed_tokens.weight")


@pytest.mark.parametrize("family", list(EMBEDDINGS))
def test_a_tied_head_that_is_there_all_the_same(tmp_path, family):
    # transformers does not tie tensors that differ, whatever config.json says.
    folder = write_family(tmp_path, family, tie_word_embeddings=True)
    weights, name = load_file(folder / "model.safetensors"), EMBEDDINGS[family]
    assert "lm_head.weight" not in weights
    whole, other = weights[name], weights[name].copy()
    other[-1, -1] *= -1
    for head in (other, whole[1:], whole.reshape(whole.shape[::-1]), whole.astype(np.float16)):
        write_file(folder / "model.safetensors", weights | {"lm_head.weight": np.ascontiguousarray(head)})
        text = refusal(folder, DomainError)
        assert f"but lm_head.weight is not {name}; set tie_word_embeddings to false" in text
    write_file(folder / "model.safetensors", weights | {"lm_head.weight": whole})
    assert open_checkpoint(folder).config.tied
    # Untied it is a tensor like any other.
    write_family(tmp_path, family, tie_word_embeddings=False)
    assert not same(load_tensor(open_checkpoint(folder), "lm_head.weight"), whole)


def test_models_and_activations_that_are_not_supported(tmp_path):
    def text(**config):
        return refusal(write_checkpoint(tmp_path, random_weights(), **config), DomainError)

    known = "which is not supported; use one of opt, falcon, persimmon, phi, llama"
    assert f"model_type 'gpt2', {known}" in text(model_type="gpt2")
    unknown = text(activation_function="tanh")
    assert "activation_function 'tanh'; use one of relu, relu2, fatrelu, silu, swish, gelu" in unknown
    for key in ("model_type", "activation_function"):
        folder = write_checkpoint(tmp_path, random_weights(), **{key: ["relu"]})
        assert f"{key} ['relu']; it must be a name" in refusal(folder)


def test_the_variant_of_opt_350m_needs_its_projections_and_no_last_norm(tmp_path):
    tensors = random_weights(final_norm=False)
    tensors["model.decoder.embed_tokens.weight"] = np.ones((VOCABULARY, 4), np.float32)
    tensors["model.decoder.project_in.weight"] = np.ones((WIDTH, 4), np.float32)
    variant = {"do_layer_norm_before": False, "word_embed_proj_dim": 4}
    text = refusal(write_checkpoint(tmp_path, tensors, **variant))
    assert "lacks the tensor model.decoder.project_out.weight" in text
    tensors["model.decoder.project_out.weight"] = np.ones((WIDTH, 4), np.float32)
    text = refusal(write_checkpoint(tmp_path, tensors, **variant), ShapeError)
    assert "has the shape (6, 4), but config.json asks for (4, 6)" in text
    tensors["model.decoder.project_out.weight"] = np.ones((4, WIDTH), np.float32)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, **variant))
    assert checkpoint.config.family_config == (4, False, True, True, False)


def test_weights_that_are_missing_or_of_torch(tmp_path):
    folder = write_checkpoint(tmp_path / "it's", random_weights())
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    text = refusal(folder)
    assert ".bin files" in text and "save_pretrained" in text
    # What to type survives a shell; test_parity.py runs it.
    words = shlex.split(text[text.index("python -c") :])
    assert words[:2] == ["python", "-c"] and words[3:] == [str(folder), f"{folder}-safetensors"]


def test_a_tensor_that_is_missing_or_does_not_fit(tmp_path):
    tensors = random_weights()
    for name, array in tensors.items():
        others = {other: value for other, value in tensors.items() if other != name}
        assert f"lacks the tensor {name}," in refusal(write_checkpoint(tmp_path, others))
        wide = np.zeros((*array.shape[:-1], array.shape[-1] + 1), np.float32)
        text = refusal(write_checkpoint(tmp_path, tensors | {name: wide}), ShapeError)
        assert f"the tensor {name} has the shape {wide.shape}, but config.json asks for {array.shape}" in text
    transposed = refusal(write_checkpoint(tmp_path, tensors | {UP: tensors[UP].T.copy()}), ShapeError)
    assert f"{UP} has the shape (6, 5)" in transposed
    mixed = refusal(write_checkpoint(tmp_path, tensors | {UP: tensors[UP].astype("<f2")}), ShapeError)
    assert f"the tensor {UP} is F16 and model.decoder.embed_tokens.weight is F32" in mixed
    double = {name: array.astype("<f8") for name, array in tensors.items()}
    assert "is F64" in refusal(write_checkpoint(tmp_path, double), ShapeError)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors | {"extra": np.zeros(3)}))
    with pytest.raises(ImageError, match="has no tensor nothing"):
        load_tensor(checkpoint, "nothing")


def test_a_config_that_claims_very_many_layers_is_refused_at_once(tmp_path):
    folder = write_checkpoint(tmp_path, random_weights(), num_hidden_layers=10**12)
    assert "lacks the tensor model.decoder.layers.2." in refusal(folder)
    folder = write_checkpoint(tmp_path, random_weights(), hidden_size=3 * 10**17, num_attention_heads=1)
    assert "but config.json asks for (300000000000000000,)" in refusal(folder, ShapeError)


def test_an_index_that_does_not_fit_its_shards(tmp_path):
    folder = write_checkpoint(tmp_path, random_weights(), shards=3)
    index = folder / "model.safetensors.index.json"
    good = index.read_text()
    shard = "model-00002-of-00003.safetensors"
    weight_map = json.loads(good)["weight_map"]

    index.write_text("{")
    assert "index.json: is not JSON" in refusal(folder)
    for bad in ({}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(bad))
        assert "has no weight_map" in refusal(folder)
    index.write_text(json.dumps({"weight_map": {"a": f"../{folder.name}/{shard}"}}))
    assert "not a file beside it" in refusal(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {"a": shard}}))
    assert "lacks the tensor a, which" in refusal(folder)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in weight_map.items() if v != shard}}))
    assert "get the missing shard" in refusal(folder)
    index.write_text(good)
    (folder / shard).unlink()
    assert f"lacks {shard}, which model.safetensors.index.json names; get that shard" in refusal(folder)


def test_a_damaged_file_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path, random_weights())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    refusal(folder)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_when_it_is_loaded(tmp_path, dtype, value):
    tensors = random_weights(dtype=dtype)
    tensors[DOWN][3, 4] = to_dtype(np.array([value], np.float32), dtype)[0]
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors))
    load_ffn(checkpoint, 0)
    for load in (lambda: load_ffn(checkpoint, 1), lambda: load_tensor(checkpoint, DOWN)):
        with pytest.raises(DomainError, match=r"layers\.1\.fc2\.weight.* not finite"):
            load()
