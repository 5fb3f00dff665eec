"""Traces on disk: one safetensors file, a bit for every unit, token and layer.

`layers.L.active` is (tokens, ⌈n/8⌉) uint8: unit i of a token is bit i % 8 of byte i // 8, the bits behind the
last unit are 0. Metadata: `format`, `version`, `what`, `source`, `units` and `first_counted`.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from flashref.simulate.trace import ActivationTrace, Counts
from flashref.storage.container import Container, encode_header, read_container, tensor_array
from flashref.storage.files import create_file, write_all
from flashref.types import DomainError, ImageError

FORMAT, VERSION = "flashref-trace", "1"
ALIGNMENT = 64  # bytes on which the tensors begin

Bits = npt.NDArray[np.uint8]


class Description(NamedTuple):
    """What a trace is of (a model, a text, a process), and where it came from (a command, a seed)."""

    what: str
    source: str


def save_trace(path: str | os.PathLike[str], trace: ActivationTrace, description: Description) -> None:
    """Write a trace; equal traces and descriptions give equal bytes.

    The file appears whole or not at all, and no file is overwritten.

    Args:
        path: of the new file.
        trace: which units each token activates.
        description: what the trace is of, and where it came from.

    Raises:
        DomainError: the description is not Unicode text.
        ImageError: there is such a file already.
    """
    for text in description:
        if text.encode(errors="ignore").decode() != text:
            raise DomainError("the description of a trace must be Unicode text")
    names = [f"layers.{layer}.active" for layer in range(trace.layers)]
    units = [int(n) for n in trace.units]  # JSON knows no NumPy integers
    shapes = [(trace.tokens, _width(n)) for n in units]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **description._asdict(),
        "units": json.dumps(units),
        "first_counted": str(trace.first_counted),
    }
    entries = {name: ("U8", shape) for name, shape in zip(names, shapes, strict=True)}
    header = np.frombuffer(encode_header(entries, metadata, ALIGNMENT), np.uint8)
    bits = _pack(trace)
    with create_file(Path(path), header.size + bits.size) as descriptor:
        write_all(descriptor, header, 0)
        offset = header.size
        for layer in np.split(bits, np.cumsum([width for _, width in shapes])[:-1], axis=1):
            write_all(descriptor, np.ascontiguousarray(layer).reshape(-1), offset)
            offset += layer.size


def load_trace(path: str | os.PathLike[str]) -> ActivationTrace:
    """The trace in a file.

    Raises:
        ImageError: the file is damaged, foreign or of another version.
    """
    container = _open(path)
    units = _units(container)
    names = [f"layers.{layer}.active" for layer in range(len(units))]
    missing = [name for name in names if name not in container.tensors]
    if missing:
        _refuse(container, f"lacks the tensor {missing[0]!r}")
    if len(container.tensors) != len(units):
        _refuse(container, f"holds {len(container.tensors)} tensors for {len(units)} layers")
    tokens = max(container.tensors[names[0]].shape[:1], default=0)
    first_counted = container.metadata.get("first_counted", "")
    counted = first_counted.isascii() and first_counted.isdecimal() and len(first_counted) < 19
    if not counted or int(first_counted) >= tokens:
        _refuse(container, f"counts from token {first_counted[:20]!r} on, of {tokens}")
    for name, n in zip(names, units, strict=True):
        entry = container.tensors[name]
        if entry.dtype != "U8" or entry.shape != (tokens, _width(n)):
            _refuse(
                container,
                f"has {name!r} as {entry.dtype} of shape {entry.shape}, not U8 of {(tokens, _width(n))}",
            )
    bits = np.concatenate([tensor_array(container, name) for name in names], axis=1)
    ids, starts, fits = _unpack(bits, units)
    if not fits:
        _refuse(container, "has bits set behind a layer's last unit")
    return ActivationTrace(units, ids, starts, int(first_counted))


def load_description(path: str | os.PathLike[str]) -> Description:
    """What a trace file says it holds. Raises ImageError."""
    metadata = _open(path).metadata
    return Description(metadata.get("what", ""), metadata.get("source", ""))


def _open(path: str | os.PathLike[str]) -> Container:
    container = read_container(path)
    if container.metadata.get("format") != FORMAT:
        _refuse(container, "is a safetensors file, but no trace")
    if container.metadata.get("version") != VERSION:
        found = container.metadata.get("version", "")
        _refuse(container, f"is a trace of version {found[:20]!r}, and this flashref reads {VERSION}")
    return container


def _units(container: Container) -> tuple[int, ...]:
    try:
        units = json.loads(container.metadata.get("units", ""))
    except (ValueError, RecursionError):
        units = None
    if not isinstance(units, list) or not units or not all(type(n) is int and 0 < n < 1 << 31 for n in units):
        _refuse(container, "does not say how many units each layer has")
    return tuple(units)


def _width(n: int) -> int:
    """Bytes of a token's bits in a layer of n units."""
    return -(-n // 8)


def _pack(trace: ActivationTrace) -> Bits:
    """The bits of all layers side by side, each from a byte of its own on: (tokens, bytes)."""
    widths = [_width(n) for n in trace.units]
    first_bit = 8 * np.concatenate([[0], np.cumsum(widths)[:-1]])
    bits = np.empty((trace.tokens, sum(widths)), np.uint8)
    for token in range(trace.tokens):
        bounds = trace.starts[token * trace.layers : (token + 1) * trace.layers + 1]
        active = np.zeros(8 * sum(widths), bool)
        active[trace.ids[bounds[0] : bounds[-1]] + np.repeat(first_bit, np.diff(bounds))] = True
        bits[token] = np.packbits(active, bitorder="little")
    return bits


def _unpack(bits: Bits, units: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], Counts, bool]:
    """Ids and starts as in ActivationTrace, and whether every id is one of its layer's units."""
    first_bit = 8 * np.concatenate([[0], np.cumsum([_width(n) for n in units])])
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    fits = True
    for token in bits:
        active = np.flatnonzero(np.unpackbits(token, bitorder="little"))
        counts = np.diff(np.searchsorted(active, first_bit))
        within = active - np.repeat(first_bit[:-1], counts)
        fits = fits and bool((within < np.repeat(units, counts)).all())
        ids.append(within.astype(np.int32))
        lengths.append(counts)
    return np.concatenate(ids), np.cumsum(np.concatenate(lengths)), fits


def _refuse(container: Container, what: str) -> NoReturn:
    raise ImageError(f"{container.path}: {what}; save the trace again, or give another file")
