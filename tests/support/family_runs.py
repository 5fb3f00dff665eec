"""`flashref run` on small random models of any family: its fixtures, and predictors to run with."""

import json
from functools import partial

import numpy as np
import pytest
from command_line import called, sentence_of
from random_models import LAYERS, write_family

from flashref.models import memory, prepared
from flashref.models.checkpoint import load_ffn, open_checkpoint
from flashref.models.origin import Origin, Source
from flashref.models.predictors import Predictors, save_predictors
from flashref.simulate import runs
from flashref.simulate.methods import METHODS, Method
from flashref.storage.container import read_container
from flashref.types import Predictor

TEXT = b"And the earth was without form, and void; and darkness was upon the face of the deep"
PYTHON_BYTES = 30_000_000
SCALED = tuple(Method(name, 1.0, 1.0, 1.0, 1, 0.0, 1.0, None) for name in METHODS)
SOURCE = Source("0" * 64, ((0, 1),))
sentence = partial(sentence_of, "run")


# A test file takes the fixtures that it needs as its own: run = family_runs.run


@pytest.fixture
def run(capsys, monkeypatch):
    """`flashref run` in this process: exit code, stdout, stderr. OPT 6.7B's table is another test's."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(runs, "scale_to_opt_6_7b", lambda *_: SCALED)  # it takes most of the time
    # What this process has in memory is the other tests' too.
    monkeypatch.setattr(prepared, "resident_bytes", lambda: PYTHON_BYTES)
    monkeypatch.setattr(memory, "peak_bytes", lambda: PYTHON_BYTES + 1)

    def run(folder, *words):
        few = ["--tokens", "4", "--memory", "0.9", "--perplexity-tokens", "0", "--predictor", "exact"]
        few += [] if any(str(word).startswith("--prompt") for word in words) else ["--prompt", "In the"]
        return called(capsys, "run", "--model", folder, *few, *words)

    return run


@pytest.fixture
def report(run):
    """The object that --json prints, of a run that must hold; but for its times."""

    def report(folder, *words):
        outcome = run(folder, "--json", *words)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        result = json.loads(outcome.out)
        assert result.pop("seconds") > 0 and result.pop("tokens_per_second") > 0
        return result

    return report


@pytest.fixture
def llama(tmp_path):
    return write_family(tmp_path / "model", "llama")


@pytest.fixture
def identity(llama, run, tmp_path):
    """The fingerprint of `llama`, as its image has it."""
    assert run(llama, "--image", tmp_path / "image").code == 0
    return read_container(tmp_path / "image").metadata["fingerprint"]


def write_predictors(folder, path, dense=(), fingerprint=None, activation=("relu", 0.0), rank=6):
    """The up (or gate) projection cut down to a rank; None for dense layers."""
    checkpoint, found = open_checkpoint(folder), []
    for layer in range(LAYERS):
        ffn = load_ffn(checkpoint, layer)
        u, s, v = np.linalg.svd(ffn.up if ffn.gate is None else ffn.gate, full_matrices=False)
        a, b = (s[:rank, None] * v[:rank]).astype(np.float32), u[:, :rank].astype(np.float32)
        found.append(None if layer in dense else Predictor(a, b, None, 0.0))
    origin = fingerprint and Origin(fingerprint, *activation, SOURCE, SOURCE, SOURCE)
    windows = np.arange(1, 6) * np.array([[1], [3]])
    save_predictors(path, Predictors(tuple(found), windows.astype(np.float32), windows, origin))
    return path
