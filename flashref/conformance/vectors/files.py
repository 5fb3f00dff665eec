"""Vectors, and a group of them as bytes: a JSON file, and a safetensors file beside it (chapter 94).

Arrays of weights, inputs and outputs are tensors; the JSON holds everything else, in chapter 96's encoding.
"""

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.transport.codec import from_json, to_json
from flashref.types import Array, FlashrefError, Ids

SCHEMA = "flashref-vectors-v1"
LINE = 110  # what fits stays on one line
_ARRAY = {"dtype", "shape", "data"}  # an array in chapter 96's encoding
# Kind of an expectation → its fields.
KINDS: Mapping[str, frozenset[str]] = {
    "exact": frozenset({"result"}),
    "exact_but_for_zero_sign": frozenset({"result"}),
    "bounded": frozenset({"result", "bound"}),
    "either": frozenset({"must", "may"}),
    "error": frozenset(),
}
# BF16 travels as U16, since not every reader of safetensors has a BF16; nothing else does.
TENSOR_DTYPES: Mapping[np.dtype[Any], str] = {
    np.dtype("<f8"): "F64",
    np.dtype("<f4"): "F32",
    np.dtype("<f2"): "F16",
    np.dtype("<u2"): "U16",
    np.dtype("u1"): "U8",
}


class VectorError(FlashrefError, ValueError):
    """Files of vectors that are damaged, incomplete, of another format, or in the way."""


class Expectation(NamedTuple):
    """What a result must be.

    Attributes:
        kind: one of KINDS, which says which of the other fields are there.
        result: the result, as `adapter.OPERATIONS` promises it.
        bound: float64, of the shape of y: how far y may be from `result`.
        must, may: the ids that must be in the result, and those that may.
    """

    kind: str
    result: Any = None
    bound: Array | None = None
    must: Ids | None = None
    may: Ids | None = None


class Vector(NamedTuple):
    """One case.

    Attributes:
        id: OPERATION/GROUP/NAME.
        operation: which one is called.
        requirements: the ids of those that the case judges.
        flags: names among the notes of its group.
        arguments: in the order of `adapter.OPERATIONS`.
        expectation: what the result must be.
        comment: "fails if …", the bug that the case was made for.
        withdrawn: why it is not judged any more; None: it is.
    """

    id: str
    operation: str
    requirements: tuple[str, ...]
    flags: tuple[str, ...]
    arguments: tuple[Any, ...]
    expectation: Expectation
    comment: str
    withdrawn: str | None = None


class VectorGroup(NamedTuple):
    """The cases of one pair of files.

    Attributes:
        operation: which one every case calls.
        name: of the files.
        spec: the version of the spec for which the newest case was made.
        notes: flag → {"catches", "effect"}: which bugs its cases catch, and what such a bug does.
        vectors: the cases.
    """

    operation: str
    name: str
    spec: str
    notes: Mapping[str, Mapping[str, str]]
    vectors: Sequence[Vector]


def group_files(group: VectorGroup) -> dict[str, bytes]:
    """Write a group as bytes, the same in every run (VEC-1).

    Returns:
        Path below the folder of vectors → bytes.
    """
    tensors: dict[str, Array] = {}
    cases = [_case_json(vector, tensors) for vector in group.vectors]
    path = f"{group.operation}/{group.name}"
    files, signature = {}, None
    if tensors:
        data = tensor_file(tensors)
        files[f"{path}.safetensors"] = data
        signature = {"file": f"{group.name}.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    head = {
        "schema": SCHEMA,
        "spec": group.spec,
        "operation": group.operation,
        "case_count": len(cases),
        "tensors": signature,
        "notes": dict(sorted(group.notes.items())),
        "cases": cases,
    }
    files[f"{path}.json"] = (_text(head) + "\n").encode()
    return files


def tensor_file(tensors: Mapping[str, Array]) -> bytes:
    """Write a safetensors file without metadata: widest items first, which aligns each, then by name."""
    header, data = {}, b""
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        array = tensors[name]
        dtype = array.dtype.newbyteorder("<")
        stored = np.ascontiguousarray(array, dtype).tobytes()
        header[name] = {
            "dtype": TENSOR_DTYPES[dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(stored)],
        }
        data += stored
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + data


def _case_json(vector: Vector, tensors: dict[str, Array]) -> dict[str, Any]:
    expectation = vector.expectation
    names = OPERATIONS[vector.operation]
    short = vector.id.rsplit("/", 1)[1]  # the rest of the id is the file's path
    due = {name: part for name, part in expectation._asdict().items() if name in KINDS[expectation.kind]}
    case = {
        "id": vector.id,
        "requirements": list(vector.requirements),
        "flags": list(vector.flags),
        "comment": vector.comment,
        "arguments": _tensors_out(to_json(dict(zip(names, vector.arguments, strict=True))), short, tensors),
        "expect": {"kind": expectation.kind, **_tensors_out(to_json(due), short, tensors)},
    }
    return case if vector.withdrawn is None else {**case, "withdrawn": vector.withdrawn}


def _tensors_out(encoded: Any, name: str, tensors: dict[str, Array]) -> Any:
    """Chapter 96's JSON with I64 arrays as lists of numbers, and the others moved to `tensors`."""
    if isinstance(encoded, list):
        return [_tensors_out(part, f"{name}/{index}", tensors) for index, part in enumerate(encoded)]
    if not isinstance(encoded, dict):
        return encoded
    if set(encoded) != _ARRAY:
        return {key: _tensors_out(part, f"{name}/{key}", tensors) for key, part in encoded.items()}
    array = from_json(encoded)
    if encoded["dtype"] != "I64":
        tensors[name] = array
        return {"tensor": name}
    numbers = {"I64": to_json(array.ravel().tolist())}
    return numbers if array.ndim == 1 else {**numbers, "shape": list(array.shape)}


def _text(value: Any, indent: int = 0) -> str:
    """JSON with one line for what fits one, else with an indent of one space."""
    line = json.dumps(value, ensure_ascii=False)
    if indent + len(line) <= LINE or not isinstance(value, dict | list):
        return line
    space = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_text(part, indent + 1)}" for key, part in value.items()]
        return "{\n" + ",\n".join(space + part for part in parts) + "\n" + " " * indent + "}"
    if all(type(part) is int for part in value):
        return "[" + textwrap.fill(line[1:-1], LINE, subsequent_indent=space) + "]"
    return "[\n" + ",\n".join(space + _text(part, indent + 1) for part in value) + "\n" + " " * indent + "]"
