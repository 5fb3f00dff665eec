"""The vocabulary: what every chapter's functions take and give. Chapter: specs/00-conventions.md.

Data are NamedTuples; every id is an int64, every byte, offset and nanosecond a Python int.
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

# Names as in safetensors. NumPy has no bfloat16: its bits travel as uint16, which means nothing else.
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
    """A value outside a function's domain: not finite, not positive, unknown name."""


class LayoutError(FlashrefError, ValueError):
    """A bundle layout, or an extent, that cannot be."""


class ImageError(FlashrefError, ValueError):
    """A flash image or checkpoint that is damaged, truncated, foreign or of another model."""


class ReadError(FlashrefError, OSError):
    """Storage that did not deliver the bytes that were asked for."""


class FFN(NamedTuple):
    """One feed-forward network, neuron-major: row i of gate, up and down belongs to neuron i (decision 12).

    up, gate, down: (n, d) of one stored dtype; up_bias, gate_bias: (n,); down_bias: (d,). Absent is None.
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
    """Two linear maps d → r → n and the threshold of the logits (paper §3.1, Fig. 3b; decisions 4, 6).

    a: (r, d); b: (n, r); bias: (n,) or None; threshold: a float32 value, compared with `>`.
    """

    a: Array
    b: Array
    bias: Array | None
    threshold: float


class Band(NamedTuple):
    """A predictor's answer with its rounding: ids that must be active, and ids that may be."""

    must: Ids
    may: Ids


class Window(NamedTuple):
    """The neurons of the last k tokens of one layer (paper §3.1.2; decisions 1, 8, 9).

    k: tokens; capacity: rows of the DRAM matrix; token: index of the next token;
    last: (n,) int64, the token of a neuron's last prediction while it is resident, else NEVER.
    """

    k: int
    capacity: int
    token: int
    last: npt.NDArray[np.int64]


class Delta(NamedTuple):
    """What one token changes: ids to read and keep, to drop, and to read and use once. Disjoint."""

    load: Ids
    evict: Ids
    bypass: Ids


class Layout(NamedTuple):
    """Where the bundles of one layer lie on flash; bytes as Python ints (decision 25).

    Neuron order[p] (p, if order is None) occupies [start + p·stride, start + p·stride + bundle_bytes).
    """

    n: int
    d: int
    dtype: str
    fields: tuple[str, ...]
    block: int
    start: int
    stride: int
    order: Ids | None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one field."""
        return self.d * STORED_DTYPES[self.dtype].itemsize

    @property
    def bundle_bytes(self) -> int:
        """Bytes of one neuron's rows, without padding."""
        return len(self.fields) * self.row_bytes


class Extent(NamedTuple):
    """A run of bytes on flash: [offset, offset + length)."""

    offset: int
    length: int


class Slots(NamedTuple):
    """Which neuron lies in which row of the DRAM matrix (paper §3.3, `pointer` and `num_used`).

    ids: (capacity,) int64, rows 0 … used − 1 in use; behind them stale ids, or NEVER.
    """

    ids: npt.NDArray[np.int64]
    used: int


class Moves(NamedTuple):
    """What a placement does to the DRAM matrix: row source[j] → row target[j], then new row j → put[j]."""

    source: Ids
    target: Ids
    put: Ids


class Device(NamedTuple):
    """A storage device in integers; 0 = no such limit (../specs/50-device.md).

    latency_ns, dispatch_ns: ns; max_iops: reads/s; max_bandwidth, stream_bandwidth: B/s;
    split_bytes, block: B; queue_depth: reads outstanding; knee: exponent ≥ 1, 1 = costs add up.
    """

    latency_ns: int
    max_iops: int
    max_bandwidth: int
    stream_bandwidth: int = 0
    split_bytes: int = 131_072
    queue_depth: int = 32
    block: int = 4096
    dispatch_ns: int = 0
    knee: float = 1.0


class Read(NamedTuple):
    """One batch as a reader gives it: a buffer an extent, valid until the next read, and its time."""

    buffers: tuple[npt.NDArray[np.uint8], ...]
    nanoseconds: int


Reader = Callable[[tuple[Extent, ...]], Read]


class IO(NamedTuple):
    """The cost of reading: requests, bytes that were wanted, bytes that were read, nanoseconds."""

    requests: int
    useful_bytes: int
    read_bytes: int
    nanoseconds: int


class Gathered(NamedTuple):
    """Bundles in DRAM: rows (m, fields, d) in the stored dtype, copies, and what they cost."""

    rows: Array
    io: IO


class ResidentFFN(NamedTuple):
    """What of an FFN never leaves DRAM: all but the bundles (paper §3.3: "pointers and scalars").

    gate: (n, d), only where the bundles hold no gate row (decision 13); biases as in FFN.
    """

    activation: str
    gate: Array | None = None
    up_bias: Array | None = None
    gate_bias: Array | None = None
    down_bias: Array | None = None
    tau: float = 0.0


class LayerState(NamedTuple):
    """One layer between two tokens (paper §3.3, Fig. 6).

    layout: its bundles on flash; checksums: CRC-32 of each padded bundle by neuron, (n,) uint32, or None;
    matrix: (capacity, fields, d) in the stored dtype; bypass_rows: rows of the bypass buffer;
    max_gap: bytes that a read may run over.
    """

    layout: Layout
    resident: ResidentFFN
    checksums: Array | None
    window: Window
    slots: Slots
    matrix: Array
    bypass_rows: int
    max_gap: int


class Step(NamedTuple):
    """Everything one token did in one layer: sets, cost, moves, and the nanoseconds of each batch."""

    predicted: Ids
    load: Ids
    evict: Ids
    bypass: Ids
    resident: Ids
    io: IO
    moves: Moves
    times: tuple[int, ...]


def same(a: object, b: object) -> bool:
    """Whether two values are equal bit for bit: arrays, scalars, strings, None, and tuples of them.

    Raises DomainError for any other container. Requirement: TYP-1.
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
    """The ids as a new int64 array, or IdsError if not integers, strictly ascending, in 0 … n − 1.

    ids: (m,). Decision 24. Requirements: TYP-2, TYP-3.
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
    """The stored dtype's name of an array of weights: F32, F16, or BF16 for uint16 bits (TYP-4).

    Raises ShapeError for any other dtype.
    """
    name = _DTYPE_NAMES.get(weights.dtype)
    if name is None:
        raise ShapeError(f"weights must be F32, F16 or BF16 (as uint16 bits), not {weights.dtype}")
    return name


def widen(weights: Array) -> npt.NDArray[np.float32]:
    """Stored weights as float32, exactly; BF16 is shifted into the upper half (TYP-5). F32 is not copied."""
    if stored_dtype(weights) == "BF16":
        return (weights.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return weights.astype(np.float32, copy=False)
