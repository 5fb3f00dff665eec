"""`flashref calibrate`: measures a disk, and says how far the device that it fits can be trusted."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flashref.cli.options import at_least, check_new_file, fraction
from flashref.cli.report import Output, progress
from flashref.storage.calibrate import FILE_BYTES, LARGEST_NOISE, calibrate
from flashref.storage.calibration import Calibration, Verification, calibration_to_json
from flashref.storage.device import Device
from flashref.storage.files import save_file
from flashref.storage.fit import Errors, Point, point_time
from flashref.storage.verification import LIMIT_MEDIAN, LIMIT_P90, holds

MIB, GIB = 2**20, 2**30


def add_parser(commands: Any) -> None:
    """`calibrate` among the commands."""
    parser = commands.add_parser(
        "calibrate",
        help="measure a disk and fit a device to it",
        description="Measure the disk of a folder with random reads past the page cache, for about 6 s, and "
        "fit a device to it. A file of random bytes is written into the folder and removed at the end. One "
        "calibration at a time has a disk.",
    )
    add = parser.add_argument
    add(
        "folder",
        metavar="DIR",
        nargs="?",
        default=Path(),
        type=Path,
        help="a folder on the disk (default: the current folder)",
    )
    add(
        "--out",
        metavar="FILE",
        type=Path,
        help="write the calibration to FILE, which must not exist, for the --device FILE of other commands",
    )
    add(
        "--size",
        metavar="GIB",
        type=_file_bytes,
        default=FILE_BYTES,
        help="size of the file of random bytes in GiB (default: 4; a smaller file may lie in a cache)",
    )
    add(
        "--seed",
        metavar="S",
        type=at_least(0),
        default=0,
        help="draw offsets, order and bytes from this seed (default: 0)",
    )
    add(
        "--verify",
        action="store_true",
        help="also time mixed reads, for 30 s in all; the exit code is 1 if the device predicts them with a "
        f"median error over {LIMIT_MEDIAN:.0%}% or a 90th percentile over {LIMIT_P90:.0%}%",
    )
    add(
        "--accept-noise",
        metavar="S",
        type=fraction,
        default=LARGEST_NOISE,
        help="take a device from a disk that is measured with a median noise of at most this share; the "
        f"report states it (default: {LARGEST_NOISE:g})",
    )
    add("--json", action="store_true", help="print the calibration as one JSON object instead of tables")
    add("--quiet", action="store_true", help="show nothing but errors on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Measure, fit, show and keep; 1 if the device was to be verified and is not good enough, else 0."""
    check_new_file("--out", options.out)
    with progress(options.quiet) as advance:
        calibration = calibrate(
            options.folder,
            verified=options.verify,
            file_bytes=options.size,
            seed=options.seed,
            largest_noise=options.accept_noise,
            progress=advance,
            announce=(lambda what: None) if options.quiet else _announce,
        )
    text = calibration_to_json(calibration)
    if options.json:
        print(text, end="")
    else:
        _show(calibration)
    if options.out is not None:  # after the result, which a full disk must not cost
        save_file(options.out, text.encode())
    if not options.json:
        kept = "not kept; --out FILE keeps it for --device FILE"
        print(kept if options.out is None else f"kept: --device {options.out}")
    return 0 if calibration.verification is None or holds(calibration.verification) else 1


def _announce(what: str) -> None:
    print(f"flashref calibrate: {what}", file=sys.stderr)


def _file_bytes(word: str) -> int:
    """Bytes of a number of GiB, as whole MiB, and at least 16 of them."""
    try:
        size = round(float(word) * GIB / MIB) * MIB
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of GiB, such as 4") from None
    if size < 16 * MIB:
        raise argparse.ArgumentTypeError(f"must be at least {16 * MIB / GIB:g} GiB, not {word}")
    return size


def _show(calibration: Calibration) -> None:
    """The device in words, measured beside modelled, the errors, the conditions."""
    output = Output(highlight=False, emoji=False)
    conditions = calibration.conditions
    output.print(Text("the device", "bold"))
    output.print(_device_table(calibration.device))
    output.print()
    output.print(Text("random reads of one size", "bold"))
    output.print(_points_table(calibration.device, calibration.points))
    output.print(
        f"error on these points: {_words(calibration.error)}; the measurement's own noise, one half of the "
        f"rounds against the other: {_words(calibration.noise)}",
        soft_wrap=True,
    )
    if calibration.verification is not None:
        output.print()
        _show_verification(output, calibration.verification)
    output.print()
    output.print(
        f"measured on {conditions.date}: {conditions.kernel}, load average {conditions.load_average:g}, "
        f"Python {conditions.python}; {conditions.engine}, {conditions.buffer}; "
        f"{escape(conditions.folder)} ({conditions.file_system}), a file of "
        f"{conditions.file_bytes / GIB:g} GiB, {conditions.rounds} rounds, seed {conditions.seed}",
        soft_wrap=True,
    )


def _device_table(device: Device) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, amount, unit, meaning in (
        ("latency_ns", device.latency_ns / 1e3, "µs", "one small read alone, from asking to having"),
        ("max_iops", device.max_iops / 1e3, "thousand/s", "reads, however many are outstanding"),
        ("max_bandwidth", device.max_bandwidth / 1e9, "GB/s", "bytes, likewise"),
        ("stream_bandwidth", device.stream_bandwidth / 1e9, "GB/s", "transfer of one read alone"),
        ("knee", device.knee, "", "1: the costs add up; inf: the largest counts"),
        ("dispatch_ns", device.dispatch_ns / 1e3, "µs", "to wake one worker for a batch"),
        ("queue_depth", device.queue_depth, "", "reads at a time, as measured"),
    ):
        table.add_row(name, Text(f"{amount:.4g}", justify="right"), unit, meaning)
    return table


def _points_table(device: Device, points: Sequence[Point]) -> Table:
    table = _table("read size", "depth", "measured GB/s", "modelled", "error in time")
    for point in points:
        measured, modelled = statistics.median(point.nanoseconds), point_time(device, point)
        amount = point.size * point.reads
        table.add_row(
            f"{point.size // 1024} KiB",
            str(point.depth),
            f"{amount / measured:.3f}",
            f"{amount / modelled:.3f}",
            f"{modelled / measured - 1:+.1%}",
        )
    return table


def _show_verification(output: Output, verification: Verification) -> None:
    output.print(Text("mixed reads, which the device was not fitted to", "bold"))
    table = _table("mixture", "depth", "reads", "measured ms", "modelled", "error in time")
    for trace in verification.traces:
        measured = statistics.median(trace.nanoseconds)
        table.add_row(
            trace.kind,
            str(trace.depth),
            f"{trace.reads:,}",
            f"{measured / 1e6:.1f}",
            f"{trace.predicted_ns / 1e6:.1f}",
            f"{trace.predicted_ns / measured - 1:+.1%}",
        )
    output.print(table)
    verdict = "[green]verified[/green]" if holds(verification) else "[red]NOT verified[/red]"
    output.print(
        f"{verdict}: error {_words(verification.error)} (allowed: median {LIMIT_MEDIAN:.0%}, 90th percentile "
        f"{LIMIT_P90:.0%}); the measurement's own noise: {_words(verification.noise)}",
        soft_wrap=True,
    )


def _words(errors: Errors) -> str:
    return f"median {errors.median:.1%}, 90th percentile {errors.p90:.1%}, largest {errors.max:.1%}"


def _table(first: str, *headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
