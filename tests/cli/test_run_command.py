"""`flashref run`: results that say what was proven, in JSON and in words."""

import io
import json
import re
import shutil
import sys

import numpy as np
import opt_runs
import pytest
from opt_runs import TEXT, changed_model, sentence, without_peak
from random_models import LAYERS, random_weights, write_model
from safetensors.numpy import save_file

from flashref.cli import main
from flashref.ffn import active_neurons
from flashref.models import decoding
from flashref.simulate import trace_file
from flashref.storage.device import PRESETS, device_to_json
from flashref.types import ImageError

pytestmark = opt_runs.IGNORED_WARNINGS
no_waiting_for_the_disk = opt_runs.no_waiting_for_the_disk
model = opt_runs.model
packed = opt_runs.packed
run = opt_runs.run
report = opt_runs.report

KEYS = [
    "model",
    "prompt",
    "text",
    "token_ids",
    "tokens",
    "seconds",
    "tokens_per_second",
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


def test_json_has_these_keys_in_this_order(run, report, model):
    words = ("--prompt", "In the", "--perplexity-tokens", "40")
    assert list(json.loads(run("--json", *words).out)) == KEYS
    result = report(*words)
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


def test_the_account_of_a_run(report, packed):
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
        "text: the dense model writes another text. The predictor missed active neurons, and of these only",
        "memory: the budget is ",
        " (0.95 of the model), and ",
        "The window has 5 tokens. Rows per layer: ",
        "predictor: on this text it missed ",
        "perplexity: per token of held-out text, ",
        "+ bundling",
        "times fewer bytes than with naive",
        "The same trace at OPT 6.7B's shape",
        "2,196 ms",
    ):
        assert words in told, words
    assert "NOT verified" not in told and "measured" not in told and "…" not in told
    exact = run("--predictor", "exact").out
    assert "\ntext: the dense model writes the same text.\n" in exact
    assert "perplexity" not in exact


def test_a_pipe_gets_every_sentence_on_one_line_and_no_blanks_at_a_lines_end(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = run("--perplexity-tokens", "20").out.splitlines()[1:]  # after the text, which may end anyhow
    assert lines == [line.rstrip() for line in lines]
    sentences = [line for line in lines if line and not line.startswith(" ")]
    titles = [line for line in sentences if not line.endswith(".")]
    assert [line.split(" ")[0] for line in titles[1:]] == ["The"] and " on paper_m1max" in titles[0]


def test_a_terminal_of_80_columns_gets_whole_words_and_tables_with_every_column_explained(run, monkeypatch):
    whole = run("--perplexity-tokens", "20", "--tokens", "4").out.split()
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    told = re.sub(r"\x1b\[[0-9;]*m", "", run("--perplexity-tokens", "20", "--tokens", "4").out)
    assert max(map(len, told.splitlines())) <= 80
    figure = re.compile(r"\d")  # times and peaks differ from run to run
    assert {word for word in whole if not figure.search(word)} - {*told.split()} <= {"─" * 65, "─" * 67}
    for heading in ("useful", "read", "reads", "in DRAM", "moved", "simulated", "paper"):
        assert f"The “{heading}” column " in " ".join(told.split())


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
    assert f"in {few['overflows']} of {steps} steps the rows did not hold a whole window" in told
    assert re.search(r"Rows per layer: [0-3], [0-3]\.\n", told)


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


def test_options_reach_what_they_name(report, tmp_path):
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
    assert asked.err.endswith("held_out.txt: there is no held-out text, so the perplexity is not measured\n")
    assert "--perplexity-tokens 1: perplexity needs at least two tokens" in sentence(
        run("--perplexity-tokens", "1")
    )
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
    real = decoding.decode_layer

    def wrong(*arguments):
        y, state, step = real(*arguments)
        return y + np.float32(1), state, step

    monkeypatch.setattr(decoding, "decode_layer", wrong)
    outcome = run()
    assert outcome.code == 1 and outcome.err == ""
    assert "NOT verified: layer 0: the output differs" in outcome.out
    outcome = run("--json")
    assert outcome.code == 1 and json.loads(outcome.out)["verified"] is False


def test_an_oracle_that_misses_a_neuron_is_exit_code_1(run, monkeypatch):
    from flashref.models import setup

    monkeypatch.setattr(setup, "active_neurons", lambda x, ffn: active_neurons(x, ffn)[1:])
    outcome = run("--predictor", "exact", "--semantics", "predicted")
    assert outcome.code == 1 and "NOT verified: layer 0: the output differs" in outcome.out


def test_the_text_is_shown_while_it_is_written_on_a_terminal(run, monkeypatch):
    whole, told = run("--predictor", "exact").out, []
    real = decoding.decode_layer

    def watched(*arguments):
        told.append(sys.stdout.getvalue())
        return real(*arguments)

    monkeypatch.setattr(decoding, "decode_layer", watched)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    assert run("--predictor", "exact").code == 0
    shown, *_ = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue()).split("\n\n")
    assert whole.startswith(shown)
    # The prompt is there before the first step, and a piece of the text before the last token's.
    texts = [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in told]
    assert texts[0] == "In the" and len(set(texts)) > 1 and all(map(shown.startswith, texts))


@pytest.mark.parametrize("output", [[], ["--json"]])
def test_a_trace_that_cannot_be_saved_does_not_lose_the_result(run, tmp_path, monkeypatch, output):
    def full(path, size):
        raise ImageError(f"{path}: needs {size} bytes, but 0 are free; make room")

    whole = run("--quiet", *output).out
    monkeypatch.setattr(trace_file, "create_file", full)
    outcome = run("--save-trace", tmp_path / "trace", *output)
    assert outcome.code == 2 and outcome.err.endswith("0 are free; make room\n")
    if output:
        assert without_peak(outcome.out) == without_peak(whole)
    else:
        assert outcome.out.startswith("In the") and "+ bundling" in outcome.out


def test_two_outputs_of_one_name_are_refused_at_the_start(run, tmp_path):
    for image in (tmp_path / "x", tmp_path / "." / "x"):
        words = ("--image", image, "--save-trace")
        for name in ("x", "x.unbundled"):
            told = sentence(run(*words, tmp_path / name))
            assert f"--save-trace {tmp_path}/{name}: an image has this name, too; choose another" in told
    assert list(tmp_path.iterdir()) == []


def test_the_time_is_shown(run):
    told = run("--perplexity-tokens", "0").out
    clock = r"\ntime: [\d.]+ seconds by the clock for the prompt and the new tokens, the time of the proof"
    assert re.search(clock + r" included; [\d.]+ new tokens a second\.\n", told)


def test_progress_is_shown_on_a_terminal_and_nowhere_else(run, monkeypatch):
    assert run("--json").err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    outcome = run("--json")
    assert json.loads(outcome.out)["verified"] and "decoding from flash" in outcome.err
    quiet = run("--json", "--quiet")
    assert (quiet.code, without_peak(quiet.out), quiet.err) == (0, without_peak(outcome.out), "")
