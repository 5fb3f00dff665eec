"""What a simulation says, in whole sentences: its answer, and what its policies and columns mean."""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from flashref.models.budget import Amount
from flashref.simulate.numbers import digits
from flashref.simulate.simulation import Simulation
from flashref.simulate.sweep import Estimate, Impossible, irrelevant
from flashref.simulate.wording import choice_phrase, choice_text

GB = 10**9
POLICY_MEANS: Mapping[str, str] = MappingProxyType(
    {
        "naive": "reads the whole model for every token.",
        "hybrid": (
            "keeps as many whole layers in memory as fit, and reads the other layers for every token."
        ),
        "predictor": "reads every predicted neuron for every token, and keeps none of them.",
        "window": (
            "is the paper's method: it keeps the neurons of the last tokens, in memory that each layer has "
            "for itself. It multiplies all rows in memory, and moves rows to fill holes."
        ),
        "lru": (
            "keeps the neurons that were used last, as many as fit in one pool that all layers share. It "
            "multiplies only the predicted neurons, and moves no row."
        ),
        "lfu": "keeps the neurons that were used most often, in one pool that all layers share.",
        "s3-fifo": "keeps neurons by the three queues of S3-FIFO, in one pool that all layers share.",
        "pinned": "keeps the neurons that the warm-up tokens used most, and never changes them.",
        "belady": (
            "knows the future, so it cannot be built. It is a bound: no cache of this size reads fewer "
            "neurons. It is never called the fastest."
        ),
    }
)
COLUMN_MEANS: Mapping[str, str] = MappingProxyType(
    {
        "window": (
            "is the number of tokens whose neurons are kept; auto is the largest number up to 5 whose "
            "neurons fit on average"
        ),
        "memory": "is the memory that may be used, as a share of the model's bytes or in bytes",
        "device": "names the device that is simulated",
        "order": "says in which order neurons lie on flash",
        "gap": "is the largest number of bytes between two reads that is read over to join them",
        "rows": (
            "says how a neuron lies on flash: bundled, all its parts in one piece; unbundled, each part "
            "among the same parts of the other neurons"
        ),
        "useful": "counts the bytes that a token needs from flash: its neurons, or whole layers",
        "read": "counts the bytes that are read, in whole blocks",
        "reads": "counts the reads, after neighbours are joined into one",
        "in DRAM": "counts the bytes of weights that are in memory",
        "copied": "counts the bytes of rows that are written into the DRAM matrix or moved in it",
        "I/O": "is the time of the reads",
        "copying": "is the time to write rows into the DRAM matrix and to move rows in it",
        "compute": "is the time to multiply every weight that is used, once",
        "sum": "adds I/O, copying and compute, one after the other, as the paper's Table 3 does",
        "overlapped": (
            "is the time if reading and the rest ran beside each other all the while; no schedule is faster"
        ),
    }
)
REUSE = ("window", "lru", "lfu", "s3-fifo", "pinned")  # policies that live on neurons being used again
INDEPENDENT = (
    "In this synthetic trace each neuron has a rate of its own, and a token's neurons do not depend on the "
    "token before. That favours policies that count uses (lfu, pinned) over those that remember the last "
    "tokens (window, lru). Where lru beats the window, it does so for other reasons: it fills the memory "
    "whatever the window is, multiplies only the predicted neurons, and moves no row. Compare policies on a "
    "recorded trace (--trace) before you choose one."
)


def values_of(simulation: Simulation, field: str) -> list[Any]:
    """List the values of a field, each once.

    Args:
        simulation: the simulation.
        field: a field of a configuration.

    Returns:
        The values, of those configurations to whose policy the field makes a difference. A window is the
        one that was chosen, if it was left to be chosen.
    """
    values = (
        each.window
        if field == "window" and isinstance(each, Estimate)
        else getattr(each.configuration, field)
        for each in simulation.answers
        if field not in irrelevant(each.configuration.policy)
    )
    return list(dict.fromkeys(values))


def choice_cell(each: Estimate | Impossible, field: str) -> str:
    """Write the cell of a table that names a choice.

    Args:
        each: the answer to a configuration.
        field: a field of the configuration.

    Returns:
        The choice in words; empty where it makes no difference to the policy.
    """
    asked = getattr(each.configuration, field)
    if field in irrelevant(each.configuration.policy):
        return ""
    if field == "window" and asked is None and isinstance(each, Estimate):
        return f"{each.window} (auto)"
    return choice_text(field, asked)


def title(simulation: Simulation, constant: Collection[str], size: str) -> str:
    """Write the title of a table: what was simulated.

    Args:
        simulation: the simulation.
        constant: the fields of a configuration that have only one value; the title names these values.
        size: the model's size, in words.

    Returns:
        The title.
    """
    shape = simulation.shape
    phrases = [
        choice_phrase(field, value)
        for field in constant
        for value in values_of(simulation, field)
        if (field, value) != ("max_gap", 0)
    ]
    return ", ".join([f"Simulated cost of a token: {shape.name} in {shape.dtype} ({size})", *phrases])


