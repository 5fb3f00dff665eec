"""`flashref pack` in this process on a small OPT, and what it leaves in a folder."""

import json
import os
from functools import partial

import pytest
from checkpoint_files import random_weights, write_checkpoint
from command_line import called, sentence_of

from flashref.models.checkpoint import open_checkpoint
from flashref.storage.image import pack_image

KEYS = [
    "image",
    "written",
    "fingerprint",
    "size_bytes",
    "block",
    "bundled",
    "fields",
    "bundles",
    "bundle_bytes",
    "stride",
    "ffn_bytes",
    "resident_bytes",
    "padding_bytes",
    "other_bytes",
    "seconds",
    "bytes_per_second",
    "peak_memory_bytes",
]
sentence = partial(sentence_of, "pack")


# A test file takes the fixtures that it needs as its own: run = pack_runs.run


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), random_weights())


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The bytes that are to be written."""
    path = tmp_path_factory.mktemp("whole") / "image"
    checkpoint = open_checkpoint(model)
    pack_image(path, checkpoint.tensors, dict(enumerate(checkpoint.layers)), checkpoint.config_text)
    return path.read_bytes()


@pytest.fixture
def run(capsys, model):
    """`flashref pack` in this process: exit code, stdout, stderr."""

    def run(*words, directory=model):
        return called(capsys, "pack", directory, *words)

    return run


@pytest.fixture
def report(run):
    """The object that --json prints, of a packing that must succeed."""

    def report(*words, **options):
        outcome = run("--json", *words, **options)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        return json.loads(outcome.out)

    return report


def contents(folder):
    return {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes() for path in folder.iterdir()
    }


def failing(monkeypatch, fail, call=5):
    """os.pwrite, which calls `fail` instead the fifth time."""
    real, calls = os.pwrite, []

    def pwrite(*args):
        calls.append(args)
        return fail() if len(calls) == call else real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
