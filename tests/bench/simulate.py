"""How long `flashref simulate` takes: one configuration, a thousand windows, and reads against an event loop.

    PYTHONPATH=. python tests/bench/simulate.py [--rounds 5] [--configurations 1000] [--only one|loop|sweep]

OPT 6.7B in F16, 256 tokens, all counted. Prints medians of wall and processor time, and the load average. Not
a test: its verdict depends on a clock.
"""

import argparse
import heapq
import os
import statistics
import time

import numpy as np

from flashref.models.budget import solve_budget
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.orders import ORDERS
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.policies import POLICIES, Study, sliding_window
from flashref.simulate.shapes.presets import preset_shape
from flashref.simulate.shapes.shape import shape_demand, shape_flash
from flashref.simulate.sweep import Choices, Configuration, Estimate, Grid, configurations, cost_of, sweep
from flashref.simulate.synthetic import OPT_PROCESS, synthetic_trace
from flashref.simulate.tokens import M1_MAX_CPU
from flashref.simulate.window import uses_of, windowed
from flashref.simulate.workers import PARTS, worker_processes
from flashref.storage.device import PRESETS, completion_times, service_time

SHAPE = preset_shape("opt-6.7b", "F16")
TOKENS, BLOCK, LONGEST = 256, 4096, 25
DEVICE = PRESETS["paper_m1max_fig2b"]
DEVICES = {"paper_m1max_fig2b": DEVICE, "nvme_gen4": PRESETS["nvme_gen4"]}
CHOICES = Choices(POLICIES, ORDERS, DEVICES, M1_MAX_CPU)
MEMORIES = [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0]


class Watch:
    """Wall and processor seconds of named steps, round after round."""

    def __init__(self):
        self.found = {}

    def time(self, name, step):
        wall, processor = time.perf_counter(), time.process_time()
        result = step()
        spent = time.perf_counter() - wall, time.process_time() - processor
        self.found.setdefault(name, []).append(spent)
        return result

    def show(self):
        for name, rounds in self.found.items():
            wall, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"  {name:<34} {wall:8.3f} s wall {processor:8.3f} s processor")


def draw():
    """The trace of every benchmark."""
    units = (SHAPE.neurons,) * len(SHAPE.sparse_layers)
    return synthetic_trace(np.random.default_rng(0), OPT_PROCESS, SHAPE.sparse_densities, units, TOKENS)


def study_of(trace, longest):
    """The trace linked, and the model on flash."""
    return Study(
        uses_of(trace, longest), shape_flash(SHAPE, BLOCK), shape_demand(SHAPE, BLOCK), moved_by_swap
    )


def one_configuration(rounds):
    """A window of 5, bundled, half in memory: all at once, and what its steps take."""
    asked = [Configuration("window", 0.5, 5, "natural", True, 0, "paper_m1max_fig2b")]
    whole, steps = Watch(), Watch()
    for _ in range(rounds):
        (outcome,) = whole.time("all", lambda: list(sweep(study_of(draw(), 5), CHOICES, asked)))
        trace = steps.time("trace", draw)
        study = steps.time("link", lambda trace=trace: study_of(trace, 5))
        kept = steps.time("window with moves", lambda study=study: sliding_window(study, 0.5, 5))
        budget = solve_budget(study.demand, 0.5, 5, study.uses.unions.mean(0), study.uses.unions.max(0))
        nothing = np.zeros((TOKENS, trace.layers), np.int64)
        steps.time(
            "  of which without moves",
            lambda uses=study.uses, budget=budget, nothing=nothing, rows=study.demand.bypass_rows: windowed(
                uses, 5, budget.capacities, rows, lambda _: nothing
            ),
        )
        layouts = [(layout,) for layout in study.flash.bundled]
        sizes = steps.time("read sizes", lambda kept=kept, layouts=layouts: read_sizes(kept.reads, layouts))
        steps.time(
            "costs",
            lambda kept=kept, study=study, layouts=layouts, sizes=sizes: cost_of(
                kept, study, layouts, sizes, DEVICE, M1_MAX_CPU
            ),
        )
    print(
        f"one configuration: {len(trace.ids):,} active neurons in {TOKENS} tokens, "
        f"{len(sizes.blocks):,} reads, {outcome.io_ms:.1f} ms I/O a token; medians of {rounds}"
    )
    whole.show()
    steps.show()


