"""What `flashref simulate` shows: a table and the answer, or exact numbers as JSON or CSV."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flashref.cli.report import Output, milliseconds, print_whole, size
from flashref.cli.simulate_options import ROWS
from flashref.simulate.shapes.shape import ModelShape
from flashref.simulate.sweep import Estimate, Impossible, irrelevant
from flashref.simulate.tokens import Host
from flashref.simulate.trace import ActivationTrace
from flashref.simulate.trace_file import Description
from flashref.storage.device import Device, device_to_json
from flashref.storage.fit import Errors

GB = 10**9
ROW_WORDS = {bundled: word for word, bundled in ROWS.items()}
NUMBERS = Estimate._fields[2:]
HEADINGS = "useful", "read", "reads", "in DRAM", "copied", "I/O", "memory", "compute", "sum", "overlapped"
CHOSEN = {  # column of the table → field of the configuration
    "memory": "memory",
    "device": "device",
    "order": "order",
    "gap": "max_gap",
    "rows": "bundled",
}


class Inputs(NamedTuple):
    """What was simulated. errors: of each device, None where nobody measured them."""

    model: ModelShape
    trace: ActivationTrace
    description: Description
    devices: Mapping[str, Device]
    errors: Mapping[str, Errors | None]
    host: Host
    placement: str


def show(inputs: Inputs, found: Sequence[Estimate | Impossible]) -> None:
    """The table, what cannot be, where the trace is from, and the answer."""
    outcomes = [each for each in found if isinstance(each, Estimate)]
    out = Output(highlight=False, emoji=False)
    table, constant = _table(inputs, found)
    trace, model = inputs.trace, inputs.model
    title = f"simulated: {model.name} in {model.dtype}, {size(model.total_bytes)}"
    out.print(Text(", ".join([title, *constant]) + "; means of a token", "bold"), soft_wrap=True)
    print_whole(table)
    for reason in dict.fromkeys(each.reason for each in found if isinstance(each, Impossible)):
        out.print(f"not possible: {escape(reason)}", soft_wrap=True)
    counted = trace.tokens - trace.first_counted
    host = inputs.host
    uncounted = f"after {trace.first_counted:,} that are not"
    rates = f"{_rate(host.copy_bandwidth)}, weights multiplied at {_rate(host.compute_bandwidth)}"
    lines = [
        f"{counted:,} tokens counted, {uncounted}; the trace: {inputs.description.source}",
        f"rows are put and moved in memory at {rates}, whatever the device; placement {inputs.placement}",
    ]
    if model.note:
        lines.append(f"{model.name}: {model.note}")
    lines += list(_overfull(outcomes))
    memories = dict.fromkeys(each.configuration.memory for each in found)
    lines += [_answer(inputs, outcomes, word, memory) for word in inputs.devices for memory in memories]
    if any(each.configuration.policy == "belady" for each in outcomes):
        lines.append("belady knows the future: a bound, and never the fastest")
    for line in lines:
        out.print(escape(line), soft_wrap=True)


def show_json(inputs: Inputs, found: Sequence[Estimate | Impossible]) -> None:
    """One object: what was asked, and a list with an entry for every configuration."""
    model, trace = inputs.model, inputs.trace
    sizes = {"total_bytes": model.total_bytes, "resident_bytes": model.resident_bytes}
    shown = {
        "model": {**model._asdict(), **sizes},
        "trace": {
            **inputs.description._asdict(),
            "tokens": trace.tokens,
            "first_counted": trace.first_counted,
            "layers": trace.layers,
        },
        "devices": {
            word: {
                **json.loads(device_to_json(device)),
                "error": errors._asdict() if (errors := inputs.errors[word]) else None,
            }
            for word, device in inputs.devices.items()
        },
        "host": inputs.host._asdict(),
        "placement": inputs.placement,
        "outcomes": [_record(inputs, each) for each in found],
    }
    print(json.dumps(shown, indent=2, allow_nan=False))


def show_csv(inputs: Inputs, found: Sequence[Estimate | Impossible]) -> None:
    """A header, and a line for every configuration; what makes no difference is empty."""
    records = [_record(inputs, each) for each in found]
    writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def _record(inputs: Inputs, each: Estimate | Impossible) -> dict[str, Any]:
    """A configuration and its exact numbers; None for what makes no difference, or is not known."""
    configuration = each.configuration
    record = {
        field: None if field in irrelevant(configuration.policy) else value
        for field, value in configuration._asdict().items()
    }
    rows = record.pop("bundled")
    record |= {"rows": None if rows is None else ROW_WORDS[rows]}
    if isinstance(each, Impossible):
        return record | dict.fromkeys([*NUMBERS, "io_error_ms"]) | {"refused": each.reason}
    numbers = {field: getattr(each, field) for field in NUMBERS}
    return record | {
        "window": each.window,
        **numbers,
        "io_error_ms": _io_error(inputs, each),
        "refused": None,
    }


def _table(inputs: Inputs, found: Sequence[Estimate | Impossible]) -> tuple[Table, list[str]]:
    """The table without the columns that have one value, and these in words."""
    rows = [_choices(each) for each in found]
    kept, constant = [], []
    for column in rows[0]:
        values = {row[column] for row in rows} - {""}
        if column == "policy" or len(values) > 1:
            kept.append(column)
        elif values:
            constant.append(_in_words(column, values.pop()))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for heading in kept[1:]:
        table.add_column("of model" if heading == "memory" else heading, no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for each, row in zip(found, rows, strict=True):
        numbers = ["—"] * len(HEADINGS) if isinstance(each, Impossible) else _cells(inputs, each)
        table.add_row(*(escape(row[column]) for column in kept), *numbers)
    return table, constant


def _choices(each: Estimate | Impossible) -> dict[str, str]:
    """What was chosen, in words; empty where it makes no difference."""
    configuration = each.configuration
    words = {"policy": configuration.policy}
    window = each.window if isinstance(each, Estimate) else configuration.window
    windowed = "window" not in irrelevant(configuration.policy)
    words["window"] = ("auto" if window is None else str(window)) if windowed else ""
    for column, field in CHOSEN.items():
        value = getattr(configuration, field)
        word = ROW_WORDS[value] if field == "bundled" else f"{value:g}" if field == "memory" else str(value)
        words[column] = "" if field in irrelevant(configuration.policy) else word
    return words


def _in_words(column: str, value: str) -> str:
    """A column with one value, for the title."""
    return {
        "memory": f"{value} of the model in memory",
        "device": f"on {value}",
        "window": f"window {value}",
        "order": f"{value} order",
        "gap": f"gaps of {value} bytes read over",
        "rows": f"{value} rows",
    }[column]


def _cells(inputs: Inputs, outcome: Estimate) -> list[str]:
    error = _io_error(inputs, outcome)
    return [
        size(outcome.useful_bytes),
        size(outcome.read_bytes),
        f"{outcome.reads:,.0f}",
        size(outcome.dram_bytes),
        size(outcome.copied_bytes),
        milliseconds(outcome.io_ms) + ("" if error is None else f" ±{milliseconds(error)[:-3]}"),
        milliseconds(outcome.memory_ms),
        milliseconds(outcome.compute_ms),
        milliseconds(outcome.total_ms),
        milliseconds(outcome.overlapped_ms),
    ]


def _overfull(outcomes: Sequence[Estimate]) -> Iterator[str]:
    """Where a longer window is asked for than the rows hold: so windows may give one figure."""
    shares = {
        (each.configuration.memory, each.window): each.overfull for each in outcomes if each.overfull > 0
    }
    for (memory, window), share in shares.items():
        yield (
            f"with {memory:g} of the model in memory, a window of {window} does not fit whole for "
            f"{share:.0%} of the tokens and layers: older tokens leave early, or neurons are not kept"
        )


def _answer(inputs: Inputs, outcomes: Sequence[Estimate], device: str, memory: float) -> str:
    """The fastest way to use a memory with a device, of those that could be built, and how sure that is."""
    real = [
        each
        for each in outcomes
        if each.configuration.device == device
        and each.configuration.policy != "belady"
        and ("memory" in irrelevant(each.configuration.policy) or each.configuration.memory == memory)
    ]
    if not real:
        return f"On {device} with {memory:g} of the model in memory, nothing but a bound is possible."
    best = min(real, key=lambda outcome: outcome.total_ms)
    chosen = [
        word if column == "policy" else _in_words(column, word)
        for column, word in _choices(best).items()
        if word
        and column not in ("device", "memory")
        and (column, word) not in (("order", "natural"), ("gap", "0"))
    ]
    errors = inputs.errors[device]
    if errors is None:
        sure = "how far this device may be off was not measured"
    else:
        low, high = (best.io_ms * (1 + sign * errors.p90) for sign in (-1, 1))
        sure = (
            f"{milliseconds(low)} to {milliseconds(high)} by the device's error, or its disk's noise if that "
            f"is larger: median {errors.median:.1%}, 90th percentile {errors.p90:.1%}"
        )
    return (
        f"Fastest on {device} with {memory:g} of the model in memory: {', '.join(chosen)}: "
        f"{milliseconds(best.total_ms)} a token, of which I/O {milliseconds(best.io_ms)} ({sure})."
    )


def _io_error(inputs: Inputs, outcome: Estimate) -> float | None:
    """Milliseconds by which nine of ten I/O times are off at most."""
    errors = inputs.errors[outcome.configuration.device]
    return None if errors is None else outcome.io_ms * errors.p90


def _rate(bandwidth: int) -> str:
    return f"{bandwidth / GB:g} GB/s" if bandwidth else "no time"
