"""How many values a model has, from its config.json, for every family, whether flashref can run it or not.

For the five families that flashref runs, the tensors of flashref.models are added up. What changes no size
(positions, activations, quantisation, a window of attention) may also be something that flashref cannot run.
"""

import math
from typing import NamedTuple

from flashref.models.config_values import Values, text
from flashref.models.families import FAMILIES as RUN
from flashref.models.family import Tensor, leaves
from flashref.simulate.shapes.families import decoder_of_config
from flashref.types import DomainError

ACTIVATION = {  # for each family that flashref runs: the key of the activation, and its default
    "opt": ("activation_function", "relu"),
    "falcon": ("activation", "gelu"),
    "persimmon": ("hidden_act", "relu2"),
    "phi": ("hidden_act", "gelu_new"),
    "llama": ("hidden_act", "silu"),
}
SIZELESS = ("rope_", "partial_rotary_factor", "original_max_position", "layer_norm_eps", "rms_norm_eps")


class ModelSizes(NamedTuple):
    """The sizes of a decoder-only transformer.

    layers, width, neurons: the number of layers, and d and n, which are the same in every layer.
    activation: as config.json names it.
    gated: whether an FFN has three matrices and not two.
    parameters: the number of values in the whole model.
    resident: the number of values in embeddings, attention, norms and output head, without biases.
    """

    layers: int
    width: int
    neurons: int
    activation: str
    gated: bool
    parameters: int
    resident: int


def model_sizes(values: Values) -> tuple[ModelSizes, str]:
    """Read the sizes of the model that a config.json describes.

    Args:
        values: the parsed config.json.

    Returns:
        The sizes, and a note, which is empty for a family that is known.

    Raises:
        ImageError: a key is missing or impossible.
        DomainError: the layers are mixtures of experts, or the family does not have such a model.
    """
    experts = [key for key in values if "expert" in key and type(values[key]) is int and values[key] > 1]
    if experts:
        raise DomainError(
            f"config.json has {experts[0]}, so its layers are mixtures of experts and not one FFN; make a "
            "trace in Python whose units are the experts"
        )
    family = values.get("model_type")
    if isinstance(family, str) and family in ACTIVATION:
        return _summed(family, values), ""
    decoder, note = decoder_of_config(values)
    return ModelSizes(
        decoder.layers,
        decoder.width,
        decoder.neurons,
        decoder.activation,
        decoder.gated,
        decoder.parameters,
        decoder.resident_weights,
    ), note


def _summed(family: str, values: Values) -> ModelSizes:
    """The sizes of a model whose tensors flashref.models knows; all its layers are alike."""
    key, usual = ACTIVATION[family]
    activation = text(values, key, usual)
    sizes = {name: value for name, value in values.items() if not name.startswith(SIZELESS)}
    if family != "opt":  # OPT alone has a learned embedding for each position
        sizes["max_position_embeddings"] = 2048
    config = RUN[family].config_from({**sizes, key: "relu"})
    ends = list(dict.fromkeys(leaves(RUN[family].ends(config))))  # a tied head is named twice
    block, ffn = list(leaves(RUN[family].block(config, 0))), RUN[family].ffn(config, 0)
    layers = config.layers
    return ModelSizes(
        layers,
        config.width,
        config.neurons,
        activation,
        gated=ffn.gate is not None,
        parameters=_values(ends) + layers * _values([*block, *leaves(ffn)]),
        resident=_values(_weights(ends)) + layers * _values(_weights(block)),
    )


def _weights(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors that are not biases."""
    return [tensor for tensor in tensors if not tensor.name.endswith(".bias")]


def _values(tensors: list[Tensor]) -> int:
    """How many values these tensors have."""
    return sum(math.prod(tensor.shape) for tensor in tensors)
