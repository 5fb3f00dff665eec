"""`flashref run --model` on every family: transformers' tokens, the dense model's, every way to predict."""

import json
import re
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
from random_models import FAMILIES, LAYERS, NEURONS, WIDTH, write_family
from safetensors.numpy import load_file, save_file

from flashref.cli import main, opening, setup, wish
from flashref.cli import run as command
from flashref.cli.report import LABELS, size
from flashref.simulate.methods import Method
from flashref.storage import container, packing
from flashref.storage.container import read_container
from flashref.storage.image import open_image, pack_image
from flashref.transformer import flash
from flashref.transformer.checkpoint import load_ffn, open_checkpoint
from flashref.transformer.model import load_model
from flashref.transformer.origin import Origin, Source
from flashref.transformer.predictors import Predictors, save_predictors
from flashref.transformer.tokens import Tokenizer
from flashref.types import Predictor, ResidentFFN, same

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read past the page cache")

Outcome = namedtuple("Outcome", "code out err")
TEXT = b"And the earth was without form, and void; and darkness was upon the face of the deep"


PYTHON_BYTES = 30_000_000
SCALED = tuple(Method(name, 1.0, 1.0, 1.0, 1, 0.0, 1.0, None) for name in LABELS)


@pytest.fixture
def run(capsys, monkeypatch):
    """`flashref run` in this process: exit code, stdout, stderr. OPT 6.7B's table is another test's."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(command, "scale_to_opt_6_7b", lambda *_: SCALED)  # it takes most of the time
    # What this process has in memory is the other tests' too.
    monkeypatch.setattr(wish, "resident_bytes", lambda: PYTHON_BYTES)
    monkeypatch.setattr(command, "peak_bytes", lambda: PYTHON_BYTES + 1)

    def run(folder, *words):
        few = ["--tokens", "4", "--memory", "0.9", "--perplexity-tokens", "0", "--predictor", "exact"]
        few += [] if any(str(word).startswith("--prompt") for word in words) else ["--prompt", "In the"]
        try:
            code = main(["run", "--model", str(folder), *few, *map(str, words)])
        except SystemExit as end:
            code = end.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def report(run):
    """The object that --json prints, of a run that must hold."""

    def report(folder, *words):
        outcome = run(folder, "--json", *words)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        return json.loads(outcome.out)

    return report


def sentence(outcome):
    """The one sentence of a mistake: exit code 2, nothing on stdout, no traceback."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("flashref run: ") and outcome.err.count("\n") == 1
    assert ";" in outcome.err and "Traceback" not in outcome.err
    return outcome.err.removeprefix("flashref run: ")[:-1]


# --- another project's tokens --------------------------------------------------------------------


def their_tokens(folder, prompt, count, **config):
    """The greedy text of transformers' own model of the directory, its config changed."""
    torch = pytest.importorskip("torch", reason="torch is not installed; it comes with the dev extra")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **config
    )
    assert not any(loaded.values())  # no tensor is missing, and none is left over
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.eval().generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_that_of_transformers(report, tmp_path, family):
    folder = write_family(tmp_path / family, family)
    prompt = [5, 0, 52, 17, 17, 3]
    expected = their_tokens(folder, prompt, 32)
    words = ("--prompt-ids", ",".join(map(str, prompt)), "--tokens", "32")
    assert report(folder, *words)["token_ids"] == expected
    if family == "llama":
        gate = report(folder, *words, "--predictor", "gate", "--memory", "1")
        assert gate["token_ids"] == expected


def test_an_activation_that_is_given_is_that_of_transformers(report, tmp_path):
    folder = write_family(tmp_path, "llama", activation_name="silu")
    expected = their_tokens(folder, [7, 9], 32, hidden_act="relu")
    words = ("--prompt-ids", "7,9", "--tokens", "32", "--activation", "relu")
    assert report(folder, *words)["token_ids"] == expected != report(folder, *words[:-2])["token_ids"]


