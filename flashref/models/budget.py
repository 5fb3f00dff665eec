"""The memory budget: how many rows each layer gets, and how long the window is.

Decision 8 says what counts; paper §3.3 and appendix C.
"""

import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import NamedTuple

from flashref.bundle import Layout
from flashref.models.sizes import two_sizes
from flashref.types import Array, DomainError

LARGEST_WINDOW = 5  # the default where memory allows it; the paper's k
UNITS = {"B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base, prefixes in (("B", 1000, "kMGT"), ("iB", 1024, "KMGT"))
    for power, prefix in enumerate(prefixes, start=1)
}


class Amount(NamedTuple):
    """Bytes as they were asked for: a number, and one of UNITS."""

    number: Fraction
    unit: str


def parse_memory(memory: float | str | Amount) -> float | Amount:
    """Check the memory that is asked for.

    Args:
        memory: a share of the model's bytes, more than 0 and at most 1, as a number or as text; or bytes with
            a unit, such as "6GB" (6 · 10^9) or "512MiB" (512 · 2^20).

    Returns:
        The share, or the Amount.

    Raises:
        DomainError: it is neither.
    """
    if isinstance(memory, Amount):
        return memory
    word = str(memory)
    units = {unit.lower(): unit for unit in UNITS}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", word.lower())
    if found:
        if found[2] not in units:
            raise DomainError(f"{word!r} has an unknown unit; use one of {', '.join(UNITS)}")
        return Amount(Fraction(found[1]), units[found[2]])
    try:
        share = float(word)
    except ValueError:
        raise DomainError(
            f"{word!r} is not a share such as 0.5, nor bytes with a unit, such as 6GB"
        ) from None
    if not 0 < share <= 1:
        raise DomainError(
            f"a share of the model must be more than 0 and at most 1, not {word}; bytes need a unit, "
            "such as 6GB"
        )
    return share


