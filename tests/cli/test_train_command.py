"""`flashref train`: what is recorded and fitted of every family, on which text, and what is shown."""

import json
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import hurried_jax
import numpy as np
import pytest
import train_runs
from random_models import CONTEXT, FAMILIES, LAYERS, NEURONS, WIDTH, write_family
from train_runs import QUICK, TEXT, loaded

from flashref import same
from flashref.cli import train as command
from flashref.cli.train import GRID
from flashref.ffn import dense_ffn
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.model import load_model, one_at_a_time
from flashref.models.predictors import ErrorCounts, Predictors, load_predictors
from flashref.storage.image import fingerprint
from flashref.training import draw, fitting, judging, layers, low_rank
from flashref.training.evaluation import (
    Evaluation,
    JudgedModel,
    LayerFigures,
    NeuronShares,
    ResidentShares,
    evaluate,
)
from flashref.types import ImageError, Predictor

hurried = hurried_jax.hurried
train = train_runs.train
small = train_runs.small


# --- every family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_records_the_very_tensor_that_its_up_projection_receives(tmp_path, family):
    checkpoint = open_checkpoint(write_family(tmp_path, family, "F16"))
    texts = [np.frombuffer(TEXT.encode(), np.uint8)[:40].astype(np.int32).reshape(2, 20)]
    texts.append(texts[0][:1] + 1)
    model = load_model(checkpoint.config, partial(load_tensor, checkpoint))
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    for which, text in enumerate(texts):
        received = [[] for _ in range(LAYERS)]

        def feed_forward(layer, x, received=received):
            received[layer].append(x)
            return dense_ffn(x, ffns[layer])

        for chunk in text:
            forward = one_at_a_time(model, feed_forward)
            for token in chunk.tolist():
                forward(token)
        for layer in layers.record(checkpoint, texts):
            expected = np.array(received[layer.number])
            found = layer.inputs[which]
            assert found.dtype == np.float32 and found.shape == expected.shape
            # float32 in another order: some hundred roundings of what is of size 1.
            assert np.abs(found - expected).max() <= 200 * 2.0**-24 * np.abs(expected).max()


@pytest.mark.ci
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
def test_every_family_is_fitted_and_judged_again_to_the_same_figures(small, train, family):
    """All but OPT, which every other test fits."""
    silu = family == "llama"
    folder = write_family(small / "model", family, "F16", activation_name="silu" if silu else None)
    words = ["--activation", "fatrelu:0.25"] if silu else []
    fitted = train(folder, "--text", small / "text", *QUICK, *words, "--json")
    assert (fitted.code, fitted.err) == (0, "")
    first = json.loads(fitted.out)
    judged = train(folder, "--judge", "--text", small / "text", "--json", "--quiet")
    second = json.loads(judged.out)
    for result in (first, second):
        for row in result["layers"]:
            row.pop("steps")
    alike = ("model_bytes", "predictor_bytes", "share", "layers", "total", "perplexity", "tokens", "tau")
    assert {key: first[key] for key in alike} == {key: second[key] for key in alike}
    assert [row["rank"] for row in first["layers"]] == [4] * LAYERS
    origin = loaded(folder).origin
    own = open_checkpoint(folder).config.activation
    assert origin.activation == first["activation"] == ("fatrelu" if silu else own)
    assert origin.tau == (0.25 if silu else 0)


# --- the text


def test_nothing_that_is_judged_was_fitted_or_chosen_on(small, train, monkeypatch):
    """Doubles stand where every array of tokens, or of inputs, is given to be fitted, chosen or judged on."""
    recorded, judged, fitted_on, chosen_on = [], [], [], []
    record, fit_low_rank = layers.record, low_rank.fit_low_rank

    def recording(checkpoint, texts, *rest):
        recorded.append(texts)
        return record(checkpoint, texts, *rest)

    def fitting_on(ffn, inputs, held_out, *rest):
        fitted_on.append(inputs)
        chosen_on.append(held_out)
        return fit_low_rank(ffn, inputs, held_out, *rest)

    def judging_on(checkpoint, predictors, chunks, *rest):
        judged.append(chunks)
        raise KeyboardInterrupt  # all is seen

    monkeypatch.setattr(fitting, "record", recording)
    monkeypatch.setattr(fitting, "fit_low_rank", fitting_on)
    monkeypatch.setattr(judging, "judge_predictors", judging_on)
    size = CONTEXT
    whole = TEXT[:-size] + TEXT[10 : 10 + size]  # the last chunk, to be judged, is in the part to fit on, too
    (small / "text").write_text(whole)
    words = ("--share", "0.5", "--steps", "3", "--quiet", "--false-negatives", "1")
    assert train(small, "--text", small / "text", *words).code == 130

    every = [whole[first : first + size] for first in range(0, 40 * size, size)]

    def texts(arrays):
        return [bytes(chunk.astype(np.uint8)).decode() for array in arrays for chunk in array]

    assert [len(each) for each in recorded] == [2, 2]  # to choose ranks, then to fit: two parts each
    for fit, choose in recorded:
        assert texts([fit]) == every[:32] and texts([choose]) == every[32:36]
    assert texts(judged) == every[36:39]  # the repeated one was dropped
    assert not set(texts(judged)) & set(every[:36])
    # And what is fitted and chosen on is of those texts: their tokens, and no more.
    assert {len(inputs) for inputs in fitted_on} == {32 * size}
    assert {len(inputs) for inputs in chosen_on} == {4 * size}


