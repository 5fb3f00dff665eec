"""Reads and writes safetensors files, the format of both checkpoints and flash images.

A header comes from a file that may be damaged or hostile. It is checked against the file before anything is
allocated, and every refusal is an ImageError with one sentence.
"""

import contextlib
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.storage.files import open_regular, read_exactly, read_into
from flashref.types import Array, DomainError, FlashrefError, ImageError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
PARSED_BYTES = 36  # the most bytes of memory that parsing takes for each byte of a header
SPARE_BYTES = 2**24  # a parsed header may take this much memory, however small its file is
PIECE_BYTES = 4 << 20  # the size of the pieces in which a tensor is read when it is only passed on
CHECKED_BYTES = 256 << 10  # values are checked in pieces of this size, which fit into the processor's cache

# Every dtype of safetensors that fills whole bytes. BF16 and F8, which NumPy lacks, are held as bits.
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for dtype, names in {
        "?": "BOOL",
        "u1": "U8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        "<u2": "U16 BF16",
        "<u4": "U32",
        "<u8": "U64",
        "i1": "I8",
        "<i2": "I16",
        "<i4": "I32",
        "<i8": "I64",
        "<f2": "F16",
        "<f4": "F32",
        "<f8": "F64",
        "<c8": "C64",
    }.items()
    for name in names.split()
}