# --- the dense model's tokens --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "semantics"), [("F32", "resident"), ("F16", "predicted"), ("BF16", "resident")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_dtype_is_proven_at_any_memory(run, report, tmp_path, family, dtype, semantics):
    folder = write_family(tmp_path, family, dtype)
    words = ("--semantics", semantics)
    smallest = re.search(r"works is (\d\.\d{3})", sentence(run(folder, *words, "--memory", "0.01")))[1]
    texts = set()
    for memory in (smallest, "1"):
        result = report(folder, *words, "--memory", memory)
        assert result["verified"] and result["same_as_dense"]
        assert result["predictor"] == {"false_negative_rate": 0, "false_positive_rate": 0}
        texts.add(tuple(result["token_ids"]))
    assert len(texts) == 1


# --- the gate predicts ---------------------------------------------------------------------------


@pytest.mark.parametrize("semantics", ["resident", "predicted"])
@pytest.mark.parametrize("activation", [None, "fatrelu:0.3"])
def test_a_resident_gate_predicts_exactly_and_is_counted(report, tmp_path, activation, semantics):
    folder = write_family(tmp_path / "model", "llama", "F16", mlp_bias=True, held_out=TEXT)
    words = ["--memory", "1", "--tokens", "9", "--semantics", semantics, "--perplexity-tokens", "12"]
    words += ["--activation", activation] if activation else []
    exact = report(folder, *words)
    gate = report(folder, *words, "--predictor", "gate", "--image", tmp_path / "image")
    assert gate["verified"] and gate["same_as_dense"] and gate["token_ids"] == exact["token_ids"]
    assert gate["predictor"] == {"false_negative_rate": 0, "false_positive_rate": 0}
    assert gate["perplexity"] == exact["perplexity"]
    # Bundles of two rows, 2 · 16 · 2 = 64 bytes instead of 96 in 128; the gates are in the account.
    tensors = read_container(tmp_path / "image").tensors
    assert tensors["layers.1.bundles"].shape == (NEURONS, 32)
    gates = sum(tensors[f"model.layers.{layer}.mlp.gate_proj.weight"].length for layer in range(LAYERS))
    assert gates == LAYERS * NEURONS * WIDTH * 2
    with_gates, without = (result["methods"][2]["dram_bytes"] for result in (gate, exact))
    assert with_gates - without == gates - 3 * (128 - 64)  # and the bypass buffer's rows are smaller


def test_a_gate_that_is_looked_through_in_pieces(tmp_path, monkeypatch):
    folder = write_family(tmp_path, "llama", "F16", mlp_bias=True, activation_name="relu")
    ffn = load_ffn(open_checkpoint(folder), 1)
    resident = ResidentFFN("fatrelu", ffn.gate, gate_bias=ffn.gate_bias, tau=0.25)
    x = np.random.default_rng(3).standard_normal(WIDTH).astype(np.float32)
    z = ffn.gate.astype(np.float64) @ x + ffn.gate_bias
    assert np.abs(z - 0.25).min() > 1e-3  # no rounding decides
    expected = np.flatnonzero(z > 0.25)
    assert 5 < len(expected) < NEURONS - 5
    for piece in (1 << 22, 4 * WIDTH * 7, 1):  # all at once, seven neurons, one
        monkeypatch.setattr(flash, "GATE_BYTES", piece)
        assert same(flash.gate_predictor(resident)(x), expected)


@pytest.mark.parametrize("piece", [1 << 22, 3 * 128])
def test_a_layer_that_is_resident_whole_is_the_checkpoints(llama, tmp_path, monkeypatch, piece):
    checkpoint = open_checkpoint(llama)
    layers, orders = dict(enumerate(checkpoint.layers)), {1: np.random.default_rng(0).permutation(NEURONS)}
    pack_image(tmp_path / "i", checkpoint.tensors, layers, checkpoint.config_text, orders=orders)
    monkeypatch.setattr(container, "PIECE_BYTES", piece)
    for layer in range(LAYERS):
        found = flash.resident_layer(open_image(tmp_path / "i"), layer, ResidentFFN("relu"))
        assert same(found, load_ffn(checkpoint, layer))


def test_a_gate_that_misses_a_neuron_is_exit_code_1(run, llama, monkeypatch):
    def missing(resident):
        predict = flash.gate_predictor(resident)
        return lambda x: predict(x)[1:]

    monkeypatch.setattr(setup, "gate_predictor", missing)
    outcome = run(llama, "--predictor", "gate", "--semantics", "predicted")
    assert outcome.code == 1 and "NOT verified: layer 0: the output differs" in outcome.out


