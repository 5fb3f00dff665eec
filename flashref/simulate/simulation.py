"""What a token costs, under every combination of policies, memories, windows and devices."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flashref.models.budget import LARGEST_WINDOW, Amount, parse_memory
from flashref.models.pack import block_for
from flashref.simulate.devices import JudgedDevice, judged_device
from flashref.simulate.html import html_table
from flashref.simulate.orders import ORDERS
from flashref.simulate.placement import MOVES
from flashref.simulate.policies import POLICIES, Study
from flashref.simulate.shapes.find import find_shape
from flashref.simulate.shapes.shape import ModelShape, shape_demand, shape_flash
from flashref.simulate.sweep import (
    Choices,
    Configuration,
    Estimate,
    Grid,
    Impossible,
    configurations,
    irrelevant,
    sweep,
)
from flashref.simulate.synthetic import FALCON_PROCESS, OPT_PROCESS, synthetic_trace
from flashref.simulate.tokens import M1_MAX_CPU, Host
from flashref.simulate.trace import ActivationTrace
from flashref.simulate.trace_file import Description, load_description, load_trace
from flashref.simulate.window import uses_of
from flashref.simulate.wording import ROWS, choice_text
from flashref.simulate.workers import PARTS, worker_processes
from flashref.storage.device import Device, device_to_json
from flashref.storage.progress import Progress, unseen
from flashref.types import DomainError

DEFAULT_DEVICE = "paper_m1max_fig2b"
DEFAULT_POLICIES = ("naive", "hybrid", "predictor", "window", "lru", "belady")
NUMBERS = Estimate._fields[2:]  # all but the configuration and its window

File = str | os.PathLike[str]


class Drawn(NamedTuple):
    """A synthetic trace that is still to be drawn.

    tokens: how many tokens count.
    warm: how many warm-up tokens come before them.
    seed: equal seeds give equal traces.
    """

    tokens: int = 256
    warm: int = 32
    seed: int = 0


DRAWN = Drawn()


class Simulation(NamedTuple):
    """What was simulated, and an answer to every configuration.

    shape: the model.
    trace, description: the trace, and what it says of itself.
    devices: the devices by name, with how far their times may be off.
    host: the bandwidths of copying and of computing.
    placement: how new rows were placed, "swap_with_last" or "fill_holes".
    answers: an Estimate, or an Impossible with its reason, for each configuration.
    """

    shape: ModelShape
    trace: ActivationTrace
    description: Description
    devices: Mapping[str, JudgedDevice]
    host: Host
    placement: str
    answers: tuple[Estimate | Impossible, ...]

    @property
    def estimates(self) -> list[Estimate]:
        """The answers to the configurations that are possible."""
        return [each for each in self.answers if isinstance(each, Estimate)]

    def at(self, device: str, memory: float | Amount) -> list[Estimate | Impossible]:
        """Pick the answers for a device and a memory.

        Args:
            device: the name of a device.
            memory: one of the memories that were asked for.

        Returns:
            The answers; one of a policy to which the memory makes no difference is among those of each
            memory.
        """
        return [
            each
            for each in self.answers
            if each.configuration.device == device
            and ("memory" in irrelevant(each.configuration.policy) or each.configuration.memory == memory)
        ]

    def real(self, device: str, memory: float | Amount) -> list[Estimate]:
        """Pick the estimates of policies that can be built: all but Belady's bound.

        Args:
            device, memory: as `at` takes them.

        Returns:
            The estimates.
        """
        return [
            each
            for each in self.at(device, memory)
            if isinstance(each, Estimate) and each.configuration.policy != "belady"
        ]

    def io_error_ms(self, estimate: Estimate) -> float | None:
        """How far an I/O time may be off.

        Args:
            estimate: one of `estimates`.

        Returns:
            Milliseconds, the 90th percentile of the device's error; None where that was not measured.
        """
        errors = self.devices[estimate.configuration.device].errors
        return None if errors is None else estimate.io_ms * errors.p90

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each configuration, as a table for pandas.

        Returns:
            Exact numbers; None for a choice that makes no difference to the policy, and for every number
            of a configuration that is impossible, whose reason is under "refused".
        """
        return [self._record(each) for each in self.answers]

    def _record(self, each: Estimate | Impossible) -> dict[str, Any]:
        configuration = each.configuration
        record = {
            field: None if field in irrelevant(configuration.policy) else value
            for field, value in configuration._asdict().items()
        }
        if isinstance(record["memory"], Amount):
            record["memory"] = choice_text("memory", record["memory"])
        bundled = record.pop("bundled")
        record["rows"] = None if bundled is None else choice_text("bundled", bundled)
        if isinstance(each, Impossible):
            return record | dict.fromkeys([*NUMBERS, "io_error_ms"]) | {"refused": each.reason}
        numbers = {field: getattr(each, field) for field in NUMBERS}
        return record | {
            "window": each.window,
            **numbers,
            "io_error_ms": self.io_error_ms(each),
            "refused": None,
        }

    def as_json(self) -> dict[str, Any]:
        """What `flashref simulate --json` prints: what was asked, and an entry for each configuration."""
        sizes = {"total_bytes": self.shape.total_bytes, "resident_bytes": self.shape.resident_bytes}
        return {
            "model": {**self.shape._asdict(), **sizes},
            "trace": {
                **self.description._asdict(),
                "tokens": self.trace.tokens,
                "first_counted": self.trace.first_counted,
                "layers": self.trace.layers,
            },
            "devices": {
                name: {
                    **json.loads(device_to_json(judged.device)),
                    "error": judged.errors._asdict() if judged.errors else None,
                }
                for name, judged in self.devices.items()
            },
            "host": self.host._asdict(),
            "placement": self.placement,
            "outcomes": self.records(),
        }

    def __repr__(self) -> str:
        """One line, for a NamedTuple's own would show every active neuron."""
        possible = f"{len(self.estimates)} of {len(self.answers)} configurations are possible"
        return f"<Simulation of {self.shape.name} in {self.shape.dtype}: {possible}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each configuration, without the columns that are empty."""
        records = self.records()
        kept = [column for column in records[0] if any(record[column] is not None for record in records)]
        rows = [[_cell_text(record[column]) for column in kept] for record in records]
        title = f"{self.shape.name} in {self.shape.dtype}: means of a token, by {self.description.source}"
        return html_table(title, kept, rows)


