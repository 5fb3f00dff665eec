"""Makes the tiny model that flashref ships: an OPT of four layers, and its predictors.

    python flashref/data/train_tiny.py [--text FILE.deb | --text FILE.txt] [--out DIR]

Run it from a checkout with the ``train`` extra installed.  The text is the King James Bible as
Debian packages it (bible-kjv-text 4.38); without ``--text`` it is fetched by ``apt-get download``.
About 40 minutes on one core.  Progress goes to stderr, the results to stdout as one JSON line.

The steps: read the text; split it; train in float32; round to F16; fit a predictor per layer on
the training text; choose ranks and thresholds on the development text; judge, once, on the
held-out text; write config.json, model.safetensors, predictors.safetensors and held_out.txt.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import muon
from safetensors.numpy import save_file

PACKAGE, VERSION = "bible-kjv-text", "4.38"
SLICE = 65_536  # bytes of the development slice, and of the held-out slice

Parameters = dict[str, jax.Array]


# --- the text -------------------------------------------------------------------------------------


def fetch_package(folder: Path) -> Path:
    """Download the Debian package of the text, this very version, into a folder."""
    subprocess.run(["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True, stdout=sys.stderr)
    return next(folder.glob(f"{PACKAGE}_*.deb"))


def unpack_text(package: Path) -> bytes:
    """The text inside the package: 68 windows of at most 64 KiB, each packed by compress(1)."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        packed = (Path(folder) / "usr/lib/bible.data").read_bytes()
    (windows,) = struct.unpack_from(">I", packed, 0x58)
    starts = struct.unpack_from(f">{windows + 1}I", packed, 0x5C)
    magic = b"\x1f\x9d\x90"  # what compress(1) writes first; the package leaves it out
    parts = []
    for start, end in zip(starts, starts[1:], strict=False):
        result = subprocess.run(
            ["gzip", "-dc"], input=magic + packed[start:end], capture_output=True, check=True
        )
        parts.append(result.stdout)
    return b"".join(parts)


class Split(NamedTuple):
    """Three disjoint texts: to fit on, to choose on, to judge on."""

    training: bytes
    development: bytes
    held_out: bytes


def split_text(text: bytes) -> Split:
    """Cut two slices of 64 KiB out of the middle of the narrative books; the rest is for training.

    Development begins where 1 Samuel does, held-out at the next line after it, training resumes at
    the next line after that; the two broken lines in between are not used at all.
    A line is a verse; "1Sm3:4 " in front of it is left out, so the model sees plain English.
    """
    lines = text.splitlines(keepends=True)[1:]  # the first line is the edition's title
    verses = [line.split(b" ", 1)[1] for line in lines]
    samuel = next(i for i, line in enumerate(lines) if line.startswith(b"1Sm"))
    before, after = b"".join(verses[:samuel]), b"".join(verses[samuel:])
    middle = after.index(b"\n", SLICE - 1) + 1
    end = after.index(b"\n", middle + SLICE - 1) + 1
    return Split(before + after[end:], after[:SLICE], after[middle : middle + SLICE])


def chunks(text: bytes, length: int) -> np.ndarray:
    """Non-overlapping chunks of a text, (chunks, length) int32; a shorter rest is dropped."""
    count = len(text) // length
    return np.frombuffer(text, np.uint8)[: count * length].reshape(count, length).astype(np.int32)


# --- the model ------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What an OPT needs to know about itself."""

    layers: int = 4
    width: int = 128
    neurons: int = 1024
    heads: int = 4
    context: int = 128
    vocabulary: int = 256