def test_a_resident_layer_that_only_looks_right_is_refused(run, llama, identity, tmp_path, monkeypatch):
    real = flash.resident_layer

    def off_by_one(*arguments):
        ffn = real(*arguments)
        return ffn._replace(down=ffn.down + np.float32(1))

    monkeypatch.setattr(flash, "resident_layer", off_by_one)
    path = write_predictors(llama, tmp_path / "p", (1,), identity)
    text = sentence(run(llama, "--predictor", "trained", "--predictors", path))
    assert "the bundles of layer 1 are not the checkpoint's" in text


def test_what_is_written_goes_on_where_the_prompt_ends():
    # A decoder that drops the space at a text's start, as Llama's does.
    tokenizer = Tokenizer(lambda text: [], lambda ids: "".join(" abc"[one] for one in ids).lstrip())
    wish = SimpleNamespace(tokenizer=tokenizer, prompt_ids=[1])
    assert command._texts(wish, [0, 2]) == ("a", " b")
    wish = SimpleNamespace(
        tokenizer=Tokenizer(lambda text: [], lambda ids: "?" * (len(ids) == 1)), prompt_ids=[1]
    )
    assert command._texts(wish, [2]) == ("?", "?")  # half a letter, and the whole text another


def test_a_gate_that_cannot_predict_is_refused(run, tmp_path):
    folder = write_family(tmp_path / "opt", "opt")
    text = sentence(run(folder, "--predictor", "gate"))
    assert f"{folder}: its layers have no gate projection, which --predictor gate needs; use" in text
    folder = write_family(tmp_path / "llama", "llama", activation_name="silu")
    text = sentence(run(folder, "--predictor", "gate"))
    assert "silu is for none; add --activation fatrelu:T, such as fatrelu:0.05" in text
    assert run(folder, "--predictor", "gate", "--activation", "fatrelu:0.05").code == 0


def test_an_image_of_the_other_gate_is_refused(run, tmp_path):
    folder = write_family(tmp_path / "llama", "llama")
    for predictor in ("exact", "gate"):
        assert run(folder, "--predictor", predictor, "--image", tmp_path / predictor).code == 0
    text = sentence(run(folder, "--predictor", "gate", "--image", tmp_path / "exact"))
    assert f"{tmp_path}/exact: has the gate in its bundles" in text and "pack --gate resident" in text
    text = sentence(run(folder, "--image", tmp_path / "gate"))
    assert f"{tmp_path}/gate: was packed with the gate resident, which is for --predictor gate; use" in text


def test_the_direct_reader_reads_rows_without_a_gate_too(report, tmp_path):
    folder = write_family(tmp_path, "llama")
    result = report(folder, "--predictor", "gate", "--reader", "direct")
    assert result["verified"] and result["methods"][3]["measured_io_ms_per_token"] > 0


# --- another activation --------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "own", "shown"), [("llama", "silu", "silu"), ("phi", "gelu", "gelu_erf")])
def test_another_activation_says_what_it_costs(run, report, tmp_path, family, own, shown):
    folder = write_family(tmp_path / "own", family, activation_name=own, held_out=TEXT)
    other = write_family(tmp_path / "other", family, activation_name="relu", held_out=TEXT)
    words = ("--perplexity-tokens", "16")
    as_it_is, relu = report(folder, *words), report(other, *words)
    given = report(folder, *words, "--activation", "relu")
    assert given["token_ids"] == relu["token_ids"] and given["same_as_dense"] and given["verified"]
    assert given["activation"] == {"name": "relu", "tau": 0, "own": shown, "own_tau": 0}
    assert given["perplexity"] == {**relu["perplexity"], "unchanged": as_it_is["perplexity"]["dense"]}
    assert relu["perplexity"]["unchanged"] is None and relu["perplexity"] != as_it_is["perplexity"]
    before, after = as_it_is["perplexity"]["dense"], relu["perplexity"]["dense"]
    told = " ".join(run(folder, *words, "--activation", "relu").out.split())
    assert "the text is the dense model's of relu, with resident semantics" in told
    assert (
        f"perplexity per token on held-out text: {before:.3f} with {shown} as it is, {after:.3f} dense with "
        f"relu ({after / before - 1:+.2%}), {after:.3f} from flash (+0.00%)"
    ) in told
    told = " ".join(run(folder).out.split())
    assert f"nothing is sparse: with {shown} every neuron is active; --activation fatrelu:T" in told
    assert "nothing is sparse" not in run(folder, "--activation", "fatrelu:0.1").out


