"""A text replayed at OPT 6.7B's shape: the table by hand, its capacities and its window."""

import math

import numpy as np
import pytest
from method_tables import MIB, PLACEMENTS, random_trace

from flashref.models.budget import Demand
from flashref.models.text import Record
from flashref.simulate import scaled
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.simulate.shapes.shape import shape_demand
from flashref.slots import swap_with_last
from flashref.storage.device import PRESETS, read_time


def opt_6_7b_parameters():
    """(all, resident without biases) of facebook/opt-6.7b, tensor by tensor."""
    d, n, vocabulary, positions, layers = 4096, 16_384, 50_272, 2048 + 2, 32
    everything = resident = 0
    tensors = [("tokens", vocabulary * d), ("positions", positions * d), ("norm", d), ("norm.bias", d)]
    for _ in range(layers):
        for which in ("q", "k", "v", "out"):
            tensors += [(which, d * d), (f"{which}.bias", d)]
        tensors += [("fc1.ffn", n * d), ("fc1.bias", n), ("fc2.ffn", d * n), ("fc2.bias", d)]
        tensors += [("attention norm", d), ("attention norm.bias", d), ("ffn norm", d), ("ffn norm.bias", d)]
    for name, size in tensors:
        everything += size
        resident += 0 if name.endswith((".bias", ".ffn")) else size
    return everything, resident


SIXTY_SEVEN = Demand(
    total=2 * opt_6_7b_parameters()[0],
    resident=2 * opt_6_7b_parameters()[1],
    predictors=2 * sum(rank * (4096 + 16_384) for rank in [128] * 28 + [1024] * 4),
    layers=32,
    neurons=16_384,
    stride=16_384,  # up and down row of 4096 in fp16: four blocks
)


def test_opt_6_7b_has_as_many_parameters_as_it_says():
    assert opt_6_7b_parameters()[0] == 6_658_473_984
    assert shape_demand(scaled.SHAPE, 4096) == SIXTY_SEVEN
    assert SIXTY_SEVEN.bypass_rows == 1024


def scale(predicted, neurons, window=None, mean=None, largest=None, place=swap_with_last, first=0):
    record = Record([[np.array(ids) for ids in layers] for layers in predicted], first)
    return scale_to_opt_6_7b(record, neurons, window, (mean, largest), place, PRESETS["paper_m1max"])


def test_a_scaled_case_worked_by_hand():
    # Two layers of 8192 neurons: each stands for 16 layers, each neuron for two, 8192 apart.
    one = (np.array([3]), np.array([0, 1, 5]))
    two = (np.array([3, 4]), np.array([], np.int64))
    methods = scale([one, two], 8192, window=1)
    image = math.ceil(SIXTY_SEVEN.total / 4096) * 4096
    half = SIXTY_SEVEN.total // 2
    assert (methods[0].useful_bytes_per_token, methods[0].flash_bytes_per_token) == (SIXTY_SEVEN.total, image)
    assert methods[0].reads_per_token == math.ceil(image / MIB)
    layer = 16_384 * 16_384
    kept = (half - SIXTY_SEVEN.resident) // layer
    assert methods[1].dram_bytes == SIXTY_SEVEN.resident + kept * layer
    assert methods[1].useful_bytes_per_token == methods[1].flash_bytes_per_token == (32 - kept) * layer
    # Predicted: 2 · (1 + 3) and 2 · 2 neurons, for 16 layers each: 128 + 64 in two passes, of 16 KiB.
    assert methods[2].useful_bytes_per_token == methods[2].flash_bytes_per_token == 96 * 16_384
    # Rows of 8 KiB. Pass 1: 3 alone: 2 reads for each of 2 copies, 4. 0 and 1 touch, 5 alone: 4 · 2 = 8.
    # Pass 2: 3 and 4 touch: 4 reads. All for 16 layers.
    assert methods[2].reads_per_token == 16 * (4 + 8 + 4) / 2
    # With a window of one, pass 2 reads what pass 1 had not: 4 alone in both copies.
    assert methods[3].useful_bytes_per_token == methods[4].useful_bytes_per_token == 16 * (8 + 2) * 16_384 / 2
    assert methods[3].reads_per_token == 16 * (4 + 8 + 4) / 2
    assert methods[4].reads_per_token == 16 * (2 + 4 + 2) / 2
    # Neither pass moves a row: pass 2 keeps both copies of 3 and appends; the other layer is emptied.
    assert methods[4].dram_moved_bytes_per_token == 0
    device = PRESETS["paper_m1max"]
    batches = [[16_384] * 2, [32_768, 16_384] * 2, [16_384] * 2]
    nanoseconds = 16 * sum(read_time(device, sizes) for sizes in batches) / 2
    assert methods[4].simulated_io_ms_per_token == nanoseconds / 1e6
    assert all(method.measured_io_ms_per_token is None for method in methods)
    # Nothing stored: all layers share alike what half of the model leaves.
    rows = (half - SIXTY_SEVEN.fixed) // 16_384 // 32
    assert methods[4].dram_bytes == SIXTY_SEVEN.fixed + 32 * rows * 16_384


