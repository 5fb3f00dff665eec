"""`flashref simulate`: what a token costs, by device, memory, window and policy."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flashref.cli.options import at_least, check_new_file, memory
from flashref.cli.plots import check_plot, save_plot
from flashref.cli.report import progress, size
from flashref.cli.tables import Column, fits, fitting, print_table, say
from flashref.simulate.numbers import digits
from flashref.simulate.orders import ORDERS
from flashref.simulate.placement import MOVES
from flashref.simulate.policies import POLICIES
from flashref.simulate.sentences import (
    answer,
    choice_cell,
    columns_explained,
    overfull,
    policies_explained,
    title,
    trace_explained,
    values_of,
)
from flashref.simulate.shapes.find import find_shape
from flashref.simulate.shapes.presets import CONFIGS
from flashref.simulate.simulation import (
    DEFAULT_DEVICE,
    DEFAULT_POLICIES,
    DRAWN,
    Drawn,
    Simulation,
    simulate,
)
from flashref.simulate.sweep import Estimate, Impossible
from flashref.simulate.tokens import M1_MAX_CPU, Host
from flashref.simulate.trace_file import save_trace
from flashref.simulate.wording import ROWS
from flashref.storage.device import PRESETS
from flashref.types import STORED_DTYPES, DomainError

Item = TypeVar("Item")
GB = 10**9
# A field of a configuration, and the heading of its column.
CHOICES = {
    "window": "window",
    "memory": "memory",
    "device": "device",
    "order": "order",
    "max_gap": "gap",
    "bundled": "rows",
}
BYTES = {"useful": "useful_bytes", "read": "read_bytes", "in DRAM": "dram_bytes", "copied": "copied_bytes"}
TIMES = {
    "copying, ms": "memory_ms",
    "compute, ms": "compute_ms",
    "sum, ms": "total_ms",
    "overlapped, ms": "overlapped_ms",
}
# Columns that a narrow terminal does without, the first one first.
DISPENSABLE = (
    "useful",
    "reads",
    "overlapped, ms",
    "copied",
    "compute, ms",
    "copying, ms",
    "in DRAM",
    "read",
)


def add_parser(commands: Any) -> None:
    """`simulate` among the commands."""
    parser = commands.add_parser(
        "simulate",
        help="simulate what a token costs, by device, memory, window and policy",
        description="Simulates what a token costs where a model is read from flash. No weights are needed: "
        "a trace says which neurons each token uses. Every combination of the values in the LISTs, which "
        "are separated by commas, is a configuration of its own.",
    )
    _add_trace_options(parser)
    _add_lists(parser)
    add = parser.add_argument
    add(
        "--placement",
        choices=MOVES,
        default="swap_with_last",
        help="how the window places new rows in memory (default: swap_with_last)",
    )
    add(
        "--copy-bandwidth",
        metavar="GB/S",
        type=_bytes_per_second,
        default=M1_MAX_CPU.copy_bandwidth,
        help="how fast rows are written and moved in memory; 0 means without a limit (default: "
        f"{M1_MAX_CPU.copy_bandwidth / GB:g}, as on the paper's M1 Max)",
    )
    add(
        "--compute-bandwidth",
        metavar="GB/S",
        type=_bytes_per_second,
        default=M1_MAX_CPU.compute_bandwidth,
        help="how fast weights are multiplied; 0 means without a limit (default: "
        f"{M1_MAX_CPU.compute_bandwidth / GB:g}, as on the CPU of the paper's M1 Max)",
    )
    add("--workers", metavar="N", type=at_least(1), default=1, help="number of processes (default: 1)")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    forms.add_argument("--csv", action="store_true", help="print a line for each configuration instead")
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="write a plot of the times to this new .png, .svg or .pdf file; needs the extra `plot`",
    )
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Simulate every configuration, print the results and write the files that were asked for."""
    check_new_file("--save-trace", options.save_trace)
    check_plot(options.plot)
    files = [path.resolve() for path in (options.plot, options.save_trace) if path is not None]
    if len(set(files)) < len(files):
        raise DomainError("--plot and --save-trace name the same file; give each a name of its own")
    drawn = (options.tokens, options.warm, options.seed)
    if options.trace is not None and drawn != (None, None, None):
        raise DomainError(
            "--tokens, --warm and --seed belong to a synthetic trace, and --trace gives a recorded one; "
            "use only one of the two"
        )
    given = {field: value for field, value in zip(Drawn._fields, drawn, strict=True) if value is not None}
    with progress(options.quiet) as advance:
        simulation = simulate(
            find_shape(options.model, options.dtype),
            trace=options.trace or Drawn(**given),
            device=options.device,
            policies=options.policy,
            memory=options.memory,
            window=options.window,
            rows=options.rows,
            order=options.order,
            max_gap=options.max_gap,
            placement=options.placement,
            host=Host(options.copy_bandwidth, options.compute_bandwidth),
            workers=options.workers,
            progress=advance,
        )
    _print(simulation, options)
    _keep(simulation, options)
    return 0


