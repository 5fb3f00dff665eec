"""The peak of a process's memory as it is measured, and what a run may take beside its budget."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from random_models import LAYERS, NEURONS, WIDTH, write_family

from flashref.bundle import bundle_layout
from flashref.models import memory
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import load_tensor, open_checkpoint
from flashref.models.memory import uncounted
from flashref.models.model import load_model
from flashref.models.parts import Linear
from flashref.types import Predictor

MEASURING = """
import numpy as np
from flashref.models.memory import peak_bytes, reset_peak, resident_bytes
before = resident_bytes()
held = np.ones(100 << 20, np.uint8)
with_it = resident_bytes()
del held
after = resident_bytes()
peak = peak_bytes()
reset_peak()
print(before, with_it, after, peak, peak_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is forgotten on Linux only")
def test_the_peak_is_measured_and_forgotten():
    found = subprocess.run([sys.executable, "-c", MEASURING], capture_output=True, text=True, check=True)
    before, with_it, after, peak, forgotten = map(int, found.stdout.split())
    size, little = 100 << 20, 4 << 20
    assert size <= with_it - before < size + little and after - before < little
    assert abs(peak - with_it) < little and forgotten < peak - size + little


def test_a_system_that_does_not_say_is_asked_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no" / "folder")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "none")
    usage = type("Usage", (), {"ru_maxrss": 7})
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: usage)
    memory.reset_peak()
    for platform, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(memory.sys, "platform", platform)
        assert memory.peak_bytes() == memory.resident_bytes() == 7 * unit
    assert memory.available_bytes() is None