def simulate(
    shape: File | ModelShape = "opt-6.7b",
    *,
    trace: Drawn | File | ActivationTrace = DRAWN,
    device: str | Sequence[str] | Mapping[str, Device] = DEFAULT_DEVICE,
    policies: str | Sequence[str] = DEFAULT_POLICIES,
    memory: float | str | Amount | Sequence[float | str | Amount] = 0.5,
    window: int | Sequence[int | None] | None = None,
    rows: str | Sequence[str] = tuple(ROWS),
    order: str | Sequence[str] = "natural",
    max_gap: int | Sequence[int] = 0,
    placement: str = "swap_with_last",
    host: Host = M1_MAX_CPU,
    workers: int = 1,
    progress: Progress = unseen,
) -> Simulation:
    """Simulate what a token costs where a model is read from flash, without its weights.

    Several values may be given wherever a sequence is allowed; every combination is a configuration.

    Args:
        shape: the name of a preset, "tiny", the path of a config.json, or a shape.
        trace: which neurons are active: a synthetic trace (the default), a file of `save_trace`, or a trace.
        device: names of presets, or files that `flashref calibrate` wrote; or a mapping of names to devices.
        policies: what is kept in memory, some of POLICIES.
        memory: shares of the model's bytes, such as 0.5, or amounts of bytes, such as "6GB".
        window: numbers of tokens; None stands for the largest window up to 5 whose neurons fit on average.
        rows: whether the parts of a neuron lie in one piece on flash, "bundled" or "unbundled".
        order: in which order neurons lie on flash, some of ORDERS; learnt from the warm-up tokens.
        max_gap: how many bytes between two reads are read over, at most, to join them.
        placement: how new rows are placed in memory, "swap_with_last" or "fill_holes".
        host: the bandwidths of copying and of computing.
        workers: number of processes.
        progress: is told how far the work has come.

    Returns:
        The simulation: `records()` is a table for pandas, and `estimates` has the means over the tokens.

    Raises:
        DomainError: a value is unknown, or no configuration is possible.
        ImageError: a file cannot be read.
    """
    model = shape if isinstance(shape, ModelShape) else find_shape(shape)
    devices = _devices(device)
    grid = Grid(
        _known("policy", policies, POLICIES),
        [parse_memory(each) for each in _several(memory)],
        _several(window),
        _known("order", order, ORDERS),
        [ROWS[word] for word in _known("rows", rows, ROWS)],
        _several(max_gap),
        list(devices),
    )
    count_moves = MOVES[_known("placement", placement, MOVES)[0]]
    progress("trace", 0, 1)
    active, description = _trace(trace, model)
    longest = max((k for k in grid.windows if k), default=0)
    if longest > active.tokens:
        raise DomainError(
            f"a window of {longest} tokens is longer than the trace of {active.tokens} tokens; "
            "give a shorter window or a longer trace"
        )
    # Devices with blocks of several sizes share one image, in the largest block.
    block = block_for(*(each.device for each in devices.values()))
    study = Study(
        uses_of(active, max(longest, LARGEST_WINDOW)),
        shape_flash(model, block),
        shape_demand(model, block),
        count_moves,
    )
    progress("trace", 1, 1)
    choices = Choices(POLICIES, ORDERS, {name: each.device for name, each in devices.items()}, host)
    answers = _answers(study, choices, configurations(grid), workers, progress)
    return Simulation(model, active, description, devices, host, placement, answers)