def answer(simulation: Simulation, device: str, memory: float | Amount) -> str:
    """Say which policy that can be built is the fastest, and how sure that is.

    Args:
        simulation: the simulation.
        device: the name of one of its devices.
        memory: one of its memories.

    Returns:
        One or two sentences.
    """
    where = f"{choice_phrase('device', device)} with {choice_phrase('memory', memory)}"
    here, real = simulation.at(device, memory), simulation.real(device, memory)
    if not real:
        if any(isinstance(each, Estimate) for each in here):
            return f"There is no fastest policy {where}: belady is only a bound, and cannot be built."
        return f"None of the policies that were asked for is possible {where}."
    best = min(real, key=lambda each: each.total_ms)
    policy, choices = best.configuration.policy, ", ".join(_choices(best))
    if len({each.configuration.policy for each in real}) == 1 and any(
        isinstance(each, Impossible) for each in here
    ):
        start = f"Only {policy} is possible {where}{f' (at its fastest with {choices})' if choices else ''}"
    else:
        start = f"Fastest {where}: {policy}{f' ({choices})' if choices else ''}"
    sure = _sureness(simulation, best)
    return f"{start}. It takes {_ms(best.total_ms)} a token, of which I/O takes {_ms(best.io_ms)} ({sure})."


def policies_explained(simulation: Simulation) -> Iterator[str]:
    """Say in a sentence what each policy of a simulation does."""
    for policy in dict.fromkeys(each.configuration.policy for each in simulation.answers):
        yield f"{policy} {POLICY_MEANS[policy]}"


def columns_explained(simulation: Simulation, columns: Collection[str]) -> Iterator[str]:
    """Say in a sentence what each column means, and what ± means if it is shown.

    Args:
        simulation: the simulation.
        columns: the names of the columns that are shown, without their units.

    Returns:
        The sentences.
    """
    host = simulation.host
    rates = {"copying": host.copy_bandwidth, "compute": host.compute_bandwidth}
    for column, means in COLUMN_MEANS.items():
        if column in columns:
            rate = ""
            if column in rates:
                rate = f", at {rates[column] / GB:g} GB/s" if rates[column] else ", which has no limit here"
            yield f"The “{column}” column {means}{rate}."
    if any(judged.errors for judged in simulation.devices.values()):
        yield "± is the 90th percentile of the device's error: nine of ten such times are no further off."


def overfull(simulation: Simulation) -> Iterator[str]:
    """Say which windows are longer than the rows hold, so that two windows may give one result."""
    shares = {
        (each.configuration.memory, each.window): each.overfull
        for each in simulation.estimates
        if each.overfull > 0
    }
    for (memory, window), share in shares.items():
        yield (
            f"With {choice_phrase('memory', memory)}, {choice_phrase('window', window)} does not fit whole "
            f"for {share:.0%} of the tokens and layers: there the oldest tokens leave early, or neurons are "
            "read and not kept."
        )


def trace_explained(simulation: Simulation) -> Iterator[str]:
    """Say where the trace is from, what a synthetic trace leaves out, and what was assumed of the model."""
    trace, source, shape = simulation.trace, simulation.description.source, simulation.shape
    counted = f"{trace.tokens - trace.first_counted:,} tokens"
    yield f"All numbers are means over {counted}, counted after {trace.first_counted:,} warm-up tokens."
    yield f"The trace: {source}."
    policies, orders = (
        {getattr(each.configuration, field) for each in simulation.answers} for field in ("policy", "order")
    )
    if trace.first_counted == 0 and orders != {"natural"}:
        yield (
            "There are no warm-up tokens, so the order of the neurons was learnt from the counted tokens "
            "themselves, as no real system could do."
        )
    if source.startswith("synthetic") and not policies.isdisjoint(REUSE):
        yield INDEPENDENT
    if shape.note:
        yield f"{shape.name}: {shape.note}."


def _choices(estimate: Estimate) -> Iterator[str]:
    """The choices of a configuration beside its policy, memory and device, where they are not the usual."""
    configuration = estimate.configuration
    for field in ("window", "order", "max_gap", "bundled"):
        value = estimate.window if field == "window" else getattr(configuration, field)
        usual = (field, value) in (("order", "natural"), ("max_gap", 0))
        if not usual and field not in irrelevant(configuration.policy):
            yield choice_phrase(field, value)


def _sureness(simulation: Simulation, estimate: Estimate) -> str:
    """How far the time of the reads may be off, by the device's error."""
    errors = simulation.devices[estimate.configuration.device].errors
    if errors is None:
        return "how far this device's times may be off was not measured"
    low, high = (_ms(estimate.io_ms * (1 + sign * errors.p90)) for sign in (-1, 1))
    return (
        f"{low} to {high}: the device's error, or its disk's noise where that is larger, is "
        f"{errors.median:.1%} in the median and {errors.p90:.1%} at the 90th percentile"
    )


def _ms(amount: float) -> str:
    return f"{digits(amount)} ms"
