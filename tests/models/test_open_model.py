"""open_model: the calls of the README, which give what `flashref run` gives, and leave nothing behind."""

import gc
import json
import os
import threading
from functools import partial

import numpy as np
import opt_runs
import pytest
from random_models import CONTEXT, LAYERS, WIDTH, random_weights, write_family, write_model

from flashref import same
from flashref.decode import sum_predicted
from flashref.ffn import active_neurons
from flashref.models import Account, decoding, open_model
from flashref.models.checkpoint import load_ffn, open_checkpoint
from flashref.models.tokens import Tokenizer, text_pieces, written_text
from flashref.simulate.runs import tables_of_text, trace_of_text
from flashref.simulate.trace_file import load_trace
from flashref.slots import fill_holes
from flashref.storage.device import PRESETS
from flashref.types import DomainError, FlashrefError, ImageError

pytestmark = opt_runs.IGNORED_WARNINGS
no_waiting_for_the_disk = opt_runs.no_waiting_for_the_disk
model = opt_runs.model
packed = opt_runs.packed
run = opt_runs.run
PROMPT = "In the"
TEXT = opt_runs.TEXT.decode()


@pytest.fixture
def opened(model, packed):
    with open_model(model, memory=0.95, image=packed) as opened:
        yield opened


def test_the_first_lines_that_a_reader_tries():
    with open_model("tiny", memory=0.5) as model:
        text = model.generate("And the king said", tokens=12)
        verdict = model.verify()
    assert str(text).startswith("And the king said") and len(text.new_ids) == 12
    assert bytes(text.token_ids).decode() == str(text) == text.prompt + text.text
    assert [len(layers) for layers in text.steps] == [4] * (17 - 1 + 12)
    assert verdict == (True, None, 4 * 28) and isinstance(text.account, Account)
    assert repr(model) == "<tiny: opt, 4 layers of 1024 neurons>"


# --- what the command gives ----------------------------------------------------------------------


def test_a_text_is_that_of_the_command(run, opened, packed, tmp_path):
    trace_file = tmp_path / "trace"
    words = ("--image", packed, "--tokens", 9, "--perplexity-tokens", 30, "--save-trace", trace_file)
    told = json.loads(run("--json", *words).out)
    text = opened.generate(PROMPT, tokens=9)
    assert (text.prompt, text.text, list(text.token_ids)) == (told["prompt"], told["text"], told["token_ids"])
    assert text.account.overflows == told["overflows"]
    assert opened.verify().verified is told["verified"] is True
    assert (opened.dense_ids(text.request) == text.new_ids) is told["same_as_dense"]
    assert text.errors.false_negative_rate == told["predictor"]["false_negative_rate"]
    assert opened.perplexity(TEXT[:30])._asdict() == told["perplexity"]
    tables = tables_of_text(opened, text)
    assert [row._asdict() for row in tables.methods] == told["methods"]
    assert [row._asdict() for row in tables.scaled] == told["scaled"]
    trace = trace_of_text(opened, text)
    assert same(tuple(trace), tuple(load_trace(trace_file)))
    measured = opened.measure_memory()._asdict()
    for part in ("budget", "counted", "allowance", "trace"):
        assert measured[part] == told["memory"][part], part


def test_the_account_is_the_sum_of_the_steps_and_the_last_row_of_the_table(opened):
    text = opened.generate(PROMPT, tokens=9)
    counted = [step for layers in text.steps[len(PROMPT) - 1 :] for step in layers]
    account, last = text.account, tables_of_text(opened, text, scaled=False).methods[-1]
    assert account[:4] == tuple(sum(column) for column in zip(*(step.io for step in counted), strict=True))
    assert account.moved_rows == sum(len(step.moves.source) for step in counted) > 0
    assert account.moved_bytes == account.moved_rows * 2 * WIDTH * 2
    assert last.reads_per_token == account.requests / 9
    assert last.useful_bytes_per_token == account.useful_bytes / 9
    assert last.flash_bytes_per_token == account.read_bytes / 9
    assert last.simulated_io_ms_per_token == account.io_nanoseconds / 9 / 1e6
    assert last.dram_moved_bytes_per_token == account.moved_bytes / 9
    assert 0 < account.seconds < 60 and account.tokens_per_second > 9 / account.seconds
    assert account.peak_memory >= 0
    record = [[step.predicted.tolist() for step in layers] for layers in text.steps]
    assert [[ids.tolist() for ids in layers] for layers in text.record.predicted] == record


def test_sampling_and_cold_windows_are_those_of_the_command(run, opened, packed):
    words = ("--image", packed, "--tokens", 5, "--temperature", 3, "--seed", 5, "--cold")
    told = json.loads(run("--json", *words).out)
    text = opened.generate(PROMPT, tokens=5, temperature=3, seed=5, cold=True)
    assert list(text.token_ids) == told["token_ids"] and len(text.steps) == 5
    assert text.account.useful_bytes / 5 == told["methods"][4]["useful_bytes_per_token"]


# --- texts ---------------------------------------------------------------------------------------


