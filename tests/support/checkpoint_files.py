"""Checkpoints written by hand: safetensors byte by byte, and a small OPT with its names written out."""

import json
import struct

import numpy as np

LAYERS, WIDTH, NEURONS, HEADS, CONTEXT, VOCABULARY = 2, 6, 5, 3, 4, 7
CONFIG = {
    "model_type": "opt",
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "ffn_dim": NEURONS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "activation_function": "relu",
    "word_embed_proj_dim": WIDTH,
    "dropout": 0.1,
}
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}


def to_dtype(values, dtype):
    """Float32 values cut down to a stored dtype; BF16 keeps the upper half of the bits."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype(STORED[dtype])


def random_weights(seed=0, dtype="F32", biases=True, norms=True, final_norm=True, tied=True):
    """Every tensor of an OPT of CONFIG's shape, its names written out here once more."""
    shapes = {"embed_tokens.weight": (VOCABULARY, WIDTH), "embed_positions.weight": (CONTEXT + 2, WIDTH)}
    linears, layer_norms = {}, ["final_layer_norm"] if final_norm else []
    for layer in (f"layers.{index}" for index in range(LAYERS)):
        linears |= {f"{layer}.self_attn.{which}_proj": (WIDTH, WIDTH) for which in ("q", "k", "v", "out")}
        linears |= {f"{layer}.fc1": (NEURONS, WIDTH), f"{layer}.fc2": (WIDTH, NEURONS)}
        layer_norms += [f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"]
    shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
    if biases:
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    if norms:
        shapes |= {f"{name}.{part}": (WIDTH,) for name in layer_norms for part in ("weight", "bias")}
    named = {f"model.decoder.{name}": shape for name, shape in shapes.items()}
    if not tied:
        named["lm_head.weight"] = (VOCABULARY, WIDTH)
    generator = np.random.default_rng(seed)
    return {
        name: to_dtype(generator.standard_normal(shape).astype(np.float32), dtype)
        for name, shape in named.items()
    }


def write_file(path, tensors):
    """A safetensors file, byte by byte."""
    names = {dtype: name for name, dtype in STORED.items()}
    header, offset = {}, 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def write_checkpoint(folder, tensors, shards=1, **config):
    """A checkpoint of one file, or of several with an index. A config value of None leaves the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        write_file(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
