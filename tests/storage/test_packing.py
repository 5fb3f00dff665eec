"""Chapter 54: every byte of an image against the safetensors library, NumPy and zlib; what cannot be one."""

import os
import re
import zlib

import numpy as np
import pytest
import random_images
from hypothesis import example, given
from hypothesis import strategies as st
from random_images import BITS, STORED, Model, library, model, packed, packings, rows, write_checkpoint

from flashref.bundle import bundle_crc32, bundle_extents, bundle_layout, pack_bundles, unpack_bundles
from flashref.storage.container import read_container
from flashref.storage.image import image_tensor, open_image, pack_image
from flashref.storage.packing import plan_image
from flashref.types import DomainError, ImageError, LayoutError, ShapeError, same

no_waiting_for_the_disk = random_images.no_waiting_for_the_disk
folder = random_images.folder


@pytest.mark.req("IMG-1", "IMG-2", "IMG-3", "IMG-4", "IMG-5", "IMG-8", "IMG-16")
@given(packings())
@example(
    (
        model(0, "BF16", True, range(12), 3, 2),
        3,
        2,
        {"block": 512, "orders": {10: [2, 0, 1]}, "bundled": True},
    )
)
@example((model(1, "F32", False, (3,), 1, 1), 1, 1, {"block": 4096, "orders": {}, "bundled": False}))
def test_every_tensor_is_where_it_belongs(folder, packing):
    made, n, d, options = packing
    path = packed(folder, made, **options)
    got, image = library(path), open_image(path)
    block, bundled = options["block"], options["bundled"]
    ffn = {name for names in made.layers.values() for name in names.values()}
    for name in made.arrays.keys() - ffn:
        dtype, array = made.arrays[name]
        assert got[name] == (dtype, array.shape, array.tobytes())
        assert same(image_tensor(image, name), array)
    assert set(image.resident) == made.arrays.keys() - ffn
    assert not ffn & got.keys()
    for name, entry in image.container.tensors.items():
        assert name.startswith("pad.") or entry.offset % block == 0
        if name.startswith("pad."):
            assert 0 < entry.length < block and got[name][2] == bytes(entry.length)
    assert path.stat().st_size % block == 0
    assert image.bundled == bundled
    assert image.layouts.keys() == image.checksums.keys() == made.layers.keys()
    whole = np.fromfile(path, np.uint8)
    for layer, names in made.layers.items():
        fields = [field for field in ("gate", "up", "down") if field in names]
        order = options["orders"].get(layer, range(n))
        for which, together in enumerate([fields] if bundled else [[field] for field in fields]):
            tensor = f"layers.{layer}.{'bundles' if bundled else together[0]}"
            start = image.container.tensors[tensor].offset
            layout, sums = image.layouts[layer][which], image.checksums[layer][which]
            expected = bundle_layout(n, d, made.dtype, together, block, start, options["orders"].get(layer))
            assert same(layout, expected)
            width = layout.stride // np.dtype(STORED[made.dtype]).itemsize
            dtype, shape, data = got[tensor]
            assert (dtype, shape) == (made.dtype, (n, width))
            by_hand = b"".join(rows(made, layer, i, together).ljust(layout.stride, b"\0") for i in order)
            assert data == by_hand
            matrices = {
                f: made.arrays[names[f]][1].T if f == "down" else made.arrays[names[f]][1] for f in together
            }
            assert data == pack_bundles(layout, matrices).tobytes()
            back = unpack_bundles(layout, whole[start : start + n * layout.stride])
            assert all(same(back[f], np.ascontiguousarray(matrices[f])) for f in together)
            assert sums.dtype == np.uint32 and got[f"{tensor}.crc32"] == ("U32", (n,), sums.tobytes())
            for i, extent in enumerate(bundle_extents(layout, range(n))):
                padded = whole[extent.offset : extent.offset + layout.stride]
                assert sums[i] == bundle_crc32(padded) == zlib.crc32(padded.tobytes())


