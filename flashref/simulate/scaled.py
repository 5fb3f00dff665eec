"""A small model's trace at OPT 6.7B's shape: what the same sparsity costs where bundles are large."""

import numpy as np

from flashref.decode import Place
from flashref.simulate.methods import Method, Trace, replay_methods, simulated_cost
from flashref.simulate.presets import preset_shape
from flashref.simulate.shapes import shape_demand, shape_flash
from flashref.transformer.budget import Demand, solve_budget
from flashref.types import Array, Device, Ids

SHAPE = preset_shape("opt-6.7b", "F16")
LAYERS, NEURONS = SHAPE.layers, SHAPE.neurons
FFN_BYTES = LAYERS * SHAPE.ffn_bytes
MEMORY = 0.5
PAPER_IO_MS = (2196, 1090, 738, 164, 87)  # Table 2's I/O column, which nothing here is computed from


def scale_to_opt_6_7b(
    trace: Trace,
    neurons: int,
    window: int | None,
    mean_resident: Array | None,
    largest_resident: Array | None,
    place: Place,
    device: Device,
) -> tuple[Method, ...]:
    """The five methods on the trace blown up: a layer stands for many, neuron i for ids i + neurons·j.

    neurons: of a layer of the traced model. Capacities are solved for half of the large model. All simulated.
    """
    layers = len(trace.predicted[0])
    stands_for = np.arange(LAYERS) * layers // LAYERS  # which traced layer each large layer is
    repeats = np.bincount(stands_for, minlength=layers)
    demand = _demand(device.block)
    # Of the largest |C_t| only the proportions count, so they stay whole numbers of the traced model.
    largest = None if largest_resident is None else largest_resident[stands_for]
    mean = None if mean_resident is None else mean_resident[stands_for] * (NEURONS / neurons)
    budget = solve_budget(demand, MEMORY, window, mean, largest)
    first_of = [int(np.searchsorted(stands_for, layer)) for layer in range(layers)]
    capacities = tuple(budget.capacities[min(at, LAYERS - 1)] for at in first_of)
    large_flash = shape_flash(SHAPE, device.block)
    flash = large_flash._replace(
        bundled=large_flash.bundled[:1] * layers,
        unbundled=large_flash.unbundled[:1] * layers,
        repeats=tuple(repeats.tolist()),
    )
    large = tuple(tuple(_blown_up(ids, neurons) for ids in one_pass) for one_pass in trace.predicted)
    return replay_methods(
        Trace(large, trace.first_counted),
        flash,
        demand,
        budget._replace(capacities=capacities),
        place,
        [simulated_cost(device)],
    )


def _demand(block: int) -> Demand:
    """What OPT 6.7B asks of memory; biases are in the checkpoint, and not counted as resident."""
    return shape_demand(SHAPE, block)


def _blown_up(ids: Ids, neurons: int) -> Ids:
    copies = np.arange(0, NEURONS, neurons)
    large = (copies[:, None] + ids[None, :]).reshape(-1)
    return large[large < NEURONS].astype(np.int64)
