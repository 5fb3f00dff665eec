"""What a policy does with a model and a memory: what it reads and keeps, and in how much DRAM.

Naive, hybrid, the predictor alone and the window are the methods of the paper's Table 2. Caches are what
others use instead, at equal memory: all of a budget that is not always resident is one pool of units, which a
cache divides as it likes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from flashref.models.budget import Amount, Budget, Demand, solve_budget
from flashref.simulate.caches.belady import belady
from flashref.simulate.caches.classic import lfu, lru, pinned
from flashref.simulate.caches.pool import CachePolicy
from flashref.simulate.caches.s3_fifo import s3_fifo
from flashref.simulate.flash import Flash, ffn_run
from flashref.simulate.trace import ActivationTrace, Counts, Reads
from flashref.simulate.window import CountMoves, Uses, unwindowed, windowed
from flashref.types import Extent

AGEING = 32  # tokens after which an LFU cache halves its counts


class Study(NamedTuple):
    """A trace of a model on flash, linked for its windows; count_moves: of the placement."""

    uses: Uses
    flash: Flash
    demand: Demand
    count_moves: CountMoves


class Kept(NamedTuple):
    """What a policy reads and keeps.

    runs: read front to back for every token, in whole blocks, useful_run_bytes of them needed; summed:
    (tokens, layers) units that are multiplied; dense_bytes: multiplied besides for every token; dram_bytes:
    of weights; window: k, where there is one; overfull: for what share of the counted tokens and layers the
    rows do not hold a whole window.
    """

    reads: Reads
    runs: tuple[Extent, ...]
    useful_run_bytes: int
    summed: Counts
    dense_bytes: int
    dram_bytes: int
    window: int | None
    overfull: float = 0.0


# Of a share of the model's bytes or an amount of bytes, and a window. Raises DomainError for what cannot be.
Policy = Callable[[Study, float | Amount, int | None], Kept]


def whole_layers(free: int, layer_bytes: int, layers: int) -> int:
    """How many layers hybrid keeps whole, from the first on: as many as fit the free bytes (decision 20)."""
    return min(max(free // layer_bytes, 0), layers)


def naive(study: Study, budget: Budget | None = None) -> Kept:
    """The whole image is read for every token, nothing stays, and any budget will do (decision 20)."""
    trace, flash = study.uses.trace, study.flash
    return Kept(
        _no_reads(trace),
        runs=(Extent(0, flash.image_bytes),),
        useful_run_bytes=flash.tensor_bytes,
        summed=_all_units(trace),
        dense_bytes=study.demand.resident,
        dram_bytes=0,
        window=None,
    )


def hybrid(study: Study, budget: Budget) -> Kept:
    """Embeddings, attention and the first layers' FFNs stay; the other layers are read (decision 20)."""
    trace, demand = study.uses.trace, study.demand
    layer_bytes = demand.neurons * demand.stride
    kept = whole_layers(budget.memory - demand.resident, layer_bytes, demand.layers)
    rest = study.flash.bundled[kept:]
    return Kept(
        _no_reads(trace),
        runs=tuple(ffn_run(layout) for layout in rest),
        useful_run_bytes=sum(layout.n * layout.bundle_bytes for layout in rest),
        summed=_all_units(trace),
        dense_bytes=demand.resident,
        dram_bytes=demand.resident + kept * layer_bytes,
        window=None,
    )


def predictor(study: Study, budget: Budget) -> Kept:
    """Every predicted neuron is read for its token and none is kept; what is always resident must fit."""
    trace = study.uses.trace
    return _of_units(study, unwindowed(trace), _active_units(trace), study.demand.fixed, None)


def sliding_window(study: Study, budget: Budget) -> Kept:
    """The paper's: the neurons of the last k tokens, as far as the rows of each layer reach (decision 8)."""
    reads = windowed(
        study.uses, budget.window, budget.capacities, study.demand.bypass_rows, study.count_moves
    )
    read = np.zeros_like(reads.resident)
    np.add.at(read, (reads.token, reads.layer), np.diff(reads.starts))
    summed = reads.resident + read - reads.loaded  # what is in memory, and what passes by
    whole = study.uses.unions[study.uses.trace.first_counted :, :, : budget.window][:, :, -1]
    overfull = float((whole > np.array(budget.capacities)).mean())
    kept = _of_units(study, reads, summed, budget.dram_bytes, budget.window)
    return kept._replace(overfull=overfull)


def cached(cache: CachePolicy, study: Study, budget: Budget) -> Kept:
    """A cache of units over the whole model, in the memory that a window would have."""
    trace, demand = study.uses.trace, study.demand
    reads = cache(trace, (demand.stride,) * trace.layers, budget.memory - demand.fixed)
    dram = demand.fixed + int(reads.resident.sum(axis=1).max()) * demand.stride
    return _of_units(study, reads, _active_units(trace), dram, None)


def _of_any_memory(study: Study, memory: float | Amount, window: int | None) -> Kept:
    return naive(study)


def _of_memory(
    policy: Callable[[Study, Budget], Kept], study: Study, memory: float | Amount, window: int | None
) -> Kept:
    """A policy, its memory solved for a budget.

    The rows are in proportion to each layer's largest |C_t| in this trace, as Req_i is measured (paper §3.3).
    """
    unions = study.uses.unions
    return policy(study, solve_budget(study.demand, memory, window, unions.mean(axis=0), unions.max(axis=0)))


def _lfu(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    return lfu(AGEING)(trace, sizes, capacity)  # by name: what lfu gives cannot be pickled


def _s3_fifo(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    return s3_fifo()(trace, sizes, capacity)


CACHES: Mapping[str, CachePolicy] = MappingProxyType(
    {"lru": lru, "lfu": _lfu, "s3-fifo": _s3_fifo, "pinned": pinned, "belady": belady}
)
POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "naive": _of_any_memory,
        "hybrid": partial(_of_memory, hybrid),
        "predictor": partial(_of_memory, predictor),
        "window": partial(_of_memory, sliding_window),
        **{name: partial(_of_memory, partial(cached, cache)) for name, cache in CACHES.items()},
    }
)


def _of_units(study: Study, reads: Reads, summed: Counts, dram_bytes: int, window: int | None) -> Kept:
    """Units are all that is read; what is always in memory is multiplied, and so are the predictors."""
    return Kept(reads, (), 0, summed, study.demand.resident + study.demand.predictors, dram_bytes, window)


def _no_reads(trace: ActivationTrace) -> Reads:
    nothing = np.zeros((trace.tokens, trace.layers), np.int64)
    token, layer = np.divmod(np.arange(nothing.size), trace.layers)
    starts = np.zeros(nothing.size + 1, np.int64)
    return Reads(np.zeros(0, np.int32), starts, token, layer, nothing, nothing, nothing)


def _active_units(trace: ActivationTrace) -> Counts:
    return np.diff(trace.starts).reshape(trace.tokens, trace.layers)


def _all_units(trace: ActivationTrace) -> Counts:
    return np.tile(np.array(trace.units, np.int64), (trace.tokens, 1))
