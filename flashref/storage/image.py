"""The flash image: one safetensors file with the FFN weights as bundles. Chapter: specs/54-image.md.

Satisfies: IMG-1 to IMG-17.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.bundle import bundle_layout
from flashref.storage.container import (
    Container,
    TensorEntry,
    byte_pieces,
    create_file,
    encode_header,
    parse_json,
    read_container,
    require_finite,
    tensor_array,
    tensor_bytes,
    tensor_entry,
    tensor_pieces,
)
from flashref.types import STORED_DTYPES, Array, ImageError, Layout, LayoutError, ShapeError

FORMAT, VERSION = "flashref-image", 1
BLOCKS = (512, 1 << 20)  # smallest and largest block
PACKED_ROWS = 136  # bundles packed at a time; no power of two, or transposing down thrashes the cache
BUNDLE_FIELDS = ("gate", "up", "down")  # their order in a bundle (decision 13)

_RECORD = ("layer", "fields", "d", "stride", "order")  # what the metadata say of a tensor of bundles
# Tensors that packing adds; a checkpoint has none of these names.
_OWN_NAME = re.compile(r"crc32|pad\.[0-9]+|layers\.[0-9]+\.(bundles|gate|up|down)(\.crc32)?")


class Image(NamedTuple):
    """An opened image: all of it was checked but the bundles, which are checked as they are used.

    resident: names of the checkpoint's other tensors; layouts, checksums: layer → one for its bundles, or
    one a field if not bundled; a checksum array is (n,) uint32, by neuron: CRC-32 of the padded bundle.
    """

    container: Container
    fingerprint: str
    config: str
    bundled: bool
    resident: tuple[str, ...]
    layouts: dict[int, tuple[Layout, ...]]
    checksums: dict[int, tuple[Array, ...]]


class _Group(NamedTuple):
    """One tensor of bundles: its layer, layout (start 0 while packing), field → the checkpoint's tensor."""

    layer: int
    layout: Layout
    sources: Mapping[str, str]


class _Sums(NamedTuple):
    """What packing collects: CRC-32 of the checkpoint's tensors, of the image's, and of bundles by neuron."""

    sources: dict[str, int]
    parts: dict[str, int]
    bundles: dict[str, Array]


_Parts = dict[str, tuple[str, tuple[int, ...]]]  # tensors of the image in file order: name → dtype, shape


def fingerprint(tensors: Mapping[str, Container], config: str) -> str:
    """What tells one checkpoint from another: 64 hexadecimal digits over its tensors and its config.

    tensors: name → the file that holds it; how they are spread over files does not matter. Reads every
    byte. Raises ImageError. Requirement: IMG-12.
    """
    return _digest(tensors, {name: _crc32(tensor_pieces(tensors[name], name)) for name in tensors}, config)


def bundle_crc32(padded: npt.NDArray[np.uint8]) -> int:
    """The CRC-32 of one padded bundle, as zlib computes it. padded: (stride,) uint8. Requirement: IMG-8."""
    return zlib.crc32(padded.data)


def pack_image(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Container],
    layers: Mapping[int, Mapping[str, str]],
    config: str,
    block: int = 4096,
    orders: Mapping[int, npt.ArrayLike] | None = None,
    bundled: bool = True,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> str:
    """Write a checkpoint as a flash image, with memory of one layer; gives the checkpoint's fingerprint.

    tensors: name → the file that holds it. layers: layer → gate, up, down (those to be bundled) → name; up
    and gate are (n, d), down is (d, n) as in checkpoints. orders: layer → (n,), the neuron at each position.
    progress is called with bytes done and in total. Raises ImageError, DomainError (not finite), ShapeError,
    LayoutError; whatever is raised, no file is left. Requirements: IMG-1 to IMG-12, IMG-17.
    """
    path = Path(path)
    groups = _groups(tensors, layers, block, orders or {}, bundled)
    parts = _parts(tensors, groups, block)
    metadata = _metadata(groups, config, block, bundled)
    # The fingerprint is known last but has a fixed width, so the header's length is known first.
    offset = len(encode_header(parts, metadata, block))
    size = offset + sum(tensor_bytes(*part) for part in parts.values())
    sums = _Sums({}, {}, {})
    with create_file(path, size) as descriptor:
        for name in parts:
            for piece in _pieces(name, parts, tensors, groups, sums):
                _write(descriptor, piece, offset)
                offset += piece.size
                progress(offset, size)
        metadata["fingerprint"] = _digest(tensors, sums.sources, config)
        header = encode_header(parts, metadata, block)
        _write(descriptor, _all_sums(header, parts, sums), offset)
        _write(descriptor, np.frombuffer(header, np.uint8), 0)
        progress(size, size)
    return metadata["fingerprint"]


