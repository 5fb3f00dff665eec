"""The flash image: one safetensors file with the FFN weights as bundles. Chapter: specs/54-image.md.

Satisfies: IMG-1 to IMG-19.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.bundle import Layout, bundle_crc32, bundle_layout
from flashref.storage.container import (
    Container,
    byte_pieces,
    encode_header,
    parse_json,
    read_container,
    shortened,
    tensor_array,
    tensor_entry,
    tensor_pieces,
)
from flashref.storage.files import create_file, write_all
from flashref.storage.packing import (
    BLOCKS,
    BUNDLE_FIELDS,
    FORMAT,
    OWN_NAME,
    RECORD,
    VERSION,
    Checksums,
    Group,
    all_sums,
    bundles_shape,
    entry_pieces,
    group_name,
    plan_image,
)
from flashref.storage.progress import Progress, unseen
from flashref.types import Array, ImageError

# At most so many bytes are written and not yet on the disk; else progress would run ahead of a slow disk.
UNSYNCED_BYTES = 256 << 20


class Image(NamedTuple):
    """An opened image: all of it was checked but the bundles, which are checked as they are used.

    resident: names of the checkpoint's other tensors. layouts, checksums: for each layer one for its bundles,
    or one for each field if it is not bundled; checksums are (n,) uint32, by neuron, CRC-32 of the padded
    bundle.
    """

    container: Container
    fingerprint: str
    config: str
    bundled: bool
    resident: tuple[str, ...]
    layouts: dict[int, tuple[Layout, ...]]
    checksums: dict[int, tuple[Array, ...]]


def fingerprint(tensors: Mapping[str, Container], config: str, progress: Progress = unseen) -> str:
    """What tells one checkpoint from another: 64 hexadecimal digits over its tensors and its config.

    Every byte is read; how the tensors are spread over files does not matter.

    Args:
        tensors: name → the file that holds it.
        config: the checkpoint's config, as text.
        progress: called with what is being done, bytes done and bytes in total.

    Raises:
        ImageError: a file cannot be read.

    Requirement: IMG-12.
    """
    total = sum(tensor_entry(tensors[name], name).length for name in tensors)
    done, crcs = 0, {}
    for name in tensors:
        crcs[name] = _crc32(tensor_pieces(tensors[name], name))
        done += tensors[name].tensors[name].length
        progress("reading the checkpoint", done, total)
    return _digest(tensors, crcs, config)


def pack_image(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Container],
    layers: Mapping[int, Mapping[str, str]],
    config: str,
    block: int = 4096,
    orders: Mapping[int, npt.ArrayLike] | None = None,
    bundled: bool = True,
    progress: Progress = unseen,
) -> str:
    """Write a checkpoint as a flash image, with memory of one layer; gives the checkpoint's fingerprint.

    Whatever is raised, no file is left.

    Args:
        path: of the image; there must be none yet.
        tensors: name → the file that holds it.
        layers: layer → gate, up, down (those to be bundled) → name of the tensor; up and gate are (n, d),
            down is (d, n), as in checkpoints.
        config: the checkpoint's config, as text.
        block: bytes, a power of two.
        orders: layer → (n,), the neuron at each position.
        bundled: False gives each field a tensor of its own.
        progress: called with what is being done, bytes done and bytes in total.

    Raises:
        ImageError: a file cannot be read or written, or lacks a tensor.
        DomainError: a weight is not finite.
        ShapeError, LayoutError: the weights of a layer do not belong together.

    Requirements: IMG-1 to IMG-12, IMG-17, IMG-18.
    """
    path = Path(path)
    what = f"packing {path.name}"
    plan = plan_image(tensors, layers, config, block, orders, bundled)
    offset, synced, sums = plan.header_bytes, 0, Checksums({}, {}, {})
    with create_file(path, plan.size) as descriptor, ThreadPoolExecutor(1) as beside:
        for name in plan.entries:
            for piece in entry_pieces(name, plan.entries, tensors, plan.groups, sums, beside):
                write_all(descriptor, piece, offset)
                offset += piece.size
                if offset - synced >= UNSYNCED_BYTES:
                    os.fsync(descriptor)
                    synced = offset
                progress(what, offset, plan.size)
        identity = _digest(tensors, sums.sources, config)
        header = encode_header(plan.entries, plan.metadata | {"fingerprint": identity}, block)
        write_all(descriptor, all_sums(header, plan.entries, sums), offset)
        write_all(descriptor, np.frombuffer(header, np.uint8), 0)
        progress(what, plan.size, plan.size)
    return identity


def open_image(path: str | os.PathLike[str]) -> Image:
    """Open an image: its header and resident tensors are read and checked.

    The bundles are left to whoever reads them: compare bundle_crc32 of a padded bundle with `checksums`
    before using it, or all of them with require_bundles.

    Args:
        path: of the image.

    Raises:
        ImageError: the file is damaged, or no image of a known version.

    Requirements: IMG-14, IMG-15.
    """
    container = read_container(path)
    _require_version(container)
    groups = _require_sums(container)
    layouts: dict[int, tuple[Layout, ...]] = {}
    checksums: dict[int, tuple[Array, ...]] = {}
    for name, (layer, layout, _) in groups.items():
        layouts[layer] = (*layouts.get(layer, ()), layout)
        checksums[layer] = (*checksums.get(layer, ()), tensor_array(container, f"{name}.crc32"))
    resident = tuple(name for name in container.tensors if not OWN_NAME.fullmatch(name))
    identity, config, bundled = (container.metadata[key] for key in ("fingerprint", "config", "bundled"))
    return Image(container, identity, config, bundled == "true", resident, layouts, checksums)


def image_tensor(image: Image, name: str) -> Array:
    """A resident tensor of an image; it was checked when the image was opened.

    Args:
        image: that was opened.
        name: as in the checkpoint.

    Returns:
        The tensor, C-contiguous in the stored dtype.

    Raises:
        ImageError: there is no resident tensor of this name; the FFN's weights are bundles.

    Requirement: IMG-16.
    """
    if name not in image.resident:
        raise ImageError(
            f"{image.container.path}: has no resident tensor {name!r}; is it the image of another model?"
        )
    return tensor_array(image.container, name)


def require_checkpoint(image: Image, expected: str) -> None:
    """See that an image was packed from a checkpoint.

    Args:
        image: that was opened.
        expected: the checkpoint's fingerprint.

    Raises:
        ImageError: the image has another fingerprint.

    Requirement: IMG-13.
    """
    if image.fingerprint != expected:
        raise ImageError(
            f"{image.container.path}: is the image of another model or of other weights; "
            "pack this checkpoint under another name, or remove the image"
        )


def require_bundles(image: Image, progress: Progress = unseen) -> None:
    """Compare every bundle of an image with its checksum; all are read, piece by piece.

    Args:
        image: that was opened.
        progress: called with what is being done, bytes done and bytes in total.

    Raises:
        ImageError: a bundle does not match; the first one is named.

    Requirement: IMG-19.
    """
    total = sum(layout.n * layout.stride for layouts in image.layouts.values() for layout in layouts)
    done = 0
    for layer, layouts in image.layouts.items():
        for layout, checksums in zip(layouts, image.checksums[layer], strict=True):
            stored = checksums if layout.order is None else checksums[layout.order]
            position = 0
            for piece in byte_pieces(image.container, layout.start, layout.n * layout.stride, layout.stride):
                found = [bundle_crc32(padded) for padded in piece.reshape(-1, layout.stride)]
                wrong = np.flatnonzero(stored[position : position + len(found)] != found)
                if wrong.size:
                    where = position + int(wrong[0])
                    neuron = where if layout.order is None else layout.order[where]
                    raise ImageError(
                        f"{image.container.path}: the {' and '.join(layout.fields)} row of neuron {neuron} "
                        f"in layer {layer} does not match its checksum; the image is damaged, "
                        "remove it or pack another"
                    )
                position += len(found)
                done += piece.size
                progress(f"checking {image.container.path.name}", done, total)


def _digest(tensors: Mapping[str, Container], crcs: Mapping[str, int], config: str) -> str:
    """SHA-256 of the JSON text [config, [[name, dtype, shape, CRC-32] … by name]]."""
    entries = [(name, *tensor_entry(tensors[name], name)[:2], crcs[name]) for name in sorted(tensors)]
    return hashlib.sha256(json.dumps([config, entries], separators=(",", ":")).encode()).hexdigest()


def _require_version(container: Container) -> None:
    """ImageError unless the file says that it is an image of a version that is known here."""
    version = container.metadata.get("version", "")
    if container.metadata.get("format") != FORMAT or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise ImageError(
            f"{container.path}: is not a flash image; give another name, and one is packed there"
        )
    if int(version) != VERSION:
        raise ImageError(
            f"{container.path}: was made by a newer flashref (image version {version}, "
            f"known here is {VERSION}); update flashref or pack the checkpoint again"
        )


def _require_sums(container: Container) -> dict[str, Group]:
    """ImageError naming what is not as it was written; gives the tensors of bundles, which are not read."""
    path, entries = container.path, container.tensors
    entry = entries.get("crc32")
    if entry is None or entry.dtype != "U32":
        raise ImageError(f"{path}: has no checksums; remove the image and pack it again")
    sums = tensor_array(container, "crc32").reshape(-1)
    header_bytes = next(iter(entries.values())).offset
    if not sums.size or sums[0] != _crc32(byte_pieces(container, 0, header_bytes)):
        raise ImageError(f"{path}: its header is not as it was written; remove the image and pack it again")
    groups = _read_groups(container)
    covered = [name for name in entries if name not in groups and name != "crc32"]
    for number, name in enumerate(covered, start=1):
        if number >= sums.size or sums[number] != _crc32(tensor_pieces(container, name)):
            raise ImageError(
                f"{path}: the tensor {shortened(name)} is not as it was written; "
                "remove the image and pack it again"
            )
    if sums[len(covered) + 1 :].any():
        raise ImageError(f"{path}: there are more checksums than tensors; remove the image and pack it again")
    return groups


def _read_groups(container: Container) -> dict[str, Group]:
    """The tensors of bundles as the metadata describe them, or ImageError if the entries say otherwise."""
    metadata, entries = container.metadata, container.tensors
    groups = {}
    try:
        block, bundled, _, _ = (metadata[key] for key in ("block", "bundled", "fingerprint", "config"))
        if bundled not in ("true", "false"):
            raise ValueError(f"bundled is {shortened(bundled)}, neither true nor false")
        _require_blocks(container, block)
        for name, record in parse_json(metadata["bundles"].encode()).items():
            groups[name] = _read_group(container, name, record, int(block), bundled == "true")
        known = {"crc32", *groups, *(f"{name}.crc32" for name in groups)}
        for name in entries.keys() - known:
            if OWN_NAME.fullmatch(name) and not name.startswith("pad."):
                raise ValueError(f"nothing is said of {shortened(name)}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ImageError(
            f"{container.path}: its metadata do not describe its tensors ({error}); remove it, pack again"
        ) from error
    return groups


def _read_group(container: Container, name: str, record: object, block: int, bundled: bool) -> Group:
    """One tensor of bundles, or an exception that says why it is not what its record tells."""
    if not isinstance(record, dict) or record.keys() != set(RECORD):
        raise ValueError(f"{shortened(name)} is not described by {', '.join(RECORD)}")
    layer, fields, d, stride, order = (record[key] for key in RECORD)
    in_order = [field for field in BUNDLE_FIELDS if field in fields]
    if any(type(number) is not int for number in (layer, d, *(order or ()))):  # true is none
        raise ValueError(f"{shortened(name)} has a layer, d or order that is no whole number")
    if fields != in_order or name != group_name(layer, in_order, bundled):
        raise ValueError(f"{shortened(name)} is not the name of its layer and fields")
    entry, sums = container.tensors[name], container.tensors[f"{name}.crc32"]
    layout = bundle_layout(entry.shape[0], d, entry.dtype, fields, block, entry.offset, order)
    if (layout.stride, entry.shape, sums[:2]) != (stride, bundles_shape(layout), ("U32", (layout.n,))):
        raise ValueError(f"{name} is not of the shape that they imply")
    return Group(layer, layout, {})


def _require_blocks(container: Container, written: str) -> None:
    """ValueError unless each tensor, but for the pads, starts on a block, and the file ends on one."""
    starts = [entry.offset for name, entry in container.tensors.items() if not name.startswith("pad.")]
    block = int(written)
    if (
        str(block) != written
        or block & (block - 1)
        or not BLOCKS[0] <= block <= BLOCKS[1]
        or any(position % block for position in (*starts, container.size))
    ):
        raise ValueError(f"something does not start on a block of {shortened(written)} bytes")


def _crc32(pieces: Iterator[npt.NDArray[np.uint8]]) -> int:
    """The CRC-32 of bytes that come in pieces."""
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece.data, crc)
    return crc
