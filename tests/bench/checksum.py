"""What it costs that every bundle is checked before it is used: gather_rows with checksums and without.

    python tests/bench/checksum.py [--pairs N] [--folder DIR]

Two shapes of bundles, each from memory and from a file past the page cache. A pair is the same batch of
neurons twice, checked and not, in random order, so that what else the machine does meets both alike. From
memory the time is the thread's own on the processor; from a file it is the clock's, waiting included.
"""

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable

import numpy as np

from flashref.bundle import Layout, bundle_layout
from flashref.gather import gather_rows
from flashref.storage.device import PRESETS
from flashref.storage.readers import DirectReader, memory_reader
from flashref.types import Array, Reader

BLOCK = 4096
# name → n, d, neurons in a batch: the tiny model; 64 MiB of OPT 6.7B's bundles, 2.4 % of its 16,384 neurons
SHAPES = {"tiny (512 B)": (1024, 128, 40), "OPT 6.7B (16 KiB)": (4096, 4096, 393)}


def main() -> None:
    parser = argparse.ArgumentParser(description="gather_rows with and without checksums")
    parser.add_argument("--pairs", type=int, default=200, help="pairs a row (default 200)")
    parser.add_argument("--folder", default="/var/tmp", help="where the files are written (default /var/tmp)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'bundles':<18} {'reader':<8} {'unchecked':>10} {'checked':>10} {'ratio (quartiles)':>22}  share")
    for name, (n, d, batch) in SHAPES.items():
        layout = bundle_layout(n, d, "F16", ("up", "down"), BLOCK)
        packed = rng.integers(0, 256, n * layout.stride, np.uint8)
        bundles = packed.reshape(n, layout.stride)
        checksums = np.array([zlib.crc32(bundle.data) for bundle in bundles], np.uint32)
        with tempfile.NamedTemporaryFile(dir=options.folder) as file:
            file.write(packed.data)
            file.flush()
            with DirectReader(file.name, block=BLOCK) as direct:
                for reader, read, clock in (
                    ("memory", memory_reader(packed, PRESETS["paper_m1max_fig2b"]), time.thread_time_ns),
                    ("direct" if direct.direct else "buffered", direct.read, time.perf_counter_ns),
                ):
                    times = measure(read, clock, layout, checksums, batch, options.pairs, rng)
                    report(f"{name:<18} {reader:<8}", times)
        print(f"{name:<18} zlib's CRC-32 alone: {crc_speed(bundles):.2f} GB/s")


def measure(
    read: Reader,
    clock: Callable[[], int],
    layout: Layout,
    checksums: Array,
    batch: int,
    pairs: int,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """(nanoseconds unchecked, checked) of each pair."""
    times = []
    for pair in range(-5, pairs):  # the first ones warm up
        ids = np.sort(rng.choice(layout.n, batch, replace=False))
        taken = [0, 0]
        for which in rng.permutation(2).tolist():
            started = clock()
            gather_rows(read, layout, ids, 0, checksums if which else None)
            taken[which] = clock() - started
        if pair >= 0:
            times.append((taken[0], taken[1]))
    return times


def report(row: str, times: list[tuple[int, int]]) -> None:
    """Medians; the ratio is the median of the pairs' ratios."""
    unchecked, checked = (statistics.median(column) / 1000 for column in zip(*times, strict=True))
    low, ratio, high = statistics.quantiles((b / a for a, b in times), n=4)
    spread = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
    print(f"{row} {unchecked:>7.0f} µs {checked:>7.0f} µs {spread:>22}  {1 - 1 / ratio:.0%}")


def crc_speed(bundles: Array) -> float:
    """GB/s over bundles that lie in memory one after the other; the median of seven."""
    some, times = bundles[: (4 << 20) // bundles.shape[1]], []
    for _ in range(7):
        started = time.thread_time_ns()
        for bundle in some:
            zlib.crc32(bundle.data)
        times.append(time.thread_time_ns() - started)
    return float(some.nbytes / statistics.median(times))


if __name__ == "__main__":
    main()
