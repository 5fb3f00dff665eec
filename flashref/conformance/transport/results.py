"""What each operation must return: shapes and dtypes, and nothing about values (chapter 96). IOP-2."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flashref.conformance.adapter import COUNTERS, OPERATIONS
from flashref.types import STORED_DTYPES, Array


class WrongType(Exception):
    """A result of the wrong kind, shape or dtype; the text says which and what was due."""


def checked_result(operation: str, arguments: tuple[Any, ...], result: Any) -> Any:
    """Check the structure, shapes and dtypes of a result (IOP-2).

    Args:
        operation: which one was called.
        arguments: of the call, in chapter 96's order; they say which shapes are due.
        result: as the implementation gave it.

    Returns:
        The result with NumPy arrays; ids and counters are int64.

    Raises:
        WrongType: the result is not as chapter 96's table says.
    """
    named = dict(zip(OPERATIONS[operation], arguments, strict=True))
    try:
        return _RESULTS[operation](named, result)
    except WrongType as error:
        raise WrongType(f"{operation} gave {error}") from None
    except Exception as error:  # lists that are ragged or no lists, or arguments that nobody should take
        raise WrongType(f"{operation} gave what has no type here: {type(error).__name__}: {error}") from error


def _array(value: Any, name: str, shape: tuple[int | None, ...], dtype: np.dtype[Any] | str) -> Array:
    """The value as an array of this shape (None = any) and dtype ("integer" = any integer, made int64)."""
    array = np.asarray(value)
    if dtype == "integer" and array.size == 0:
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    fits = len(array.shape) == len(shape) and all(
        due is None or due == got for due, got in zip(shape, array.shape, strict=True)
    )
    wanted = dtype if isinstance(dtype, str) else dtype.name
    right = array.dtype.kind in "iu" if isinstance(dtype, str) else array.dtype == dtype
    if not fits or not right:
        due = ", ".join("any" if size is None else str(size) for size in shape)
        raise WrongType(f"{name} as {array.dtype} of shape {array.shape}; {wanted} of shape ({due}) was due")
    return array.astype(np.int64) if isinstance(dtype, str) else array


def _ids(value: Any, name: str = "ids") -> Array:
    return _array(value, name, (None,), "integer")


def _integer(value: Any, name: str) -> int:
    return int(_array(value, name, (), "integer"))


def _list(value: Any, name: str, length: int) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != length:
        found = f"{len(value)}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise WrongType(f"{name} as {found}; a list of {length} was due")
    return list(value)


F32 = np.dtype(np.float32)
U8 = np.dtype(np.uint8)


def _output(named: Mapping[str, Any], result: Any) -> Array:
    return _array(result, "y", named["x"].shape, F32)


def _layout(named: Mapping[str, Any], result: Any) -> list[Any]:
    stride, extents = _list(result, "[stride, extents]", 2)
    return [
        _integer(stride, "stride"),
        _array(np.reshape(extents, (-1, 2)) if len(extents) == 0 else extents, "extents",
               (len(named["ids"]), 2), "integer"),
    ]  # fmt: skip


def _matrices(named: Mapping[str, Any], result: Any) -> list[Array]:
    shape, dtype = (named["n"], named["d"]), STORED_DTYPES[named["dtype"]]
    matrices = _list(result, "matrices", len(named["fields"]))
    return [
        _array(matrix, field, shape, dtype) for field, matrix in zip(named["fields"], matrices, strict=True)
    ]


def _gathered(named: Mapping[str, Any], result: Any) -> list[Array]:
    rows, counters = _list(result, "[rows, counters]", 2)
    shape = (len(named["ids"]), len(named["fields"]), named["d"])
    return [
        _array(rows, "rows", shape, STORED_DTYPES[named["dtype"]]),
        _array(counters, "counters", (3,), "integer"),
    ]


def _plan(named: Mapping[str, Any], result: Any) -> Array:
    return _array(
        np.zeros((0, 2), np.int64) if len(result) == 0 else result, "the plan", (None, 2), "integer"
    )


def _deltas(named: Mapping[str, Any], result: Any) -> list[Any]:
    actives = named["actives"]
    return [
        [
            [
                [_ids(part) for part in _list(delta, "[load, evict, bypass]", 3)]
                for delta in _list(layers, "a token", len(token))
            ]
            for token, layers in zip(sequence, _list(tokens, "a sequence", len(sequence)), strict=True)
        ]
        for sequence, tokens in zip(actives, _list(result, "sequences", len(actives)), strict=True)
    ]  # fmt: skip


def _slots(named: Mapping[str, Any], result: Any) -> list[Any]:
    steps = []
    for given, step in zip(named["rows"], _list(result, "steps", len(named["deltas"])), strict=True):
        ids, rows, moved = _list(step, "[ids, rows, moved_rows]", 3)
        ids = _ids(ids)
        steps.append(
            [
                ids,
                _array(rows, "rows", (len(ids), *given.shape[1:]), given.dtype),
                _integer(moved, "moved_rows"),
            ]
        )
    return steps


def _counters(value: Any, shape: tuple[int, ...]) -> dict[str, Array]:
    if not isinstance(value, Mapping) or set(value) - set(COUNTERS):
        raise WrongType(f"counters that are not an object with some of {', '.join(COUNTERS)}")
    return {name: _array(counts, name, shape, "integer") for name, counts in value.items()}


def _decoded(named: Mapping[str, Any], result: Any) -> list[Any]:
    ys, counters = _list(result, "[ys, counters]", 2)
    sequences, tokens, d = named["xs"].shape
    shape = (sequences, tokens, len(named["layers"]))
    return [_array(ys, "ys", (*shape, d), F32), _counters(counters, shape)]


def _logits(named: Mapping[str, Any], result: Any) -> list[Any]:
    logits, counters = _list(result, "[logits, counters]", 2)
    array = _array(logits, "logits", (len(named["token_ids"]), None), F32)
    shape = np.shape(next(iter(counters.values()))) if isinstance(counters, Mapping) and counters else ()
    return [array, _counters(counters, shape)]


_RESULTS: Mapping[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "predict_active": lambda named, result: _ids(result),
    "dense_ffn": _output,
    "sparse_ffn": _output,
    "bundle_layout": _layout,
    "pack_bundles": lambda named, result: _array(result, "bytes", (None,), U8),
    "unpack_bundles": _matrices,
    "read_plan": _plan,
    "gather_rows": _gathered,
    "run_window": _deltas,
    "run_slots": _slots,
    "run_decode": _decoded,
    "logits": _logits,
}
