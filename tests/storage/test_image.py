"""Chapter 54: what is opened is as it was written: fingerprints, flipped bits, cuts, false headers."""

import hashlib
import itertools
import json
import re
import zlib

import numpy as np
import pytest
import random_images
from hypothesis import given
from random_images import model, packed, packings, write_checkpoint

from flashref.bundle import bundle_extents
from flashref.storage.image import (
    fingerprint,
    image_tensor,
    open_image,
    pack_image,
    require_bundles,
    require_checkpoint,
)
from flashref.types import ImageError

no_waiting_for_the_disk = random_images.no_waiting_for_the_disk
folder = random_images.folder


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
    require_bundles(image, lambda what, done, of: seen.append((done, of)))
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
                # The last bundle is damaged too: the first one is named.
                end = layout.start + 7 * layout.stride - 2
                twice = bytearray(path.read_bytes())
                twice[end] ^= 1
                path.write_bytes(twice)
                with pytest.raises(ImageError, match=told):
                    require_bundles(open_image(path))


@pytest.mark.req("IMG-12")
def test_a_fingerprint_tells_how_far_it_is(tmp_path):
    made, seen = model(0), []
    tensors = write_checkpoint(tmp_path / "model.safetensors", made.arrays)
    fingerprint(tensors, made.config, lambda what, done, total: seen.append((done, total)))
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


def with_one_sum(header):
    begin, end = header["crc32"]["data_offsets"]
    header["crc32"].update(shape=[1], data_offsets=[begin, begin + 4])
    header["pad.99"] = {"dtype": "U8", "shape": [end - begin - 4], "data_offsets": [begin + 4, end]}


FOREIGN = {
    "too few checksums": (with_one_sum, r"the tensor \S+ does not match its checksum"),
    "signed checksums": (with_sums("I32", 4), "has no checksums"),
    "checksums of a byte": (with_sums("U8", 1), "has no checksums"),
    "another format": (in_metadata(format="pt"), "is not a flash image"),
    "no metadata": (without("__metadata__"), "is not a flash image"),
    "no version": (in_metadata(version="one"), "is not a flash image"),
    "newer": (
        in_metadata(version="2"),
        "made by a newer flashref .image version 2; this flashref reads version 1.; update",
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
    "a layer of true": (in_record(layer=True), "is not a whole number"),
    "a record of more": (in_record(more=1), "is not described by layer"),
    "a record of less": (in_metadata(bundles='{"layers.1.bundles": {"d": 3}}'), "is not described by layer"),
    "a record of numbers": (in_metadata(bundles='{"layers.1.bundles": [1]}'), "is not described by layer"),
    "a block with a zero before": (in_metadata(block="0512"), "does not start on a block of '0512' bytes"),
    "a block with a blank after": (in_metadata(block="512 "), "does not start on a block of '512 ' bytes"),
    "bundles without a record": (in_metadata(bundles="{}"), r"layers.\d.bundles\S* is not described\)"),
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
    odd = refused(tmp_path / "odd", packed(tmp_path, made, block=5 * 512).read_bytes())
    not_aligned = refused(tmp_path / "rewritten", rewritten(raw, in_metadata(block="4096")))
    with monkeypatch.context() as patch:
        patch.setattr("flashref.storage.packing.BLOCKS", (512, 1 << 21))
        too_large = refused(tmp_path / "large", packed(tmp_path, made, block=1 << 21).read_bytes())
    for message in (not_aligned, too_large, odd):
        assert "something does not start on a block" in message


@pytest.mark.req("IMG-15")
def test_tables_that_do_not_fit_are_refused(tmp_path):
    raw = packed(tmp_path, model(0), block=512).read_bytes()

    def renamed(old, new):
        return lambda header: header.update({new: header.pop(old)})

    for old, new, told in (
        ("crc32", "crc", "its tensors end at byte"),
        ("layers.1.bundles.crc32", "sums", "do not describe its tensors ('layers.1.bundles.crc32')"),
        ("layers.1.bundles", "x", "do not describe its tensors ('layers.1.bundles')"),
    ):
        assert told in refused(tmp_path / "rewritten", rewritten(raw, renamed(old, new)))
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
