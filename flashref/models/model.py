"""A model of any family in NumPy: one token at a time, a KV cache, and the FFN passed in as a function.

The arithmetic is that of transformers' …ForCausalLM; each family's block is in flashref.models.families.
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

HEAD_ROWS = 1 << 12  # of an output head that is not widened beforehand, at a time


class Model(NamedTuple):
    """Everything but the FFN matrices. blocks: of the family's own kind; ffns: biases, as they are stored."""

    config: Config
    ends: Ends
    blocks: tuple[Any, ...]
    ffns: tuple[ResidentFFN, ...]


class Cache(NamedTuple):
    """Keys and values of the first `length` tokens, (layers, key heads, context, size) each.

    A held resource, as a DRAM matrix is: the arrays are shared by every Cache of one text, and `forward`
    writes row `length` in place. A cache that was passed on is spent; `filled` (1,) is how that is noticed.
    """

    keys: Array
    values: Array
    length: int
    filled: npt.NDArray[np.int64]


def load_model(config: Config, load: Load, dtype: npt.DTypeLike | None = np.float32) -> Model:
    """The model without its FFN matrices; `load` gives a tensor by name, from a checkpoint or an image.

    dtype: what weights are widened to once, exactly: float32, or float64 to judge it by; None leaves them as
    they are stored, in less memory, to be widened whenever they are used.
    """
    family = FAMILIES[config.family]

    def loaded(leaf: Any) -> Array:
        stored = load(leaf.name)
        return stored if dtype is None else widen(stored).astype(dtype, copy=False)

    known: dict[str, Array] = {}

    def once(leaf: Any) -> Array:  # a tied head is the very array of the embeddings
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
    """The cache before the first token, with room for so many, by default for the whole context."""
    config = model.config
    room = config.context if tokens is None else min(tokens, config.context)
    shape = (config.layers, config.key_heads, room, config.head_size)
    dtype = np.float64 if model.ends.tokens.dtype == np.float64 else np.float32
    return Cache(np.zeros(shape, dtype), np.zeros(shape, dtype), 0, np.zeros(1, np.int64))


def forward(model: Model, cache: Cache, token_id: int, feed_forward: FeedForward) -> tuple[Array, Cache]:
    """One token through the model: the logits of the next one (vocabulary,), and the cache with this one.

    feed_forward gets the very vector that the up projection receives (decision 5), a new array each time, in
    the arithmetic's dtype. The cache that was passed is spent, unless this raises: then the token may be
    tried again. Raises DomainError for an id outside the vocabulary, a full cache, or a spent one.
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
    """`forward` with a cache of its own, empty at first: token id to logits, for `generate`.

    tokens: how many may come; by default a whole context.
    """
    cache = empty_cache(model, tokens)

    def forward_one(token_id: int) -> Array:
        nonlocal cache
        logits, cache = forward(model, cache, token_id, feed_forward)
        return logits

    return forward_one


def embed(model: Model, token_ids: Any, positions: Any) -> Any:
    """What the first block receives, (…, d). token_ids, positions: int, or (…) of them."""
    tokens, _, _, rows, project_in, _ = model.ends
    x = _wide(tokens[token_ids])
    if project_in is not None:
        x = apply(fill(project_in, _wide), x)
    return x if rows is None else x + _wide(rows[positions + POSITION_OFFSET])


def last_hidden(model: Model, x: Any) -> Any:
    """What the output head receives, (…, embedded), of what the last block gave (…, d)."""
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
    """Causal attention of the newest token to itself and every earlier one; writes its row of the cache."""
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
    """A layer's biases as they are stored, without a gate."""
    ffn = FAMILIES[config.family].ffn(config, layer)
    biases = (ffn.up_bias, ffn.gate_bias, ffn.down_bias)
    up_bias, gate_bias, down_bias = fill(biases, lambda leaf: load(leaf.name))
    return ResidentFFN(config.activation, None, up_bias, gate_bias, down_bias, config.tau)


def _wide(stored: Any) -> Any:
    """Weights in the arithmetic's dtype; those that are already are not copied."""
    return stored if stored.dtype in (np.float32, np.float64) else widen(stored)
