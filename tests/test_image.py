"""Chapter 54: the image against the safetensors library, NumPy and zlib; flipped bits; all ways to fail."""

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import tracemalloc
import zlib
from collections import namedtuple

import numpy as np
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from flashref.bundle import bundle_extents, bundle_layout, pack_bundles, unpack_bundles
from flashref.storage.container import read_container, tensor_array
from flashref.storage.image import (
    bundle_crc32,
    fingerprint,
    image_tensor,
    open_image,
    pack_image,
    require_bundles,
    require_checkpoint,
)
from flashref.storage.packing import plan_image
from flashref.types import DomainError, ImageError, LayoutError, ShapeError, same

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


@pytest.mark.req("IMG-10")
def test_packing_holds_one_layer(tmp_path):
    made = model(0, n=2048, d=1024, layers=range(3), gated=True)
    tensors = write_checkpoint(tmp_path / "model.safetensors", made.arrays)
    layer_bytes = 3 * 2048 * 1024 * 2
    tracemalloc.start()
    pack_image(tmp_path / "image", tensors, made.layers, made.config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    open_image(tmp_path / "image")
    opening = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert layer_bytes < peak < 1.5 * layer_bytes
    assert opening < 1 << 20


@pytest.mark.req("IMG-10")
def test_a_tensor_that_is_larger_than_a_layer_is_never_held_whole(tmp_path):
    made = model(0)
    made.arrays["embed"] = ("F16", np.zeros((1 << 20, 16), np.float16))
    tensors = write_checkpoint(tmp_path / "model.safetensors", made.arrays)
    tracemalloc.start()
    pack_image(tmp_path / "image", tensors, made.layers, made.config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.arrays["embed"][1].nbytes / 4


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
    assert list(plan.parts.items()) == [
        (name, (entry.dtype, entry.shape)) for name, entry in container.tensors.items()
    ]
    differ = {key for key in plan.metadata if plan.metadata[key] != container.metadata[key]}
    assert plan.metadata.keys() == container.metadata.keys() and differ == {"fingerprint"}


def test_what_is_written_is_synced_on_the_way(tmp_path, monkeypatch):
    made, calls, unsynced = model(0, n=40, d=20), [], 0
    real = os.pwrite
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(0))
    monkeypatch.setattr(os, "pwrite", lambda *args: calls.append(real(*args)) or calls[-1])
    monkeypatch.setattr("flashref.storage.image.UNSYNCED_BYTES", 3000)
    size = packed(tmp_path, made).stat().st_size
    assert calls[-2:] == [0, 0] and 0 not in calls[-4:-2]  # checksums, header, the file's sync, its folder's
    for written in calls[:-4]:
        assert unsynced < 3000 or not written  # then it is synced
        unsynced = unsynced + written if written else 0
    assert sum(calls) == size and 5 < calls.count(0) < size / 3000
    calls.clear()
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(0))
    packed(tmp_path, made)
    assert len(calls) == 2  # at the end, the file and its folder