@pytest.mark.req("IMG-5")
@pytest.mark.parametrize("field", ["up", "down"])
def test_every_finite_fp16_pattern_survives(tmp_path, field):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    patterns = patterns[np.isfinite(patterns.view(np.float16))]
    assert patterns.size == 63_488
    matrix = patterns.view(np.float16).reshape(992, 64)
    other = np.zeros((992, 64), np.float16)
    up, down = (matrix, other.T) if field == "up" else (other, matrix.T)
    made = Model(
        {"u": ("F16", up), "w": ("F16", down), "e": ("F16", matrix)}, {0: {"up": "u", "down": "w"}}, "", "F16"
    )
    path = packed(tmp_path, made)
    image = open_image(path)
    [layout] = image.layouts[0]
    back = unpack_bundles(
        layout, np.fromfile(path, np.uint8)[layout.start : layout.start + 992 * layout.stride]
    )
    assert same(back[field].view(np.uint16).reshape(-1), patterns)
    assert same(image_tensor(image, "e"), matrix)


@pytest.mark.req("IMG-6")
@pytest.mark.parametrize("name", ["embed", "h.1.up.weight", "h.1.down.weight", "h.0.up.bias", "one"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path, name, dtype, sign):
    made = model(0, dtype)
    unsigned, exponent = BITS[dtype]
    for mantissa in (0, 1):
        bits = made.arrays[name][1].view(unsigned).copy()
        bits.reshape(-1)[-1] = exponent | mantissa | sign << 8 * unsigned.itemsize - 1
        made.arrays[name] = (dtype, bits.view(STORED[dtype]))
        with pytest.raises(DomainError, match=f"'{re.escape(name)}' holds a value that is not finite"):
            packed(tmp_path, made)
        assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.req("IMG-7")
@given(packings(), st.randoms())
def test_equal_checkpoints_give_equal_bytes(folder, packing, random):
    made, _, _, options = packing
    first = packed(folder, made, **options).read_bytes()
    names = list(made.arrays)
    random.shuffle(names)
    half = len(names) // 2
    tensors = write_checkpoint(folder / "a", {name: made.arrays[name] for name in names[:half]})
    tensors |= write_checkpoint(folder / "b", {name: made.arrays[name] for name in names[half:]})
    (folder / "again").unlink(missing_ok=True)
    layers = {layer: dict(reversed(made.layers[layer].items())) for layer in reversed(made.layers)}
    pack_image(folder / "again", tensors, layers, made.config, **options)
    assert (folder / "again").read_bytes() == first


@pytest.mark.req("IMG-7")
def test_layer_10_lies_behind_layer_2(tmp_path):
    made = model(0, layers=range(12))
    names = list(open_image(packed(tmp_path, made)).container.tensors)
    for pattern in (r"layers\.(\d+)\.bundles", r"h\.(\d+)\.up\.bias"):
        assert [int(m[1]) for name in names if (m := re.fullmatch(pattern, name))] == list(range(12))


@pytest.mark.req("IMG-9")
@pytest.mark.parametrize("extra", [0, *range(105, 125)])  # among them: a table that fills its block exactly
def test_the_table_of_checksums_is_as_zlib_counts(tmp_path, extra):
    made = model(0, layers=(0, 3))
    made.arrays.update({f"x.{i}": ("F32", np.zeros(128, np.float32)) for i in range(extra)})
    path = packed(tmp_path, made, block=512)
    image, raw, got = open_image(path), path.read_bytes(), library(path)
    names = [
        name
        for name in image.container.tensors
        if name not in ("crc32", "layers.0.bundles", "layers.3.bundles")
    ]
    header = raw[: 8 + int.from_bytes(raw[:8], "little")]
    values = [zlib.crc32(header), *(zlib.crc32(got[name][2]) for name in names)]
    assert got["crc32"][2] == np.array(values, "<u4").tobytes().ljust(-(-len(values) // 128) * 512, b"\0")
    assert list(image.container.tensors)[-1] == "crc32"


@pytest.mark.req("IMG-3")
@pytest.mark.parametrize("bundled", [True, False])
def test_a_gate_that_is_not_named_stays_resident(tmp_path, bundled):
    made = model(0, gated=True)
    without = {layer: {"up": names["up"], "down": names["down"]} for layer, names in made.layers.items()}
    path = packed(tmp_path, made._replace(layers=without), bundled=bundled)
    image, got = open_image(path), library(path)
    together = [("up", "down")] if bundled else [("up",), ("down",)]
    for layer, names in made.layers.items():
        assert [layout.fields for layout in image.layouts[layer]] == together
        dtype, array = made.arrays[names["gate"]]
        assert got[names["gate"]] == (dtype, array.shape, array.tobytes())
        for fields in together:
            by_hand = b"".join(rows(made, layer, i, fields).ljust(8 * len(fields), b"\0") for i in range(5))
            assert got[f"layers.{layer}.{'bundles' if bundled else fields[0]}"][2] == by_hand


@pytest.mark.req("IMG-1")
@given(packings())
def test_a_plan_says_what_is_written(folder, packing):
    made, _, _, options = packing
    path = packed(folder, made, **options)
    tensors = dict.fromkeys(made.arrays, read_container(folder / "model.safetensors"))
    plan, container = plan_image(tensors, made.layers, made.config, **options), read_container(path)
    assert plan.size == path.stat().st_size
    assert plan.header_bytes == next(iter(container.tensors.values())).offset
    assert list(plan.entries.items()) == [
        (name, (entry.dtype, entry.shape)) for name, entry in container.tensors.items()
    ]
    differ = {key for key in plan.metadata if plan.metadata[key] != container.metadata[key]}
    assert plan.metadata.keys() == container.metadata.keys() and differ == {"fingerprint"}


@pytest.mark.req("IMG-1")
@pytest.mark.parametrize("block", [512, 1 << 20])
def test_the_smallest_and_the_largest_block_are_blocks(tmp_path, block):
    image = open_image(packed(tmp_path, model(0, layers=(0,)), block=block))
    assert [layout.block for layout in image.layouts[0]] == [block]


BAD_PACKINGS = {
    "a missing tensor": ({0: {"up": "nothing"}}, {}, ImageError, "no tensor 'nothing'"),
    "no fields": ({0: {}}, {}, LayoutError, "some of gate, up, down"),
    "an unknown field": ({0: {"side": "h.0.up.weight"}}, {}, LayoutError, "some of gate, up, down"),
    "a tensor named twice": ({0: {"up": "h.0.up.weight", "gate": "h.0.up.weight"}}, {}, LayoutError, "twice"),
    "down not transposed": (
        {0: {"up": "h.0.up.weight", "down": "h.1.up.weight"}},
        {},
        ShapeError,
        "h.1.up.weight",
    ),
    "a vector": ({0: {"up": "h.0.up.bias"}}, {}, ShapeError, "h.0.up.bias"),
    "integers": ({0: {"up": "ids"}}, {}, ShapeError, "ids"),
    "no neurons": ({0: {"up": "none"}}, {}, LayoutError, "n ≥ 1"),
    "a negative layer": ({-1: {"up": "h.0.up.weight"}}, {}, LayoutError, "from 0"),
    "an order of nobody": ({}, {"orders": {0: [0]}}, LayoutError, "only a layer that is bundled"),
    "no permutation": ({0: {"up": "h.0.up.weight"}}, {"orders": {0: [0] * 5}}, LayoutError, "once"),
    "a small block": ({}, {"block": 256}, LayoutError, "from 512"),
    "a large block": ({}, {"block": 1 << 21}, LayoutError, "to 1048576"),
    "an odd block": ({0: {"up": "h.0.up.weight"}}, {"block": 1000}, LayoutError, "power of two"),
}


@pytest.mark.parametrize("kind", BAD_PACKINGS)
def test_impossible_packings_are_refused(tmp_path, kind):
    layers, options, error, message = BAD_PACKINGS[kind]
    with pytest.raises(error, match=message):
        packed(tmp_path, model(0)._replace(layers=layers), **options)
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "name", ["crc32", "pad.0", "pad.77", "layers.0.bundles", "layers.3.up", "layers.0.up.crc32"]
)
def test_a_checkpoint_with_an_images_names_is_refused(tmp_path, name):
    made = model(0)
    made.arrays[name] = ("F32", np.zeros(1, np.float32))
    with pytest.raises(ImageError, match=f"'{name}' has a name that images use"):
        packed(tmp_path, made)


@pytest.mark.req("IMG-1", "IMG-16")
@pytest.mark.parametrize(
    "name", ["layers.0.up.weight", "layers.0.up.crc32.x", "pad.0.bias", "padded", "crc32c"]
)
def test_names_like_an_images_are_the_checkpoints(tmp_path, name):
    made = model(0)
    made.arrays[name] = ("F32", np.arange(3, dtype=np.float32))
    assert same(image_tensor(open_image(packed(tmp_path, made)), name), made.arrays[name][1])
