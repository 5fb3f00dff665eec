"""OPT in NumPy: one token at a time, a KV cache, and the FFN passed in as a function.

The first model of the paper (§4.1). The arithmetic is that of transformers' OPTForCausalLM: pre-norm,
learned positions that begin at row 2, a head tied to the embeddings unless the config says otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.types import Array, DomainError, ImageError, ShapeError, widen

Load = Callable[[str], Array]  # a tensor's name to its values in the stored dtype
FeedForward = Callable[[int, Array], Array]  # (layer, what fc1 receives (d,)) to the FFN's output (d,)

TOP = "model.decoder"
POSITION_OFFSET = 2  # rows 0 and 1 of embed_positions were for padding and are never used
NORM_EPSILON = 1e-5  # torch's default; OPT's config.json has no key for it

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


class Linear(NamedTuple):
    """A linear map: weight (outputs, inputs), bias (outputs,) or None."""

    weight: Array
    bias: Array | None


class Norm(NamedTuple):
    """A layer norm's scale and shift, (d,) each, or None and None."""

    scale: Array | None
    shift: Array | None


class Block(NamedTuple):
    """The resident part of one layer. The FFN's biases, (n,) and (d,) or None, are as stored."""

    attention_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    ffn_norm: Norm
    up_bias: Array | None
    down_bias: Array | None


class Model(NamedTuple):
    """Everything but the FFN matrices. tokens, head: (vocabulary, d); positions: (context + 2, d)."""

    config: OPTConfig
    tokens: Array
    positions: Array
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    head: Array


class Cache(NamedTuple):
    """Keys and values of the first `length` tokens, (layers, heads, context, d / heads) each.

    A held resource, as a DRAM matrix is: the arrays are shared by every Cache of one text, and `forward`
    writes row `length` in place. A cache that was passed on is spent; `filled` (1,) is how that is noticed.
    """

    keys: Array
    values: Array
    length: int
    filled: npt.NDArray[np.int64]


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


def ffn_matrices(layer: int) -> dict[str, str]:
    """The tensors that are read from flash: field of the FFN to name. `down` is stored as (d, n)."""
    return {"up": f"{TOP}.layers.{layer}.fc1.weight", "down": f"{TOP}.layers.{layer}.fc2.weight"}


def ffn_biases(config: OPTConfig, layer: int) -> dict[str, str]:
    """The FFN's resident tensors: field of the FFN to name; none without biases."""
    names = {"up_bias": f"{TOP}.layers.{layer}.fc1.bias", "down_bias": f"{TOP}.layers.{layer}.fc2.bias"}
    return names if config.biases else {}


