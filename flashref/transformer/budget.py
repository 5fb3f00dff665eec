"""A memory budget, solved for rows per layer and a window (decision 8, paper §3.3 and appendix C)."""

from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from flashref.types import Array, DomainError, Layout

LARGEST_WINDOW = 5  # the default, where memory allows; the paper's k


class Demand(NamedTuple):
    """What a model asks of memory, in bytes, but for the rows of its FFN neurons.

    total: the checkpoint's tensors; resident: embeddings, attention, norms, output head; predictors: both
    maps; layers, neurons, stride: of the bundles. Biases, id tables and the KV cache are not counted.
    """

    total: int
    resident: int
    predictors: int
    layers: int
    neurons: int
    stride: int

    @property
    def bypass_rows(self) -> int:
        """Rows of the one bypass buffer: a sixteenth of the largest layer."""
        return -(-self.neurons // 16)

    @property
    def fixed(self) -> int:
        """Bytes that every budget must hold: the above, a checksum a bundle, and the bypass buffer."""
        checksums = 4 * self.neurons * self.layers
        return self.resident + self.predictors + checksums + self.bypass_rows * self.stride


def demand_of(
    tensor_bytes: Mapping[str, int], ffn_names: Collection[str], predictors: int, layers: int, layout: Layout
) -> Demand:
    """The demand of a checkpoint: bytes of each tensor, which of them are FFN matrices, a layer's layout."""
    resident = sum(
        size for name, size in tensor_bytes.items() if name not in ffn_names and not name.endswith(".bias")
    )
    total = sum(tensor_bytes.values())
    return Demand(total, resident, predictors, layers, layout.n, layout.stride)


class Budget(NamedTuple):
    """A budget that was solved: its bytes, the window, the rows of each layer, and the bytes they take."""

    memory: int
    window: int
    capacities: tuple[int, ...]
    dram_bytes: int


def solve_budget(
    demand: Demand, fraction: float, window: int | None, mean: Array | None, largest: Array | None
) -> Budget:
    """Rows and window for a fraction of the checkpoint's tensor bytes.

    What the fixed part leaves is shared in proportion to each layer's largest |C_t| for the window, floored,
    at most n. window: k, or None for the largest up to 5 whose mean |C_t| fits every layer's rows. mean,
    largest: (layers, windows), or None where nothing is known. DomainError names the smallest fraction.
    """
    memory = int(demand.total * Fraction(str(fraction)))  # 0.29 of 100 bytes is 29, and 28 in floats
    if memory < demand.fixed:
        smallest = Fraction(-(-demand.fixed * 1000 // demand.total), 1000)
        advice = f"the smallest that works is {float(smallest):.3f}"
        if smallest > 1:
            advice = "no share is enough: use smaller predictors, or none with --predictor exact"
        raise DomainError(
            f"a memory of {fraction:g} of the model is {memory} bytes, but {demand.fixed} must always be "
            f"resident; {advice}"
        )
    rows = (memory - demand.fixed) // demand.stride
    if window is None:
        window = LARGEST_WINDOW
        while window > 1 and not _fits(demand, rows, window, mean, largest):
            window -= 1
    capacities = _share(demand, rows, window, largest)
    return Budget(memory, window, capacities, demand.fixed + sum(capacities) * demand.stride)


def _share(demand: Demand, rows: int, window: int, largest: Array | None) -> tuple[int, ...]:
    weights = [demand.neurons] * demand.layers
    if largest is not None and int(_at(largest, window).sum()) > 0:
        weights = _at(largest, window).tolist()
    return tuple(min(demand.neurons, int(rows * weight // sum(weights))) for weight in weights)


def _fits(demand: Demand, rows: int, window: int, mean: Array | None, largest: Array | None) -> bool:
    if mean is None:
        return True
    return bool((_at(mean, window) <= np.array(_share(demand, rows, window, largest))).all())


def _at(statistic: Array, window: int) -> Array:
    """A layer's figure for a window of k tokens; beyond what was measured, for the longest that was."""
    column: Array = statistic[:, min(window, statistic.shape[1]) - 1]
    return column
