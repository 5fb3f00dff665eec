"""A small model's trace at OPT 6.7B's shape: what the same sparsity costs where bundles are large."""

import numpy as np

from flashref.models.budget import solve_budget
from flashref.simulate.methods import Method, replay_methods, simulated_cost
from flashref.simulate.shapes.presets import preset_shape
from flashref.simulate.shapes.shape import shape_demand, shape_flash
from flashref.simulate.trace import ActivationTrace, trace_of
from flashref.simulate.window import CountMoves
from flashref.storage.device import Device
from flashref.types import Array, Ids

SHAPE = preset_shape("opt-6.7b", "F16")
LAYERS, NEURONS = SHAPE.layers, SHAPE.neurons
FFN_BYTES = LAYERS * SHAPE.ffn_bytes
MEMORY = 0.5
PAPER_IO_MS = (2196, 1090, 738, 164, 87)  # Table 2's I/O column, which nothing here is computed from


def scale_to_opt_6_7b(
    trace: ActivationTrace,
    window: int | None,
    mean_resident: Array | None,
    largest_resident: Array | None,
    count_moves: CountMoves,
    device: Device,
) -> tuple[Method, ...]:
    """The five methods on the trace blown up: a layer stands for many, neuron i for ids i + neurons·j.

    Capacities are solved for half of the large model. All simulated.
    """
    stands_for = np.arange(LAYERS) * trace.layers // LAYERS  # which traced layer each large layer is
    demand = shape_demand(SHAPE, device.block)
    # Of the largest |C_t| only the proportions count, so they stay whole numbers of the traced model.
    largest = None if largest_resident is None else largest_resident[stands_for]
    mean = None if mean_resident is None else mean_resident[stands_for] * (NEURONS / trace.units[0])
    budget = solve_budget(demand, MEMORY, window, mean, largest)
    large = []
    for token in range(trace.tokens):
        small = [trace.active(token, layer) for layer in range(trace.layers)]
        blown_up = [_blown_up(ids, trace.units[0]) for ids in small]
        large.append([blown_up[layer] for layer in stands_for])
    return replay_methods(
        trace_of(large, (NEURONS,) * LAYERS, trace.first_counted),
        shape_flash(SHAPE, device.block),
        demand,
        budget,
        count_moves,
        [simulated_cost(device)],
    )


def _blown_up(ids: Ids, neurons: int) -> Ids:
    copies = np.arange(0, NEURONS, neurons)
    large = (copies[:, None] + ids[None, :]).reshape(-1)
    return large[large < NEURONS].astype(np.int64)