class Demand(NamedTuple):
    """What a model asks of memory, beside the rows of its FFN neurons; sizes in bytes.

    Biases, id tables and the KV cache are not counted (decision 8).

    Attributes:
        total: all tensors of the checkpoint.
        resident: embeddings, attention, norms, output head, a resident gate, and dense layers.
        predictors: both maps of every predictor.
        layers: the number of layers.
        neurons: the number of neurons of each layer.
        stride: the bytes of a bundle on flash, with its padding.
        dense: the layers that are resident whole (decision 15).
    """

    total: int
    resident: int
    predictors: int
    layers: int
    neurons: int
    stride: int
    dense: tuple[int, ...] = ()

    @property
    def bypass_rows(self) -> int:
        """The rows of the one bypass buffer: a sixteenth of a layer."""
        return -(-self.neurons // 16)

    @property
    def fixed(self) -> int:
        """The bytes that must always be in memory, with the checksums of bundles and the bypass buffer."""
        checksums = 4 * self.neurons * self.layers
        return self.resident + self.predictors + checksums + self.bypass_rows * self.stride


def demand_of(
    tensor_bytes: Mapping[str, int],
    flash_names: Collection[str],
    predictors: int,
    layers: int,
    layout: Layout,
    dense: tuple[int, ...] = (),
) -> Demand:
    """Sum up what a checkpoint asks of memory.

    Args:
        tensor_bytes: the bytes of each tensor by name.
        flash_names: the names of the tensors that are read from flash.
        predictors: the bytes of the predictors.
        layers: the number of layers.
        layout: the layout of the bundles of any layer.
        dense: the layers that are resident whole.
    """
    resident = sum(
        size for name, size in tensor_bytes.items() if name not in flash_names and not name.endswith(".bias")
    )
    total = sum(tensor_bytes.values())
    return Demand(total, resident, predictors, layers, layout.n, layout.stride, dense)


class Budget(NamedTuple):
    """A solved budget.

    Attributes:
        memory: the bytes that were asked for.
        window: k, in tokens.
        capacities: the rows of each layer.
        dram_bytes: the bytes that are used: what must always be in memory, and the rows.
    """

    memory: int
    window: int
    capacities: tuple[int, ...]
    dram_bytes: int


def solve_budget(
    demand: Demand, memory: float | Amount, window: int | None, mean: Array | None, largest: Array | None
) -> Budget:
    """Solve a memory budget for the window and the rows of each layer.

    What must always be in memory comes first. Layers share the rest in proportion to their largest |C_t| for
    the window; a layer gets whole rows, at most n, and a dense layer gets none.

    Args:
        demand: what the model asks of memory.
        memory: a share of the checkpoint's tensor bytes, or an Amount.
        window: k, in tokens; None: the largest up to 5 whose mean |C_t| fits into every layer's rows.
        mean, largest: |C_t| of each layer and window, (layers, windows), in neurons; None: not known, so that
            layers share alike and every window fits.

    Raises:
        DomainError: the memory is too small; the message names the smallest that works.

    Decision 8; paper §3.3 and appendix C.
    """
    available = _bytes_of(memory, demand.total)
    if available < demand.fixed:
        raise DomainError(_too_small(demand, memory, available))
    rows = (available - demand.fixed) // demand.stride
    if window is None:
        window = LARGEST_WINDOW
        while window > 1 and not _fits(demand, rows, window, mean, largest):
            window -= 1
    capacities = _share(demand, rows, window, largest)
    return Budget(available, window, capacities, demand.fixed + sum(capacities) * demand.stride)


def _bytes_of(memory: float | Amount, total: int) -> int:
    if isinstance(memory, Amount):
        return int(memory.number * UNITS[memory.unit])
    return int(total * Fraction(str(memory)))  # 0.29 of 100 bytes is 29, and 28 in floats


def _too_small(demand: Demand, memory: float | Amount, available: int) -> str:
    """Say that a memory is too small, and name the smallest that works, in the unit that was asked for."""
    given, fixed = two_sizes(available, demand.fixed)
    if isinstance(memory, Amount):
        size = UNITS[memory.unit]
        steps = min(size, 1000)  # thousandths of a unit, but whole bytes
        smallest = Fraction(-(-demand.fixed * steps // size), steps)
        advice = f"the smallest that works is {float(smallest):.{0 if size == 1 else 3}f}{memory.unit}"
        asked = f"{float(memory.number):.12g}{memory.unit}"
        return f"{asked} is {given}, but {fixed} must always be in memory; {advice}"
    smallest = Fraction(-(-demand.fixed * 1000 // demand.total), 1000)  # rounded up to thousandths
    advice = f"the smallest that works is {float(smallest):.3f}"
    if smallest > 1:
        advice = "no share is enough: use smaller predictors, or none with --predictor exact"
    return f"{memory:.12g} of the model is {given}, but {fixed} must always be in memory; {advice}"


def _share(demand: Demand, rows: int, window: int, largest: Array | None) -> tuple[int, ...]:
    sparse = [layer not in demand.dense for layer in range(demand.layers)]
    weights = [demand.neurons * here for here in sparse]
    if largest is not None:
        known = [weight * here for weight, here in zip(_at(largest, window).tolist(), sparse, strict=True)]
        weights = known if sum(known) > 0 else weights
    whole = max(sum(weights), 1)
    return tuple(min(demand.neurons, int(rows * weight // whole)) for weight in weights)


def _fits(demand: Demand, rows: int, window: int, mean: Array | None, largest: Array | None) -> bool:
    if mean is None:
        return True
    held = _share(demand, rows, window, largest)
    needed = _at(mean, window).tolist()
    return all(needed[layer] <= held[layer] for layer in range(demand.layers) if layer not in demand.dense)


def _at(statistic: Array, window: int) -> Array:
    """Look up the figures of a window of k tokens; of the longest that was measured, if k is longer."""
    column: Array = statistic[:, min(window, statistic.shape[1]) - 1]
    return column
