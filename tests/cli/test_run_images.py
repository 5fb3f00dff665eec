"""`flashref run --image`: packed once and then used; a damaged, foreign or unwritable one is named."""

import errno
import json
import os
import re
import shutil
import struct
import zlib

import opt_runs
import pytest
from opt_runs import sentence
from random_models import NEURONS, random_weights, write_model

from flashref.models import image_readers
from flashref.models.checkpoint import open_checkpoint
from flashref.storage.container import read_container
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.image import pack_image

pytestmark = opt_runs.IGNORED_WARNINGS
no_waiting_for_the_disk = opt_runs.no_waiting_for_the_disk
model = opt_runs.model
packed = opt_runs.packed
image = opt_runs.image
run = opt_runs.run
report = opt_runs.report


# --- mistakes ------------------------------------------------------------------------------------


def test_an_image_cut_short_or_that_is_none(run, image):
    whole = image.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole + b"\0", b"", b"\0" * 7):
        image.write_bytes(damaged)
        assert str(image) in sentence(run("--image", image))
        assert image.read_bytes() == damaged
    for path in (image.parent, "/dev/null"):
        assert str(path) in sentence(run("--image", path))


def rewritten(path, change):
    """The header of an image, changed as JSON; its checksum is left as it was."""
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def test_a_header_that_claims_what_cannot_be(run, image, tmp_path):
    whole = image.read_bytes()
    image.write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    assert f"its header claims {1 << 60} bytes" in sentence(run("--image", image))

    def enlarge(header):
        header["layers.0.bundles"]["shape"] = [1 << 29, 1 << 30]
        header["layers.0.bundles"]["data_offsets"][1] = 1 << 60

    image.write_bytes(whole)
    rewritten(image, enlarge)
    assert str(image) in sentence(run("--image", image))

    def overlap(header):
        one, two = (header[f"layers.{layer}.bundles"] for layer in (0, 1))
        two["data_offsets"] = one["data_offsets"]

    image.write_bytes(whole)
    rewritten(image, overlap)
    text = sentence(run("--image", image))
    assert "overlaps the one before it, or leaves a hole" in text and str(image) in text
    # A checkpoint is such a file as well.
    folder = write_model(tmp_path / "model", random_weights())
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 1 << 60) + weights.read_bytes()[8:])
    text = sentence(run("--model", folder))
    assert f"{weights}: its header claims {1 << 60} bytes" in text and "get it again" in text


def test_an_image_of_a_newer_format(run, image):
    rewritten(image, lambda header: header["__metadata__"].update(version="2"))
    text = sentence(run("--image", image))
    assert f"{image}: was made by a newer flashref" in text and "update flashref or pack" in text


def test_an_image_of_another_model_or_of_other_bundles(run, model, packed, tmp_path):
    other = write_model(tmp_path / "other", random_weights(seed=1))
    text = sentence(run("--model", other, "--image", packed))
    assert f"{packed}: is the image of another model" in text and "remove the image" in text
    text = sentence(run("--image", packed.with_name("image.unbundled")))
    assert "image.unbundled: holds rows without bundling, not bundles; give another name with --image" in text
    checkpoint = open_checkpoint(model)
    partly = {0: checkpoint.layers[0]}
    pack_image(tmp_path / "partly", checkpoint.tensors, partly, checkpoint.config_text)
    text = sentence(run("--image", tmp_path / "partly"))
    assert f"{tmp_path}/partly: does not hold the bundles of every layer; give another name" in text


def test_blocks_that_are_too_small_for_the_device(run, packed, tmp_path):
    path = tmp_path / "large.json"
    path.write_text(device_to_json(PRESETS["ufs40"]._replace(block=16_384)))
    text = sentence(run("--image", packed, "--device", path))
    assert f"{packed}: has blocks of 4096 bytes, the device of 16384; pack it again" in text
    assert run("--device", path).code == 0


def flip(path, byte, bit=3):
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def places(path):
    """A byte of every part of an image but the bundles: name → its position."""
    tensors = read_container(path).tensors
    header = min(entry.offset for entry in tensors.values())
    found = {"length": 1, "JSON": 8 + 40, "padding of the header": header - 2}
    for name, entry in tensors.items():
        if not re.fullmatch(r"layers\.\d+\.(bundles|up|down)", name):
            found[name] = entry.offset + entry.length // 2
    return found


def test_one_flipped_bit_in_whatever_is_opened(run, image):
    found = places(image)
    kinds = ["length", "JSON", "padding of the header", "crc32", "layers.1.bundles.crc32"]
    kinds += [next(name for name in found if name.startswith("pad."))]
    kinds += ["model.decoder.embed_tokens.weight", "model.decoder.layers.0.fc1.bias"]
    kinds += [
        "model.decoder.layers.1.final_layer_norm.weight",
        "model.decoder.layers.1.self_attn.k_proj.bias",
    ]
    for kind in kinds:
        flip(image, found[kind])
        assert str(image) in sentence(run("--image", image)), kind
        flip(image, found[kind])
    assert run("--image", image).code == 0


