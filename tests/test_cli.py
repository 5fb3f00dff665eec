"""`flashref run` as a user meets it: one sentence for every mistake, and results that say what was proven."""

import errno
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from random_models import CONTEXT, LAYERS, NEURONS, random_weights, write_model, write_tokenizer
from safetensors.numpy import save_file

import flashref
from flashref.cli import main, opening
from flashref.ffn import active_neurons
from flashref.storage.container import read_container
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.image import pack_image
from flashref.transformer import flash
from flashref.transformer.checkpoint import open_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cannot be read past the page cache"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]

Outcome = namedtuple("Outcome", "code out err")
TEXT = b"And the earth was without form"
KEYS = [
    "model",
    "prompt",
    "text",
    "token_ids",
    "tokens",
    "activation",
    "semantics",
    "window",
    "rows",
    "memory_fraction",
    "memory",
    "device",
    "reader",
    "direct",
    "verified",
    "same_as_dense",
    "overflows",
    "predictor",
    "perplexity",
    "methods",
    "scaled",
]
METHOD_KEYS = [
    "name",
    "useful_bytes_per_token",
    "flash_bytes_per_token",
    "reads_per_token",
    "dram_bytes",
    "dram_moved_bytes_per_token",
    "simulated_io_ms_per_token",
    "measured_io_ms_per_token",
]
NAMES = ["naive", "hybrid", "predictor", "windowing", "bundling"]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_weights(rank=6), held_out=TEXT)


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory):
    """An image of the model, and the same rows unbundled; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    checkpoint = open_checkpoint(model)
    for name, bundled in (("image", True), ("image.unbundled", False)):
        layers = dict(enumerate(checkpoint.layers))
        pack_image(folder / name, checkpoint.tensors, layers, checkpoint.config_text, bundled=bundled)
    return folder / "image"


@pytest.fixture
def image(packed, tmp_path):
    """A copy of the image with its rows, to be damaged."""
    for path in packed.parent.iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "image"


@pytest.fixture
def run(capsys, model):
    """`flashref run` in this process: exit code, stdout, stderr. A later --model replaces the first."""

    def run(*words):
        few = ["--tokens", "3", "--memory", "0.95", "--perplexity-tokens", "0"]
        if not any("--prompt-ids" in str(word) for word in words):
            few += ["--prompt", "In the"]
        arguments = ["run", "--model", str(model), *few, *map(str, words)]
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def report(run):
    """The object that --json prints, of a run that must hold; the measured peak is no part of it."""

    def report(*words):
        outcome = run("--json", *words)
        assert (outcome.code, outcome.err) == (0, "")
        return without_peak(outcome.out)

    return report


def without_peak(out):
    """What --json printed, but for what no two runs have alike."""
    result = json.loads(out)
    assert result["memory"].pop("peak") >= 0 and result["memory"].pop("before") > 0
    return result


def sentence(outcome):
    """The one sentence of a mistake: exit code 2, nothing on stdout, no traceback."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("flashref run: ") and outcome.err.endswith("\n")
    text = outcome.err.removeprefix("flashref run: ")[:-1]
    assert "\n" not in text and "Traceback" not in text and "Error" not in text
    assert ";" in text or "give " in text  # what is wrong; what to do
    return text


