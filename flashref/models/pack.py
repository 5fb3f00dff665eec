"""How a model is laid out on flash, and `pack`, which writes a checkpoint as an image."""

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
    """The bundles of an image, or its rows if it is not bundled; sizes in bytes.

    fields: of the whole image; bundle_bytes, stride: of one bundle, without its padding and with it.
    """

    bundled: bool
    fields: tuple[str, ...]
    number: int
    bundle_bytes: int
    stride: int


class ImageBytes(NamedTuple):
    """Where every byte of an image is counted once.

    ffn: of the bundles without their padding; resident: of all other tensors; padding: zeros inside bundles
    and after tensors; other: the header and the checksums.
    """

    whole: int
    ffn: int
    resident: int
    padding: int
    other: int


class Packed(NamedTuple):
    """An image that was packed, or that was there already and checked. block: in bytes.

    written: False if the file was this very image before; seconds: that packing or checking took;
    peak_memory_bytes: the most that this process has had resident.
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
        """The whole image by the time it took."""
        return round(self.sizes.whole / self.seconds)

    def as_json(self) -> dict[str, Any]:
        """What `flashref pack --json` prints, in this order."""
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
        """A line on what was done, and a line for each size."""
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
    """Write a checkpoint as a flash image, with memory of one layer, or check the image that is there.

    What a killed packing left is removed first.

    Args:
        model_dir: a Hugging Face checkpoint.
        image: the file to write. An image of this checkpoint that is there is checked to the last byte.
        device: whose block the image has, if it is at least a page.
        bundled: False gives each field of a neuron a tensor of its own.
        resident_gate: keep gate projections whole and resident, out of the bundles.
        progress: called with what is being done, bytes done and bytes in total.
        clock: seconds.

    Returns:
        What the image holds.

    Raises:
        DomainError: the model cannot be packed so, or a weight is not finite.
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
    """The tensors that are read from flash.

    Args:
        checkpoint: the model.
        resident_gate: whether gate projections stay in memory, and so out of the bundles.

    Returns:
        For every layer, each field of its bundles and the name of the tensor with its rows.
    """
    return {
        layer: {field: name for field, name in fields.items() if not (resident_gate and field == "gate")}
        for layer, fields in enumerate(checkpoint.layers)
    }


def block_for(*devices: Device) -> int:
    """The block of a new image for these devices, in bytes: their largest, and at least a page."""
    return max(PAGE, *(device.block for device in devices))


def _check(path: Path, checkpoint: Checkpoint, plan: ImagePlan, progress: Progress) -> str:
    """The checkpoint's fingerprint; ImageError unless the file is, to the last byte, what would be packed."""
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
    """What an image holds that is as planned."""
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
