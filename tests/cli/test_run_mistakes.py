"""`flashref run` on bad words, and on models, predictors and texts that are wanting: one sentence each."""

import re

import numpy as np
import opt_runs
import pytest
from opt_runs import TEXT, changed_model, sentence
from random_models import CONTEXT, random_weights, write_model, write_tokenizer
from safetensors.numpy import save_file

from flashref.storage.device import PRESETS, device_to_json

pytestmark = opt_runs.IGNORED_WARNINGS
no_waiting_for_the_disk = opt_runs.no_waiting_for_the_disk
model = opt_runs.model
run = opt_runs.run
report = opt_runs.report


# --- options -------------------------------------------------------------------------------------


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
        (["--window", "0"], "--window: the number must be at least 1, not 0"),
        (["--window", "2.5"], "--window: '2.5' is not a whole number"),
        (["--tokens", "0"], "--tokens: the number must be at least 1, not 0"),
        (["--tokens", "many"], "--tokens: 'many' is not a whole number"),
        (["--seed", "-1"], "--seed"),
        (["--temperature", "inf"], "--temperature: a temperature must be finite and at least 0, not inf"),
        (["--temperature", "hot"], "--temperature: 'hot' is not a number such as 0.8"),
        (["--prompt-ids", "3,x"], "--prompt-ids: '3,x' is not token ids separated by commas"),
        (["--prompt-ids", ""], "--prompt-ids: '' is not token ids"),
        (["--semantics", "all"], "--semantics: invalid choice: 'all' (choose from"),
        (["--placement", "sorted"], "--placement: invalid choice"),
        (["--predictor", "none"], "--predictor: invalid choice"),
        (["--reader", "tape"], "--reader: invalid choice"),
        (["--perplexity-tokens", "-1"], "--perplexity-tokens"),
        (["--model"], "--model: expected one argument"),
        (["--unknown"], "unknown argument: --unknown"),
        (["--prompt", "a", "--prompt-ids", "1"], "--prompt-ids: not allowed with argument --prompt"),
    ],
)
def test_a_bad_word_is_named_with_its_option(run, words, told):
    text = sentence(run(*words))
    assert told in text and "--help" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt", ""], "the prompt is empty; give at least one token"),
        (["--prompt-ids", "3,256"], "token id 256 is outside the vocabulary; use 0 … 255"),
        (["--prompt-ids=-1"], "token id -1 is outside the vocabulary"),
        (["--prompt", "x" * 10, "--tokens", "55"], "do not fit the context of 64; ask for 1 … 54"),
        (["--prompt", "x" * 64, "--tokens", "1"], "shorten it to 63"),
        (["--prompt", "é" * 32], "the prompt has 64 tokens, but the context is 64"),
        (["--device", "floppy"], "--device floppy: neither a file nor a preset; use one of paper_m1max"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_can(run, words, told):
    assert told in sentence(run(*words))


def test_the_largest_number_of_tokens_that_is_named_works(run):
    prompt = ("--prompt", "x" * (CONTEXT - 5))
    assert sentence(run(*prompt, "--tokens", "6")).endswith("ask for 1 … 5")
    assert run(*prompt, "--tokens", "5").code == 0


def test_a_memory_that_is_too_small_names_the_smallest_that_works(run):
    text = sentence(run("--memory", "0.01"))
    found = re.search(
        r"0.01 of the model is .* always be in memory; the smallest that works is (0\.\d{3})$", text
    )
    assert found
    assert run("--memory", found[1]).code == 0
    assert found[1] in sentence(run("--memory", f"{float(found[1]) - 0.001:.3f}"))


def test_a_device_that_is_none(run, tmp_path):
    path = tmp_path / "disk.json"
    path.write_text("{")
    assert f"{path}: a device must be a JSON object" in sentence(run("--device", path))
    path.write_text(device_to_json(PRESETS["ufs40"]).replace("max_iops", "iops"))
    assert f"{path}: a device has no field 'iops'" in sentence(run("--device", path))
    assert "neither a file nor a preset" in sentence(run("--device", tmp_path))


# --- models and predictors -----------------------------------------------------------------------


def test_a_directory_that_is_no_model(run, tmp_path):
    assert f"{tmp_path}/x: there is no such folder; give" in sentence(run("--model", tmp_path / "x"))
    assert "has no config.json; give" in sentence(run("--model", tmp_path))
    (tmp_path / "text").write_text("no model")
    assert f"{tmp_path}/text: is a file; give the folder" in sentence(run("--model", tmp_path / "text"))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    text = sentence(run("--model", tmp_path))
    assert f"{tmp_path}: config.json has model_type 'mamba', which is not supported; use one of opt" in text
    (tmp_path / "config.json").write_text("[")
    assert "config.json: is not JSON" in sentence(run("--model", tmp_path))


def test_a_checkpoint_of_bin_files_says_how_to_convert_them(run, tmp_path):
    write_model(tmp_path, random_weights())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "in .bin files" in (text := sentence(run("--model", tmp_path))) and "save_pretrained" in text


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


def test_the_exact_predictor_does_not_mind_foreign_predictors(report, run, tmp_path):
    folder = write_model(tmp_path / "model", random_weights())
    (folder / "predictors.safetensors").write_bytes(b"something else")
    assert report("--model", folder, "--predictor", "exact")["verified"]
    assert "predictors.safetensors" in sentence(run("--model", folder))


# --- texts and tokenizers ------------------------------------------------------------------------


def test_a_held_out_text_that_is_none(run, tmp_path):
    folder = write_model(tmp_path / "model", random_weights())
    path, other = folder / "held_out.txt", tmp_path / "other"
    for content, told in (
        (b"", "is empty; give a text"),
        (b"x", "is not a text of at least two tokens of the model's vocabulary of 256; give another with"),
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


def test_a_held_out_text_that_is_given_is_the_one_that_is_measured(report, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(TEXT[::-1])
    own = report("--perplexity-tokens", "20")["perplexity"]
    assert report("--perplexity-tokens", "20", "--held-out", other)["perplexity"] != own
    other.write_bytes(TEXT)
    assert report("--perplexity-tokens", "20", "--held-out", other)["perplexity"] == own


def test_a_vocabulary_smaller_than_bytes(run, tmp_path):
    def shrink(tensors):
        tensors["model.decoder.embed_tokens.weight"] = tensors["model.decoder.embed_tokens.weight"][:120]

    folder = changed_model(tmp_path / "model", shrink, vocab_size=120, held_out=b"no \x7f")
    told = sentence(run("--model", folder, "--perplexity-tokens", "5"))
    assert "of the model's vocabulary of 120" in told
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
        assert f"{folder}/tokenizer.json: is not a tokenizer" in sentence(run("--model", folder, *words))


def test_held_out_text_needs_a_tokenizer(run, tmp_path):
    def enlarge(tensors):
        tensors["model.decoder.embed_tokens.weight"] = np.zeros((300, 16), np.float16)

    folder = changed_model(tmp_path / "model", enlarge, vocab_size=300, held_out=TEXT)
    words = ("--model", folder, "--prompt-ids", "299,2", "--perplexity-tokens", "9")
    outcome = run(*words)
    assert outcome.code == 0 and "there is no tokenizer, so the perplexity is not measured" in outcome.err
    assert "no tokenizer.json" in sentence(run(*words, "--held-out", folder / "held_out.txt"))
