"""The flash image of a model: packed if there is none, checked, and opened with its readers."""

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
from flashref.models.pack import block_for, bundled_layers
from flashref.models.prepared import ModelRequest
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


class ImageReaders(NamedTuple):
    """An opened image and its readers.

    Attributes:
        image: the opened image.
        read: reads extents of the image.
        rows: the layouts of the same weights without bundling, a layout for each field of each layer; empty
            where the reads of other methods are not really made.
        read_rows: reads extents of these rows; None where `rows` is empty.
        direct: whether reads go past the page cache; None where times are simulated.
    """

    image: Image
    read: Reader
    rows: tuple[tuple[Layout, ...], ...] = ()
    read_rows: Reader | None = None
    direct: bool | None = None


class _Wanted(NamedTuple):
    """A wanted image: its path, the names of the tensors of each layer's bundles, and how it is packed."""

    path: Path
    layers: Mapping[int, Mapping[str, str]]
    device: Device
    bundled: bool


def open_image_readers(
    checkpoint: Checkpoint, request: ModelRequest, resources: ExitStack, progress: Progress
) -> ImageReaders:
    """Open the image that a request names, and its readers; pack it first if there is none.

    Args:
        checkpoint: the model.
        request: names the image and the reader; without an image, one is packed into a temporary folder.
        resources: closes the readers and removes the temporary folder.
        progress: is told how far packing and checking have come.

    Returns:
        The opened image and its readers.

    Raises:
        ImageError: the image belongs to another model, is damaged, or cannot be written; an existing file is
            never overwritten.
        DomainError: a weight is not finite.
    """
    path = request.image
    if path is None:
        path = Path(resources.enter_context(TemporaryDirectory(prefix="flashref-"))) / "image"
    layers = bundled_layers(checkpoint, request.predictor == "gate")
    wanted = [_Wanted(path, layers, request.device, bundled=True)]
    if request.reader == "direct" and request.proof:  # for the methods that do not bundle
        rows_path = path.with_name(path.name + ".unbundled")
        wanted.append(_Wanted(rows_path, layers, request.device, bundled=False))
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text, progress)
    opened = []
    for each in wanted:  # a wrong image is refused before another is packed
        _pack_missing(each, checkpoint, progress)
        reset_peak()
        opened.append(_open(each, identity, progress))
    image, *rows = opened
    _require_same_residents(image, checkpoint)
    if request.reader == "memory":
        return ImageReaders(image, _simulated(image, request, resources))
    readers = _direct_readers([image, *rows], request.device, resources)
    direct = all(reader.direct for reader in readers)
    if not rows:
        return ImageReaders(image, readers[0].read, direct=direct)
    return ImageReaders(image, readers[0].read, tuple(rows[0].layouts.values()), readers[1].read, direct)


def _pack_missing(wanted: _Wanted, checkpoint: Checkpoint, progress: Progress) -> None:
    if wanted.path.exists():
        return
    try:
        pack_image(
            wanted.path,
            checkpoint.tensors,
            wanted.layers,
            checkpoint.config_text,
            block=block_for(wanted.device),
            bundled=wanted.bundled,
            progress=progress,
        )
    except ImageError:
        if not wanted.path.exists():  # else another process has packed it meanwhile
            raise


def _open(wanted: _Wanted, identity: str, progress: Progress) -> Image:
    """Open and check an image that is there; ImageError if it is damaged or another model's."""
    path = wanted.path
    try:
        image = open_image(path)
    except ImageError as error:
        raise ImageError(f"{error}; or give another name with --image") from None
    require_checkpoint(image, identity)
    if image.bundled != wanted.bundled:
        raise ImageError(
            f"{path}: holds {'bundles' if image.bundled else 'rows without bundling'}, not "
            f"{'bundles' if wanted.bundled else 'rows without bundling'}; give another name with --image"
        )
    _require_fields(image, wanted.layers)
    # All of them: a block that is read holds unused bundles too.
    require_bundles(image, progress)
    if image.layouts[0][0].block % wanted.device.block:
        raise ImageError(
            f"{path}: has blocks of {image.layouts[0][0].block} bytes, the device of {wanted.device.block}; "
            "pack it again under another name"
        )
    return image


def _require_fields(image: Image, layers: Mapping[int, Iterable[str]]) -> None:
    """Raise ImageError unless every layer has its bundles, with the gate or without it as wanted."""
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
    """Raise unless the resident tensors are the checkpoint's (ImageError) and finite (DomainError)."""
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


def _simulated(image: Image, request: ModelRequest, resources: ExitStack) -> Reader:
    """Make a reader whose times are those of the device.

    The pages of a mapped file would count as the process's memory. Where memory is held to a budget, the
    bytes are therefore really read, past the page cache where that is possible.
    """
    device = request.device
    if request.proof:
        return memory_reader(np.memmap(image.container.path, np.uint8, "r"), device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns of measured times, which are not used here
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