def test_another_tau_is_another_activation(run, report, tmp_path):
    own = {"activation_name": "fatrelu", "held_out": TEXT}
    folder = write_family(tmp_path / "own", "llama", hidden_act_param=0.125, **own)
    other = write_family(tmp_path / "other", "llama", hidden_act_param=0.5, **own)
    words = ("--perplexity-tokens", "16")
    as_it_is, changed = report(folder, *words), report(other, *words)
    given = report(folder, *words, "--activation", "fatrelu:0.5")
    assert given["activation"] == {"name": "fatrelu", "tau": 0.5, "own": "fatrelu", "own_tau": 0.125}
    assert given["token_ids"] == changed["token_ids"]
    assert given["perplexity"] == {**changed["perplexity"], "unchanged": as_it_is["perplexity"]["dense"]}
    told = " ".join(run(folder, *words, "--activation", "fatrelu:0.5").out.split())
    assert "the text is the dense model's of fatrelu:0.5, with" in told
    assert " with fatrelu:0.125 as it is, " in told and " dense with fatrelu:0.5 (" in told


def test_tau_reaches_the_model(report, tmp_path):
    folder = write_family(tmp_path, "llama", activation_name="silu")
    few, all_rows = (
        report(folder, "--activation", f"fatrelu:{tau}")["methods"][2]["useful_bytes_per_token"]
        for tau in ("0.5", "0")
    )
    assert (
        0 < few < all_rows == report(folder, "--activation", "relu")["methods"][2]["useful_bytes_per_token"]
    )


@pytest.mark.parametrize(
    "word", ["gelu", "fatrelu", "fatrelu:", "fatrelu:x", "fatrelu:-1", "fatrelu:inf", ""]
)
def test_an_activation_that_is_none_is_refused(run, tmp_path, word):
    outcome = run(tmp_path, f"--activation={word}")
    assert "--activation: " in sentence(outcome) and "--help" in outcome.err


# --- predictors ----------------------------------------------------------------------------------


SOURCE = Source("0" * 64, ((0, 1),))


def write_predictors(folder, path, dense=(), fingerprint=None, activation=("relu", 0.0), rank=6):
    """The up (or gate) projection cut down to a rank; None for dense layers."""
    checkpoint, found = open_checkpoint(folder), []
    for layer in range(LAYERS):
        ffn = load_ffn(checkpoint, layer)
        u, s, v = np.linalg.svd(ffn.up if ffn.gate is None else ffn.gate, full_matrices=False)
        a, b = (s[:rank, None] * v[:rank]).astype(np.float32), u[:, :rank].astype(np.float32)
        found.append(None if layer in dense else Predictor(a, b, None, 0.0))
    origin = fingerprint and Origin(fingerprint, *activation, SOURCE, SOURCE, SOURCE)
    windows = np.arange(1, 6) * np.array([[1], [3]])
    save_predictors(path, Predictors(tuple(found), windows.astype(np.float32), windows, origin))
    return path


@pytest.fixture
def llama(tmp_path):
    return write_family(tmp_path / "model", "llama")


@pytest.fixture
def identity(llama, run, tmp_path):
    """The fingerprint of `llama`, as its image has it."""
    assert run(llama, "--image", tmp_path / "image").code == 0
    return read_container(tmp_path / "image").metadata["fingerprint"]


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_predictors_of_any_rank(report, llama, tmp_path, rank):
    path = write_predictors(llama, tmp_path / "p", rank=rank)
    result = report(llama, "--predictor", "trained", "--predictors", path)
    assert result["verified"]
    assert (result["predictor"]["false_negative_rate"] < 1e-3) == (rank == 16)


