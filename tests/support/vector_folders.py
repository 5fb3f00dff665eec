"""The shipped vectors, a copy of their files, and ways to damage one of those."""

import hashlib
import json

import pytest
import safetensors.numpy

from flashref.conformance.vectors.files import tensor_file
from flashref.conformance.vectors.published import export_vectors, shipped_vectors

# A test file takes the fixtures that it needs as its own: shipped = vector_folders.shipped


@pytest.fixture(scope="module")
def shipped():
    return shipped_vectors()


@pytest.fixture
def folder(tmp_path):
    export_vectors(tmp_path / "v1")
    return tmp_path / "v1"


def page_of(folder, name="sparse_ffn/dyadic"):
    path = folder / f"{name}.json"
    return path, json.loads(path.read_text())


def rewritten(change, name="sparse_ffn/dyadic"):
    """A tampering: the page as `change` leaves it."""

    def tamper(folder):
        path, page = page_of(folder, name)
        change(page)
        path.write_text(json.dumps(page))

    return tamper


def in_text(old, new, name="sparse_ffn/dyadic"):
    def tamper(folder):
        path = folder / f"{name}.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return tamper


def flipped(folder):
    path = folder / "sparse_ffn/dyadic.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def with_other_tensors(change):
    """The tensors changed, and signed again."""

    def tamper(folder):
        path, page = page_of(folder)
        tensors = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
        change(tensors)
        data = tensor_file(tensors)
        path.with_suffix(".safetensors").write_bytes(data)
        page["tensors"]["sha256"] = hashlib.sha256(data).hexdigest()
        path.write_text(json.dumps(page))

    return tamper


def first(page):
    return page["cases"][0]
