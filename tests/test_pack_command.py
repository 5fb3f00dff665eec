"""`flashref pack` as a user meets it: a whole image or nothing, and an account of every byte."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from rich.progress import DownloadColumn, TransferSpeedColumn
from test_checkpoint import NEURONS, WIDTH, random_weights, write_checkpoint

from flashref.cli import main, pack
from flashref.cli import report as bars
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.image import open_image, pack_image
from flashref.transformer.checkpoint import open_checkpoint

Outcome = namedtuple("Outcome", "code out err")
KEYS = [
    "image",
    "written",
    "fingerprint",
    "size_bytes",
    "block",
    "bundled",
    "fields",
    "bundles",
    "bundle_bytes",
    "stride",
    "ffn_bytes",
    "resident_bytes",
    "padding_bytes",
    "other_bytes",
    "seconds",
    "bytes_per_second",
    "peak_memory_bytes",
]
BUNDLED_NAME = re.compile(r"layers\.\d+\.(bundles|gate|up|down)")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), random_weights())


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The bytes that are to be written."""
    path = tmp_path_factory.mktemp("whole") / "image"
    checkpoint = open_checkpoint(model)
    pack_image(path, checkpoint.tensors, dict(enumerate(checkpoint.layers)), checkpoint.config_text)
    return path.read_bytes()


@pytest.fixture
def run(capsys, model):
    """`flashref pack` in this process: exit code, stdout, stderr."""

    def run(*words, directory=model):
        try:
            code = main(["pack", str(directory), *map(str, words)])
        except SystemExit as end:
            code = end.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def report(run):
    """The object that --json prints, of a packing that must succeed."""

    def report(*words, **options):
        outcome = run("--json", *words, **options)
        assert (outcome.code, outcome.err) == (0, "")
        return json.loads(outcome.out)

    return report


def sentence(outcome):
    """The one sentence of a mistake: exit code 2, nothing on stdout, no traceback."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("flashref pack: ") and outcome.err.endswith("\n")
    text = outcome.err.removeprefix("flashref pack: ")[:-1]
    assert "\n" not in text and "Traceback" not in text and ";" in text
    return text


def contents(folder):
    return {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes() for path in folder.iterdir()
    }


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

    monkeypatch.setattr(pack, "time", SimpleNamespace(perf_counter=iter([10.0, 14.0]).__next__))
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
    rows = {found[1]: line for line in lines if (found := re.match(r"(\w[\w ]*?)  ", line))}
    assert list(rows) == [
        "image",
        "bundles",
        "their weights",
        "resident",
        "padding",
        "other",
        "time",
        "memory",
    ]
    assert f" {told['size_bytes'] / 1000:.0f} kB " in rows["image"] and "4,096 bytes" in rows["image"]
    assert re.search(r" 10  of up, down: 48 bytes each, stride 64$", rows["bundles"].rstrip())
    assert " 480 B " in rows["their weights"]
    assert re.search(r"\d s .*/s", rows["time"]) and re.search(r"\d [MG]B ", rows["memory"])
    outcome = run("--image", tmp_path / "c", "--without-bundling")
    assert re.search(r"^rows +20  of up, down: 24 bytes each, stride 32 *$", outcome.out, re.M)


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


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: --image"),
        (["--image", "x", "--gate", "some"], "--gate: invalid choice: 'some'"),
        (["--image", "x", "--order", "hot"], "unknown words: --order hot"),
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
        (tmp_path / "no", "there is no such directory"),
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
    assert text.startswith(f"--image {tmp_path}/no/image: {tmp_path}/no is no folder that can be written; ")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is no folder that can be written" in sentence(run("--image", tmp_path / "image"))
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_is_told_before_a_byte_is_written(run, whole, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=len(whole) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("written"))
    text = sentence(run("--image", tmp_path / "image"))
    assert f"image: needs {len(whole)} bytes, but {len(whole) - 1} are free; make room" in text
    assert os.listdir(tmp_path) == []


def failing(monkeypatch, fail, call=5):
    """os.pwrite, which calls `fail` instead the fifth time."""
    real, calls = os.pwrite, []

    def pwrite(*args):
        calls.append(args)
        return fail() if len(calls) == call else real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)


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
    told = f"{path}: is the whole image of this checkpoint; nothing was written\n"
    assert outcome.out.startswith(told) and "to check all of it" in outcome.out
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
    assert "it is damaged" in refused()
    for place, told in (
        (embed.offset, "embed_tokens.weight' is not as it was written"),
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
    assert "no safetensors file" in refused()
    shutil.copy(model / "model.safetensors", tmp_path / "model.safetensors")
    assert "is not a flash image" in refused(name="model.safetensors")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "exists, and files are never overwritten" in refused(name="dangling")
    assert "is not a regular file" in sentence(run("--image", tmp_path))


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