def event_loop(device, batches):
    """The last completion of every batch: a heap of workers, the cost of each size looked up."""
    shared_of, alone_of = {}, {}
    total = 0
    for sizes in batches:
        if not sizes:
            continue
        outstanding = min(device.queue_depth, len(sizes))
        costs = shared_of.setdefault(outstanding, {})
        for size in set(sizes):
            if size not in costs:
                costs[size] = service_time(device, size, outstanding)
                alone_of[size] = service_time(device, size, 1)
        served = device.dispatch_ns * outstanding
        free = [served] * outstanding
        done = last = 0
        for size in sizes:
            start = free[0]
            served = max(served, start) + costs[size]
            done = max(served, start + alone_of[size])
            heapq.heapreplace(free, done)
            last = max(last, done)
        total += last
    return total


def against_an_event_loop(rounds):
    """The same sizes costed by batch_times and by a plain event loop."""
    study = study_of(draw(), 5)
    reads = sliding_window(study, 0.5, 5).reads
    for name, layouts in (
        ("bundled", [(layout,) for layout in study.flash.bundled]),
        ("unbundled", study.flash.unbundled),
    ):
        sizes = read_sizes(reads, layouts)
        parts = np.split(sizes.blocks * BLOCK, sizes.starts[1:-1])
        batches = [part.tolist() for part in parts]
        assert all(
            event_loop(DEVICE, [batch]) == max(completion_times(DEVICE, batch))
            for batch in batches[:20]
            if batch
        )
        watch, ratios = Watch(), []
        for _ in range(rounds):
            ours = watch.time("batch_times", lambda sizes=sizes: int(batch_times(DEVICE, sizes).sum()))
            theirs = watch.time("event loop", lambda batches=batches: event_loop(DEVICE, batches))
            ratios.append(watch.found["event loop"][-1][1] / watch.found["batch_times"][-1][1])
        print(
            f"{name}: {len(sizes.blocks):,} reads in {len(batches):,} batches, medians of {rounds}; "
            f"{statistics.median(ratios):.0f} times faster in processor time; "
            f"totals {ours / 1e9:.6f} and {theirs / 1e9:.6f} s, {ours / theirs - 1:+.4%}"
        )
        watch.show()


def a_sweep(count, workers):
    """Windows 1 to 25, ten memories, bundled and not, two devices."""
    asked = configurations(
        Grid(
            ["window"], MEMORIES, list(range(1, LONGEST + 1)), ["natural"], [False, True], [0], list(DEVICES)
        )
    )[:count]
    wall = time.perf_counter()
    study = study_of(draw(), LONGEST)
    with worker_processes(workers) as executor:
        outcomes = list(sweep(study, CHOICES, asked, executor, PARTS * workers))
    wall = time.perf_counter() - wall
    done = sum(isinstance(outcome, Estimate) for outcome in outcomes)
    spent = os.times()
    print(
        f"{done} of {len(asked)} window configurations on one trace: {wall:.1f} s wall with {workers} "
        f"workers, the trace included; {sum(spent[:4]):.1f} s processor, with the benchmarks before"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--configurations", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("one", "loop", "sweep"))
    options = parser.parse_args()
    for name, measure in (
        ("one", lambda: one_configuration(options.rounds)),
        ("loop", lambda: against_an_event_loop(options.rounds)),
        ("sweep", lambda: a_sweep(options.configurations, options.workers)),
    ):
        if options.only in (None, name):
            print("load average {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
            measure()


if __name__ == "__main__":
    main()
