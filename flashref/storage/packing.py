"""Plans a flash image, and gives the bytes of its tensors to `pack_image`. Chapter: specs/54-image.md.

The header's entries, which are all tensors of the image with their sizes, are known before a byte is written.
Then the bytes of each tensor come in pieces, and `Checksums` collects the checksums of the bytes that passed.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.bundle import Layout, bundle_layout
from flashref.storage.container import (
    Container,
    TensorEntry,
    encode_header,
    require_finite,
    tensor_array,
    tensor_bytes,
    tensor_entry,
    tensor_pieces,
)
from flashref.types import STORED_DTYPES, Array, ImageError, LayoutError, ShapeError

FORMAT, VERSION = "flashref-image", 1
BLOCKS = (512, 1 << 20)  # the smallest and the largest block
# Bundles that are packed at a time. With a power of two, transposing `down` would thrash the cache.
PACKED_ROWS = 136
BUNDLE_FIELDS = ("gate", "up", "down")  # their order in a bundle (decision 13)
RECORD = ("layer", "fields", "d", "stride", "order")  # the metadata of a tensor of bundles
# The names of the tensors that packing adds; a checkpoint with such a name is refused.
OWN_NAME = re.compile(r"crc32|pad\.[0-9]+|layers\.[0-9]+\.(bundles|gate|up|down)(\.crc32)?")

Bytes = npt.NDArray[np.uint8]
Entries = dict[str, tuple[str, tuple[int, ...]]]  # the image's tensors in file order: name → (dtype, shape)


class Group(NamedTuple):
    """One tensor of bundles.

    layout: starts at 0 while the image is planned and packed; sources: field → the checkpoint's tensor.
    """

    layer: int
    layout: Layout
    sources: Mapping[str, str]


class ImagePlan(NamedTuple):
    """An image before it is written: everything except its tensors' bytes and its fingerprint.

    groups: the tensors of bundles by name; header_bytes: where the first tensor begins; size: of the file, in
    bytes.
    """

    groups: dict[str, Group]
    entries: Entries
    metadata: dict[str, str]
    header_bytes: int
    size: int


class Checksums(NamedTuple):
    """The checksums (CRC-32) that packing collects.

    sources: of the checkpoint's tensors; entries: of the image's tensors outside the bundles; bundles: the
    name of a tensor of bundles → (n,) uint32 by neuron.
    """

    sources: dict[str, int]
    entries: dict[str, int]
    bundles: dict[str, Array]


def plan_image(
    tensors: Mapping[str, Container],
    layers: Mapping[int, Mapping[str, str]],
    config: str,
    block: int = 4096,
    orders: Mapping[int, npt.ArrayLike] | None = None,
    bundled: bool = True,
) -> ImagePlan:
    """Plan an image from the checkpoint's headers alone, and refuse all that they show to be wrong.

    Args: as for `pack_image`.

    Returns:
        The plan.

    Raises:
        ImageError: a tensor is missing, or has a name that images use themselves.
        ShapeError, LayoutError: the weights of a layer do not belong together.
    """
    groups = image_groups(tensors, layers, block, orders or {}, bundled)
    entries = image_entries(tensors, groups, block)
    metadata = image_metadata(groups, config, block, bundled)
    # The fingerprint is known last but has a fixed width, so the header's length is known first.
    header_bytes = len(encode_header(entries, metadata, block))
    size = header_bytes + sum(tensor_bytes(*part) for part in entries.values())
    return ImagePlan(groups, entries, metadata, header_bytes, size)


def image_groups(
    tensors: Mapping[str, Container],
    layers: Mapping[int, Mapping[str, str]],
    block: int,
    orders: Mapping[int, npt.ArrayLike],
    bundled: bool,
) -> dict[str, Group]:
    """The tensors of bundles that an image will have, in the order of the layers, once they are checked."""
    if not BLOCKS[0] <= block <= BLOCKS[1]:
        raise LayoutError(f"block must be a power of two from {BLOCKS[0]} to {BLOCKS[1]}, not {block}")
    if any(layer < 0 for layer in layers) or not orders.keys() <= layers.keys():
        raise LayoutError("layers are numbered from 0, and only a layer that is bundled can have an order")
    named = [name for sources in layers.values() for name in sources.values()]
    if len(named) > len(set(named)):
        raise LayoutError(
            "a tensor is named twice among the layers' weights; name each for one layer and field only"
        )
    groups = {}
    for layer in sorted(layers):
        sources = layers[layer]
        n, d, dtype = _common_shape(tensors, sources)
        fields = tuple(field for field in BUNDLE_FIELDS if field in sources)
        for together in [fields] if bundled else [(field,) for field in fields]:
            layout = bundle_layout(n, d, dtype, together, block, 0, orders.get(layer))
            groups[group_name(layer, together, bundled)] = Group(layer, layout, sources)
    return groups


def group_name(layer: int, fields: Sequence[str], bundled: bool) -> str:
    """The image's name for the bundles of a layer, or for the rows of its one field."""
    return f"layers.{layer}.{'bundles' if bundled else fields[0]}"