@pytest.mark.parametrize("proof", [(), ("--no-proof",)])
@pytest.mark.parametrize("dense", [(0,), (1,)])
def test_a_layer_without_a_predictor_is_resident_and_counted(report, llama, identity, tmp_path, dense, proof):
    plain = write_predictors(llama, tmp_path / "plain", fingerprint=identity, rank=16)
    path = write_predictors(llama, tmp_path / "p", dense, identity, rank=16)
    words = ("--predictor", "trained", "--memory", "1", "--semantics", "predicted", *proof)
    all_read, result = (report(llama, *words, "--predictors", of) for of in (plain, path))
    assert result["verified"] is all_read["verified"] is (None if proof else True)
    # Predictors of full rank miss nothing, so that both are the dense text.
    assert result["token_ids"] == all_read["token_ids"]
    assert [rows is None for rows in result["rows"]] == [layer in dense for layer in range(LAYERS)]
    matrices, maps = 3 * NEURONS * WIDTH * 4, 16 * (NEURONS + WIDTH) * 4
    predictor = [of["methods"][2]["dram_bytes"] for of in (all_read, result)]
    checksums = 4 * NEURONS  # in the table the dense layer's are not
    assert predictor[1] - predictor[0] == matrices - maps - checksums
    assert result["methods"][2]["useful_bytes_per_token"] < all_read["methods"][2]["useful_bytes_per_token"]
    assert result["methods"][0] == all_read["methods"][0]


def test_only_the_layers_on_flash_are_scaled_to_another_model(report, llama, identity, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "scale_to_opt_6_7b", lambda *arguments: asked.append(arguments) or SCALED)
    path = write_predictors(llama, tmp_path / "p", (0,), identity)
    report(llama, "--predictor", "trained", "--predictors", path, "--window", "3")
    ((trace, window, mean, largest, *_),) = asked
    assert window == 3 and list(trace.units) == [NEURONS]
    assert mean.tolist() == largest.tolist() == [[3, 6, 9, 12, 15]]  # of the second layer


def test_predictors_of_another_model_or_activation_are_refused(run, llama, identity, tmp_path):
    words = ("--predictor", "trained", "--predictors")
    assert run(llama, *words, write_predictors(llama, tmp_path / "own", fingerprint=identity)).code == 0
    path = write_predictors(llama, tmp_path / "foreign", fingerprint="f" * 64)
    assert f"{path}: was fitted to another model, or to other weights of it; fit" in sentence(
        run(llama, *words, path)
    )
    path = write_predictors(llama, tmp_path / "fat", (), identity, ("fatrelu", 0.25))
    text = sentence(run(llama, *words, path))
    assert f"{path}: was fitted to fatrelu:0.25, but relu is run; change --activation, or fit others" in text
    assert run(llama, *words, path, "--activation", "fatrelu:0.25").code == 0
    assert "fatrelu:0.5 is run" in sentence(run(llama, *words, path, "--activation", "fatrelu:0.5"))
    path = write_predictors(llama, tmp_path / "none", (0, 1), identity)
    assert "for no layer" in sentence(run(llama, *words, path))


def test_statistics_of_another_model_are_left_out(run, report, llama, tmp_path):
    without = report(llama)
    path = write_predictors(llama, llama / "predictors.safetensors", fingerprint="f" * 64)
    assert report(llama) == without
    assert "was fitted to another model" in sentence(run(llama, "--predictors", path))


def test_a_file_of_predictors_that_is_named_must_be_one(run, report, llama, tmp_path):
    for path in (tmp_path / "named", llama / "predictors.safetensors"):
        path.write_bytes(b"not one")
    for predictor in ("exact", "gate", "trained"):
        text = sentence(run(llama, "--predictor", predictor, "--predictors", tmp_path / "named"))
        assert f"{tmp_path}/named: " in text
    assert report(llama, "--predictor", "gate")["verified"]


def test_the_held_out_text_has_tokens_of_the_vocabulary_only(run, tmp_path):
    folder, words = (
        write_family(tmp_path, "opt", vocab_size=120, held_out=b"wx"),
        ("--perplexity-tokens", "2"),
    )
    assert "no text of two tokens or more in the model's vocabulary of 120" in sentence(run(folder, *words))
    (folder / "held_out.txt").write_bytes(b"vw")  # token 119 is the last
    assert run(folder, *words).code == 0


# --- without a proof -----------------------------------------------------------------------------


