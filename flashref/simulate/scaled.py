"""A small model's text replayed at OPT 6.7B's shape: what the same sparsity costs where bundles are large."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from flashref.decode import Place
from flashref.models.budget import solve_budget
from flashref.models.text import Record
from flashref.simulate.methods import Method, simulated_cost
from flashref.simulate.pieces import Replay, add_totals, methods_of, replay_tokens
from flashref.simulate.shapes.presets import preset_shape
from flashref.simulate.shapes.shape import shape_demand, shape_flash
from flashref.storage.device import Device
from flashref.types import Array, Ids

SHAPE = preset_shape("opt-6.7b", "F16")
LAYERS, NEURONS = SHAPE.layers, SHAPE.neurons
FFN_BYTES = LAYERS * SHAPE.ffn_bytes
MEMORY = 0.5


def scale_to_opt_6_7b(
    record: Record,
    neurons: int,
    window: int | None,
    statistics: tuple[Array | None, Array | None],
    place: Place,
    device: Device,
) -> tuple[Method, ...]:
    """Replay a text at OPT 6.7B's shape with the five methods of Table 2.

    Each large layer repeats what was predicted in a small layer: neuron i stands for ids i + neurons·j, and
    the small layers are spread evenly over the large ones. Large layers that are alike are replayed once, a
    few tokens at a time, so that a text of any length takes little memory.

    Args:
        record: what was predicted for each token and layer.
        neurons: how many neurons each layer of the small model has.
        window: k in tokens; None for the largest up to 5 whose neurons fit on average.
        statistics: the mean and the largest |C_t| of the small model's layers and windows, or None.
        place: where new rows go in memory.
        device: the simulated device.

    Returns:
        A row for each method, all simulated, with half of the large model in memory.
    """
    traced = len(record.predicted[0])
    stands_for = np.arange(LAYERS) * traced // LAYERS  # which traced layer each large layer is
    demand, flash = shape_demand(SHAPE, device.block), shape_flash(SHAPE, device.block)
    mean, largest = (None if known is None else known[stands_for] for known in statistics)
    # Only the proportions of the largest |C_t| matter, so they stay the whole numbers of the traced model.
    mean = None if mean is None else mean * (NEURONS / neurons)
    budget = solve_budget(demand, MEMORY, window, mean, largest)
    costs = [simulated_cost(device)]

    def blown_up(layer: int) -> Iterator[list[Ids]]:
        copies = np.arange(0, NEURONS, neurons)
        for layers in record.predicted:
            large = (copies[:, None] + layers[layer]).reshape(-1)
            yield [large[large < NEURONS]]

    alike = Counter(zip(stands_for.tolist(), budget.capacities, strict=True))
    weighted = []
    for (layer, capacity), times in alike.items():
        one = flash._replace(bundled=flash.bundled[:1], unbundled=flash.unbundled[:1])
        replay = Replay(one, demand, budget._replace(capacities=(capacity,)), place, costs)
        weighted.append((times, replay_tokens(replay, blown_up(layer), record.first_counted)))
    whole = Replay(flash, demand, budget, place, costs)
    return methods_of(whole, add_totals(weighted), len(record.predicted) - record.first_counted)
