"""Calibration: it finds a simulated disk again; on a real one it leaves nothing behind, whatever happens."""

import collections
import datetime
import errno
import itertools
import json
import os
import signal
import statistics
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from flashref.cli import calibrate as command
from flashref.cli import main
from flashref.cli.options import device as device_word
from flashref.storage import calibrate as calibrating
from flashref.storage import readers, scratch
from flashref.storage.calibrate import (
    Measured,
    calibrate,
    conclude,
    measure,
    random_extents,
)
from flashref.storage.calibration import (
    CalibrationError,
    Conditions,
    calibration_from_json,
    calibration_to_json,
    device_of,
)
from flashref.storage.device import device_to_json, read_time
from flashref.storage.fit import Errors, Point, point_errors
from flashref.storage.scratch import file_system, scratch_file
from flashref.storage.verification import Trace, holds, mixed_traces, verify
from flashref.types import Device, DomainError, Extent, Read

MIB = 2**20
FILE_BYTES = 16 * MIB
NOW = datetime.datetime(2026, 11, 22, 7, 30, tzinfo=datetime.UTC)
DISK = Device(
    60_000,
    70_000,
    2_500_000_000,
    stream_bandwidth=5_000_000_000,
    dispatch_ns=20_000,
    knee=1.5,
    queue_depth=32,
)
CONDITIONS = Conditions(
    "2026-11-22", "Linux 6.1", 0.5, "3.11", "threads", "huge pages", True, "/disk", "ext4", FILE_BYTES, 4, 0
)
TRACES = mixed_traces(np.random.default_rng(4))


def simulated_readers(device, log=None):
    """Readers of a disk that is this device; log: what they were asked for."""

    def reader(depth):
        def read(extents):
            assert all(offset % 4096 == 0 and 0 <= offset <= FILE_BYTES - size for offset, size in extents)
            sizes = [extent.length for extent in extents]
            if log is not None:
                log.append((depth, extents))
            return Read((), read_time(device._replace(queue_depth=depth), sizes))

        return read

    return {depth: reader(depth) for depth in (1, 4, 8, 16, 32)}


def measured_on(device, rounds=4, traces=(), **options):
    generator = np.random.default_rng(1)
    return measure(simulated_readers(device, **options), FILE_BYTES, rounds, generator, traces)


@pytest.fixture(scope="module")
def calibration():
    """Of the simulated disk, verified."""
    return conclude(measured_on(DISK, traces=TRACES), CONDITIONS, TRACES)


def test_a_simulated_disk_is_found_again(calibration):
    found, error, noise, conditions, points, batches, verification = calibration
    # Found from a fit that still has the dispatch in it: a little of it goes into the other limits.
    assert found.dispatch_ns == pytest.approx(20_000, rel=0.01)
    assert error == point_errors(found, points)
    assert error.max < 0.001 and verification.error.max < 0.001
    assert noise == (0, 0, 0) == verification.noise
    assert conditions == CONDITIONS
    assert {(point.size, point.depth) for point in points} == set(
        itertools.product((4096, 65_536, MIB), (1, 4, 8, 32))
    )
    assert {(batch.size, batch.depth, batch.reads) for batch in batches} == set(
        itertools.product([16_384], (8, 32), (1, 4, 16, 64, 256))
    )
    assert [(trace.kind, trace.depth, trace.reads, trace.bytes) for trace in verification.traces] == [
        (kind, depth, len(sizes), sum(sizes)) for kind, depth, sizes in TRACES
    ]
    assert all(len(batch.nanoseconds) == 20 for batch in batches)  # five a round
    assert all(len(timed.nanoseconds) == 4 for timed in points + verification.traces)


def test_the_dispatch_is_taken_out_of_the_points():
    slow = DISK._replace(dispatch_ns=200_000)  # 6.4 of the 60 ms at depth 32
    found = conclude(measured_on(slow), CONDITIONS).device
    assert found.dispatch_ns == pytest.approx(200_000, rel=0.03)
    assert (
        point_errors(found._replace(dispatch_ns=0), measured_on(DISK._replace(dispatch_ns=0)).points).p90
        < 0.06
    )


