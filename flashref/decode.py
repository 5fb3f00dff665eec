"""One token through one layer: predict, window, place, read, sum. Chapter: specs/80-decode.md.

Satisfies: DEC-1 to DEC-10; flashref.models satisfies DEC-11, about the logits of a whole model.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.ffn import add_neurons
from flashref.gather import gather_rows
from flashref.slots import Moves, Slots, apply_moves, empty_slots
from flashref.types import (
    FFN,
    IO,
    STORED_DTYPES,
    Array,
    DomainError,
    Ids,
    Reader,
    Vector,
    ascending_ids,
    widen,
)
from flashref.window import Delta, Window, empty_window, resident_neurons, window_update

Predict = Callable[[Vector], Ids]  # from what the up projection receives to the predicted ids
Place = Callable[[Slots, Delta], tuple[Slots, Moves]]  # swap_with_last or fill_holes (chapter 70)
Semantics = Callable[[Ids, Ids], Ids]  # from the predicted ids and those in DRAM to the ids that are summed


class ResidentFFN(NamedTuple):
    """The part of an FFN that is always in DRAM: all but the bundles (paper §3.3: "pointers and scalars").

    gate: (n, d), only where bundles have no gate row (decision 13: the gate predicts); biases as in FFN.
    """

    activation: str
    gate: Array | None = None
    up_bias: Array | None = None
    gate_bias: Array | None = None
    down_bias: Array | None = None
    tau: float = 0.0


class LayerState(NamedTuple):
    """One layer between two tokens (paper §3.3, Fig. 6).

    layout: its bundles on flash; checksums: CRC-32 of each padded bundle by neuron, (n,) uint32, or None;
    matrix: (capacity, fields, d) in the stored dtype; bypass_rows: neurons in the bypass buffer;
    max_gap: the largest gap of unneeded bytes that one read bridges.
    """

    layout: Layout
    resident: ResidentFFN
    checksums: Array | None
    window: Window
    slots: Slots
    matrix: Array
    bypass_rows: int
    max_gap: int


class Step(NamedTuple):
    """Everything that one token did in one layer: sets, cost, moves, and the nanoseconds of each batch."""

    predicted: Ids
    load: Ids
    evict: Ids
    bypass: Ids
    resident: Ids
    io: IO
    moves: Moves
    times: tuple[int, ...]


class Rows(NamedTuple):
    """The rows of some neurons in DRAM: ids (m,) in any order, bundles (m, fields, d)."""

    ids: Ids
    bundles: Array


def sum_resident(predicted: Ids, in_dram: Ids) -> Ids:
    """`resident` semantics: the FFN sums every neuron in DRAM, the paper's own (§3.3). Requirement: DEC-3."""
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
    """A layer before its first token: an empty window over an empty matrix.

    Args:
        layout: of the layer's bundles on flash.
        resident: the part of the FFN that is always in DRAM.
        k: tokens that the window remembers.
        capacity: slots of the DRAM matrix.
        bypass_rows: neurons whose rows fit the bypass buffer, ≥ 1; n if None.
        max_gap: the largest gap of unneeded bytes that one read bridges.
        checksums: (n,) uint32, the CRC-32 of each padded bundle by neuron; with None nothing is checked.

    Raises:
        DomainError: a number is too small.

    Requirement: DEC-1.
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
    """The ids that each batch of a token reads: load with a first buffer of the bypass, then its other ones.

    Args:
        delta: what the token changes, as `window_update` gives it.
        bypass_rows: neurons whose rows fit the bypass buffer, ≥ 1.

    Returns:
        Strictly ascending ids for each batch; if there is nothing to read, one batch without ids.

    Raises:
        DomainError: the buffer fits no neuron.

    Decisions 8 and 18: the bypass passes through a buffer, and the reads of a token are one batch as long as
    that buffer suffices. Requirement: DEC-10.
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
    """One token through one layer: its output, the layer after it, and everything that happened.

    Args:
        state: the layer before the token; it is not changed, not even if reading fails.
        x: (d,) float32, the vector that the up projection receives.
        predict: gives the predicted ids for x, such as `predict_active` with a predictor.
        place: the slots of new neurons: `swap_with_last` or `fill_holes`.
        read: a reader of the image.
        semantics: which neurons are summed: `sum_resident` or `sum_predicted`.

    Returns:
        y (d,) float32, the state after the token, and the Step.

    Raises:
        IdsError: `predict` gave ids that are not strictly ascending, or not all in 0 … n − 1.
        ImageError, ReadError: a bundle is damaged, or cannot be read.

    Paper §3.1 to §3.3. Decisions 2, 3, 8 and 18: a token evicts before it loads, sums what the semantics
    choose, bypasses what does not fit, and reads in batches. Requirements: DEC-2 to DEC-10.
    """
    # predict
    predicted = ascending_ids(predict(x), state.layout.n)

    # window
    window, delta = window_update(state.window, predicted)
    resident = resident_neurons(window)

    # place
    slots, moves = place(state.slots, delta)

    # read: load, and as much of the bypass as its buffer holds; the rest is read between parts of the sum
    costs: list[IO] = []

    def read_batch(batch: Ids) -> Rows:
        gathered = gather_rows(read, state.layout, batch, state.max_gap, state.checksums)
        costs.append(gathered.io)
        return Rows(batch, gathered.rows)

    batches = read_batches(delta, state.bypass_rows)
    first = read_batch(batches[0])
    is_kept = np.isin(first.ids, delta.load, assume_unique=True)
    matrix = apply_moves(state.matrix, moves, first.bundles[is_kept])

    # sum
    chosen = semantics(predicted, np.union1d(resident, delta.bypass))
    in_matrix = Rows(slots.ids[: slots.used], matrix[: slots.used])
    passing = Rows(first.ids[~is_kept], first.bundles[~is_kept])
    buffers = chain([passing], map(read_batch, batches[1:]))
    y = _sum_batch_by_batch(state, x, chosen, in_matrix, buffers)

    after = state._replace(window=window, slots=slots, matrix=matrix)
    io = IO(*(sum(column) for column in zip(*costs, strict=True)))
    times = tuple(cost.nanoseconds for cost in costs if cost.requests)
    return y, after, Step(predicted, *delta, resident, io, moves, times)


