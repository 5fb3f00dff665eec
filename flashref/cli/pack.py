"""`flashref pack`: a checkpoint becomes a flash image, whatever its size, with memory of one layer."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.table import Table

from flashref.cli import report
from flashref.cli.options import add_device_option, device
from flashref.models.pack import Packed, pack


def add_parser(commands: Any) -> None:
    """`pack` among the commands."""
    parser = commands.add_parser(
        "pack",
        help="write a checkpoint as a flash image",
        description="Write a checkpoint as a flash image, with one layer in memory at a time. An interrupt "
        "leaves nothing behind; what a killed command left is removed by the next one, which begins anew.",
    )
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="the Hugging Face checkpoint to pack")
    add(
        "--image",
        metavar="FILE",
        type=Path,
        required=True,
        help="the image to write; if it is there already it is checked, and never overwritten",
    )
    add_device_option(parser)
    add(
        "--without-bundling",
        action="store_true",
        help="write the rows of each field into a tensor of its own; `run --image X --reader direct` "
        "compares with such an image if it is named X.unbundled",
    )
    add(
        "--gate",
        choices=("flash", "resident"),
        default="flash",
        help="where gate projections go: into the bundles on flash, or whole into memory, for "
        "`run --predictor gate` (default: flash)",
    )
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Pack, and say what the image holds; 0 also if it is there already."""
    with report.progress(options.quiet, DownloadColumn(), TransferSpeedColumn()) as progress:
        packed = pack(
            options.directory,
            options.image,
            device=device(options.device),
            bundled=not options.without_bundling,
            resident_gate=options.gate == "resident",
            progress=progress,
        )
    if options.json:
        print(json.dumps(packed.as_json(), indent=2, allow_nan=False))
    else:
        _show(packed)
    return 0


def _show(packed: Packed) -> None:
    """The image in a table, on stdout."""
    bundled, fields, number, bundle_bytes, stride = packed.bundles
    what = "bundles" if bundled else "rows"
    first = "packed" if packed.written else "is the whole image of this checkpoint; nothing was written"
    speed = f"{report.size(packed.bytes_per_second)}/s" if packed.written else "to check all of it"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, amount, meaning in (
        ("image", report.size(packed.sizes.whole), f"in blocks of {packed.block:,} bytes"),
        (
            what,
            f"{number:,}",
            f"of {', '.join(fields)}: {bundle_bytes:,} bytes each, stride {stride:,}",
        ),
        ("their weights", report.size(packed.sizes.ffn), "are read from flash when they are needed"),
        ("resident", report.size(packed.sizes.resident), "is what all other tensors take in memory"),
        ("padding", report.size(packed.sizes.padding), f"is zeros inside {what} and after tensors"),
        ("other", report.size(packed.sizes.other), "is the header and the checksums"),
        ("time", f"{packed.seconds:,.1f} s", speed),
        ("memory", report.size(packed.peak_memory_bytes), "is the most that this process had resident"),
    ):
        table.add_row(name, amount, meaning)
    report.Output(highlight=False, emoji=False).print(f"{escape(str(packed.image))}: {first}", soft_wrap=True)
    report.print_whole(table)
