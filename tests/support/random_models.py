"""Small random models: an OPT whose few neurons fire, with predictors that err, and one of any family."""

import json
from functools import partial
from typing import NamedTuple

import numpy as np
from checkpoint_files import to_dtype, write_checkpoint, write_file
from safetensors.numpy import save_file

from flashref.bundle import Layout
from flashref.decode import sum_resident
from flashref.ffn import active_neurons
from flashref.models.budget import Budget, Demand, demand_of
from flashref.models.checkpoint import load_ffn, open_checkpoint, tensor_shapes
from flashref.models.config import parse_config
from flashref.models.decoding import Decoder
from flashref.models.model import load_model
from flashref.models.predictors import load_predictors
from flashref.models.setup import empty_layers
from flashref.predictor import predict_active
from flashref.slots import swap_with_last
from flashref.storage.device import PRESETS
from flashref.storage.image import Image, image_tensor, open_image, pack_image
from flashref.storage.readers import memory_reader
from flashref.types import FFN

LAYERS, WIDTH, NEURONS, CONTEXT = 2, 16, 48, 64
SHAPE = {
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "ffn_dim": NEURONS,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "vocab_size": 256,
}


class Weights(NamedTuple):
    """name → array as the files hold it."""

    model: dict[str, np.ndarray]
    predictors: dict[str, np.ndarray]


def random_weights(seed=0, rank=6, dtype=np.float16):
    """Names as Hugging Face has them; predictors are the up projection cut down to a rank, in F16."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    d, n = WIDTH, NEURONS
    tensors = {"embed_tokens.weight": normal(256, d), "embed_positions.weight": normal(CONTEXT + 2, d)}
    predictors = {}
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        for which in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{block}.self_attn.{which}.weight"] = normal(d, d, scale=d**-0.5)
            tensors[f"{block}.self_attn.{which}.bias"] = normal(d, scale=0.1)
        tensors[f"{block}.fc1.weight"] = up = normal(n, d, scale=d**-0.5)
        tensors[f"{block}.fc1.bias"] = bias = normal(n, scale=0.2) - dtype(1.3)
        tensors[f"{block}.fc2.weight"] = normal(d, n)
        tensors[f"{block}.fc2.bias"] = normal(d, scale=0.1)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            tensors[f"{block}.{name}.weight"] = normal(d, scale=0.1) + dtype(1)
            tensors[f"{block}.{name}.bias"] = normal(d, scale=0.1)
        u, s, v = np.linalg.svd(up.astype(np.float64), full_matrices=False)
        predictors |= {
            f"{block}.a": (s[:rank, None] * v[:rank]).astype(np.float16),
            f"{block}.b": u[:, :rank].astype(np.float16),
            f"{block}.bias": bias.astype(np.float16),
            f"{block}.threshold": np.float32([-0.1]),
        }
    tensors["final_layer_norm.weight"] = normal(d, scale=0.1) + dtype(1)
    tensors["final_layer_norm.bias"] = normal(d, scale=0.1)
    return Weights({f"model.decoder.{name}": array for name, array in tensors.items()}, predictors)


def write_model(folder, weights, predictors=True, held_out=b"", **config):
    """A directory as `flashref run --model` takes it."""
    write_checkpoint(folder, weights.model, **(SHAPE | config))
    if predictors:
        save_file(weights.predictors, folder / "predictors.safetensors")
    if held_out:
        (folder / "held_out.txt").write_bytes(held_out)
    return folder


FAMILIES = {  # the smallest shape that has everything: several layers, heads in groups where there are such
    "opt": {"ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH, "activation_function": "relu"},
    "falcon": {
        "ffn_hidden_size": NEURONS,
        "activation": "relu",
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
    },
    "persimmon": {"intermediate_size": NEURONS, "hidden_act": "relu2"},
    "phi": {"intermediate_size": NEURONS, "hidden_act": "relu", "partial_rotary_factor": 0.5},
    "llama": {"intermediate_size": NEURONS, "hidden_act": "relu", "num_key_value_heads": 2},
}
ACTIVATION_KEYS = {"opt": "activation_function", "falcon": "activation"}  # and hidden_act elsewhere


def family_config(family, **config):
    """A config.json of a small model; activation: by Hugging Face's name."""
    values = {
        "model_type": family,
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "vocab_size": 256,
        **FAMILIES[family],
    }
    activation = config.pop("activation_name", None)
    if activation is not None:
        values[ACTIVATION_KEYS.get(family, "hidden_act")] = activation
    return values | config


def write_family(folder, family, dtype="F32", seed=0, held_out=b"", **config):
    """A random model of any family, its names and shapes from the checkpoint's own list; no predictors."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(family_config(family, **config))
    (folder / "config.json").write_text(text)
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in tensor_shapes(parse_config(text)):
        values = rng.standard_normal(shape)
        if len(shape) == 1:
            values = 0.2 * values + (1 if "norm" in name and name.endswith("weight") else 0)
        elif "embed" not in name:
            values *= shape[1] ** -0.5
        tensors[name] = to_dtype(values.astype(np.float32), dtype)
    write_file(folder / "model.safetensors", tensors)
    if held_out:
        (folder / "held_out.txt").write_bytes(held_out)
    return folder


def write_tokenizer(folder, size=280, template="<s> $A", **changes):
    """A byte-level BPE trained on a line, with a token at the start of every text."""
    import tokenizers  # an extra

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["In the beginning was the word, and the earth was without form"] * 9, trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    values = json.loads(bpe.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return bpe


DEVICE = PRESETS["paper_m1max_fig2b"]


class Opened(NamedTuple):
    """A model packed and opened: everything that decoding from flash and its proof need."""

    image: Image
    layouts: list[Layout]
    ffns: list[FFN]
    demand: Demand
    budget: Budget
    decoder: Decoder


def open_packed(folder, capacities=(20, 20), window=3, predictor="trained", semantics=sum_resident):
    """The model of a directory, packed into it, with as many rows a layer as told."""
    checkpoint = open_checkpoint(folder)
    path = folder / "image"
    if not path.exists():
        layers = dict(enumerate(checkpoint.layers))
        pack_image(path, checkpoint.tensors, layers, checkpoint.config_text)
    image = open_image(path)
    layouts = [image.layouts[layer][0] for layer in range(LAYERS)]
    sizes = {name: file.tensors[name].length for name, file in checkpoint.tensors.items()}
    matrices = {name for fields in checkpoint.layers for name in fields.values()}
    demand = demand_of(sizes, matrices, 0, LAYERS, layouts[0])
    used = demand.fixed + sum(capacities) * demand.stride
    budget = Budget(used, window, capacities, used)
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    model = load_model(checkpoint.config, partial(image_tensor, image))
    trained = load_predictors(folder / "predictors.safetensors", LAYERS, NEURONS, WIDTH).layers
    predict = {
        "exact": tuple(partial(active_neurons, ffn=ffn) for ffn in ffns),
        "trained": tuple(partial(predict_active, predictor=one) for one in trained),
    }[predictor]
    read = memory_reader(path.read_bytes(), DEVICE)
    layers = empty_layers(image, model, demand, budget)
    decoder = Decoder(model, layers, predict, swap_with_last, read, semantics)
    return Opened(image, layouts, ffns, demand, budget, decoder)
