"""`flashref train`: what is recorded, fitted, kept, judged and refused, for every family."""

import importlib.util
import json
import signal
import subprocess
import sys
from collections import namedtuple
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("optax", reason="fitting predictors needs the extra `train`")

import jax
from random_models import CONTEXT, FAMILIES, LAYERS, NEURONS, WIDTH, open_packed, write_family
from safetensors.numpy import load_file, save_file

from flashref import same
from flashref.cli import main, train_plot, train_result
from flashref.cli.train import GRID
from flashref.ffn import active_neurons, dense_ffn, sparse_ffn
from flashref.predictor import predict_active
from flashref.storage.image import fingerprint
from flashref.training import fitting, judging, layers, plan, session
from flashref.transformer.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.transformer.generate import perplexity
from flashref.transformer.model import load_model, one_at_a_time
from flashref.transformer.predictors import Errors, Predictors, load_predictors
from flashref.transformer.session import measure_perplexities
from flashref.types import DomainError, Predictor

pytestmark = pytest.mark.xdist_group("training")

Outcome = namedtuple("Outcome", "code out err")
LINES = [
    f"{i} and {i * i % 97} are in line {i * 7 % 31}, said the queen, not king {i % 3}.\n" for i in range(60)
]
TEXT = "".join(LINES)[: 40 * CONTEXT]
QUICK = ("--steps", "3", "--ranks", "4", "--quiet")


@pytest.fixture(autouse=True, scope="module")
def clean():
    """Programs compiled in a hurry, for they run once, and none of them after these tests."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def train(capsys, monkeypatch):
    """`flashref train` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def train(*words):
        capsys.readouterr()
        try:
            code = main(["train", *map(str, words)])
        except SystemExit as end:
            code = end.code
        return Outcome(code, *capsys.readouterr())

    return train


