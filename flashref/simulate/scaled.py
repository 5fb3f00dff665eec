"""A small model's trace at OPT 6.7B's shape: what the same sparsity costs where bundles are large."""

import numpy as np

from flashref.bundle import bundle_layout
from flashref.decode import Place
from flashref.simulate.methods import Flash, Method, Trace, replay_methods, simulated_cost, unbundled_layouts
from flashref.transformer.budget import Demand, solve_budget
from flashref.types import Array, Device, Ids

# OPT 6.7B in fp16, and the predictors' ranks of the paper's section C.1.
LAYERS, NEURONS, WIDTH, VOCABULARY, POSITIONS, ITEMSIZE = 32, 16_384, 4096, 50_272, 2050, 2
FFN_BYTES = LAYERS * 2 * NEURONS * WIDTH * ITEMSIZE
RANKS = 28 * (128,) + 4 * (1024,)
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
    bundled = bundle_layout(NEURONS, WIDTH, "F16", ("up", "down"), device.block)
    flash = Flash(
        bundled=(bundled,) * layers,
        unbundled=(unbundled_layouts(bundled),) * layers,
        repeats=tuple(repeats.tolist()),
        image_bytes=-(-demand.total // device.block) * device.block,
        tensor_bytes=demand.total,
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
    d, n = WIDTH, NEURONS
    attention, ffn, norms = 4 * d * d, 2 * n * d, 2 * d
    biases = 4 * d + n + d + 2 * d  # of attention, both FFN maps, and both norms
    embeddings = (VOCABULARY + POSITIONS) * d
    resident = embeddings + LAYERS * (attention + norms) + d
    total = resident + LAYERS * (ffn + biases) + d
    predictors = sum(rank * (d + n) for rank in RANKS)
    stride = bundle_layout(1, d, "F16", ("up", "down"), block).stride
    return Demand(ITEMSIZE * total, ITEMSIZE * resident, ITEMSIZE * predictors, LAYERS, n, stride)


def _blown_up(ids: Ids, neurons: int) -> Ids:
    copies = np.arange(0, NEURONS, neurons)
    large = (copies[:, None] + ids[None, :]).reshape(-1)
    return large[large < NEURONS].astype(np.int64)