@pytest.mark.parametrize("layers", [1, 3, 4, 40])
def test_every_large_layer_is_some_traced_layer(layers):
    # Layer l of 32 is traced layer ⌊l · layers / 32⌋, each with a number of predictions of its own.
    # From id 384 on, the seventeenth copy would lie behind the last neuron.
    predicted = [[380 + 20 * np.arange(1 + layer) for layer in range(layers)]]
    counts = [1 + at * layers // 32 for at in range(32)]
    methods = scale(predicted, 1300)
    copies = [
        sum(380 + 20 * i + 1300 * j < 16_384 for j in range(13) for i in range(count)) for count in counts
    ]
    assert methods[2].useful_bytes_per_token == sum(copies) * 16_384


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_capacities_and_window_at_the_large_shape(dtype):
    # Four layers of 1024: 16 copies. Largest |C_t| by layer as 1 : 2 : 3 : 2, 8 large layers each.
    largest = np.array([[10], [20], [30], [20]], dtype) * np.arange(1, 6, dtype=dtype)
    half = SIXTY_SEVEN.total // 2
    rows = (half - SIXTY_SEVEN.fixed) // 16_384
    capacities = [rows * share // (8 * 8) for share in (1, 2, 3, 2)]
    # A trace that predicts just as many neurons as fit layer 1, or one copy more.
    per_neuron = capacities[1] // 16
    for extra in (0, 1):
        ids = [np.arange(n) for n in (1, per_neuron + extra, 1, 1)]
        methods = scale([ids, ids], 1024, 5, largest / 2, largest, first=1)
        assert (methods[4].reads_per_token > 0) == bool(extra)  # a warm pass reads what did not fit
    assert methods[4].dram_bytes == SIXTY_SEVEN.fixed + 8 * sum(capacities) * 16_384
    # The window is chosen at the large shape: token t predicts t alone, so that k says what is evicted.
    fits = capacities[0] / 16 / 3  # mean · 16 fits up to k = 3 in layer 0, and so in all
    mean = np.float64([[1], [2], [3], [2]]) * fits * np.arange(1, 6)
    predicted = [[[t]] * 4 for t in (0, 1, 2, 3, 0, 2, 1)]
    default, *asked = [scale(predicted, 1024, k, mean, largest, first=4) for k in (None, 2, 3, 4)]
    assert default == asked[1] != asked[0] and default != asked[2]


def test_the_table_falls_from_row_to_row():
    trace = random_trace(1, 4, 1024, 12, 4, share=0.04)
    largest = np.full((4, 5), 250)
    predicted = [[trace.active(token, layer) for layer in range(4)] for token in range(12)]
    for place in PLACEMENTS:
        methods = scale(predicted, 1024, None, largest / 2, largest, place, first=4)
        for figure in ("useful_bytes_per_token", "flash_bytes_per_token", "simulated_io_ms_per_token"):
            values = [getattr(method, figure) for method in methods]
            assert values == sorted(values, reverse=True)
            assert values[0] > values[1] > values[2] > values[3]
        assert methods[4].simulated_io_ms_per_token < methods[3].simulated_io_ms_per_token
        assert methods[4].reads_per_token < methods[3].reads_per_token