# --- mistakes: options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--memory", "0"], "--memory: a share of the model must be more than 0 and at most 1, not 0"),
        (["--memory", "1.5"], "at most 1, not 1.5"),
        (["--memory", "-1"], "--memory"),
        (["--memory", "nan"], "at most 1, not nan"),
        (
            ["--memory", "half"],
            "--memory: 'half' is not a share such as 0.5, nor bytes with a unit, such as 6GB",
        ),
        (["--window", "0"], "--window: must be at least 1, not 0"),
        (["--window", "2.5"], "--window: '2.5' is not a whole number"),
        (["--tokens", "0"], "--tokens: must be at least 1, not 0"),
        (["--tokens", "many"], "--tokens: 'many' is not a whole number"),
        (["--seed", "-1"], "--seed"),
        (["--temperature", "inf"], "--temperature: a temperature must be finite and at least 0, not inf"),
        (["--temperature", "hot"], "--temperature: 'hot' is not a number such as 0.8"),
        (["--prompt-ids", "3,x"], "--prompt-ids: '3,x' is not whole numbers with commas between"),
        (["--prompt-ids", ""], "--prompt-ids: '' is not whole numbers"),
        (["--semantics", "all"], "--semantics: invalid choice: 'all' (choose from"),
        (["--placement", "sorted"], "--placement: invalid choice"),
        (["--predictor", "none"], "--predictor: invalid choice"),
        (["--reader", "tape"], "--reader: invalid choice"),
        (["--perplexity-tokens", "-1"], "--perplexity-tokens"),
        (["--model"], "--model: expected one argument"),
        (["--unknown"], "unknown words: --unknown"),
        (["--prompt", "a", "--prompt-ids", "1"], "--prompt-ids: not allowed with argument --prompt"),
    ],
)
def test_a_bad_word_is_named_with_its_option(run, words, told):
    outcome = run(*words)
    if "unrecognized" in told:  # only the parser of all commands knows
        outcome = outcome._replace(err=outcome.err.replace("flashref: ", "flashref run: ", 1))
    text = sentence(outcome)
    assert told in text and "--help" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt", ""], "the prompt is empty; give at least one token"),
        (["--prompt-ids", "3,256"], "token id 256 is outside the vocabulary; use 0 … 255"),
        (["--prompt-ids=-1"], "token id -1 is outside the vocabulary"),
        (["--prompt", "x" * 10, "--tokens", "55"], "do not fit the context of 64; ask for 1 … 54"),
        (["--prompt", "x" * 64, "--tokens", "1"], "shorten it to 63"),
        (["--prompt", "é" * 32], "the prompt has 64 tokens and the context 64"),
        (["--device", "floppy"], "--device floppy: neither a file nor a preset; use one of paper_m1max"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_can(run, words, told):
    assert told in sentence(run(*words))


def test_the_largest_number_of_tokens_that_is_named_works(run):
    prompt = ("--prompt", "x" * (CONTEXT - 5))
    assert sentence(run(*prompt, "--tokens", "6")).endswith("ask for 1 … 5")
    assert run(*prompt, "--tokens", "5").code == 0


def test_a_memory_that_is_too_small_names_the_smallest_that_works(run, tmp_path):
    text = sentence(run("--memory", "0.01"))
    found = re.search(r"(\d+) must always be resident; the smallest that works is (0\.\d{3})$", text)
    assert found
    assert run("--memory", found[2]).code == 0
    assert found[2] in sentence(run("--memory", f"{float(found[2]) - 0.001:.3f}"))


def test_a_device_that_is_none(run, tmp_path):
    path = tmp_path / "disk.json"
    path.write_text("{")
    assert f"{path}: a device must be a JSON object" in sentence(run("--device", path))
    path.write_text(device_to_json(PRESETS["ufs40"]).replace("max_iops", "iops"))
    assert f"{path}: a device has no field 'iops'" in sentence(run("--device", path))
    assert "neither a file nor a preset" in sentence(run("--device", tmp_path))


# --- mistakes: models and predictors -------------------------------------------------------------


def test_a_directory_that_is_no_model(run, tmp_path):
    assert f"{tmp_path}/x: there is no such directory; give" in sentence(run("--model", tmp_path / "x"))
    assert "has no config.json; give" in sentence(run("--model", tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    text = sentence(run("--model", tmp_path))
    assert f"{tmp_path}: config.json has model_type 'mamba', which is not supported; use one of opt" in text
    (tmp_path / "config.json").write_text("[")
    assert "config.json: is not JSON" in sentence(run("--model", tmp_path))


def test_a_checkpoint_of_bin_files_says_how_to_convert_them(run, tmp_path):
    write_model(tmp_path, random_weights())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "in .bin files" in (text := sentence(run("--model", tmp_path))) and "save_pretrained" in text


def changed_model(folder, change, **config):
    weights = random_weights()
    change(weights.model)
    return write_model(folder, weights, **config)


FC1 = "model.decoder.layers.1.fc1.weight"


def test_tensors_that_do_not_fit(run, tmp_path):
    def transpose(tensors):
        tensors[FC1] = tensors[FC1].T.copy()

    text = sentence(run("--model", changed_model(tmp_path / "a", transpose)))
    assert f"{FC1} has the shape (16, 48), but config.json asks for (48, 16); put" in text
    text = sentence(run("--model", changed_model(tmp_path / "b", lambda tensors: tensors.pop(FC1))))
    assert f"lacks the tensor {FC1}" in text


@pytest.mark.parametrize(
    "name", [FC1, "model.decoder.embed_tokens.weight", "model.decoder.layers.0.fc2.bias"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_and_no_image_left(run, tmp_path, name, value):
    def spoil(tensors):
        tensors[name].reshape(-1)[3] = value

    folder = changed_model(tmp_path / "model", spoil)
    (tmp_path / "images").mkdir()
    text = sentence(run("--model", folder, "--image", tmp_path / "images" / "image"))
    assert name in text and "not finite" in text
    assert list((tmp_path / "images").iterdir()) == []


def test_a_vocabulary_that_is_no_bytes_takes_and_gives_ids(run, report, tmp_path):
    def enlarge(tensors):
        tensors["model.decoder.embed_tokens.weight"] = np.zeros((300, 16), np.float16)

    folder = changed_model(tmp_path / "model", enlarge, vocab_size=300)
    text = sentence(run("--model", folder))
    assert f"{folder}: has a vocabulary of 300 and no tokenizer.json; add it" in text
    assert text.endswith("or give token ids with --prompt-ids")
    told = report("--model", folder, "--prompt-ids", "299,2", "--tokens", "2")
    assert told["prompt"] is told["text"] is None and told["verified"]
    ids = ",".join(map(str, told["token_ids"][2:]))
    assert run("--model", folder, "--prompt-ids", "299,2", "--tokens", "2").out.startswith(f"299,2 → {ids}\n")


def test_a_model_without_predictors(run, report, tmp_path):
    folder = write_model(tmp_path / "model", random_weights(), predictors=False)
    text = sentence(run("--model", folder))
    assert f"{folder}/predictors.safetensors: there are no trained predictors" in text
    assert "`flashref train`" in text and "--predictor exact" in text
    assert report("--model", folder, "--predictor", "exact")["verified"]
    text = sentence(run("--model", folder, "--predictors", tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere: cannot be read (No such file or directory); check the path" in text


def test_predictors_of_another_model(run, model, tmp_path):
    tensors = random_weights().predictors
    wide = {
        name: np.concatenate([a, a]) if name.endswith(("b", "bias")) else a for name, a in tensors.items()
    }
    save_file(wide, tmp_path / "wide")
    text = sentence(run("--predictors", tmp_path / "wide"))
    assert f"{tmp_path}/wide: has a predictor for layer 0 of shapes (6, 16) and (96, 6)" in text
    assert "give predictors of this model with --predictors FILE; or use --predictor exact" in text
    save_file({name: a for name, a in tensors.items() if "layers.0" in name}, tmp_path / "few")
    assert "lacks the tensor 'layers.1.a'" in sentence(run("--predictors", tmp_path / "few"))
    assert "lacks the tensor" in sentence(run("--predictors", model / "model.safetensors"))


def test_a_held_out_text_that_is_none(run, tmp_path):
    folder = write_model(tmp_path / "model", random_weights())
    path, other = folder / "held_out.txt", tmp_path / "other"
    for content, told in (
        (b"", "is empty; give a text"),
        (b"x", "is no text of two tokens or more in the model's vocabulary of 256; give another with"),
        (b"abc\xff", "is not UTF-8 at byte 3 (invalid start byte); convert it"),
    ):
        path.write_bytes(content)
        other.write_bytes(content)
        for asked in ([], ["--perplexity-tokens", "5"]):
            few = ["--model", folder, "--perplexity-tokens", "7", *asked]
            assert f"{path}: {told}" in sentence(run(*few))
        assert run("--model", folder, "--perplexity-tokens", "0").code == 0
        path.write_bytes(TEXT)
        assert f"{other}: {told}" in sentence(run(*few, "--held-out", other))
    text = sentence(run(*few, "--held-out", tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere: cannot be read (No such file or directory)" in text


def test_a_held_out_text_that_is_given_is_the_one_that_is_measured(run, report, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(TEXT[::-1])
    own = report("--perplexity-tokens", "20")["perplexity"]
    assert report("--perplexity-tokens", "20", "--held-out", other)["perplexity"] != own
    other.write_bytes(TEXT)
    assert report("--perplexity-tokens", "20", "--held-out", other)["perplexity"] == own


def test_a_vocabulary_smaller_than_bytes(run, report, tmp_path):
    def shrink(tensors):
        tensors["model.decoder.embed_tokens.weight"] = tensors["model.decoder.embed_tokens.weight"][:120]

    folder = changed_model(tmp_path / "model", shrink, vocab_size=120, held_out=b"no \x7f")
    told = sentence(run("--model", folder, "--perplexity-tokens", "5"))
    assert "in the model's vocabulary of 120" in told
    assert "token id 122 is outside the vocabulary" in sentence(run("--model", folder, "--prompt", "az"))


def test_a_tokenizer_gives_the_ids_and_the_text(run, report, tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra hf, test)")

    def enlarge(tensors):
        tokens = np.random.default_rng(0).standard_normal((280, 16)).astype(np.float16)
        tensors["model.decoder.embed_tokens.weight"] = tokens

    folder = changed_model(tmp_path / "model", enlarge, vocab_size=280, held_out=TEXT)
    tokenizer = write_tokenizer(folder)
    told = report("--model", folder, "--prompt", "In the beginning", "--perplexity-tokens", "9")
    prompt = tokenizer.encode("In the beginning").ids
    assert told["token_ids"][:-3] == prompt and prompt[0] == 0 and len(prompt) < 16
    assert told["prompt"] == "<s>In the beginning" and told["perplexity"]["flash"] > 1
    whole = tokenizer.decode(told["token_ids"], skip_special_tokens=False)
    assert told["prompt"] + told["text"] == whole
    assert run("--model", folder, "--prompt", "In the beginning").out.startswith(whole)
    assert report("--model", folder, "--prompt-ids", ",".join(map(str, prompt)))["text"] == told["text"]
    (folder / "tokenizer.json").write_text("{")
    for words in ((), ("--prompt-ids", "1,2")):
        assert f"{folder}/tokenizer.json: is no tokenizer" in sentence(run("--model", folder, *words))


def test_held_out_text_needs_a_tokenizer(run, tmp_path):
    def enlarge(tensors):
        tensors["model.decoder.embed_tokens.weight"] = np.zeros((300, 16), np.float16)

    folder = changed_model(tmp_path / "model", enlarge, vocab_size=300, held_out=TEXT)
    words = ("--model", folder, "--prompt-ids", "299,2", "--perplexity-tokens", "9")
    outcome = run(*words)
    assert outcome.code == 0 and "there is no tokenizer, so no perplexity" in outcome.err
    assert "no tokenizer.json" in sentence(run(*words, "--held-out", folder / "held_out.txt"))


# --- mistakes: images ----------------------------------------------------------------------------


def test_an_image_cut_short_or_that_is_none(run, image):
    whole = image.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole + b"\0", b"", b"\0" * 7):
        image.write_bytes(damaged)
        assert str(image) in sentence(run("--image", image))
        assert image.read_bytes() == damaged
    for path in (image.parent, "/dev/null"):
        assert str(path) in sentence(run("--image", path))


def rewritten(path, change):
    """The header of an image, changed as JSON; its checksum is left as it was."""
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def test_a_header_that_claims_what_cannot_be(run, image, tmp_path):
    whole = image.read_bytes()
    image.write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    assert f"its header claims {1 << 60} bytes" in sentence(run("--image", image))

    def enlarge(header):
        header["layers.0.bundles"]["shape"] = [1 << 29, 1 << 30]
        header["layers.0.bundles"]["data_offsets"][1] = 1 << 60

    image.write_bytes(whole)
    rewritten(image, enlarge)
    assert str(image) in sentence(run("--image", image))

    def overlap(header):
        one, two = (header[f"layers.{layer}.bundles"] for layer in (0, 1))
        two["data_offsets"] = one["data_offsets"]

    image.write_bytes(whole)
    rewritten(image, overlap)
    text = sentence(run("--image", image))
    assert "overlaps the one before it, or leaves a hole" in text and str(image) in text
    # A checkpoint is such a file as well.
    folder = write_model(tmp_path / "model", random_weights())
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 1 << 60) + weights.read_bytes()[8:])
    text = sentence(run("--model", folder))
    assert f"{weights}: its header claims {1 << 60} bytes" in text and "get it again" in text


def test_an_image_of_a_newer_format(run, image):
    rewritten(image, lambda header: header["__metadata__"].update(version="2"))
    text = sentence(run("--image", image))
    assert f"{image}: was made by a newer flashref" in text and "update flashref or pack" in text


def test_an_image_of_another_model_or_of_other_bundles(run, model, packed, tmp_path):
    other = write_model(tmp_path / "other", random_weights(seed=1))
    text = sentence(run("--model", other, "--image", packed))
    assert f"{packed}: is the image of another model" in text and "remove the image" in text
    text = sentence(run("--image", packed.with_name("image.unbundled")))
    assert "image.unbundled: holds rows without bundling, not bundles; give another name with --image" in text
    checkpoint = open_checkpoint(model)
    partly = {0: checkpoint.layers[0]}
    pack_image(tmp_path / "partly", checkpoint.tensors, partly, checkpoint.config_text)
    text = sentence(run("--image", tmp_path / "partly"))
    assert f"{tmp_path}/partly: does not hold the bundles of every layer; give another name" in text


def test_blocks_that_are_too_small_for_the_device(run, packed, tmp_path):
    path = tmp_path / "large.json"
    path.write_text(device_to_json(PRESETS["ufs40"]._replace(block=16_384)))
    text = sentence(run("--image", packed, "--device", path))
    assert f"{packed}: has blocks of 4096 bytes, the device of 16384; pack it again" in text
    assert run("--device", path).code == 0


def flip(path, byte, bit=3):
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def places(path):
    """A byte of every part of an image but the bundles: name → its position."""
    tensors = read_container(path).tensors
    header = min(entry.offset for entry in tensors.values())
    found = {"length": 1, "JSON": 8 + 40, "padding of the header": header - 2}
    for name, entry in tensors.items():
        if not re.fullmatch(r"layers\.\d+\.(bundles|up|down)", name):
            found[name] = entry.offset + entry.length // 2
    return found


def test_one_flipped_bit_in_whatever_is_opened(run, image):
    found = places(image)
    kinds = ["length", "JSON", "padding of the header", "crc32", "layers.1.bundles.crc32"]
    kinds += [next(name for name in found if name.startswith("pad."))]
    kinds += ["model.decoder.embed_tokens.weight", "model.decoder.layers.0.fc1.bias"]
    kinds += [
        "model.decoder.layers.1.final_layer_norm.weight",
        "model.decoder.layers.1.self_attn.k_proj.bias",
    ]
    for kind in kinds:
        flip(image, found[kind])
        assert str(image) in sentence(run("--image", image)), kind
        flip(image, found[kind])
    assert run("--image", image).code == 0


@pytest.mark.parametrize(
    ("name", "reader"), [("image", "memory"), ("image", "direct"), ("image.unbundled", "direct")]
)
def test_one_flipped_bit_in_any_bundle(run, image, name, reader):
    path = image.with_name(name)
    for tensor, entry in read_container(path).tensors.items():
        if re.fullmatch(r"layers\.\d+\.(bundles|up|down)", tensor):
            for neuron in (0, 29, NEURONS - 1):  # the last byte, which may be padding
                last = entry.offset + (neuron + 1) * entry.length // NEURONS - 1
                flip(path, last)
                text = sentence(run("--image", image, "--reader", reader))
                assert f"{path}: the " in text and f"row of neuron {neuron} in layer {tensor[7]} " in text
                flip(path, last)
    assert run("--image", image, "--reader", reader).code == 0


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model.decoder.layers.1.self_attn.k_proj.bias", 1, "its resident tensors are not the checkpoint's"),
        ("model.decoder.embed_tokens.weight", 1, "its resident tensors are not the checkpoint's"),
    ],
)
def test_resident_tensors_that_only_look_right_are_refused(run, image, name, value, told):
    entry = read_container(image).tensors[name]
    content = bytearray(image.read_bytes())
    content[entry.offset + entry.length - 2] ^= value
    image.write_bytes(content)
    mend_checksum(image, name)
    assert f"{image}: {told}" in sentence(run("--image", image))


def mend_checksum(path, name):
    """The CRC-32 of a resident tensor as it is now."""
    tensors = read_container(path).tensors
    covered = [of for of in tensors if of != "crc32" and not re.fullmatch(r"layers\.\d+\.bundles", of)]
    content, entry = bytearray(path.read_bytes()), tensors[name]
    crc = zlib.crc32(content[entry.offset : entry.offset + entry.length])
    at = tensors["crc32"].offset + 4 * (1 + covered.index(name))
    content[at : at + 4] = struct.pack("<I", crc)
    path.write_bytes(content)


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
        text = sentence(run("--image", tmp_path / "image"))
        assert re.search(r"image: needs \d+ bytes, but 10000 are free; make room", text)
    assert list(tmp_path.iterdir()) == []
    real, written = os.pwrite, []

    def fill(descriptor, data, offset):
        written.append(len(data))
        if len(written) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fill)
    text = sentence(run("--image", tmp_path / "image"))
    assert f"{tmp_path}/image: needs " in text and "make room or choose another disk" in text
    assert len(written) == 9 and list(tmp_path.iterdir()) == []
    # Nor does a temporary image.
    written.clear()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert "make room" in sentence(run())
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_written(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "nowhere" / "image", tmp_path / "file" / "image"):
        text = sentence(run("--image", path))
        assert str(path) in text and "check the path" in text
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o555)
        assert "Permission denied" in sentence(run("--image", tmp_path / "closed" / "image"))
    assert (tmp_path / "file").read_text() == "mine"


def test_other_errors_of_the_system_are_one_sentence_too(run, monkeypatch):
    def gone(*_):
        raise OSError(errno.EIO, "Input/output error", "/dev/sda")

    monkeypatch.setattr(flash, "decode_layer", gone)
    assert sentence(run()) == "/dev/sda: Input/output error; check the path, its permissions and the disk"


# --- results -------------------------------------------------------------------------------------


def test_json_has_these_keys_in_this_order(report, model):
    result = report("--prompt", "In the", "--perplexity-tokens", "40")
    assert list(result) == KEYS
    assert result["model"] == str(model) and result["prompt"] == "In the"
    assert result["token_ids"][:6] == list(b"In the") and len(result["token_ids"]) == 9
    assert result["text"] == bytes(result["token_ids"][6:]).decode("utf-8", "replace")
    assert (result["tokens"], result["semantics"], result["memory_fraction"]) == (3, "resident", 0.95)
    assert (result["window"], result["device"]) == (5, "paper_m1max_fig2b")
    assert (result["reader"], result["direct"], result["verified"]) == ("memory", None, True)
    assert list(result["predictor"]) == ["false_negative_rate", "false_positive_rate"]
    assert 0 < result["predictor"]["false_positive_rate"] < 0.2
    assert list(result["perplexity"]) == ["dense", "flash", "unchanged"]
    assert all(result["perplexity"][which] > 1 for which in ("dense", "flash"))
    assert result["perplexity"]["unchanged"] is None
    assert result["activation"] == {"name": "relu", "tau": 0, "own": "relu", "own_tau": 0}
    assert result["memory"]["budget"] >= result["memory"]["counted"] == result["methods"][4]["dram_bytes"]
    assert result["memory"]["held"] is None and len(result["rows"]) == LAYERS
    for table in ("methods", "scaled"):
        assert [method["name"] for method in result[table]] == NAMES
        for method in result[table]:
            assert list(method) == METHOD_KEYS
            assert method["measured_io_ms_per_token"] is None
            assert method["simulated_io_ms_per_token"] > 0
    assert result["scaled"][0]["useful_bytes_per_token"] == 2 * 6_658_473_984


@pytest.mark.parametrize("predictor", ["trained", "exact"])
def test_the_shipped_model_is_what_is_run_when_none_is_named(capsys, predictor):
    words = ["--tokens", "4", "--prompt", "In the beginning", "--perplexity-tokens", "3"]
    assert main(["run", "--json", "--predictor", predictor, *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["memory_fraction"], result["verified"]) == ("tiny", 0.5, True)
    assert result["same_as_dense"] or predictor == "trained"
    assert all(1 < result["perplexity"][which] < 256 for which in ("dense", "flash"))
    useful = [method["useful_bytes_per_token"] for method in result["methods"]]
    assert useful == sorted(useful, reverse=True) and useful[0] > 5 * useful[2] > 5 * useful[4]


def test_the_account_of_a_run(report, model, packed):
    methods = report("--image", packed)["methods"]
    tensors = sum(array.nbytes for array in random_weights().model.values())
    assert methods[0]["useful_bytes_per_token"] == tensors
    assert methods[0]["flash_bytes_per_token"] == packed.stat().st_size
    assert [method["dram_bytes"] for method in methods[3:]] == [methods[3]["dram_bytes"]] * 2
    assert methods[0]["dram_bytes"] == 0 and methods[4]["dram_bytes"] <= 0.95 * tensors
    useful = [method["useful_bytes_per_token"] for method in methods]
    assert useful == sorted(useful, reverse=True) and useful[3] == useful[4]
    # Trained predictors are in the account, 2 of 6 · (16 + 48) values in F16; the oracle is not.
    oracle = report("--image", packed, "--predictor", "exact")["methods"]
    assert methods[2]["dram_bytes"] - oracle[2]["dram_bytes"] == 2 * 6 * (16 + 48) * 2


def test_a_report_in_words(run):
    outcome = run("--perplexity-tokens", "20")
    assert (outcome.code, outcome.err) == (0, "")
    told = " ".join(outcome.out.split())
    assert told.startswith("In the")
    for words in (
        "verified: in ",
        "the text differs from the dense model's, with resident semantics; it may depend on the memory given",
        "memory: 0.95 of the model",
        "a window of 5",
        "of the active neurons missed",
        "perplexity per token on held-out text",
        "+ bundling",
        "times fewer useful bytes than naively",
        "simulated: the same trace at OPT 6.7B's shape",
        "2,196 ms",
    ):
        assert words in told, words
    assert "NOT verified" not in told and "measured" not in told and "…" not in told
    exact = run("--predictor", "exact").out
    assert "the text is the dense model's, with resident semantics\n" in exact
    assert "perplexity" not in exact


def test_no_byte_to_read_is_a_result_too(run, report):
    same_again = ("--prompt-ids", ",".join(["7"] * 40), "--window", "60", "--tokens", "1", "--memory", "1")
    rates = report(*same_again, "--predictor", "exact")
    assert rates["methods"][4]["reads_per_token"] == 0 == rates["methods"][4]["useful_bytes_per_token"]
    assert "nothing had to be read" in run(*same_again, "--predictor", "exact").out


def test_names_with_brackets_are_names(run, tmp_path):
    folder = write_model(tmp_path / "a[b" / "c]", random_weights())
    other = tmp_path / "x[" / "b]"
    shutil.copytree(folder, other)
    assert f"{tmp_path}/a[b/c] on " in run("--model", folder).out
    assert f"{other} on " in run("--model", other).out


@pytest.mark.parametrize("semantics", ["resident", "predicted"])
@pytest.mark.parametrize("placement", ["swap_with_last", "fill_holes"])
def test_the_exact_predictor_gives_the_dense_text_at_any_memory(run, report, semantics, placement):
    exact = ("--predictor", "exact", "--semantics", semantics, "--placement", placement)
    smallest = re.search(r"works is (0\.\d{3})", sentence(run(*exact, "--memory", "0.01")))[1]
    texts = set()
    for memory in (smallest, 0.87, 1):
        result = report(*exact, "--memory", memory, "--perplexity-tokens", "12")
        assert result["verified"] and result["same_as_dense"]
        assert (result["semantics"], result["memory_fraction"]) == (semantics, float(memory))
        assert result["predictor"] == {"false_negative_rate": 0, "false_positive_rate": 0}
        assert result["perplexity"]["dense"] == result["perplexity"]["flash"]
        texts.add(tuple(result["token_ids"]))
    assert len(texts) == 1


def test_rows_that_are_too_few_give_the_same_text_and_show_why_they_cost_more(run, report):
    exact = ("--predictor", "exact", "--tokens", "8")
    smallest = re.search(r"works is (0\.\d{3})", sentence(run(*exact, "--memory", "0.01")))[1]
    few, many = report(*exact, "--memory", smallest), report(*exact, "--memory", "1")
    assert few["token_ids"] == many["token_ids"] and few["same_as_dense"] and few["verified"]
    assert few["overflows"] > 0 == many["overflows"]
    for figure in ("reads_per_token", "useful_bytes_per_token", "simulated_io_ms_per_token"):
        assert few["methods"][4][figure] > many["methods"][4][figure]
    assert few["methods"][2] == many["methods"][2]  # without a window nothing has changed
    told = run(*exact, "--memory", smallest).out
    steps = 2 * (len(few["token_ids"]) - 1)
    assert f"in {few['overflows']} of {steps} steps the rows did not hold a whole window" in " ".join(
        told.split()
    )
    assert re.search(r"rows per layer [0-3], [0-3]\n", told)


def test_prompts_as_text_or_as_ids(report):
    assert report("--prompt", "é!") == {**report("--prompt-ids", "195,169,33"), "prompt": "é!"}
    assert report("--prompt-ids", "255")["prompt"] == "\ufffd"


def test_a_seed_repeats_a_text(report):
    hot = ("--temperature", "3", "--tokens", "5")
    first = report(*hot, "--seed", "5")
    assert first == report(*hot, "--seed", "5")
    assert first["token_ids"] != report(*hot, "--seed", "6")["token_ids"]
    assert first["token_ids"] != report("--tokens", "5")["token_ids"]
    assert report(*hot, "--seed", "5", "--predictor", "exact")["same_as_dense"]


def test_options_reach_what_they_name(report, model, tmp_path):
    plain = report("--tokens", "8", "--memory", "0.9")
    assert report("--tokens", "8", "--memory", "0.9", "--window", "1")["window"] == 1
    moved = [method["dram_moved_bytes_per_token"] for method in plain["methods"]]
    assert moved[:3] == [0, 0, 0] and moved[3] == moved[4] > 0
    holes = report("--tokens", "8", "--memory", "0.9", "--placement", "fill_holes")
    assert holes["token_ids"] == plain["token_ids"]
    assert holes["methods"][4]["dram_moved_bytes_per_token"] < moved[4]
    cold = report("--tokens", "8", "--memory", "0.9", "--cold")
    assert cold["methods"][4]["useful_bytes_per_token"] > plain["methods"][4]["useful_bytes_per_token"]
    path = tmp_path / "disk.json"
    path.write_text(device_to_json(PRESETS["sd_a2"]))
    slow, preset = report("--device", path), report("--device", "sd_a2")
    assert slow == {**preset, "device": str(path)}
    assert slow["methods"][0]["simulated_io_ms_per_token"] > plain["methods"][0]["simulated_io_ms_per_token"]
    # Statistics choose the window: a mean that never fits leaves one token.
    statistics = {f"layers.{layer}.mean_resident": np.full(5, 1e6, np.float32) for layer in range(LAYERS)}
    statistics |= {
        f"layers.{layer}.largest_resident": np.arange(1, 6, dtype=np.int32) for layer in range(LAYERS)
    }
    save_file(random_weights(rank=6).predictors | statistics, tmp_path / "predictors")
    assert report("--predictors", tmp_path / "predictors")["window"] == 1
    assert report("--predictors", tmp_path / "predictors", "--window", "4")["window"] == 4


def test_perplexity_is_null_where_there_is_no_text(run, report, tmp_path):
    none = {"dense": None, "flash": None, "unchanged": None}
    assert report("--perplexity-tokens", "0")["perplexity"] == none
    folder = write_model(tmp_path, random_weights())
    assert report("--model", folder)["perplexity"] == none
    asked = run("--json", "--model", folder, "--perplexity-tokens", "100")
    assert asked.code == 0 and json.loads(asked.out)["perplexity"] == none
    assert asked.err.endswith("held_out.txt: there is no held-out text, so no perplexity\n")
    assert "--perplexity-tokens 1 foresees nothing" in sentence(run("--perplexity-tokens", "1"))
    assert (
        report("--perplexity-tokens", 10**30)["perplexity"]
        == report("--perplexity-tokens", "99")["perplexity"]
    )


def test_a_loss_beyond_every_float_is_null(report, tmp_path):  # JSON has no Infinity
    def sharpen(tensors):
        tensors["model.decoder.final_layer_norm.weight"] *= np.float16(3000)

    folder = changed_model(tmp_path, sharpen, held_out=TEXT)
    assert report("--model", folder, "--perplexity-tokens", "30")["perplexity"]["dense"] is None


def test_what_does_not_hold_is_exit_code_1(run, monkeypatch):
    real = flash.decode_layer

    def wrong(*arguments):
        y, state, step = real(*arguments)
        return y + np.float32(1), state, step

    monkeypatch.setattr(flash, "decode_layer", wrong)
    outcome = run()
    assert outcome.code == 1 and outcome.err == ""
    assert "NOT verified: layer 0: the output differs" in outcome.out
    outcome = run("--json")
    assert outcome.code == 1 and json.loads(outcome.out)["verified"] is False


def test_an_oracle_that_misses_a_neuron_is_exit_code_1(run, monkeypatch):
    from flashref.cli import setup

    monkeypatch.setattr(setup, "active_neurons", lambda x, ffn: active_neurons(x, ffn)[1:])
    outcome = run("--predictor", "exact", "--semantics", "predicted")
    assert outcome.code == 1 and "NOT verified: layer 0: the output differs" in outcome.out


def test_an_image_is_packed_once_and_then_used(report, tmp_path):
    image = tmp_path / "image"
    first = report("--image", image)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
    before = image.stat(), image.read_bytes()
    assert report("--image", image) == first == report()
    assert (image.stat(), image.read_bytes())[1] == before[1]
    assert (image.stat().st_mtime_ns, image.stat().st_ino) == (before[0].st_mtime_ns, before[0].st_ino)


def test_a_run_without_image_leaves_nothing(report, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    report()
    report("--reader", "direct")
    assert list(tmp_path.iterdir()) == []


def test_the_direct_reader_gives_the_same_text_and_counters(report, tmp_path):
    memory = report("--image", tmp_path / "image")
    direct = report("--image", tmp_path / "image", "--reader", "direct")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "image.unbundled"]
    assert direct["reader"] == "direct" and type(direct["direct"]) is bool
    for method in direct["methods"]:
        assert method["measured_io_ms_per_token"] > 0
        method["measured_io_ms_per_token"] = None
    assert direct == {**memory, "reader": "direct", "direct": direct["direct"]}


def test_the_direct_reader_in_words(run, packed):
    told = run("--image", packed, "--reader", "direct").out
    assert "measured" in told and re.search(r"\d+ ms measured", told) and "…" not in told


# --- the process ---------------------------------------------------------------------------------


def test_the_version_and_help(capsys):
    for words, told in (
        (["--version"], f"flashref {flashref.__version__}, spec {flashref.SPEC_VERSION}\n"),
        (["run", "--help"], "--perplexity-tokens"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0 and told in capsys.readouterr().out


def test_no_command_is_a_mistake(capsys):
    for words in ([], ["walk"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "" and err.count("\n") == 1 and "flashref --help" in err


def started(code, *words, **options):
    """Python that runs some code and then `flashref`, in a process of its own."""
    # What is started in the background ignores Ctrl-C, and so would its children.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    lines = (
        f"import sys, os, time\n{heard}\n{code}\nfrom flashref.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    path = os.pathsep.join([str(Path(flashref.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", lines, *map(str, words)], env=environment, text=True, **options
    )


def few(model):
    return ["run", "--model", model, "--tokens", "3", "--memory", "0.95", "--perplexity-tokens", "9"]


@pytest.mark.parametrize("output", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(model, output):
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started("sys.stdin.readline()", *few(model), *output, stdin=subprocess.PIPE, **both) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


SLEEP = "(print('asleep', file=sys.stderr, flush=True), time.sleep(60))"


@pytest.mark.parametrize(
    "code",
    [
        f"os.fsync = lambda descriptor: {SLEEP}",  # packing: all is written, nothing has its name
        f"import flashref.transformer.flash as f; f.decode_layer = lambda *a: {SLEEP}",
    ],
)
def test_ctrl_c_leaves_nothing(model, tmp_path, code):
    (tmp_path / "image").mkdir()
    words = [*few(model), "--image", tmp_path / "image" / "x"]
    if "decode_layer" in code:
        words = words[:-2]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(code, *words, env={"TMPDIR": str(tmp_path)}, **both) as process:
        assert process.stderr.readline() == "asleep\n"
        if "decode_layer" in code:
            assert len(list(tmp_path.iterdir())) == 2
        else:
            assert len(list((tmp_path / "image").iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "flashref run: interrupted; nothing half-written was left\n"
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["image"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_being_ended_leaves_nothing(model, tmp_path, name):
    code = f"import flashref.transformer.flash as f; f.decode_layer = lambda *a: {SLEEP}"
    with started(code, *few(model), env={"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE) as process:
        assert process.stderr.readline() == "asleep\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(getattr(signal, name))
        assert process.stderr.read() == ""
    assert process.returncode == 128 + getattr(signal, name)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_stdout_is_no_error(model, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main([str(word) for word in few(model)]) == 0
    assert sys.stdout is not None
    sys.stdout.close()


def test_an_image_that_another_run_packs_meanwhile_is_used(report, tmp_path, monkeypatch):
    def late(path, *arguments, **options):
        opening.pack_image = pack_image
        pack_image(path, *arguments, **options)  # the other run
        return pack_image(path, *arguments, **options)

    monkeypatch.setattr(opening, "pack_image", late)
    assert report("--image", tmp_path / "image")["verified"]


def test_the_exact_predictor_does_not_mind_foreign_predictors(report, run, tmp_path):
    folder = write_model(tmp_path / "model", random_weights())
    (folder / "predictors.safetensors").write_bytes(b"something else")
    assert report("--model", folder, "--predictor", "exact")["verified"]
    assert "predictors.safetensors" in sentence(run("--model", folder))


def test_progress_is_shown_on_a_terminal_and_nowhere_else(run, monkeypatch):
    assert run("--json").err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    outcome = run("--json")
    assert json.loads(outcome.out)["verified"] and "decoding from flash" in outcome.err
    quiet = run("--json", "--quiet")
    assert (quiet.code, without_peak(quiet.out), quiet.err) == (0, without_peak(outcome.out), "")


def test_a_terminal_that_is_not_unicode_gets_question_marks(model):
    process = started("", *few(model), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    out, _ = process.communicate()
    assert process.returncode == 0 and out.isascii() and "?" in out


@pytest.mark.parametrize(
    ("code", "jax", "abrupt"), [(130, True, True), (143, True, True), (2, True, False), (130, False, False)]
)
def test_a_process_that_is_ended_while_jax_computes_ends_without_teardown(monkeypatch, code, jax, abrupt):
    # Its threads crash an interpreter that is torn down meanwhile: 3 of 18 interrupts of `train` did.
    monkeypatch.setattr(flashref.cli, "main", lambda: code)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    if jax:
        monkeypatch.setitem(sys.modules, "jax", object())
    ends = []
    monkeypatch.setattr("os._exit", ends.append)
    with pytest.raises(SystemExit) as ended:
        flashref.cli.command()
    assert ended.value.code == code and ends == ([code] if abrupt else [])