def _print(simulation: Simulation, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(simulation.as_json(), indent=2, allow_nan=False))
    elif options.csv:  # a header, and a line for every configuration; what makes no difference is empty
        records = simulation.records()
        writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    else:
        _show(simulation)
    sys.stdout.flush()


def _keep(simulation: Simulation, options: argparse.Namespace) -> None:
    """Write the files that were asked for, after the results, which a full disk must not take away."""
    if options.save_trace is not None:
        save_trace(options.save_trace, simulation.trace, simulation.description)
    if options.plot is not None:
        from flashref.simulate.plots import draw

        save_plot(options.plot, draw(simulation))


def _add_trace_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        metavar="PRESET|FILE",
        default="opt-6.7b",
        help=f"a config.json, or the name of a model: tiny, {', '.join(CONFIGS)} (default: opt-6.7b)",
    )
    add(
        "--dtype",
        choices=STORED_DTYPES,
        help="how weights are stored (default: as config.json says; F16 for a model by name)",
    )
    add(
        "--trace",
        metavar="FILE",
        type=Path,
        help="use this recorded trace, which `flashref run --save-trace` writes (default: a synthetic one)",
    )
    add(
        "--tokens",
        metavar="N",
        type=at_least(1),
        help=f"number of tokens in the synthetic trace, after the warm-up (default: {DRAWN.tokens})",
    )
    whole = at_least(0)
    add(
        "--warm",
        metavar="N",
        type=whole,
        help=f"number of warm-up tokens before them, whose costs do not count (default: {DRAWN.warm})",
    )
    add("--seed", metavar="S", type=whole, help=f"seed of the synthetic trace (default: {DRAWN.seed})")
    add("--save-trace", metavar="FILE", type=Path, help="write the trace to this new file, for --trace")


def _add_lists(parser: argparse.ArgumentParser) -> None:
    def add(option: str, item: Callable[[str], Any], default: list[Any], help: str) -> None:
        parser.add_argument(option, metavar="LIST", type=_listed(item), default=default, help=help)

    add(
        "--device",
        str,
        [DEFAULT_DEVICE],
        f"JSON files, such as `flashref calibrate` writes, or {', '.join(PRESETS)} (default: "
        f"{DEFAULT_DEVICE})",
    )
    add(
        "--memory",
        memory,
        [0.5],
        "memory for the model: shares of its bytes, such as 0.5, or bytes, such as 6GB or 512MiB "
        "(default: 0.5)",
    )
    add(
        "--window",
        _window,
        [None],
        "number of tokens whose neurons the window keeps, or auto: the largest number up to 5 whose "
        "neurons fit on average (default: auto)",
    )
    add(
        "--policy",
        _one_of(POLICIES),
        list(DEFAULT_POLICIES),
        f"what is kept in memory, some of {', '.join(POLICIES)} (default: {','.join(DEFAULT_POLICIES)})",
    )
    add(
        "--rows",
        _one_of(ROWS),
        list(ROWS),
        "whether the parts of a neuron lie in one piece on flash: bundled, unbundled (default: both)",
    )
    add(
        "--order",
        _one_of(ORDERS),
        ["natural"],
        f"in which order neurons lie on flash: {', '.join(ORDERS)}; the last two are learnt from the "
        "warm-up tokens (default: natural)",
    )
    add(
        "--max-gap",
        at_least(0),
        [0],
        "number of bytes between two reads that are read over, at most, to join them (default: 0)",
    )