def _answers(
    study: Study, choices: Choices, asked: Sequence[Configuration], workers: int, progress: Progress
) -> tuple[Estimate | Impossible, ...]:
    """The answers to all configurations; DomainError if none of them is possible."""
    answers: list[Estimate | Impossible] = []
    with worker_processes(workers) as executor:
        for answer in sweep(study, choices, asked, executor, PARTS * workers):
            answers.append(answer)
            progress("configurations", len(answers), len(asked))
    reasons = [each.reason for each in answers if isinstance(each, Impossible)]
    if len(reasons) == len(answers):
        raise DomainError(reasons[0])
    return tuple(answers)


def _devices(device: str | Sequence[str] | Mapping[str, Device]) -> dict[str, JudgedDevice]:
    if isinstance(device, Mapping):
        return {name: JudgedDevice(each) for name, each in device.items()}
    return {name: judged_device(name) for name in _several(device)}


def _several(values: Any) -> list[Any]:
    """One value or several as a list in which each occurs once."""
    one = not isinstance(values, Sequence) or isinstance(values, str | Amount)
    found = list(dict.fromkeys([values] if one else values))
    if not found:
        raise DomainError("a list of values to simulate is empty; give at least one")
    return found


def _known(what: str, words: str | Sequence[str], known: Mapping[str, Any]) -> list[str]:
    for word in _several(words):
        if word not in known:
            raise DomainError(f"{what} {word!r} is unknown; use {', '.join(known)}")
    return _several(words)


def _trace(trace: Drawn | File | ActivationTrace, model: ModelShape) -> tuple[ActivationTrace, Description]:
    """The trace and its description; DomainError if the trace is not one of this model."""
    units = (model.neurons,) * len(model.sparse_layers)
    if isinstance(trace, Drawn):
        return _drawn(trace, model, units)
    if isinstance(trace, ActivationTrace):
        active, name, description = trace, "the trace", Description(model.name, "given in Python")
    else:
        active, name = load_trace(trace), os.fspath(trace)
        what, source = load_description(trace)
        description = Description(what, f"{name}: {what}; {source}")
    if active.units != units:
        raise DomainError(
            f"{name}: is a trace of {_layers(active.units)}, but {model.name} has {_layers(units)} with a "
            "predictor; give the model to which the trace belongs (--model)"
        )
    return active, description


def _drawn(drawn: Drawn, model: ModelShape, units: tuple[int, ...]) -> tuple[ActivationTrace, Description]:
    """A synthetic trace: of the process fitted to OPT, or for every other model to the paper's Fig. 4a."""
    process = OPT_PROCESS if model.name.startswith("opt-") else FALCON_PROCESS
    densities = model.sparse_densities
    generator, tokens = np.random.default_rng(drawn.seed), drawn.warm + drawn.tokens
    trace = synthetic_trace(generator, process, densities, units, tokens, drawn.warm)
    least, most, mean = min(densities), max(densities), sum(densities) / len(densities)
    shares = f"{mean:.1%}" if least == most else f"{least:.1%} to {most:.1%} (on average {mean:.1%})"
    source = (
        f"synthetic, seed {drawn.seed}: {shares} of a layer's neurons are active in a token; "
        f"{process.always:.0%} of these are active in every token, and the rates of the others have a beta "
        f"distribution of concentration {process.concentration:.3g}"
    )
    return trace, Description(model.name, source)


def _layers(units: Sequence[int]) -> str:
    sizes = sorted(set(units))
    neurons = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(units)} layers of {neurons} neurons"


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
