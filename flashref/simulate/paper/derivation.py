"""What all derived tables share: the processes, a trace of a shape, and what its reads take on the device."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from flashref.bundle import Layout
from flashref.simulate.costs import Sizes, batch_times, sequential_sizes
from flashref.simulate.figures import figure_densities, use_curve
from flashref.simulate.flash import SEQUENTIAL_READ
from flashref.simulate.paper.figure import DEVICE
from flashref.simulate.policies import whole_layers
from flashref.simulate.shapes.presets import preset_shape
from flashref.simulate.shapes.shape import ModelShape
from flashref.simulate.synthetic import ActivationProcess, fit_use_curve, fit_window, synthetic_trace
from flashref.simulate.trace import ActivationTrace, Reads

OPT_WINDOW, OPT_KEPT, OPT_NEW = 5, 0.24, 0.024  # section C.1, where the window is "the past 5 tokens"
FALCON_WINDOW, FALCON_KEPT, FALCON_NEW = 4, 0.33, 0.031  # section C.2
WARM, TOKENS = 16, 64  # tokens that fill the window, and tokens in all
SEED = 11514


@cache
def usual_process() -> ActivationProcess:
    """Fig. 4a's, for a model of which nothing on windows is published."""
    return fit_use_curve(use_curve())[0]


@cache
def opt_process() -> ActivationProcess:
    """The process whose window keeps and loads exactly what section C.1 says, at Fig. 9a's densities."""
    return fit_window(figure_densities("fig9a_opt_predictor"), OPT_WINDOW, OPT_KEPT, OPT_NEW)


@cache
def falcon_process() -> ActivationProcess:
    """The nearest to section C.2's shares at Fig. 4a's density, which do not quite fit together."""
    return fit_window([dict(use_curve())[1]], FALCON_WINDOW, FALCON_KEPT, FALCON_NEW)


def paper_shape(name: str, dtype: str = "F16") -> ModelShape:
    """A preset as the paper counts it: "8B" has room for one of Persimmon's two embeddings."""
    shape = preset_shape(name, dtype)
    if name != "persimmon-8b":
        return shape
    embedding = 262_144 * shape.width
    return shape._replace(parameters=shape.parameters - embedding, resident=shape.resident - embedding)


def shape_trace(
    shape: ModelShape, process: ActivationProcess, tokens: int = TOKENS, warm: int = WARM
) -> ActivationTrace:
    """A trace of the shape's layers that have a predictor; the first `warm` tokens are not counted."""
    units = (shape.neurons,) * len(shape.sparse_layers)
    return _drawn(process, shape.sparse_densities, units, tokens, warm)


@lru_cache(maxsize=1)  # Table 2 and three rows of Table 3 are of one trace
def _drawn(
    process: ActivationProcess,
    densities: tuple[float, ...],
    units: tuple[int, ...],
    tokens: int,
    warm: int,
) -> ActivationTrace:
    return synthetic_trace(np.random.default_rng(SEED), process, densities, units, tokens, warm)


def front_to_back_ms(length: int) -> float:
    """Reading so many bytes in pieces of 1 MiB (decision 20)."""
    blocks = -(-length // DEVICE.block) * DEVICE.block
    return float(batch_times(DEVICE, sequential_sizes(blocks, SEQUENTIAL_READ, DEVICE.block))[0]) / 1e6


def unread_bytes(shape: ModelShape, memory: float) -> int:
    """What hybrid reads for a token: the FFN layers that a share of the model's bytes does not hold."""
    free, layers = int(memory * shape.total_bytes) - shape.resident_bytes, len(shape.sparse_layers)
    return (layers - whole_layers(free, shape.ffn_bytes, layers)) * shape.ffn_bytes


def mean_useful_bytes(reads: Reads, layouts: Sequence[Sequence[Layout]], trace: ActivationTrace) -> float:
    """Bytes of the units that are read for a counted token."""
    unit_bytes = np.array([sum(field.bundle_bytes for field in fields) for fields in layouts])
    useful = np.diff(reads.starts) * unit_bytes[reads.layer]
    return float(useful[_first(reads, trace) :].sum()) / (trace.tokens - trace.first_counted)


def mean_io_ms(reads: Reads, sizes: Sizes, trace: ActivationTrace) -> float:
    """I/O time of a counted token."""
    times = batch_times(DEVICE, sizes)[_first(reads, trace) :]
    return float(times.sum()) / 1e6 / (trace.tokens - trace.first_counted)


def _first(reads: Reads, trace: ActivationTrace) -> int:
    """The first batch of a counted token."""
    return int(np.searchsorted(reads.token, trace.first_counted))
