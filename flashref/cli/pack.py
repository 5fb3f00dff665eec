"""`flashref pack`: a checkpoint becomes a flash image, whatever its size, with memory of one layer."""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.table import Table

from flashref.cli import options as words
from flashref.cli import report
from flashref.models.checkpoint import Checkpoint, open_checkpoint
from flashref.models.memory import peak_bytes
from flashref.models.storage import block_for, bundled_layers
from flashref.storage.container import tensor_bytes
from flashref.storage.files import remove_stale_parts
from flashref.storage.image import (
    fingerprint,
    open_image,
    pack_image,
    require_bundles,
    require_checkpoint,
)
from flashref.storage.packing import Plan, plan_image
from flashref.storage.progress import Progress
from flashref.types import DomainError, ImageError


class Packed(NamedTuple):
    """What `flashref pack --json` prints, in this order; every byte of the image is counted once.

    written: false if FILE was this very image before; seconds then is the time of checking it.
    fields, bundle_bytes, stride: of one bundle. ffn_bytes: of the bundles without their padding.
    padding_bytes: zeros inside bundles, and after a tensor up to the next block. other_bytes: the header and
    the checksums.
    """

    image: str
    written: bool
    fingerprint: str
    size_bytes: int
    block: int
    bundled: bool
    fields: list[str]
    bundles: int
    bundle_bytes: int
    stride: int
    ffn_bytes: int
    resident_bytes: int
    padding_bytes: int
    other_bytes: int
    seconds: float
    bytes_per_second: int
    peak_memory_bytes: int


def add_parser(commands: Any) -> None:
    """`pack` among the commands."""
    parser = commands.add_parser(
        "pack",
        help="write a checkpoint as a flash image",
        description="Writes a checkpoint as a flash image, one layer in memory at a time. Interrupted, it "
        "leaves nothing; what a killed one left is removed by the next, which begins anew.",
    )
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="Hugging Face checkpoint")
    add("--image", metavar="FILE", type=Path, required=True, help="to write; never overwritten")
    words.add_device_option(parser)
    add(
        "--without-bundling",
        action="store_true",
        help="a tensor for each field, of rows; `run --image X` takes one from X.unbundled",
    )
    add(
        "--gate",
        choices=("flash", "resident"),
        default="flash",
        help="resident: bundles of up and down, and gate projections whole (default: flash)",
    )
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Check, pack, and say what the image holds; 0 also if it is there already."""
    block = block_for(words.device(options.device))
    checkpoint = open_checkpoint(options.directory)
    resident_gate = options.gate == "resident"
    if resident_gate and not all("gate" in fields for fields in checkpoint.layers):
        raise DomainError(
            f"{options.directory}: its layers have no gate that could be resident; leave --gate out"
        )
    layers = bundled_layers(checkpoint, resident_gate)
    plan = plan_image(
        checkpoint.tensors, layers, checkpoint.config_text, block, bundled=not options.without_bundling
    )
    path = options.image
    exists = path.exists()
    if not exists:
        words.check_new_file("--image", path)
    remove_stale_parts(path)
    started = time.perf_counter()
    with report.progress(options.quiet, DownloadColumn(), TransferSpeedColumn()) as advance:
        if exists:
            identity = _check(path, checkpoint, plan, advance)
        else:
            identity = pack_image(
                path,
                checkpoint.tensors,
                layers,
                checkpoint.config_text,
                block,
                bundled=not options.without_bundling,
                progress=advance,
            )
    packed = _packed(path, not exists, identity, checkpoint, plan, time.perf_counter() - started)
    if options.json:
        print(json.dumps(packed._asdict(), indent=2, allow_nan=False))
    else:
        _show(packed)
    return 0


def _check(path: Path, checkpoint: Checkpoint, plan: Plan, advance: Progress) -> str:
    """The checkpoint's fingerprint; ImageError unless the file is, to the last byte, what would be packed."""
    try:
        image = open_image(path)
        identity = fingerprint(checkpoint.tensors, checkpoint.config_text, advance)
        require_checkpoint(image, identity)
        if image.container.metadata != plan.metadata | {"fingerprint": identity}:
            raise ImageError(
                f"{path}: is an image of this checkpoint, but with another block, order, bundling or gate; "
                "remove it"
            )
        require_bundles(image, advance)
    except ImageError as error:
        raise ImageError(f"{error}; or give another name with --image") from None
    return identity


def _packed(
    path: Path, written: bool, identity: str, checkpoint: Checkpoint, plan: Plan, seconds: float
) -> Packed:
    """The account of an image that is as planned."""
    layouts = [group.layout for group in plan.groups.values()]
    sizes = {name: tensor_bytes(*part) for name, part in plan.parts.items()}
    ffn = sum(layout.n * layout.bundle_bytes for layout in layouts)
    resident = sum(size for name, size in sizes.items() if name in checkpoint.tensors)
    padding = sum(layout.n * (layout.stride - layout.bundle_bytes) for layout in layouts)
    padding += sum(size for name, size in sizes.items() if name.startswith("pad."))
    return Packed(
        image=str(path),
        written=written,
        fingerprint=identity,
        size_bytes=plan.size,
        block=layouts[0].block,
        bundled=plan.metadata["bundled"] == "true",
        fields=list(dict.fromkeys(field for layout in layouts for field in layout.fields)),
        bundles=sum(layout.n for layout in layouts),
        bundle_bytes=layouts[0].bundle_bytes,
        stride=layouts[0].stride,
        ffn_bytes=ffn,
        resident_bytes=resident,
        padding_bytes=padding,
        other_bytes=plan.size - ffn - resident - padding,
        seconds=seconds,
        bytes_per_second=round(plan.size / seconds),
        peak_memory_bytes=peak_bytes(),
    )


def _show(packed: Packed) -> None:
    """The image in a table, on stdout."""
    what = "bundles" if packed.bundled else "rows"
    first = "packed" if packed.written else "is the whole image of this checkpoint; nothing was written"
    speed = f"{report.size(packed.bytes_per_second)}/s" if packed.written else "to check all of it"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, amount, meaning in (
        ("image", report.size(packed.size_bytes), f"blocks of {packed.block:,} bytes"),
        (
            what,
            f"{packed.bundles:,}",
            f"of {', '.join(packed.fields)}: {packed.bundle_bytes:,} bytes each, stride {packed.stride:,}",
        ),
        ("their weights", report.size(packed.ffn_bytes), "read from flash as they are needed"),
        ("resident", report.size(packed.resident_bytes), "all other tensors"),
        ("padding", report.size(packed.padding_bytes), f"zeros inside {what} and after tensors"),
        ("other", report.size(packed.other_bytes), "header and checksums"),
        ("time", f"{packed.seconds:,.1f} s", speed),
        ("memory", report.size(packed.peak_memory_bytes), "this process had resident, at most"),
    ):
        table.add_row(name, amount, meaning)
    report.Output(highlight=False, emoji=False).print(f"{escape(packed.image)}: {first}", soft_wrap=True)
    report.print_whole(table)
