"""Many configurations of one trace: what a token costs for each policy, memory, order and device."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from itertools import groupby, product
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.models.budget import Amount
from flashref.simulate.costs import Sizes, batch_times, read_sizes, sequential_sizes
from flashref.simulate.flash import SEQUENTIAL_READ
from flashref.simulate.orders import Order
from flashref.simulate.policies import Kept, Policy, Study
from flashref.simulate.tokens import Host, TokenCosts, token_costs
from flashref.simulate.trace import Counts
from flashref.storage.device import Device
from flashref.types import DomainError, Ids


class Configuration(NamedTuple):
    """One question.

    policy: what is kept in memory.
    memory: a share of the model's bytes, or an amount of bytes.
    window: k in tokens; None for the largest up to 5 whose neurons fit on average.
    order: in which order neurons lie on flash.
    bundled: whether the parts of a neuron lie in one piece.
    max_gap: bytes between two reads that are read over, at most, to join them.
    device: the name of the device.
    """

    policy: str
    memory: float | Amount
    window: int | None
    order: str
    bundled: bool
    max_gap: int
    device: str


class Grid(NamedTuple):
    """Values for every field of a configuration; each combination of them is a question."""

    policies: Sequence[str]
    memories: Sequence[float | Amount]
    windows: Sequence[int | None]
    orders: Sequence[str]
    bundled: Sequence[bool]
    max_gaps: Sequence[int]
    devices: Sequence[str]


# The fields that make no difference to a policy; for the policies that are not named here it is the window.
_ALL_BUT_DEVICE = frozenset({"memory", "window", "order", "bundled", "max_gap"})
_IRRELEVANT: Mapping[str, frozenset[str]] = {
    "naive": _ALL_BUT_DEVICE,
    "hybrid": _ALL_BUT_DEVICE - {"memory"},
    "window": frozenset(),
}


class Estimate(NamedTuple):
    """The answer to a configuration: bytes, reads and milliseconds, as means over the counted tokens.

    configuration: the question.
    window: k in tokens; None where the policy has no window.
    dram_bytes: bytes of weights in memory.
    useful_bytes, read_bytes, reads: what a token needs from flash, what is read in whole blocks, and in how
        many reads.
    copied_bytes: bytes of rows that are written into the DRAM matrix or moved in it.
    io_ms, memory_ms, compute_ms: the time to read, to copy rows, and to multiply.
    total_ms, overlapped_ms: their sum, and the bound if reading overlaps with all other work.
    overfull: the share of the tokens and layers for which the rows do not hold the whole window.
    """

    configuration: Configuration
    window: int | None
    dram_bytes: int
    useful_bytes: float
    read_bytes: float
    reads: float
    copied_bytes: float
    io_ms: float
    memory_ms: float
    compute_ms: float
    total_ms: float
    overlapped_ms: float
    overfull: float


class Impossible(NamedTuple):
    """A configuration that is not possible, such as one with too little memory, and the reason."""

    configuration: Configuration
    reason: str


class Choices(NamedTuple):
    """What the names in a configuration stand for, and the host that all configurations share.

    An executor with other processes needs policies that can be pickled.
    """

    policies: Mapping[str, Policy]
    orders: Mapping[str, Order]
    devices: Mapping[str, Device]
    host: Host


class _Task(NamedTuple):
    """What an executor gets: plain data, and the layouts of each order, bundled and unbundled."""

    study: Study
    policies: dict[str, Policy]
    layouts: dict[tuple[str, bool], list[tuple[Layout, ...]]]
    devices: dict[str, Device]
    host: Host
    configurations: Sequence[Configuration]


def irrelevant(policy: str) -> frozenset[str]:
    """Name the fields of a configuration that make no difference to a policy.

    Args:
        policy: the policy's name.

    Returns:
        Names of fields.
    """
    return _IRRELEVANT.get(policy, frozenset({"window"}))


def configurations(grid: Grid) -> list[Configuration]:
    """List every combination of values, in the order that shares the most work.

    Args:
        grid: the values of every field.

    Returns:
        The configurations; those that differ only in what makes no difference to their policy occur once.
    """
    every = (Configuration(*values) for values in product(*grid))
    usual = {"memory": grid.memories[0], "window": None, "order": "natural", "bundled": True, "max_gap": 0}
    once = (
        each._replace(**{field: usual[field] for field in irrelevant(each.policy)})  # type: ignore[arg-type]
        for each in every
    )
    return list(dict.fromkeys(once))


def sweep(
    study: Study,
    choices: Choices,
    configurations: Sequence[Configuration],
    executor: Executor | None = None,
    parts: int = 1,
) -> Iterator[Estimate | Impossible]:
    """Answer configurations one by one, in their order.

    The work has three steps: policy, memory and window; order, bundled and max_gap; device. Neighbours that
    are alike in a step share it.

    Args:
        study: the trace of a model on flash.
        choices: what the names in the configurations stand for.
        configurations: the questions.
        executor: any executor of `concurrent.futures`, or None to work in this process.
        parts: the number of tasks for the executor, ≥ 1; each gets the study.

    Returns:
        An iterator over the answers: an Estimate, or an Impossible with its reason.
    """
    used = sorted({(each.order, each.bundled) for each in configurations})
    orders = {order: choices.orders[order](study.uses.trace) for order in sorted({each[0] for each in used})}
    task = _Task(
        study,
        {each.policy: choices.policies[each.policy] for each in configurations},
        {(order, bundled): _layouts(study, orders[order], bundled) for order, bundled in used},
        {each.device: choices.devices[each.device] for each in configurations},
        choices.host,
        configurations,
    )
    if executor is None:
        yield from _answers(task)
        return
    share = -(-len(configurations) // parts) or 1
    futures = [
        executor.submit(_all_answers, task._replace(configurations=configurations[first : first + share]))
        for first in range(0, len(configurations), share)
    ]
    try:
        for future in futures:
            yield from future.result()
    finally:
        for future in futures:
            future.cancel()


def cost_of(
    kept: Kept,
    study: Study,
    layouts: Sequence[Sequence[Layout]],
    sizes: Sizes,
    device: Device,
    host: Host,
) -> TokenCosts:
    """Compute what each counted token costs under a policy.

    Args:
        kept: what the policy reads and keeps.
        study: the trace of a model on flash.
        layouts: for each layer a layout of bundles, or one for each field.
        sizes: the sizes of the reads with these layouts.
        device: the device.
        host: the bandwidths of copying and of computing.

    Returns:
        The costs of each counted token.
    """
    unit_bytes = np.array([sum(field.bundle_bytes for field in fields) for fields in layouts])
    costs = token_costs(
        kept.reads, sizes, batch_times(device, sizes), unit_bytes, kept.summed, kept.dense_bytes, host
    )
    # The runs of a token are one batch (decision 20 says how naive and hybrid read).
    pieces = [sequential_sizes(run.length, SEQUENTIAL_READ, sizes.block).blocks for run in kept.runs]
    if pieces:
        run = np.concatenate(pieces)
        costs = costs._replace(
            requests=costs.requests + len(run),
            useful_bytes=costs.useful_bytes + kept.useful_run_bytes,
            read_bytes=costs.read_bytes + sum(run.length for run in kept.runs),
            io_ns=costs.io_ns + batch_times(device, Sizes(run, np.array([0, len(run)]), sizes.block)),
        )
    return TokenCosts(*(column[study.uses.trace.first_counted :] for column in costs))


def _all_answers(task: _Task) -> list[Estimate | Impossible]:
    return list(_answers(task))


def _answers(task: _Task) -> Iterator[Estimate | Impossible]:
    for (policy, memory, window), same_policy in groupby(task.configurations, lambda each: each[:3]):
        try:
            kept = task.policies[policy](task.study, memory, window)
        except DomainError as error:
            yield from (Impossible(configuration, str(error)) for configuration in same_policy)
            continue
        for (order, bundled, max_gap), same_layout in groupby(same_policy, lambda each: each[3:6]):
            layouts = task.layouts[order, bundled]
            sizes = read_sizes(kept.reads, layouts, max_gap)
            for configuration in same_layout:
                device = task.devices[configuration.device]
                costs = cost_of(kept, task.study, layouts, sizes, device, task.host)
                yield _estimate(configuration, kept, costs)


def _layouts(study: Study, orders: Sequence[Ids | None], bundled: bool) -> list[tuple[Layout, ...]]:
    """Each layer's layouts with its neurons in this order."""
    chosen = [(layout,) for layout in study.flash.bundled] if bundled else study.flash.unbundled
    return [
        tuple(field._replace(order=ids) for field in fields)
        for fields, ids in zip(chosen, orders, strict=True)
    ]


def _estimate(configuration: Configuration, kept: Kept, costs: TokenCosts) -> Estimate:
    def mean(column: Counts) -> float:
        return float(column.mean())

    return Estimate(
        configuration,
        kept.window,
        kept.dram_bytes,
        useful_bytes=mean(costs.useful_bytes),
        read_bytes=mean(costs.read_bytes),
        reads=mean(costs.requests),
        copied_bytes=mean(costs.copied_bytes),
        io_ms=mean(costs.io_ns) / 1e6,
        memory_ms=mean(costs.memory_ns) / 1e6,
        compute_ms=mean(costs.compute_ns) / 1e6,
        total_ms=mean(costs.total_ns) / 1e6,
        overlapped_ms=mean(costs.overlapped_ns) / 1e6,
        overfull=kept.overfull,
    )
