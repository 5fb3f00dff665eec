"""`pack`: write a checkpoint as a flash image."""

import html
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flashref.models.checkpoint import Checkpoint, open_checkpoint
from flashref.models.memory import peak_bytes
from flashref.storage.container import tensor_bytes
from flashref.storage.device import PRESETS, Device
from flashref.storage.files import remove_stale_parts, require_new_file
from flashref.storage.image import (
    fingerprint,
    open_image,
    pack_image,
    require_bundles,
    require_checkpoint,
)
from flashref.storage.packing import ImagePlan, plan_image
from flashref.storage.progress import Progress, unseen
from flashref.types import DomainError, ImageError

PAGE = 4096


class Bundles(NamedTuple):
    """The bundles of an image, or its rows if it is not bundled.

    Attributes:
        bundled: whether the fields of a neuron lie together.
        fields: the fields that the image holds.
        number: the number of all bundles.
        bundle_bytes: the bytes of one bundle, without its padding.
        stride: the bytes of one bundle, with its padding.
    """

    bundled: bool
    fields: tuple[str, ...]
    number: int
    bundle_bytes: int
    stride: int


class ImageBytes(NamedTuple):
    """The bytes of an image; each byte is counted once, beside `whole`.

    Attributes:
        whole: the whole image.
        ffn: the bundles, without their padding.
        resident: all other tensors of the model.
        padding: zeros inside bundles and after tensors.
        other: the header and the checksums.
    """

    whole: int
    ffn: int
    resident: int
    padding: int
    other: int


class Packed(NamedTuple):
    """An image that was packed, or that was there already and was checked.

    Attributes:
        image: the file.
        written: whether it was written; False if this very image was there.
        fingerprint: the fingerprint of the checkpoint.
        block: the image's block, in bytes.
        bundles: what is known of its bundles.
        sizes: its bytes.
        seconds: the time of packing, or of checking.
        peak_memory_bytes: the most bytes that this process had in memory.
    """

    image: Path
    written: bool
    fingerprint: str
    block: int
    bundles: Bundles
    sizes: ImageBytes
    seconds: float
    peak_memory_bytes: int

    @property
    def bytes_per_second(self) -> int:
        """The bytes of the whole image, divided by the time that it took."""
        return round(self.sizes.whole / self.seconds)

    def as_json(self) -> dict[str, Any]:
        """The object that `flashref pack --json` prints, with its keys in this order."""
        bundled, fields, number, bundle_bytes, stride = self.bundles
        return {
            "image": str(self.image),
            "written": self.written,
            "fingerprint": self.fingerprint,
            "size_bytes": self.sizes.whole,
            "block": self.block,
            "bundled": bundled,
            "fields": list(fields),
            "bundles": number,
            "bundle_bytes": bundle_bytes,
            "stride": stride,
            **{f"{name}_bytes": size for name, size in self.sizes._asdict().items() if name != "whole"},
            "seconds": self.seconds,
            "bytes_per_second": self.bytes_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def __str__(self) -> str:
        """A line that says what was done, and a line for each size."""
        done = "packed" if self.written else "is the whole image of this checkpoint; nothing was written"
        sizes = (f"{name}: {size:,} bytes" for name, size in self.sizes._asdict().items())
        return "\n".join([f"{self.image}: {done}, {self.seconds:,.1f} s", *sizes])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self), quote=False)}</pre>"