def test_a_text_is_judged_only_where_its_predictors_have_not_seen_it(small, train):
    assert train(small, "--text", small / "text", *QUICK).code == 0
    parts = {
        "fit": (0, 32 * CONTEXT),
        "choose": (32 * CONTEXT, 36 * CONTEXT),
        "judge": (36 * CONTEXT, 40 * CONTEXT),
    }
    digest, origin = sha256(TEXT.encode()).hexdigest(), loaded(small).origin
    assert {part: getattr(origin, part) for part in parts} == {
        part: (digest, (ends,)) for part, ends in parts.items()
    }
    judge = ["--judge", "--json", "--quiet"]
    whole = json.loads(train(small, *judge, "--text", small / "text").out)
    assert whole["tokens"] == 4 * CONTEXT
    assert whole["judged_on"] == f"the part of {small / 'text'} that nothing was fitted or chosen on"
    (small / "held_out.txt").write_text(TEXT[: 4 * CONTEXT + 1])
    other = json.loads(train(small, *judge).out)
    assert other["tokens"] == 4 * CONTEXT and "another text" in other["judged_on"]


def test_the_shipped_predictors_name_the_shipped_held_out_text_as_unseen():
    tiny = Path(judging.__file__).parents[1] / "data" / "tiny"
    checkpoint = open_checkpoint(tiny)
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text)
    origin = load_predictors(tiny / "predictors.safetensors", 4, 1024, 128, identity).origin
    assert origin.judge == (sha256((tiny / "held_out.txt").read_bytes()).hexdigest(), ((0, 65_536),))
    assert origin.fit.sha256 == origin.choose.sha256 != origin.judge.sha256
    assert (origin.activation, origin.tau) == ("relu", 0.0)


# --- what is shown


def test_residency_is_shown_as_shares_of_a_layer_and_their_mean(small):
    maps = Predictor(np.zeros((2, WIDTH), np.float16), np.zeros((NEURONS, 2), np.float16), None, 0.0)
    none = np.zeros((LAYERS, 2), np.int64)
    predictors = Predictors((maps, maps), none.astype(np.float32), none, None)
    found = [(np.array([48, 96]), np.array([12, 24])), (np.array([96, 192]), np.array([24, 48]))]
    layers = tuple(
        judging.LayerJudgement(ErrorCounts(1, 1, 0, 0), judging.Residency(8, kept, largest, kept))
        for kept, largest in found
    )
    judgement = judging.Judgement(8, 2, layers, judging.Perplexities(1.0, 1.0, 1.0, 1.0))
    told = evaluate(open_checkpoint(small), small, predictors, judgement, "text").as_json()
    assert [row["mean_resident"] for row in told["layers"]] == [[1 / 8, 1 / 4], [1 / 4, 1 / 2]]
    assert [row["largest_resident"] for row in told["layers"]] == [[1 / 4, 1 / 2], [1 / 2, 1]]
    assert told["total"]["mean_resident"] == [3 / 16, 3 / 8]
    assert told["total"]["largest_resident"] == [3 / 8, 3 / 4]


def test_the_tables_hold_what_json_says(small, train):
    words = (
        small,
        "--text",
        small / "text",
        "--steps",
        "3",
        "--ranks",
        "4,0",
        "--sweep",
        "--quiet",
        "--window",
        "2",
    )
    result = json.loads(train(*words, "--json", "--out", small / "a").out)
    shown = train(*words, "--out", small / "b").out
    first, dense = result["layers"]
    assert dense["rank"] is dense["threshold"] is None and dense["bytes"] == 0 == dense["false_negative_rate"]
    assert result["total"] | {"steps": 3} == first | {"threshold": None}
    assert first["bytes"] == 2 * (4 * (WIDTH + NEURONS) + NEURONS)
    assert result["predictor_bytes"] == first["bytes"] + 4 + 8 * 5 and first["steps"] == 3
    assert len(first["mean_resident"]) == 5 and first["mean_resident"][0] == first["predicted"]
    for value in (
        first["active"],
        first["predicted"],
        first["false_negative_rate"],
        first["false_positive_rate"],
    ):
        assert f"{value:.2%}" in shown
    for value in result["perplexity"].values():
        assert f"{value:.4f}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if str(small) not in line)
    assert f"{first['mean_resident'][1]:.1%}" in shown and "a window of 2 tokens keeps" in shown
    assert [round(row["probability"], 6) for row in result["sweep"]] == list(GRID)
    for low, high in pairwise(result["sweep"]):
        assert low["false_negative_rate"] <= high["false_negative_rate"]
        assert low["false_positive_rate"] >= high["false_positive_rate"]
        assert low["mean_resident"] >= high["mean_resident"]
    assert loaded(small, "a").layers[1] is None and same(
        loaded(small, "a").largest_resident[1], np.full(5, NEURONS, np.int32)
    )


