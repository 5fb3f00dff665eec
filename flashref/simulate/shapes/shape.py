"""Shapes: all that is needed to say what a model costs, without its weights.

`presets.py` has the paper's models. For any other model ranks and densities are assumed, and `note` says so:
without a gate, OPT 6.7B's curve (Fig. 9a) over the relative depth; with a gate, Llama 2 7B's 10 % in every
layer.
"""

from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout, bundle_layout
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models.budget import Demand
from flashref.models.config_values import ACTIVATIONS, Values
from flashref.simulate.figures import figure_densities
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.shapes.sizes import model_sizes
from flashref.types import STORED_DTYPES, DomainError

LLAMA_2_ACTIVE = 0.1  # ProSparse's 90 % sparsity


class ModelShape(NamedTuple):
    """A model without its weights.

    name, layers: its name, and the number of its layers.
    width, neurons: d and n, the same in every layer.
    fields, dtype: the fields of a bundle, and how values are stored.
    parameters: the number of values in the whole checkpoint.
    resident: the number of values in embeddings, attention, norms and output head, without biases.
    ranks: the rank of each layer's predictor; 0 where there is none, so that the layer is dense (decision
        15).
    densities: the share of each layer's neurons that is predicted for a token.
    note: what is assumed or differs from what is published.
    """

    name: str
    layers: int
    width: int
    neurons: int
    fields: tuple[str, ...]
    dtype: str
    parameters: int
    resident: int
    ranks: tuple[int, ...]
    densities: tuple[float, ...]
    note: str

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers with a predictor: those that a trace has."""
        return tuple(layer for layer, rank in enumerate(self.ranks) if rank)

    @property
    def sparse_densities(self) -> tuple[float, ...]:
        """The densities of the layers with a predictor."""
        return tuple(self.densities[layer] for layer in self.sparse_layers)

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return STORED_DTYPES[self.dtype].itemsize

    @property
    def ffn_bytes(self) -> int:
        """Bytes of one layer's FFN matrices, without padding."""
        return self.itemsize * len(self.fields) * self.width * self.neurons

    @property
    def resident_bytes(self) -> int:
        """Bytes that are always in memory: those of `resident`, and of the dense layers."""
        return self.itemsize * self.resident + (self.layers - len(self.sparse_layers)) * self.ffn_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the checkpoint's tensors."""
        return self.itemsize * self.parameters


def shape_of_config(values: Values, name: str | None = None, dtype: str | None = None) -> ModelShape:
    """Make the shape of the model that a config.json describes.

    Args:
        values: the parsed config.json.
        name: the model's name; None for its model_type.
        dtype: F32, F16 or BF16; None for the one that the config.json names.

    Returns:
        The shape.

    Raises:
        ImageError: a key is missing or impossible.
        DomainError: the model or the dtype is not supported.
    """
    sizes, note = model_sizes(values)
    layers, d = sizes.layers, sizes.width
    if dtype is None:
        dtype = _dtype(values)
    if dtype not in STORED_DTYPES:
        raise DomainError(f"dtype {dtype!r} is unknown; use one of {', '.join(STORED_DTYPES)}")
    notes = [note] if note else []
    # The ranks have the paper's proportions to d, in the densest eighth of the layers and in the others.
    wide, eighth = max(d // 4, 1), -(-layers // 8)
    if sizes.gated:
        narrow, first = max(d // 16, 1), (layers - eighth) // 2
        densities = (LLAMA_2_ACTIVE,) * layers
        notes.append("its ranks and densities are assumed to be like Llama 2 7B's")
    else:
        narrow, first = max(d // 32, 1), layers - eighth
        densities = _stretched(figure_densities("fig9a_opt_predictor"), layers)
        notes.append("its ranks and densities are assumed to be like OPT 6.7B's")
    if ACTIVATIONS.get(sizes.activation) not in SPARSE_ACTIVATIONS:
        notes.append(
            f"{sizes.activation} is assumed to be replaced by ReLU, for with it every neuron is active"
        )
    ranks = (narrow,) * first + (wide,) * eighth + (narrow,) * (layers - first - eighth)
    return ModelShape(
        name=str(values.get("model_type")) if name is None else name,
        layers=layers,
        width=d,
        neurons=sizes.neurons,
        fields=("gate", "up", "down") if sizes.gated else ("up", "down"),
        dtype=dtype,
        parameters=sizes.parameters,
        resident=sizes.resident,
        ranks=ranks,
        densities=densities,
        note="; ".join(notes),
    )


def shape_layout(shape: ModelShape, block: int) -> Layout:
    """Lay out the bundles of one layer, as if it lay first on flash.

    Args:
        shape: the model.
        block: bytes of a block.

    Returns:
        The layout.
    """
    return bundle_layout(shape.neurons, shape.width, shape.dtype, shape.fields, block)


def shape_demand(shape: ModelShape, block: int) -> Demand:
    """Compute what the model needs in memory.

    Args:
        shape: the model.
        block: bytes of a block.

    Returns:
        The demand; its layers are those with a predictor, and the others are resident.
    """
    predictors = shape.itemsize * sum(rank * (shape.width + shape.neurons) for rank in shape.ranks)
    return Demand(
        total=shape.total_bytes,
        resident=shape.resident_bytes,
        predictors=predictors,
        layers=len(shape.sparse_layers),
        neurons=shape.neurons,
        stride=shape_layout(shape, block).stride,
    )


def shape_flash(shape: ModelShape, block: int) -> Flash:
    """Lay out the model on flash.

    Args:
        shape: the model.
        block: bytes of a block.

    Returns:
        The layouts of the layers with a predictor, and the sizes of the whole.
    """
    layout = shape_layout(shape, block)
    sparse = len(shape.sparse_layers)
    image = shape.total_bytes + shape.layers * (shape.neurons * layout.stride - shape.ffn_bytes)
    return Flash(
        bundled=(layout,) * sparse,
        unbundled=(unbundled_layouts(layout),) * sparse,
        image_bytes=-(-image // block) * block,
        tensor_bytes=shape.total_bytes,
    )


def _stretched(densities: tuple[float, ...], layers: int) -> tuple[float, ...]:
    """A curve over the layers at another depth: the ends stay ends, and between them it is linear."""
    depth = np.linspace(0, len(densities) - 1, layers)
    return tuple(np.interp(depth, np.arange(len(densities)), densities).tolist())


def _dtype(values: Values) -> str:
    """The stored dtype that a config.json names; F16 if it names none."""
    name = values.get("dtype") or values.get("torch_dtype") or "float16"
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    if not isinstance(name, str) or name not in names:
        raise DomainError(f"config.json has the dtype {name!r}; use {', '.join(names)}")
    return names[name]