def _sum_batch_by_batch(
    state: LayerState, x: Vector, chosen: Ids, in_matrix: Rows, buffers: Iterable[Rows]
) -> Vector:
    """The FFN over the chosen ids, ascending, although the bypass comes one buffer after the other.

    The bypass ascends from buffer to buffer. When a buffer is there, every chosen neuron up to the buffer's
    last id is in the matrix or in the buffer, or it has been summed already. So the sum goes on to that id
    before the next buffer takes its place. A sum in parts has the bits of the sum in one (FFN-12).
    """
    y, start = np.zeros(state.layout.d, np.float32), 0
    for buffer in buffers:
        if len(buffer.ids):
            stop = int(np.searchsorted(chosen, buffer.ids[-1], side="right"))
            y, start = _add_rows(y, state, x, chosen[start:stop], in_matrix, buffer), stop
    y = _add_rows(y, state, x, chosen[start:], in_matrix)
    return y if state.resident.down_bias is None else y + widen(state.resident.down_bias)


def _add_rows(y: Vector, state: LayerState, x: Vector, chosen: Ids, *in_dram: Rows) -> Vector:
    """y plus what the chosen neurons contribute, whose rows are somewhere in `in_dram`."""
    ids, bundles = (np.concatenate(parts) for parts in zip(*in_dram, strict=True))
    by_id = np.argsort(ids)
    rows = bundles[by_id[np.searchsorted(ids, chosen, sorter=by_id)]]
    return add_neurons(y, x, _ffn_of(state, chosen, rows))


def _ffn_of(state: LayerState, ids: Ids, rows: Array) -> FFN:
    """The FFN of these neurons, made of their rows and of the part that is always in DRAM."""
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
