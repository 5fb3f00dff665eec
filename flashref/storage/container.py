"""The safetensors container: a validated header, and tensors as arrays. Also used for checkpoints."""

from pathlib import Path
from typing import NamedTuple


class TensorEntry(NamedTuple):
    """One tensor of a container: dtype name, shape, and its bytes [offset, offset + length) in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class Container(NamedTuple):
    """A safetensors file whose header was checked: its path, size, metadata, and tensors in file order."""

    path: Path
    size: int
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
