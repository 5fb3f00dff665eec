"""Files of vectors, read and checked field by field: what is not as chapter 94 says is refused."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.transport.codec import CodecError, from_json
from flashref.conformance.vectors.files import KINDS, SCHEMA, Expectation, Vector, VectorError
from flashref.storage.container import read_container, tensor_array
from flashref.types import Array

_HEAD = {"schema", "spec", "operation", "case_count", "tensors", "notes", "cases"}
_CASE = {"id", "requirements", "flags", "comment", "arguments", "expect"}


def read_group(path: Path) -> list[Vector]:
    """Read the cases of a JSON file and of the tensors beside it, and check every field.

    Args:
        path: of the JSON file, in the folder of its operation.

    Raises:
        VectorError: the files are damaged, incomplete or of another format.

    Requirements: VEC-5, VEC-6.
    """
    try:
        return _checked_group(path)
    except VectorError as error:
        raise VectorError(f"{path}: {error}") from None
    except (CodecError, UnicodeDecodeError, RecursionError, TypeError, ValueError, OverflowError) as error:
        raise VectorError(f"{path}: is damaged, or no file of vectors: {error}") from error


def _checked_group(path: Path) -> list[Vector]:
    head = json.loads(
        path.read_bytes().decode(),
        object_pairs_hook=_unique,
        parse_float=_no_float,
        parse_constant=_no_float,
    )
    _require_fields(head, _HEAD, "its head")
    if head["schema"] != SCHEMA:
        raise VectorError(f"has the schema {head['schema']!r}, but {SCHEMA!r} is read here")
    operation, cases = head["operation"], head["cases"]
    if operation not in OPERATIONS or path.parent.name != operation:
        raise VectorError(f"holds the operation {operation!r} in the folder {path.parent.name!r}")
    if type(head["case_count"]) is not int or head["case_count"] != len(cases) or not cases:
        raise VectorError(f"says that it has {head['case_count']} cases, but it has {len(cases)}")
    tensors, used = _signed_tensors(path, head["tensors"]), set[str]()
    vectors = [_vector(case, operation, head["notes"], tensors, used) for case in cases]
    ids = [vector.id for vector in vectors]
    if len(set(ids)) < len(ids) or not all(name.startswith(f"{operation}/{path.stem}/") for name in ids):
        raise VectorError("has case ids that are there twice, or belong into another file")
    if lost := sorted(set(tensors) - used):
        raise VectorError(f"its safetensors file has tensors of no case: {', '.join(lost[:3])}")
    return vectors


def _signed_tensors(path: Path, signature: Any) -> dict[str, Array]:
    """The tensors beside the JSON file, if their bytes are those that it was written with."""
    if signature is None:
        return {}
    _require_fields(signature, {"file", "sha256"}, "tensors")
    if signature["file"] != f"{path.stem}.safetensors":
        raise VectorError(f"names the tensors {signature['file']!r}; they must be {path.stem}.safetensors")
    beside = path.with_suffix(".safetensors")
    if not beside.is_file():
        raise VectorError(f"its tensors are missing: there is no {beside.name}")
    if hashlib.sha256(beside.read_bytes()).hexdigest() != signature["sha256"]:
        raise VectorError(f"{beside.name} is not the file that it was written with: another SHA-256")
    container = read_container(beside)
    return {name: tensor_array(container, name) for name in container.tensors}


def _vector(case: Any, operation: str, notes: Any, tensors: Mapping[str, Array], used: set[str]) -> Vector:
    _require_fields({**case, "withdrawn": None}, _CASE | {"withdrawn"}, "a case")
    expect = dict(case["expect"])
    kind = expect.pop("kind", None)
    if kind not in KINDS:
        raise VectorError(f"{case['id']} expects the unknown kind {kind!r}")
    _require_fields(expect, KINDS[kind], f"what {case['id']} expects")
    _require_fields(case["arguments"], set(OPERATIONS[operation]), f"the arguments of {case['id']}")
    if unknown := sorted(set(case["flags"]) - set(notes)):
        raise VectorError(f"{case['id']} has flags without a note: {', '.join(unknown)}")
    arguments = from_json(_tensors_in(case["arguments"], tensors, used))
    return Vector(
        id=case["id"],
        operation=operation,
        requirements=tuple(case["requirements"]),
        flags=tuple(case["flags"]),
        arguments=tuple(arguments[name] for name in OPERATIONS[operation]),
        expectation=Expectation(kind, **from_json(_tensors_in(expect, tensors, used))),
        comment=case["comment"],
        withdrawn=case.get("withdrawn"),
    )


def _tensors_in(encoded: Any, tensors: Mapping[str, Array], used: set[str]) -> Any:
    """`_tensors_out` undone: every array in its place, the rest still in chapter 96's JSON."""
    if isinstance(encoded, list):
        return [_tensors_in(part, tensors, used) for part in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if set(encoded) == {"tensor"}:
        name = encoded["tensor"]
        if name not in tensors:
            raise VectorError(f"names the tensor {name!r}, which its safetensors file lacks")
        used.add(name)
        return tensors[name]
    if "I64" in encoded:
        if set(encoded) - {"I64", "shape"}:
            raise VectorError(f"has the unknown fields {sorted(set(encoded) - {'I64', 'shape'})}")
        numbers = [from_json(number) for number in encoded["I64"]]
        if not all(type(number) is int for number in numbers):
            raise VectorError("has an I64 array with something else than whole numbers")
        return np.array(numbers, np.int64).reshape(encoded.get("shape", -1))
    return {key: _tensors_in(part, tensors, used) for key, part in encoded.items()}


def _require_fields(found: Mapping[str, Any], due: frozenset[str] | set[str], what: str) -> None:
    if unknown := sorted(set(found) - due):
        raise VectorError(f"{what} has the unknown fields {', '.join(unknown)}")
    if missing := sorted(due - set(found)):
        raise VectorError(f"{what} lacks the fields {', '.join(missing)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise VectorError("names a field twice")
    return found


def _no_float(text: str) -> float:
    raise VectorError(f'holds the number {text}, where a float is written as {{"float": "0x1p+0"}}')
