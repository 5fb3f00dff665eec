"""What the config.json of an OPT says, and which tensors follow from it: their names and shapes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flashref.types import DomainError, ImageError

PREFIX = "model.decoder"  # every tensor's name begins so, but for an output head's
POSITION_OFFSET = 2  # rows 0 and 1 of embed_positions were for padding and are never used

COUNTS: Mapping[str, str] = {  # our field, and the key of config.json
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "neurons": "ffn_dim",
    "heads": "num_attention_heads",
    "context": "max_position_embeddings",
    "vocabulary": "vocab_size",
}
ACTIVATIONS: Mapping[str, str] = {  # Hugging Face's name, and the name in FFN.activation
    "relu": "relu",
    "relu2": "squared_relu",
    "silu": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class OPTConfig(NamedTuple):
    """What config.json says: sizes (width is d, neurons is n), and which parts the model has."""

    layers: int
    width: int
    neurons: int
    heads: int
    context: int
    vocabulary: int
    activation: str
    biases: bool  # of every linear map
    norm_weights: bool  # scale and shift of every layer norm
    final_norm: bool
    tied: bool  # the output head is the token embedding


def config_from(values: Mapping[str, Any]) -> OPTConfig:
    """The config of an OPT out of a parsed config.json.

    Raises ImageError for a missing or impossible value, DomainError for a variant not supported yet.
    """
    counts = {field: _count(values, key) for field, key in COUNTS.items()}
    width, heads = counts["width"], counts["heads"]
    if width % heads:
        raise ImageError(
            f"config.json has hidden_size {width}, which {heads} attention heads do not divide; correct it"
        )
    projected = values.get("word_embed_proj_dim", width) != width
    if projected or not _flag(values, "do_layer_norm_before", True):
        raise DomainError(
            "config.json has do_layer_norm_before false, or a word_embed_proj_dim that is not hidden_size; "
            "this variant (OPT-350m) is not supported yet, use another size"
        )
    name = needed(values, "activation_function")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise DomainError(
            f"config.json has activation_function {name!r}; use one of {', '.join(ACTIVATIONS)}"
        )
    return OPTConfig(
        **counts,
        activation=ACTIVATIONS[name],
        biases=_flag(values, "enable_bias", True),
        norm_weights=_flag(values, "layer_norm_elementwise_affine", True),
        final_norm=not _flag(values, "_remove_final_layer_norm", False),
        tied=_flag(values, "tie_word_embeddings", True),
    )


def needed(values: Mapping[str, Any], key: str) -> Any:
    """The value of a key that config.json must have. Raises ImageError."""
    if key not in values:
        raise ImageError(f"config.json lacks {key}; save the model again with transformers' save_pretrained")
    return values[key]


def ffn_matrices(layer: int) -> dict[str, str]:
    """The tensors that are read from flash: field of the FFN to name. `down` is stored as (d, n)."""
    return {"up": f"{PREFIX}.layers.{layer}.fc1.weight", "down": f"{PREFIX}.layers.{layer}.fc2.weight"}


def ffn_biases(config: OPTConfig, layer: int) -> dict[str, str]:
    """The FFN's resident tensors: field of the FFN to name; none without biases."""
    names = {"up_bias": f"{PREFIX}.layers.{layer}.fc1.bias", "down_bias": f"{PREFIX}.layers.{layer}.fc2.bias"}
    return names if config.biases else {}


def tensor_shapes(config: OPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model needs, the FFN matrices included."""
    d, n = config.width, config.neurons
    yield f"{PREFIX}.embed_tokens.weight", (config.vocabulary, d)
    yield f"{PREFIX}.embed_positions.weight", (config.context + POSITION_OFFSET, d)
    if not config.tied:
        yield "lm_head.weight", (config.vocabulary, d)
    if config.final_norm and config.norm_weights:
        yield from _with_bias(f"{PREFIX}.final_layer_norm", (d,), True)
    for layer in range(config.layers):
        block = f"{PREFIX}.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _with_bias(f"{block}.self_attn.{name}", (d, d), config.biases)
        yield from _with_bias(f"{block}.fc1", (n, d), config.biases)
        yield from _with_bias(f"{block}.fc2", (d, n), config.biases)
        if config.norm_weights:
            yield from _with_bias(f"{block}.self_attn_layer_norm", (d,), True)
            yield from _with_bias(f"{block}.final_layer_norm", (d,), True)


def _with_bias(name: str, shape: tuple[int, ...], bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A weight, and its bias: one number an output."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _count(values: Mapping[str, Any], key: str) -> int:
    value = needed(values, key)
    if type(value) is not int or value < 1:
        raise ImageError(f"config.json has {key} {value!r}; it must be a positive integer")
    return value


def _flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ImageError(f"config.json has {key} {value!r}; it must be true or false")
    return value
