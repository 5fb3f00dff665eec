"""The five methods of Table 2 replayed token by token, in the memory of a few tokens."""

from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import NamedTuple

import numpy as np

from flashref.decode import Place, read_batches
from flashref.models.budget import Budget, Demand
from flashref.simulate.flash import Flash
from flashref.simulate.methods import METHODS, Cost, Method
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.policies import Kept, Study, predictor, sliding_window
from flashref.simulate.trace import Reads, trace_of
from flashref.simulate.window import uses_of
from flashref.slots import empty_slots
from flashref.types import IO, Array
from flashref.window import empty_window, window_update

PIECE = 1 << 16  # how many ids have their reads costed together

Batches = list[tuple[int, Array]]  # a layer, and what is read for it


class Replay(NamedTuple):
    """What a replay needs beside the text.

    flash: where the model lies on flash.
    demand: what the model needs in memory.
    budget: the memory, the window, and the rows of each layer.
    place: where new rows go in memory.
    costs: the simulated cost, and the measured one if there is a disk; all counters are those of the first.
    """

    flash: Flash
    demand: Demand
    budget: Budget
    place: Place
    costs: Sequence[Cost]


class Totals(NamedTuple):
    """What the counted tokens cost.

    ios: for each method that reads what is predicted, an IO for each cost.
    moved_rows: how many rows were moved in the DRAM matrices.
    """

    ios: Mapping[str, tuple[IO, ...]]
    moved_rows: int


def replay_tokens(replay: Replay, tokens: Iterable[Sequence[Array]], first_counted: int) -> Totals:
    """Replay what was predicted, with the reference's own window and placement.

    Args:
        replay: the model, its memory and the costs.
        tokens: [token][layer] → ascending ids; one token is asked for at a time.
        first_counted: the first token whose costs count; those before it fill the window.

    Returns:
        The sums over the counted tokens.
    """
    k, capacities, bypass_rows = replay.budget.window, replay.budget.capacities, replay.demand.bypass_rows
    windows = [
        empty_window(layout.n, k, rows) for layout, rows in zip(replay.flash.bundled, capacities, strict=True)
    ]
    slots = [empty_slots(rows) for rows in capacities]
    pieces: list[Totals] = []
    moved_rows = 0
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
            pieces.append(_costs(replay, predicted, kept))
            predicted, kept = [], []
    if predicted:
        pieces.append(_costs(replay, predicted, kept))
    return add_totals([(1, piece) for piece in pieces])._replace(moved_rows=moved_rows)


def add_totals(weighted: Sequence[tuple[int, Totals]]) -> Totals:
    """Add up totals, each a number of times.

    Args:
        weighted: at least one pair of a number and totals; all totals have the same costs.

    Returns:
        The sum.
    """
    numbers = [times for times, _ in weighted]
    ios = {
        name: tuple(
            _sum(of_cost, numbers) for of_cost in zip(*(each.ios[name] for _, each in weighted), strict=True)
        )
        for name in weighted[0][1].ios
    }
    return Totals(ios, sum(times * each.moved_rows for times, each in weighted))


def methods_of(replay: Replay, totals: Totals, passes: int) -> tuple[Method, ...]:
    """Make the rows of the table from the totals.

    Args:
        replay: the model, its memory and the costs.
        totals: what the counted tokens cost.
        passes: how many tokens were counted.

    Returns:
        A row for each of METHODS (decision 20 says what naive and hybrid read).
    """
    bundled = replay.flash.bundled
    # A text for which nothing is predicted shows what does not depend on the text: runs of whole layers, and
    # the memory.
    silent = trace_of([[np.zeros(0, np.int64)] * len(bundled)], [layout.n for layout in bundled])
    study = Study(uses_of(silent, replay.budget.window), replay.flash, replay.demand, moved_by_swap)
    rows = []
    for name, method in METHODS.items():
        kept = method.policy(study, replay.budget)
        ios = totals.ios[name] if name in totals.ios else _run_costs(replay, kept, passes)
        moved_rows = totals.moved_rows if method.policy is sliding_window else 0
        rows.append(
            Method(
                name,
                useful_bytes_per_token=ios[0].useful_bytes / passes,
                flash_bytes_per_token=ios[0].read_bytes / passes,
                reads_per_token=ios[0].requests / passes,
                dram_bytes=kept.dram_bytes,
                dram_moved_bytes_per_token=moved_rows * bundled[0].bundle_bytes / passes,
                simulated_io_ms_per_token=ios[0].nanoseconds / passes / 1e6,
                measured_io_ms_per_token=ios[1].nanoseconds / passes / 1e6 if len(ios) > 1 else None,
            )
        )
    return tuple(rows)


def _costs(replay: Replay, predicted: Batches, kept: Batches) -> Totals:
    """What a piece of the text costs with each method that reads what is predicted."""
    reads = {predictor: _reads(predicted), sliding_window: _reads(kept)}
    ios = {
        name: tuple(
            cost.scattered(method.layouts(replay.flash), reads[method.policy]) for cost in replay.costs
        )
        for name, method in METHODS.items()
        if method.policy in reads
    }
    return Totals(ios, 0)


def _run_costs(replay: Replay, kept: Kept, passes: int) -> tuple[IO, ...]:
    """What whole layers cost, read anew in each pass, for on a disk no two passes take the same time."""
    if not kept.runs:
        return (IO(0, 0, 0, 0),) * len(replay.costs)
    ones = [1] * passes
    return tuple(
        _sum([cost.sequential(kept.runs)._replace(useful_bytes=kept.useful_run_bytes) for _ in ones], ones)
        for cost in replay.costs
    )


def _sum(ios: Sequence[IO], numbers: Sequence[int]) -> IO:
    """The sum of IOs, each a number of times."""
    return IO(*(sum(map(mul, column, numbers)) for column in zip(*ios, strict=True)))


def _reads(batches: Batches) -> Reads:
    """Batches as a cost takes them; the fields by token stay empty, for a cost does not use them."""
    ids = np.concatenate([ids for _, ids in batches]).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum([len(ids) for _, ids in batches])])
    layer = np.array([layer for layer, _ in batches])
    nothing = np.zeros((0, 0), np.int64)
    return Reads(ids, starts, np.zeros(len(batches), np.int64), layer, nothing, nothing, nothing)
