"""The sizes of decoders that flashref does not run, from the config.json of many families of models.

The facts come from the families' configuration classes in Hugging Face transformers, and
test_shapes_parity.py counts the parameters of these models. A key that is left out has its default there;
sizes must be given.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flashref.models.config_values import Values, count, flag, text
from flashref.types import ImageError


class DecoderSizes(NamedTuple):
    """A decoder-only transformer by the sizes of its parts.

    layers, width, neurons, vocabulary: the number of layers, d, n, and the number of tokens in the
        vocabulary.
    query, key_value: outputs of these projections, heads × head size.
    activation, gated, tied: as config.json names it; whether the FFN has a gate; whether the head is the
        embedding.
    positions: how many learned positions there are.
    norms, final_norms: how many norms a layer has, and how many there are outside the layers.
    head_norm: values of a layer's norms of queries and keys.
    norm_bias, query_bias, out_bias, ffn_bias, head_bias: whether these parts have biases.
    """

    layers: int
    width: int
    neurons: int
    vocabulary: int
    query: int
    key_value: int
    activation: str
    gated: bool
    tied: bool
    positions: int = 0
    norms: int = 2
    head_norm: int = 0
    final_norms: int = 1
    norm_bias: bool = False
    query_bias: bool = False  # for queries, keys and values
    out_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False  # for the output head

    @property
    def resident_weights(self) -> int:
        """The number of values in embeddings, attention, norms and output head, without biases."""
        d = self.width
        attention = d * (self.query + 2 * self.key_value) + self.query * d
        layer = attention + self.norms * d + self.head_norm
        ends = (self.vocabulary * (1 if self.tied else 2) + self.positions + self.final_norms) * d
        return ends + self.layers * layer

    @property
    def parameters(self) -> int:
        """The number of values in the whole model."""
        d, matrices = self.width, 3 if self.gated else 2
        biases = self.query_bias * (self.query + 2 * self.key_value) + self.out_bias * d
        biases += self.ffn_bias * ((matrices - 1) * self.neurons + d) + self.norm_bias * self.norms * d
        ends = self.norm_bias * self.final_norms * d + self.head_bias * self.vocabulary
        return self.resident_weights + self.layers * (matrices * d * self.neurons + biases) + ends


def decoder_of_config(values: Values) -> tuple[DecoderSizes, str]:
    """Read the sizes of the decoder that a config.json describes.

    Args:
        values: the parsed config.json.

    Returns:
        The sizes, and a note, which is empty for a family that is known.

    Raises:
        ImageError: a key is missing or impossible.
    """
    family = values.get("model_type")
    if isinstance(family, str) and family in DECODERS:
        return DECODERS[family](values), ""
    return _unknown(values), f"the family {family!r} is unknown, and counted as if it were built like Llama"


def _qwen2(values: Values) -> DecoderSizes:
    return _gated(values)._replace(query_bias=True)


def _qwen3(values: Values) -> DecoderSizes:
    head = count(values, "head_dim", default=128)
    biases = flag(values, "attention_bias", False)
    decoder = _gated({**values, "head_dim": head})
    return decoder._replace(head_norm=2 * head, query_bias=biases, out_bias=biases)


def _gemma(values: Values) -> DecoderSizes:
    head = count(values, "head_dim", default=256)
    biases = flag(values, "attention_bias", False)
    decoder = _gated({"tie_word_embeddings": True, **values, "head_dim": head})
    activation = _activation(values, default="gelu_pytorch_tanh")
    return decoder._replace(activation=activation, query_bias=biases, out_bias=biases)


def _gemma2(values: Values) -> DecoderSizes:
    return _gemma(values)._replace(norms=4)


def _gpt2(values: Values) -> DecoderSizes:
    return _plain(
        values,
        **_ALL_BIASES,
        neurons=count(values, "n_inner", default=4 * _width(values)),
        positions=count(values, "n_positions"),
        activation=text(values, "activation_function", "gelu_new"),
        tied=flag(values, "tie_word_embeddings", True),
    )


def _gpt_neox(values: Values) -> DecoderSizes:
    biases = flag(values, "attention_bias", True)
    return _plain(values, norm_bias=True, ffn_bias=True, query_bias=biases, out_bias=biases)


def _gptj(values: Values) -> DecoderSizes:
    return _plain(
        values,
        neurons=count(values, "n_inner", default=4 * _width(values)),
        activation=text(values, "activation_function", "gelu_new"),
        norms=1,
        norm_bias=True,
        ffn_bias=True,
        head_bias=True,
    )


def _bloom(values: Values) -> DecoderSizes:
    tied = flag(values, "tie_word_embeddings", True)
    # The second norm outside of the layers follows the embedding.
    return _plain(
        values, **_ALL_BIASES, neurons=4 * _width(values), activation="gelu_tanh", tied=tied, final_norms=2
    )


def _mpt(values: Values) -> DecoderSizes:
    neurons = count(values, "expansion_ratio", default=4) * _width(values)
    tied = flag(values, "tie_word_embeddings", True)
    return _plain(values, neurons=neurons, activation="gelu", tied=tied)


def _stablelm(values: Values) -> DecoderSizes:
    decoder = _gated(values)
    head_norm = (decoder.query + decoder.key_value) * flag(values, "qk_layernorm", False)
    return decoder._replace(
        norms=1 if flag(values, "use_parallel_residual", False) else 2,
        norm_bias=True,
        head_norm=head_norm,
        query_bias=flag(values, "use_qkv_bias", False),
    )


def _starcoder2(values: Values) -> DecoderSizes:
    biases = flag(values, "use_bias", True)
    return _plain(
        values,
        key_value=_key_heads(values) * _head(values),
        activation=_activation(values, default="gelu_pytorch_tanh"),
        tied=flag(values, "tie_word_embeddings", True),
        norm_bias=True,
        query_bias=biases,
        out_bias=biases,
        ffn_bias=biases,
    )


def _unknown(values: Values) -> DecoderSizes:
    """The sizes from the keys that most families share, all of which must be there."""
    for key in COMMON:
        if key not in values:
            raise ImageError(
                f"config.json has the unknown model_type {values.get('model_type')!r} and lacks {key}; "
                f"give one with {', '.join(COMMON)}"
            )
    decoder = _gated(values)
    # Today's models with ReLU or its square have no gate, and all others have one.
    return decoder._replace(gated=decoder.activation not in ("relu", "relu2"))


COMMON = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
    "hidden_act",
)
# By model_type, beside the five families that flashref runs.
DECODERS: Mapping[str, Callable[[Values], DecoderSizes]] = {
    "mistral": lambda values: _gated(values),
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "bloom": _bloom,
    "mpt": _mpt,
    "phi3": lambda values: _gated(values),
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
_ALL_BIASES = {"norm_bias": True, "query_bias": True, "out_bias": True, "ffn_bias": True}


def _plain(values: Values, **parts: Any) -> DecoderSizes:
    """A decoder without a gate whose heads have their own keys and values, unless `parts` differs."""
    width = _width(values)
    if values.get("head_dim") is None and width % _heads(values):
        raise ImageError(
            f"config.json has the hidden size {width}, which {_heads(values)} attention heads do not divide; "
            "correct the file"
        )
    common = {
        "layers": count(values, "num_hidden_layers", "n_layer", "n_layers"),
        "width": width,
        "vocabulary": count(values, "vocab_size"),
        "query": width,
        "key_value": width,
        "gated": False,
    }
    if "neurons" not in parts:
        parts["neurons"] = count(values, "intermediate_size")
    if "activation" not in parts:
        parts["activation"] = _activation(values, default="silu" if parts.get("gated") else "gelu")
    if "tied" not in parts:
        parts["tied"] = flag(values, "tie_word_embeddings", False)
    return DecoderSizes(**{**common, **parts})


def _gated(values: Values) -> DecoderSizes:
    """A decoder that is built like Llama: with a gate, without biases, with shared keys and values."""
    head = _head(values)
    return _plain(values, gated=True, query=_heads(values) * head, key_value=_key_heads(values) * head)


def _width(values: Values) -> int:
    return count(values, "hidden_size", "n_embd", "n_embed", "d_model")


def _head(values: Values) -> int:
    """The size of a head."""
    return count(values, "head_dim", default=_width(values) // _heads(values))


def _heads(values: Values) -> int:
    return count(values, "num_attention_heads", "n_head", "n_heads")


def _key_heads(values: Values) -> int:
    return count(values, "num_key_value_heads", default=_heads(values))


def _activation(values: Values, default: str) -> str:
    # The configs of Gemma have both keys, and hidden_act is outdated.
    key = "hidden_act" if values.get("hidden_activation") is None else "hidden_activation"
    return text(values, key, default)
