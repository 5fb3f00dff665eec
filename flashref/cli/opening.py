"""What a run opens: the image (packed if there is none), and its readers."""

import argparse
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.models.checkpoint import Checkpoint
from flashref.models.memory import reset_peak
from flashref.models.storage import block_for, bundled_layers
from flashref.storage.container import require_finite, tensor_pieces
from flashref.storage.device import Device, read_time
from flashref.storage.image import (
    Image,
    fingerprint,
    open_image,
    pack_image,
    require_bundles,
    require_checkpoint,
)
from flashref.storage.progress import Progress
from flashref.storage.readers import DirectReader, memory_reader
from flashref.types import Extent, ImageError, Read, Reader


class Storage(NamedTuple):
    """The opened image with its reader; and, where really read, the unbundled rows with theirs."""

    image: Image
    read: Reader
    rows: tuple[tuple[Layout, ...], ...] = ()
    read_rows: Reader | None = None
    direct: bool | None = None


def open_storage(
    options: argparse.Namespace,
    checkpoint: Checkpoint,
    device: Device,
    resources: ExitStack,
    advance: Progress,
) -> Storage:
    """The image, packed if there is none, and readers of it; temporary files go with `resources`."""
    path = options.image
    if path is None:
        path = Path(resources.enter_context(TemporaryDirectory(prefix="flashref-"))) / "image"
    wanted = {path: True}
    if options.reader == "direct" and not options.no_proof:  # the other methods read more than is in memory
        wanted[path.with_name(path.name + ".unbundled")] = False
    layers = bundled_layers(checkpoint, options.predictor == "gate")
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text, advance)
    opened = []
    for file, bundled in wanted.items():  # a wrong image is refused before another is packed
        _pack_missing(file, checkpoint, layers, device, bundled, advance)
        reset_peak()
        opened.append(_open(file, identity, layers, device, bundled, advance))
    image, *rows = opened
    _require_same_residents(image, checkpoint)
    if options.reader == "memory":
        return Storage(image, _simulated(image, device, options.no_proof, resources))
    readers = _direct_readers([image, *rows], device, resources)
    direct = all(reader.direct for reader in readers)
    if not rows:
        return Storage(image, readers[0].read, direct=direct)
    return Storage(image, readers[0].read, tuple(rows[0].layouts.values()), readers[1].read, direct)


def _pack_missing(
    path: Path,
    checkpoint: Checkpoint,
    layers: Mapping[int, Mapping[str, str]],
    device: Device,
    bundled: bool,
    advance: Progress,
) -> None:
    if path.exists():
        return
    try:
        pack_image(
            path,
            checkpoint.tensors,
            layers,
            checkpoint.config_text,
            block=block_for(device),
            bundled=bundled,
            progress=advance,
        )
    except ImageError:
        if not path.exists():  # else another run has packed it meanwhile
            raise


def _open(
    path: Path,
    identity: str,
    layers: Mapping[int, Mapping[str, str]],
    device: Device,
    bundled: bool,
    advance: Progress,
) -> Image:
    """An existing image is used or refused, never overwritten. Raises ImageError."""
    try:
        image = open_image(path)
    except ImageError as error:
        raise ImageError(f"{error}; or give another name with --image") from None
    require_checkpoint(image, identity)
    if image.bundled != bundled:
        raise ImageError(
            f"{path}: holds {'bundles' if image.bundled else 'rows without bundling'}, not "
            f"{'bundles' if bundled else 'rows without bundling'}; give another name with --image"
        )
    _require_fields(image, layers)
    # All of them: a block that is read holds unused bundles too.
    require_bundles(image, advance)
    if image.layouts[0][0].block % device.block:
        raise ImageError(
            f"{path}: has blocks of {image.layouts[0][0].block} bytes, the device of {device.block}; "
            "pack it again under another name"
        )
    return image


def _require_fields(image: Image, layers: Mapping[int, Iterable[str]]) -> None:
    """ImageError unless the bundles are those of every layer, with the gate or without it as asked."""
    path, given = image.container.path, image.layouts
    fields = {layer: {name for layout in given[layer] for name in layout.fields} for layer in given}
    wanted = {layer: set(names) for layer, names in layers.items()}
    if fields == wanted:
        return
    if fields == {layer: names | {"gate"} for layer, names in wanted.items()}:
        raise ImageError(
            f"{path}: has the gate in its bundles, and --predictor gate needs it resident; "
            "pack another with `flashref pack --gate resident`, or give another name with --image"
        )
    if fields == {layer: names - {"gate"} for layer, names in wanted.items()}:
        raise ImageError(
            f"{path}: was packed with the gate resident, which is for --predictor gate; "
            "use that, or give another name with --image"
        )
    raise ImageError(f"{path}: does not hold the bundles of every layer; give another name with --image")


def _require_same_residents(image: Image, checkpoint: Checkpoint) -> None:
    """ImageError unless the resident tensors are the checkpoint's, byte for byte; DomainError: not finite."""
    for name in image.resident:
        source = checkpoint.tensors[name]
        for ours, theirs in zip(
            tensor_pieces(image.container, name), tensor_pieces(source, name), strict=True
        ):
            require_finite(source, name, theirs)
            if not np.array_equal(ours, theirs):
                raise ImageError(
                    f"{image.container.path}: its resident tensors are not the checkpoint's, although "
                    "their checksums agree; remove it, or pack another under another name"
                )


def _simulated(image: Image, device: Device, without_mapping: bool, resources: ExitStack) -> Reader:
    """A reader that takes the device's time.

    A mapped file's pages would count as the process's own memory, so where that is held to a budget the
    bytes are read instead, past the page cache where that is possible.
    """
    if not without_mapping:
        return memory_reader(np.memmap(image.container.path, np.uint8, "r"), device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of times that nobody looks at
        (reader,) = _direct_readers([image], device, resources)

    def read(extents: tuple[Extent, ...]) -> Read:
        buffers = reader.read(extents).buffers
        return Read(buffers, read_time(device, [extent.length for extent in extents]))

    return read


def _direct_readers(images: Iterable[Image], device: Device, resources: ExitStack) -> list[DirectReader]:
    return [
        resources.enter_context(
            DirectReader(opened.container.path, device.queue_depth, opened.layouts[0][0].block)
        )
        for opened in images
    ]