def test_a_point_takes_60_ms_unless_that_is_too_much_memory_or_too_few_reads():
    for device in (DISK, Device(0, 0, 50_000_000), Device(0, 0, 10**11)):
        for point in measured_on(device, rounds=2).points:
            largest, fewest = 2**27 // point.size, 2 * point.depth
            [nanoseconds] = set(point.nanoseconds)
            assert fewest <= point.reads <= largest
            if fewest < point.reads < largest:
                assert nanoseconds == pytest.approx(60_000_000, rel=0.2)
            assert nanoseconds < 75_000_000 or point.reads == fewest


def test_every_round_has_everything_once_in_an_order_of_its_own_at_new_places():
    log = []
    measured_on(DISK, rounds=3, traces=TRACES, log=log)
    # Twelve trials of how many reads take 60 ms; a round: 12 points, 10 batches five times, 20 traces.
    assert len(log) == 12 + 3 * (12 + 50 + 20)
    assert all(sum(extent.length for extent in extents) <= 2**27 for _, extents in log)
    rounds = [log[12 + 82 * i :][:82] for i in range(3)]
    shapes = [
        [(depth, tuple(extent.length for extent in extents)) for depth, extents in part] for part in rounds
    ]
    assert collections.Counter(shapes[0]) == collections.Counter(shapes[1]) == collections.Counter(shapes[2])
    assert shapes[0] != shapes[1] != shapes[2]
    [first, second, third] = (
        [extents for depth, extents in part if len(extents) == len(TRACES[0].sizes) and depth == 1]
        for part in rounds
    )
    assert first != second != third


def test_random_reads_reach_every_block_where_they_fit():
    extents = random_extents((8192,) * 200, 5 * 4096, np.random.default_rng(0))
    assert set(extents) == {Extent(offset, 8192) for offset in (0, 4096, 8192, 12_288)}


