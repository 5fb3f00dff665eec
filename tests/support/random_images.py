"""Small checkpoints of any finite bits, images packed of them, and their bytes as others read them."""

import json
import os
from collections import namedtuple

import numpy as np
import pytest
import safetensors
from hypothesis import strategies as st

from flashref.storage.container import read_container
from flashref.storage.image import pack_image

BITS = {
    "F32": (np.dtype("<u4"), 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
Model = namedtuple(
    "Model", "arrays layers config dtype"
)  # arrays: name → (dtype, array); layers: as pack_image


def finite(rng, dtype, *shape):
    """Any finite bit patterns: subnormals, both zeros, the largest."""
    unsigned, exponent = BITS[dtype]
    bits = rng.integers(0, 1 << 8 * unsigned.itemsize, shape, unsigned, endpoint=False)
    lowered = bits & unsigned.type(~(exponent & -exponent) & (1 << 8 * unsigned.itemsize) - 1)
    return np.where(bits & unsigned.type(exponent) == exponent, lowered, bits).view(STORED[dtype])


def model(seed, dtype="F16", gated=False, layers=(0, 1), n=5, d=3):
    rng = np.random.default_rng(seed)
    arrays = {
        "embed": (dtype, finite(rng, dtype, 7, d)),
        "ids": ("I64", np.arange(3)),
        "one": (dtype, finite(rng, dtype)),
    }
    arrays["none"] = (dtype, finite(rng, dtype, 0, d))
    names = {}
    for layer in layers:
        fields = {"gate": (n, d), "up": (n, d), "down": (d, n)} if gated else {"up": (n, d), "down": (d, n)}
        names[layer] = {field: f"h.{layer}.{field}.weight" for field in fields}
        arrays |= {
            names[layer][field]: (dtype, finite(rng, dtype, *shape)) for field, shape in fields.items()
        }
        arrays[f"h.{layer}.up.bias"] = (dtype, finite(rng, dtype, n))
    return Model(arrays, names, json.dumps({"model_type": "öpt", "seed": seed}), dtype)


def write_checkpoint(path, arrays):
    """By hand, so that BF16 needs nobody; the arrays may lie in memory as they like."""
    offset, header, data = 0, {}, b""
    for name, (dtype, array) in arrays.items():
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, offset + len(raw)]}
        offset, data = offset + len(raw), data + raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    container = read_container(path)
    return dict.fromkeys(arrays, container)


def packed(folder, made, name="image", **options):
    """The image's path, packed afresh."""
    path = folder / name
    path.unlink(missing_ok=True)
    tensors = write_checkpoint(folder / "model.safetensors", made.arrays)
    pack_image(path, tensors, made.layers, made.config, **options)
    return path


def library(path):
    """name → (dtype, shape, bytes) as the safetensors library reads the file."""
    return {
        name: (told["dtype"], tuple(told["shape"]), bytes(told["data"]))
        for name, told in safetensors.deserialize(path.read_bytes())
    }


def rows(made, layer, neuron, fields):
    """One neuron's bytes, by NumPy: gate, up, down, in this order."""
    arrays = {field: made.arrays[made.layers[layer][field]][1] for field in fields}
    return b"".join(
        (array[:, neuron] if field == "down" else array[neuron]).tobytes() for field, array in arrays.items()
    )


# A test file takes the fixtures that it needs as its own: folder = random_images.folder


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """One test says when packing syncs; the others need not wait for it a thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@st.composite
def packings(draw):
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 9)) * draw(st.sampled_from([1, 1, 97]))
    layers = draw(st.sets(st.integers(0, 12), max_size=12))
    dtype = draw(st.sampled_from(["F32", "F16", "BF16"]))
    made = model(draw(st.integers(0, 99)), dtype, draw(st.booleans()), sorted(layers), n, d)
    ordered = draw(st.sets(st.sampled_from(sorted(layers)))) if layers else set()
    orders = {layer: draw(st.permutations(range(n))) for layer in sorted(ordered)}
    return (
        made,
        n,
        d,
        {"block": draw(st.sampled_from([512, 4096])), "orders": orders, "bundled": draw(st.booleans())},
    )
