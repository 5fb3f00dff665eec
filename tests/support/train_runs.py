"""`flashref train` in this process, hurried, on a small model and a text."""

from pathlib import Path

import pytest

# Each of the test files imports this one before anything that needs it.
pytest.importorskip("optax", reason="fitting predictors needs the extra `train`")

from command_line import called
from random_models import CONTEXT, LAYERS, NEURONS, WIDTH, write_family

from flashref.models.checkpoint import open_checkpoint
from flashref.models.predictors import load_predictors
from flashref.storage.image import fingerprint
from flashref.training import plan

LINES = [
    f"{i} and {i * i % 97} are in line {i * 7 % 31}, said the queen, not king {i % 3}.\n" for i in range(60)
]
TEXT = "".join(LINES)[: 40 * CONTEXT]
QUICK = ("--steps", "3", "--ranks", "4", "--quiet")
CHECKOUT = Path(__file__).parents[2]


# A test file takes the fixtures that it needs as its own: train = train_runs.train


@pytest.fixture
def train(capsys, monkeypatch):
    """`flashref train` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def train(*words):
        capsys.readouterr()
        return called(capsys, "train", *words)

    return train


def hurry(change):
    """Small batches and few steps; change(object, attribute, value)."""
    fits = (6, 256, 3e-3, 0, 3, 10)
    change(plan.FitSchedule.__new__, "__defaults__", fits)
    change(
        plan.FitPlan.__new__,
        "__defaults__",
        (None, 0.06, 0.048, None, 5, plan.FitSchedule(2), plan.FitSchedule(), None),
    )


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