def test_texts_of_one_model_do_not_touch_each_other(opened):
    first = opened.generate(PROMPT, tokens=6)
    other = opened.generate("another", tokens=4, temperature=2)
    again = opened.generate(PROMPT, tokens=6)
    assert (again.new_ids, again.errors) == (first.new_ids, first.errors)
    assert same(tuple(map(tuple, again.record.predicted)), tuple(map(tuple, first.record.predicted)))
    assert same(tuple(map(tuple, again.steps)), tuple(map(tuple, first.steps)))
    assert again.account[:7] == first.account[:7] and other.new_ids != first.new_ids[:4]
    assert opened.verify().verified and opened.verify().steps == LAYERS * (11 + 10 + 11)


def test_texts_may_be_written_in_turns(model, packed):
    opened = open_model(model, memory=0.87, image=packed)
    prompts = (PROMPT, "another", "In the")
    alone = [opened.generate(prompt, tokens=5) for prompt in prompts]
    streams = [opened.stream(prompt, tokens=5) for prompt in prompts]
    pieces = [iter(stream) for stream in streams]
    for _ in range(3):
        for piece in pieces:
            next(piece, None)
    for stream, text in zip(streams, alone, strict=True):
        found = stream.finish()
        assert (found.new_ids, found.account[:7], found.errors) == (
            text.new_ids,
            text.account[:7],
            text.errors,
        )
    assert opened.verify().verified and alone[0].account.overflows > 0
    opened.close()


def test_pieces_come_while_the_text_is_written(opened):
    stream = opened.write(opened.request(PROMPT, 6), keep_steps=False)
    pieces = list(stream)
    text = stream.finish()
    assert len(pieces) > 1 and all(pieces) and "".join(pieces) == text.text
    assert text.steps == () and text.new_ids == opened.generate(PROMPT, 6).new_ids
    assert stream.prompt == PROMPT and list(stream) == [] and stream.finish() == text
    begun = opened.stream(PROMPT, tokens=6)
    assert next(iter(begun)) == pieces[0] and begun.finish().new_ids == text.new_ids


def test_a_character_waits_for_its_bytes():
    tokenizer = Tokenizer(list, lambda ids: bytes(ids).decode("utf-8", "replace"))
    ids = [65, *"é".encode(), 255, 66, *"\U0001f600".encode(), *"é".encode()[:1]]
    assert list(text_pieces(tokenizer, [67], iter(ids))) == ["A", "é", "\ufffdB", "\U0001f600", "\ufffd"]
    assert written_text(tokenizer, [67], ids) == "Aé\ufffdB\U0001f600\ufffd"


def test_a_model_without_a_tokenizer_takes_and_gives_ids(tmp_path):
    folder = write_family(tmp_path / "model", "llama", vocab_size=300)
    with open_model(folder, predictor="exact", memory=1) as model:
        text = model.generate([299, 2], tokens=3)
        stream = model.write(text.request)
        assert stream.prompt + "".join(stream) == str(text)
        with pytest.raises(DomainError, match=r"no tokenizer.json; add it .* or give token ids"):
            model.generate("text", tokens=3)
    assert text.prompt is text.text is None
    assert str(text) == f"299,2 → {','.join(map(str, text.new_ids))}"


def test_a_text_shows_itself(opened):
    text = opened.generate("a<b", tokens=2)
    assert repr(text).startswith("<GeneratedText of 2 new tokens, ") and repr("a<b")[:-1] in repr(text)
    shown = text._repr_html_()
    assert "<b>a&lt;b</b>" in shown and f"<td>read_bytes<td>{text.account.read_bytes:,}" in shown


# --- choices -------------------------------------------------------------------------------------


def test_a_choice_may_be_a_function(model, packed):
    checkpoint = open_checkpoint(model)
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    by_name = {"semantics": "predicted", "placement": "fill_holes", "predictor": "exact"}
    functions = {"semantics": sum_predicted, "placement": fill_holes, "device": PRESETS["sd_a2"]}
    functions["predictor"] = lambda layer, x: active_neurons(x, ffns[layer])
    texts = []
    for choices in ({**by_name, "device": "sd_a2"}, functions):
        with open_model(model, memory=0.95, image=packed, **choices) as opened:
            texts.append(opened.generate(PROMPT, tokens=4))
            assert opened.verify().verified
    assert texts[0].new_ids == texts[1].new_ids and texts[0].account[:7] == texts[1].account[:7]