def test_an_unsteady_disk_is_refused():
    points = tuple(
        Point(size, depth, 9, (100, 70) * 4) for size in (4096, 65_536, MIB) for depth in (1, 4, 8, 32)
    )
    with pytest.raises(
        CalibrationError, match=r"43% more or less.*more than 15%; stop other work.*try again"
    ):
        conclude(Measured(points, (), ()), CONDITIONS)
    half = tuple(  # some may be: the median of the points decides
        point._replace(nanoseconds=point.nanoseconds if i < 5 else (100,) * 8)
        for i, point in enumerate(points)
    )
    assert conclude(Measured(half, half, ()), CONDITIONS).noise.p90 > 0.15


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder on a real disk, and batches that are quickly read."""
    monkeypatch.setattr(calibrating, "LARGEST_BATCH", 2 * MIB)
    with open(tmp_path / "probe", "wb") as file:
        file.write(bytes(4096))
    if readers._open_direct(tmp_path / "probe", 4096) is None or file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("no disk here that can be read past the page cache")
    (tmp_path / "probe").unlink()
    return tmp_path


def ticking():
    """A clock that says that every batch takes 60 ms."""
    ticks = itertools.count(0, 60_000_000)
    return lambda: next(ticks)


def test_a_real_file_is_measured_and_removed(disk):
    seen = []
    result = calibrate(
        disk,
        now=NOW,
        file_bytes=FILE_BYTES,
        rounds=2,
        seed=3,
        traces=[Trace("two", 16, (4096, 8192) * 9)],
        clock=ticking(),
        advance=lambda what, done, total: seen.append((what, done, total)),
        announce=seen.append,
    )
    assert list(disk.iterdir()) == []
    said = seen.pop(0)
    assert said.startswith(f"writes {FILE_BYTES / 2**30:g} GiB") and f"{disk}/flashref-calibrate-" in said
    assert {ns for point in result.points + result.batches for ns in point.nanoseconds} == {60_000_000}
    assert result.verification.traces[0].nanoseconds == (60_000_000,) * 2
    assert seen == [
        ("writing random bytes", FILE_BYTES, FILE_BYTES),
        ("measuring", 1, 2),
        ("measuring", 2, 2),
    ]
    conditions = result.conditions
    assert conditions.direct is True and conditions.folder == str(disk) and conditions.rounds == 2
    assert conditions.date == "2026-11-22T07:30:00+00:00" and conditions.seed == 3
    assert conditions.file_bytes == FILE_BYTES and conditions.kernel.endswith(os.uname().release)
    assert conditions.file_system == file_system(disk) and "DirectReader" in conditions.engine
    assert calibration_from_json(calibration_to_json(result)) == result


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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of order")])
def test_nothing_is_left_when_measuring_is_interrupted(disk, monkeypatch, error):
    def measure(*_):
        assert [path.stat().st_size for path in disk.iterdir()] == [FILE_BYTES]
        raise error

    monkeypatch.setattr(calibrating, "measure", measure)
    with pytest.raises(type(error)):
        calibrate(disk, now=NOW, file_bytes=FILE_BYTES, rounds=2)
    assert list(disk.iterdir()) == []


def test_nothing_is_left_when_it_is_ended(disk, monkeypatch, capsys):
    def measure(*_):
        assert len(list(disk.iterdir())) == 1
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(calibrating, "measure", measure)
    assert main(["calibrate", str(disk), "--size", "0.02"]) == 128 + signal.SIGTERM
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(disk, monkeypatch):
    def write_all(descriptor, piece, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch, "write_all", write_all)
    with pytest.raises(
        CalibrationError, match=r"could not be written \(No space left on device\); make room"
    ):
        calibrate(disk, now=NOW, file_bytes=FILE_BYTES, rounds=2)
    assert list(disk.iterdir()) == []


def test_too_little_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    generator = np.random.default_rng(0)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage(2**28 + 8191))
    with (
        pytest.raises(CalibrationError, match=f"{2**28 + 8192} bytes are needed .* {2**28 + 8191} are free"),
        scratch_file(tmp_path, 8192, generator),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    told = []
    with pytest.raises(CalibrationError, match=f"{2**28 + 2**32} bytes are needed"):
        calibrate(tmp_path, now=NOW, file_bytes=2**32, rounds=2, announce=told.append)
    assert told == []
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage(2**28 + 8192))
    with scratch_file(tmp_path, 8192, generator) as path:
        assert path.stat().st_size == 8192


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path, name, capsys):
    (tmp_path / "file").write_bytes(b"")
    assert main(["calibrate", str(tmp_path / name), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{name}: cannot be written (N" in err


def test_a_file_system_without_direct_reads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_open_direct", lambda path, block: None)
    threads = threading.active_count()
    with pytest.raises(
        CalibrationError, match="reads past the page cache are not possible on this file system"
    ):
        calibrate(tmp_path, now=NOW, file_bytes=FILE_BYTES, rounds=2)
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == threads


def test_memory_is_no_disk(monkeypatch):
    folder = Path("/dev/shm")
    if file_system(folder) != "tmpfs":
        pytest.skip("no file system in memory here")
    before = set(folder.iterdir())
    with pytest.raises(CalibrationError, match=r"file system \(tmpfs\).*choose a folder on a disk"):
        calibrate(folder, now=NOW, file_bytes=FILE_BYTES, rounds=2)
    assert not {path for path in set(folder.iterdir()) - before if "flashref" in path.name}


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


def test_mixed_traces_are_what_they_are_called():
    assert len(TRACES) == 20
    assert {(trace.kind, trace.depth) for trace in TRACES} == set(
        itertools.product(("neuron", "small", "log-uniform", "bimodal"), (1, 4, 8, 16, 32))
    )
    for kind, _, sizes in TRACES:
        assert 200 <= len(sizes) <= 2000 and all(type(size) is int for size in sizes)
        if kind == "neuron":
            assert all(size % 16_384 == 0 for size in sizes)
            assert 0.7 < sizes.count(16_384) / len(sizes) < 0.9
        elif kind == "small":
            assert set(sizes) == {4096, 8192, 12_288, 16_384, 32_768}
        elif kind == "bimodal":
            assert set(sizes) == {8192, MIB} and 0.04 < sizes.count(MIB) / len(sizes) < 0.18
        else:
            assert all(size % 4096 == 0 and 4096 <= size <= MIB for size in sizes)
            below = sum(size < 65_536 for size in sizes) / len(sizes)  # half of eight doublings
            assert 0.4 < below < 0.6 and max(sizes) > 900_000
    assert mixed_traces(np.random.default_rng(4)) == TRACES != mixed_traces(np.random.default_rng(5))


def test_a_verification_is_of_each_traces_own_depth_and_median():
    device = Device(100_000, 0, 0, queue_depth=32)  # a read alone takes 100 µs, and q share that
    traces = [Trace("a", 1, (4096,) * 4), Trace("b", 4, (4096, 8192) * 2)]
    found = verify(device, traces, [(400_000, 500_000, 600_000), (100_000, 100_000, 1)])
    assert [trace.predicted_ns for trace in found.traces] == [400_000, 100_000]
    assert [trace.bytes for trace in found.traces] == [16_384, 24_576]
    assert found.error == pytest.approx((0.1, 0.18, 0.2))  # 400 for 500, and exact
    assert found.noise.max == pytest.approx(0.5, rel=0.01)  # 50,000.5 against 100,000


@pytest.mark.parametrize(
    ("median", "p90", "good"), [(0.08, 0.15, True), (0.0801, 0.1, False), (0.01, 0.1501, False)]
)
def test_a_device_is_verified_within_8_and_15_percent(calibration, median, p90, good):
    found = calibration.verification._replace(error=Errors(median, p90, 1.0))
    assert holds(found) is good


@pytest.mark.parametrize("verified", [True, False])
def test_a_calibration_survives_its_file(calibration, verified):
    wanted = calibration if verified else calibration._replace(verification=None)
    text = calibration_to_json(wanted)
    fields = json.loads(text)
    assert list(fields) == [*("device", "error", "noise", "conditions", "points", "batches", "verification")]
    assert list(fields["error"]) == ["median", "p90", "max"]
    assert fields["device"] == json.loads(device_to_json(calibration.device))
    assert fields["points"][0]["nanoseconds"] == list(calibration.points[0].nanoseconds)
    assert calibration_from_json(text) == calibration_from_json(text.encode()) == wanted
    assert device_of(text) == wanted.device


def changed(calibration, path, value):
    fields = json.loads(calibration_to_json(calibration))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["error"], None, r"calibration\.error is missing"),
        (["extra"], 1, r"calibration\.extra is not known"),
        (["error", "p90"], "much", r"calibration\.error\.p90 must be of type float, not 'much'"),
        (["error", "p90"], True, r"calibration\.error\.p90 must be of type float, not True"),
        (["conditions", "direct"], 1, r"conditions\.direct must be of type bool, not 1"),
        (["conditions", "rounds"], 8.0, r"conditions\.rounds must be of type int, not 8\.0"),
        (["points", 2, "nanoseconds"], 7, r"points\[2\]\.nanoseconds must be of type list"),
        (["points", 2, "nanoseconds", 1], "x", r"points\[2\]\.nanoseconds\[1\] must be of type int, not 'x'"),
        (["points"], {}, r"calibration\.points must be of type list"),
        (["device", "latency_ns"], -1, "latency_ns must be an integer of at least 0, not -1"),
        (["device", "knee"], None, "field 'knee' is missing"),
        (["device"], 3, r"calibration\.device must be of type Device, not 3"),
        (["error", "p90"], -1.0, "errors must be shares of at least 0"),
        (["verification", "noise", "max"], -0.1, "errors must be shares of at least 0"),
        (["verification"], [], r"calibration\.verification must be of type Verification"),
    ],
)
def test_a_damaged_file_is_said_in_one_sentence(calibration, path, value, message, tmp_path):
    text = changed(calibration, path, value)
    with pytest.raises(DomainError, match=message) as caught:
        calibration_from_json(text)
    assert "\n" not in str(caught.value)
    file = tmp_path / "device.json"
    file.write_text(text)
    with pytest.raises(DomainError, match=f"^{file}: .*{message}.*; correct the file, or use a preset$"):
        device_word(str(file))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"device": NaN}', '{"device": 1, "device": 1}', b"\xff", "3"]
)
def test_what_is_no_json_object_is_refused(text):
    for read in (calibration_from_json, device_of):
        with pytest.raises(DomainError):
            read(text)


def test_what_json_does_not_have_is_refused(calibration):
    with pytest.raises(DomainError, match="it has NaN for a number"):
        calibration_from_json(changed(calibration, ["error", "p90"], float("nan")))
    twice = calibration_to_json(calibration).replace('"seed": 0', '"seed": 1, "seed": 0')
    with pytest.raises(DomainError, match="it names a field twice"):
        calibration_from_json(twice)


def test_an_error_may_be_a_whole_number(calibration):
    assert calibration_from_json(changed(calibration, ["error", "p90"], 1)).error.p90 == 1.0


def test_a_device_option_takes_both_kinds_of_file(calibration, tmp_path):
    (tmp_path / "calibration").write_text(calibration_to_json(calibration))
    (tmp_path / "device").write_text(device_to_json(calibration.device))
    for name in ("calibration", "device"):
        assert device_word(str(tmp_path / name)) == calibration.device


@pytest.fixture
def asked(calibration, monkeypatch):
    """The command with a measurement of the simulated disk; the list of what it was asked for."""
    calls = []

    def stand_in(folder, *, traces, announce, **options):
        calls.append((folder, traces, options))
        announce("writes as told")
        return calibration if traces else calibration._replace(verification=None)

    monkeypatch.setattr(command, "calibrate", stand_in)
    return calls


def test_the_command_shows_keeps_and_says_what_it_writes(asked, calibration, tmp_path, capsys):
    out_file = tmp_path / "disk.json"
    assert main(["calibrate", str(tmp_path), "--out", str(out_file)]) == 0
    out, err = capsys.readouterr()
    [(folder, traces, options)] = asked
    assert (folder, traces, options["file_bytes"], options["seed"]) == (tmp_path, (), 4 * 2**30, 0)
    assert options["rounds"] == 8
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
    assert "own noise" in out and "median 0.0%" in out
    assert "Linux 6.1, load average 0.5, Python 3.11; threads, huge pages; /disk (ext4)" in out
    assert f"--device {out_file}" in out.replace("\n", "") and "mixed" not in out
    assert list(tmp_path.iterdir()) == [out_file]


def test_the_command_verifies(asked, calibration, monkeypatch, capsys):
    assert main(["calibrate", "--verify", "--seed", "4", "--size", "0.5", "--quiet"]) == 0
    out, err = capsys.readouterr()
    [(folder, traces, options)] = asked
    assert (folder, traces, options["file_bytes"], options["seed"]) == (Path(), TRACES, 2**29, 4)
    assert options["rounds"] == 16 and err == ""
    assert "verified: error median" in out and "allowed: median 8%, 90th percentile 15%" in out
    trace = calibration.verification.traces[3]
    [row] = [line for line in out.splitlines() if line.split()[:2] == [trace.kind, str(trace.depth)]]
    assert f"{trace.reads:,}" in row and f"{trace.predicted_ns / 1e6:.1f}" in row
    assert "not kept" in out

    slow = Device(0, 0, 10**9)  # a nanosecond a byte
    late = trace._replace(predicted_ns=2 * trace.nanoseconds[0])
    bad = calibration.verification._replace(error=Errors(0.09, 0.16, 0.3), traces=(late,))
    poor = calibration._replace(device=slow, verification=bad)
    monkeypatch.setattr(command, "calibrate", lambda *_, **__: poor)
    assert main(["calibrate", "--verify", "--quiet"]) == 1
    out, _ = capsys.readouterr()
    assert [line.split()[-1] for line in out.splitlines() if line.split()[:1] == [trace.kind]] == ["+100.0%"]
    point = calibration.points[0]
    error = point.size * point.reads / point.nanoseconds[0] - 1
    assert [line for line in out.splitlines() if line.split()[:3:2] == ["4", "1"] and f"{error:+.1%}" in line]
    assert "NOT verified: error median 9.0%, 90th percentile 16.0%, largest 30.0%" in out
    assert main(["calibrate", "--verify", "--quiet", "--json"]) == 1


def test_the_command_prints_json(asked, calibration, capsys):
    assert main(["calibrate", "--json", "--verify", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == calibration_to_json(calibration) and err == ""


def test_an_unsteady_disk_ends_the_command_and_keeps_nothing(monkeypatch, tmp_path, capsys):
    def unsteady(*_, **__):
        raise CalibrationError("too unsteady")

    monkeypatch.setattr(command, "calibrate", unsteady)
    assert main(["calibrate", "--quiet", "--out", str(tmp_path / "disk.json")]) == 2
    assert capsys.readouterr().err == "flashref calibrate: too unsteady\n"
    assert list(tmp_path.iterdir()) == []


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
        (["--out", "absent/disk.json"], "--out absent/disk.json: absent is no folder that can be written"),
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
