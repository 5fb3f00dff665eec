"""The memory of the process while a model runs: measured, and compared with what is allowed.

The peak is held to the budget only without a proof, which needs all weights in memory.
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

# What a run may take beside its budget, its KV cache and its record of predicted neurons: biases, id tables,
# modules that are loaded on the way, and the workspace of one layer at a time, whose rows are copied when
# they are gathered, moved, widened and summed. Measured by tests/bench/run_memory.py, not derived. With half
# of the neurons active, the largest peaks of 14 shapes and budgets were 113 MB where the bundles of one layer
# have 17 MB, 493 where they have 90, 656 for 123, and 30 for 2: at most 33.5 MB and 5.1 times the layer.
ALLOWANCE = 32 << 20
ALLOWED_COPIES = 6  # of the bundles of one layer


class Memory(NamedTuple):
    """The memory of a run, in bytes: what it was given, what it took, and what is allowed.

    Attributes:
        budget: the memory that was asked for.
        counted: the part of the budget that is used (decision 8 says what counts).
        before: what the process had in memory before the model: Python and its packages.
        peak: the most that the process had in memory since then, above `before`.
        allowed: the sum of budget, kv_cache, trace and allowance.
        kv_cache: the KV cache of the longest text.
        trace: the largest record of predicted neurons.
        allowance: for biases, id tables and the work on one layer.
        held: whether the peak is within `allowed`; None with a proof, whose weights no budget covers.
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
    """Return the bytes of the keys and values of so many tokens, in float32."""
    return 2 * 4 * config.layers * config.key_heads * tokens * config.head_size


def measure_memory(
    budget: Budget, demand: Demand, before: int, beside: tuple[int, int], proof: bool
) -> Memory:
    """Measure the peak of the process's memory until now, and compare it with what is allowed.

    Args:
        budget: the solved budget.
        demand: what the model asks of memory.
        before: bytes that the process had in memory before the model.
        beside: bytes of the KV cache, and of the record of predicted neurons.
        proof: whether all weights are in memory, so that the peak is not held to the budget.
    """
    peak = max(0, peak_bytes() - before)
    allowance = ALLOWANCE + ALLOWED_COPIES * demand.neurons * demand.stride
    allowed = budget.memory + sum(beside) + allowance
    held = None if proof else peak <= allowed
    return Memory(budget.memory, budget.dram_bytes, before, peak, allowed, *beside, allowance, held)


def resident_bytes() -> int:
    """Return the bytes that the process has in memory now; where the system does not say, its peak."""
    return _status("VmRSS") or peak_bytes()


def reset_peak() -> None:
    """Let the peak begin anew; where the system cannot, the old peak stays, which may be too high."""
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text(RESET_PEAK)


def peak_bytes() -> int:
    """Return the most bytes that the process had in memory, since `reset_peak` or since its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int | None:
    """Return the bytes that programs may still take; None where the system does not say."""
    return _kibibytes(MEMORY, "MemAvailable")


def _status(key: str) -> int | None:
    return _kibibytes(STATUS, key)


def _kibibytes(path: Path, key: str) -> int | None:
    """Find the line `key:  123 kB` in a file of the system, and return it in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
