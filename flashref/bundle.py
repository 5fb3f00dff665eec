"""Row-column bundling: where the rows of a neuron lie together on flash. Chapter: specs/40-bundle.md.

Satisfies: BND-1 to BND-9.
"""

import operator
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.types import (
    STORED_DTYPES,
    Array,
    DomainError,
    Extent,
    Ids,
    LayoutError,
    ShapeError,
    ascending_ids,
    stored_dtype,
    widen,
)


class Layout(NamedTuple):
    """Where the bundles of one layer lie on flash; block, start and stride in bytes, as Python ints.

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


def bundle_layout(
    n: int,
    d: int,
    dtype: str,
    fields: Sequence[str] = ("up", "down"),
    block: int = 4096,
    start: int = 0,
    order: npt.ArrayLike | None = None,
) -> Layout:
    """The layout of n bundles, each with one row of d values for each field (paper §3.2, Fig. 5).

    Args:
        n, d: neurons, and values in a row.
        dtype: F32, F16 or BF16.
        fields: the names of a bundle's rows, in their order.
        block: bytes, a power of two.
        start: byte of the first bundle, a multiple of block.
        order: (n,), the neuron at each position; ascending if None.

    Raises:
        LayoutError: an argument is outside its domain.

    Requirements: BND-1, BND-2, BND-3.
    """
    n, d, block, start = (operator.index(size) for size in (n, d, block, start))  # Python ints, any size
    if n < 1 or d < 1 or not fields or isinstance(fields, str) or len(set(fields)) != len(fields):
        raise LayoutError(f"a layout needs n ≥ 1, d ≥ 1 and distinct fields, not {n}, {d}, {fields}")
    if dtype not in STORED_DTYPES:
        raise LayoutError(f"dtype {dtype!r} is unknown; use one of {', '.join(STORED_DTYPES)}")
    if block < 1 or block & (block - 1):
        raise LayoutError(f"block must be a power of two, not {block}")
    if start < 0 or start % block:
        raise LayoutError(f"start must be a multiple of the block of {block} bytes, not {start}")
    bundle_bytes = len(fields) * d * STORED_DTYPES[dtype].itemsize
    # Below a block the next power of two: it divides the block, so no bundle straddles two blocks.
    below_block = bundle_bytes < block
    stride = 1 << (bundle_bytes - 1).bit_length() if below_block else -(-bundle_bytes // block) * block
    return Layout(n, d, dtype, tuple(fields), block, start, stride, _permutation(order, n))


def pack_bundles(layout: Layout, matrices: Mapping[str, Array]) -> npt.NDArray[np.uint8]:
    """The bytes of all bundles, zero-filled to the stride.

    Args:
        layout: where the bundles lie.
        matrices: field → (n, d), finite, in the layout's stored dtype.

    Returns:
        (n · stride,) uint8.

    Raises:
        ShapeError: a field is missing, or has another shape or dtype.
        DomainError: a value is not finite.

    Requirements: BND-4, BND-5, BND-6.
    """
    packed = np.zeros((layout.n, layout.stride), np.uint8)
    for j, field in enumerate(layout.fields):
        matrix = _field(layout, matrices, field)
        in_order = matrix if layout.order is None else matrix[layout.order]
        columns = slice(j * layout.row_bytes, (j + 1) * layout.row_bytes)
        packed[:, columns] = np.ascontiguousarray(in_order).view(np.uint8)
    return packed.reshape(-1)


def unpack_bundles(layout: Layout, packed: npt.NDArray[np.uint8]) -> dict[str, Array]:
    """The matrices that were packed, as copies.

    Args:
        layout: where the bundles lie.
        packed: (n · stride,) uint8.

    Returns:
        field → (n, d) in the stored dtype, neuron-major.

    Raises:
        ShapeError: the number of bytes is another.

    Requirements: BND-4, BND-5.
    """
    if packed.dtype != np.uint8 or packed.shape != (layout.n * layout.stride,):
        raise ShapeError(
            f"packed bundles must be {layout.n * layout.stride} bytes, "
            f"not {packed.dtype} of shape {packed.shape}"
        )
    by_position = packed.reshape(layout.n, layout.stride)
    matrices = {}
    for j, field in enumerate(layout.fields):
        columns = slice(j * layout.row_bytes, (j + 1) * layout.row_bytes)
        rows = np.ascontiguousarray(by_position[:, columns]).view(STORED_DTYPES[layout.dtype])
        matrix = np.empty_like(rows)
        matrix[slice(None) if layout.order is None else layout.order] = rows
        matrices[field] = matrix
    return matrices


def bundle_extents(layout: Layout, ids: npt.ArrayLike) -> tuple[Extent, ...]:
    """Where each neuron's bundle lies, without its padding.

    Args:
        layout: where the bundles lie.
        ids: (m,) strictly ascending.

    Returns:
        One extent for each id, in the ids' order; offsets are Python ints.

    Raises:
        IdsError: the ids are out of range or not strictly ascending.

    Requirements: BND-7 to BND-9.
    """
    checked = ascending_ids(ids, layout.n)
    positions = checked if layout.order is None else np.argsort(layout.order)[checked]
    return tuple(
        Extent(layout.start + position * layout.stride, layout.bundle_bytes)
        for position in positions.tolist()
    )


def bundle_crc32(padded: npt.NDArray[np.uint8]) -> int:
    """The CRC-32 of one padded bundle, as zlib computes it.

    Args:
        padded: (stride,) uint8.

    An image stores this checksum for each of its bundles. Requirement: IMG-8.
    """
    return zlib.crc32(padded.data)


def _permutation(order: npt.ArrayLike | None, n: int) -> Ids | None:
    if order is None:
        return None
    given = np.asarray(order)
    if given.shape != (n,) or given.dtype.kind not in "iu" or set(given.tolist()) != set(range(n)):
        raise LayoutError(f"order must hold each of 0 … {n - 1} once, as integers")
    return given.astype(np.int64)


def _field(layout: Layout, matrices: Mapping[str, Array], field: str) -> Array:
    matrix = matrices.get(field)
    if matrix is None:
        raise ShapeError(f"the field {field!r} is missing; the layout has {layout.fields}")
    if matrix.shape != (layout.n, layout.d) or stored_dtype(matrix) != layout.dtype:
        raise ShapeError(
            f"the field {field!r} must be {layout.dtype} of shape ({layout.n}, {layout.d}), "
            f"not {matrix.dtype} of shape {matrix.shape}; rows belong to neurons"
        )
    if not np.isfinite(widen(matrix)).all():
        raise DomainError(f"the field {field!r} holds a value that is not finite")
    return matrix