def config(shape: Shape) -> dict[str, Any]:
    """config.json; no byte is special, so begin, end and padding have no id."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
        "tie_word_embeddings": True,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "word_embed_proj_dim": shape.width,
        "ffn_dim": shape.neurons,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "use_cache": True,
        "dtype": "float16",
        "torch_dtype": "float16",
    }


def initial_parameters(key: jax.Array, shape: Shape) -> Parameters:
    """Random weights under the names of Hugging Face; a linear map's weight is (outputs, inputs)."""
    sizes: dict[str, tuple[int, int, float]] = {
        "embed_tokens": (shape.vocabulary, shape.width, 0.02),
        "embed_positions": (shape.context + 2, shape.width, 0.02),  # OPT's offset of 2
    }
    inner, outer = shape.width**-0.5, (2 * shape.layers) ** -0.5
    for layer in range(shape.layers):
        block = f"layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            sizes[f"{block}.self_attn.{name}"] = (shape.width, shape.width, inner)
        sizes[f"{block}.self_attn.out_proj"] = (shape.width, shape.width, inner * outer)
        sizes[f"{block}.fc1"] = (shape.neurons, shape.width, inner)
        sizes[f"{block}.fc2"] = (shape.width, shape.neurons, shape.neurons**-0.5 * outer)
    parameters = {}
    for each, (name, (rows, columns, scale)) in zip(
        jax.random.split(key, len(sizes)), sizes.items(), strict=True
    ):
        parameters[f"model.decoder.{name}.weight"] = scale * jax.random.normal(each, (rows, columns))
        if not name.startswith("embed"):
            parameters[f"model.decoder.{name}.bias"] = jnp.zeros(rows)
    norms = [
        f"layers.{layer}.{which}"
        for layer in range(shape.layers)
        for which in ("self_attn_layer_norm", "final_layer_norm")
    ]
    for name in [*norms, "final_layer_norm"]:
        parameters[f"model.decoder.{name}.weight"] = jnp.ones(shape.width)
        parameters[f"model.decoder.{name}.bias"] = jnp.zeros(shape.width)
    return parameters


def linear(parameters: Parameters, name: str, x: jax.Array) -> jax.Array:
    """x (..., inputs) through a linear map with bias."""
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def norm(parameters: Parameters, name: str, x: jax.Array) -> jax.Array:
    """Layer norm over the last axis, with OPT's epsilon."""
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def attention(parameters: Parameters, name: str, x: jax.Array, heads: int) -> jax.Array:
    """Causal self-attention, (batch, tokens, width)."""
    batch, tokens, width = x.shape
    query, key, value = (
        linear(parameters, f"{name}.{which}_proj", x).reshape(batch, tokens, heads, -1) for which in "qkv"
    )
    scores = jnp.einsum("bthd,bshd->bhts", query * (width // heads) ** -0.5, key)
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    mixed = jnp.einsum("bhts,bshd->bthd", weights, value).reshape(batch, tokens, width)
    return linear(parameters, f"{name}.out_proj", mixed)


class Forward(NamedTuple):
    """What one pass over (batch, tokens) gives; the lists have one array per layer."""

    logits: jax.Array  # (batch, tokens, vocabulary)
    inputs: list[jax.Array]  # what fc1 receives, (batch, tokens, width)
    before: list[jax.Array]  # what fc1 gives, before the ReLU, (batch, tokens, neurons)


def forward(parameters: Parameters, tokens: jax.Array, shape: Shape) -> Forward:
    """OPT with pre-norm: logits of the next byte at every position, and what the FFNs saw."""
    top = "model.decoder"
    positions = jnp.arange(tokens.shape[1]) + 2
    x = parameters[f"{top}.embed_tokens.weight"][tokens]
    x = x + parameters[f"{top}.embed_positions.weight"][positions]
    inputs, before = [], []
    for layer in range(shape.layers):
        block = f"{top}.layers.{layer}"
        normed = norm(parameters, f"{block}.self_attn_layer_norm", x)
        x = x + attention(parameters, f"{block}.self_attn", normed, shape.heads)
        inputs.append(norm(parameters, f"{block}.final_layer_norm", x))
        before.append(linear(parameters, f"{block}.fc1", inputs[-1]))
        x = x + linear(parameters, f"{block}.fc2", jax.nn.relu(before[-1]))
    x = norm(parameters, f"{top}.final_layer_norm", x)
    return Forward(x @ parameters[f"{top}.embed_tokens.weight"].T, inputs, before)
