"""`fit` and `judge` with plain arguments: what `flashref train` prints is what they give."""

import json

import hurried_jax
import pytest
import train_runs
from random_models import LAYERS
from train_runs import QUICK

from flashref.models.predictors import FILE_NAME
from flashref.training import FitPlan, FitSchedule, fit, judge
from flashref.types import DomainError

hurried = hurried_jax.hurried
train = train_runs.train
small = train_runs.small


@pytest.mark.ci
def test_the_command_prints_what_the_functions_give(small, train):
    told, seen = [], []
    plan = FitPlan(ranks=(4,), fit=FitSchedule(steps=3), window=2)
    fitted = fit(
        str(small),
        str(small / "text"),
        plan=plan,
        progress=lambda *said: seen.append(said),
        announce=told.append,
    )
    assert told == [
        "recording 2,304 tokens; their hidden states take 0.4 MB of memory, in addition to one layer"
    ]
    assert [layer.rank for layer in fitted.layers] == [4] * LAYERS
    words = (small, "--text", small / "text", *QUICK, "--window", "2")
    of_command = train(*words, "--json", "--out", small / "other")
    assert json.loads(of_command.out) == fitted.as_json() | {"predictors": str(small / "other")}
    assert (small / "other").read_bytes() == (small / FILE_NAME).read_bytes()

    judged = judge(small, small / "text", window=2)
    without_steps = [layer._replace(steps=None) for layer in fitted.layers]
    assert (judged.layers, judged.perplexities) == (tuple(without_steps), fitted.perplexities)
    shown = train(small, "--judge", "--text", small / "text", "--window", "2", "--quiet")
    assert shown.out == f"{judged}\n"

    # The whole of each kind of work is told, and in between no more than there is.
    ends = {what: (done, total) for what, done, total in seen}
    assert all(done == total for done, total in ends.values()) and all(done <= of for _, done, of in seen)
    assert set(ends) == {
        "reading the checkpoint",
        *(f"recording layer {layer + 1} of {LAYERS}" for layer in range(LAYERS)),
        "fitting",
        "judging",
    }
    with pytest.raises(DomainError, match="exists, and files are never overwritten"):
        fit(small, small / "text", plan=plan)
