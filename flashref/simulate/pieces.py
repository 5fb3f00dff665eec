"""The five methods of Table 2 replayed token by token, in memory for a few tokens of a text of any length.

`flashref.simulate.methods` replays a whole trace at once; the figures are the same to the bit.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flashref.decode import Place, read_batches
from flashref.models.budget import Budget, Demand
from flashref.simulate.flash import Flash
from flashref.simulate.methods import Cost, Method, replay_methods
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.trace import Reads, trace_of
from flashref.slots import empty_slots
from flashref.types import IO, Array
from flashref.window import empty_window, window_update

PIECE = 1 << 16  # ids whose reads are costed at a time
POLICIES = ("predictor", "windowing", "bundling")  # the methods that depend on what is predicted

Batches = list[tuple[int, Array]]  # a layer, and what is read for it


class Replay(NamedTuple):
    """What a replay is of: a model on flash, its memory, where new rows go, and how reads are paid.

    costs: the simulated one, and the measured one if there is a disk.
    """

    flash: Flash
    demand: Demand
    budget: Budget
    place: Place
    costs: Sequence[Cost]


class Totals(NamedTuple):
    """What the counted tokens cost: [method of POLICIES][cost], and the rows that were moved in memory."""

    ios: tuple[tuple[IO, ...], ...]
    moved_rows: int


def replay_tokens(replay: Replay, tokens: Iterable[Sequence[Array]], first_counted: int) -> Totals:
    """Replay what was predicted, with the reference's own window and placement.

    Args:
        replay: the model, its memory and the costs.
        tokens: [token][layer] → ascending ids; asked for one token at a time.
        first_counted: tokens before it warm the window, and their cost is not counted.
    """
    k, capacities, bypass_rows = replay.budget.window, replay.budget.capacities, replay.demand.bypass_rows
    windows = [
        empty_window(layout.n, k, rows) for layout, rows in zip(replay.flash.bundled, capacities, strict=True)
    ]
    slots = [empty_slots(rows) for rows in capacities]
    nothing = tuple(tuple(IO(0, 0, 0, 0) for _ in replay.costs) for _ in POLICIES)
    totals, moved_rows = Totals(nothing, 0), 0
    predicted: Batches = []
    kept: Batches = []
    for token, layers in enumerate(tokens):
        for layer, ids in enumerate(layers):
            windows[layer], delta = window_update(windows[layer], ids)
            slots[layer], moves = replay.place(slots[layer], delta)
            if token >= first_counted:
                predicted.append((layer, ids))
                kept += [(layer, batch) for batch in read_batches(delta, bypass_rows)]
                moved_rows += len(moves.source)
        if sum(len(ids) for _, ids in predicted) >= PIECE:
            totals = add_totals([(1, totals), (1, _costs(replay, predicted, kept))])
            predicted, kept = [], []
    if predicted:
        totals = add_totals([(1, totals), (1, _costs(replay, predicted, kept))])
    return totals._replace(moved_rows=moved_rows)


def add_totals(weighted: Sequence[tuple[int, Totals]]) -> Totals:
    """The sum of totals, each so many times."""

    def added(ios: Sequence[tuple[int, IO]]) -> IO:
        return IO(*(sum(times * io[field] for times, io in ios) for field in range(len(IO._fields))))

    methods, costs = range(len(POLICIES)), range(len(weighted[0][1].ios[0]))
    ios = tuple(
        tuple(added([(times, totals.ios[method][cost]) for times, totals in weighted]) for cost in costs)
        for method in methods
    )
    return Totals(ios, sum(times * totals.moved_rows for times, totals in weighted))


def methods_of(replay: Replay, totals: Totals, passes: int) -> tuple[Method, ...]:
    """The table's rows, from what the counted tokens cost: `passes` is how many they are."""
    layers = len(replay.flash.bundled)
    units = [layout.n for layout in replay.flash.bundled]
    # Of a text that predicts nothing: naive and hybrid, which read whole layers, and what is in memory.
    silent = trace_of([[np.zeros(0, np.int64)] * layers] * passes, units)
    rows = replay_methods(silent, replay.flash, replay.demand, replay.budget, moved_by_swap, replay.costs)
    moved = totals.moved_rows * replay.flash.bundled[0].bundle_bytes / passes
    found = dict(zip(POLICIES, totals.ios, strict=True))
    return tuple(
        row
        if row.name not in found
        else row._replace(
            useful_bytes_per_token=found[row.name][0].useful_bytes / passes,
            flash_bytes_per_token=found[row.name][0].read_bytes / passes,
            reads_per_token=found[row.name][0].requests / passes,
            dram_moved_bytes_per_token=0.0 if row.name == "predictor" else moved,
            simulated_io_ms_per_token=found[row.name][0].nanoseconds / passes / 1e6,
            measured_io_ms_per_token=found[row.name][1].nanoseconds / passes / 1e6
            if len(replay.costs) > 1
            else None,
        )
        for row in rows
    )


def _costs(replay: Replay, predicted: Batches, kept: Batches) -> Totals:
    """What a piece of the text costs under each method."""
    bundled = [(layout,) for layout in replay.flash.bundled]
    ways = (
        (replay.flash.unbundled, _reads(predicted)),
        (replay.flash.unbundled, _reads(kept)),
        (bundled, _reads(kept)),
    )
    return Totals(tuple(tuple(cost.scattered(*way) for cost in replay.costs) for way in ways), 0)


def _reads(batches: Batches) -> Reads:
    """Batches as a cost takes them; nobody looks at the fields by token."""
    ids = np.concatenate([ids for _, ids in batches]).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum([len(ids) for _, ids in batches])])
    layer = np.array([layer for layer, _ in batches])
    nothing = np.zeros((0, 0), np.int64)
    return Reads(ids, starts, np.zeros(len(batches), np.int64), layer, nothing, nothing, nothing)
