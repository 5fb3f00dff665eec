"""Figures 7 and 8: I/O time by memory, and by the length of the text; only the shape of the curves."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from flashref.models.budget import solve_budget
from flashref.simulate.costs import batch_times, separate_sizes
from flashref.simulate.figures import figure_densities, paper_figure
from flashref.simulate.paper.derivation import (
    OPT_NEW,
    OPT_WINDOW,
    mean_io_ms,
    opt_process,
    paper_shape,
    shape_trace,
)
from flashref.simulate.paper.figure import DEVICE, DEVICE_NAME, Figure, FigureRow
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.shapes.shape import shape_demand, shape_layout
from flashref.simulate.window import uses_of, windowed
from flashref.types import DomainError

LONGEST = 96  # tokens, so many that in Fig. 7 the memory decides what a window holds
REFERENCE = 50.0  # % of the model in memory; Fig. 7 is shown relative to its time there
COLD_TOKENS = 257
SHOWN = (0, 1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 150, 200, 256)
TABLE3_GPU = 30  # ms of I/O, Table 3
OF_ITSELF = "1 by definition"


def figure7() -> Figure:
    """Derive Fig. 7: the I/O time of a token by memory, relative to the time with half of the model in it."""
    points = {float(point["pct"]): float(point["flash"]) for point in paper_figure("fig7")}
    times = _memory_ms(points)
    layers, most = paper_shape("opt-6.7b").layers, max(points)
    rows = []
    for percent, milliseconds in points.items():
        ours = times[percent] / times[REFERENCE] if percent in times else None
        note = OF_ITSELF if percent == REFERENCE else ""
        if ours is None:
            note = "by our count this is less than what is always resident"
        paper = milliseconds / points[REFERENCE]
        rows.append(FigureRow("I/O time", percent, ours, paper, note, percent != REFERENCE))
    return Figure(
        "Fig. 7: I/O time over memory, OPT 6.7B",
        "% of the model in memory",
        "of the time at 50 %",
        (
            f"the same as Table 2, with the longest window that fits, up to {LONGEST} tokens; the device is "
            f"{DEVICE_NAME}, not the figure's"
        ),
        tuple(rows),
        (
            (
                "Only the shape can be compared: the figure's machine has another disk, its windows are not "
                "given, and its 25 ms in all at 50 % contradict the 84 ms of Table 3."
            ),
            (
                f"A floor stays, however much is in memory: one read in each of {layers} layers has a "
                f"latency of {layers * DEVICE.latency_ns / 1e6:.1f} ms together. At {most:g} % ours takes "
                f"{times[most]:.1f} ms and the figure's machine {points[most]:.1f} ms; at 50 % they take "
                f"{times[REFERENCE]:.0f} and {points[REFERENCE]:.1f} ms. Such a floor is a small part of "
                "the first and a large part of the second."
            ),
            "So the figure is not reproduced: ours falls with memory as the figure does, but much faster.",
            (
                "Ours may also fall too far because the process runs out of neurons that were not used "
                "lately; a text does not."
            ),
        ),
    )


def _memory_ms(percents: Collection[float]) -> dict[float, float]:
    """The I/O time of a token by the % of the model in memory, where that holds what is always resident."""
    shape = paper_shape("opt-6.7b")
    trace = shape_trace(shape, opt_process(), LONGEST + 48, LONGEST)
    uses, demand = uses_of(trace, LONGEST), shape_demand(shape, DEVICE.block)
    bundles = [(shape_layout(shape, DEVICE.block),)] * shape.layers
    unions = uses.unions[LONGEST:]
    times = {}
    for percent in percents:
        try:
            budget = solve_budget(demand, percent / 100, LONGEST, None, unions.max(axis=0))
        except DomainError:
            continue
        # The rows are shared among the layers by the needs of the longest window that fits on average.
        fitting = int((unions.sum(axis=1).mean(axis=0) <= sum(budget.capacities)).sum())
        needs = np.rint(unions.mean(axis=0)).astype(np.int64)
        budget = solve_budget(demand, percent / 100, max(fitting, 1), None, needs)
        reads = windowed(uses, LONGEST, budget.capacities, demand.bypass_rows, moved_by_swap)
        times[percent] = mean_io_ms(reads, separate_sizes(reads, bundles), trace)
    return times


def figure8() -> Figure:
    """Derive Fig. 8: the I/O time after n tokens from a cold start, a mean relative to the first token's."""
    running = _running_ms()
    rows = []
    for series, name, derived in (
        ("CPU, nucleus", "fig8_cpu_nucleus", True),
        ("GPU, nucleus", "fig8_gpu_nucleus", False),
        ("GPU, greedy", "fig8_gpu_greedy", False),
    ):
        tokens, milliseconds = np.array(paper_figure(name)).T
        parts = np.interp(SHOWN, tokens, milliseconds) / milliseconds[0]
        for at, part in zip(SHOWN, parts.tolist(), strict=True):
            ours = float(running[at] / running[0]) if derived else None
            rows.append(FigureRow(series, at, ours, part, OF_ITSELF if at == 0 else "", at != 0))
    gpu_first = TABLE3_GPU * np.mean(figure_densities("fig9a_opt_predictor")) / OPT_NEW
    return Figure(
        "Fig. 8: I/O time over the length of the text, from a cold start, OPT 6.7B",
        "tokens generated",
        "of the first token's time",
        f"the same as Table 2, but in float32, with k = {OPT_WINDOW} and nothing in memory at first; the "
        f"device is {DEVICE_NAME}",
        tuple(rows),
        (
            (
                "We read the figure as a mean over the tokens so far, which the paper does not say: it is "
                f"smooth, and with a window of {OPT_WINDOW} it falls for hundreds of tokens."
            ),
            (
                f"In ms, the first token takes {running[0]:.0f} (in the figure 550), and after {COLD_TOKENS} "
                f"tokens the mean is {running[-1]:.0f} (in the figure 125, in Table 3 105)."
            ),
            (
                "The GPU's curves are not derived, for the paper has no curve of that machine's disk. At the "
                f"rate of Table 3, {TABLE3_GPU} ms for 2.4 % of the neurons, its first token would take "
                f"{gpu_first:.0f} ms, not 442 or 460 ms: these must contain something else."
            ),
        ),
    )


def _running_ms() -> npt.NDArray[np.float64]:
    """The mean I/O time in ms of the first n + 1 tokens, n = 0, 1, …, in float32 from a cold start."""
    shape = paper_shape("opt-6.7b", "F32")
    trace = shape_trace(shape, opt_process(), COLD_TOKENS, 0)
    reads = windowed(uses_of(trace, OPT_WINDOW), OPT_WINDOW, trace.units, shape.neurons, moved_by_swap)
    sizes = separate_sizes(reads, [(shape_layout(shape, DEVICE.block),)] * shape.layers)
    times = batch_times(DEVICE, sizes).reshape(COLD_TOKENS, shape.layers).sum(axis=1)
    running: npt.NDArray[np.float64] = np.cumsum(times) / np.arange(1, COLD_TOKENS + 1) / 1e6
    return running