def test_lines_of_the_system(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t      30 kB\nVmRSS:\t 20 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\nMemAvailable:   3 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    assert (memory.peak_bytes(), memory.resident_bytes()) == (30 * 1024, 20 * 1024)
    assert memory.available_bytes() == 3 * 1024


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """dtype → a small OPT of two layers, 48 neurons, 4 heads of 4, a context of 64, as it is stored."""
    found = {}
    for dtype in ("F32", "F16", "BF16"):
        checkpoint = open_checkpoint(write_family(tmp_path_factory.mktemp(dtype), "opt", dtype))
        found[dtype] = load_model(checkpoint.config, partial(load_tensor, checkpoint), None)
    return found


N, D = 10**6, 16  # of layers that nobody builds: large enough for every part to show
BLOCK = 4 * (4 * (16 * 16 + 16) + 4 * 16)  # four maps with biases and two norms, as float32


def workspace(model, dtype="F16", capacities=(0, 0), dense=(), predictors=()):
    """Without the interpreter's part."""
    layout = bundle_layout(N, D, dtype)
    demand, budget = Demand(0, 0, 0, LAYERS, N, layout.stride, dense), Budget(0, 3, capacities, 0)
    return uncounted(model, demand, budget, layout, 0, [], predictors, 1).workspace - memory.INTERPRETER


def test_cache_biases_and_tables_by_hand(models):
    layout = bundle_layout(NEURONS, WIDTH, "F16")
    demand, budget = Demand(0, 0, 0, LAYERS, NEURONS, layout.stride), Budget(0, 3, (20, 10), 0)
    predicted = [[np.arange(5), np.arange(3)], [np.arange(2), np.arange(0)]]
    found = uncounted(models["F16"], demand, budget, layout, 1234, predicted, (), 10)
    assert found.kv_cache == 2 * LAYERS * 4 * 10 * 4 * 4  # 10 keys and values of 4 heads of 4 float32
    assert found.biases == 1234
    # n of Window.last, the slots twice and three kept sets a layer; 10 recorded ids; a checksum a row.
    assert found.id_tables == 8 * (48 + 5 * 20 + 48 + 5 * 10) + 8 * 10 + 4 * 2 * 48 * 2


@pytest.mark.parametrize(
    ("dtype", "bundle", "block", "widened"),
    [("F32", 128, 0, 0), ("F16", 64, BLOCK, 1), ("BF16", 64, BLOCK + 4 * 256, 2)],
)
def test_the_workspace_of_reading_and_summing_by_hand(models, dtype, bundle, block, widened):
    rows = 200_000 + 62_500  # of the matrix, and a sixteenth
    buffers = 513 << 21  # 262 500 blocks of 4096 bytes are 512.7 times 2 MiB
    copies = 200_000 * bundle + 4 * rows * bundle + widened * rows * 16 * 4
    products = 2 * 4 * N  # a row of them is more than a piece
    found = workspace(models[dtype], dtype, (200_000, 7))
    assert found == block + buffers + copies + products + rows * memory.ROW_OBJECTS


@pytest.mark.parametrize("gated", [0, 1])
def test_rows_of_a_resident_gate_are_copied_for_the_neurons_of_a_batch(models, gated):
    without, gates = models["F16"], [None, None]
    gates[gated] = zeros(N, D)
    ffns = tuple(ffn._replace(gate=gate) for ffn, gate in zip(without.ffns, gates, strict=True))
    found = workspace(without._replace(ffns=ffns), "F16", (200_000, 7))
    assert found == workspace(without, "F16", (200_000, 7)) + (200_000 + 62_500) * D * 2


def test_the_workspace_of_predicting_by_hand(models):
    model, few = models["F32"], 4 * N
    # The larger map as float32, 256 MB, once more on its way, products, and some ids of n neurons.
    maps = Predictor(np.zeros((64, D), np.float16), np.zeros((N, 64), np.float16), None, 0.0)
    assert workspace(model, predictors=[None, maps]) == 2 * 256_000_000 + 2 * few + 64 * N
    small = Predictor(np.zeros((2, D), np.float16), np.zeros((N, 2), np.float16), None, 0.0)
    buffers = 123 << 21  # reading the bypass alone: 62 500 blocks
    bypass = buffers + 4 * 62_500 * 64 + 3 * 62_500 * 64 + 62_500 * memory.ROW_OBJECTS
    assert workspace(model, predictors=[small]) == bypass > 2 * 8_000_000 + 2 * few + 64 * N


def test_the_workspace_of_a_gate_of_dense_layers_and_of_the_head_by_hand(models, monkeypatch):
    model = models["F16"]
    wide = bundle_layout(100_000, 512, "F16")
    demand, budget = Demand(0, 0, 0, LAYERS, 100_000, 2048, (1,)), Budget(0, 3, (0, 0), 0)
    found = uncounted(models["F32"], demand, budget, wide, 0, [], (), 1).workspace - memory.INTERPRETER
    assert found == 2 * 100_000 * 512 * 4 + 2 * (1 << 20)  # one matrix as float32, twice, and products
    monkeypatch.setattr(memory, "ROW_OBJECTS", 0)
    layout = bundle_layout(48, 16, "F16")
    demand, budget = Demand(0, 0, 0, LAYERS, 48, 64), Budget(0, 3, (0, 0), 0)
    # A gate in pieces of 4 MiB, twice, its products, and some ids of n neurons.
    many = bundle_layout(100_000, 16, "F16")
    found = uncounted(model, demand, budget, many, 0, [], (), 1).workspace - memory.INTERPRETER
    assert found == BLOCK + 2 * (4 << 20) + 2 * (1 << 20) + 64 * 100_000
    # 4096 rows of a head as float32, twice; eight times the logits; the last norm.
    head = model.ends.head._replace(weight=np.broadcast_to(np.float16(0), (10**6, 16)))
    large = model._replace(ends=model.ends._replace(head=head))
    found = uncounted(large, demand, budget, layout, 0, [], (), 1).workspace - memory.INTERPRETER
    assert found == 2 * 4096 * 16 * 4 + 32 * 10**6 + 4 * 32
    # Nothing is smaller than the pieces in which an image is opened.
    tiny = Predictor(np.zeros((1, D), np.float16), np.zeros((48, 1), np.float16), None, 0.0)
    found = uncounted(model, demand, budget, layout, 0, [], [tiny], 1).workspace - memory.INTERPRETER
    assert found == 3 * (4 << 20)


def zeros(*shape, dtype=np.float16):
    """Of no memory."""
    return np.broadcast_to(dtype(0), shape)


def test_the_workspace_of_other_shapes_by_hand(models):
    model, few = models["F32"], 4 * N
    assert workspace(model, "F32", (7, 200_000)) == workspace(model, "F32", (200_000, 7))
    # A matrix of all rows needs no bypass: 10^6 blocks of 4096 bytes are 1953.1 times 2 MiB.
    found = workspace(model, "F32", (N, N))
    assert found == (1954 << 21) + 5 * N * 128 + 2 * few + N * memory.ROW_OBJECTS

    def of(neurons, width, capacity, predictors=()):
        layout = bundle_layout(neurons, width, "F16")
        demand, budget = Demand(0, 0, 0, LAYERS, neurons, layout.stride), Budget(0, 3, (capacity,) * 2, 0)
        return uncounted(model, demand, budget, layout, 0, [], predictors, 1).workspace - memory.INTERPRETER

    pieces = 2 << 20  # of products
    # Bundles of 16 KiB, more than a block: 1000 are 7.8 times 2 MiB; values 16.4 MB, widened once.
    values = 1000 * 4096 * 4
    assert of(1000, 4096, 1000) == (8 << 21) + 5 * 1000 * 16384 + values + pieces + 1000 * memory.ROW_OBJECTS
    # No layer is dense: a bypass of 6250 rows, 12.2 times 2 MiB, however large a layer is.
    values = 6250 * 512 * 4
    assert of(100_000, 512, 0) == (13 << 21) + 4 * 6250 * 2048 + values + pieces + 6250 * memory.ROW_OBJECTS
    # Where d is larger than n, so is the first map: 256 MB.
    maps = Predictor(zeros(64, N), zeros(48, 64), None, 0.0)
    assert of(48, N, 0, [maps]) == 2 * 256 * N + 2 * few + 64 * 48


def test_the_workspace_of_other_ends_by_hand(models):
    layout = bundle_layout(48, 16, "F16")
    demand, budget = Demand(0, 0, 0, LAYERS, 48, 64), Budget(0, 3, (0, 0), 0)
    tiny = Predictor(zeros(1, D), zeros(48, 1), None, 0.0)

    def of(dtype, **ends):
        model = models[dtype]._replace(ends=models[dtype].ends._replace(**ends))
        return uncounted(model, demand, budget, layout, 0, [], [tiny], 1).workspace - memory.INTERPRETER

    # Scale and shift of the last norm are 128 bytes, as BF16 64 more on their way.
    head = Linear(zeros(10**6, 16, dtype=np.uint16), None)
    assert of("BF16", head=head) == 2 * 4096 * 16 * 4 + 32 * 10**6 + 128 + 64
    # A head of fewer rows than a piece has.
    assert of("F16", head=Linear(zeros(1000, 5000), None)) == 2 * 1000 * 5000 * 4 + 32 * 1000 + 128
    # Projections, beside a head of 256 rows.
    found = of("F16", project_in=Linear(zeros(2000, 2000), None), project_out=Linear(zeros(1000, 2000), None))
    assert found == 24_000_000 + 128 + 2 * 256 * 16 * 4 + 32 * 256
