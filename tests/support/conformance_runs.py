"""`flashref conformance` in this process, on adapters written into a folder."""

import argparse
import json
import os
from pathlib import Path

import pytest

import flashref
from flashref.cli import conformance

ROOT = Path(flashref.__file__).parent.parent
KIT = ROOT / "flashref" / "conformance"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
REFERENCE = "flashref.conformance.reference"
HEAD = """
import os, time
import numpy as np
from flashref.conformance import reference
from flashref.conformance.reference import *
name, version = "other", "0.3"
"""
# The last read is forgotten; nothing else is wrong.
FORGETS = """
def read_plan(*of):
    return reference.read_plan(*of)[:-1]
"""


# A test file takes the fixtures that it needs as its own: judge = conformance_runs.judge


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """Writes an adapter, the reference but for what is given, into the working directory; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")

    def write(source="", module="other"):
        (tmp_path / f"{module}.py").write_text(HEAD + source)
        return module

    return write


@pytest.fixture
def judge(capsys):
    """Runs the command with a time-out of its own; the exit code and stdout."""

    def run(*words, timeout=30.0, profile="dev"):
        parser = argparse.ArgumentParser()
        conformance.add_parser(parser.add_subparsers())
        options = parser.parse_args(["conformance", *map(str, words), "--profile", profile])
        code = conformance.run(options, timeout)
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def report(judge):
    """The same, as JSON: the exit code and the object."""

    def run(*words, **more):
        code, out = judge(*words, "--json", **more)
        return code, json.loads(out)

    return run


def kinds(result):
    return {verdict["requirement"]: verdict["kind"] for verdict in result["verdicts"]}


def vector_kinds(result):
    return {row["operation"]: row["kind"] for row in result["vectors"]}


def deviation(**entry):
    return "[[deviation]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
