"""`flashref train` interrupted or killed: what is kept, and that it goes on to the same bits."""

import signal
import subprocess
import sys

import hurried_jax
import pytest
import train_runs
from command_line import Outcome
from conftest import sampled
from random_models import LAYERS
from train_runs import CHECKOUT, QUICK, TEXT, loaded

from flashref.training import fitting, low_rank

hurried = hurried_jax.hurried
train = train_runs.train
small = train_runs.small


def stopping(monkeypatch, after):
    """Interrupts before the fit after so many; gives the list of ranks that were fitted."""
    fit_low_rank, ranks = low_rank.fit_low_rank, []

    def fit(ffn, inputs, held_out, rank, *rest):
        if len(ranks) == after:
            raise KeyboardInterrupt
        ranks.append(rank)
        return fit_low_rank(ffn, inputs, held_out, rank, *rest)

    monkeypatch.setattr(fitting, "fit_low_rank", fit)
    return ranks


SIZES = [("--ranks", "4,5"), ("--share", "0.4", "--false-negatives", "0.9")]


@pytest.mark.parametrize("sizes", sampled(SIZES, SIZES[1:]))
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
            assert f"kept in {small / '.parts.partial'}; the same command continues" in outcome.err
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
        (("--text", small / "other"), "with another text"),
        (("--ranks", "5"), "with --ranks 4,4, not 5,5"),
        (("--steps", "4"), "with --steps 3, not 4"),
        (("--steps", "4", "--seed", "1"), "with --seed 0, not 1 and with --steps 3, not 4"),
        (("--tokens", "1300"), "with --tokens 2560, not 1280"),
        (("--activation", "fatrelu:0.1"), "with --activation relu, not fatrelu:0.1"),
    ):
        outcome = train(small, "--text", small / "text", *QUICK, *words)
        assert outcome.code == 2 and f"was begun {what}; repeat that command, or remove" in outcome.err
        assert "remove the folder" in outcome.err and sorted(path.name for path in folder.iterdir()) == before
    outcome = train(small, "--text", small / "text", "--steps", "3", "--share", "0.4", "--quiet")
    assert "was begun without --false-negatives and without --share and without --window" in outcome.err
    assert " and with --ranks 4,4; repeat" in outcome.err
    (folder / "layer-0.safetensors").write_bytes(b"damaged")
    outcome = train(small, "--text", small / "text", *QUICK)
    assert outcome.code == 2 and f"or remove {folder} and start again" in outcome.err
    (folder / "made_of.json").unlink()
    assert "was begun with something else" in train(small, "--text", small / "text", *QUICK).err


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests/support")
import train_runs
from flashref.cli import main
from flashref.training import fitting
train_runs.hurry(setattr)
save_part = fitting.save_part
def save_and_die(partial_dir, name, arrays):
    save_part(partial_dir, name, arrays)
    os.kill(os.getpid(), signal.SIGKILL)
fitting.save_part = save_and_die
main(sys.argv[1:])
"""


@pytest.mark.ci
def test_a_killed_fit_goes_on_too(small, train, monkeypatch):
    words = [str(word) for word in (small, "--text", small / "text", *QUICK)]
    killed = subprocess.run([sys.executable, "-c", KILLED, "train", *words], cwd=CHECKOUT)
    assert killed.returncode == -signal.SIGKILL and not (small / "predictors.safetensors").exists()
    folder = small / ".predictors.safetensors.partial"
    assert [path.name for path in sorted(folder.iterdir())] == ["layer-0.safetensors", "made_of.json"]
    ranks = stopping(monkeypatch, None)
    assert train(*words).code == 0 and ranks == [4] and not folder.exists()
    assert [len(one.a) for one in loaded(small).layers] == [4, 4]


def test_two_at_once_are_one_too_many_and_the_second_leaves_the_first_alone(small, train, monkeypatch):
    fit_low_rank, second = low_rank.fit_low_rank, []

    def fit(*given):  # while the first one fits, another is started
        if not second:
            second.append(None)
            second[0] = train(small, "--text", small / "text", *QUICK)
        return fit_low_rank(*given)

    monkeypatch.setattr(fitting, "fit_low_rank", fit)
    assert train(small, "--text", small / "text", *QUICK).code == 0
    told = "another process is fitting predictors for predictors.safetensors right now; wait until"
    assert second[0].code == 2 and told in second[0].err
    assert len(loaded(small).layers) == LAYERS