def open_image(path: str | os.PathLike[str]) -> Image:
    """An image whose header and resident tensors were read and checked; or ImageError, in one sentence.

    The bundles are left to whoever reads them: compare bundle_crc32 of a padded bundle with `checksums`
    before using it. Requirements: IMG-14, IMG-15.
    """
    container = read_container(path)
    _require_version(container)
    groups = _require_sums(container)
    layouts: dict[int, tuple[Layout, ...]] = {}
    checksums: dict[int, tuple[Array, ...]] = {}
    for name, (layer, layout, _) in groups.items():
        layouts[layer] = (*layouts.get(layer, ()), layout)
        checksums[layer] = (*checksums.get(layer, ()), tensor_array(container, f"{name}.crc32"))
    resident = tuple(name for name in container.tensors if not _OWN_NAME.fullmatch(name))
    identity, config, bundled = (container.metadata[key] for key in ("fingerprint", "config", "bundled"))
    return Image(container, identity, config, bundled == "true", resident, layouts, checksums)


def image_tensor(image: Image, name: str) -> Array:
    """A resident tensor of an image, C-contiguous in the stored dtype; it was checked at opening.

    Raises ImageError for a name that is not resident: the FFN's weights are bundles. Requirement: IMG-16.
    """
    if name not in image.resident:
        raise ImageError(
            f"{image.container.path}: has no resident tensor {name!r}; is it the image of another model?"
        )
    return tensor_array(image.container, name)


def require_checkpoint(image: Image, expected: str) -> None:
    """ImageError unless the image was packed from the checkpoint of this fingerprint. Requirement: IMG-13."""
    if image.fingerprint != expected:
        raise ImageError(
            f"{image.container.path}: is the image of another model or of other weights; "
            "pack this checkpoint under another name, or remove the image"
        )


def _groups(
    tensors: Mapping[str, Container],
    layers: Mapping[int, Mapping[str, str]],
    block: int,
    orders: Mapping[int, npt.ArrayLike],
    bundled: bool,
) -> dict[str, _Group]:
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
            groups[_group_name(layer, together, bundled)] = _Group(layer, layout, sources)
    return groups


def _group_name(layer: int, fields: Sequence[str], bundled: bool) -> str:
    return f"layers.{layer}.{'bundles' if bundled else fields[0]}"


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


