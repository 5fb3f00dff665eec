"""Falcon (paper §4.1, which uses a 7B made sparse with ReLU).

In 7B and 40B attention and FFN stand side by side, in RW one after the other. One fused map gives queries,
keys and values. 7B has one key head for all query heads, 40B (the new decoder) several, and RW one for each;
RW has ALiBi instead of rotary positions.
"""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.models.config_values import Values, activation, count, flag, positive
from flashref.models.family import Config, Ends, Family, divided, linear, norm, plain_ends, plain_ffn
from flashref.models.parts import (
    Heads,
    Linear,
    Norm,
    Position,
    Rotary,
    apply,
    layer_norm,
    rotate,
    split_fused,
)
from flashref.models.rotary import whole_rotary_from
from flashref.types import FFN, Array, DomainError

TOP = "transformer"  # the beginning of all names of tensors, except the output head's


class FalconConfig(NamedTuple):
    """What only a Falcon's config.json has; rotary is None where the model has ALiBi."""

    epsilon: float
    rotary: Rotary | None
    parallel: bool  # attention and FFN side by side
    two_norms: bool  # one before attention and one before the FFN
    biases: bool  # of every linear map


class Block(NamedTuple):
    """The resident part of one layer; ffn_norm is None where attention and FFN share one norm."""

    attention_norm: Norm
    attention: Linear
    out: Linear
    ffn_norm: Norm | None


def config_from(values: Values) -> Config:
    """Read the config of a Falcon from a parsed config.json; ImageError or DomainError if it is none."""
    width, heads = count(values, "hidden_size", "n_embed"), count(values, "num_attention_heads")
    head_size = divided("hidden_size", width, "num_attention_heads", heads)
    new_decoder = flag(values, "new_decoder_architecture", False)
    parallel = flag(values, "parallel_attn", True)
    most = 2 if new_decoder else 1
    norms = count(values, "num_ln_in_parallel_attn", default=most)
    if (parallel and norms > most) or (new_decoder and not parallel):
        raise DomainError(
            f"config.json has new_decoder_architecture {new_decoder}, parallel_attn {parallel} and "
            f"num_ln_in_parallel_attn {norms}, which no Falcon has; correct it"
        )
    context = count(values, "max_position_embeddings", default=2048)  # older files have no such key
    key_heads = 1 if flag(values, "multi_query", True) else heads
    if new_decoder:
        key_heads = count(values, "num_kv_heads", default=heads)
        divided("num_attention_heads", heads, "num_kv_heads", key_heads)
    name, tau = activation(values, "activation", "gelu")
    return Config(
        family="falcon",
        layers=count(values, "num_hidden_layers"),
        width=width,
        neurons=count(values, "ffn_hidden_size", default=4 * width),
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        context=context,
        vocabulary=count(values, "vocab_size"),
        activation=name,
        tau=tau,
        tied=flag(values, "tie_word_embeddings", True),
        family_config=FalconConfig(
            epsilon=positive(values, "layer_norm_epsilon", 1e-5),
            rotary=None if flag(values, "alibi", False) else whole_rotary_from(values, head_size, context),
            parallel=parallel,
            two_norms=new_decoder and norms == 2,
            biases=flag(values, "bias", False),
        ),
    )


def ends(config: Config) -> Ends:
    """Name the embeddings, the last norm and the output head."""
    return plain_ends(config, f"{TOP}.word_embeddings.weight", norm(f"{TOP}.ln_f", config.width))


def block(config: Config, layer: int) -> Block:
    """Name the tensors of a layer, without its FFN."""
    d, name = config.width, f"{TOP}.h.{layer}"
    values = (config.heads + 2 * config.key_heads) * config.head_size
    attention_norm, ffn_norm = f"{name}.input_layernorm", None
    if config.family_config.two_norms:
        attention_norm, ffn_norm = f"{name}.ln_attn", f"{name}.ln_mlp"
    elif not config.family_config.parallel:
        ffn_norm = f"{name}.post_attention_layernorm"
    return Block(
        attention_norm=norm(attention_norm, d),
        attention=linear(f"{name}.self_attention.query_key_value", values, d, config.family_config.biases),
        out=linear(f"{name}.self_attention.dense", d, d, config.family_config.biases),
        ffn_norm=None if ffn_norm is None else norm(ffn_norm, d),
    )


def ffn(config: Config, layer: int) -> FFN:
    """Name the tensors of a layer's FFN."""
    name = f"{TOP}.h.{layer}.mlp"
    return plain_ffn(config, f"{name}.dense_h_to_4h", f"{name}.dense_4h_to_h", config.family_config.biases)


def compute(config: Config, block: Block, x: Array, position: Position) -> Array:
    """Compute x, (…, d), after the block."""
    normed = layer_norm(x, block.attention_norm, config.family_config.epsilon)
    heads = split_fused(apply(block.attention, normed), config.key_heads, config.head_size)
    if config.family_config.rotary is None:
        mixed = position.attend(heads, partial(alibi, config.heads, config.head_size))
    else:
        query, key = (
            rotate(part, position.positions, config.family_config.rotary) for part in (heads.query, heads.key)
        )
        mixed = position.attend(Heads(query, key, heads.value), None)
    after = x + apply(block.out, mixed)
    if block.ffn_norm is not None:
        normed = layer_norm(
            x if config.family_config.parallel else after, block.ffn_norm, config.family_config.epsilon
        )
    return after + position.feed_forward(normed)


def final_norm(config: Config, norm: Norm, x: Array) -> Array:
    """Apply the last norm."""
    return layer_norm(x, norm, config.family_config.epsilon)


def alibi(heads: int, size: int, keys: int) -> npt.NDArray[np.float64]:
    """Compute ALiBi, divided by √size: what is added to a head's scores for the position of each key.

    With 2^m heads, the slope of head i (from 1) is 2^(−8 i / 2^m). Heads beyond a power of two take every
    second slope of twice as many heads.

    Returns:
        (heads, keys) float64; slopes, positions and their products are rounded to BF16, as transformers does.
    """
    even = 2 ** int(math.log2(heads))
    exponents = [8 * (i + 1) / even for i in range(even)]
    exponents += [4 * (2 * i + 1) / even for i in range(heads - even)]
    slopes = _bfloat16(2.0 ** -np.array(exponents))
    biases = _bfloat16(slopes[:, None] * _bfloat16(np.arange(keys, dtype=np.float64)))
    return biases / math.sqrt(size)


def _bfloat16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to the nearest BF16 values, ties to even, by way of float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)


FALCON = Family(config_from, ends, block, ffn, compute, final_norm)
