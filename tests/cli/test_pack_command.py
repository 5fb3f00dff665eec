"""`flashref pack`: a whole image and nothing beside it, an account of every byte, and progress."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pack_runs
import pytest
import safetensors.numpy
from checkpoint_files import NEURONS, WIDTH, random_weights, write_checkpoint
from pack_runs import KEYS, contents
from rich.progress import DownloadColumn, TransferSpeedColumn

from flashref.cli import pack as command
from flashref.cli import report as bars
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.image import open_image

BUNDLED_NAME = re.compile(r"layers\.\d+\.(bundles|gate|up|down)")

no_waiting_for_the_disk = pack_runs.no_waiting_for_the_disk
model = pack_runs.model
whole = pack_runs.whole
run = pack_runs.run
report = pack_runs.report


# --- what is written -----------------------------------------------------------------------------


def test_the_image_is_written_and_nothing_beside_it(run, whole, tmp_path):
    assert run("--image", tmp_path / "image").code == 0
    assert contents(tmp_path) == {"image": whole}


@pytest.mark.parametrize("bundled", [True, False])
def test_every_byte_is_accounted_for(report, model, tmp_path, bundled):
    path = tmp_path / "image"
    told = report("--image", path, *["--without-bundling"] * (not bundled))
    assert list(told) == KEYS
    raw, stored = path.read_bytes(), safetensors.numpy.load_file(path)
    weights = random_weights()
    ffn = {name for name in weights if re.search(r"fc[12]\.weight", name)}
    row = WIDTH * 4
    assert told["image"] == str(path) and told["written"] is True
    assert told["fingerprint"] == open_image(path).fingerprint
    assert told["size_bytes"] == len(raw)
    assert (told["block"], told["bundled"], told["fields"]) == (4096, bundled, ["up", "down"])
    assert told["bundles"] == 2 * NEURONS * (1 if bundled else 2)
    assert (told["bundle_bytes"], told["stride"]) == ((2 * row, 64) if bundled else (row, 32))
    assert told["ffn_bytes"] == sum(weights[name].nbytes for name in ffn) == 2 * NEURONS * 2 * row
    assert told["resident_bytes"] == sum(weights[name].nbytes for name in weights.keys() - ffn)
    pads = sum(array.nbytes for name, array in stored.items() if name.startswith("pad."))
    strides = sum(array.nbytes for name, array in stored.items() if BUNDLED_NAME.fullmatch(name))
    assert told["padding_bytes"] == pads + strides - told["ffn_bytes"]
    header = 8 + int.from_bytes(raw[:8], "little")
    checksums = sum(array.nbytes for name, array in stored.items() if name.endswith("crc32"))
    assert told["other_bytes"] == header + checksums


def test_time_speed_and_memory_are_measured(report, whole, tmp_path, monkeypatch):
    def peak():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024

    clocked = partial(command.pack, clock=iter([10.0, 14.0]).__next__)
    monkeypatch.setattr(command, "pack", clocked)
    before = peak()
    told = report("--image", tmp_path / "image")
    assert before <= told["peak_memory_bytes"] <= peak()
    assert told["seconds"] == 4 and told["bytes_per_second"] == round(len(whole) / 4)


def test_the_same_in_words(run, report, tmp_path):
    told = report("--image", tmp_path / "a")
    outcome = run("--image", tmp_path / "[b]")
    assert (outcome.code, outcome.err) == (0, "")
    first, *lines = outcome.out.splitlines()
    assert first == f"{tmp_path}/[b]: packed"
    assert not any(line != line.rstrip() or len(line) > 80 for line in lines)
    rows = {found[1]: line for line in lines if (found := re.match(r" (\w+)  ", line))}
    names = ("part", "image", "bundles", "weights", "resident", "padding", "other", "time", "memory")
    assert tuple(rows) == names
    assert f" {told['size_bytes'] / 1000:.0f} kB " in rows["image"] and "4,096 bytes" in rows["image"]
    assert re.search(r" 10  of up, down: 48 bytes each, 64 with padding$", rows["bundles"])
    assert " 480 B " in rows["weights"]
    assert re.search(r"\d s .*/s", rows["time"]) and re.search(r"\d [MG]B ", rows["memory"])
    outcome = run("--image", tmp_path / "c", "--without-bundling")
    assert re.search(r"^ rows +20  of up, down: 24 bytes each, 32 with padding$", outcome.out, re.M)


def test_the_block_is_the_devices_and_at_least_a_page(report, tmp_path):
    for block, expected in ((512, 4096), (16384, 16384)):
        (tmp_path / "disk.json").write_text(device_to_json(PRESETS["ufs40"]._replace(block=block)))
        path = tmp_path / f"{block}"
        assert report("--image", path, "--device", tmp_path / "disk.json")["block"] == expected
        assert open_image(path).layouts[0][0].block == expected


def test_shards_give_the_same_image(run, whole, tmp_path):
    folder = write_checkpoint(tmp_path / "model", random_weights(), shards=3)
    (tmp_path / "out").mkdir()
    assert run("--image", tmp_path / "out" / "image", directory=folder).code == 0
    assert contents(tmp_path / "out") == {"image": whole}


def llama(folder):
    """A gated checkpoint of two layers; gives its tensors."""
    rng, d, n = np.random.default_rng(0), 8, 5
    shapes = {"model.embed_tokens.weight": (7, d), "model.norm.weight": (d,), "lm_head.weight": (7, d)}
    for layer in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{layer}.self_attn.{which}_proj.weight": (d, d) for which in "qkvo"}
        shapes |= {f"{layer}.mlp.{which}_proj.weight": (n, d) for which in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (d, n)
        shapes |= {f"{layer}.{which}_layernorm.weight": (d,) for which in ("input", "post_attention")}
    weights = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    folder.mkdir()
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": d,
        "intermediate_size": n,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "vocab_size": 7,
        "hidden_act": "relu",
        "rms_norm_eps": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


@pytest.mark.parametrize("gate", ["flash", "resident"])
def test_a_gate_is_in_the_bundles_or_resident(report, tmp_path, gate):
    weights = llama(tmp_path / "model")
    told = report("--image", tmp_path / "image", "--gate", gate, directory=tmp_path / "model")
    fields = ["gate", "up", "down"] if gate == "flash" else ["up", "down"]
    assert told["fields"] == fields and told["bundle_bytes"] == len(fields) * 16
    assert told["ffn_bytes"] == 2 * 5 * len(fields) * 16
    stored = safetensors.numpy.load_file(tmp_path / "image")
    for layer in range(2):
        matrices = {field: weights[f"model.layers.{layer}.mlp.{field}_proj.weight"] for field in fields}
        rows = [array.T if field == "down" else array for field, array in matrices.items()]
        bundles = np.concatenate(rows, axis=1)
        assert np.array_equal(stored[f"layers.{layer}.bundles"][:, : bundles.shape[1]], bundles)
        name = f"model.layers.{layer}.mlp.gate_proj.weight"
        assert (name in stored) == (gate == "resident")
        assert gate == "flash" or np.array_equal(stored[name], weights[name])
    resident = sum(array.nbytes for name, array in weights.items() if name in stored)
    assert told["resident_bytes"] == resident
    again = report("--image", tmp_path / "image", "--gate", gate, directory=tmp_path / "model")
    assert again["written"] is False


# --- progress ------------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_and_nowhere_else(run, tmp_path, monkeypatch):
    assert run("--image", tmp_path / "a").err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    err = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", run("--image", tmp_path / "[b]", "--json").err)
    done = (tmp_path / "[b]").stat().st_size / 1000
    assert re.search(rf"packing \[b\] ━+ {done:.1f}/{done:.1f} kB (\?|[\d.]+ \w+/s) 0:00:00", err), err
    err = run("--image", tmp_path / "[b]", "--json").err
    assert "reading the checkpoint" in err and "checking [b]" in err
    assert run("--image", tmp_path / "c", "--json", "--quiet").err == ""


def test_progress_tells_the_speed_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    clock = [0.0]
    monkeypatch.setattr(bars, "Console", partial(bars.Console, get_time=lambda: clock[0]))
    with bars.progress(False, DownloadColumn(), TransferSpeedColumn()) as advance:
        for done in range(0, 70, 10):  # 10 MB a second
            clock[0] = done / 10
            advance("packing", done * 10**6, 610 * 10**6)
    err = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "60.0/610.0 MB 10.0 MB/s 0:00:55" in err


def test_without_a_terminal_a_line_comes_now_and_then_and_says_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(bars, "LINE_SECONDS", 20)
    clock = [0.0]
    advance = bars._lines(lambda: clock[0])
    for second in range(0, 71, 10):
        clock[0] = second
        advance("fitting", second, 600)
    advance("judging", 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "flashref: fitting: 3% done, about 10 min left",
        "flashref: fitting: 7% done, about 9 min left",
        "flashref: fitting: 10% done, about 9 min left",
    ]
    clock[0] = 90
    advance("judging", 2, 2)
    assert capsys.readouterr().err == "flashref: judging: 100% done\n"


def test_of_many_bars_the_newest_are_shown(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    made, kind = [], bars.Bars
    monkeypatch.setattr(bars, "Bars", lambda *of, **options: made.append(kind(*of, **options)) or made[0])
    with bars.progress(False) as advance:
        for layer in range(9):
            advance(f"layer {layer}", 1, 1)
        shown = [task.description for task in made[0].tasks if task.visible]
    assert shown == [f"layer {layer}" for layer in range(4, 9)]
