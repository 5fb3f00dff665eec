"""`flashref run` and memory: without a proof it is held to what is allowed; amounts in bytes."""

import json
import re
import subprocess
import sys

import family_runs
import numpy as np
import pytest
from family_runs import PYTHON_BYTES, TEXT, sentence, write_predictors
from random_models import LAYERS, NEURONS, WIDTH, write_family
from safetensors.numpy import load_file, save_file

from flashref.cli.report import size
from flashref.models import decoding, image_readers, memory, open_model, prepared, setup
from flashref.models.checkpoint import open_checkpoint
from flashref.models.memory import ALLOWANCE, ALLOWED_COPIES
from flashref.models.model import load_model
from flashref.simulate import runs
from flashref.storage import packing

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read past the page cache")
run = family_runs.run
report = family_runs.report
llama = family_runs.llama
identity = family_runs.identity


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
    assert "The same trace at OPT" not in told
    assert "The output was not compared with weights in memory (--no-proof)." in told and "dense" not in told
    took = (
        r"peak memory: [\d.]+ \w+ more than the [\d.]+ \w+ that Python took before the model\. It is within "
    )
    assert re.search(took, told)
    told = " ".join(run(llama, *words).out.split())
    assert "--no-proof leaves them out, and holds the peak to the budget plus a stated allowance" in told


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
    monkeypatch.setattr(image_readers, "memory_reader", None)  # pages of a mapped file would count as memory
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

    def measured(peak):
        monkeypatch.setattr(memory, "peak_bytes", lambda: PYTHON_BYTES + peak)
        outcome = run(llama, *words, "--json")
        shown = json.loads(outcome.out)["memory"]
        assert (shown["before"], shown["peak"]) == (PYTHON_BYTES, peak)
        return outcome.code, shown["held"], shown["allowed"]

    allowed = measured(0)[2]
    assert measured(allowed) == (0, True, allowed)
    assert measured(allowed + 1) == (1, False, allowed)
    outcome = run(llama, *words)
    assert outcome.code == 1 and " MORE than " in outcome.out
    assert run(llama, *words[:2]).code == 0  # with the proof it is shown and not held


