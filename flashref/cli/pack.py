"""`flashref pack`: writes a checkpoint as a flash image, with one layer in memory at a time."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.text import Text

from flashref.cli import report
from flashref.cli.options import add_device_option, device
from flashref.cli.tables import Column, print_table
from flashref.models.pack import Packed, pack


def add_parser(commands: Any) -> None:
    """Add `pack` to the commands."""
    parser = commands.add_parser(
        "pack",
        help="write a checkpoint as a flash image",
        description="Write a checkpoint as a flash image, with one layer in memory at a time. An interrupt "
        "leaves no file behind. If the command is killed, the next one removes its temporary file and starts "
        "again.",
    )
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="folder of the Hugging Face checkpoint to pack")
    add(
        "--image",
        metavar="FILE",
        type=Path,
        required=True,
        help="image to write; an image that exists already is checked, and never overwritten",
    )
    add_device_option(parser)
    add(
        "--without-bundling",
        action="store_true",
        help="write the rows of up, down and gate into separate tensors; `run --image X --reader direct` "
        "compares bundled with separate rows if such an image is named X.unbundled",
    )
    add(
        "--gate",
        choices=("flash", "resident"),
        default="flash",
        help="where the gate projections go: into the bundles on flash, or into the resident tensors, as "
        "`run --predictor gate` needs them (default: flash)",
    )
    add("--json", action="store_true", help="print the result as one JSON object instead of a table")
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Pack, and print what the image holds; an image that exists already and is right gives 0 too."""
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
    """Print the image as a table."""
    bundled, fields, number, bundle_bytes, stride = packed.bundles
    what = "bundles" if bundled else "rows"
    done = "packed" if packed.written else "is already the image of this checkpoint; nothing was written"
    speed = f"{report.size(packed.bytes_per_second)}/s"
    rows = (
        ("image", report.size(packed.sizes.whole), f"the whole file, in blocks of {packed.block:,} bytes"),
        (
            what,
            f"{number:,}",
            f"of {', '.join(fields)}: {bundle_bytes:,} bytes each, {stride:,} with padding",
        ),
        ("weights", report.size(packed.sizes.ffn), f"FFN weights in the {what}, read from flash in a run"),
        ("resident", report.size(packed.sizes.resident), "all other tensors, which a run keeps in memory"),
        ("padding", report.size(packed.sizes.padding), f"zeros inside {what} and after tensors"),
        ("other", report.size(packed.sizes.other), "the header and the checksums"),
        ("time", f"{packed.seconds:,.1f} s", f"to {'write' if packed.written else 'check'} it, at {speed}"),
        ("memory", report.size(packed.peak_memory_bytes), "the most that this process had resident"),
    )
    line = Text(f"{packed.image}: {done}")
    report.Output(highlight=False, emoji=False).print(line, soft_wrap=True)
    print_table((Column("part", words=True), Column("amount"), Column("what it is", words=True)), rows)