def test_a_file_of_predictors_may_stand_for_the_predictor(model, packed):
    path = model / "predictors.safetensors"
    found = []
    for choice in ({"predictor": path}, {"predictor": str(path)}, {"predictors": path}, {}):
        with open_model(model, memory=0.95, image=packed, **choice) as opened:
            found.append(opened.generate(PROMPT, tokens=3).new_ids)
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"memory": 1.5}, "at most 1, not 1.5; bytes need a unit"),
        ({"memory": "6"}, "at most 1, not 6"),
        ({"memory": "0.01"}, "must always be in memory; the smallest that works is 0"),
        ({"window": 65}, "longer than the context of 64"),
        ({"semantics": "all"}, "semantics 'all' is unknown; use one of resident, predicted"),
        ({"placement": "sorted"}, "placement 'sorted' is unknown; use one of swap_with_last, fill_holes"),
        ({"reader": "tape"}, "reader 'tape' is unknown; use one of memory, direct"),
        ({"device": "floppy"}, "neither a file nor a preset"),
        (
            {"activation": "gelu"},
            "cannot replace the model's activation; give relu, or fatrelu with its tau, such as",
        ),
        ({"predictor": "nowhere"}, "nowhere: cannot be read"),
        ({"predictor": "exact", "proof": False}, "needs every weight in memory"),
    ],
)
def test_what_cannot_be_met_is_said_before_anything_is_packed(model, choice, told, monkeypatch):
    monkeypatch.setattr("flashref.models.image_readers.pack_image", None)
    with pytest.raises(FlashrefError, match=told):
        open_model(model, **choice)


def test_a_text_that_cannot_be_written_is_refused_before_anything_is_packed(model, monkeypatch):
    monkeypatch.setattr("flashref.models.image_readers.pack_image", None)
    opened = open_model(model, memory=0.95)
    assert opened.request(PROMPT, CONTEXT - 6).tokens == CONTEXT - 6
    for words, told in (
        ((PROMPT, CONTEXT - 5), "do not fit the context of 64"),
        (("", 1), "the prompt is empty"),
        (([256], 1), "outside the vocabulary"),
    ):
        with pytest.raises(DomainError, match=told):
            opened.request(*words)
    with pytest.raises(DomainError, match="temperature must be"):
        opened.request(PROMPT, 1, temperature=-1)


def test_another_activation_and_amounts_of_bytes(tmp_path):
    folder = write_family(tmp_path / "model", "llama", activation_name="silu")
    with open_model(folder, predictor="exact", memory="60kB", activation="fatrelu:0.25") as model:
        assert model.generate(PROMPT, tokens=2) and model.verify().verified
        assert model.measure_memory().budget == 60_000
        found = model.perplexity(TEXT)
    with open_model(folder, predictor="exact", memory=1) as model:
        assert model.perplexity(TEXT).dense == found.unchanged != found.dense


# --- resources -----------------------------------------------------------------------------------


def held():
    """The files and threads of this process; `gc.collect` first, so that no other test's are closed later."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize("reader", ["memory", "direct"])
@pytest.mark.parametrize("proof", [True, False])
def test_nothing_is_left_behind(model, tmp_path, monkeypatch, reader, proof):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    gc.collect()
    before = held()
    for _ in range(2):
        with open_model(model, memory=0.95, reader=reader, proof=proof) as opened:
            opened.generate(PROMPT, tokens=2)
            assert len(list(tmp_path.iterdir())) == 1 and held() != before
        assert list(tmp_path.iterdir()) == [] and held() == before


def test_nothing_is_left_behind_by_an_error(model, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    gc.collect()
    before = held()
    with pytest.raises(ZeroDivisionError), open_model(model, memory=0.95, reader="direct"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [] and held() == before
    # While it is opened: after the image was packed, and by an image of another model.
    with monkeypatch.context() as patch:
        patch.setattr("flashref.models.setup.load_ffn", partial(int, "none"))
        with pytest.raises(TypeError), open_model(model, memory=0.95, reader="direct"):
            pass
    other = write_model(tmp_path / "other", random_weights(seed=1))
    with pytest.raises(ImageError, match="image of another model"), open_model(other, image=packed, memory=1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"] and held() == before


def test_a_model_may_be_opened_by_use_and_closed_by_hand(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    opened = open_model(model, memory=0.95)
    assert list(tmp_path.iterdir()) == []
    opened.generate(PROMPT, tokens=2)
    assert len(list(tmp_path.iterdir())) == 1
    opened.close()
    opened.close()
    assert list(tmp_path.iterdir()) == []


# --- the proof -----------------------------------------------------------------------------------


def test_a_lie_is_found_out_and_stays_found(opened, monkeypatch):
    real = decoding.decode_layer

    def wrong(*arguments):
        y, state, step = real(*arguments)
        return np.nextafter(y, np.float32(np.inf)), state, step

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_layer", wrong)
        opened.generate(PROMPT, tokens=2)
    assert opened.verify()[:2] == (
        False,
        "layer 0: the output differs from what the definition gives in memory",
    )
    opened.generate(PROMPT, tokens=2)
    assert opened.verify().verified is False


def test_without_a_proof_nothing_is_claimed(model, packed):
    with open_model(model, memory=0.95, image=packed, proof=False) as opened:
        text = opened.generate(PROMPT, tokens=3)
        assert opened.verify() == (None, None, LAYERS * 8) and text.errors is None
        assert opened.dense_ids(text.request) is None and opened.perplexity(TEXT).dense is None
        memory = opened.measure_memory()
    assert memory.held is (memory.peak <= memory.allowed)