def _listed(item: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """A parser of values with commas between them; a repeated value counts once."""

    def parse(word: str) -> list[Item]:
        return list(dict.fromkeys(item(part.strip()) for part in word.split(",")))

    return parse


def _one_of(known: Mapping[str, Any]) -> Callable[[str], str]:
    """A parser of one of these words."""

    def parse(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is unknown; use {', '.join(known)}")
        return word

    return parse


def _window(word: str) -> int | None:
    return None if word == "auto" else at_least(1)(word)


def _bytes_per_second(word: str) -> int:
    try:
        value = float(word)
        rounded = round(value * GB)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of GB/s, such as 14") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"a bandwidth must be at least 0, not {word}")
    if value > 0 and rounded == 0:
        raise argparse.ArgumentTypeError(f"{word} GB/s is less than a byte a second; 0 means no limit")
    return rounded


def _show(simulation: Simulation) -> None:
    """Print the table, the answer, what policies and columns mean, and where the trace is from."""
    shape, answers = simulation.shape, simulation.answers
    varying = [field for field in CHOICES if len(values_of(simulation, field)) > 1]
    constant = [field for field in CHOICES if field not in varying]
    say(title(simulation, constant, size(shape.total_bytes)), "bold")
    shown = _show_table(simulation, varying)
    for reason in dict.fromkeys(each.reason for each in answers if isinstance(each, Impossible)):
        say(f"Not possible: {reason}.")
    for device in simulation.devices:
        for budget in dict.fromkeys(each.configuration.memory for each in answers):
            say(answer(simulation, device, budget))
    missing = [name for name in map(_name, DISPENSABLE) if name not in shown]
    if missing:
        say(f"This terminal is too narrow for {', '.join(missing)}; --csv and --json have every column.")
    for lines in (policies_explained(simulation), columns_explained(simulation, shown)):
        say("")
        for line in lines:
            say(line)
    say("")
    for line in (*overfull(simulation), *trace_explained(simulation)):
        say(line)


def _show_table(simulation: Simulation, varying: Sequence[str]) -> list[str]:
    """Print a row for each configuration, with a column for each field that has several values.

    Returns the names of the columns that found room.
    """
    answers = simulation.answers
    columns = [Column(heading, words=True) for heading in ("policy", *(CHOICES[field] for field in varying))]
    columns += [Column(heading) for heading in _cells(simulation, answers[0])]
    rows = [
        [choice_cell(each, field) for field in ("policy", *varying)] + [*_cells(simulation, each).values()]
        for each in answers
    ]
    kept = fitting(columns, rows, DISPENSABLE)
    columns, rows = [columns[at] for at in kept], [[row[at] for at in kept] for row in rows]
    shown = [_name(column.heading) for column in columns]
    if not fits(columns, rows):  # the choices in one column, which may be broken between words
        headings, numbers = [column.heading for column in columns if column.words], 1 + len(varying)
        rows = [[_phrase(headings, row), *row[numbers:]] for row in rows]
        columns = [Column("configuration", words=True), *columns[numbers:]]
    print_table(columns, rows)
    return shown


def _name(heading: str) -> str:
    """The name of a column, without its unit."""
    return heading.removesuffix(", ms")


def _phrase(headings: Sequence[str], row: Sequence[str]) -> str:
    """The choices of a row in one cell, a number with its heading."""
    cells = zip(headings, row, strict=False)
    return ", ".join(
        f"{heading}={cell}" if heading in ("window", "memory", "gap") else cell
        for heading, cell in cells
        if cell
    )


def _cells(simulation: Simulation, each: Estimate | Impossible) -> dict[str, str]:
    """The numbers of a row by their headings, as the table has them."""
    headings = [*BYTES, "reads", "I/O, ms", *TIMES]
    if isinstance(each, Impossible):
        return dict.fromkeys(headings, "—")
    error = simulation.io_error_ms(each)
    cells = {heading: size(getattr(each, field)) for heading, field in BYTES.items()}
    cells["reads"] = f"{each.reads:,.0f}"
    cells["I/O, ms"] = digits(each.io_ms) + ("" if error is None else f" ±{digits(error)}")
    cells |= {heading: digits(getattr(each, field)) for heading, field in TIMES.items()}
    return cells