def tensor_shapes(config: OPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model needs, the FFN matrices included."""
    d, n = config.width, config.neurons
    yield f"{TOP}.embed_tokens.weight", (config.vocabulary, d)
    yield f"{TOP}.embed_positions.weight", (config.context + POSITION_OFFSET, d)
    if not config.tied:
        yield "lm_head.weight", (config.vocabulary, d)
    if config.final_norm and config.norm_weights:
        yield from _with_bias(f"{TOP}.final_layer_norm", (d,), True)
    for layer in range(config.layers):
        block = f"{TOP}.layers.{layer}"
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


def load_model(config: OPTConfig, load: Load, dtype: npt.DTypeLike = np.float32) -> Model:
    """The model without its FFN matrices; `load` gives a tensor by name, from a checkpoint or an image.

    dtype: of the arithmetic, float32, or float64 to judge it by; weights are widened exactly.
    """

    def widened(name: str) -> Array:
        return widen(load(name)).astype(dtype)

    def linear(name: str) -> Linear:
        return Linear(widened(f"{name}.weight"), widened(f"{name}.bias") if config.biases else None)

    def norm(name: str) -> Norm:
        if not config.norm_weights:
            return Norm(None, None)
        return Norm(widened(f"{name}.weight"), widened(f"{name}.bias"))

    def block(layer: int) -> Block:
        name = f"{TOP}.layers.{layer}"
        biases = {field: load(tensor) for field, tensor in ffn_biases(config, layer).items()}
        return Block(
            attention_norm=norm(f"{name}.self_attn_layer_norm"),
            query=linear(f"{name}.self_attn.q_proj"),
            key=linear(f"{name}.self_attn.k_proj"),
            value=linear(f"{name}.self_attn.v_proj"),
            out=linear(f"{name}.self_attn.out_proj"),
            ffn_norm=norm(f"{name}.final_layer_norm"),
            up_bias=biases.get("up_bias"),
            down_bias=biases.get("down_bias"),
        )

    tokens = widened(f"{TOP}.embed_tokens.weight")
    return Model(
        config=config,
        tokens=tokens,
        positions=widened(f"{TOP}.embed_positions.weight"),
        blocks=tuple(block(layer) for layer in range(config.layers)),
        final_norm=norm(f"{TOP}.final_layer_norm") if config.final_norm else None,
        head=tokens if config.tied else widened("lm_head.weight"),
    )


def empty_cache(model: Model) -> Cache:
    """The cache before the first token. Memory is taken as tokens come, not at once."""
    config = model.config
    shape = (config.layers, config.heads, config.context, config.width // config.heads)
    dtype = model.tokens.dtype
    return Cache(np.zeros(shape, dtype), np.zeros(shape, dtype), 0, np.zeros(1, np.int64))


def forward(model: Model, cache: Cache, token_id: int, feed_forward: FeedForward) -> tuple[Array, Cache]:
    """One token through the model: the logits of the next one (vocabulary,), and the cache with this one.

    feed_forward gets the very vector that fc1 receives (decision 5), a new array each time, in the model's
    dtype. The cache that was passed is spent, unless this raises: then the token may be tried again.
    Raises DomainError for an id outside the vocabulary, a full context, or a spent cache.
    """
    config = model.config
    position = cache.length
    if not 0 <= token_id < config.vocabulary:
        raise DomainError(f"token id {token_id} is outside the vocabulary 0 … {config.vocabulary - 1}")
    if position >= config.context:
        raise DomainError(f"the context of {config.context} tokens is full; begin again with an empty cache")
    if position != cache.filled[0]:
        raise DomainError("this cache was passed on already; use the one that forward returned")

    x = model.tokens[token_id] + model.positions[position + POSITION_OFFSET]  # (d,)
    for layer, block in enumerate(model.blocks):
        x = x + _attention(block, cache, layer, _normalise(x, block.attention_norm))
        y = feed_forward(layer, _normalise(x, block.ffn_norm))
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ShapeError(f"the FFN must give {x.dtype} of shape {x.shape}, not {y.dtype} of {y.shape}")
        x = x + y
    if model.final_norm is not None:
        x = _normalise(x, model.final_norm)
    cache.filled[0] = position + 1
    return model.head @ x, cache._replace(length=position + 1)


def one_at_a_time(model: Model, feed_forward: FeedForward) -> Callable[[int], Array]:
    """`forward` with a cache of its own, empty at first: token id to logits, for `generate`."""
    cache = empty_cache(model)

    def forward_one(token_id: int) -> Array:
        nonlocal cache
        logits, cache = forward(model, cache, token_id, feed_forward)
        return logits

    return forward_one


def _attention(block: Block, cache: Cache, layer: int, x: Array) -> Array:
    """Causal attention of the newest token, x (d,), to itself and every earlier one; writes its row."""
    heads, _, size = cache.keys[layer].shape
    known = cache.length + 1
    cache.keys[layer, :, cache.length] = _apply(block.key, x).reshape(heads, size)
    cache.values[layer, :, cache.length] = _apply(block.value, x).reshape(heads, size)
    query = _apply(block.query, x).reshape(heads, size, 1) * size**-0.5
    scores = cache.keys[layer, :, :known] @ query  # (heads, known, 1)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).reshape(heads, 1, known)
    mixed = weights @ cache.values[layer, :, :known]  # (heads, 1, size)
    return _apply(block.out, mixed.reshape(heads * size))


def _apply(linear: Linear, x: Array) -> Array:
    """The linear map of x: (inputs,) to (outputs,)."""
    y: Array = linear.weight @ x
    return y if linear.bias is None else y + linear.bias


def _normalise(x: Array, norm: Norm) -> Array:
    """Layer norm of x (d,), with the biased variance."""
    centred = x - x.mean()
    y: Array = centred / np.sqrt((centred * centred).mean() + NORM_EPSILON)
    if norm.scale is not None:
        y = y * norm.scale
    return y if norm.shift is None else y + norm.shift
