"""`flashref pack` where something is already: an image, whole or not, or what a killed packing left."""

import fcntl
import json
import os
import re
import shutil

import numpy as np
import pack_runs
import pytest
from checkpoint_files import NEURONS, random_weights, write_checkpoint
from pack_runs import KEYS, contents, failing, sentence

from flashref.models.checkpoint import open_checkpoint
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.image import open_image, pack_image

no_waiting_for_the_disk = pack_runs.no_waiting_for_the_disk
model = pack_runs.model
whole = pack_runs.whole
run = pack_runs.run
report = pack_runs.report


# --- a file that is there ------------------------------------------------------------------------


def test_the_whole_image_of_this_checkpoint_is_left_as_it_is(run, report, whole, tmp_path, monkeypatch):
    path = tmp_path / "image"
    first = report("--image", path)
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("written"))
    changed = path.stat().st_mtime_ns
    again = report("--image", path)
    measured = ("written", "seconds", "bytes_per_second", "peak_memory_bytes")
    assert again["written"] is False
    assert {key: again[key] for key in KEYS if key not in measured} == {
        key: first[key] for key in KEYS if key not in measured
    }
    outcome = run("--image", path)
    assert (outcome.code, outcome.err) == (0, "")
    told = f"{path}: is already the image of this checkpoint; nothing was written\n"
    assert outcome.out.startswith(told) and "to check it, at " in outcome.out
    assert contents(tmp_path) == {"image": whole} and path.stat().st_mtime_ns == changed


@pytest.fixture
def refused(run, tmp_path):
    """The sentence with which a file that is there is refused; nothing has changed."""

    def refused(*words, name="image"):
        before = contents(tmp_path)
        text = sentence(run("--image", tmp_path / name, *words))
        assert contents(tmp_path) == before
        return text

    return refused


def test_the_image_of_other_weights_or_of_another_config(refused, tmp_path):
    path = tmp_path / "image"
    for directory in (
        write_checkpoint(tmp_path.parent / f"{tmp_path.name}-weights", random_weights(1)),
        write_checkpoint(tmp_path.parent / f"{tmp_path.name}-config", random_weights(), dropout=0.2),
    ):
        other = open_checkpoint(directory)
        pack_image(path, other.tensors, dict(enumerate(other.layers)), other.config_text)
        assert f"{path}: is the image of another model or of other weights" in refused()
        path.unlink()


OTHER_OPTIONS = "image of this checkpoint, but with another block, order, bundling or gate; remove it"


def test_an_image_in_another_order(model, refused, tmp_path):
    checkpoint = open_checkpoint(model)
    layers, orders = dict(enumerate(checkpoint.layers)), {1: np.arange(NEURONS)[::-1]}
    pack_image(tmp_path / "image", checkpoint.tensors, layers, checkpoint.config_text, orders=orders)
    assert OTHER_OPTIONS in refused()


def test_an_image_with_other_options(run, refused, tmp_path):
    (tmp_path / "disk.json").write_text(device_to_json(PRESETS["ufs40"]._replace(block=8192)))
    kinds = {"image": [], "rows": ["--without-bundling"], "large": ["--device", tmp_path / "disk.json"]}
    for name, words in kinds.items():
        assert run("--image", tmp_path / name, *words).code == 0
    for name in kinds:
        for other, words in kinds.items():
            if other != name:
                text = refused(*words, name=name)
                assert OTHER_OPTIONS in text


def test_a_damaged_image(refused, whole, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(whole)
    entries = open_image(path).container.tensors
    bundles, embed = entries["layers.1.bundles"], entries["model.decoder.embed_tokens.weight"]
    path.write_bytes(whole[:-1])
    assert "the file is damaged" in refused()
    for place, told in (
        (embed.offset, "embed_tokens.weight' does not match its checksum"),
        (9, "damaged|header"),
    ):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert re.search(told, text := refused()) and "another name with --image" in text
    for neuron in (0, NEURONS - 1):
        place = bundles.offset + neuron * 64 + 63  # padding, too
        path.write_bytes(whole[:place] + b"\1" + whole[place + 1 :])
        text = refused()
        assert f"image: the up and down row of neuron {neuron} in layer 1 does not match its checksum" in text
        assert "another name with --image" in text


def test_what_is_no_image(refused, model, run, tmp_path):
    (tmp_path / "image").write_text("precious")
    assert "not a safetensors file" in refused()
    shutil.copy(model / "model.safetensors", tmp_path / "model.safetensors")
    assert "is not a flash image" in refused(name="model.safetensors")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "exists, and files are never overwritten" in refused(name="dangling")
    assert "cannot be read (not a regular file); check the path" in sentence(run("--image", tmp_path))


def test_an_image_that_appears_meanwhile_is_not_replaced(run, tmp_path, monkeypatch):
    path = tmp_path / "image"
    failing(monkeypatch, lambda: path.write_bytes(b"precious") and 0)
    assert "exists, and files are never overwritten" in sentence(run("--image", path))
    assert contents(tmp_path) == {"image": b"precious"}


# --- what a killed packing left ------------------------------------------------------------------

PART = ".image.0123456789abcdef.part"
LEFT = pytest.mark.filterwarnings("default:.*left by a process that was killed")  # else warnings are errors


@LEFT
@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_packing_left_is_removed_and_told(run, whole, tmp_path, there):
    (tmp_path / PART).write_bytes(whole[:999])
    if there:
        (tmp_path / "image").write_bytes(whole)
    outcome = run("--image", tmp_path / "image", "--json")
    told = f"{tmp_path / PART}: left by a process that was killed, and removed now"
    assert (outcome.code, outcome.err) == (0, f"flashref: warning: {told}\n")
    assert json.loads(outcome.out)["written"] is not there
    assert contents(tmp_path) == {"image": whole}


@LEFT
def test_it_makes_room_before_room_is_looked_for(run, whole, tmp_path, monkeypatch):
    (tmp_path / PART).write_bytes(whole)
    usage = shutil.disk_usage(tmp_path)

    def free(_):
        return usage._replace(free=0 if (tmp_path / PART).exists() else len(whole))

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert run("--image", tmp_path / "image").code == 0


def test_a_part_that_is_being_written_stays(run, whole, tmp_path):
    with open(tmp_path / PART, "wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        outcome = run("--image", tmp_path / "image")
    assert (outcome.code, outcome.err) == (0, "")
    assert contents(tmp_path) == {"image": whole, PART: b""}


def test_a_mistake_removes_nothing(run, tmp_path):
    (tmp_path / PART).write_bytes(b"part")
    sentence(run("--image", tmp_path / "image", "--gate", "resident"))
    sentence(run("--image", tmp_path / "image", directory=tmp_path / "no"))
    assert contents(tmp_path) == {PART: b"part"}
