"""Traces on disk: a safetensors file with one bit for every unit, token and layer.

The tensor `layers.L.active` is (tokens, ⌈n/8⌉) uint8. Unit i of a token is bit i % 8 of byte i // 8, and the
bits after the last unit are 0. The metadata are `format`, `version`, `what`, `source`, `units` and
`first_counted`.
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
ALIGNMENT = 64  # the first tensor begins at a multiple of so many bytes

Bits = npt.NDArray[np.uint8]


class Description(NamedTuple):
    """What a trace says of itself.

    what: the model that it belongs to.
    source: where it came from, such as a text or a seed.
    """

    what: str
    source: str


def save_trace(path: str | os.PathLike[str], trace: ActivationTrace, description: Description) -> None:
    """Write a trace to a new file, which appears whole or not at all.

    Equal traces and descriptions give equal bytes.

    Args:
        path: the new file.
        trace: the trace.
        description: what the trace says of itself.

    Raises:
        DomainError: the description is not Unicode text.
        ImageError: the file exists already.
    """
    for text in description:
        if text.encode(errors="ignore").decode() != text:
            raise DomainError("the description of a trace has characters that are not Unicode; correct it")
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
    """Read a trace from a file.

    Args:
        path: a file of `save_trace`.

    Returns:
        The trace.

    Raises:
        ImageError: the file cannot be read, is damaged, holds no trace, or is of another version.
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
        _refuse(container, f"counts from token {first_counted[:20]!r} on, but has {tokens} tokens")
    for name, n in zip(names, units, strict=True):
        entry = container.tensors[name]
        if entry.dtype != "U8" or entry.shape != (tokens, _width(n)):
            _refuse(
                container,
                f"has {name!r} as {entry.dtype} of shape {entry.shape}, not as U8 of shape "
                f"{(tokens, _width(n))}",
            )
    bits = np.concatenate([tensor_array(container, name) for name in names], axis=1)
    ids, starts, fits = _unpack(bits, units)
    if not fits:
        _refuse(container, "has bits set after a layer's last unit")
    return ActivationTrace(units, ids, starts, int(first_counted))


def load_description(path: str | os.PathLike[str]) -> Description:
    """Read what a trace file says of itself.

    Args:
        path: a file of `save_trace`.

    Returns:
        The description.

    Raises:
        ImageError: the file cannot be read, or holds no trace.
    """
    metadata = _open(path).metadata
    return Description(metadata.get("what", ""), metadata.get("source", ""))


def _open(path: str | os.PathLike[str]) -> Container:
    container = read_container(path)
    if container.metadata.get("format") != FORMAT:
        _refuse(container, "is a safetensors file, but holds no trace")
    if container.metadata.get("version") != VERSION:
        found = container.metadata.get("version", "")
        _refuse(container, f"is a trace of version {found[:20]!r}, and this flashref reads version {VERSION}")
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
    """How many bytes the bits of a token take in a layer of n units."""
    return -(-n // 8)


def _pack(trace: ActivationTrace) -> Bits:
    """The bits of all layers side by side, (tokens, bytes); each layer begins with a new byte."""
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
    """The ids and starts of an ActivationTrace, and whether every id is that of a unit of its layer."""
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