def test_without_a_proof_the_text_is_the_same_and_nothing_claims_more(run, report, llama, tmp_path):
    path = write_predictors(llama, tmp_path / "p")
    words = ("--predictors", path, "--predictor", "trained", "--tokens", "9", "--memory", "0.8")
    (llama / "held_out.txt").write_bytes(TEXT)
    words += ("--perplexity-tokens", "12")
    proven, result = report(llama, *words), report(llama, *words, "--no-proof")
    assert result["verified"] is result["same_as_dense"] is None
    assert result["predictor"] == {"false_negative_rate": None, "false_positive_rate": None}
    assert result["perplexity"] == {**proven["perplexity"], "dense": None}
    assert proven["memory"]["held"] is None and result["memory"]["held"] is True
    same = ("token_ids", "overflows", "methods", "rows", "window", "text")
    assert [result[key] for key in same] == [proven[key] for key in same]
    assert proven["scaled"] and not result["scaled"]  # it would take more memory than the run
    assert result["overflows"] > 0
    told = " ".join(run(llama, *words, "--no-proof").out.split())
    assert "simulated: the same trace at OPT" not in told
    assert "not verified: --no-proof" in told and "dense" not in told.split("bytes, reads and I/O")[0]
    assert re.search(
        r"peak of memory: [\d.]+ \w+ above the [\d.]+ \w+ of Python before the model, within ", told
    )
    told = " ".join(run(llama, *words).out.split())
    assert "with the weights that the proof has in memory; --no-proof holds it to the budget" in told


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("reader", ["memory", "direct"])
def test_weights_kept_as_stored_give_the_same_text(report, tmp_path, monkeypatch, dtype, reader):
    folder, models = write_family(tmp_path, "llama", dtype), []

    def loading(*arguments):
        models.append(load_model(*arguments))
        return models[-1]

    monkeypatch.setattr(setup, "load_model", loading)
    words = ("--predictor", "gate", "--reader", reader, "--memory", "1", "--tokens", "9")
    assert report(folder, *words, "--no-proof")["token_ids"] == report(folder, *words)["token_ids"]
    stored = {"F16": np.float16, "BF16": np.uint16}[dtype]
    assert [model.blocks[0].query.weight.dtype for model in models] == [stored, np.float32]


def test_without_a_proof_no_file_is_mapped(report, llama, monkeypatch):
    monkeypatch.setattr(opening, "memory_reader", None)  # pages of a mapped file would count as memory
    assert report(llama, "--predictor", "gate", "--no-proof")["reader"] == "memory"


