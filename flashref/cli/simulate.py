"""`flashref simulate`: what a token of a model would cost, by device, memory, window and policy."""

import argparse
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np

from flashref.cli import options as words
from flashref.cli import simulate_options as simulated
from flashref.cli.plots import check_plot
from flashref.cli.report import progress
from flashref.cli.simulate_plot import plot
from flashref.cli.simulate_report import Inputs, show, show_csv, show_json
from flashref.models.budget import LARGEST_WINDOW
from flashref.models.storage import block_for
from flashref.simulate.orders import ORDERS
from flashref.simulate.policies import POLICIES, Study
from flashref.simulate.shapes.shape import Shape, shape_demand, shape_flash
from flashref.simulate.sweep import Choices, Configuration, Outcome, Refused, configurations, sweep
from flashref.simulate.synthetic import synthetic_trace
from flashref.simulate.tokens import Host
from flashref.simulate.trace import Trace
from flashref.simulate.trace_file import Description, load_description, load_trace, save_trace
from flashref.simulate.window import CountMoves, uses_of
from flashref.storage.device import Device
from flashref.types import DomainError

PARTS = 4  # a worker's share, so that progress shows and none waits long for the others


def add_parser(commands: Any) -> None:
    """`simulate` among the commands."""
    parser = commands.add_parser(
        "simulate",
        help="what a token would cost, by device, memory, window and policy",
        description="Costs a model that is read from flash, token by token, without its weights: a trace of "
        "the neurons that are active, under every combination of the lists (commas between).",
    )
    simulated.add_simulate_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Simulate every configuration and show them; DomainError if none is possible."""
    devices = {word: words.device(word) for word in options.device}
    model = simulated.shape(options.model, options.dtype)
    words.check_new_file("--save-trace", options.save_trace)
    check_plot(options.plot)
    asked = _configurations(options)
    with progress(options.quiet) as advance:
        advance("trace", 0, 1)
        trace, description = _trace(options, model)
        longest = max((window for window in options.window if window), default=0)
        if longest > trace.tokens:
            raise DomainError(
                f"--window {longest}: longer than the trace of {trace.tokens} tokens; "
                "ask for a shorter window or a longer trace"
            )
        if options.save_trace is not None:
            save_trace(options.save_trace, trace, description)
        study = _study(trace, model, devices, words.MOVES[options.placement], max(longest, LARGEST_WINDOW))
        advance("trace", 1, 1)
        host = Host(options.copy_bandwidth, options.compute_bandwidth)
        choices = Choices(POLICIES, ORDERS, devices, host)
        found: list[Outcome | Refused] = []
        with _workers(options.workers) as executor:
            for outcome in sweep(study, choices, asked, executor, PARTS * options.workers):
                found.append(outcome)
                advance("configurations", len(found), len(asked))
    outcomes = [each for each in found if isinstance(each, Outcome)]
    if not outcomes:
        raise DomainError(found[0].reason if isinstance(found[0], Refused) else "nothing was asked")
    inputs = Inputs(
        model,
        trace,
        description,
        devices,
        {word: simulated.device_errors(word) for word in devices},
        host,
        options.placement,
    )
    if options.plot is not None:
        plot(options.plot, outcomes, f"{model.name}, {model.dtype}")
    if options.json:
        show_json(inputs, found)
    elif options.csv:
        show_csv(inputs, found)
    else:
        show(inputs, found)
    return 0


def _configurations(options: argparse.Namespace) -> list[Configuration]:
    return configurations(
        options.policy,
        options.memory,
        options.window,
        options.order,
        [simulated.ROWS[word] for word in options.rows],
        options.max_gap,
        options.device,
    )


def _trace(options: argparse.Namespace, model: Shape) -> tuple[Trace, Description]:
    """The recorded trace, if it is of this model; else one that is drawn for it."""
    units = (model.neurons,) * len(model.sparse_layers)
    if options.trace is None:
        counted = options.tokens or simulated.TOKENS
        warm = simulated.WARM if options.warm is None else options.warm
        seed = options.seed or 0
        process = simulated.process(model)
        generator = np.random.default_rng(seed)
        trace = synthetic_trace(generator, process, model.sparse_densities, units, warm + counted, warm)
        densities = model.sparse_densities
        source = (
            f"synthetic: {process.always:.2f} of a layer's density always active, the others' rates with "
            f"concentration {process.concentration:.3g}, densities {min(densities):.1%} to "
            f"{max(densities):.1%}, mean {sum(densities) / len(densities):.1%}; seed {seed}"
        )
        return trace, Description(model.name, source)
    if (options.tokens, options.warm, options.seed) != (None, None, None):
        raise DomainError("--tokens, --warm and --seed are of a synthetic trace; leave them out with --trace")
    trace = load_trace(options.trace)
    if trace.units != units:
        raise DomainError(
            f"{options.trace}: is a trace of {_layers(trace.units)}, but {options.model} has "
            f"{_layers(units)} with a predictor; give its model with --model"
        )
    what, source = load_description(options.trace)
    return trace, Description(what, f"{options.trace}: {what}; {source}")


def _layers(units: Sequence[int]) -> str:
    sizes = sorted(set(units))
    neurons = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(units)} layers of {neurons} neurons"


def _study(
    trace: Trace, model: Shape, devices: dict[str, Device], count_moves: CountMoves, longest: int
) -> Study:
    """The model on flash; where devices have blocks of several sizes, one image for all, in the largest."""
    block = max(block_for(device) for device in devices.values())
    return Study(uses_of(trace, longest), shape_flash(model, block), shape_demand(model, block), count_moves)


@contextmanager
def _workers(count: int) -> Iterator[Executor | None]:
    """So many processes, or none for one; they end with the command, also when it is interrupted."""
    if count == 1:
        yield None
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_leave_interrupts_to_parent)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise DomainError(
            "a worker ended before its work was done, perhaps for want of memory; use fewer --workers"
        ) from error
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    executor.shutdown()


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
