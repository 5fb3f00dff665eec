"""The entries of a flash image, and the bytes of each: what pack_image writes. Chapter: specs/54-image.md.

A part is one tensor of the image's file. Which entries there are, and how long, is known before a byte is
written; then each part's bytes come in pieces, and the checksums of what passed are collected in `Checksums`.
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
BLOCKS = (512, 1 << 20)  # smallest and largest block
PACKED_ROWS = 136  # bundles packed at a time; no power of two, or transposing down thrashes the cache
BUNDLE_FIELDS = ("gate", "up", "down")  # their order in a bundle (decision 13)
RECORD = ("layer", "fields", "d", "stride", "order")  # what the metadata say of a tensor of bundles
# Tensors that packing adds; a checkpoint has none of these names.
OWN_NAME = re.compile(r"crc32|pad\.[0-9]+|layers\.[0-9]+\.(bundles|gate|up|down)(\.crc32)?")

Bytes = npt.NDArray[np.uint8]
Entries = dict[str, tuple[str, tuple[int, ...]]]  # tensors of the image in file order: name → dtype, shape


class Group(NamedTuple):
    """One tensor of bundles: its layer, layout (start 0 while packing), field → the checkpoint's tensor."""

    layer: int
    layout: Layout
    sources: Mapping[str, str]


class ImagePlan(NamedTuple):
    """An image before it is written: all but the bytes of its tensors, and the fingerprint in its metadata.

    header_bytes: where the tensors begin; size: of the file. Both in bytes.
    """

    groups: dict[str, Group]
    entries: Entries
    metadata: dict[str, str]
    header_bytes: int
    size: int


class Checksums(NamedTuple):
    """What packing collects: CRC-32 of the checkpoint's tensors, of the image's, and of bundles by neuron."""

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
    """What pack_image will write, from headers alone: all that can be refused before a weight is read.

    Args: as for `pack_image`.

    Raises:
        ImageError: a file lacks a tensor, or has one with a name that images use themselves.
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
    """The tensors of bundles that an image will have, by layer; everything about them is checked here."""
    if not BLOCKS[0] <= block <= BLOCKS[1]:
        raise LayoutError(f"block must be a power of two from {BLOCKS[0]} to {BLOCKS[1]}, not {block}")
    if any(layer < 0 for layer in layers) or not orders.keys() <= layers.keys():
        raise LayoutError("layers are numbered from 0, and only a layer that is bundled can have an order")
    named = [name for sources in layers.values() for name in sources.values()]
    if len(named) > len(set(named)):
        raise LayoutError(
            "a tensor is named twice among the layers' weights; each belongs to one layer and field"
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
    """Every tensor of the image: resident ones, bundles with their sums, pads between them, all the sums."""
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
    # The header's sum and one a tensor; zeros fill whole blocks, so that no pad has to follow.
    values = 1 + len(entries) - len(groups)
    return entries | {"crc32": ("U32", (-(-4 * values // block) * block // 4,))}


def image_metadata(groups: Mapping[str, Group], config: str, block: int, bundled: bool) -> dict[str, str]:
    """What the header says beside the tensors; a fingerprint of zeros holds the true one's place."""
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
    """The bytes of one tensor of the image, but for `crc32`, which is known when all others have passed.

    What has been read is summed by `beside`, while it is packed and written here: zlib does without the GIL.

    Args:
        name: of the tensor.
        entries, groups: of the plan.
        tensors: the checkpoint's, by name the file that holds it.
        sums: gets the checksums.
        beside: another thread.

    Returns:
        Pieces, each valid until the next.
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
    """The bytes of `crc32`: the header's checksum, then every covered tensor's in file order, then zeros."""
    table = np.zeros(entries["crc32"][1], "<u4")
    values = [zlib.crc32(header), *(sums.entries[name] for name in entries if name in sums.entries)]
    table[: len(values)] = values
    return table.view(np.uint8)


def _source(tensors: Mapping[str, Container], name: str) -> TensorEntry:
    """A checkpoint's tensor, or ImageError if none of its files is said to hold it."""
    if name not in tensors:
        raise ImageError(f"the checkpoint has no tensor {name!r}; is it a checkpoint of this model?")
    return tensor_entry(tensors[name], name)


def _common_shape(tensors: Mapping[str, Container], sources: Mapping[str, str]) -> tuple[int, int, str]:
    """n, d and dtype of a layer's weights, or ShapeError if they do not belong together."""
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
    """A key that sorts layer 2 before layer 10: runs of digits compare as numbers, longer ones later."""
    runs = re.split("([0-9]+)", name)
    return *((len(run.lstrip("0")), run.lstrip("0")) if i % 2 else run for i, run in enumerate(runs)), name


def _copied(tensors: Mapping[str, Container], name: str) -> Iterator[Bytes]:
    """A resident tensor's bytes, once they are seen to be finite."""
    for piece in tensor_pieces(tensors[name], name):
        require_finite(tensors[name], name, piece)
        yield piece


def _own_bytes(name: str, entries: Entries, sums: Checksums) -> Bytes:
    """The bytes of a pad, or of the sums of a tensor of bundles."""
    if name.startswith("pad."):
        return np.zeros(entries[name][1], np.uint8)
    return sums.bundles[name.removesuffix(".crc32")].view(np.uint8)


def _bundle_pieces(
    name: str, group: Group, tensors: Mapping[str, Container], sums: Checksums, beside: Executor
) -> Iterator[Bytes]:
    """The bytes of pack_bundles, a few neurons at a time; their checksums, by neuron, go to `sums`.

    The layer's weights are in memory once, as they lie in the checkpoint; down is transposed piece by piece.
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
        packed = padded[: part.stop - first]  # every piece fills the same columns: the padding stays zero
        ids = part if layout.order is None else layout.order[part]
        for j, field in enumerate(layout.fields):
            matrix = weights[field]
            rows = np.ascontiguousarray(matrix[:, ids]).T if field == "down" else matrix[ids]
            packed[:, j * layout.d : (j + 1) * layout.d] = rows
        bundles = packed.view(np.uint8)
        checksums[ids] = [zlib.crc32(bundle.data) for bundle in bundles]
        yield bundles.reshape(-1)
    sums.sources.update({source: crc.result() for source, crc in summed.items()})