def pack(
    model_dir: str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    device: Device = PRESETS["paper_m1max_fig2b"],
    bundled: bool = True,
    resident_gate: bool = False,
    progress: Progress = unseen,
    clock: Callable[[], float] = time.perf_counter,
) -> Packed:
    """Write a checkpoint as a flash image, or check the image that is there.

    It takes the memory of one layer. What a killed packing left behind is removed first.

    Args:
        model_dir: the folder of a Hugging Face checkpoint.
        image: the file to write; an image of this checkpoint that is there is checked to the last byte.
        device: the image has its block, or a page where that is larger.
        bundled: whether the fields of a neuron lie together; if not, each field is a tensor of its own.
        resident_gate: whether gate projections stay in memory, and so out of the bundles.
        progress: is told what is being done, the bytes that are done, and all bytes.
        clock: returns seconds.

    Returns:
        What the image holds.

    Raises:
        DomainError: the model has no gate that could be resident, or a weight is not finite.
        ImageError: a file cannot be read or written, or `image` is something else.

    Paper §3.2; requirements: IMG-1 to IMG-19.
    """
    path, checkpoint = Path(image), open_checkpoint(model_dir)
    if resident_gate and not all("gate" in fields for fields in checkpoint.layers):
        raise DomainError(f"{model_dir}: its layers have no gate that could be resident; leave --gate out")
    layers, block = bundled_layers(checkpoint, resident_gate), block_for(device)
    plan = plan_image(checkpoint.tensors, layers, checkpoint.config_text, block, bundled=bundled)
    exists = path.exists()
    if not exists:
        require_new_file(path)
    remove_stale_parts(path)
    started = clock()
    if exists:
        identity = _check(path, checkpoint, plan, progress)
    else:
        identity = pack_image(
            path,
            checkpoint.tensors,
            layers,
            checkpoint.config_text,
            block,
            bundled=bundled,
            progress=progress,
        )
    bundles, sizes = _account(checkpoint, plan)
    return Packed(path, not exists, identity, block, bundles, sizes, clock() - started, peak_bytes())


def bundled_layers(checkpoint: Checkpoint, resident_gate: bool) -> dict[int, Mapping[str, str]]:
    """Name the tensors that are read from flash.

    Args:
        checkpoint: the checkpoint.
        resident_gate: whether gate projections stay in memory, and so out of the bundles.

    Returns:
        For each layer, a mapping from each field of its bundles to the name of the tensor with its rows.
    """
    return {
        layer: {field: name for field, name in fields.items() if not (resident_gate and field == "gate")}
        for layer, fields in enumerate(checkpoint.layers)
    }


def block_for(*devices: Device) -> int:
    """Choose the block of a new image for these devices, in bytes: their largest, and at least a page."""
    return max(PAGE, *(device.block for device in devices))


def _check(path: Path, checkpoint: Checkpoint, plan: ImagePlan, progress: Progress) -> str:
    """Return the checkpoint's fingerprint; ImageError unless the file is what `pack` would write."""
    try:
        image = open_image(path)
        identity = fingerprint(checkpoint.tensors, checkpoint.config_text, progress)
        require_checkpoint(image, identity)
        if image.container.metadata != plan.metadata | {"fingerprint": identity}:
            raise ImageError(
                f"{path}: is an image of this checkpoint, but with another block, order, bundling or gate; "
                "remove it"
            )
        require_bundles(image, progress)
    except ImageError as error:
        raise ImageError(f"{error}; or give another name with --image") from None
    return identity


def _account(checkpoint: Checkpoint, plan: ImagePlan) -> tuple[Bundles, ImageBytes]:
    """Count what a planned image holds."""
    layouts = [group.layout for group in plan.groups.values()]
    sizes = {name: tensor_bytes(*part) for name, part in plan.entries.items()}
    ffn = sum(layout.n * layout.bundle_bytes for layout in layouts)
    resident = sum(size for name, size in sizes.items() if name in checkpoint.tensors)
    padding = sum(layout.n * (layout.stride - layout.bundle_bytes) for layout in layouts)
    padding += sum(size for name, size in sizes.items() if name.startswith("pad."))
    bundles = Bundles(
        plan.metadata["bundled"] == "true",
        tuple(dict.fromkeys(field for layout in layouts for field in layout.fields)),
        sum(layout.n for layout in layouts),
        layouts[0].bundle_bytes,
        layouts[0].stride,
    )
    return bundles, ImageBytes(plan.size, ffn, resident, padding, plan.size - ffn - resident - padding)
