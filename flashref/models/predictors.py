"""The file of a model's trained predictors, and the counts of their errors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.models.origin import Origin, metadata_of, read_metadata
from flashref.storage.container import Container, encode_header, read_container, tensor_array
from flashref.storage.files import create_file, write_all
from flashref.types import STORED_DTYPES, Array, ImageError, Predictor, stored_dtype, widen

FILE_NAME = "predictors.safetensors"


class Predictors(NamedTuple):
    """The predictors of a model, and what was measured with them on held-out text.

    Attributes:
        layers: the predictor of each layer; None for a layer that is resident whole (decision 15).
        mean_resident, largest_resident: |C_t| in a matrix without a limit, (layers, windows) for
            k = 1, 2, …; None where the file has none.
        origin: what the predictors were made of; None where the file does not say.
    """

    layers: tuple[Predictor | None, ...]
    mean_resident: Array | None
    largest_resident: Array | None
    origin: Origin | None = None


def load_predictors(
    path: str | os.PathLike[str], layers: int, neurons: int, width: int, fingerprint: str | None = None
) -> Predictors:
    """Read the predictors in a safetensors file: `layers.L.a`, `.b`, `.bias`, `.threshold` and statistics.

    Args:
        path: the file.
        layers, neurons, width: the model's number of layers, and n and d of each.
        fingerprint: the model's fingerprint, which a file with an origin must have; None: it is not compared.

    Returns:
        A predictor for each layer, except for those that the metadata call dense.

    Raises:
        ImageError: the file cannot be read, lacks a layer, has values that are not finite, or belongs to
            another model.
    """
    container = read_container(path)
    try:
        origin, dense = read_metadata(container.metadata, layers)
    except ValueError as error:
        raise _foreign(container, str(error)) from None
    if origin is not None and fingerprint not in (None, origin.fingerprint):
        raise _foreign(container, "was fitted to another model, or to other weights of it")
    found = tuple(
        None if layer in dense else _predictor(container, layer, neurons, width) for layer in range(layers)
    )
    odd = next((layer for layer in (*dense, layers) if f"layers.{layer}.a" in container.tensors), None)
    if odd is not None:
        raise _foreign(
            container,
            f"has a predictor for layer {odd}, which its metadata call dense"
            if odd in dense
            else f"has a predictor for layer {odd}, but the model has {layers} layers",
        )
    measured = any(name.endswith(".mean_resident") for name in container.tensors)
    return Predictors(
        found,
        _statistic(container, "mean_resident", found, neurons) if measured else None,
        _statistic(container, "largest_resident", found, neurons) if measured else None,
        origin,
    )


def predictor_tensors(predictors: Predictors) -> dict[str, Array]:
    """Return the tensors that a file of these predictors holds, by name.

    Args:
        predictors: the predictors and their statistics.
    """
    tensors: dict[str, Array] = {}
    for layer, predictor in enumerate(predictors.layers):
        if predictor is None:
            continue
        named = {
            "a": predictor.a,
            "b": predictor.b,
            "bias": predictor.bias,
            "threshold": np.array([predictor.threshold], np.float32),
        }
        if predictors.mean_resident is not None and predictors.largest_resident is not None:
            named["mean_resident"] = predictors.mean_resident[layer].astype(np.float32)
            named["largest_resident"] = predictors.largest_resident[layer].astype(np.int32)
        tensors |= {f"layers.{layer}.{name}": array for name, array in named.items() if array is not None}
    return dict(sorted(tensors.items()))


def save_predictors(path: str | os.PathLike[str], predictors: Predictors) -> None:
    """Write predictors with their origin to a new file, which appears whole or not at all.

    Args:
        path: the file. Equal predictors give equal bytes.
        predictors: the predictors, their statistics and their origin.

    Raises:
        ImageError: the file exists, or cannot be written.
    """
    origin = predictors.origin
    dense = [layer for layer, one in enumerate(predictors.layers) if one is None]
    metadata = {} if origin is None else metadata_of(origin, dense)
    # The widest values come first, so that all are aligned.
    tensors = sorted(predictor_tensors(predictors).items(), key=lambda item: (-item[1].itemsize, item[0]))
    entries = {name: (_dtype_name(array), array.shape) for name, array in tensors}
    content = b"".join((encode_header(entries, metadata, 8), *(array.tobytes() for _, array in tensors)))
    with create_file(Path(path), len(content)) as descriptor:
        write_all(descriptor, np.frombuffer(content, np.uint8), 0)


def _dtype_name(array: Array) -> str:
    return "I32" if array.dtype == np.int32 else stored_dtype(array)


def predictor_bytes(predictors: Predictors) -> int:
    """Sum the bytes of both maps of every predictor; biases do not count (decision 8)."""
    return sum(one.a.nbytes + one.b.nbytes for one in predictors.layers if one is not None)


class ErrorCounts(NamedTuple):
    """Errors of predictors, counted in pairs of a token and a neuron (decision 22: all pairs are pooled)."""

    active: int
    inactive: int
    false_negatives: int
    false_positives: int

    @property
    def false_negative_rate(self) -> float:
        """The share of the active neurons that was not predicted; 0 where none is active."""
        return self.false_negatives / max(self.active, 1)

    @property
    def false_positive_rate(self) -> float:
        """The share of the inactive neurons that was predicted; 0 where none is inactive."""
        return self.false_positives / max(self.inactive, 1)


def count_errors(predicted: npt.NDArray[np.bool_], active: npt.NDArray[np.bool_]) -> ErrorCounts:
    """Count the errors of a prediction.

    Args:
        predicted, active: masks of the predicted and of the active neurons, of one shape.
    """
    total = int(active.sum())
    missed, extra = int((active & ~predicted).sum()), int((predicted & ~active).sum())
    return ErrorCounts(total, active.size - total, missed, extra)


def pool_errors(errors: Sequence[ErrorCounts]) -> ErrorCounts:
    """Add the counts of several tokens or layers."""
    return ErrorCounts(*(sum(counts) for counts in zip(*errors, strict=True)))


def _predictor(container: Container, layer: int, neurons: int, width: int) -> Predictor:
    a, b = _tensor(container, f"layers.{layer}.a"), _tensor(container, f"layers.{layer}.b")
    threshold = _tensor(container, f"layers.{layer}.threshold")
    name = f"layers.{layer}.bias"
    bias = _tensor(container, name) if name in container.tensors else None
    rank = a.size // width
    shapes_fit = a.shape == (rank, width) and b.shape == (neurons, rank) and 1 <= rank <= min(neurons, width)
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


def _statistic(
    container: Container, name: str, predictors: Sequence[Predictor | None], neurons: int
) -> Array:
    """Read a statistic, (layers, windows); a layer without a predictor keeps all its neurons."""
    names = [f"layers.{layer}.{name}" for layer, one in enumerate(predictors) if one is not None]
    missing = [name for name in names if name not in container.tensors]
    if missing:
        raise _foreign(container, f"lacks the tensor {missing[0]!r}")
    rows = [tensor_array(container, name) for name in names]
    if any(row.ndim != 1 or row.shape != rows[0].shape or row.size == 0 for row in rows):
        raise _foreign(container, f"has {name!r} of different windows in its layers")
    given = iter(rows)
    statistic = np.stack(
        [np.full_like(rows[0], neurons) if one is None else next(given) for one in predictors]
    )
    if not np.isfinite(statistic).all() or statistic.min() < 0:
        raise _foreign(container, f"has a {name!r} that counts no neurons")
    return statistic


def _foreign(container: Container, what: str) -> ImageError:
    return ImageError(f"{Path(container.path)}: {what}; give predictors of this model with --predictors FILE")