def failing_writes(monkeypatch, call, error):
    real, calls = os.pwrite, itertools.count()

    def pwrite(*args):
        if next(calls) == call:
            raise error
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.req("IMG-11", "IMG-17")
@pytest.mark.parametrize("call", [0, 3, 9])
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch, call):
    failing_writes(monkeypatch, call, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ImageError, match=r"image: needs \d+ bytes, but \d+ are free; make room"):
        packed(tmp_path, model(0))
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.req("IMG-17")
def test_a_disk_without_room_is_not_written_to(tmp_path, monkeypatch):
    needed = packed(tmp_path, model(0)).stat().st_size
    usage = shutil.disk_usage(tmp_path)
    failing_writes(monkeypatch, 0, AssertionError("written"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ImageError, match=f"needs {needed} bytes, but {needed - 1} are free"):
        packed(tmp_path, model(0))
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert packed(tmp_path, model(0)).stat().st_size == needed


@pytest.mark.req("IMG-11")
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "Input/output error")]
)
def test_whatever_stops_it_leaves_nothing_behind(tmp_path, monkeypatch, error):
    for call in (0, 7):
        with monkeypatch.context() as patch:
            failing_writes(patch, call, error)
            with pytest.raises((KeyboardInterrupt, MemoryError, ImageError)):
                packed(tmp_path, model(0))
        assert os.listdir(tmp_path) == ["model.safetensors"]

    def stop(done, total):
        if done > total // 2:
            raise error

    with pytest.raises((KeyboardInterrupt, MemoryError, ImageError)):
        packed(tmp_path, model(0), progress=stop)
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.req("IMG-11")
def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls, real_link, real_pwrite = [], os.link, os.pwrite

    def fsync(descriptor):
        calls.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def link(source, target):
        calls.append("link")
        real_link(source, target)

    def pwrite(*args):
        calls.append("write")
        return real_pwrite(*args)

    for name, function in (("fsync", fsync), ("link", link), ("pwrite", pwrite)):
        monkeypatch.setattr(os, name, function)
    packed(tmp_path, model(0))
    order = [call.removeprefix("sync .image.")[-5:] for call, _ in itertools.groupby(calls)]
    assert order == ["write", ".part", "link", tmp_path.name[-5:]]


@pytest.mark.req("IMG-11")
def test_an_existing_file_is_never_touched(tmp_path, monkeypatch):
    tensors = write_checkpoint(tmp_path / "model.safetensors", model(0).arrays)
    (tmp_path / "image").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    failing_writes(monkeypatch, 0, AssertionError("written"))
    for name in ("image", "dangling"):
        with pytest.raises(ImageError, match=f"{name}: exists, and files are never overwritten"):
            pack_image(tmp_path / name, tensors, {}, "")
    assert (tmp_path / "image").read_bytes() == b"precious"
    assert set(os.listdir(tmp_path)) == {"model.safetensors", "image", "dangling"}


@pytest.mark.req("IMG-11")
def test_a_system_that_writes_little_at_a_time_changes_nothing(tmp_path, monkeypatch):
    whole = packed(tmp_path, model(0), block=512).read_bytes()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:100], offset))
    assert packed(tmp_path, model(0), block=512).read_bytes() == whole


