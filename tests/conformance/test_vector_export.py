"""Chapter 94: an export is whole or not there; published cases stay, new ones are appended."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import vector_folders
from tools.vector_cases import all_groups

from flashref.conformance.vectors import published as vectors
from flashref.conformance.vectors.files import VectorError
from flashref.conformance.vectors.published import (
    SHIPPED,
    append_vectors,
    check_vectors,
    export_vectors,
    read_vectors,
)

folder = vector_folders.folder


@pytest.mark.req("VEC-12")
def test_an_export_is_whole_and_overwrites_nothing(folder, tmp_path):
    assert vectors._file_bytes(folder) == vectors._file_bytes(SHIPPED)
    (tmp_path / "empty").mkdir()
    assert export_vectors(tmp_path / "empty") == len(vectors._file_bytes(SHIPPED))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for taken in (folder, tmp_path / "file", tmp_path / "full"):
        with pytest.raises(VectorError, match="nothing is overwritten"):
            export_vectors(taken)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.req("VEC-12", "VEC-13")
@pytest.mark.parametrize("write", [export_vectors, partial(append_vectors, groups=all_groups())])
def test_a_full_disk_leaves_nothing_half_written(write, tmp_path, monkeypatch):
    written, write_bytes = [], Path.write_bytes

    def full(path, data):
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "v1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.req("VEC-12", "VEC-13")
def test_a_failed_rename_leaves_what_was_there(folder, monkeypatch):
    before, replace = vectors._file_bytes(folder), os.replace

    def failing(source, target):
        if Path(source).suffix == ".part":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input"):
        append_vectors(folder, all_groups())
    assert vectors._file_bytes(folder) == before and list(folder.parent.iterdir()) == [folder]


def regenerated(change):
    """The groups, with other cases of read_plan/plans."""
    return tuple(
        group._replace(vectors=change(list(group.vectors))) if group.name == "plans" else group
        for group in all_groups()
    )


def altered(**fields):
    return lambda cases: [cases[0], cases[1]._replace(**fields), *cases[2:]]


@pytest.mark.req("VEC-13")
@pytest.mark.parametrize(
    "change",
    [
        lambda cases: cases[:-1],
        altered(id="read_plan/plans/renamed"),
        altered(arguments=(np.int64([[4095, 2]]), 4096, 0)),
        altered(arguments=(np.int64([[4095, 1]]), 4096, 1)),
        lambda cases: [*cases[:1], cases[1]._replace(expectation=cases[2].expectation), *cases[2:]],
    ],
)
def test_a_published_case_cannot_change(change, folder):
    before = vectors._file_bytes(folder)
    with pytest.raises(VectorError, match="is published and would change"):
        append_vectors(folder, regenerated(change))
    assert vectors._file_bytes(folder) == before


@pytest.mark.req("VEC-13")
def test_cases_are_appended_and_withdrawn(folder):
    def grown(cases):
        new = cases[1]._replace(id="read_plan/plans/new", comment="fails if it is old")
        return [cases[0], cases[1]._replace(withdrawn="it asks too much"), *cases[2:], new]

    append_vectors(folder, regenerated(grown))
    assert check_vectors(folder, regenerated(grown)) == []
    read = {vector.id: vector for vector in read_vectors(folder)}
    assert len(read) == len(read_vectors(SHIPPED)) + 1
    assert read["read_plan/plans/new"].comment == "fails if it is old"
    assert read["read_plan/plans/one_byte"].withdrawn == "it asks too much"
    assert not any(path.name.startswith(".") for path in folder.parent.iterdir())
    again = regenerated(lambda cases: [*grown(cases)[:1], cases[1], *grown(cases)[2:]])
    with pytest.raises(VectorError, match="one_byte"):  # what is withdrawn stays so
        append_vectors(folder, again)


@pytest.mark.req("VEC-12", "VEC-13")
def test_a_folder_with_something_else_is_not_replaced(folder, tmp_path):
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(VectorError, match=r"mine\.txt"):
        append_vectors(folder, all_groups())
    assert (folder / "mine.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(VectorError, match="holds no vectors"):
        append_vectors(tmp_path / "other", all_groups())


@pytest.mark.req("VEC-11")
def test_a_difference_is_named_by_its_byte_and_line(folder):
    path = folder / "read_plan" / "plans.json"
    data = path.read_bytes()
    third = data.index(b"\n", data.index(b"\n") + 1) + 1
    for changed, byte, line in (
        (data[:third] + b"?" + data[third + 1 :], third, 3),
        (data[:third], third, 3),
        (data + b"\n", len(data), data.count(b"\n") + 1),
    ):
        path.write_bytes(changed)
        assert check_vectors(folder) == [
            f"{path}: differs from what is due, first at byte {byte} (line {line})"
        ]
