"""`flashref run` in this process on a small random OPT, and images of that model."""

import json
import os
import shutil
from functools import partial

import pytest
from command_line import called, sentence_of
from random_models import random_weights, write_model

from flashref.models.checkpoint import open_checkpoint
from flashref.storage.image import pack_image

IGNORED_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*cannot be read past the page cache"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]
TEXT = b"And the earth was without form"
sentence = partial(sentence_of, "run")


# A test file takes the fixtures that it needs as its own: run = opt_runs.run


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_weights(rank=6), held_out=TEXT)


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory):
    """An image of the model, and the same rows unbundled; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    checkpoint = open_checkpoint(model)
    for name, bundled in (("image", True), ("image.unbundled", False)):
        layers = dict(enumerate(checkpoint.layers))
        pack_image(folder / name, checkpoint.tensors, layers, checkpoint.config_text, bundled=bundled)
    return folder / "image"


@pytest.fixture
def image(packed, tmp_path):
    """A copy of the image with its rows, to be damaged."""
    for path in packed.parent.iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "image"


@pytest.fixture
def run(capsys, model):
    """`flashref run` in this process: exit code, stdout, stderr. A later --model replaces the first."""

    def run(*words):
        few = ["--tokens", "3", "--memory", "0.95", "--perplexity-tokens", "0"]
        if not any("--prompt-ids" in str(word) for word in words):
            few += ["--prompt", "In the"]
        return called(capsys, "run", "--model", model, *few, *words)

    return run


@pytest.fixture
def report(run):
    """The object that --json prints, of a run that must hold, but for its peak of memory and its times."""

    def report(*words):
        outcome = run("--json", *words)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        return without_peak(outcome.out)

    return report


def without_peak(out):
    """What --json printed, but for what no two runs have alike."""
    result = json.loads(out)
    assert result["memory"].pop("peak") >= 0 and result["memory"].pop("before") > 0
    assert result.pop("seconds") > 0 and result.pop("tokens_per_second") > 0
    return result


def changed_model(folder, change, **config):
    weights = random_weights()
    change(weights.model)
    return write_model(folder, weights, **config)
