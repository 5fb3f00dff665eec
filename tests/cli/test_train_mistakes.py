"""`flashref train` refuses in one sentence, before any work, and leaves nothing."""

import importlib.util
import subprocess
import sys

import hurried_jax
import numpy as np
import pytest
import train_runs
from random_models import CONTEXT, write_family
from safetensors.numpy import load_file, save_file
from train_runs import CHECKOUT, QUICK

from flashref.training import fitting

hurried = hurried_jax.hurried
train = train_runs.train
small = train_runs.small


REFUSALS = {
    "no model": (("--judge-not",), "unknown argument"),
    "no text": (("MODEL",), "fitting needs --text FILE; to judge existing predictors, add --judge"),
    "nothing": ((), "fitting needs MODEL"),
    "no such model": (("MODEL/x", "--text", "TEXT"), "there is no such folder"),
    "empty": (("MODEL", "--text", "MODEL/empty"), "is empty"),
    "not UTF-8": (("MODEL", "--text", "MODEL/latin"), "is not UTF-8 at byte 1"),
    "short": (("MODEL", "--text", "MODEL/short"), "a text of 191 tokens is too short"),
    "ranks": (
        ("MODEL", "--text", "TEXT", "--ranks", "4,4,4"),
        "3 ranks were given, but the model has 2 layers",
    ),
    "rank": (
        ("MODEL", "--text", "TEXT", "--ranks", "17"),
        "the ranks must be from 0 to 16 in a model of width 16",
    ),
    "no rank": (("MODEL", "--text", "TEXT", "--ranks", "0"), "at least one must be above 0"),
    "negative": (("MODEL", "--text", "TEXT", "--ranks=-1"), "a rank must be at least 0, not -1"),
    "share": (("MODEL", "--text", "TEXT", "--share", "0.001"), "give at least --share 0.0"),
    "threshold": (("MODEL", "--text", "TEXT", "--threshold", "1"), "not a probability between 0 and 1"),
    "out": (("MODEL", "--text", "TEXT", "--out", "TEXT"), "exists, and files are never overwritten"),
    "folder": (("MODEL", "--text", "TEXT", "--out", "MODEL/no/x"), " that can be written; choose another"),
    "fit and judge": (("MODEL", "--judge", "--ranks", "3"), "--ranks is an option for fitting"),
    "predictors": (("MODEL", "--text", "TEXT", "--predictors", "TEXT"), "add --judge"),
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


def test_an_existing_file_is_refused_before_any_work(small, train):
    (small / "predictors.safetensors").write_bytes(b"somebody's")
    outcome = train(small, "--text", small / "absent")
    assert outcome.code == 2 and "exists, and files are never overwritten" in outcome.err
    assert (small / "predictors.safetensors").read_bytes() == b"somebody's"


def test_a_silu_model_needs_another_activation(small, train):
    folder = write_family(small / "silu", "llama", activation_name="silu")
    outcome = train(folder, "--text", small / "text")
    assert outcome.code == 2 and "every neuron of a silu model is active" in outcome.err
    assert "--activation relu or --activation fatrelu:T" in outcome.err


def test_without_the_extra_the_sentence_says_what_to_install(small, train, monkeypatch):
    found = importlib.util.find_spec

    def without(name, *of):
        return None if name == "optax" else found(name, *of)

    monkeypatch.setattr("importlib.util.find_spec", without)
    outcome = train(small, "--text", small / "text")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "install flashref with its `train` extra" in outcome.err


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
    assert outcome.code == 2 and "were fitted to the activation relu; leave --activation out" in outcome.err


@pytest.mark.ci
def test_tokens_for_ten_chunks_are_the_fewest(small, train):
    ended = train(small, "--text", small / "text", *QUICK, "--tokens", str(10 * CONTEXT - 1))
    assert ended.code == 2 and f"give at least --tokens {10 * CONTEXT}" in ended.err
    assert train(small, "--text", small / "text", *QUICK, "--tokens", str(10 * CONTEXT)).code == 0


def test_judging_without_a_text_says_how_to_give_one(small, train):
    ended = train(small, "--judge")
    told = f"flashref train: {small} has no held_out.txt to judge on; give a text with --text FILE\n"
    assert (ended.code, ended.err) == (2, told)


def test_a_model_that_is_not_finite_leaves_no_work(small, train):
    tensors = load_file(small / "model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.1" in name and "fc1.weight" in name)
    tensors[name][0, 0] = np.nan
    save_file(tensors, small / "model.safetensors")
    ended = train(small, "--text", small / "text", *QUICK)
    assert ended.code == 2 and name in ended.err and "get it again" in ended.err
    assert not list(small.glob(".predictors*"))


def test_what_would_keep_a_figure_from_being_written_is_said_before_the_work(small, train, monkeypatch):
    monkeypatch.setattr(fitting, "fit_predictors", lambda *_: pytest.fail("fitted before it was refused"))
    (small / "here.png").touch()
    names = (("a.jpg", ".png, .svg, .pdf"), ("here.png", "exists"), ("no/a.png", "no folder"))
    for name, sentence in (*names, ("one.png", "the predictors go into this file")):
        out = ("--out", small / "one.png")
        ended = train(small, "--text", small / "text", *QUICK, *out, "--plot", small / name)
        assert ended.code == 2 and sentence in ended.err and ended.err.count("\n") == 1
