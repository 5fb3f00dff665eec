"""Conformance vectors: cases with expected values, in files for any language. Chapter: specs/94-vectors.md.

The functions in tests/tools/vector_cases compute the expected values; a published case never changes.

Satisfies: VEC-1 to VEC-13.
"""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from flashref.conformance.adapter import Unsupported, how_to_skip
from flashref.conformance.transport.subject import Breach, Refusal, Subject, unchanged
from flashref.conformance.vectors.compare import beyond_facts, difference_of
from flashref.conformance.vectors.files import Vector, VectorError, VectorGroup, group_files
from flashref.conformance.vectors.reading import read_group

SHIPPED = Path(str(files("flashref"))) / "data" / "vectors" / "v1"


def read_vectors(folder: Path) -> list[Vector]:
    """Read every case below a folder.

    Args:
        folder: of vectors, such as `export_vectors` writes.

    Returns:
        The cases in the order of the files' names, withdrawn ones included.

    Raises:
        VectorError: a file is damaged, incomplete or foreign, or there is no case.

    Requirements: VEC-5, VEC-6.
    """
    pages = sorted(folder.glob("*/*.json"))
    lonely = {path.with_suffix(".json") for path in folder.glob("*/*.safetensors")} - set(pages)
    if lonely:
        raise VectorError(f"{min(lonely)}: is missing, but its tensors are there; export the vectors again")
    vectors = [vector for page in pages for vector in read_group(page)]
    if not vectors:
        raise VectorError(f"{folder}: holds no vectors; `flashref vectors export DIR` writes them")
    return vectors


@cache
def shipped_vectors() -> Mapping[str, Vector]:
    """Read the shipped vectors once: id → vector, in the order of the files' names."""
    return {vector.id: vector for vector in read_vectors(SHIPPED)}


def judge_vector(subject: Subject, vector: Vector) -> None:
    """Ask an implementation for the result of a vector, and compare it with the expected one.

    Args:
        subject: the implementation.
        vector: the case.

    Raises:
        Breach: the result is wrong; the text has the numbers.
        Unsupported: the case is withdrawn, or the implementation does not claim to take it.
        Died: the implementation's process hung or crashed.

    Requirements: VEC-7 to VEC-10.
    """
    reason = f"withdrawn: {vector.withdrawn}" if vector.withdrawn else beyond_facts(subject.facts, vector)
    if reason:
        raise Unsupported(reason)
    try:
        result = subject.call(vector.operation, *vector.arguments)
    except Refusal as refusal:
        if vector.expectation.kind == "error":
            return
        advice = how_to_skip(vector.operation, vector.arguments)
        wrong: str | None = f"refused a valid input: {refusal}{advice}"
    except Breach as breach:
        raise Breach(breach.kind, f"{vector.id}: {breach}. {_purpose(vector)}") from breach
    else:
        wrong = (
            "accepted what must be refused"
            if vector.expectation.kind == "error"
            else difference_of(vector, result)
        )
    if wrong:
        raise Breach("fail", f"{vector.id}: {wrong}. {_purpose(vector)}")


def _purpose(vector: Vector) -> str:
    """What the case was made for, which need not be what went wrong now."""
    return f"The case was made for one bug: it {vector.comment}"


def check_vectors(folder: Path, groups: Sequence[VectorGroup] | None = None) -> list[str]:
    """Compare the files of a folder with what they must be, byte by byte.

    Args:
        folder: of vectors.
        groups: what must be in the files, as the definitions give it; None: the vectors that are shipped.

    Returns:
        A line for each file that is missing, differs, or is none of the vectors' files.

    Requirements: VEC-1 to VEC-4, VEC-11.
    """
    found, due = _file_bytes(folder), _file_bytes(SHIPPED) if groups is None else _bytes_of(groups)
    differences = dict.fromkeys(due.keys() - found.keys(), "is missing")
    differences |= dict.fromkeys(found.keys() - due.keys(), "is no file of these vectors")
    for name in due.keys() & found.keys():
        if found[name] != due[name]:
            differences[name] = _where(found[name], due[name])
    return [f"{folder / name}: {difference}" for name, difference in sorted(differences.items())]


def export_vectors(folder: Path) -> int:
    """Copy the shipped vectors into a folder, all of them or none.

    Args:
        folder: a new or empty one.

    Returns:
        The number of files.

    Raises:
        VectorError: something is there already.

    Requirement: VEC-12.
    """
    if folder.exists() and not folder.is_dir():
        raise VectorError(f"{folder}: is a file, and nothing is overwritten; name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise VectorError(f"{folder}: is not empty, and nothing is overwritten; name a new folder")
    return _write_folder(folder, _file_bytes(SHIPPED))


def append_vectors(folder: Path, groups: Sequence[VectorGroup]) -> int:
    """Write groups of vectors over older ones, or into a new folder.

    Args:
        folder: of vectors, or a new one.
        groups: every case that is there already, and more.

    Returns:
        The number of files.

    Raises:
        VectorError: the folder holds something else, or a case in it would change or vanish; nothing was
            changed.

    Requirements: VEC-12, VEC-13.
    """
    if found := _file_bytes(folder):
        _require_appended(read_vectors(folder), groups)
        if foreign := sorted(name for name in found if Path(name).suffix not in (".json", ".safetensors")):
            raise VectorError(
                f"{folder}: holds {foreign[0]}, which is no file of vectors; name another folder"
            )
    return _write_folder(folder, _bytes_of(groups))


def _bytes_of(groups: Sequence[VectorGroup]) -> dict[str, bytes]:
    return {name: data for group in groups for name, data in group_files(group).items()}


def _require_appended(before: list[Vector], groups: Sequence[VectorGroup]) -> None:
    """VectorError unless every case is still there, asks the same and expects the same."""
    after = {vector.id: vector for group in groups for vector in group.vectors}
    for old in before:
        new = after.get(old.id)
        if (
            new is None
            or not unchanged(old.arguments, new.arguments)
            or not unchanged(old.expectation, new.expectation)
            or (old.withdrawn and not new.withdrawn)
        ):
            raise VectorError(f"{old.id}: is published and would change; withdraw it, and add another case")


def _file_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below the folder: its path there → its bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _write_folder(folder: Path, contents: dict[str, bytes]) -> int:
    """The folder with these files and no others, by renaming a finished one."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
    before = temporary.with_suffix(".before")
    try:
        for name, data in contents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if folder.exists():
            os.replace(folder, before)
        try:
            os.replace(temporary, folder)
        except OSError:
            if before.exists():
                os.replace(before, folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)
    return len(contents)


def _where(found: bytes, due: bytes) -> str:
    """The first byte at which two files differ, and its line."""
    same = [a == b for a, b in zip(found, due, strict=False)]
    first = same.index(False) if False in same else len(same)
    return f"differs from what is due, first at byte {first} (line {found[:first].count(10) + 1})"
