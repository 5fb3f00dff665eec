"""`flashref run --model` on every family: transformers' tokens, the dense model's, another activation."""

import re

import family_runs
import pytest
from family_runs import TEXT, sentence
from random_models import FAMILIES, write_family

from flashref.models.tokens import Tokenizer, written_text

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read past the page cache")
run = family_runs.run
report = family_runs.report


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


def test_what_is_written_goes_on_where_the_prompt_ends():
    # A decoder that drops the space at a text's start, as Llama's does.
    tokenizer = Tokenizer(lambda text: [], lambda ids: "".join(" abc"[one] for one in ids).lstrip())
    assert (tokenizer.decode([1]), written_text(tokenizer, [1], [0, 2])) == ("a", " b")
    tokenizer = Tokenizer(lambda text: [], lambda ids: "?" * (len(ids) == 1))
    assert written_text(tokenizer, [1], [2]) == "?"  # half a letter, and the whole text another


def test_the_held_out_text_has_tokens_of_the_vocabulary_only(run, tmp_path):
    folder, words = (
        write_family(tmp_path, "opt", vocab_size=120, held_out=b"wx"),
        ("--perplexity-tokens", "2"),
    )
    assert "is not a text of at least two tokens of the model's vocabulary of 120" in sentence(
        run(folder, *words)
    )
    (folder / "held_out.txt").write_bytes(b"vw")  # token 119 is the last
    assert run(folder, *words).code == 0


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
    assert "text: the dense model with relu writes the same text." in told
    assert (
        f"perplexity: per token of held-out text, {before:.3f} dense with the model's own {shown}; with relu "
        f"({after / before - 1:+.2%}), {after:.3f} dense and {after:.3f} from flash (+0.00%)."
    ) in told
    told = " ".join(run(folder).out.split())
    assert (
        f"activation: with {shown} every neuron is active, so none can be skipped; --activation fatrelu:T"
        in told
    )
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
    assert "text: the dense model with fatrelu:0.5 writes the same text." in told
    assert " dense with the model's own fatrelu:0.125; with fatrelu:0.5 (" in told


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
