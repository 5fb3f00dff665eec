"""The predictors of a model: one file beside its weights, with what is known of their windows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.storage.container import Container, read_container, tensor_array
from flashref.types import STORED_DTYPES, Array, ImageError, Predictor, widen

FILE_NAME = "predictors.safetensors"


class Predictors(NamedTuple):
    """A predictor a layer, and the windows that were measured with them on held-out text.

    mean_resident, largest_resident: (layers, windows), |C_t| of an unbounded matrix for k = 1, 2, …; or None.
    """

    layers: tuple[Predictor, ...]
    mean_resident: Array | None
    largest_resident: Array | None


def load_predictors(path: str | os.PathLike[str], layers: int, neurons: int, width: int) -> Predictors:
    """The predictors in a safetensors file: `layers.L.a`, `.b`, `.bias`, `.threshold` and statistics.

    Every layer must have one of this model's shape and finite values, else ImageError.
    """
    container = read_container(path)
    found = tuple(_predictor(container, layer, neurons, width) for layer in range(layers))
    if f"layers.{layers}.a" in container.tensors:
        raise _foreign(container, f"has a predictor for layer {layers}, but the model has {layers} layers")
    measured = "layers.0.mean_resident" in container.tensors
    return Predictors(
        found,
        _statistic(container, "mean_resident", layers) if measured else None,
        _statistic(container, "largest_resident", layers) if measured else None,
    )


def predictor_bytes(predictors: Predictors) -> int:
    """Bytes of both maps of every predictor; biases do not count (decision 8)."""
    return sum(predictor.a.nbytes + predictor.b.nbytes for predictor in predictors.layers)


class Errors(NamedTuple):
    """Pooled counts of (token, neuron) pairs (decision 22)."""

    active: int
    inactive: int
    false_negatives: int
    false_positives: int

    @property
    def false_negative_rate(self) -> float:
        """Of the truly active, the share that was not predicted; 0 of 0 is 0."""
        return self.false_negatives / max(self.active, 1)

    @property
    def false_positive_rate(self) -> float:
        """Of the truly inactive, the share that was predicted; 0 of 0 is 0."""
        return self.false_positives / max(self.inactive, 1)


def count_errors(predicted: npt.NDArray[np.bool_], active: npt.NDArray[np.bool_]) -> Errors:
    """Compare predicted and truly active neurons, masks of one shape."""
    total = int(active.sum())
    missed, extra = int((active & ~predicted).sum()), int((predicted & ~active).sum())
    return Errors(total, active.size - total, missed, extra)


def pool_errors(errors: Sequence[Errors]) -> Errors:
    """The counts of several tokens or layers as one."""
    return Errors(*(sum(counts) for counts in zip(*errors, strict=True)))


def _predictor(container: Container, layer: int, neurons: int, width: int) -> Predictor:
    a, b = _tensor(container, f"layers.{layer}.a"), _tensor(container, f"layers.{layer}.b")
    threshold = _tensor(container, f"layers.{layer}.threshold")
    name = f"layers.{layer}.bias"
    bias = _tensor(container, name) if name in container.tensors else None
    rank = a.size // width
    shapes_fit = a.shape == (rank, width) and b.shape == (neurons, rank)
    if not shapes_fit or threshold.shape != (1,) or (bias is not None and bias.shape != (neurons,)):
        raise _foreign(
            container,
            f"has a predictor for layer {layer} of shapes {a.shape} and {b.shape}, "
            f"but the model's layers have {neurons} neurons of width {width}",
        )
    return Predictor(a, b, bias, float(widen(threshold)[0]))


def _tensor(container: Container, name: str) -> Array:
    if name not in container.tensors:
        raise _foreign(container, f"lacks the tensor {name!r}")
    if container.tensors[name].dtype not in STORED_DTYPES:
        raise _foreign(container, f"has {name!r} in another dtype than {', '.join(STORED_DTYPES)}")
    array = tensor_array(container, name)
    if not np.isfinite(widen(array)).all():
        raise _foreign(container, f"holds a value that is not finite in {name!r}")
    return array


def _statistic(container: Container, name: str, layers: int) -> Array:
    names = [f"layers.{layer}.{name}" for layer in range(layers)]
    missing = [name for name in names if name not in container.tensors]
    if missing:
        raise _foreign(container, f"lacks the tensor {missing[0]!r}")
    rows = [tensor_array(container, name) for name in names]
    if any(row.ndim != 1 or row.shape != rows[0].shape or row.size == 0 for row in rows):
        raise _foreign(container, f"has {name!r} of different windows in its layers")
    statistic = np.stack(rows)
    if not np.isfinite(statistic).all() or statistic.min() < 0:
        raise _foreign(container, f"has a {name!r} that counts no neurons")
    return statistic


def _foreign(container: Container, what: str) -> ImageError:
    return ImageError(
        f"{Path(container.path)}: {what}; give predictors of this model with --predictors FILE, "
        "or use --predictor exact"
    )