# Float dtype → (dtype of the bits, mask, pattern): a value is not finite exactly if bits & mask == pattern.
_NOT_FINITE: Mapping[str, tuple[str, int, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "F16": ("<u2", 0x7C00, 0x7C00),
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F8_E5M2": ("u1", 0x7C, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
    "F8_E8M0": ("u1", 0xFF, 0xFF),
    "F8_E4M3FNUZ": ("u1", 0xFF, 0x80),
    "F8_E5M2FNUZ": ("u1", 0xFF, 0x80),
}


class TensorEntry(NamedTuple):
    """One tensor of a file: its dtype's name, its shape, and its bytes [offset, offset + length)."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class Container(NamedTuple):
    """A safetensors file whose header has been checked; size in bytes, tensors in the order of the file."""

    path: Path
    size: int
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def read_container(path: str | os.PathLike[str]) -> Container:
    """Read and check the header of a safetensors file.

    Args:
        path: the path of the file.

    Returns:
        The file's metadata and the entries of its tensors.

    Raises:
        ImageError: the file cannot be read, is not a safetensors file, or is damaged.
    """
    path = Path(path)
    with _refusing(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(read_exactly(file, 8, "its length prefix"), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"its header claims {length} bytes, more than the file or the format allows")
        text = read_exactly(file, length, "its header")
        if _too_much_header(text.rfind(b"}") + 1, size):  # the padding after it takes no memory
            raise ValueError(f"its header is {length} of its {size} bytes, more than any model needs")
        header = parse_json(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
            raise ValueError("its metadata are not Unicode strings")
        entries = {name: _entry(name, claim, start=8 + length) for name, claim in header.items()}
        tensors = dict(sorted(entries.items(), key=lambda item: (item[1].offset, item[1].length)))
        _require_no_gaps(tensors, 8 + length, size)
        return Container(path, size, metadata, tensors)


def tensor_entry(container: Container, name: str) -> TensorEntry:
    """Look up the entry of a tensor.

    Args:
        container: the file.
        name: the tensor's name.

    Returns:
        The tensor's dtype, shape and place in the file.

    Raises:
        ImageError: the file has no tensor of this name.
    """
    if name not in container.tensors:
        raise ImageError(f"{container.path}: has no tensor {name!r}; check that it is a file of this model")
    return container.tensors[name]


def tensor_array(container: Container, name: str) -> Array:
    """Read a tensor from its file.

    Args:
        container: the file.
        name: the tensor's name.

    Returns:
        A new C-contiguous array in the stored dtype; BF16 as its bits in uint16.

    Raises:
        ImageError: the file has no such tensor, or cannot be read.
    """
    entry = tensor_entry(container, name)
    array = np.empty(entry.shape, NUMPY_DTYPES[entry.dtype])
    with _refusing(container.path), open_regular(container.path) as file:
        file.seek(entry.offset)
        read_into(file, array.reshape(-1).view(np.uint8), f"the tensor {name!r}")
    return array


def tensor_pieces(container: Container, name: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Read the bytes of a tensor in pieces.

    Args:
        container: the file.
        name: the tensor's name.

    Returns:
        uint8 arrays of at most 4 MiB; each is valid until the next one is read.

    Raises:
        ImageError: the file has no such tensor, or cannot be read.
    """
    entry = tensor_entry(container, name)
    return byte_pieces(container, entry.offset, entry.length)


def byte_pieces(
    container: Container, offset: int, length: int, unit: int = 1
) -> Iterator[npt.NDArray[np.uint8]]:
    """Read a stretch of a file in pieces.

    Args:
        container: the file.
        offset, length: the stretch, in bytes.
        unit: a piece is a whole number of units of this many bytes.

    Returns:
        uint8 arrays of at most 4 MiB, or of one larger unit; each is valid until the next one is read.

    Raises:
        ImageError: the file cannot be read.
    """
    most = max(PIECE_BYTES // unit, 1) * unit
    buffer = np.empty(min(length, most), np.uint8)
    with _refusing(container.path), open_regular(container.path) as file:
        file.seek(offset)
        for done in range(0, length, most):
            piece = buffer[: length - done]
            read_into(file, piece, "its tensors")
            yield piece


def require_finite(container: Container, name: str, piece: Array) -> None:
    """Refuse a tensor that holds a NaN or an infinity.

    Args:
        container, name: the tensor's file and name.
        piece: some values of the tensor, C-contiguous.

    Raises:
        DomainError: the piece holds a value that is not finite; the message names the tensor.
    """
    dtype = tensor_entry(container, name).dtype
    if dtype in _NOT_FINITE:
        bits, mask, pattern = _NOT_FINITE[dtype]
        values = piece.reshape(-1).view(bits)
        step = CHECKED_BYTES // values.itemsize  # so that the intermediate arrays stay in the cache
        if any(
            np.any((values[first : first + step] & values.dtype.type(mask)) == pattern)
            for first in range(0, values.size, step)
        ):
            raise DomainError(
                f"{container.path}: the tensor {name!r} holds a value that is not finite; "
                "a model with a NaN or an infinity has no defined output, so get it again"
            )


def encode_header(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], block: int
) -> bytes:
    """Encode the header of a file whose tensors follow each other without gaps.

    Args:
        entries: name → (dtype, shape), in the order of the file.
        metadata: name → text.
        block: bytes; the header is padded with blanks so that the tensors begin on a multiple of it.

    Returns:
        The header with its length prefix; equal arguments give equal bytes.

    Raises:
        ImageError: the header is longer than `read_container` accepts.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in entries.items():
        end = offset + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // block) * block - 8
    if length > MAX_HEADER_BYTES or _too_much_header(len(text), 8 + length + offset):
        raise ImageError(
            f"the header would have {length:,} bytes, too many for tensors of this size; leave out the "
            "orders of the neurons"
        )
    return length.to_bytes(8, "little") + text.ljust(length)


def _too_much_header(length: int, size: int) -> bool:
    """Whether a parsed header may take more memory than its file has bytes, plus SPARE_BYTES."""
    return PARSED_BYTES * length > size + SPARE_BYTES


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Compute the size of a tensor.

    Args:
        dtype: the name of its dtype, as safetensors has it.
        shape: its shape.

    Returns:
        Bytes.
    """
    return math.prod(shape) * NUMPY_DTYPES[dtype].itemsize


def parse_json(text: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object whose keys are unique and whose numbers are whole and not negative.

    Args:
        text: the object in UTF-8.

    Returns:
        The object.

    Raises:
        ValueError: the text is something else; the message begins with "its header".
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("its header names something twice")
        return found

    def whole(number: str) -> int:
        if number.isdecimal() and len(number) <= 19 and int(number) < 1 << 63:
            return int(number)
        raise ValueError(f"its header holds {number[:20]}, where only whole numbers of 63 bits belong")

    try:
        parsed = json.loads(
            text.decode(), object_pairs_hook=unique, parse_int=whole, parse_float=whole, parse_constant=whole
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError("its header is not JSON in UTF-8") from error
    if not isinstance(parsed, dict) or not text.startswith(b"{"):
        raise ValueError("its header is not a JSON object")
    return parsed


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn a ValueError about a file, or an OSError, into an ImageError that names the file."""
    try:
        yield
    except FlashrefError:
        raise
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise ImageError(
            f"{path}: {error}; the file is damaged or not a safetensors file, so get it again"
        ) from error


def _entry(name: str, claim: object, start: int) -> TensorEntry:
    """Check what a header claims about a tensor, or raise ValueError; start: where the tensors begin."""

    def wrong(why: str) -> ValueError:
        return ValueError(f"the tensor {shortened(name)} {why}")

    if not _is_text(name):
        raise wrong("has a name that is not Unicode text")
    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise wrong(f"has the unknown dtype {shortened(dtype)}")
    if not _are_sizes(shape) or len(shape) > 64 or not _are_sizes(offsets) or len(offsets) != 2:
        raise wrong(f"has an impossible shape {shortened(shape)} or offsets {shortened(offsets)}")
    if tensor_bytes(dtype, tuple(size or 1 for size in shape)) >= 1 << 63:
        raise wrong(f"claims the huge shape {shortened(shape)}")
    length = offsets[1] - offsets[0]
    if length != tensor_bytes(dtype, tuple(shape)):
        raise wrong(f"has {length} bytes, which does not suit {dtype} of shape {shortened(shape)}")
    return TensorEntry(dtype, tuple(shape), start + offsets[0], length)


def shortened(value: object) -> str:
    """A value from a file, shortened for a message to one line of at most 80 characters."""
    brief = reprlib.Repr()  # unlike repr, it stops early at values that are long or deeply nested
    brief.maxstring, brief.maxlevel = 80, 3
    text = brief.repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _is_text(value: object) -> bool:
    """Whether this is a string that UTF-8 can hold; JSON's escapes can also spell half a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _are_sizes(values: object) -> bool:
    """Whether this is a list of whole numbers, without true or false; parse_json refuses negative ones."""
    return isinstance(values, list) and all(type(value) is int for value in values)


def _require_no_gaps(tensors: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """ValueError unless the tensors fill the file from `start` to its end, without holes or overlaps."""
    position = start
    for name, entry in tensors.items():
        if entry.offset != position:
            raise ValueError(f"the tensor {shortened(name)} overlaps the one before it, or leaves a hole")
        position = entry.offset + entry.length
    if position != size:
        raise ValueError(f"its tensors end at byte {position}, but the file has {size} bytes")
