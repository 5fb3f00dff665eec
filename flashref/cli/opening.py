"""What a run opens: the image (packed if there is none), its readers, predictors and held-out text."""

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from flashref.storage.image import (
    Image,
    bundle_crc32,
    fingerprint,
    open_image,
    pack_image,
    require_checkpoint,
)
from flashref.storage.readers import DirectReader, memory_reader
from flashref.transformer.checkpoint import Checkpoint
from flashref.transformer.predictors import FILE_NAME, Predictors, load_predictors
from flashref.transformer.session import Advance
from flashref.types import Device, DomainError, ImageError, Layout, Reader

HELD_OUT, PERPLEXITY_BYTES = "held_out.txt", 1024


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
    advance: Advance,
) -> Storage:
    """The image, packed if there is none, and readers of it; temporary files go with `resources`."""
    path = options.image
    if path is None:
        path = Path(resources.enter_context(TemporaryDirectory(prefix="flashref-"))) / "image"
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text)
    image = _open_or_pack(path, checkpoint, identity, device, True, advance)
    if options.reader == "memory":
        return Storage(image, memory_reader(np.memmap(path, np.uint8, "r"), device))
    beside = path.with_name(path.name + ".unbundled")
    rows = _open_or_pack(beside, checkpoint, identity, device, False, advance)
    block = image.layouts[0][0].block
    readers = [
        resources.enter_context(DirectReader(opened.container.path, device.queue_depth, block))
        for opened in (image, rows)
    ]
    direct = all(reader.direct for reader in readers)
    return Storage(image, readers[0].read, tuple(rows.layouts.values()), readers[1].read, direct)


def block_for(device: Device) -> int:
    """The block of a new image: the device's, and at least a page."""
    return max(4096, device.block)


def _open_or_pack(
    path: Path, checkpoint: Checkpoint, identity: str, device: Device, bundled: bool, advance: Advance
) -> Image:
    """An existing image is used or refused, never overwritten; a missing one is packed."""
    if not path.exists():
        try:
            pack_image(
                path,
                checkpoint.tensors,
                dict(enumerate(checkpoint.layers)),
                checkpoint.config_text,
                block=block_for(device),
                bundled=bundled,
                progress=partial(advance, f"packing {path.name}"),
            )
        except ImageError:
            if not path.exists():  # else another run has packed it meanwhile
                raise
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
    fields = {layer: {name for layout in of for name in layout.fields} for layer, of in image.layouts.items()}
    if fields != {layer: set(names) for layer, names in enumerate(checkpoint.layers)}:
        raise ImageError(f"{path}: does not hold the bundles of every layer; give another name with --image")
    _require_bundles(image)
    if image.layouts[0][0].block % device.block:
        raise ImageError(
            f"{path}: has blocks of {image.layouts[0][0].block} bytes, the device of {device.block}; "
            "pack it again under another name"
        )
    return image


def _require_bundles(image: Image) -> None:
    """ImageError unless every bundle matches its checksum: a block that is read holds unused ones too."""
    path = image.container.path
    for layer, layouts in image.layouts.items():
        for layout, checksums in zip(layouts, image.checksums[layer], strict=True):
            stored = np.memmap(path, np.uint8, "r", layout.start, (layout.n, layout.stride))
            neurons = range(layout.n) if layout.order is None else layout.order.tolist()
            for neuron, padded in zip(neurons, stored, strict=True):
                if bundle_crc32(padded) != checksums[neuron]:
                    raise ImageError(
                        f"{path}: the {' and '.join(layout.fields)} row of neuron {neuron} in layer {layer} "
                        "does not match its checksum; the image is damaged, remove it or pack another"
                    )


def read_held_out(options: argparse.Namespace, vocabulary: int) -> list[int] | None:
    """The first bytes of the model's held-out text; None if it has none and none were asked for."""
    path, asked = options.model / HELD_OUT, options.perplexity_bytes
    if asked == 0 or (asked is None and (vocabulary > 256 or not path.is_file())):
        return None
    if not path.is_file():
        print(f"flashref run: {path}: there is no held-out text, so no perplexity", file=sys.stderr)
        return None
    text = path.read_bytes()
    if len(text) < 2 or max(text) >= vocabulary:
        raise DomainError(
            f"{path}: is no text of two bytes or more in the model's vocabulary of {vocabulary}; "
            "give another, or --perplexity-bytes 0"
        )
    if asked == 1:
        raise DomainError("--perplexity-bytes 1 foresees nothing; ask for two bytes or more, or for 0")
    return list(text[: PERPLEXITY_BYTES if asked is None else asked])


def read_predictors(options: argparse.Namespace, checkpoint: Checkpoint) -> Predictors | None:
    """The trained predictors; with the exact one they give statistics only, and may be missing or foreign."""
    path = options.predictors or options.model / FILE_NAME
    config = checkpoint.config
    try:
        if path.is_file() or options.predictors:
            return load_predictors(path, config.layers, config.neurons, config.width)
    except ImageError:
        if options.predictor == "trained" or options.predictors:
            raise
    if options.predictor == "trained":
        raise ImageError(
            f"{path}: there are no trained predictors; fit them with `flashref train`, "
            "or use the oracle with --predictor exact"
        )
    return None
