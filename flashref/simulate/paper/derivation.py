"""What all derived figures share: processes, the trace of a shape, and the time that its reads take."""

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
WARM, TOKENS = 16, 64  # warm-up tokens, and all tokens of a trace
SEED = 11514


@cache
def usual_process() -> ActivationProcess:
    """The process of Fig. 4a, for models of which nothing about windows is published."""
    return fit_use_curve(use_curve())[0]


@cache
def opt_process() -> ActivationProcess:
    """The process whose window keeps and loads what section C.1 says, at the densities of Fig. 9a."""
    return fit_window(figure_densities("fig9a_opt_predictor"), OPT_WINDOW, OPT_KEPT, OPT_NEW)


@cache
def falcon_process() -> ActivationProcess:
    """The process nearest to section C.2's shares at Fig. 4a's density, which do not quite fit together."""
    return fit_window([dict(use_curve())[1]], FALCON_WINDOW, FALCON_KEPT, FALCON_NEW)


def paper_shape(name: str, dtype: str = "F16") -> ModelShape:
    """Make the shape of a preset as the paper counts it: "8B" has room for one of Persimmon's two embeddings.

    Args:
        name: a key of `CONFIGS`.
        dtype: F32, F16 or BF16, how the weights are stored.

    Returns:
        The shape.
    """
    shape = preset_shape(name, dtype)
    if name != "persimmon-8b":
        return shape
    embedding = 262_144 * shape.width
    return shape._replace(parameters=shape.parameters - embedding, resident=shape.resident - embedding)


def shape_trace(
    shape: ModelShape, process: ActivationProcess, tokens: int = TOKENS, warm: int = WARM
) -> ActivationTrace:
    """Draw a trace of those layers of a shape that have a predictor.

    Args:
        shape: the model.
        process: the random process.
        tokens: how many tokens the trace has, with those of the warm-up.
        warm: how many tokens are warm-up.

    Returns:
        The trace; equal arguments give equal traces.
    """
    units = (shape.neurons,) * len(shape.sparse_layers)
    return _drawn(process, shape.sparse_densities, units, tokens, warm)


@lru_cache(maxsize=1)  # Table 2 and three rows of Table 3 share a trace
def _drawn(
    process: ActivationProcess,
    densities: tuple[float, ...],
    units: tuple[int, ...],
    tokens: int,
    warm: int,
) -> ActivationTrace:
    return synthetic_trace(np.random.default_rng(SEED), process, densities, units, tokens, warm)


def front_to_back_ms(length: int) -> float:
    """The milliseconds to read `length` bytes in pieces of 1 MiB (decision 20 says that naive reads so)."""
    blocks = -(-length // DEVICE.block) * DEVICE.block
    return float(batch_times(DEVICE, sequential_sizes(blocks, SEQUENTIAL_READ, DEVICE.block))[0]) / 1e6


def unread_bytes(shape: ModelShape, memory: float) -> int:
    """The bytes that hybrid reads for a token, with the share `memory` of the model's bytes in memory."""
    free, layers = int(memory * shape.total_bytes) - shape.resident_bytes, len(shape.sparse_layers)
    return (layers - whole_layers(free, shape.ffn_bytes, layers)) * shape.ffn_bytes


def mean_useful_bytes(reads: Reads, layouts: Sequence[Sequence[Layout]], trace: ActivationTrace) -> float:
    """The mean number of bytes in the units that are read for a counted token."""
    unit_bytes = np.array([sum(field.bundle_bytes for field in fields) for fields in layouts])
    useful = np.diff(reads.starts) * unit_bytes[reads.layer]
    return float(useful[_first(reads, trace) :].sum()) / (trace.tokens - trace.first_counted)


def mean_io_ms(reads: Reads, sizes: Sizes, trace: ActivationTrace) -> float:
    """The mean I/O time of a counted token, in milliseconds."""
    times = batch_times(DEVICE, sizes)[_first(reads, trace) :]
    return float(times.sum()) / 1e6 / (trace.tokens - trace.first_counted)


def _first(reads: Reads, trace: ActivationTrace) -> int:
    """The number of the first batch that counts."""
    return int(np.searchsorted(reads.token, trace.first_counted))