def _parts(tensors: Mapping[str, Container], groups: Mapping[str, _Group], block: int) -> _Parts:
    """Every tensor of the image: resident ones, bundles with their sums, pads between them, all the sums."""
    bundled = {name for group in groups.values() for name in group.sources.values()}
    wanted: _Parts = {}
    for name in sorted(tensors.keys() - bundled, key=_natural):
        if _OWN_NAME.fullmatch(name):
            raise ImageError(
                f"the checkpoint's tensor {name!r} has a name that images use themselves; rename it"
            )
        wanted[name] = _source(tensors, name)[:2]
    for name, (_, layout, _) in groups.items():
        wanted[name] = (layout.dtype, (layout.n, layout.stride // STORED_DTYPES[layout.dtype].itemsize))
        wanted[f"{name}.crc32"] = ("U32", (layout.n,))
    parts: _Parts = {}
    for name, part in wanted.items():
        parts[name] = part
        if gap := -tensor_bytes(*part) % block:
            parts[f"pad.{len(parts) - 1}"] = ("U8", (gap,))
    # The header's sum and one a tensor; zeros fill whole blocks, so that no pad has to follow.
    values = 1 + len(parts) - len(groups)
    return parts | {"crc32": ("U32", (-(-4 * values // block) * block // 4,))}


def _metadata(groups: Mapping[str, _Group], config: str, block: int, bundled: bool) -> dict[str, str]:
    """What the header says beside the tensors; a fingerprint of zeros holds the true one's place."""
    bundles = {}
    for name, (layer, layout, _) in groups.items():
        order = None if layout.order is None else layout.order.tolist()
        values = (layer, layout.fields, layout.d, layout.stride, order)
        bundles[name] = dict(zip(_RECORD, values, strict=True))
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "block": str(block),
        "bundled": "true" if bundled else "false",
        "bundles": json.dumps(bundles, separators=(",", ":")),
        "fingerprint": "0" * 64,
        "config": config,
    }


def _pieces(
    name: str, parts: _Parts, tensors: Mapping[str, Container], groups: Mapping[str, _Group], sums: _Sums
) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of one tensor of the image, each piece valid until the next; checksums go to `sums`."""
    if name in groups:
        yield from _bundle_pieces(name, groups[name], tensors, sums)
    if name in groups or name == "crc32":  # the sums of all the others are written when they are known
        return
    crc = 0
    for piece in _copied(tensors, name) if name in tensors else [_own_bytes(name, parts, sums)]:
        crc = zlib.crc32(piece.data, crc)
        yield piece
    sums.parts[name] = crc
    if name in tensors:
        sums.sources[name] = crc


def _copied(tensors: Mapping[str, Container], name: str) -> Iterator[npt.NDArray[np.uint8]]:
    """A resident tensor's bytes, once they are seen to be finite."""
    for piece in tensor_pieces(tensors[name], name):
        require_finite(tensors[name], name, piece)
        yield piece


def _own_bytes(name: str, parts: _Parts, sums: _Sums) -> npt.NDArray[np.uint8]:
    """The bytes of a pad, or of the sums of a tensor of bundles."""
    if name.startswith("pad."):
        return np.zeros(parts[name][1], np.uint8)
    return sums.bundles[name.removesuffix(".crc32")].view(np.uint8)


def _bundle_pieces(
    name: str, group: _Group, tensors: Mapping[str, Container], sums: _Sums
) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of pack_bundles, a few neurons at a time; their checksums, by neuron, go to `sums`.

    The layer's weights are in memory once, as they lie in the checkpoint; down is transposed piece by piece.
    """
    layout = group.layout
    weights = {}
    for field in layout.fields:
        source = group.sources[field]
        weights[field] = tensor_array(tensors[source], source)
        require_finite(tensors[source], source, weights[field])
        sums.sources[source] = zlib.crc32(weights[field].data)
    checksums = sums.bundles[name] = np.empty(layout.n, "<u4")
    width = layout.stride // STORED_DTYPES[layout.dtype].itemsize
    padded = np.zeros((min(layout.n, PACKED_ROWS), width), STORED_DTYPES[layout.dtype])
    for first in range(0, layout.n, PACKED_ROWS):
        part = slice(first, min(first + PACKED_ROWS, layout.n))
        packed = padded[: part.stop - first]  # every piece fills the same columns: the padding stays zero
        ids = part if layout.order is None else layout.order[part]
        for j, field in enumerate(layout.fields):
            matrix = weights[field]
            rows = np.ascontiguousarray(matrix[:, ids]).T if field == "down" else matrix[ids]
            packed[:, j * layout.d : (j + 1) * layout.d] = rows
        bundles = packed.view(np.uint8)
        checksums[ids] = [bundle_crc32(bundle) for bundle in bundles]
        yield bundles.reshape(-1)


def _all_sums(header: bytes, parts: _Parts, sums: _Sums) -> npt.NDArray[np.uint8]:
    """The bytes of `crc32`: the header's checksum, then every covered tensor's in file order, then zeros."""
    table = np.zeros(parts["crc32"][1], "<u4")
    values = [zlib.crc32(header), *(sums.parts[name] for name in parts if name in sums.parts)]
    table[: len(values)] = values
    return table.view(np.uint8)


def _write(descriptor: int, piece: npt.NDArray[np.uint8], offset: int) -> None:
    """Write all of a piece; the system may take less at a time."""
    done = 0
    while done < piece.size:
        done += os.pwrite(descriptor, piece[done:].data, offset + done)
    if hasattr(os, "posix_fadvise"):  # Linux: the disk starts now, and the sync at the end has little to do
        os.posix_fadvise(descriptor, offset, done, os.POSIX_FADV_DONTNEED)


def _digest(tensors: Mapping[str, Container], crcs: Mapping[str, int], config: str) -> str:
    """SHA-256 of the JSON text [config, [[name, dtype, shape, CRC-32] … by name]]."""
    entries = [(name, *_source(tensors, name)[:2], crcs[name]) for name in sorted(tensors)]
    return hashlib.sha256(json.dumps([config, entries], separators=(",", ":")).encode()).hexdigest()


def _source(tensors: Mapping[str, Container], name: str) -> TensorEntry:
    if name not in tensors:
        raise ImageError(f"the checkpoint has no tensor {name!r}; is it a checkpoint of this model?")
    return tensor_entry(tensors[name], name)


def _natural(name: str) -> tuple[object, ...]:
    """A key that sorts layer 2 before layer 10: runs of digits compare as numbers, longer ones later."""
    runs = re.split("([0-9]+)", name)
    return *((len(run.lstrip("0")), run.lstrip("0")) if i % 2 else run for i, run in enumerate(runs)), name


def _require_version(container: Container) -> None:
    """ImageError unless the file says that it is an image of a version that is known here."""
    version = container.metadata.get("version", "")
    if container.metadata.get("format") != FORMAT or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise ImageError(f"{container.path}: is not a flash image; make one with `flashref pack`")
    if int(version) != VERSION:
        raise ImageError(
            f"{container.path}: was made by a newer flashref (image version {version}, "
            f"known here is {VERSION}); update flashref or pack the checkpoint again"
        )


def _require_sums(container: Container) -> dict[str, _Group]:
    """ImageError naming what is not as it was written; gives the tensors of bundles, which are not read."""
    path, entries = container.path, container.tensors
    entry = entries.get("crc32")
    if entry is None or entry.dtype != "U32":
        raise ImageError(f"{path}: has no checksums; the image is damaged, so pack it again")
    sums = iter(tensor_array(container, "crc32").reshape(-1).tolist())
    header_bytes = next(iter(entries.values())).offset
    if next(sums, None) != _crc32(byte_pieces(container, 0, header_bytes)):
        raise ImageError(
            f"{path}: its header is not as it was written; the image is damaged, so pack it again"
        )
    groups = _read_groups(container)
    for name in [name for name in entries if name not in groups and name != "crc32"]:
        if next(sums, None) != _crc32(tensor_pieces(container, name)):
            raise ImageError(f"{path}: the tensor {name!r} is not as it was written; pack the image again")
    if any(sums):
        raise ImageError(
            f"{path}: there are more checksums than tensors; the image is damaged, so pack it again"
        )
    return groups


def _read_groups(container: Container) -> dict[str, _Group]:
    """The tensors of bundles as the metadata describe them, or ImageError if the entries say otherwise."""
    metadata, entries = container.metadata, container.tensors
    groups = {}
    try:
        block, bundled, _, _ = (metadata[key] for key in ("block", "bundled", "fingerprint", "config"))
        _require_blocks(container, int(block))
        for name, record in parse_json(metadata["bundles"].encode()).items():
            layer, fields, d, stride, order = (record[key] for key in _RECORD)
            entry, sums = entries[name], entries[f"{name}.crc32"]
            layout = bundle_layout(entry.shape[0], d, entry.dtype, fields, int(block), entry.offset, order)
            width = layout.stride // STORED_DTYPES[layout.dtype].itemsize
            if (layout.stride, entry.shape, sums[:2]) != (stride, (layout.n, width), ("U32", (layout.n,))):
                raise ValueError(f"{name} is not of the shape that they imply")
            in_order = [field for field in BUNDLE_FIELDS if field in fields]
            if type(layer) is not int or (name, fields) != (
                _group_name(layer, in_order, bundled == "true"),
                in_order,
            ):
                raise ValueError(f"{name} is not the name of its layer and fields")
            groups[name] = _Group(layer, layout, {})
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ImageError(
            f"{container.path}: its metadata do not describe its tensors ({error}); pack the image again"
        ) from error
    return groups


def _require_blocks(container: Container, block: int) -> None:
    """ValueError unless each tensor, but for the pads, starts on a block, and the file ends on one."""
    starts = [entry.offset for name, entry in container.tensors.items() if not name.startswith("pad.")]
    if not BLOCKS[0] <= block <= BLOCKS[1] or any(position % block for position in (*starts, container.size)):
        raise ValueError(f"something does not start on a block of {block} bytes")


def _crc32(pieces: Iterator[npt.NDArray[np.uint8]]) -> int:
    """The CRC-32 of bytes that come in pieces."""
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece.data, crc)
    return crc
