"""`flashref run` with a gate, or with a file of predictors: what they predict, count and refuse."""

import family_runs
import numpy as np
import pytest
from family_runs import SCALED, TEXT, sentence, write_predictors
from random_models import LAYERS, NEURONS, WIDTH, write_family

from flashref.decode import ResidentFFN
from flashref.models import setup
from flashref.models.checkpoint import load_ffn, open_checkpoint
from flashref.simulate import runs
from flashref.storage import container
from flashref.storage.container import read_container
from flashref.storage.image import open_image, pack_image
from flashref.types import same

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read past the page cache")
run = family_runs.run
report = family_runs.report
llama = family_runs.llama
identity = family_runs.identity


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
        monkeypatch.setattr(setup, "GATE_BYTES", piece)
        assert same(setup.gate_predictor(resident)(x), expected)


@pytest.mark.parametrize("piece", [1 << 22, 3 * 128])
def test_a_layer_that_is_resident_whole_is_the_checkpoints(llama, tmp_path, monkeypatch, piece):
    checkpoint = open_checkpoint(llama)
    layers, orders = dict(enumerate(checkpoint.layers)), {1: np.random.default_rng(0).permutation(NEURONS)}
    pack_image(tmp_path / "i", checkpoint.tensors, layers, checkpoint.config_text, orders=orders)
    monkeypatch.setattr(container, "PIECE_BYTES", piece)
    for layer in range(LAYERS):
        found = setup.resident_layer(open_image(tmp_path / "i"), layer, ResidentFFN("relu"))
        assert same(found, load_ffn(checkpoint, layer))


def test_a_gate_that_misses_a_neuron_is_exit_code_1(run, llama, monkeypatch):
    real = setup.gate_predictor

    def missing(resident):
        predict = real(resident)
        return lambda x: predict(x)[1:]

    monkeypatch.setattr(setup, "gate_predictor", missing)
    outcome = run(llama, "--predictor", "gate", "--semantics", "predicted")
    assert outcome.code == 1 and "NOT verified: layer 0: the output differs" in outcome.out


def test_a_resident_layer_that_only_looks_right_is_refused(run, llama, identity, tmp_path, monkeypatch):
    real = setup.resident_layer

    def off_by_one(*arguments):
        ffn = real(*arguments)
        return ffn._replace(down=ffn.down + np.float32(1))

    monkeypatch.setattr(setup, "resident_layer", off_by_one)
    path = write_predictors(llama, tmp_path / "p", (1,), identity)
    text = sentence(run(llama, "--predictor", "trained", "--predictors", path))
    assert "the bundles of layer 1 are not the checkpoint's" in text


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


# --- predictors ----------------------------------------------------------------------------------


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
    monkeypatch.setattr(runs, "scale_to_opt_6_7b", lambda *arguments: asked.append(arguments) or SCALED)
    path = write_predictors(llama, tmp_path / "p", (0,), identity)
    report(llama, "--predictor", "trained", "--predictors", path, "--window", "3")
    ((record, neurons, window, (mean, largest), *_),) = asked
    assert window == 3 and neurons == NEURONS and {len(layers) for layers in record.predicted} == {1}
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
    assert "has no predictor for any layer" in sentence(run(llama, *words, path))


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
