"""The five methods in pieces: to the bit what one piece of the whole trace gives, in memory of one piece."""

import tracemalloc

import numpy as np
import pytest
from method_tables import PLACEMENTS, check_table, made_flash, random_trace, replayed

from flashref.models.budget import Budget, Demand
from flashref.models.text import Record
from flashref.simulate import pieces
from flashref.simulate.methods import Cost, simulated_cost
from flashref.simulate.pieces import Replay
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.slots import swap_with_last
from flashref.storage.device import PRESETS


@pytest.mark.parametrize("piece", [1, 50, 1 << 16])
@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize(
    ("n", "d", "block", "capacities", "window"),
    [(40, 8, 64, (40, 40), 5), (40, 8, 64, (12, 7), 4), (70, 5, 16, (5, 0), 3), (20, 8, 64, (20, 20), 99)],
)
def test_pieces_of_any_size_give_the_figures_of_the_whole_trace(
    monkeypatch, piece, place, n, d, block, capacities, window
):
    device = PRESETS["nvme_gen4"]._replace(block=block)
    other = simulated_cost(PRESETS["ufs40"]._replace(block=block))  # stands for a disk
    for first_counted, order in ((0, None), (6, np.random.default_rng(n).permutation(n))):
        trace = random_trace(n + first_counted, 2, n, 14, first_counted)
        flash = made_flash(n, d, block, 2, order)
        demand = Demand(12_345, 900, 100, 2, n, flash.bundled[0].stride)
        budget = Budget(900 + n * demand.stride, window, capacities, 4321)
        for costs in ([simulated_cost(device)], [simulated_cost(device), Cost(*other)]):
            replay = Replay(flash, demand, budget, place, costs)
            with monkeypatch.context() as patch:
                patch.setattr(pieces, "PIECE", piece)
                found = replayed(replay, trace)
            assert found == replayed(replay, trace)
            check_table(found, trace, flash, demand, budget, place, device)


def test_a_text_of_any_length_takes_the_same_memory_at_the_large_shape(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1 << 14)
    # Half of 1024 neurons at random: half of each layer of the large model, far more than its rows hold.
    rng, peaks = np.random.default_rng(0), []
    largest = np.full((1, 5), 700)
    for tokens in (4, 16):
        predicted = [[np.flatnonzero(rng.random(1024) < 0.5)] for _ in range(tokens)]
        tracemalloc.start()
        scale_to_opt_6_7b(
            Record(predicted, 0),
            1024,
            None,
            (largest / 2, largest),
            swap_with_last,
            PRESETS["paper_m1max_fig2b"],
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    short, long = peaks
    assert long < 1.05 * short and long < 40 << 20, peaks
