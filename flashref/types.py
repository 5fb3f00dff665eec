"""What several chapters share: ids, stored dtypes, errors, tuples. Chapter: specs/00-conventions.md.

Data are NamedTuples. Every id is an int64; bytes, offsets and nanoseconds are Python ints. A tuple that
belongs to one chapter stands in that chapter's module.

Satisfies: TYP-1 to TYP-6.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]  # strictly ascending neuron ids
Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]

NEVER = -1  # no token yet (Window.last), no neuron (Slots.ids)

# Names as in safetensors. NumPy has no bfloat16: its bits travel as uint16, which stands for nothing else.
STORED_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


class FlashrefError(Exception):
    """Base of every error that flashref raises on purpose; its text is one sentence for a user."""


class IdsError(FlashrefError, IndexError):
    """Ids that are out of range or not strictly ascending."""


class ShapeError(FlashrefError, ValueError):
    """An array of the wrong shape or dtype."""


class DomainError(FlashrefError, ValueError):
    """A value outside a function's domain, such as an infinity, a negative size or an unknown name."""


class LayoutError(FlashrefError, ValueError):
    """A bundle layout or an extent that is impossible."""


class ImageError(FlashrefError, ValueError):
    """A flash image or checkpoint that is damaged, truncated, foreign or of another model."""


class ReadError(FlashrefError, OSError):
    """Storage that did not deliver the bytes that were asked for."""


class MissingExtra(FlashrefError):
    """A package is missing that comes with one of flashref's extras."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what}; install flashref with its `{extra}` extra")


class FFN(NamedTuple):
    """One feed-forward network. Row i of gate, up and down belongs to neuron i (decision 12: neuron-major).

    up, gate, down: (n, d) of one stored dtype; up_bias, gate_bias: (n,); down_bias: (d,); None if absent.
    """

    activation: str
    up: Array
    down: Array
    gate: Array | None = None
    up_bias: Array | None = None
    gate_bias: Array | None = None
    down_bias: Array | None = None
    tau: float = 0.0  # FATReLU's threshold


class Predictor(NamedTuple):
    """Two linear maps d → r → n, whose result are the logits, and a threshold (paper §3.1, Fig. 3b).

    a: (r, d); b: (n, r); bias: (n,) or None; threshold: a float32 that logits must exceed (decision 4).
    """

    a: Array
    b: Array
    bias: Array | None
    threshold: float


class Extent(NamedTuple):
    """A run of bytes on flash: [offset, offset + length)."""

    offset: int
    length: int


class Read(NamedTuple):
    """What a reader gives for a batch: a buffer for each extent, valid until the next batch, and the time."""

    buffers: tuple[npt.NDArray[np.uint8], ...]
    nanoseconds: int


Reader = Callable[[tuple[Extent, ...]], Read]  # from aligned extents to their bytes (chapter 56)


class IO(NamedTuple):
    """What reading costs: number of reads, bytes that were needed, bytes that were read, nanoseconds."""

    requests: int
    useful_bytes: int
    read_bytes: int
    nanoseconds: int


def same(a: object, b: object) -> bool:
    """Whether two values are equal bit for bit.

    Args:
        a, b: arrays, scalars, strings, None, or tuples of them.

    Returns:
        True only if types, dtypes, shapes and every bit agree: +0.0 is not −0.0.

    Raises:
        DomainError: a value is another container.

    Requirement: TYP-1.
    """
    for value in (a, b):
        if not (value is None or isinstance(value, np.ndarray | np.generic | tuple | int | float | str)):
            raise DomainError(f"bits of a {type(value).__name__} cannot be compared; pass arrays and tuples")
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, np.generic) and isinstance(b, np.generic):
        return a.tobytes() == b.tobytes()
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return a == b


def ascending_ids(ids: npt.ArrayLike, n: int) -> Ids:
    """The ids of a set of neurons, checked.

    Args:
        ids: (m,) integers.
        n: the number of neurons.

    Returns:
        (m,) int64, a new array.

    Raises:
        IdsError: the ids are not integers, not strictly ascending, or not all in 0 … n − 1.

    Decision 24: nothing is sorted, clamped or wrapped. Requirements: TYP-2, TYP-3.
    """
    given = np.asarray(ids)
    if given.size == 0 and given.ndim == 1:
        return np.zeros(0, np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise IdsError(
            f"ids must be a list of integers, not {given.dtype} of shape {given.shape}; "
            "pass the neurons' numbers in ascending order"
        )
    if int(given.min()) < 0 or int(given.max()) >= n:
        raise IdsError(
            f"ids must lie in 0 … {n - 1}, but they span {given.min()} … {given.max()}; "
            "the layer has no such neuron"
        )
    checked = given.astype(np.int64)
    if np.any(checked[1:] <= checked[:-1]):
        raise IdsError("ids must be strictly ascending; sort them and drop duplicates")
    return checked


def stored_dtype(weights: Array) -> str:
    """The name of the dtype that an array of weights is stored in: F32, F16, or BF16 for uint16 bits.

    Raises:
        ShapeError: the array has another dtype.

    Requirement: TYP-4.
    """
    name = _DTYPE_NAMES.get(weights.dtype)
    if name is None:
        raise ShapeError(f"weights must be F32, F16 or BF16 (as uint16 bits), not {weights.dtype}")
    return name


def widen(weights: Array) -> npt.NDArray[np.float32]:
    """Stored weights as float32, exactly: BF16's bits are the upper half of a float32's. F32 is not copied.

    Raises:
        ShapeError: the array is not in a stored dtype.

    Requirement: TYP-5.
    """
    if stored_dtype(weights) == "BF16":
        return (weights.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return weights.astype(np.float32, copy=False)
