"""`flashref calibrate`: measures a disk, fits a device to it, and prints how exact the device is."""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from flashref.cli.options import at_least, check_new_file, fraction
from flashref.cli.report import progress
from flashref.cli.tables import Column, print_table, say
from flashref.storage.calibrate import FILE_BYTES, LARGEST_NOISE, calibrate
from flashref.storage.calibration import Calibration, Verification, calibration_to_json
from flashref.storage.device import Device
from flashref.storage.files import save_file
from flashref.storage.fit import Errors, point_time
from flashref.storage.verification import LIMIT_MEDIAN, LIMIT_P90, holds

MIB, GIB = 2**20, 2**30


def add_parser(commands: Any) -> None:
    """Add `calibrate` to the commands."""
    parser = commands.add_parser(
        "calibrate",
        help="measure a disk and fit a device to it",
        description="Measure the disk of a folder with random reads past the page cache, for about 6 s, and "
        "fit a device to it. A file of random bytes is written into the folder and removed at the end. Only "
        "one calibration at a time can measure a disk.",
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
        help="write the calibration to FILE, which must not exist, for --device FILE of other commands",
    )
    add(
        "--size",
        metavar="GIB",
        type=_file_bytes,
        default=FILE_BYTES,
        help="size of the file of random bytes, in GiB (default: 4; a smaller file may fit into a "
        "cache of the disk)",
    )
    add(
        "--seed",
        metavar="S",
        type=at_least(0),
        default=0,
        help="seed of the random offsets, order and bytes (default: 0)",
    )
    add(
        "--verify",
        action="store_true",
        help="also time mixed reads, which takes 30 s in all; the exit code is 1 if the device's time for "
        f"them has a median error over {LIMIT_MEDIAN:.0%}% or a 90th percentile over {LIMIT_P90:.0%}%",
    )
    add(
        "--accept-noise",
        metavar="S",
        type=fraction,
        default=LARGEST_NOISE,
        help="accept a disk whose measurements have a median noise of at most S, such as 0.3; the report "
        f"states the noise (default: {LARGEST_NOISE:g})",
    )
    add("--json", action="store_true", help="print the calibration as one JSON object instead of tables")
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Measure, fit, print and save; 1 if the device was verified and is not exact enough, else 0."""
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
        saved = f"Saved; other commands take it as --device {options.out}"
        print("Not saved; --out FILE saves it for --device FILE" if options.out is None else saved)
    return 0 if calibration.verification is None or holds(calibration.verification) else 1


def _announce(what: str) -> None:
    print(f"flashref calibrate: {what}", file=sys.stderr)


def _file_bytes(word: str) -> int:
    """A number of GiB in bytes, rounded to whole MiB; at least 16 MiB."""
    try:
        size = round(float(word) * GIB / MIB) * MIB
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of GiB, such as 4") from None
    if size < 16 * MIB:
        raise argparse.ArgumentTypeError(f"must be at least {16 * MIB / GIB:g} GiB, not {word}")
    return size


def _show(calibration: Calibration) -> None:
    """Print the device, its errors on the reads that were measured, and the conditions."""
    say("The device", "bold")
    _show_device(calibration.device)
    say("Random reads of one size", "bold")
    _show_points(calibration)
    if calibration.verification is not None:
        say("Mixed reads, which the device was not fitted to", "bold")
        _show_verification(calibration.verification)
    conditions = calibration.conditions
    say(
        f"Measured on {conditions.date}: {conditions.kernel}, load average {conditions.load_average:g}, "
        f"Python {conditions.python}; {conditions.engine}, {conditions.buffer}; "
        f"{conditions.folder} ({conditions.file_system}), a file of "
        f"{conditions.file_bytes / GIB:g} GiB, {conditions.rounds} rounds, seed {conditions.seed}."
    )


def _show_device(device: Device) -> None:
    fields: tuple[tuple[str, float, str, str], ...] = (
        ("latency_ns", device.latency_ns / 1e3, "µs", "time of one small read on its own"),
        ("max_iops", device.max_iops / 1e3, "thousand/s", "most reads in a second"),
        ("max_bandwidth", device.max_bandwidth / 1e9, "GB/s", "most bytes in a second"),
        ("stream_bandwidth", device.stream_bandwidth / 1e9, "GB/s", "the same for one read on its own"),
        ("knee", device.knee, "", "1: costs add up; inf: the largest counts"),
        ("dispatch_ns", device.dispatch_ns / 1e3, "µs", "time to wake one worker for a batch"),
        ("queue_depth", device.queue_depth, "", "reads outstanding at a time"),
    )
    columns = (Column("field", True), Column("value"), Column("unit", True), Column("meaning", True))
    print_table(columns, [(name, f"{value:.4g}", unit, meaning) for name, value, unit, meaning in fields])


def _show_points(calibration: Calibration) -> None:
    rows = []
    for point in calibration.points:
        measured = statistics.median(point.nanoseconds)
        modelled, amount = point_time(calibration.device, point), point.size * point.reads
        rows.append(
            (
                f"{point.size // 1024} KiB",
                str(point.depth),
                f"{amount / measured:.3f}",
                f"{amount / modelled:.3f}",
                f"{modelled / measured - 1:+.1%}",
            )
        )
    print_table(_columns("read size", "queue depth", "measured GB/s", "modelled GB/s", "error in time"), rows)
    say(
        "Each row is a batch of random reads of one size, with as many reads outstanding as the queue depth "
        "says. The error is how much longer the device's time is than the measured one."
    )
    say(f"Error of the device on these reads: {_words(calibration.error)}.")
    say(
        f"Noise, which is how far one half of the rounds differs from the other: {_words(calibration.noise)}."
        "\n"
    )


def _show_verification(verification: Verification) -> None:
    rows = []
    for batch in verification.traces:
        measured = statistics.median(batch.nanoseconds)
        rows.append(
            (
                batch.kind,
                str(batch.depth),
                f"{batch.reads:,}",
                f"{measured / 1e6:.1f}",
                f"{batch.predicted_ns / 1e6:.1f}",
                f"{batch.predicted_ns / measured - 1:+.1%}",
            )
        )
    headings = ("mixture", "queue depth", "reads", "measured ms", "modelled ms", "error in time")
    print_table(_columns(*headings), rows)
    say(
        "neuron: short runs of bundles of 16 KiB; small: 4 to 32 KiB; log-uniform: 4 KiB to 1 MiB; "
        "bimodal: 8 KiB, and one read in ten of 1 MiB."
    )
    good = holds(verification)
    verdict, limit = "verified" if good else "NOT verified", f"{LIMIT_MEDIAN:.0%}"
    say(
        f"{verdict}: error {_words(verification.error)}; allowed: median {limit}, 90th percentile "
        f"{LIMIT_P90:.0%}. Noise of these measurements: {_words(verification.noise)}.\n",
        "green" if good else "red",
    )


def _words(errors: Errors) -> str:
    return f"median {errors.median:.1%}, 90th percentile {errors.p90:.1%}, largest {errors.max:.1%}"


def _columns(first: str, *others: str) -> tuple[Column, ...]:
    return Column(first, words=True), *map(Column, others)