def bundles_shape(layout: Layout) -> tuple[int, int]:
    """The shape of a tensor of bundles: neurons, and values in a stride, the padding included."""
    return layout.n, layout.stride // STORED_DTYPES[layout.dtype].itemsize


def image_entries(tensors: Mapping[str, Container], groups: Mapping[str, Group], block: int) -> Entries:
    """Every tensor of the image: resident ones, bundles and their checksums, pads, and at last `crc32`."""
    bundled = {name for group in groups.values() for name in group.sources.values()}
    wanted: Entries = {}
    for name in sorted(tensors.keys() - bundled, key=_natural):
        if OWN_NAME.fullmatch(name):
            raise ImageError(
                f"the checkpoint's tensor {name!r} has a name that images use themselves; rename it"
            )
        wanted[name] = _source(tensors, name)[:2]
    for name, (_, layout, _) in groups.items():
        wanted[name] = (layout.dtype, bundles_shape(layout))
        wanted[f"{name}.crc32"] = ("U32", (layout.n,))
    entries: Entries = {}
    for name, part in wanted.items():
        entries[name] = part
        if gap := -tensor_bytes(*part) % block:
            entries[f"pad.{len(entries) - 1}"] = ("U8", (gap,))
    # The checksum of the header and one for each tensor; zeros fill the last block, so that no pad is needed.
    values = 1 + len(entries) - len(groups)
    return entries | {"crc32": ("U32", (-(-4 * values // block) * block // 4,))}


def image_metadata(groups: Mapping[str, Group], config: str, block: int, bundled: bool) -> dict[str, str]:
    """The image's metadata, with a fingerprint of zeros as a placeholder for the true one."""
    bundles = {}
    for name, (layer, layout, _) in groups.items():
        order = None if layout.order is None else layout.order.tolist()
        values = (layer, layout.fields, layout.d, layout.stride, order)
        bundles[name] = dict(zip(RECORD, values, strict=True))
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "block": str(block),
        "bundled": "true" if bundled else "false",
        "bundles": json.dumps(bundles, separators=(",", ":")),
        "fingerprint": "0" * 64,
        "config": config,
    }


def entry_pieces(
    name: str,
    entries: Entries,
    tensors: Mapping[str, Container],
    groups: Mapping[str, Group],
    sums: Checksums,
    beside: Executor,
) -> Iterator[Bytes]:
    """The bytes of one tensor of the image; `crc32` gives none, since it is known only after all others.

    The thread of `beside` computes the checksums of what has been read while this thread packs and the caller
    writes; zlib releases the GIL.

    Args:
        name: the tensor's name.
        entries, groups: the plan's.
        tensors: the name of each tensor of the checkpoint → the file that holds it.
        sums: the checksums, which are added to.
        beside: an executor with one other thread.

    Returns:
        Pieces of uint8; each is valid until the next one.
    """
    if name in groups:
        yield from _bundle_pieces(name, groups[name], tensors, sums, beside)
    elif name != "crc32":
        crc = 0
        for piece in _copied(tensors, name) if name in tensors else [_own_bytes(name, entries, sums)]:
            summed = beside.submit(zlib.crc32, piece.data, crc)
            yield piece
            crc = summed.result()
        sums.entries[name] = crc
        if name in tensors:
            sums.sources[name] = crc


def all_sums(header: bytes, entries: Entries, sums: Checksums) -> Bytes:
    """The bytes of `crc32`: the checksums of the header and of the tensors in file order, then zeros."""
    table = np.zeros(entries["crc32"][1], "<u4")
    values = [zlib.crc32(header), *(sums.entries[name] for name in entries if name in sums.entries)]
    table[: len(values)] = values
    return table.view(np.uint8)


def _source(tensors: Mapping[str, Container], name: str) -> TensorEntry:
    """The entry of a checkpoint's tensor, or ImageError if there is no such tensor."""
    if name not in tensors:
        raise ImageError(
            f"the checkpoint has no tensor {name!r}; check that it is a checkpoint of this model"
        )
    return tensor_entry(tensors[name], name)


def _common_shape(tensors: Mapping[str, Container], sources: Mapping[str, str]) -> tuple[int, int, str]:
    """The n, d and dtype of a layer's weights, or ShapeError if these do not belong together."""
    if not sources or not sources.keys() <= set(BUNDLE_FIELDS):
        raise LayoutError(f"a layer's weights are some of {', '.join(BUNDLE_FIELDS)}, not {list(sources)}")
    shapes = {}
    for field, name in sources.items():
        entry = _source(tensors, name)
        shapes[name] = (entry.dtype, entry.shape[::-1] if field == "down" else entry.shape)
    dtype, shape = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1 or len(shape) != 2 or dtype not in STORED_DTYPES:
        raise ShapeError(
            f"the weights of a layer must be F32, F16 or BF16 of one shape (n, d), down (d, n), "
            f"but these are (down transposed): {shapes}"
        )
    return shape[0], shape[1], dtype


def _natural(name: str) -> tuple[object, ...]:
    """A sort key that puts layer 2 before layer 10: runs of digits are compared as numbers."""
    runs = re.split("([0-9]+)", name)
    return *((len(run.lstrip("0")), run.lstrip("0")) if i % 2 else run for i, run in enumerate(runs)), name


def _copied(tensors: Mapping[str, Container], name: str) -> Iterator[Bytes]:
    """The bytes of a resident tensor, checked to be finite."""
    for piece in tensor_pieces(tensors[name], name):
        require_finite(tensors[name], name, piece)
        yield piece


def _own_bytes(name: str, entries: Entries, sums: Checksums) -> Bytes:
    """The bytes of a pad, or of the checksums of a tensor of bundles."""
    if name.startswith("pad."):
        return np.zeros(entries[name][1], np.uint8)
    return sums.bundles[name.removesuffix(".crc32")].view(np.uint8)


def _bundle_pieces(
    name: str, group: Group, tensors: Mapping[str, Container], sums: Checksums, beside: Executor
) -> Iterator[Bytes]:
    """The bytes that `pack_bundles` would give, some neurons at a time; their checksums are added to `sums`.

    The layer's weights are in memory once, as the checkpoint has them; `down` is transposed piece by piece.
    """
    layout = group.layout
    weights, summed = {}, {}
    for field in layout.fields:
        source = group.sources[field]
        weights[field] = tensor_array(tensors[source], source)
        summed[source] = beside.submit(zlib.crc32, weights[field].data)
        require_finite(tensors[source], source, weights[field])
    checksums = sums.bundles[name] = np.empty(layout.n, "<u4")
    padded = np.zeros((min(layout.n, PACKED_ROWS), bundles_shape(layout)[1]), STORED_DTYPES[layout.dtype])
    for first in range(0, layout.n, PACKED_ROWS):
        part = slice(first, min(first + PACKED_ROWS, layout.n))
        packed = padded[: part.stop - first]  # every piece fills the same columns, so the padding stays zero
        ids = part if layout.order is None else layout.order[part]
        for j, field in enumerate(layout.fields):
            matrix = weights[field]
            rows = np.ascontiguousarray(matrix[:, ids]).T if field == "down" else matrix[ids]
            packed[:, j * layout.d : (j + 1) * layout.d] = rows
        bundles = packed.view(np.uint8)
        checksums[ids] = [zlib.crc32(bundle.data) for bundle in bundles]
        yield bundles.reshape(-1)
    sums.sources.update({source: crc.result() for source, crc in summed.items()})
