"""Figures 2b and 4a: the throughput of random reads, and the aggregated use of neurons."""

import numpy as np

from flashref.simulate.figures import paper_figure, use_curve
from flashref.simulate.paper.derivation import SEED
from flashref.simulate.paper.figure import DEVICE, DEVICE_NAME, Figure, FigureRow
from flashref.simulate.statistics import use_statistics
from flashref.simulate.synthetic import fit_use_curve, synthetic_trace
from flashref.storage.device import read_time

READS = 3200  # many, and a multiple of every number of threads, so that the throughput is steady
NEURONS, LAYERS, TOKENS = 18_176, 4, 288  # neurons as in Falcon 7B; layers and tokens of the synthetic trace


def figure2b() -> Figure:
    """Derive Fig. 2b: the throughput of random reads by size and threads, of the device fitted to it."""
    curves = {int(key): value for key, value in paper_figure("fig2b").items() if key.isdigit()}
    rows = []
    for threads in sorted(curves, reverse=True):
        device = DEVICE._replace(queue_depth=threads)
        for kibibytes, paper in curves[threads].items():
            size = 1024 * int(kibibytes)
            throughput = READS * size / read_time(device, [size] * READS) * 1e9 / 2**20
            rows.append(FigureRow(f"{threads} threads", float(kibibytes), throughput, paper))
    return Figure(
        "Fig. 2b: random-read throughput",
        "chunk, KiB",
        "MiB/s",
        f"the device {DEVICE_NAME}, which was fitted to these 25 points",
        tuple(rows),
        ("The figure's labels say KB and MB/s. Read as KiB and MiB/s, the figure agrees with Table 2.",),
    )


def figure4a() -> Figure:
    """Derive Fig. 4a: the aggregated use of neurons in a trace of a process with three numbers."""
    curve = use_curve()
    process, density = fit_use_curve(curve)
    rng = np.random.default_rng(SEED)
    trace = synthetic_trace(rng, process, (density,) * LAYERS, (NEURONS,) * LAYERS, TOKENS)
    statistics = use_statistics(trace, len(curve))
    use, new = (100 * columns.mean(0) for columns in (statistics.s_agg, statistics.new))
    increments = paper_figure("fig4a_incr")
    rows = [FigureRow("s_agg(k)", k, float(use[k - 1]), 100 * share) for k, share in curve]
    rows += [FigureRow("s_agg(k+1) − s_agg(k)", k, float(new[k - 1]), increments[str(k)]) for k, _ in curve]
    last = rows[-1]
    return Figure(
        "Fig. 4a: aggregated use of neurons, Falcon 7B, layer 10",
        "k, tokens",
        "% of the neurons",
        (
            f"a trace drawn from the process fitted to this curve (density {density:.4f}, always "
            f"{process.always:.3f}, concentration {process.concentration:.2f}): {LAYERS} layers, {TOKENS} "
            "tokens"
        ),
        tuple(rows),
        (
            (
                "The process has three numbers, and the curve 31 points: so a good fit only shows that the "
                "process can have this shape. An independent check stands under Table 2: section C.1's 2.4 %."
            ),
            (
                f"The increments are too small at the end, by {-100 * (last.error or 0):.0f} % at k = "
                f"{last.x:g}: a text goes on to use new neurons, while the process runs out of them."
            ),
        ),
    )
