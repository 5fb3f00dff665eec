"""I/O time of a real run beside the simulated one of the same trace, on a disk calibrated meanwhile.

    PYTHONPATH=. python tests/bench/simulated_run.py [--folder DIR] [--tokens 30] [--rounds 8]

Reads, token by token, every batch that four layers of OPT 6.7B ask for (1 GiB of random bytes in the place of
weights): without a window, with a window of 5, and bundled. A disk's speed drifts by more than the model
errs, so a pass of the run follows each round of calibration, and medians of both are compared. Prints the
median over tokens of |real − simulated| / simulated. Not a test: it depends on a clock.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from flashref.bundle import bundle_extents, bundle_layout
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.flash import unbundled_layouts
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.synthetic import OPT_PROCESS, synthetic_trace
from flashref.simulate.window import unwindowed, uses_of, windowed
from flashref.storage.calibrate import BATCH_DEPTHS, DEPTHS, measure
from flashref.storage.fit import fit_device, fit_dispatch, point_errors, split_half_noise
from flashref.storage.plan import read_plan
from flashref.storage.readers import DirectReader
from flashref.storage.scratch import scratch_file

LAYERS, NEURONS, WIDTH, WINDOW, WARM, DEPTH = 4, 16_384, 4096, 5, 10, 32
DENSITIES = (0.0375, 0.0673, 0.127, 0.1782)  # of four layers of Fig. 9a
FILE_BYTES = 2**32


def plans_of(trace):
    """name → (reads, layouts, the plan of each batch of a counted token, the token of each)."""
    bundle = bundle_layout(NEURONS, WIDTH, "F16", ("up", "down"))
    rows = unbundled_layouts(bundle)
    layer_bytes = rows[-1].start + NEURONS * rows[-1].stride + 4096
    window = windowed(uses_of(trace, WINDOW), WINDOW, trace.units, NEURONS, moved_by_swap)
    cases = {
        "predictor, rows": (unwindowed(trace), rows),
        "window, rows": (window, rows),
        "window, bundles": (window, (bundle,)),
    }
    for name, (reads, fields) in cases.items():
        layouts = [
            tuple(field._replace(start=field.start + layer * layer_bytes) for field in fields)
            for layer in range(LAYERS)
        ]
        plans = []
        for batch, layer in enumerate(reads.layer.tolist()):
            ids = reads.ids[reads.starts[batch] : reads.starts[batch + 1]].astype(np.int64)
            extents = [extent for field in layouts[layer] for extent in bundle_extents(field, ids)]
            plans.append(read_plan(extents, 4096, 0))
        yield name, reads, layouts, plans


def per_token(reads, times, tokens):
    """Milliseconds of every counted token."""
    return np.bincount(reads.token, weights=times, minlength=tokens)[WARM:] / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    units = (NEURONS,) * LAYERS
    trace = synthetic_trace(generator, OPT_PROCESS, DENSITIES, units, WARM + options.tokens)
    cases = list(plans_of(trace))
    passes = {name: [] for name, *_ in cases}

    with scratch_file(options.folder, FILE_BYTES, generator) as path:
        depths = sorted({*DEPTHS, *BATCH_DEPTHS, DEPTH})
        opened = {depth: DirectReader(path, depth) for depth in depths}

        def run(what, done, total):
            for name, reads, _, plans in cases:
                times = [opened[DEPTH].read(plan).nanoseconds for plan in plans]
                passes[name].append(per_token(reads, times, trace.tokens))

        readers = {depth: reader.read for depth, reader in opened.items()}
        measured = measure(readers, FILE_BYTES, options.rounds, generator, advance=run)
        for reader in opened.values():
            reader.close()

    device = fit_device(measured.points, fit_dispatch(fit_device(measured.points), measured.batches))
    noise = split_half_noise([point.nanoseconds for point in measured.points])
    print(device, point_errors(device, measured.points), f"noise {noise}", sep="\n")
    for name, reads, layouts, _ in cases:
        simulated = per_token(reads, batch_times(device, read_sizes(reads, layouts)), trace.tokens)
        real = np.median(passes[name], axis=0)
        error = np.abs(real / simulated - 1)
        print(
            f"{name}: {real.mean():.1f} ms a token, simulated {simulated.mean():.1f}; error median "
            f"{np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
