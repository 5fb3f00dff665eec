"""The memory of the process while a model runs: measured, and what it may be.

Memory is held to a budget where nothing but the model is in it: not with a proof, which needs every weight.
"""

import contextlib
import resource
import sys
from pathlib import Path
from typing import NamedTuple

from flashref.models.budget import Budget, Demand
from flashref.models.family import Config

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
MEMORY = Path("/proc/meminfo")
RESET_PEAK = "5"  # what clear_refs takes for it (proc(5))

# What a run may take beside its budget, its KV cache and its record of what was predicted: biases, id tables,
# modules that are loaded on the way, and the workspace of one layer at a time, whose rows are copied when
# they are gathered, moved, widened and summed. Measured by tests/bench/run_memory.py, not derived: with half
# of the neurons active, the most that was seen of 14 shapes and budgets, and one layer's bundles, in MB:
#     113 of layers of 17, 493 of 90, 656 of 123, 30 of 2: at most 33.5 and 5.1 times the layer.
ALLOWANCE = 32 << 20
ALLOWED_COPIES = 6  # of the bundles of one layer


class Memory(NamedTuple):
    """Bytes of memory that a run was given, took and may take.

    budget: what was asked for; counted: what of it is used (decision 8); before: what the process had before
    the model, Python and its packages; peak: the most that it has had since, above that; allowed: the budget,
    kv_cache (of the longest text), trace (the record of what was predicted) and allowance together; held:
    whether the peak is within it, None with a proof, whose weights in memory are nobody's budget.
    """

    budget: int
    counted: int
    before: int
    peak: int
    allowed: int
    kv_cache: int
    trace: int
    allowance: int
    held: bool | None


def kv_cache_bytes(config: Config, tokens: int) -> int:
    """Bytes of keys and values in float32 for so many tokens."""
    return 2 * 4 * config.layers * config.key_heads * tokens * config.head_size


def measure_memory(
    budget: Budget, demand: Demand, before: int, beside: tuple[int, int], proof: bool
) -> Memory:
    """The peak until now beside what it may be.

    Args:
        budget: as solved.
        demand: what the model asks of memory.
        before: bytes that the process had before the model.
        beside: bytes of the KV cache and of the record of what was predicted.
        proof: whether every weight is in memory.
    """
    peak = max(0, peak_bytes() - before)
    allowance = ALLOWANCE + ALLOWED_COPIES * demand.neurons * demand.stride
    allowed = budget.memory + sum(beside) + allowance
    held = None if proof else peak <= allowed
    return Memory(budget.memory, budget.dram_bytes, before, peak, allowed, *beside, allowance, held)


def resident_bytes() -> int:
    """What the process has in memory now; where the system does not say, its peak."""
    return _status("VmRSS") or peak_bytes()


def reset_peak() -> None:
    """Forget the peak until now, where the system can; elsewhere it stays, rather too high than too low."""
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text(RESET_PEAK)


def peak_bytes() -> int:
    """The most that the process had in memory, since `reset_peak` or since its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int | None:
    """What programs may still take, in bytes; None where the system does not say."""
    return _kibibytes(MEMORY, "MemAvailable")


def _status(key: str) -> int | None:
    return _kibibytes(STATUS, key)


def _kibibytes(path: Path, key: str) -> int | None:
    """A line `key:  123 kB` of a file of the system, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
