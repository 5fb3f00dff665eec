"""Values as JSON: one encoding for the stdio protocol and for the repeat of a failing case (chapter 96).

array    {"dtype": "F32", "shape": [2, 3], "data": base64 of little-endian bytes in C order}
float    {"float": "0x1.8p+1"}, as C's %a writes it; inf, -inf and nan as such
integer  a number up to ±2^53, {"integer": "9007199254740993"} beyond
FFN, Predictor and the kit's cases  {"FFN": {"activation": "relu", …}}
None, true and false, strings, lists, and objects with string keys are what they are in JSON
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flashref.types import FFN, FlashrefError, Predictor

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_TUPLES: dict[str, type[Any]] = {"FFN": FFN, "Predictor": Predictor}
EXACT_IN_JSON = 2**53  # JavaScript's integers, and those of many C parsers, end here
_ARRAY = {"dtype", "shape", "data"}


class CodecError(FlashrefError, ValueError):
    """A value that has no encoding, or text that encodes none."""


def registered(kind: type[Any]) -> type[Any]:
    """A decorator: NamedTuples of this kind are encoded under their name."""
    _TUPLES[kind.__name__] = kind
    return kind


def to_json(value: Any) -> Any:
    """Encode a value.

    Args:
        value: an array, number, text, None, list, mapping with text keys, FFN, Predictor or case of the kit.

    Returns:
        What `json` writes.

    Raises:
        CodecError: the value, or a part of it, has no encoding.

    Requirement: IOP-10.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray):
        return _array_to_json(value)
    if isinstance(value, int | np.integer):
        number = int(value)
        return number if abs(number) <= EXACT_IN_JSON else {"integer": str(number)}
    if isinstance(value, float | np.floating):
        return {"float": float(value).hex()}
    if isinstance(value, tuple) and type(value).__name__ in _TUPLES:
        fields = zip(type(value)._fields, value, strict=True)  # type: ignore[attr-defined]
        return {type(value).__name__: {name: to_json(part) for name, part in fields}}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: to_json(part) for key, part in value.items()}
    raise CodecError(f"a {type(value).__name__} has no encoding; use arrays, numbers, strings and lists")


def from_json(encoded: Any) -> Any:
    """Decode a value.

    Args:
        encoded: what `to_json` gives.

    Returns:
        The value; tuples come back as lists, and arrays are new ones.

    Raises:
        CodecError: the text encodes no value.

    Requirement: IOP-10.
    """
    if isinstance(encoded, list):
        return [from_json(part) for part in encoded]
    if not isinstance(encoded, dict):
        if isinstance(encoded, float):
            raise CodecError('a float must be written as {"float": "0x1p+0"}: decimals lose bits')
        return encoded
    if set(encoded) == _ARRAY:
        return _array_from_json(encoded)
    name: str = next(iter(encoded)) if len(encoded) == 1 else ""
    content: Any = encoded.get(name)
    try:
        if name == "float":
            return float.fromhex(content)
        if name == "integer":
            return int(content)
        if name in _TUPLES:
            return _TUPLES[name](**{key: from_json(part) for key, part in content.items()})
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CodecError(f"{json.dumps(encoded)[:80]} encodes no {name}: {error}") from error
    return {key: from_json(part) for key, part in encoded.items()}


def case_text(case: Any) -> str:
    """Write a case as a word for a command line: base64 of its compressed JSON."""
    return base64.b64encode(zlib.compress(json.dumps(to_json(case)).encode(), 9)).decode()


def case_from_text(text: str) -> Any:
    """Read the case that `case_text` wrote. Raises CodecError for any other text."""
    try:
        return from_json(json.loads(zlib.decompress(base64.b64decode(text, validate=True))))
    except (ValueError, zlib.error) as error:
        raise CodecError(
            f"the text is no case of the kit, or only a part of one ({error}); copy it whole"
        ) from error


def _array_to_json(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    name = _NAMES.get(array.dtype) or _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise CodecError(f"an array of {array.dtype} has no encoding; the dtypes are {', '.join(DTYPES)}")
    data = np.ascontiguousarray(array, DTYPES[name]).tobytes()
    return {"dtype": name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def _array_from_json(encoded: dict[str, Any]) -> np.ndarray[Any, Any]:
    try:
        data = base64.b64decode(encoded["data"], validate=True)
        if not all(type(size) is int and size >= 0 for size in encoded["shape"]):  # −1 would mean "guess"
            raise ValueError("a shape is a list of sizes")
        return np.frombuffer(data, DTYPES[encoded["dtype"]]).reshape(encoded["shape"]).copy()
    except (KeyError, TypeError, ValueError) as error:
        shown = json.dumps({key: encoded[key] for key in ("dtype", "shape")})
        raise CodecError(f"the data of the array {shown} do not fit it: {error}") from error
