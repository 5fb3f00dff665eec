"""The file to read while calibrating: random, really there, gone at the end; its disk and its file system."""

import collections
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from simulated_disk import MIB

from flashref.storage import scratch
from flashref.storage.calibrate import calibrate
from flashref.storage.calibration import CalibrationError
from flashref.storage.scratch import file_system, scratch_file


def test_the_file_is_random_and_really_there(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with scratch_file(tmp_path, 3 * MIB, np.random.default_rng(5)) as path:
        data = path.read_bytes()
        assert path.parent == tmp_path and len(data) == 3 * MIB and synced == [3 * MIB]
        assert len(zlib.compress(data, 1)) > 0.99 * len(data)  # neither zeros nor one piece again and again
        assert path.stat().st_blocks * 512 >= len(data)
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_the_file_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "PIECE", 8192)
    with scratch_file(tmp_path, 20_480, np.random.default_rng(5)) as path:
        data = path.read_bytes()
    assert len(data) == 20_480 and len(zlib.compress(data)) > len(data)


def test_too_little_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    generator = np.random.default_rng(0)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage(2**28 + 8191))
    with (
        pytest.raises(CalibrationError, match=f"needs {2**28 + 8192:,} bytes, but {2**28 + 8191:,} are free"),
        scratch_file(tmp_path, 8192, generator),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    told = []
    monkeypatch.setattr(scratch, "mount_point", lambda folder: folder)  # other tests calibrate, too
    with pytest.raises(CalibrationError, match=f"needs {2**28 + 2**32:,} bytes"):
        calibrate(tmp_path, file_bytes=2**32, announce=told.append)
    assert told == []
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage(2**28 + 8192))
    with scratch_file(tmp_path, 8192, generator) as path:
        assert path.stat().st_size == 8192


def test_the_file_system_is_the_innermost_mount(tmp_path):
    mounts = tmp_path / "mounts"
    inner = tmp_path / "a disk"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    mounts.write_text(
        f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {escaped} btrfs rw 0 0\nd {tmp_path}2 nfs rw\n"
    )
    assert file_system(tmp_path, mounts) == "xfs"
    assert file_system(inner, mounts) == "btrfs"
    assert file_system(inner / "deeper", mounts) == "btrfs"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "absent") == "unknown"
