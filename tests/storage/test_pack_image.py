"""Chapter 54: packing holds one layer, and whatever stops it, the disk has a whole image or none."""

import errno
import itertools
import os
import shutil
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
import random_images
from random_images import model, packed, write_checkpoint

from flashref.storage import image
from flashref.storage.container import tensor_array
from flashref.storage.image import open_image, pack_image
from flashref.types import ImageError, same

no_waiting_for_the_disk = random_images.no_waiting_for_the_disk


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


def test_no_more_than_256_mib_wait_for_the_disk(tmp_path, monkeypatch):
    """Pieces of no content, and no file: what counts is where the file was synced."""
    made, offsets, synced = model(0), [], []
    tensors = write_checkpoint(tmp_path / "model.safetensors", made.arrays)
    plan = image.plan_image(tensors, made.layers, made.config, 4096, None, True)
    mib, first = np.zeros(1 << 20, np.uint8), (1 << 20) - plan.header_bytes  # then offsets are whole MiB
    large = np.zeros(300 << 20, np.uint8)  # never touched, so it takes no memory
    pieces = [mib[:first], *[mib] * 254, mib[:-1], mib[:1], large, *[mib] * 300]
    given = iter([pieces])
    monkeypatch.setattr(image, "entry_pieces", lambda *_: next(given, []))
    monkeypatch.setattr(image, "write_all", lambda _, piece, offset: offsets.append(offset + piece.size))
    monkeypatch.setattr(image, "create_file", lambda *_: nullcontext(0))
    monkeypatch.setattr(image, "_digest", lambda *_: "0" * 64)
    monkeypatch.setattr(image, "all_sums", lambda *_: mib[:0])
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(offsets[-1]))
    pack_image(tmp_path / "image", tensors, made.layers, made.config, 4096)
    assert synced == [mibs << 20 for mibs in (256, 256 + 300, 256 + 300 + 256)]


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

    def stop(what, done, total):
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
    path = packed(tmp_path, made, progress=lambda what, done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {path.stat().st_size}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == path.stat().st_size


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
