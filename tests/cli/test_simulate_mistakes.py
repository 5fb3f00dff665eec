"""A mistake with `flashref simulate` gets one sentence, and leaves nothing half-written."""

import errno
import json
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest
from command_line import called
from simulate_runs import refused, simulated, small_model

from flashref.simulate import simulation
from flashref.storage.device import PRESETS, device_to_json


@pytest.fixture
def small(capsys, tmp_path):
    """The command on the small model."""
    return partial(simulated, capsys, small_model(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("latency_ns", 10**30, "latency_ns must be at most 2^53"),
        ("queue_depth", 10**25, "queue_depth must be at most 2^53"),
        ("dispatch_ns", 10**25, "dispatch_ns must be at most 2^53"),
        ("latency_ns", 10**17, "latency_ns must be at most 2^53"),
        ("latency_ns", 2**53, "longer than 292 years"),
    ],
)
def test_a_device_with_impossible_numbers_is_refused(small, tmp_path, field, value, said):
    path = tmp_path / "device.json"
    fields = json.loads(device_to_json(PRESETS["nvme_gen4"]))
    path.write_text(json.dumps({**fields, field: value}))
    assert refused(small("--device", path, "--tokens", 200, "--warm", 0, tokens=False), said)


def test_a_worker_that_dies_is_told_in_one_sentence(small, monkeypatch):
    def die(*_):
        raise BrokenProcessPool("a process was killed")

    monkeypatch.setattr(simulation, "sweep", die)
    assert refused(small("--workers", 2), "a worker ended", "--workers")


def test_a_trace_of_another_model_is_refused(small, capsys, tmp_path):
    path = tmp_path / "trace.safetensors"
    small("--save-trace", path, "--policy", "naive")
    assert refused(
        called(capsys, "simulate", "--trace", path),
        "3 layers of 96 neurons",
        "32 layers of 16384 neurons",
        "--model",
    )
    assert refused(small("--trace", path), "--tokens, --warm and --seed belong to a synthetic trace")


def test_a_file_that_cannot_be_written_does_not_take_the_result_away(small, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    words = ["--policy", "naive", "--json"]
    expected = small(*words).out

    def full(path, size):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("flashref.cli.plots.create_file", full)
    monkeypatch.setattr("flashref.simulate.trace_file.create_file", full)
    for option, path in (("--plot", tmp_path / "a.svg"), ("--save-trace", tmp_path / "a")):
        ended = small(*words, option, path)
        assert (ended.code, ended.out) == (2, expected)
        assert f"{path}: No space left on device" in ended.err and ended.err.count("\n") == 1
        assert not path.exists()


def test_two_files_of_one_name_are_refused_before_the_work(small, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "sweep", lambda *_: pytest.fail("simulated before it was refused"))
    path = tmp_path / "a.svg"
    assert refused(small("--plot", path, "--save-trace", path), "--plot and --save-trace name the same file")


def test_what_would_keep_a_figure_from_being_written_is_said_before_the_work(small, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "sweep", lambda *_: pytest.fail("simulated before it was refused"))
    (tmp_path / "here.png").touch()
    assert refused(small("--plot", tmp_path / "a.jpg"), ".png, .svg, .pdf")
    assert refused(small("--plot", tmp_path / "here.png"), "exists")
    assert refused(small("--plot", tmp_path / "no" / "a.png"), "no folder")
    assert refused(small("--save-trace", tmp_path / "no" / "a"), "--save-trace", "no folder")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refused(small("--plot", tmp_path / "a.png"), "install flashref with its `plot` extra")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "opt-7b"], ["--model opt-7b", "opt-6.7b"]),
        (["--device", "floppy"], ["--device floppy", "ufs40"]),
        (["--policy", "naive,random"], ["'random' is unknown", "belady"]),
        (["--order", "alphabetic"], ["'alphabetic' is unknown", "co-activation"]),
        (["--rows", "loose"], ["'loose' is unknown", "bundled"]),
        (["--memory", "0.5,1.5"], ["at most 1, not 1.5"]),
        (["--memory", "0.5,"], ["'' is not a share such as 0.5, nor bytes"]),
        (["--window", "0"], ["at least 1"]),
        (["--window", "10"], ["longer than the trace of 9 tokens"]),
        (["--window", "4", "--tokens", "2", "--warm", "1"], ["longer than the trace of 3 tokens"]),
        (["--window", "some"], ["'some' is not a whole number"]),
        (["--max-gap", "-1"], ["at least 0"]),
        (["--tokens", "0"], ["at least 1"]),
        (["--workers", "0"], ["at least 1"]),
        (["--copy-bandwidth", "-3"], ["at least 0"]),
        (["--copy-bandwidth", "1e-300"], ["less than a byte a second; 0 means no limit"]),
        (["--compute-bandwidth", "fast"], ["'fast' is not a number of GB/s"]),
        (["--compute-bandwidth", "nan"], ["'nan' is not a number of GB/s"]),
        (["--json", "--csv"], ["not allowed with"]),
        (["--policy", "pinned", "--warm", "0"], ["has no warm-up tokens"]),
    ],
)
def test_a_mistake_gets_one_sentence(small, words, parts):
    assert refused(small(*words), *parts)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}', '{"model_type": "opt"}'])
def test_a_config_that_is_none_is_refused(capsys, tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert refused(called(capsys, "simulate", "--model", path), path)


def test_an_interrupt_leaves_nothing(small, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "sweep", interrupted)
    ended = small("--plot", tmp_path / "a.svg", "--workers", 2)
    assert ended.code == 130 and not ended.out
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]
