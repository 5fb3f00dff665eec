"""The flash image: a safetensors file with the FFN weights as bundles. Chapter: specs/54-image.md.

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

# Written bytes are synced to the disk whenever there are this many of them. Without it, the progress that is
# shown would run ahead of a slow disk, and the sync at the end would take long.
UNSYNCED_BYTES = 256 << 20


class Image(NamedTuple):
    """An opened image: all of it has been checked except the bundles, which their readers check.

    resident: the names of the tensors outside the bundles. layouts, checksums: layer → one entry for its
    bundles, or one entry for each field if the image is not bundled. Checksums are (n,) uint32, the CRC-32 of
    the padded bundle of each neuron.
    """

    container: Container
    fingerprint: str
    config: str
    bundled: bool
    resident: tuple[str, ...]
    layouts: dict[int, tuple[Layout, ...]]
    checksums: dict[int, tuple[Array, ...]]


def fingerprint(tensors: Mapping[str, Container], config: str, progress: Progress = unseen) -> str:
    """Compute the fingerprint of a checkpoint, a hash of its config and of every byte of its tensors.

    How the tensors are spread over files does not matter.

    Args:
        tensors: the name of each tensor → the file that holds it.
        config: the checkpoint's config, as text.
        progress: called with what is being done, the bytes done and the bytes in total.

    Returns:
        64 hexadecimal digits.

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
    """Write a checkpoint as a flash image, with one layer in memory at a time.

    If anything is raised, no file is left.

    Args:
        path: the image to write, which must not exist.
        tensors: the name of each tensor → the file that holds it.
        layers: layer → field (gate, up or down) → the name of its tensor, for the fields that go into the
            bundles; up and gate are (n, d) and down is (d, n), as in checkpoints.
        config: the checkpoint's config, as text.
        block: the block of the image, in bytes; a power of two.
        orders: layer → (n,) integers, the neuron at each position; a layer without an entry keeps its order.
        bundled: False gives each field a tensor of its own.
        progress: called with what is being done, the bytes done and the bytes in total.

    Returns:
        The checkpoint's fingerprint.

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
    """Open an image, and check its header and its resident tensors.

    The bundles are not checked here. Either compare `bundle_crc32` of each padded bundle with `checksums`
    before it is used, or check all of them with `require_bundles`.

    Args:
        path: the path of the image.

    Returns:
        The image.

    Raises:
        ImageError: the file is damaged, or is not an image of a known version.

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
    """Read a resident tensor of an image; it was checked when the image was opened.

    Args:
        image: the opened image.
        name: the tensor's name in the checkpoint.

    Returns:
        The tensor, C-contiguous in the stored dtype.

    Raises:
        ImageError: there is no resident tensor of this name. The FFN weights are in the bundles.

    Requirement: IMG-16.
    """
    if name not in image.resident:
        raise ImageError(
            f"{image.container.path}: has no resident tensor {name!r}; check that it is an image of this "
            "model"
        )
    return tensor_array(image.container, name)


def require_checkpoint(image: Image, expected: str) -> None:
    """Refuse an image that was packed from another checkpoint.

    Args:
        image: the opened image.
        expected: the fingerprint of the checkpoint.

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
    """Read every bundle of an image, and compare it with its checksum.

    Args:
        image: the opened image.
        progress: called with what is being done, the bytes done and the bytes in total.

    Raises:
        ImageError: a bundle does not match its checksum; the message names the first one.

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
                        "remove it and pack it again"
                    )
                position += len(found)
                done += piece.size
                progress(f"checking {image.container.path.name}", done, total)


def _digest(tensors: Mapping[str, Container], crcs: Mapping[str, int], config: str) -> str:
    """The SHA-256 of the JSON text [config, [[name, dtype, shape, CRC-32], …]], sorted by name."""
    entries = [(name, *tensor_entry(tensors[name], name)[:2], crcs[name]) for name in sorted(tensors)]
    return hashlib.sha256(json.dumps([config, entries], separators=(",", ":")).encode()).hexdigest()


def _require_version(container: Container) -> None:
    """ImageError unless the file is a flash image of the version that this module writes."""
    version = container.metadata.get("version", "")
    if container.metadata.get("format") != FORMAT or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise ImageError(
            f"{container.path}: is not a flash image; give another name, under which one is packed"
        )
    if int(version) != VERSION:
        raise ImageError(
            f"{container.path}: was made by a newer flashref (image version {version}; this flashref reads "
            f"version {VERSION}); update flashref or pack the checkpoint again"
        )


def _require_sums(container: Container) -> dict[str, Group]:
    """Check all checksums except the bundles' own, or raise ImageError; gives the tensors of bundles."""
    path, entries = container.path, container.tensors
    entry = entries.get("crc32")
    if entry is None or entry.dtype != "U32":
        raise ImageError(f"{path}: has no checksums; remove the image and pack it again")
    sums = tensor_array(container, "crc32").ravel()
    header_bytes = next(iter(entries.values())).offset
    if not sums.size or sums[0] != _crc32(byte_pieces(container, 0, header_bytes)):
        raise ImageError(
            f"{path}: its header does not match its checksum; remove the image and pack it again"
        )
    groups = _read_groups(container)
    covered = [name for name in entries if name not in groups and name != "crc32"]
    for number, name in enumerate(covered, start=1):
        if number >= sums.size or sums[number] != _crc32(tensor_pieces(container, name)):
            raise ImageError(
                f"{path}: the tensor {shortened(name)} does not match its checksum; "
                "remove the image and pack it again"
            )
    if sums[len(covered) + 1 :].any():
        raise ImageError(f"{path}: has more checksums than tensors; remove the image and pack it again")
    return groups


def _read_groups(container: Container) -> dict[str, Group]:
    """The tensors of bundles as the metadata describe them; ImageError if the header contradicts that."""
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
                raise ValueError(f"{shortened(name)} is not described")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ImageError(
            f"{container.path}: its metadata do not describe its tensors ({error}); remove the image and "
            "pack it again"
        ) from error
    return groups


def _read_group(container: Container, name: str, record: object, block: int, bundled: bool) -> Group:
    """One tensor of bundles, or an exception that says why it contradicts its record."""
    if not isinstance(record, dict) or record.keys() != set(RECORD):
        raise ValueError(f"{shortened(name)} is not described by {', '.join(RECORD)}")
    layer, fields, d, stride, order = (record[key] for key in RECORD)
    in_order = [field for field in BUNDLE_FIELDS if field in fields]
    if any(type(number) is not int for number in (layer, d, *(order or ()))):  # refuses true and false
        raise ValueError(f"{shortened(name)} has a layer, d or order that is not a whole number")
    if fields != in_order or name != group_name(layer, in_order, bundled):
        raise ValueError(f"{shortened(name)} is not the name of its layer and fields")
    entry, sums = container.tensors[name], container.tensors[f"{name}.crc32"]
    layout = bundle_layout(entry.shape[0], d, entry.dtype, fields, block, entry.offset, order)
    if (layout.stride, entry.shape, sums[:2]) != (stride, bundles_shape(layout), ("U32", (layout.n,))):
        raise ValueError(f"{name} does not have the shape that they imply")
    return Group(layer, layout, {})


def _require_blocks(container: Container, written: str) -> None:
    """ValueError unless each tensor except the pads starts on a block, and the file ends on one."""
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
    """The CRC-32 of bytes that are given in pieces."""
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece.data, crc)
    return crc