SHARES, RESIDENT = NeuronShares(0.1, 0.2, 0.1, 0.1), ResidentShares((0.1, 0.2), (0.2, 0.3))
FULL = ResidentShares((0.1, 1.0), (0.2, 1.0))
LAYER = LayerFigures(1, 2, 0.0, None, SHARES, RESIDENT)
JUDGED = JudgedModel("model", "predictors", "relu", 0.0, 1, 1)


def test_a_perplexity_beyond_all_bounds_is_shown_short_and_is_null_in_json():
    values = judging.Perplexities(2.0, 2.0, 6.594164e22, float("inf"))
    found = Evaluation(JUDGED, "text", 8, 2, (LAYER,), LAYER, values)
    lines = [line.split() for line in str(found).splitlines()]
    assert ["dense", "2.0000"] in lines and ["resident", "∞"] in lines
    assert any(line[:2] == ["predicted", "6.59e+22"] for line in lines)
    assert found.as_json()["perplexity"] == {
        "dense": 2.0,
        "exact": 2.0,
        "predicted": 6.594164e22,
        "resident": None,
    }
    assert found._repr_html_() == f"<pre>{found}</pre>"


def test_the_table_of_a_large_model_fits_80_columns():
    layers = [LAYER._replace(rank=4096, bytes=2_500_000, threshold=-7.25, resident=FULL) for _ in range(100)]
    total = LAYER._replace(rank=409_600, bytes=250_000_000, threshold=None, resident=FULL)
    values = judging.Perplexities(2.0, 2.0, 2.0, 2.0)
    shown = str(Evaluation(JUDGED, "text", 8, 2, tuple(layers), total, values)).splitlines()
    assert max(map(len, shown)) <= 80 and "MB" in "".join(shown) and "kB" not in "".join(shown)
    assert [line.split()[2] for line in shown if line.split()[:1] in (["99"], ["all"])] == ["2.5", "250"]


def test_one_threshold_for_all_layers_is_the_logit_of_the_probability(small, train):
    assert train(small, "--text", small / "text", *QUICK, "--threshold", "0.7").code == 0
    expected = float(np.float32(np.log(0.7 / 0.3)))
    assert [one.threshold for one in loaded(small).layers] == [expected] * LAYERS


# --- the figure


def alike(drawn, due):
    """Whether two percentages differ by no more than the roundings of eight operations in float64."""
    return abs(drawn - due) <= 8 * 2.0**-53 * 100


def test_a_figure_shows_what_json_says(small, train, monkeypatch):
    pytest.importorskip("matplotlib")
    figures, new_plot = [], command.new_plot
    monkeypatch.setattr(command, "new_plot", lambda *size: figures.append(new_plot(*size)) or figures[-1])
    words = ("--steps", "3", "--ranks", "4,0", "--quiet", "--json", "--plot", small / "fig.svg")
    told = json.loads(train(small, "--text", small / "text", *words).out)
    (row,) = (row for row in told["layers"] if row["rank"])  # a dense layer has no bar and no line
    bars, windows = figures[0].axes
    negatives, found, positives = (container[0] for container in bars.containers)
    assert alike(negatives.get_height(), 100 * row["active"] * row["false_negative_rate"])
    assert alike(negatives.get_height() + found.get_height(), 100 * row["active"])
    assert alike(found.get_height() + positives.get_height(), 100 * row["predicted"])
    assert alike(found.get_y(), negatives.get_height())
    assert alike(positives.get_y(), negatives.get_height() + found.get_height())
    (line,) = windows.lines
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(line.get_ydata()) == [100 * share for share in row["mean_resident"]]
    drawn = (small / "fig.svg").read_text()
    for word in ("false negatives", "active and predicted", "false positives", "layer 0", "window, tokens"):
        assert f">{word}<" in drawn


def test_lines_of_six_layers_are_drawn_from_the_first_to_the_last():
    matplotlib = pytest.importorskip("matplotlib.figure")
    figure = matplotlib.Figure()
    one = judging.Perplexities(1.0, 1.0, 1.0, 1.0)
    draw(figure, Evaluation(JUDGED, "text", 8, 2, (LAYER,) * 24, LAYER, one))
    _, windows = figure.axes
    assert [line.get_label() for line in windows.lines] == [f"layer {n}" for n in (0, 4, 9, 13, 18, 23)]


def test_a_figure_that_cannot_be_written_does_not_cost_the_result(small, train, monkeypatch):
    pytest.importorskip("matplotlib")

    def full(path, figure):
        raise ImageError(f"{path}: needs 9 bytes, but 0 are free; make room")

    monkeypatch.setattr(command, "save_plot", full)
    told = train(small, "--text", small / "text", *QUICK, "--json", "--plot", small / "fig.svg")
    assert told.code == 2 and "0 are free" in told.err
    assert json.loads(told.out)["predictors"] == str(small / "predictors.safetensors")
    assert len(loaded(small).layers) == LAYERS