RUNNING = """
import sys
import numpy as np
from flashref.cli import main
from flashref.models import decoding

real, held, size = decoding.decode_layer, [], int(sys.argv[1])

def hoarding(*arguments):
    if not held:
        held.append(np.ones(size, np.uint8))
    return real(*arguments)

decoding.decode_layer = hoarding
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
    words = ("--predictor", "gate", "--no-proof", "--memory", "1")
    memory = report(llama, *words)["memory"]
    assert memory["allowed"] == sum(memory[part] for part in ("budget", "kv_cache", "trace", "allowance"))
    # Keys and values: 2 layers of 2 heads of 4 float32; a prompt of 6 tokens and all but the last of 4 new.
    assert memory["kv_cache"] == 2 * LAYERS * 2 * 9 * 4 * 4
    # A byte for each of the 48 neurons that was predicted.
    with open_model(llama, predictor="gate", proof=False, memory=1) as model:
        steps = model.generate("In the", 4).steps
    assert memory["trace"] == sum(len(step.predicted) for layers in steps for step in layers)
    bundles = 48 * 128  # of two rows of 16 float32
    assert memory["allowance"] == ALLOWANCE + ALLOWED_COPIES * bundles


@pytest.mark.parametrize(
    ("length", "asked", "passes"), [(11, 99, 10), (10, 99, 9), (90, 12, 11), (90, 80, 63)]
)
def test_the_cache_is_that_of_the_longest_text(report, tmp_path, length, asked, passes):
    folder = write_family(tmp_path / "model", "llama", held_out=TEXT[:length].ljust(length))
    words = ("--predictor", "gate", "--no-proof", "--memory", "1", "--perplexity-tokens", asked)
    memory = report(folder, *words)["memory"]
    assert memory["kv_cache"] == 2 * LAYERS * 2 * passes * 4 * 4  # a context of 64


def test_a_context_that_no_memory_holds_is_no_hindrance(report, tmp_path):
    plain, long = (
        write_family(tmp_path / f"{context}", "llama", held_out=TEXT, max_position_embeddings=context)
        for context in (64, 2**62)
    )
    found, expected = (report(folder, "--perplexity-tokens", "20") for folder in (long, plain))
    assert [found[key] for key in ("token_ids", "perplexity")] == [
        expected[key] for key in ("token_ids", "perplexity")
    ]


def test_too_little_memory_is_one_sentence(run, llama, monkeypatch):
    def refused(*_):
        raise MemoryError(*why)

    monkeypatch.setattr(runs, "replay_tokens", refused)
    why = ["Unable to allocate 9 GiB"]
    assert sentence(run(llama)) == "not enough memory (Unable to allocate 9 GiB); free some, or ask for less"
    why = []
    assert sentence(run(llama)) == "not enough memory; free some, or ask for less"


def test_what_is_allowed_begins_with_the_budget_that_was_asked_for(report, llama, tmp_path):
    path = write_predictors(llama, tmp_path / "p")
    words = ("--predictor", "trained", "--predictors", path, "--no-proof", "--memory", "99999B")
    memory = report(llama, *words)["memory"]
    assert memory["budget"] == 99_999 > memory["counted"]
    assert memory["allowed"] == 99_999 + sum(memory[part] for part in ("kv_cache", "trace", "allowance"))


def test_what_is_shown_of_memory_is_what_json_has(run, report, tmp_path):
    folder, words = write_family(tmp_path, "llama", mlp_bias=True), ("--predictor", "gate", "--no-proof")
    words += ("--memory", "0.9")
    memory = report(folder, *words)["memory"]
    shown = {part: size(figure) for part, figure in memory.items() if part != "held"}
    told = " ".join(run(folder, *words).out.split())
    assert f" of the model), and {shown['counted']} of it are used; biases" in told
    assert f"peak memory: {shown['peak']} more than the {shown['before']} that Python" in told
    assert f" within the {shown['allowed']} that are allowed: the budget of {shown['budget']}, " in told
    assert f" {shown['kv_cache']} of KV cache, {shown['trace']} for the record of pred" in told
    assert f" predicted neurons, and an allowance of {shown['allowance']} for biases" in told
    assert len({*shown.values()} - {shown["allowed"], shown["allowance"]}) == 6  # all others differ


def test_without_a_proof_no_rows_are_packed_and_the_peak_is_the_last_that_is_read(
    run, llama, tmp_path, monkeypatch
):
    order, measured, replayed = [], memory.peak_bytes, runs.replay_tokens
    monkeypatch.setattr(memory, "peak_bytes", lambda: order.append("peak") or measured())
    monkeypatch.setattr(runs, "replay_tokens", lambda *words: order.append("replay") or replayed(*words))
    words = ("--predictor", "gate", "--no-proof", "--reader", "direct", "--image", tmp_path / "image")
    assert run(llama, *words).code == 0 and order == ["replay", "peak"]
    assert [path.name for path in tmp_path.glob("image*")] == ["image"]


def test_a_wrong_image_is_refused_before_its_rows_are_packed(run, llama, tmp_path):
    (tmp_path / "image").write_bytes(b"no image")
    assert sentence(run(llama, "--reader", "direct", "--image", tmp_path / "image"))
    assert [path.name for path in tmp_path.glob("image*")] == ["image"]


def test_more_memory_than_the_model_and_a_window_longer_than_the_context(run, llama):
    assert "memory: the budget is 6.00 GB (more than the model has), " in run(llama, "--memory", "6GB").out
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
    assert re.search(r"Rows per layer \(all: the layer is resident whole\): all, \d", told)


def test_a_wrong_resident_set_is_found_without_weights_too(run, llama, monkeypatch):
    real = decoding.decode_layer

    def lying(*arguments):
        y, state, step = real(*arguments)
        return y, state, step._replace(resident=step.resident[1:])

    monkeypatch.setattr(decoding, "decode_layer", lying)
    outcome = run(llama, "--predictor", "gate", "--no-proof", "--json")
    assert outcome.code == 1 and json.loads(outcome.out)["verified"] is False


def test_the_oracle_needs_the_weights_that_no_proof_keeps_out(run, llama):
    text = sentence(run(llama, "--no-proof"))
    assert "--predictor exact needs every weight in memory, and --no-proof keeps them out; use" in text


def test_a_proof_that_does_not_fit_memory_names_the_way_out(run, llama, monkeypatch):
    needed = 3 * LAYERS * NEURONS * WIDTH * (4 + 4)
    monkeypatch.setattr(prepared, "available_bytes", lambda: needed)
    assert run(llama).code == 0
    monkeypatch.setattr(prepared, "available_bytes", lambda: needed - 1)
    text = sentence(run(llama))
    assert (
        f"the proof takes {needed:,} bytes of memory for the weights of the FFNs, but {needed - 1:,} " in text
        and text.endswith("with --no-proof")
    )
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
    found = re.search(rf"0.01{unit} is [\d.]+ .*the smallest that works is ([\d.]+){unit}$", text)
    assert run(llama, "--memory", f"{found[1]}{unit}").code == 0
    less = int(found[1]) - 1 if unit == "B" else f"{float(found[1]) - 0.001:.3f}"
    assert found[1] in sentence(run(llama, "--memory", f"{less}{unit}"))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("6G", "'6G' has an unknown unit; use one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("6", "at most 1, not 6; bytes need a unit, such as 6GB"),
        ("GB", "is not a share such as 0.5, nor bytes with a unit"),
        ("-1GB", "--memory"),
        ("1e3MB", "is not a share such as 0.5, nor bytes with a unit"),
    ],
)
def test_a_memory_that_is_no_amount(run, tmp_path, word, told):
    assert told in sentence(run(tmp_path, f"--memory={word}"))
