"""`flashref pack` on bad words, models and disks, and when it is interrupted: nothing is left."""

import errno
import os
import re
import shutil
import signal

import numpy as np
import pack_runs
import pytest
from checkpoint_files import random_weights, write_checkpoint
from pack_runs import failing, sentence

no_waiting_for_the_disk = pack_runs.no_waiting_for_the_disk
model = pack_runs.model
whole = pack_runs.whole
run = pack_runs.run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: --image"),
        (["--image", "x", "--gate", "some"], "--gate: invalid choice: 'some'"),
        (["--image", "x", "--order", "hot"], "unknown arguments: --order hot"),
        (["--image", "x", "--device", "floppy"], "--device floppy: neither a file nor a preset; use one of"),
        (
            ["--image", "x", "--gate", "resident"],
            "its layers have no gate that could be resident; leave --gate",
        ),
    ],
)
def test_a_bad_word_is_told(run, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert told in sentence(run(*words))
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_no_checkpoint(run, tmp_path):
    (tmp_path / "model").mkdir()
    for directory, told in (
        (tmp_path / "no", "there is no such folder"),
        (tmp_path / "model", "no config"),
    ):
        assert told in sentence(run("--image", tmp_path / "image", directory=directory))
    assert os.listdir(tmp_path) == ["model"]


def test_a_checkpoint_with_a_name_that_images_use(run, tmp_path):
    weights = random_weights() | {"pad.0": np.zeros(3, np.float32)}
    folder = write_checkpoint(tmp_path / "model", weights)
    text = sentence(run("--image", tmp_path / "image", directory=folder))
    assert "'pad.0' has a name that images use themselves; rename it" in text
    assert os.listdir(tmp_path) == ["model"]


def test_a_value_that_is_not_finite(run, tmp_path):
    weights = random_weights()
    weights["model.decoder.final_layer_norm.weight"][1] = np.nan
    folder = write_checkpoint(tmp_path / "model", weights)
    text = sentence(run("--image", tmp_path / "image", directory=folder))
    assert "final_layer_norm.weight' holds a value that is not finite" in text
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_cannot_be_written(run, tmp_path, monkeypatch):
    text = sentence(run("--image", tmp_path / "no" / "image"))
    assert text.startswith(f"{tmp_path}/no/image: there is no folder {tmp_path}/no that can be written; ")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "there is no folder" in sentence(run("--image", tmp_path / "image"))
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_is_told_before_a_byte_is_written(run, whole, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=len(whole) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("written"))
    text = sentence(run("--image", tmp_path / "image"))
    assert f"image: needs {len(whole)} bytes, but {len(whole) - 1} are free; make room" in text
    assert os.listdir(tmp_path) == []


def raising(error):
    def fail():
        raise error

    return fail


def test_a_disk_that_fills_up(run, whole, tmp_path, monkeypatch):
    failing(monkeypatch, raising(OSError(errno.ENOSPC, "No space left on device")))
    text = sentence(run("--image", tmp_path / "image"))
    assert re.search(rf"image: needs {len(whole)} bytes, but \d+ are free; make room or choose", text)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("fail", "code", "err"),
    [
        (raising(KeyboardInterrupt()), 130, "flashref pack: interrupted; nothing half-written was left\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM) or 0, 143, ""),
        (lambda: os.kill(os.getpid(), signal.SIGHUP) or 0, 129, ""),
    ],
)
def test_an_interrupt_leaves_nothing(run, tmp_path, monkeypatch, fail, code, err):
    failing(monkeypatch, fail)
    assert run("--image", tmp_path / "image") == (code, "", err)
    assert os.listdir(tmp_path) == []