def hurry(change):
    """Small batches and few steps; change(object, attribute, value)."""
    fits = (6, 256, 3e-3, 0, 3, 10)
    change(fitting.Fit.__new__, "__defaults__", fits)
    change(plan.Plan.__new__, "__defaults__", (None, 0.06, 0.048, None, 5, fitting.Fit(2), fitting.Fit()))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A directory with a text and a small OPT; batches are small, too."""
    hurry(monkeypatch.setattr)
    write_family(tmp_path, "opt")
    (tmp_path / "text").write_text(TEXT)
    return tmp_path


def loaded(folder, name="predictors.safetensors"):
    checkpoint = open_checkpoint(folder)
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text)
    return load_predictors(folder / name, LAYERS, NEURONS, WIDTH, identity)


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


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])  # all others are
def test_every_family_is_fitted_and_judged_again_to_the_same_figures(small, train, family):
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
    record, fit_low_rank = layers.record, fitting.fit_low_rank

    def recording(checkpoint, texts):
        recorded.append(texts)
        return record(checkpoint, texts)

    def fitting_on(ffn, inputs, held_out, *rest):
        fitted_on.append(inputs)
        chosen_on.append(held_out)
        return fit_low_rank(ffn, inputs, held_out, *rest)

    def judging_on(checkpoint, predictors, chunks, *rest):
        judged.append(chunks)
        raise KeyboardInterrupt  # all is seen

    monkeypatch.setattr(session, "record", recording)
    monkeypatch.setattr(session, "fit_low_rank", fitting_on)
    monkeypatch.setattr(judging, "judge", judging_on)
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


# --- judging


def slow_sets(checkpoint, predictors, chunk):
    """Along the dense model: (active, predicted) sets of ids, [layer][token]."""
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    model, seen = load_model(checkpoint.config, partial(load_tensor, checkpoint)), [[] for _ in ffns]

    def dense(layer, x):
        seen[layer].append(
            (set(active_neurons(x, ffns[layer]).tolist()), set(predict_active(x, predictors[layer]).tolist()))
        )
        return dense_ffn(x, ffns[layer])

    forward = one_at_a_time(model, dense)
    for token in chunk:
        forward(token)
    return seen


def slow_perplexity(checkpoint, ids, length, chosen):
    """Of the NumPy model whose FFN sums chosen(layer, x, history) only; history: of this chunk and layer."""
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]
    model = load_model(checkpoint.config, partial(load_tensor, checkpoint))

    def fresh():
        history = [[] for _ in ffns]

        def feed_forward(layer, x):
            return sparse_ffn(x, ffns[layer], sorted(chosen(layer, x, history[layer])))

        return one_at_a_time(model, feed_forward)

    return perplexity(ids, length, fresh).perplexity


@pytest.mark.parametrize("dense_layer", [None, 1])
def test_errors_windows_and_all_four_perplexities_are_those_of_plain_sets(tmp_path, dense_layer):
    checkpoint = open_checkpoint(write_family(tmp_path, "llama"))
    random = np.random.default_rng(5)
    predictors = [
        Predictor(
            random.normal(size=(3 + layer, WIDTH)).astype(np.float16),
            random.normal(size=(NEURONS, 3 + layer)).astype(np.float16),
            random.normal(size=NEURONS).astype(np.float16),
            1.5,
        )
        for layer in range(LAYERS)
    ]
    given = [None if layer == dense_layer else one for layer, one in enumerate(predictors)]
    chunks = random.integers(0, 256, (3, 12)).astype(np.int32)
    k, advanced = 3, []
    found = judging.judge(checkpoint, given, chunks, k, 4, advanced.append)
    assert advanced == [1, 2] and found.tokens == 36

    everything = set(range(NEURONS))
    ffns = [load_ffn(checkpoint, layer) for layer in range(LAYERS)]

    def p(layer, x):
        return everything if given[layer] is None else set(predict_active(x, given[layer]).tolist())

    def windowed(layer, x, history):
        history.append(p(layer, x))
        return set().union(*history[-k:])

    ways = {
        "dense": lambda layer, x, history: everything,
        "exact": lambda layer, x, history: set(active_neurons(x, ffns[layer]).tolist()),
        "predicted": lambda layer, x, history: p(layer, x),
        "resident": windowed,
    }
    for name, chosen in ways.items():
        expected = slow_perplexity(checkpoint, chunks.reshape(-1).tolist(), 12, chosen)
        assert getattr(found.perplexities, name) == pytest.approx(expected, rel=1e-4), name
    assert found.perplexities.exact == found.perplexities.dense
    assert len({round(value, 3) for value in found.perplexities}) == 3  # the others differ

    seen = [slow_sets(checkpoint, predictors, chunk.tolist()) for chunk in chunks]
    for layer, verdict in enumerate(found.verdicts):
        pairs = [pair for chunk in seen for pair in chunk[layer]]
        active = sum(len(a) for a, _ in pairs)
        if layer == dense_layer:
            assert verdict == (Errors(active, 36 * NEURONS - active, 0, 36 * NEURONS - active), None)
            continue
        missed, extra = sum(len(a - s) for a, s in pairs), sum(len(s - a) for a, s in pairs)
        assert verdict.errors == (active, 36 * NEURONS - active, missed, extra)
        sizes = [
            len(set().union(*(s for _, s in chunk[layer][max(0, t - k + 1) : t + 1])))
            for chunk in seen
            for t in range(12)
        ]
        assert (verdict.residency.kept[k - 1], verdict.residency.largest[k - 1]) == (sum(sizes), max(sizes))
        assert len(verdict.residency.kept) == 4 and verdict.residency.tokens == 36
    total = judging.total_errors(given, found.verdicts)
    assert total.active == sum(v.errors.active for i, v in enumerate(found.verdicts) if i != dense_layer)

    (one,) = judging.sweep(checkpoint, given, chunks, k, [1.5])
    kept = [v.residency.kept[k - 1] for v in found.verdicts if v.residency]
    assert one.errors == total and one.threshold == 1.5
    assert one.resident_share == pytest.approx(sum(kept) / len(kept) / 36 / NEURONS)


def test_the_perplexities_are_those_of_a_run_from_flash_with_memory_for_all(small, train):
    """`flashref run` measures them token by token in NumPy; with every row in memory they are the same."""
    text = TEXT[: 2 * CONTEXT].encode()
    folder = small / "model"
    write_family(folder, "opt", "F16")
    assert train(folder, "--text", small / "text", *QUICK, "--threshold", "0.6").code == 0
    predictors = load_predictors(folder / "predictors.safetensors", LAYERS, NEURONS, WIDTH)
    opened = open_packed(folder, capacities=(NEURONS, NEURONS), window=3)
    flash = measure_perplexities(list(text), opened.decoder, opened.ffns, lambda *_: None)
    chunks = np.frombuffer(text, np.uint8).astype(np.int32).reshape(2, CONTEXT)
    found = judging.judge(open_checkpoint(folder), predictors.layers, chunks, 3, 5).perplexities
    assert (found.dense, found.resident) == pytest.approx((flash.dense, flash.flash), rel=1e-4)
    assert found.dense != found.resident != found.predicted


# --- what is kept


def stopping(monkeypatch, after):
    """Interrupts before the fit after so many; gives the list of ranks that were fitted."""
    fit_low_rank, ranks = fitting.fit_low_rank, []

    def fit(ffn, inputs, held_out, rank, *rest):
        if len(ranks) == after:
            raise KeyboardInterrupt
        ranks.append(rank)
        return fit_low_rank(ffn, inputs, held_out, rank, *rest)

    monkeypatch.setattr(session, "fit_low_rank", fit)
    return ranks


@pytest.mark.parametrize("sizes", [("--ranks", "4,5"), ("--share", "0.4", "--false-negatives", "0.9")])
def test_an_interrupted_fit_goes_on_at_the_next_layer_to_the_same_bits(small, train, monkeypatch, sizes):
    words = (small, "--text", small / "text", "--steps", "4", *sizes, "--out")
    with monkeypatch.context() as patched:
        in_one_go = stopping(patched, None)
        assert train(*words, small / "whole").code == 0
    each = 1 if "--ranks" in sizes else len(in_one_go) // LAYERS - 1  # fits that are kept together
    pieces, outcome = [], Outcome(130, "", "")
    while outcome.code == 130 and len(pieces) < 9:
        with monkeypatch.context() as patched:
            pieces.append(stopping(patched, each))
            outcome = train(*words, small / "parts")
        if outcome.code == 130:
            assert not (small / "parts").exists()
            assert f"kept in {small / '.parts.partial'}; the same command goes on" in outcome.err
    assert outcome.code == 0 and len(pieces) > 1
    assert [rank for piece in pieces for rank in piece] == in_one_go  # none was fitted twice, or never
    assert (small / "parts").read_bytes() == (small / "whole").read_bytes()
    assert not [path for path in small.iterdir() if path.name.startswith(".")]


def test_what_was_begun_with_something_else_is_refused_and_stays(small, train, monkeypatch):
    with monkeypatch.context() as patched:
        stopping(patched, 1)
        assert train(small, "--text", small / "text", *QUICK).code == 130
    folder = small / ".predictors.safetensors.partial"
    before = sorted(path.name for path in folder.iterdir())
    assert before == ["layer-0.safetensors", "made_of.json"]
    (small / "other").write_text(TEXT[::-1])
    for words, what in (
        (("--text", small / "other"), "text"),
        (("--ranks", "5"), "ranks"),
        (("--steps", "4"), "fit"),
        (("--tokens", "1300"), "tokens"),
        (("--activation", "fatrelu:0.1"), "activation"),
    ):
        outcome = train(small, "--text", small / "text", *QUICK, *words)
        assert outcome.code == 2 and f"was begun with another model, text or options ({what})" in outcome.err
        assert "remove the folder" in outcome.err and sorted(path.name for path in folder.iterdir()) == before
    (folder / "layer-0.safetensors").write_bytes(b"damaged")
    outcome = train(small, "--text", small / "text", *QUICK)
    assert outcome.code == 2 and f"or remove {folder} and begin again" in outcome.err
    (folder / "made_of.json").unlink()
    assert "was begun with another" in train(small, "--text", small / "text", *QUICK).err


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
import test_train_command
from flashref.cli import main, train_plot
from flashref.training import session
test_train_command.hurry(setattr)
keep = session.keep
def keep_and_die(work, name, arrays):
    keep(work, name, arrays)
    os.kill(os.getpid(), signal.SIGKILL)
session.keep = keep_and_die
main(sys.argv[1:])
"""
CHECKOUT = Path(__file__).parents[1]


