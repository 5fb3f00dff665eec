"""One token through one layer: predict → window → slots → gather → ffn. Chapter: specs/80-decode.md.

Satisfies: DEC-1 to DEC-11.
"""

from collections.abc import Callable

import numpy as np

from flashref.ffn import add_neurons
from flashref.gather import gather_rows
from flashref.slots import apply_moves, empty_slots
from flashref.types import (
    FFN,
    IO,
    STORED_DTYPES,
    Array,
    Delta,
    DomainError,
    Ids,
    LayerState,
    Layout,
    Moves,
    Reader,
    ResidentFFN,
    Slots,
    Step,
    Vector,
    ascending_ids,
    widen,
)
from flashref.window import empty_window, resident_neurons, window_update

Predict = Callable[[Vector], Ids]
Place = Callable[[Slots, Delta], tuple[Slots, Moves]]
Semantics = Callable[[Ids, Ids], Ids]


def sum_resident(predicted: Ids, in_dram: Ids) -> Ids:
    """`resident` semantics: the FFN sums every row in DRAM, the paper's own (§3.3). Requirement: DEC-3."""
    return in_dram


def sum_predicted(predicted: Ids, in_dram: Ids) -> Ids:
    """`predicted` semantics: the FFN sums the predicted neurons only. Requirement: DEC-3."""
    return predicted


def empty_layer(
    layout: Layout,
    resident: ResidentFFN,
    k: int,
    capacity: int,
    bypass_rows: int | None = None,
    max_gap: int = 0,
    checksums: Array | None = None,
) -> LayerState:
    """A layer before its first token: an empty window of k tokens over a matrix of capacity rows.

    bypass_rows: rows of the bypass buffer, n if None; max_gap: bytes. Raises DomainError. Requirement: DEC-1.
    """
    if bypass_rows is not None and bypass_rows < 1:
        raise DomainError(f"the bypass buffer needs at least one row, not {bypass_rows}")
    return LayerState(
        layout=layout,
        resident=resident,
        checksums=checksums,
        window=empty_window(layout.n, k, capacity),
        slots=empty_slots(capacity),
        matrix=np.zeros((capacity, len(layout.fields), layout.d), STORED_DTYPES[layout.dtype]),
        bypass_rows=layout.n if bypass_rows is None else bypass_rows,
        max_gap=max_gap,
    )


def read_batches(delta: Delta, bypass_rows: int) -> tuple[Ids, ...]:
    """The ids of each batch of a token: what is kept and a first buffer of the bypass, then more buffers.

    bypass_rows: rows of the bypass buffer, ≥ 1, else DomainError. At least one batch, empty if there is
    nothing to read. Decisions 8, 18. Requirement: DEC-10.
    """
    if bypass_rows < 1:
        raise DomainError(f"the bypass buffer needs at least one row, not {bypass_rows}")
    first, *further = [
        delta.bypass[i : i + bypass_rows] for i in range(0, max(len(delta.bypass), 1), bypass_rows)
    ]
    return (np.union1d(delta.load, first), *further)


def decode_layer(
    state: LayerState, x: Vector, predict: Predict, place: Place, read: Reader, semantics: Semantics
) -> tuple[Vector, LayerState, Step]:
    """The layer's output for one token, the layer after it, and everything that happened.

    x: (d,) float32, the vector that the up projection receives; y: (d,) float32. The state passed is not
    changed, also if reading fails. Paper §3.1 to §3.3; decisions 2, 3, 8, 18. Requirements: DEC-1 to DEC-9.
    """
    predicted = ascending_ids(predict(x), state.layout.n)
    window, delta = window_update(state.window, predicted)
    slots, moves = place(state.slots, delta)
    chosen = semantics(predicted, np.union1d(resident_neurons(window), delta.bypass))

    y, start, costs = np.zeros(state.layout.d, np.float32), 0, []
    batches = read_batches(delta, state.bypass_rows)
    for number, batch in enumerate(batches):
        gathered = gather_rows(read, state.layout, batch, state.max_gap, state.checksums)
        costs.append(gathered.io)
        passes_by = np.isin(batch, delta.bypass, assume_unique=True)
        if number == 0:
            matrix = apply_moves(state.matrix, moves, gathered.rows[~passes_by])
        # The bypass ascends over the batches: what a batch completes is summed before its rows are dropped.
        row_ids = np.concatenate([slots.ids[: slots.used], batch[passes_by]])
        rows = np.concatenate([matrix[: slots.used], gathered.rows[passes_by]])
        stop = state.layout.n if number == len(batches) - 1 else int(row_ids[-1]) + 1
        now = chosen[(chosen >= start) & (chosen < stop)]
        y, start = add_neurons(y, x, _ffn_of(state, now, _find_rows(now, row_ids, rows))), stop
    if state.resident.down_bias is not None:
        y = y + widen(state.resident.down_bias)

    after = state._replace(window=window, slots=slots, matrix=matrix)
    io = IO(*(sum(column) for column in zip(*costs, strict=True)))
    times = tuple(cost.nanoseconds for cost in costs if cost.requests)
    return y, after, Step(predicted, *delta, resident_neurons(window), io, moves, times)


def _find_rows(ids: Ids, row_ids: Ids, rows: Array) -> Array:
    """The rows of these neurons in their order; rows[j] belongs to neuron row_ids[j]."""
    by_id = np.argsort(row_ids)
    return rows[by_id[np.searchsorted(row_ids, ids, sorter=by_id)]]


def _ffn_of(state: LayerState, ids: Ids, rows: Array) -> FFN:
    """The FFN of these neurons, from their rows in DRAM and what is always resident."""
    of = {field: rows[:, j] for j, field in enumerate(state.layout.fields)}
    resident = state.resident

    def scalars(bias: Array | None) -> Array | None:
        return None if bias is None else bias[ids]

    return FFN(
        resident.activation,
        of["up"],
        of["down"],
        of.get("gate", scalars(resident.gate)),
        scalars(resident.up_bias),
        scalars(resident.gate_bias),
        tau=resident.tau,
    )
