"""OPT in NumPy: one token at a time, a KV cache, and the FFN passed in as a function.

The first model of the paper (§4.1). The arithmetic is that of transformers' OPTForCausalLM: pre-norm,
learned positions that begin at row 2, a head tied to the embeddings unless the config says otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.transformer.opt_config import POSITION_OFFSET, PREFIX, OPTConfig, ffn_biases
from flashref.types import Array, DomainError, ShapeError, widen

Load = Callable[[str], Array]  # a tensor's name to its values in the stored dtype
FeedForward = Callable[[int, Array], Array]  # (layer, what fc1 receives (d,)) to the FFN's output (d,)

NORM_EPSILON = 1e-5  # torch's default; OPT's config.json has no key for it


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
        name = f"{PREFIX}.layers.{layer}"
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

    tokens = widened(f"{PREFIX}.embed_tokens.weight")
    return Model(
        config=config,
        tokens=tokens,
        positions=widened(f"{PREFIX}.embed_positions.weight"),
        blocks=tuple(block(layer) for layer in range(config.layers)),
        final_norm=norm(f"{PREFIX}.final_layer_norm") if config.final_norm else None,
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