def test_a_resident_value_that_is_not_finite_is_named_whoever_packed_it(run, tmp_path, monkeypatch):
    folder = write_family(tmp_path / "model", "opt", held_out=TEXT)
    tensors = dict(load_file(folder / "model.safetensors"))
    name = "model.decoder.embed_tokens.weight"
    tensors[name][200, 3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr(packing, "require_finite", lambda *_: None)
    text = sentence(run(folder, "--image", tmp_path / "image"))
    assert (tmp_path / "image").exists() and name in text and "not finite" in text


def test_a_peak_above_what_is_allowed_is_exit_code_1(run, llama, monkeypatch):
    words = ("--predictor", "gate", "--no-proof", "--memory", "1")

    def memory(peak):
        monkeypatch.setattr(command, "peak_bytes", lambda: PYTHON_BYTES + peak)
        outcome = run(llama, *words, "--json")
        shown = json.loads(outcome.out)["memory"]
        assert (shown["before"], shown["peak"]) == (PYTHON_BYTES, peak)
        return outcome.code, shown["held"], shown["allowed"]

    allowed = memory(0)[2]
    assert memory(allowed) == (0, True, allowed)
    assert memory(allowed + 1) == (1, False, allowed)
    outcome = run(llama, *words)
    assert outcome.code == 1 and " MORE than " in outcome.out
    assert run(llama, *words[:2]).code == 0  # with the proof it is shown and not held


RUNNING = """
import sys
import numpy as np
from flashref.cli import main
from flashref.transformer import flash

real, held, size = flash.decode_layer, [], int(sys.argv[1])

def hoarding(*arguments):
    if not held:
        held.append(np.ones(size, np.uint8))
    return real(*arguments)

flash.decode_layer = hoarding
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("hoarded", [0, 64 << 20])
def test_a_real_process_is_measured(llama, hoarded):
    """In one of its own: what other tests have left behind may be freed meanwhile, and hide a peak."""
    words = ["run", "--model", llama, "--prompt", "In the", "--tokens", "4", "--perplexity-tokens", "0"]
    words += ["--predictor", "gate", "--no-proof", "--memory", "1", "--json"]
    ended = subprocess.run([sys.executable, "-c", RUNNING, str(hoarded), *words], capture_output=True)
    memory = json.loads(ended.stdout)["memory"]
    assert (ended.returncode, memory["held"], ended.stderr) == (int(hoarded > 0), not hoarded, b"")
    assert hoarded < memory["peak"] and (memory["peak"] <= memory["allowed"]) is memory["held"]


def test_what_is_allowed_is_the_sum_of_what_is_shown(report, llama):
    memory = report(llama, "--predictor", "gate", "--no-proof", "--memory", "1")["memory"]
    parts = ("budget", "kv_cache", "biases", "id_tables", "workspace")
    assert memory["allowed"] == sum(memory[part] for part in parts)
    # Keys and values: 2 layers of 2 heads of 4 float32 for a context of 64.
    assert memory["kv_cache"] == 2 * LAYERS * 2 * 64 * 4 * 4 and memory["biases"] == 0


def test_what_is_allowed_is_worked_out_of_the_run_itself(report, llama, tmp_path, monkeypatch):
    asked, real = [], command.uncounted
    monkeypatch.setattr(command, "uncounted", lambda *arguments: asked.append(arguments) or real(*arguments))
    path = write_predictors(llama, tmp_path / "p")
    words = ("--predictor", "trained", "--predictors", path, "--no-proof", "--memory", "99999B")
    result = report(llama, *words)
    ((_, _, budget, _, _, predicted, predictors),), memory = asked, result["memory"]
    assert memory["budget"] == 99_999 > memory["counted"] == budget.dram_bytes
    beside = ("kv_cache", "biases", "id_tables", "workspace")
    assert memory["allowed"] == 99_999 + sum(memory[part] for part in beside)
    steps = len(result["token_ids"]) - 1
    assert [len(layers) for layers in predicted] == [LAYERS] * steps
    assert [one.b.shape for one in predictors] == [(NEURONS, 6)] * LAYERS
    # Predictors that are not used take nothing.
    report(llama, "--predictor", "gate", "--predictors", path, "--no-proof", "--memory", "1")
    assert asked[1][-1] == ()


def test_what_is_shown_of_memory_is_what_json_has(run, report, tmp_path):
    folder, words = write_family(tmp_path, "llama", mlp_bias=True), ("--predictor", "gate", "--no-proof")
    words += ("--memory", "0.9")
    memory = report(folder, *words)["memory"]
    shown = {part: size(figure) for part, figure in memory.items() if part != "held"}
    told = " ".join(run(folder, *words).out.split())
    assert f" of the model, {shown['counted']} used (biases" in told
    beside = (
        f"{shown['kv_cache']} of KV cache, {shown['biases']} of biases, {shown['id_tables']} of id tables"
    )
    assert f"peak of memory: {shown['peak']} above the {shown['before']} of Python" in told
    assert f", within {shown['allowed']}: a budget of {shown['budget']}, and beside it {beside}" in told
    assert f" of id tables, {shown['workspace']} of workspace" in told
    assert len({*shown.values()} - {shown["allowed"], shown["workspace"]}) == 7  # all others differ


def test_without_a_proof_no_rows_are_packed_and_the_peak_is_the_last_that_is_read(
    run, llama, tmp_path, monkeypatch
):
    order, measured, replayed = [], command.peak_bytes, command.replay_methods
    monkeypatch.setattr(command, "peak_bytes", lambda: order.append("peak") or measured())
    monkeypatch.setattr(command, "replay_methods", lambda *words: order.append("replay") or replayed(*words))
    words = ("--predictor", "gate", "--no-proof", "--reader", "direct", "--image", tmp_path / "image")
    assert run(llama, *words).code == 0 and order == ["replay", "peak"]
    assert [path.name for path in tmp_path.glob("image*")] == ["image"]


def test_a_wrong_image_is_refused_before_its_rows_are_packed(run, llama, tmp_path):
    (tmp_path / "image").write_bytes(b"no image")
    assert sentence(run(llama, "--reader", "direct", "--image", tmp_path / "image"))
    assert [path.name for path in tmp_path.glob("image*")] == ["image"]


def test_more_memory_than_the_model_and_a_window_longer_than_the_context(run, llama):
    assert " memory: 6.00 GB, more than the model, " in " ".join(run(llama, "--memory", "6GB").out.split())
    context = open_checkpoint(llama).config.context
    assert run(llama, "--window", str(context)).code == 0
    assert "is longer than the context of" in sentence(run(llama, "--window", str(context + 1)))


def test_steps_of_resident_layers_are_not_counted(run, report, llama, identity, tmp_path):
    path = write_predictors(llama, tmp_path / "p", (0,), identity, rank=16)
    words = ("--predictor", "trained", "--predictors", path, "--memory")
    smallest = re.search(r"works is (0\.\d{3})", sentence(run(llama, *words, "0.01")))[1]
    result = report(llama, *words, smallest)
    steps, overflows = len(result["token_ids"]) - 1, result["overflows"]
    told = " ".join(run(llama, *words, smallest).out.split())
    assert 0 < overflows <= steps and f"in {overflows} of {steps} steps the rows did not hold" in told
    assert re.search(r"rows per layer all, \d", told)


def test_a_wrong_resident_set_is_found_without_weights_too(run, llama, monkeypatch):
    real = flash.decode_layer

    def lying(*arguments):
        y, state, step = real(*arguments)
        return y, state, step._replace(resident=step.resident[1:])

    monkeypatch.setattr(flash, "decode_layer", lying)
    outcome = run(llama, "--predictor", "gate", "--no-proof", "--json")
    assert outcome.code == 1 and json.loads(outcome.out)["verified"] is False


def test_the_oracle_needs_the_weights_that_no_proof_keeps_out(run, llama):
    text = sentence(run(llama, "--no-proof"))
    assert "--predictor exact needs every weight in memory, and --no-proof keeps them out; use" in text


def test_a_proof_that_does_not_fit_memory_names_the_way_out(run, llama, monkeypatch):
    needed = 3 * LAYERS * NEURONS * WIDTH * (4 + 4)
    monkeypatch.setattr(wish, "available_bytes", lambda: needed)
    assert run(llama).code == 0
    monkeypatch.setattr(wish, "available_bytes", lambda: needed - 1)
    text = sentence(run(llama))
    assert f"the proof takes {needed} bytes of memory" in text and text.endswith("with --no-proof")
    assert run(llama, "--predictor", "gate", "--no-proof").code == 0


# --- memory in bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "size"),
    [("50kB", 50_000), ("0.05MB", 50_000), ("49.5 KiB", 50_688), ("50688B", 50_688), ("0.1gib", 107_374_182)],
)
def test_a_memory_in_bytes(report, llama, word, size):
    result = report(llama, "--memory", word)
    assert result["memory"]["budget"] == size >= result["memory"]["counted"]
    total = result["methods"][0]["useful_bytes_per_token"]
    assert result["memory_fraction"] == size / total


@pytest.mark.parametrize("unit", ["B", "kB", "MB", "KiB"])
def test_a_memory_that_is_too_small_names_the_smallest_in_its_unit(run, llama, unit):
    text = sentence(run(llama, "--memory", f"0.01{unit}"))
    found = re.search(
        rf"a memory of 0.01{unit} is \d+ bytes, .*the smallest that works is ([\d.]+){unit}$", text
    )
    assert run(llama, "--memory", f"{found[1]}{unit}").code == 0
    less = int(found[1]) - 1 if unit == "B" else f"{float(found[1]) - 0.001:.3f}"
    assert found[1] in sentence(run(llama, "--memory", f"{less}{unit}"))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("6G", "'6G' has none of the units B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("6", "at most 1, not 6; bytes need a unit, such as 6GB"),
        ("GB", "is not a share such as 0.5, nor bytes with a unit"),
        ("-1GB", "--memory"),
        ("1e3MB", "is not a share such as 0.5, nor bytes with a unit"),
    ],
)
def test_a_memory_that_is_no_amount(run, tmp_path, word, told):
    assert told in sentence(run(tmp_path, f"--memory={word}"))