@pytest.mark.parametrize(
    ("name", "reader"), [("image", "memory"), ("image", "direct"), ("image.unbundled", "direct")]
)
def test_one_flipped_bit_in_any_bundle(run, image, name, reader):
    path = image.with_name(name)
    for tensor, entry in read_container(path).tensors.items():
        if re.fullmatch(r"layers\.\d+\.(bundles|up|down)", tensor):
            for neuron in (0, 29, NEURONS - 1):  # the last byte, which may be padding
                last = entry.offset + (neuron + 1) * entry.length // NEURONS - 1
                flip(path, last)
                text = sentence(run("--image", image, "--reader", reader))
                assert f"{path}: the " in text and f"row of neuron {neuron} in layer {tensor[7]} " in text
                flip(path, last)
    assert run("--image", image, "--reader", reader).code == 0


@pytest.mark.parametrize(
    "name", ["model.decoder.layers.1.self_attn.k_proj.bias", "model.decoder.embed_tokens.weight"]
)
def test_resident_tensors_that_only_look_right_are_refused(run, image, name):
    entry = read_container(image).tensors[name]
    content = bytearray(image.read_bytes())
    content[entry.offset + entry.length - 2] ^= 1
    image.write_bytes(content)
    mend_checksum(image, name)
    told = f"{image}: its resident tensors are not the checkpoint's"
    assert told in sentence(run("--image", image))


def mend_checksum(path, name):
    """The CRC-32 of a resident tensor as it is now."""
    tensors = read_container(path).tensors
    covered = [of for of in tensors if of != "crc32" and not re.fullmatch(r"layers\.\d+\.bundles", of)]
    content, entry = bytearray(path.read_bytes()), tensors[name]
    crc = zlib.crc32(content[entry.offset : entry.offset + entry.length])
    at = tensors["crc32"].offset + 4 * (1 + covered.index(name))
    content[at : at + 4] = struct.pack("<I", crc)
    path.write_bytes(content)


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
        text = sentence(run("--image", tmp_path / "image"))
        assert re.search(r"image: needs \d+ bytes, but 10000 are free; make room", text)
    assert list(tmp_path.iterdir()) == []
    real, written = os.pwrite, []

    def fill(descriptor, data, offset):
        written.append(len(data))
        if len(written) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fill)
    text = sentence(run("--image", tmp_path / "image"))
    assert f"{tmp_path}/image: needs " in text and "make room or choose another disk" in text
    assert len(written) == 9 and list(tmp_path.iterdir()) == []
    # Nor does a temporary image.
    written.clear()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert "make room" in sentence(run())
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_written(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "nowhere" / "image", tmp_path / "file" / "image"):
        text = sentence(run("--image", path))
        assert str(path) in text and "check the path" in text
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o555)
        assert "Permission denied" in sentence(run("--image", tmp_path / "closed" / "image"))
    assert (tmp_path / "file").read_text() == "mine"


# --- results -------------------------------------------------------------------------------------


def test_an_image_is_packed_once_and_then_used(report, tmp_path):
    image = tmp_path / "image"
    first = report("--image", image)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
    before = image.stat(), image.read_bytes()
    assert report("--image", image) == first == report()
    assert (image.stat(), image.read_bytes())[1] == before[1]
    assert (image.stat().st_mtime_ns, image.stat().st_ino) == (before[0].st_mtime_ns, before[0].st_ino)


def test_a_run_without_image_leaves_nothing(report, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    report()
    report("--reader", "direct")
    assert list(tmp_path.iterdir()) == []


def test_the_direct_reader_gives_the_same_text_and_counters(report, tmp_path):
    memory = report("--image", tmp_path / "image")
    direct = report("--image", tmp_path / "image", "--reader", "direct")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "image.unbundled"]
    assert direct["reader"] == "direct" and type(direct["direct"]) is bool
    for method in direct["methods"]:
        assert method["measured_io_ms_per_token"] > 0
        method["measured_io_ms_per_token"] = None
    assert direct == {**memory, "reader": "direct", "direct": direct["direct"]}


def test_the_direct_reader_in_words(run, packed):
    told = run("--image", packed, "--reader", "direct").out
    assert "measured" in told and re.search(r"\d ms, measured\)", told) and "…" not in told


def test_an_image_that_another_run_packs_meanwhile_is_used(report, tmp_path, monkeypatch):
    def late(path, *arguments, **options):
        image_readers.pack_image = pack_image
        pack_image(path, *arguments, **options)  # the other run
        return pack_image(path, *arguments, **options)

    monkeypatch.setattr(image_readers, "pack_image", late)
    assert report("--image", tmp_path / "image")["verified"]
