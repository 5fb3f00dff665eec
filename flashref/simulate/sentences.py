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
        "predictor": "reads every predicted neuron for every token, and keeps none.",
        "window": (
            "keeps the neurons of the last tokens, in rows that every layer has of its own (the paper's "
            "method). It multiplies all rows in memory, and moves rows to fill holes."
        ),
        "lru": (
            "keeps the neurons that were used last, as many as fit in one pool for all layers. It multiplies "
            "only the predicted neurons, and moves no row."
        ),
        "lfu": "keeps the neurons that were used most often, in one pool for all layers.",
        "s3-fifo": "keeps neurons by S3-FIFO's three queues, in one pool for all layers.",
        "pinned": "keeps the neurons that the uncounted tokens used most, and never changes them.",
        "belady": "knows the future. It is a bound, and never the fastest.",
    }
)
COLUMN_MEANS: Mapping[str, str] = MappingProxyType(
    {
        "window": "says how many tokens the window remembers; auto: the most, up to 5, that fit",
        "budget": "is the memory, as a share of the model's bytes or in bytes",
        "device": "names the device that is simulated",
        "order": "says in which order neurons lie on flash",
        "gap": "says how many bytes between two reads are read over to join them",
        "rows": "says whether the parts of a neuron lie together on flash (bundled) or each with its like",
        "useful": "counts the bytes of the neurons that a token needs from flash, or of whole layers",
        "read": "counts the bytes that are read, in whole blocks",
        "reads": "counts the reads, after neighbours are joined",
        "in DRAM": "counts the bytes of weights in memory",
        "copied": "counts the bytes of the rows that are written into the DRAM matrix or moved in it",
        "I/O": "is the time of reading",
        "memory": "is the time of copying",
        "compute": "is the time of multiplying, once, every weight that is used",
        "sum": "is I/O, memory and compute one after the other, as in the paper's Table 3",
        "overlapped": "is the time if reading and the other work hide each other; no schedule is faster",
    }
)
INDEPENDENT = (
    "The neurons of a drawn token do not depend on the token before, given how often each neuron is active. "
    "That favours policies that count uses (lfu, pinned) over those that remember the last tokens (window, "
    "lru). Where lru beats the window it is for other reasons: it fills the memory whatever k is, multiplies "
    "only what is predicted, and moves no row. Compare policies on a recorded trace before you choose one."
)


def values_of(simulation: Simulation, field: str) -> list[Any]:
    """The values of a field, of the configurations to which it makes a difference."""
    values = (
        each.window
        if field == "window" and isinstance(each, Estimate)
        else getattr(each.configuration, field)
        for each in simulation.answers
        if field not in irrelevant(each.configuration.policy)
    )
    return list(dict.fromkeys(values))


def choice_cell(each: Estimate | Impossible, field: str) -> str:
    """A cell of a column with choices, empty where it makes no difference."""
    asked = getattr(each.configuration, field)
    if field in irrelevant(each.configuration.policy):
        return ""
    if field == "window" and asked is None and isinstance(each, Estimate):
        return f"{each.window} (auto)"
    return choice_text(field, asked)


def answer(simulation: Simulation, device: str, memory: float | Amount) -> str:
    """The fastest way to use a memory with a device, of those that could be built, and how sure that is."""
    where = f"{choice_phrase('device', device)} with {choice_phrase('memory', memory)}"
    real = simulation.real(device, memory)
    if not real:
        return f"O{where[1:]}, nothing but a bound is possible."
    best = min(real, key=lambda each: each.total_ms)
    configuration = best.configuration
    chosen = [configuration.policy]
    for field in ("window", "order", "max_gap", "bundled"):
        value = best.window if field == "window" else getattr(configuration, field)
        usual = (field, value) in (("order", "natural"), ("max_gap", 0))
        if not usual and field not in irrelevant(configuration.policy):
            chosen.append(choice_phrase(field, value))
    errors = simulation.devices[device].errors
    sure = "how far this device may be off was not measured"
    if errors is not None:
        low, high = (_ms(best.io_ms * (1 + sign * errors.p90)) for sign in (-1, 1))
        sure = (
            f"{low} to {high} by the device's error, or its disk's noise if that is larger: median "
            f"{errors.median:.1%}, 90th percentile {errors.p90:.1%}"
        )
    impossible = any(
        isinstance(each, Impossible)
        and (each.configuration.device, each.configuration.memory) == (device, memory)
        for each in simulation.answers
    )
    alone = impossible and len({each.configuration.policy for each in real}) == 1
    start = f"Only {chosen[0]} is possible {where}" if alone else f"Fastest {where}: {', '.join(chosen)}"
    return f"{start}: {_ms(best.total_ms)} a token, of which I/O {_ms(best.io_ms)} ({sure})."


def policies_explained(simulation: Simulation) -> Iterator[str]:
    """A sentence on each policy that was asked for."""
    for policy in dict.fromkeys(each.configuration.policy for each in simulation.answers):
        yield f"{policy} {POLICY_MEANS[policy]}"


def columns_explained(simulation: Simulation, columns: Collection[str]) -> Iterator[str]:
    """A sentence on each of these columns of numbers."""
    host = simulation.host
    rates = {"memory": host.copy_bandwidth, "compute": host.compute_bandwidth}
    for column, means in COLUMN_MEANS.items():
        if column in columns:
            rate = rates.get(column)
            yield f"The column {column} {means}" + (f", at {rate / GB:g} GB/s." if rate else ".")
    if any(judged.errors for judged in simulation.devices.values()):
        yield "± is by how much nine of ten such times are off at most, as far as the device was measured."


def overfull(simulation: Simulation) -> Iterator[str]:
    """Where a longer window is asked for than the rows hold: so windows may give one figure."""
    shares = {
        (each.configuration.memory, each.window): each.overfull
        for each in simulation.estimates
        if each.overfull > 0
    }
    for (memory, window), share in shares.items():
        yield (
            f"With {choice_phrase('memory', memory)}, a window of {window} does not fit whole for "
            f"{share:.0%} of the tokens and layers: older tokens leave early, or neurons are not kept."
        )


def _ms(amount: float) -> str:
    return f"{digits(amount)} ms"