@pytest.mark.parametrize("layers", [(0,), (0, 1), (0, 1, 2)])
def test_progress_ends_at_the_files_size(tmp_path, layers):
    seen, made = [], model(0, layers=layers)
    path = packed(tmp_path, made, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {path.stat().st_size}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == path.stat().st_size


@pytest.mark.req("IMG-12")
@given(packings())
def test_the_fingerprint_is_the_one_of_the_definition(folder, packing):
    made, _, _, options = packing
    tensors = write_checkpoint(folder / "model.safetensors", made.arrays)
    (folder / "image").unlink(missing_ok=True)
    entries = [
        [name, dtype, list(array.shape), zlib.crc32(array.tobytes())]
        for name, (dtype, array) in sorted(made.arrays.items())
    ]
    text = json.dumps([made.config, entries], separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint(tensors, made.config) == expected
    assert pack_image(folder / "image", tensors, made.layers, made.config, **options) == expected
    image = open_image(folder / "image")
    assert (image.fingerprint, image.config) == (expected, made.config)


@pytest.mark.req("IMG-1")
@pytest.mark.parametrize("block", [512, 1 << 20])
def test_the_smallest_and_the_largest_block_are_blocks(tmp_path, block):
    image = open_image(packed(tmp_path, model(0, layers=(0,)), block=block))
    assert [layout.block for layout in image.layouts[0]] == [block]


@pytest.mark.req("IMG-13")
def test_an_image_of_other_weights_is_refused(tmp_path):
    made = model(0)
    image = open_image(packed(tmp_path, made))
    require_checkpoint(image, image.fingerprint.encode().decode())  # equal, not the same object
    for expected in ("0" * 64, "f" * 64):
        with pytest.raises(ImageError, match="image of another model"):
            require_checkpoint(image, expected)
    others = [made._replace(config="{}"), model(1)]
    one_bit = made.arrays["h.1.down.weight"][1].view(np.uint16).copy()
    one_bit[0, 0] ^= 1
    others.append(made._replace(arrays=made.arrays | {"h.1.down.weight": ("F16", one_bit)}))
    others.append(made._replace(arrays={f"m.{name}": array for name, array in made.arrays.items()}))
    others.append(
        made._replace(arrays=made.arrays | {"embed": ("F16", made.arrays["embed"][1].reshape(3, 7))})
    )
    for other in others:
        expected = fingerprint(write_checkpoint(tmp_path / "other", other.arrays), other.config)
        with pytest.raises(ImageError, match="image: is the image of another model or of other weights"):
            require_checkpoint(image, expected)


def refused(path, damaged):
    """The one sentence with which opening the damaged bytes is refused, or None if it is not."""
    path.write_bytes(damaged)
    try:
        open_image(path)
    except ImageError as error:
        message = str(error)
        assert (
            message.startswith(f"{path}: ") and "; " in message and "\n" not in message and len(message) < 900
        )
        return message
    return None


@pytest.mark.req("IMG-14")
@pytest.mark.parametrize("bundled", [True, False])
def test_every_flipped_bit_is_seen(tmp_path, bundled):
    made = model(0, gated=True, n=7, d=5)
    made.arrays["a name before crc32"] = made.arrays["embed"]
    path = packed(tmp_path, made, block=512, bundled=bundled, orders={1: [6, 2, 0, 1, 5, 3, 4]})
    raw = path.read_bytes()
    image = open_image(path)
    bundles = [extents for layouts in image.layouts.values() for extents in layouts]
    rng = np.random.default_rng(1)
    places = set(range(8)) | set(rng.integers(0, image.container.tensors["embed"].offset, 200).tolist())
    for entry in image.container.tensors.values():  # first, last and some between, of every tensor and pad
        places |= {entry.offset, entry.offset + entry.length - 1} if entry.length else set()
        places |= (
            set((entry.offset + rng.integers(0, max(entry.length, 1), 12)).tolist())
            if entry.length
            else set()
        )
    for place in sorted(places):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(rng.integers(8))
        inside = [
            k
            for k, layout in enumerate(bundles)
            if layout.start <= place < layout.start + layout.n * layout.stride
        ]
        if not inside:
            assert refused(tmp_path / "damaged", bytes(damaged)), place
            continue
        path.with_name("damaged").write_bytes(damaged)
        opened = open_image(path.with_name("damaged"))
        sums = list(itertools.chain(*opened.checksums.values()))[inside[0]]
        wrong = [
            i
            for i, extent in enumerate(bundle_extents(bundles[inside[0]], range(7)))
            if zlib.crc32(damaged[extent.offset : extent.offset + bundles[inside[0]].stride]) != sums[i]
        ]
        assert len(wrong) == 1


@pytest.mark.req("IMG-19")
@pytest.mark.parametrize("bundled", [True, False])
@pytest.mark.parametrize(
    "piece_bytes", [100, 3 * 512, 4 << 20]
)  # less than a bundle; no whole number of them
def test_a_bundle_that_is_not_as_it_was_written_is_named(tmp_path, monkeypatch, bundled, piece_bytes):
    monkeypatch.setattr("flashref.storage.container.PIECE_BYTES", piece_bytes)
    order = [6, 2, 0, 1, 5, 3, 4]
    path = packed(tmp_path, model(0, gated=True, n=7, d=150), block=512, bundled=bundled, orders={1: order})
    raw, image, seen = path.read_bytes(), open_image(path), []
    total = sum(layout.n * layout.stride for layouts in image.layouts.values() for layout in layouts)
    require_bundles(image, lambda done, of: seen.append((done, of)))
    assert seen == sorted(seen) and seen[-1] == (total, total) and {of for _, of in seen} == {total}
    for layer, layouts in image.layouts.items():
        for layout in layouts:
            for position in range(7):
                last = layout.start + (position + 1) * layout.stride - 1
                path.write_bytes(raw[:last] + bytes([raw[last] ^ 128]) + raw[last + 1 :])
                neuron = order[position] if layer == 1 else position
                told = (
                    f"image: the {' and '.join(layout.fields)} row of neuron {neuron} in layer {layer} does"
                )
                with pytest.raises(ImageError, match=told):
                    require_bundles(open_image(path))


@pytest.mark.req("IMG-12")
def test_a_fingerprint_tells_how_far_it_is(tmp_path):
    made, seen = model(0), []
    tensors = write_checkpoint(tmp_path / "model.safetensors", made.arrays)
    fingerprint(tensors, made.config, lambda done, total: seen.append((done, total)))
    lengths = [array.nbytes for _, array in made.arrays.values()]
    assert seen == [(done, sum(lengths)) for done in itertools.accumulate(lengths)]


@pytest.mark.req("IMG-15")
def test_every_truncation_is_refused(tmp_path):
    path = packed(tmp_path, model(0), block=512)
    raw = path.read_bytes()
    cuts = {0, 1, 7, 8, 9, 100, len(raw) - 1, len(raw) - 512}
    for entry in open_image(path).container.tensors.values():
        cuts |= {entry.offset, entry.offset + entry.length // 2, entry.offset + entry.length - 1}
    for cut in cuts - {len(raw)}:
        assert refused(tmp_path / "damaged", raw[:cut]), cut
    assert refused(tmp_path / "damaged", raw + b"\0")
    assert refused(tmp_path / "damaged", raw + bytes(512))


def rewritten(raw, change):
    """The image with another header, its checksum made right again, as a careless writer would leave it."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(length if len(text) <= length else -(-(len(text) + 8) // 512) * 512 - 8)
    begin = 8 + length + header["crc32"]["data_offsets"][0] if "crc32" in header else 0
    new = len(text).to_bytes(8, "little") + text
    return new + raw[8 + length : begin] + zlib.crc32(new).to_bytes(4, "little") + raw[begin + 4 :]


def in_metadata(**changes):
    def change(header):
        header["__metadata__"].update(changes)

    return change


def in_record(**changes):
    def change(header):
        bundles = json.loads(header["__metadata__"]["bundles"])
        bundles["layers.1.bundles"].update(changes)
        header["__metadata__"]["bundles"] = json.dumps(bundles)

    return change


def without(key, inside=None):
    def change(header):
        del (header[inside] if inside else header)[key]

    return change


def with_sums(dtype, width):
    def change(header):
        count = header["crc32"]["data_offsets"][1] - header["crc32"]["data_offsets"][0]
        header["crc32"].update(dtype=dtype, shape=[count // width])

    return change


FOREIGN = {
    "signed checksums": (with_sums("I32", 4), "has no checksums"),
    "checksums of a byte": (with_sums("U8", 1), "has no checksums"),
    "another format": (in_metadata(format="pt"), "is not a flash image"),
    "no metadata": (without("__metadata__"), "is not a flash image"),
    "no version": (in_metadata(version="one"), "is not a flash image"),
    "newer": (
        in_metadata(version="2"),
        "made by a newer flashref .image version 2, known here is 1.; update",
    ),
    "much newer": (in_metadata(version="123456789"), "made by a newer flashref"),
    "no fingerprint": (without("fingerprint", "__metadata__"), "metadata do not describe"),
    "no config": (without("config", "__metadata__"), "metadata do not describe"),
    "no bundles": (without("bundles", "__metadata__"), "metadata do not describe"),
    "block of none": (in_metadata(block="0"), "metadata do not describe"),
    "block of text": (in_metadata(block="big"), "metadata do not describe"),
    "block too large": (in_metadata(block="1024"), "metadata do not describe"),
    "block too small": (in_metadata(block="256"), "metadata do not describe"),
    "bundles that are no JSON": (in_metadata(bundles="[["), "metadata do not describe"),
    "not bundled": (in_metadata(bundled="false"), "metadata do not describe"),
    "another stride": (in_record(stride=1024), "metadata do not describe"),
    "another d": (in_record(d=400), "metadata do not describe"),
    "d of a fraction": (in_record(d=3.0), "metadata do not describe"),
    "d of text": (in_record(d="3"), "metadata do not describe"),
    "an order of too few": (in_record(order=[0, 1]), "metadata do not describe"),
    "an order of text": (in_record(order="01234"), "metadata do not describe"),
    "unknown fields": (in_record(fields=["up", "side"]), "metadata do not describe"),
    "fields out of order": (in_record(fields=["down", "up"]), "metadata do not describe"),
    "another layer": (in_record(layer=0), "metadata do not describe"),
    "a layer of text": (in_record(layer="1"), "metadata do not describe"),
}


@pytest.mark.req("IMG-15")
@pytest.mark.parametrize("kind", FOREIGN)
def test_an_image_that_says_what_cannot_be_is_refused(tmp_path, kind):
    raw = packed(tmp_path, model(0), block=512).read_bytes()
    change, message = FOREIGN[kind]
    assert refused(tmp_path / "rewritten", rewritten(raw, lambda header: None)) is None
    assert re.search(message, refused(tmp_path / "rewritten", rewritten(raw, change)))


@pytest.mark.req("IMG-15")
def test_blocks_that_are_no_blocks_are_refused_even_without_bundles(tmp_path, monkeypatch):
    made = model(0, layers=())
    raw = packed(tmp_path, made, block=512).read_bytes()
    not_aligned = refused(tmp_path / "rewritten", rewritten(raw, in_metadata(block="4096")))
    with monkeypatch.context() as patch:
        patch.setattr("flashref.storage.packing.BLOCKS", (512, 1 << 21))
        too_large = refused(tmp_path / "large", packed(tmp_path, made, block=1 << 21).read_bytes())
    for message in (not_aligned, too_large):
        assert "something does not start on a block" in message


@pytest.mark.req("IMG-15")
def test_tables_that_do_not_fit_are_refused(tmp_path):
    raw = packed(tmp_path, model(0), block=512).read_bytes()

    def renamed(old, new):
        return lambda header: header.update({new: header.pop(old)})

    for change in (
        renamed("crc32", "crc"),
        renamed("layers.1.bundles.crc32", "sums"),
        renamed("layers.1.bundles", "x"),
    ):
        assert refused(tmp_path / "rewritten", rewritten(raw, change))
    assert "no checksums" in refused(
        tmp_path / "checkpoint", (tmp_path / "image").read_bytes().replace(b'"crc32":', b'"crc33":')
    )
    begin = open_image(tmp_path / "image").container.tensors["crc32"].offset
    assert "more checksums" in refused(
        tmp_path / "more", raw[: begin + 508] + b"\1\0\0\0" + raw[begin + 512 :]
    )
    assert "is not a flash image" in refused(tmp_path / "no", (tmp_path / "model.safetensors").read_bytes())


@pytest.mark.req("IMG-16")
def test_only_resident_tensors_are_given(tmp_path):
    image = open_image(packed(tmp_path, model(0)))
    for name in ("layers.0.bundles", "layers.0.bundles.crc32", "crc32", "pad.0", "h.0.up.weight", "nothing"):
        with pytest.raises(ImageError, match=f"image: has no resident tensor '{name}'"):
            image_tensor(image, name)


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


def test_inputs_do_not_change(tmp_path):
    made = model(0)
    tensors = write_checkpoint(tmp_path / "model.safetensors", made.arrays)
    before = (
        dict(tensors),
        {k: dict(v) for k, v in made.layers.items()},
        (tmp_path / "model.safetensors").read_bytes(),
    )
    pack_image(tmp_path / "image", tensors, made.layers, made.config)
    assert (tensors, made.layers, (tmp_path / "model.safetensors").read_bytes()) == before
    container = tensors["embed"]
    array = tensor_array(container, "embed")
    array[:] = 1
    assert same(tensor_array(container, "embed"), made.arrays["embed"][1])
