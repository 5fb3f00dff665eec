"""The peak memory of a run: measured, and what it may be, the budget and what decision 8 leaves out of it."""

import contextlib
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashref.arithmetic import PIECE_BYTES
from flashref.bundle import Layout
from flashref.models.budget import Budget, Demand
from flashref.models.flash import GATE_BYTES
from flashref.models.model import HEAD_ROWS, Model
from flashref.storage.container import PIECE_BYTES as READ_BYTES
from flashref.storage.readers import HUGE_PAGE
from flashref.types import STORED_DTYPES, Array, Ids, Predictor

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
MEMORY = Path("/proc/meminfo")
RESET_PEAK = "5"  # what clear_refs takes for it (proc(5))

# Bytes of Python's objects for one row of a batch: its extents, its read, its buffer and the views of them.
ROW_OBJECTS = 1024
# Modules that are loaded on the way, stacks of the reader's threads, what malloc keeps. Judged, not derived:
# over 14 shapes and budgets 13 MB at most were seen beyond what is derived (tests/bench/run_memory.py).
INTERPRETER = 24 << 20


class Uncounted(NamedTuple):
    """Bytes that a run takes beside its budget (decision 8), each derived from the model and the budget.

    kv_cache: of the longest text; biases: as they are stored; id_tables: windows, slots, the record of what
    was predicted, checksums of an image without bundling; workspace: what computing and reading one layer
    takes at most, and the interpreter's own.
    """

    kv_cache: int
    biases: int
    id_tables: int
    workspace: int


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


def uncounted(
    model: Model,
    demand: Demand,
    budget: Budget,
    layout: Layout,
    bias_bytes: int,
    predicted: Sequence[Sequence[Ids]],
    predictors: Sequence[Predictor | None],
    tokens: int,
) -> Uncounted:
    """What a run takes beside its budget.

    layout: of any layer; bias_bytes: of all of the checkpoint's; tokens: passes of the longest text.
    """
    config = model.config
    record = sum(ids.nbytes for layers in predicted for ids in layers)
    # Of a layer: Window.last, Slots.ids and the next, and the kept set of each token in the window.
    tables = sum(demand.neurons + (2 + budget.window) * held for held in budget.capacities)
    return Uncounted(
        kv_cache=2 * 4 * config.layers * config.key_heads * tokens * config.head_size,
        biases=bias_bytes,
        id_tables=8 * tables + record + 4 * demand.layers * demand.neurons * len(layout.fields),
        workspace=_workspace(model, demand, budget, layout, predictors) + INTERPRETER,
    )


def _workspace(
    model: Model,
    demand: Demand,
    budget: Budget,
    layout: Layout,
    predictors: Sequence[Predictor | None],
) -> int:
    """The larger of what a layer needs and what the output head needs."""
    head, ends = model.ends.head.weight, model.ends
    widened_head = 2 * 4 * min(HEAD_ROWS, len(head)) * head.shape[1] if head.dtype != np.float32 else 0
    logits = 8 * 4 * len(head)
    block = max(_widened(block) for block in model.blocks)
    ends_bytes = _widened((ends.norm, ends.project_in, ends.project_out))
    layer: int = block + max(
        _gathered(budget, demand, layout, any(ffn.gate is not None for ffn in model.ffns)),
        _predicted(layout, predictors),
        _dense(layout) if demand.dense else 0,
    )
    # And what opening compares piece by piece: the image's, the checkpoint's, and where they differ.
    return max(layer, widened_head + logits + ends_bytes, 3 * READ_BYTES)


def _gathered(budget: Budget, demand: Demand, layout: Layout, resident_gate: bool) -> int:
    """Reading a batch and summing it: decode_layer holds these at once."""
    capacity = max(budget.capacities)
    rows = min(capacity + demand.bypass_rows, layout.n)
    buffers = -(-rows * max(layout.stride, layout.block) // HUGE_PAGE) * HUGE_PAGE
    matrix = capacity * layout.bundle_bytes  # the layer's next one, before the last is dropped
    copies = 4 * rows * layout.bundle_bytes  # gathered, these of the batch before, with the matrix, chosen
    copies += rows * layout.bundle_bytes // len(layout.fields) if resident_gate else 0
    values = 4 * rows * layout.d
    widened = (2 if layout.dtype == "BF16" else 1) * values if layout.dtype != "F32" else 0
    return buffers + matrix + copies + widened + _products(values, layout) + rows * ROW_OBJECTS


def _predicted(layout: Layout, predictors: Sequence[Predictor | None]) -> int:
    """Predicting a layer: the larger map widened, or a piece of a resident gate."""
    maps = [array for one in predictors if one is not None for array in (one.a, one.b)]
    largest = max((4 * array.size for array in maps), default=GATE_BYTES)
    return 2 * largest + _products(largest, layout) + 8 * 8 * layout.n


def _dense(layout: Layout) -> int:
    """A layer that is resident whole: one matrix widened."""
    values = 4 * layout.n * layout.d
    return 2 * values + _products(values, layout)


def _products(values: int, layout: Layout) -> int:
    """ascending_sum of so many bytes: a piece of products, while the piece before it is still there."""
    row = 4 * max(layout.n, layout.d)
    return 2 * min(values, max(PIECE_BYTES, row))


def _widened(tree: Any) -> int:
    """Bytes of stored weights as float32, all at once, and once more the largest, of BF16 on its way."""
    sizes = [4 * array.size for array in _arrays(tree) if array.dtype != np.float32]
    bits = [4 * array.size for array in _arrays(tree) if array.dtype == STORED_DTYPES["BF16"]]
    return sum(sizes) + max(bits, default=0)


def _arrays(tree: Any) -> Iterator[Array]:
    if isinstance(tree, tuple):
        for part in tree:
            yield from _arrays(part)
    elif isinstance(tree, np.ndarray):
        yield tree


def _status(key: str) -> int | None:
    return _kibibytes(STATUS, key)


def _kibibytes(path: Path, key: str) -> int | None:
    """A line `key:  123 kB` of a file of the system, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
