"""Policies: what is read and kept for a model and a memory, and how much DRAM that takes.

Naive, hybrid, the predictor alone and the window are the methods of the paper's Table 2. The caches have the
same memory: what a budget leaves beside the parts that are always resident is one pool of units, which a
cache divides among the layers as it likes.
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
    """A trace of a model on flash, with all that policies ask of it.

    uses: the trace, linked for windows.
    flash: where the model lies on flash.
    demand: what the model needs in memory.
    count_moves: how many rows the placement moves.
    """

    uses: Uses
    flash: Flash
    demand: Demand
    count_moves: CountMoves


class Kept(NamedTuple):
    """What a policy reads and keeps.

    reads: the units that it reads, batch by batch.
    runs: runs of whole blocks that are read front to back for every token.
    useful_run_bytes: how many bytes of these runs are needed.
    summed: (tokens, layers) int64, units that are multiplied.
    dense_bytes: bytes of weights that are multiplied for every token besides.
    dram_bytes: bytes of weights in memory.
    window: k in tokens; None where a policy has no window.
    overfull: the share of the counted tokens and layers for which the rows do not hold the whole window.
    """

    reads: Reads
    runs: tuple[Extent, ...]
    useful_run_bytes: int
    summed: Counts
    dense_bytes: int
    dram_bytes: int
    window: int | None
    overfull: float = 0.0


# From a study, a memory (a share of the model's bytes, or an amount), and a window in tokens or None; a
# DomainError says why a memory is not possible.
Policy = Callable[[Study, float | Amount, int | None], Kept]


def whole_layers(free: int, layer_bytes: int, layers: int) -> int:
    """Count the layers that hybrid keeps whole: the first ones, as many as fit (decision 20).

    Args:
        free: bytes that are left beside the parts that are always resident.
        layer_bytes: bytes of a layer's FFN.
        layers: how many layers the model has.

    Returns:
        A number from 0 to `layers`.
    """
    return min(max(free // layer_bytes, 0), layers)


def naive(study: Study, budget: Budget | None = None) -> Kept:
    """Naive: the whole image is read for every token, and nothing stays (decision 20).

    Args:
        study: the trace of a model on flash.
        budget: makes no difference.

    Returns:
        What is read and kept.
    """
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
    """Hybrid: embeddings, attention and the first layers' FFNs stay, the rest is read (decision 20).

    Args:
        study: the trace of a model on flash.
        budget: the memory.

    Returns:
        What is read and kept.
    """
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
    """The predictor alone: every predicted neuron is read for its token, and none is kept.

    Args:
        study: the trace of a model on flash.
        budget: makes no difference, but was solved, so that what is always resident fits.

    Returns:
        What is read and kept.
    """
    trace = study.uses.trace
    return _of_units(study, unwindowed(trace), _active_units(trace), study.demand.fixed, None)


def sliding_window(study: Study, budget: Budget) -> Kept:
    """The paper's window: the neurons of the last k tokens stay, as many as have rows (decision 8).

    Args:
        study: the trace of a model on flash.
        budget: the window, and the rows of each layer.

    Returns:
        What is read and kept.
    """
    reads = windowed(
        study.uses, budget.window, budget.capacities, study.demand.bypass_rows, study.count_moves
    )
    read = np.zeros_like(reads.resident)
    np.add.at(read, (reads.token, reads.layer), np.diff(reads.starts))
    summed = reads.resident + read - reads.loaded  # all rows in memory, and what bypasses them
    whole = study.uses.unions[study.uses.trace.first_counted :, :, : budget.window][:, :, -1]
    overfull = float((whole > np.array(budget.capacities)).mean())
    kept = _of_units(study, reads, summed, budget.dram_bytes, budget.window)
    return kept._replace(overfull=overfull)


def cached(cache: CachePolicy, study: Study, budget: Budget) -> Kept:
    """A cache: one pool of units for all layers, in the memory that a window would have.

    Args:
        cache: the cache's policy.
        study: the trace of a model on flash.
        budget: the memory.

    Returns:
        What is read and kept.
    """
    trace, demand = study.uses.trace, study.demand
    reads = cache(trace, (demand.stride,) * trace.layers, budget.memory - demand.fixed)
    dram = demand.fixed + int(reads.resident.sum(axis=1).max()) * demand.stride
    return _of_units(study, reads, _active_units(trace), dram, None)


def _of_any_memory(study: Study, memory: float | Amount, window: int | None) -> Kept:
    return naive(study)


def _of_memory(
    policy: Callable[[Study, Budget], Kept], study: Study, memory: float | Amount, window: int | None
) -> Kept:
    """A policy with a budget that is solved for a memory.

    The rows of a layer are in proportion to its largest |C_t| in this trace, as the paper measures Req_i
    (§3.3).
    """
    unions = study.uses.unions
    return policy(study, solve_budget(study.demand, memory, window, unions.mean(axis=0), unions.max(axis=0)))


def _lfu(trace: ActivationTrace, sizes: tuple[int, ...], capacity: int) -> Reads:
    return lfu(AGEING)(trace, sizes, capacity)  # a function by name, for what lfu returns cannot be pickled


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
    """What a policy keeps that reads units only; resident weights and predictors are multiplied too."""
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
