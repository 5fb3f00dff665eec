"""I/O time of a real run beside the simulated one of the same trace, on a disk calibrated just before.

    PYTHONPATH=. python tests/bench/simulated_run.py [--folder DIR] [--tokens 60] [--repeats 3]

Calibrates the folder's disk, writes four layers of OPT 6.7B's bundles (1 GiB of random bytes), and reads
what a window of 5 tokens asks for, token by token, with the direct reader: every batch of the plan, bundled
and not. Prints the median over tokens of |real − simulated| / simulated. Not a test: it depends on a clock.
"""

import argparse
import datetime
import os
from pathlib import Path

import numpy as np

from flashref.bundle import bundle_extents, bundle_layout
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.flash import unbundled_layouts
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.synthetic import OPT_PROCESS, synthetic_trace
from flashref.simulate.window import unwindowed, uses_of, windowed
from flashref.storage.calibrate import calibrate
from flashref.storage.plan import read_plan
from flashref.storage.readers import DirectReader
from flashref.storage.scratch import scratch_file

LAYERS, NEURONS, WIDTH, WINDOW, WARM = 4, 16_384, 4096, 5, 10
DENSITIES = (0.0375, 0.0673, 0.127, 0.1782)  # of four layers of Fig. 9a


def placed(layouts, layer, layer_bytes):
    """The layer's layouts where its part of the file begins."""
    return tuple(layout._replace(start=layout.start + layer * layer_bytes) for layout in layouts)


def real_times(reader, reads, layouts):
    """Nanoseconds of every batch, really read."""
    times = []
    for batch, layer in enumerate(reads.layer.tolist()):
        ids = reads.ids[reads.starts[batch] : reads.starts[batch + 1]].astype(np.int64)
        extents = [extent for layout in layouts[layer] for extent in bundle_extents(layout, ids)]
        times.append(reader.read(read_plan(extents, 4096, 0)).nanoseconds)
    return np.array(times)


def per_token(reads, times, tokens):
    return np.bincount(reads.token, weights=times, minlength=tokens)[WARM:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    now = datetime.datetime.now().astimezone()
    calibration = calibrate(options.folder, now=now, rounds=8, file_bytes=2**31)
    print(calibration.device, calibration.error, f"load {os.getloadavg()[0]:.2f}", sep="\n")
    device = calibration.device

    trace = synthetic_trace(generator, OPT_PROCESS, DENSITIES, (NEURONS,) * LAYERS, options.tokens)
    bundle = bundle_layout(NEURONS, WIDTH, "F16", ("up", "down"))
    rows = unbundled_layouts(bundle)
    layer_bytes = rows[-1].start + NEURONS * rows[-1].stride + 4096  # a little more than the bundles
    bundled = [placed((bundle,), layer, layer_bytes) for layer in range(LAYERS)]
    unbundled = [placed(rows, layer, layer_bytes) for layer in range(LAYERS)]
    window = windowed(uses_of(trace, WINDOW), WINDOW, trace.units, NEURONS, moved_by_swap)
    cases = {
        "predictor, rows": (unwindowed(trace), unbundled),
        "window, rows": (window, unbundled),
        "window, bundles": (window, bundled),
    }
    with (
        scratch_file(options.folder, LAYERS * layer_bytes, generator) as path,
        DirectReader(path, device.queue_depth) as reader,
    ):
        for _ in range(options.repeats):
            for name, (reads, layouts) in cases.items():
                simulated = per_token(reads, batch_times(device, read_sizes(reads, layouts)), trace.tokens)
                real = per_token(reads, real_times(reader, reads, layouts), trace.tokens)
                error = np.abs(real / simulated - 1)
                print(
                    f"{name}: {real.mean() / 1e6:.1f} ms a token, simulated {simulated.mean() / 1e6:.1f}; "
                    f"error median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}, "
                    f"of the sum {real.sum() / simulated.sum() - 1:+.1%}; load {os.getloadavg()[0]:.2f}"
                )


if __name__ == "__main__":
    main()
