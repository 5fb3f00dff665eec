"""A model of any family in NumPy: one token at a time, with a KV cache and the FFN given as a function.

The arithmetic is that of transformers' …ForCausalLM; the block of each family is in flashref.models.families.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.decode import ResidentFFN
from flashref.models.families import FAMILIES
from flashref.models.families.opt import POSITION_OFFSET
from flashref.models.family import Config, Ends, fill
from flashref.models.parts import Bias, Heads, Position, apply
from flashref.types import Array, DomainError, ShapeError, widen

Load = Callable[[str], Array]  # a tensor's name to its values in the stored dtype
FeedForward = Callable[[int, Array], Array]  # (layer, what the up projection receives (d,)) to (d,)

HEAD_ROWS = 1 << 12  # rows of an output head that are widened at a time, where it is kept as stored


class Model(NamedTuple):
    """A model without its FFN matrices.

    Attributes:
        config: what its config.json says.
        ends: the tensors before the first block and after the last.
        blocks: the block of each layer, a tuple of the family's own.
        ffns: what of each layer's FFN is in memory: the biases, as they are stored.
    """

    config: Config
    ends: Ends
    blocks: tuple[Any, ...]
    ffns: tuple[ResidentFFN, ...]


class Cache(NamedTuple):
    """The KV cache of one text.

    All caches of a text share their arrays, in which `forward` writes; so a cache that was given to `forward`
    is spent, and only the one that it returned may be used.

    Attributes:
        keys, values: (layers, key heads, context, head size); the first `length` tokens count.
        length: the number of tokens.
        filled: (1,), the number of tokens in the arrays, by which a spent cache is noticed.
    """

    keys: Array
    values: Array
    length: int
    filled: npt.NDArray[np.int64]


def load_model(config: Config, load: Load, dtype: npt.DTypeLike | None = np.float32) -> Model:
    """Load a model without its FFN matrices.

    Args:
        config: the model's config.
        load: returns a tensor by its name, from a checkpoint or from an image.
        dtype: float32 or float64, to which weights are widened once, exactly; None keeps them as they are
            stored, in less memory, and they are widened whenever they are used.
    """
    family = FAMILIES[config.family]

    def loaded(leaf: Any) -> Array:
        stored = load(leaf.name)
        return stored if dtype is None else widen(stored).astype(dtype, copy=False)

    known: dict[str, Array] = {}

    def once(leaf: Any) -> Array:  # a tied head is the same array as the embeddings
        if leaf.name not in known:
            known[leaf.name] = loaded(leaf)
        return known[leaf.name]

    return Model(
        config=config,
        ends=fill(family.ends(config), once),
        blocks=tuple(fill(family.block(config, layer), loaded) for layer in range(config.layers)),
        ffns=tuple(_resident_ffn(config, layer, load) for layer in range(config.layers)),
    )


def empty_cache(model: Model, tokens: int | None = None) -> Cache:
    """Make the cache before the first token.

    Args:
        model: the model.
        tokens: the number of tokens for which it has room; None: the whole context.
    """
    config = model.config
    room = config.context if tokens is None else min(tokens, config.context)
    shape = (config.layers, config.key_heads, room, config.head_size)
    dtype = np.float64 if model.ends.tokens.dtype == np.float64 else np.float32
    return Cache(np.zeros(shape, dtype), np.zeros(shape, dtype), 0, np.zeros(1, np.int64))


def forward(model: Model, cache: Cache, token_id: int, feed_forward: FeedForward) -> tuple[Array, Cache]:
    """Pass one token through the model.

    Args:
        model: the model.
        cache: the cache with all earlier tokens; it is spent afterwards, unless this raises.
        token_id: the id of the token.
        feed_forward: the FFN: from a layer and what its up projection receives (decision 5 says that the
            predictor sees the same vector), a new (d,) array, to (d,) in the same dtype.

    Returns:
        The logits of the next token, (vocabulary,), and the cache with this token.

    Raises:
        DomainError: the id is outside the vocabulary, or the cache is full or spent.
        ShapeError: the FFN returned another shape or dtype.
    """
    config, position, room = model.config, cache.length, cache.keys.shape[2]
    if not 0 <= token_id < config.vocabulary:
        raise DomainError(f"token id {token_id} is outside the vocabulary 0 … {config.vocabulary - 1}")
    if position >= room:
        raise DomainError(
            f"the cache is full: it has room for {room} tokens of a context of {config.context}; "
            "begin again with an empty one"
        )
    if position != cache.filled[0]:
        raise DomainError("this cache was passed on already; use the one that forward returned")

    family = FAMILIES[config.family]

    def checked_ffn(layer: int, x: Array) -> Array:
        y = feed_forward(layer, x)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ShapeError(f"the FFN must give {x.dtype} of shape {x.shape}, not {y.dtype} of {y.shape}")
        return y

    x = embed(model, token_id, position)
    for layer, block in enumerate(model.blocks):
        attend, feed = partial(_attend, cache, layer), partial(checked_ffn, layer)
        x = family.compute(config, fill(block, _wide), x, Position(np.array(position), attend, feed))
    cache.filled[0] = position + 1
    return _logits(model, x), cache._replace(length=position + 1)


def one_at_a_time(
    model: Model, feed_forward: FeedForward, tokens: int | None = None
) -> Callable[[int], Array]:
    """Make a function from a token id to logits, for `generate`; it holds a cache, which is empty at first.

    Args:
        model: the model.
        feed_forward: the FFN, as in `forward`.
        tokens: the number of tokens that may come; None: the whole context.
    """
    cache = empty_cache(model, tokens)

    def forward_one(token_id: int) -> Array:
        nonlocal cache
        logits, cache = forward(model, cache, token_id, feed_forward)
        return logits

    return forward_one


def embed(model: Model, token_ids: Any, positions: Any) -> Any:
    """Compute what the first block receives.

    Args:
        model: the model; only its ends are used.
        token_ids, positions: an int, or an array (…) of ints.

    Returns:
        (…, d).
    """
    tokens, _, _, rows, project_in, _ = model.ends
    x = _wide(tokens[token_ids])
    if project_in is not None:
        x = apply(fill(project_in, _wide), x)
    return x if rows is None else x + _wide(rows[positions + POSITION_OFFSET])


def last_hidden(model: Model, x: Any) -> Any:
    """Compute what the output head receives, (…, embedded), from the output of the last block, (…, d)."""
    ends = model.ends
    if ends.norm is not None:
        x = FAMILIES[model.config.family].final_norm(model.config, fill(ends.norm, _wide), x)
    return x if ends.project_out is None else apply(fill(ends.project_out, _wide), x)


def _logits(model: Model, x: Array) -> Array:
    head, x = model.ends.head, last_hidden(model, x)
    if head.weight.dtype == x.dtype:
        return apply(head, x)
    pieces = [head.weight[i : i + HEAD_ROWS] for i in range(0, len(head.weight), HEAD_ROWS)]
    logits = np.concatenate([_wide(piece) @ x for piece in pieces])
    return logits if head.bias is None else logits + _wide(head.bias)


def _attend(cache: Cache, layer: int, heads: Heads, bias: Bias | None) -> Array:
    """Let the newest token attend to itself and to every earlier one; its row of the cache is written."""
    key_heads, _, size = cache.keys[layer].shape
    known = cache.length + 1
    cache.keys[layer, :, cache.length] = heads.key
    cache.values[layer, :, cache.length] = heads.value
    query = heads.query.reshape(key_heads, -1, size) * size**-0.5  # (key heads, group, size)
    scores = query @ cache.keys[layer, :, :known].transpose(0, 2, 1)  # (key heads, group, known)
    if bias is not None:
        scores = scores + bias(known).reshape(scores.shape).astype(scores.dtype)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return np.asarray((weights @ cache.values[layer, :, :known]).reshape(-1))


def _resident_ffn(config: Config, layer: int, load: Load) -> ResidentFFN:
    """Load the biases of a layer as they are stored, without a gate."""
    ffn = FAMILIES[config.family].ffn(config, layer)
    biases = (ffn.up_bias, ffn.gate_bias, ffn.down_bias)
    up_bias, gate_bias, down_bias = fill(biases, lambda leaf: load(leaf.name))
    return ResidentFFN(config.activation, None, up_bias, gate_bias, down_bias, config.tau)


def _wide(stored: Any) -> Any:
    """Widen weights to float32; float32 and float64 are returned as they are."""
    return stored if stored.dtype in (np.float32, np.float64) else widen(stored)