def test_a_killed_fit_goes_on_too(small, train, monkeypatch):
    words = [str(word) for word in (small, "--text", small / "text", *QUICK)]
    killed = subprocess.run([sys.executable, "-c", KILLED, "train", *words], cwd=CHECKOUT)
    assert killed.returncode == -signal.SIGKILL and not (small / "predictors.safetensors").exists()
    folder = small / ".predictors.safetensors.partial"
    assert [path.name for path in sorted(folder.iterdir())] == ["layer-0.safetensors", "made_of.json"]
    ranks = stopping(monkeypatch, None)
    assert train(*words).code == 0 and ranks == [4] and not folder.exists()
    assert [len(one.a) for one in loaded(small).layers] == [4, 4]


# --- refusals, each one sentence, before any work


REFUSALS = {
    "no model": (("--judge-not",), "unknown words"),
    "no text": (("MODEL",), "to fit takes --text FILE; or judge what is there with --judge"),
    "nothing": ((), "to fit takes MODEL"),
    "no such model": (("MODEL/x", "--text", "TEXT"), "there is no such directory"),
    "empty": (("MODEL", "--text", "MODEL/empty"), "is empty"),
    "not UTF-8": (("MODEL", "--text", "MODEL/latin"), "is not UTF-8 at byte 1"),
    "short": (("MODEL", "--text", "MODEL/short"), "a text of 191 tokens is too short"),
    "ranks": (
        ("MODEL", "--text", "TEXT", "--ranks", "4,4,4"),
        "3 ranks were given, but the model has 2 layers",
    ),
    "rank": (("MODEL", "--text", "TEXT", "--ranks", "17"), "ranks must lie in 0 … 16 in a model of width 16"),
    "no rank": (("MODEL", "--text", "TEXT", "--ranks", "0"), "one must be above 0"),
    "negative": (("MODEL", "--text", "TEXT", "--ranks=-1"), "ranks must be at least 0, not -1"),
    "share": (("MODEL", "--text", "TEXT", "--share", "0.001"), "the smallest share that does is 0.0"),
    "threshold": (("MODEL", "--text", "TEXT", "--threshold", "1"), "no probability between 0 and 1"),
    "out": (("MODEL", "--text", "TEXT", "--out", "TEXT"), "exists, and files are never overwritten"),
    "folder": (("MODEL", "--text", "TEXT", "--out", "MODEL/no/x"), "is no folder that can be written"),
    "fit and judge": (("MODEL", "--judge", "--ranks", "3"), "--ranks is for fitting"),
    "predictors": (("MODEL", "--text", "TEXT", "--predictors", "TEXT"), "say --judge too"),
    "none to judge": (("MODEL", "--judge", "--text", "TEXT"), "predictors.safetensors: cannot be read"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_one_sentence_and_leaves_nothing(small, train, case):
    (small / "empty").write_bytes(b"")
    (small / "latin").write_bytes(b"K\xf6nig")
    (small / "short").write_text("x" * 191)
    before = sorted(small.rglob("*"))
    words, sentence = REFUSALS[case]
    given = [word.replace("MODEL", str(small)).replace("TEXT", str(small / "text")) for word in words]
    outcome = train(*given)
    assert outcome.code == 2 and outcome.out == ""
    assert sentence in outcome.err and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    assert sorted(small.rglob("*")) == before


def test_the_smallest_share_that_is_named_is_the_smallest(small):
    checkpoint = open_checkpoint(small)
    with pytest.raises(DomainError) as caught:
        plan.check_plan(checkpoint, plan.Plan(share=0.001))
    smallest = float(str(caught.value).split("the smallest share that does is ")[1])
    whole = sum(array.nbytes for array in load_file(small / "model.safetensors").values())
    of_layer = 2 * (WIDTH + NEURONS) + 2 * NEURONS + 4 + 8 * 5  # rank 1, bias, threshold, statistics
    assert smallest == pytest.approx(LAYERS * of_layer / whole, abs=0.0001)
    assert plan.total_rank(checkpoint, plan.Plan(share=smallest)) == LAYERS
    with pytest.raises(DomainError, match="the smallest share"):
        plan.check_plan(checkpoint, plan.Plan(share=smallest - 0.0001))


def test_ranks_that_a_share_pays_for_and_that_a_layer_can_have(small):
    checkpoint = open_checkpoint(small)
    whole = sum(array.nbytes for array in load_file(small / "model.safetensors").values())
    of_layers = LAYERS * (2 * NEURONS + 4 + 8 * 5)  # bias, threshold, statistics
    for rank in (3, 7, 31):
        pays = of_layers + rank * 2 * (WIDTH + NEURONS)
        for spare, found in ((0.5, rank), (-0.5, rank - 1)):
            assert plan.total_rank(checkpoint, plan.Plan(share=(pays + spare) / whole)) == found
    for ranks in ((0, 16), (16, 0), (1, 16)):
        plan.check_plan(checkpoint, plan.Plan(ranks=ranks))
    for ranks in ((0, 0), (17, 1), (-1, 1)):
        with pytest.raises(DomainError, match="ranks must lie in 0 … 16"):
            plan.check_plan(checkpoint, plan.Plan(ranks=ranks))


def test_residency_is_shown_as_shares_of_a_layer_and_their_mean(small):
    maps = Predictor(np.zeros((2, WIDTH), np.float16), np.zeros((NEURONS, 2), np.float16), None, 0.0)
    none = np.zeros((LAYERS, 2), np.int64)
    predictors = Predictors((maps, maps), none.astype(np.float32), none, None)
    found = [(np.array([48, 96]), np.array([12, 24])), (np.array([96, 192]), np.array([24, 48]))]
    verdicts = tuple(
        judging.Verdict(Errors(1, 1, 0, 0), judging.Residency(8, kept, largest, kept))
        for kept, largest in found
    )
    judgement = judging.Judgement(8, verdicts, judging.Perplexities(1.0, 1.0, 1.0, 1.0))
    told = train_result.result(
        open_checkpoint(small), small, predictors, judgement, 2, None, None, "text", "text"
    )
    assert [row["mean_resident"] for row in told.layers] == [[1 / 8, 1 / 4], [1 / 4, 1 / 2]]
    assert [row["largest_resident"] for row in told.layers] == [[1 / 4, 1 / 2], [1 / 2, 1]]
    assert told.total["mean_resident"] == [3 / 16, 3 / 8]
    assert told.total["largest_resident"] == [3 / 8, 3 / 4]


def test_an_existing_file_is_refused_before_any_work(small, train):
    (small / "predictors.safetensors").write_bytes(b"somebody's")
    outcome = train(small, "--text", small / "absent")
    assert outcome.code == 2 and "exists, and files are never overwritten" in outcome.err
    assert (small / "predictors.safetensors").read_bytes() == b"somebody's"


def test_a_silu_model_needs_another_activation(small, train):
    folder = write_family(small / "silu", "llama", activation_name="silu")
    outcome = train(folder, "--text", small / "text")
    assert outcome.code == 2 and "every neuron of a silu model is active" in outcome.err
    assert "--activation relu or fatrelu:T" in outcome.err


def test_without_the_extra_the_sentence_says_what_to_install(small, train, monkeypatch):
    found = importlib.util.find_spec

    def without(name, *of):
        return None if name == "optax" else found(name, *of)

    monkeypatch.setattr("importlib.util.find_spec", without)
    outcome = train(small, "--text", small / "text")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "pip install 'flashref[train]'" in outcome.err


def test_other_commands_need_neither_jax_nor_optax():
    seen = "import sys; from flashref.cli import train; print({'jax', 'optax'} & set(sys.modules))"
    outcome = subprocess.run([sys.executable, "-c", seen], cwd=CHECKOUT, capture_output=True, text=True)
    assert outcome.stdout == "set()\n"


def test_predictors_of_other_weights_or_another_activation_are_not_judged(small, train):
    assert train(small, "--text", small / "text", *QUICK).code == 0
    other = write_family(small / "other", "opt", seed=1)
    outcome = train(
        other, "--judge", "--predictors", small / "predictors.safetensors", "--text", small / "text"
    )
    assert outcome.code == 2 and "was fitted to another model, or to other weights" in outcome.err
    outcome = train(small, "--judge", "--activation", "fatrelu:0.5", "--text", small / "text")
    assert outcome.code == 2 and "was fitted to relu, tau 0; leave --activation out" in outcome.err


# --- what is shown


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
    assert len(first["mean_resident"]) == 5 and first["mean_resident"][0] == pytest.approx(first["predicted"])
    for value in (
        first["active"],
        first["predicted"],
        first["false_negative_rate"],
        first["false_positive_rate"],
    ):
        assert f"{value:.2%}" in shown
    for value in result["perplexity"].values():
        assert f"{value:.4f}" in shown
    assert f"{first['mean_resident'][1]:.1%}" in shown and "resident, 2" in shown
    assert [round(row["probability"], 6) for row in result["sweep"]] == list(GRID)
    for low, high in pairwise(result["sweep"]):
        assert low["false_negative_rate"] <= high["false_negative_rate"]
        assert low["false_positive_rate"] >= high["false_positive_rate"]
        assert low["mean_resident"] >= high["mean_resident"]
    assert loaded(small, "a").layers[1] is None and same(
        loaded(small, "a").largest_resident[1], np.full(5, NEURONS, np.int32)
    )


def test_one_threshold_for_all_layers_is_the_logit_of_the_probability(small, train):
    assert train(small, "--text", small / "text", *QUICK, "--threshold", "0.7").code == 0
    expected = float(np.float32(np.log(0.7 / 0.3)))
    assert [one.threshold for one in loaded(small).layers] == pytest.approx([expected] * LAYERS, rel=2**-23)


def test_tokens_for_ten_chunks_are_the_fewest(small, train):
    ended = train(small, "--text", small / "text", *QUICK, "--tokens", str(10 * CONTEXT - 1))
    assert ended.code == 2 and f"fitting takes ten chunks of {CONTEXT}, so {10 * CONTEXT}" in ended.err
    assert train(small, "--text", small / "text", *QUICK, "--tokens", str(10 * CONTEXT)).code == 0


def test_judging_without_a_text_says_how_to_give_one(small, train):
    ended = train(small, "--judge")
    told = f"flashref train: {small}: has no held_out.txt to judge on; give a text with --text FILE\n"
    assert (ended.code, ended.err) == (2, told)


def test_a_model_that_is_not_finite_leaves_no_work(small, train):
    tensors = load_file(small / "model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.1" in name and "fc1.weight" in name)
    tensors[name][0, 0] = np.nan
    save_file(tensors, small / "model.safetensors")
    ended = train(small, "--text", small / "text", *QUICK)
    assert ended.code == 2 and name in ended.err and "get it again" in ended.err
    assert not list(small.glob(".predictors*"))


# --- the figure


def test_a_figure_shows_what_json_says(small, train, monkeypatch):
    pytest.importorskip("matplotlib")
    figures, new_plot = [], train_plot.new_plot
    monkeypatch.setattr(train_plot, "new_plot", lambda *size: figures.append(new_plot(*size)) or figures[-1])
    words = ("--steps", "3", "--ranks", "4,0", "--quiet", "--json", "--plot", small / "fig.svg")
    told = json.loads(train(small, "--text", small / "text", *words).out)
    (row,) = (row for row in told["layers"] if row["rank"])  # a dense layer has no bar and no line
    bars, windows = figures[0].axes
    missed, found, extra = (container[0] for container in bars.containers)
    assert missed.get_height() == pytest.approx(100 * row["active"] * row["false_negative_rate"])
    assert missed.get_height() + found.get_height() == pytest.approx(100 * row["active"])
    assert found.get_height() + extra.get_height() == pytest.approx(100 * row["predicted"])
    assert (found.get_y(), extra.get_y()) == pytest.approx(
        (missed.get_height(), missed.get_height() + found.get_height())
    )
    (line,) = windows.lines
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(line.get_ydata()) == pytest.approx([100 * share for share in row["mean_resident"]])
    drawn = (small / "fig.svg").read_text()
    for word in ("missed", "active and predicted", "for nothing", "layer 0", "window, tokens"):
        assert f">{word}<" in drawn


def test_lines_of_six_layers_are_drawn_from_the_first_to_the_last():
    pytest.importorskip("matplotlib")
    rows = [{"rank": 1, "mean_resident": [number]} for number in range(24)]
    axes = train_plot.new_plot(100, 100).subplots()
    train_plot._draw_windows(axes, SimpleNamespace(layers=rows))
    assert [line.get_label() for line in axes.lines] == [f"layer {n}" for n in (0, 4, 9, 13, 18, 23)]


def test_what_would_keep_a_figure_from_being_written_is_said_before_the_work(small, train, monkeypatch):
    monkeypatch.setattr(session, "fit_predictors", lambda *_: pytest.fail("fitted before it was refused"))
    (small / "here.png").touch()
    for name, sentence in (("a.jpg", ".png, .svg, .pdf"), ("here.png", "exists"), ("no/a.png", "no folder")):
        ended = train(small, "--text", small / "text", *QUICK, "--plot", small / name)
        assert ended.code == 2 and sentence in ended.err and ended.err.count("\n") == 1
