"""`flashref calibrate`: what it shows, keeps and verifies, and mistakes answered before it measures."""

import errno
import os
import statistics
from pathlib import Path

import pytest
import simulated_disk

from flashref.cli import calibrate as command
from flashref.cli import main
from flashref.storage.calibration import CalibrationError, calibration_to_json
from flashref.storage.device import Device
from flashref.storage.fit import Errors

calibration = simulated_disk.calibration


@pytest.fixture
def asked(calibration, monkeypatch):
    """The command with a measurement of the simulated disk; the list of what it was asked for."""
    calls = []

    def stand_in(folder, *, verified, announce, **options):
        calls.append((folder, verified, options))
        announce("writes as told")
        return calibration if verified else calibration._replace(verification=None)

    monkeypatch.setattr(command, "calibrate", stand_in)
    return calls


def test_the_command_shows_keeps_and_says_what_it_writes(asked, calibration, tmp_path, capsys):
    out_file = tmp_path / "disk.json"
    assert main(["calibrate", str(tmp_path), "--out", str(out_file)]) == 0
    out, err = capsys.readouterr()
    [(folder, verified, options)] = asked
    assert (folder, verified, options["file_bytes"], options["seed"]) == (tmp_path, False, 4 * 2**30, 0)
    assert options["largest_noise"] == 0.15
    assert err == "flashref calibrate: writes as told\n"
    kept = calibration._replace(verification=None)
    assert out_file.read_text() == calibration_to_json(kept)
    device = calibration.device
    assert f"{device.latency_ns / 1000:.4g} " in out and f"{device.max_bandwidth / 1e9:.4g} " in out
    assert "GB/s" in out and "µs" in out
    # A row a point: measured, modelled, error in time.
    point = calibration.points[0]
    rate = point.size * point.reads / statistics.median(point.nanoseconds)
    [row] = [line for line in out.splitlines() if line.split()[:3] == ["4", "KiB", str(point.depth)]]
    assert f"{rate:.3f}" in row and row.rstrip().endswith("%")
    assert f"median {kept.error.median:.1%}, 90th percentile {kept.error.p90:.1%}" in out
    assert "Noise, which is" in out and "median 0.0%" in out
    assert not any(line != line.rstrip() for line in out.splitlines())
    assert "Linux 6.1, load average 0.5, Python 3.11; threads, huge pages; /disk (ext4)" in out
    assert f"--device {out_file}" in out.replace("\n", "") and "Mixed" not in out
    assert list(tmp_path.iterdir()) == [out_file]


def test_the_command_verifies(asked, calibration, monkeypatch, capsys):
    assert main(["calibrate", "--verify", "--seed", "4", "--size", "0.5", "--quiet"]) == 0
    out, err = capsys.readouterr()
    [(folder, verified, options)] = asked
    assert (folder, verified, options["file_bytes"], options["seed"]) == (Path(), True, 2**29, 4)
    assert err == ""
    assert "verified: error median" in out and "allowed: median 8%, 90th percentile 15%" in out
    batch = calibration.verification.traces[3]
    [row] = [line for line in out.splitlines() if line.split()[:2] == [batch.kind, str(batch.depth)]]
    assert f"{batch.reads:,}" in row and f"{batch.predicted_ns / 1e6:.1f}" in row
    assert "Not saved" in out

    slow = Device(0, 0, 10**9)  # a nanosecond a byte
    late = batch._replace(predicted_ns=2 * batch.nanoseconds[0])
    bad = calibration.verification._replace(error=Errors(0.09, 0.16, 0.3), traces=(late,))
    poor = calibration._replace(device=slow, verification=bad)
    monkeypatch.setattr(command, "calibrate", lambda *_, **__: poor)
    assert main(["calibrate", "--verify", "--quiet"]) == 1
    out, _ = capsys.readouterr()
    assert [line.split()[-1] for line in out.splitlines() if line.split()[:1] == [batch.kind]] == ["+100.0%"]
    point = calibration.points[0]
    error = point.size * point.reads / point.nanoseconds[0] - 1
    assert [line for line in out.splitlines() if line.split()[:3:2] == ["4", "1"] and f"{error:+.1%}" in line]
    assert "NOT verified: error median 9.0%, 90th percentile 16.0%, largest 30.0%" in out
    assert main(["calibrate", "--verify", "--quiet", "--json"]) == 1


def test_the_command_prints_json(asked, calibration, capsys):
    assert main(["calibrate", "--json", "--verify", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == calibration_to_json(calibration) and err == ""


def test_a_result_that_cannot_be_kept_is_shown_all_the_same(
    asked, calibration, tmp_path, capsys, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["calibrate", "--json", "--verify", "--quiet", "--out", str(tmp_path / "disk.json")]) == 2
    out, err = capsys.readouterr()
    assert out == calibration_to_json(calibration) and "make room or choose another disk" in err
    assert list(tmp_path.iterdir()) == []


def test_more_noise_is_accepted_if_it_is_asked_for(asked):
    assert main(["calibrate", "--quiet", "--accept-noise", "0.3"]) == 0
    assert asked[0][2]["largest_noise"] == 0.3


def test_an_unsteady_disk_ends_the_command_and_keeps_nothing(monkeypatch, tmp_path, capsys):
    def unsteady(*_, **__):
        raise CalibrationError("too unsteady")

    monkeypatch.setattr(command, "calibrate", unsteady)
    assert main(["calibrate", "--quiet", "--out", str(tmp_path / "disk.json")]) == 2
    assert capsys.readouterr().err == "flashref calibrate: too unsteady\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path, name, capsys):
    (tmp_path / "file").write_bytes(b"")
    assert main(["calibrate", str(tmp_path / name), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{name}: cannot be written (N" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "big"], "'big' is not a number of GiB, such as 4"),
        (["--size", "nan"], "'nan' is not a number of GiB"),
        (["--size", "inf"], "'inf' is not a number of GiB"),
        (["--size", "0.01"], "must be at least 0.015625 GiB, not 0.01"),
        (["--size", "-4"], "must be at least 0.015625 GiB, not -4"),
        (["--seed", "-1"], "must be at least 0, not -1"),
        (["--out", "taken"], "--out taken: exists, and files are never overwritten"),
        (
            ["--out", "absent/disk.json"],
            "--out absent/disk.json: there is no folder absent that can be written",
        ),
        (["--accept-noise", "0"], "must be more than 0 and at most 1, not 0"),
        (["--fast"], "--fast"),
    ],
)
def test_mistakes_are_answered_before_anything_is_measured(
    asked, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    try:
        code = main(["calibrate", *words])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert asked == [] and (tmp_path / "taken").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
