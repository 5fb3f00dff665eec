"""Persimmon (paper, appendix): squared ReLU, norms of queries and keys, and a part of each head is turned."""

from typing import NamedTuple

from flashref.models.config_values import Values, flag, positive
from flashref.models.family import (
    Config,
    Ends,
    Family,
    linear,
    norm,
    plain_ends,
    plain_ffn,
    usual_config,
    with_even_heads,
)
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
from flashref.models.rotary import rotary_from
from flashref.types import FFN, Array


class PersimmonConfig(NamedTuple):
    """What only a Persimmon's config.json has."""

    epsilon: float
    rotary: Rotary
    head_norms: bool  # of queries and keys


class Block(NamedTuple):
    """The resident part of one layer; `attention` gives query, key and value of one head after the other."""

    attention_norm: Norm
    attention: Linear
    out: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    ffn_norm: Norm


def config_from(values: Values) -> Config:
    """Read the config of a Persimmon from a parsed config.json; ImageError or DomainError if it is none."""
    config = usual_config("persimmon", {**values, "num_key_value_heads": None})  # it has no groups
    config = with_even_heads(config, values)
    return config._replace(
        family_config=PersimmonConfig(
            epsilon=positive(values, "layer_norm_eps", 1e-5),
            rotary=rotary_from(values, config.head_size, config.context, 0.5),
            head_norms=flag(values, "qk_layernorm", True),
        )
    )


def ends(config: Config) -> Ends:
    """Name the embeddings, the last norm and the output head."""
    return plain_ends(config, "model.embed_tokens.weight", norm("model.final_layernorm", config.width))


def block(config: Config, layer: int) -> Block:
    """Name the tensors of a layer, without its FFN."""
    d, name = config.width, f"model.layers.{layer}"
    query_norm, key_norm = (
        norm(f"{name}.self_attn.{which}_layernorm", config.head_size)
        if config.family_config.head_norms
        else None
        for which in ("q", "k")
    )
    return Block(
        attention_norm=norm(f"{name}.input_layernorm", d),
        attention=linear(f"{name}.self_attn.query_key_value", 3 * d, d, True),
        out=linear(f"{name}.self_attn.dense", d, d, True),
        query_norm=query_norm,
        key_norm=key_norm,
        ffn_norm=norm(f"{name}.post_attention_layernorm", d),
    )


def ffn(config: Config, layer: int) -> FFN:
    """Name the tensors of a layer's FFN."""
    name = f"model.layers.{layer}.mlp"
    return plain_ffn(config, f"{name}.dense_h_to_4h", f"{name}.dense_4h_to_h", True)


def compute(config: Config, block: Block, x: Array, position: Position) -> Array:
    """Compute x, (…, d), after the block."""

    def turned(of_heads: Array, norm: Norm | None) -> Array:
        if norm is not None:
            of_heads = layer_norm(of_heads, norm, config.family_config.epsilon)
        return rotate(of_heads, position.positions, config.family_config.rotary)

    fused = apply(block.attention, layer_norm(x, block.attention_norm, config.family_config.epsilon))
    query, key, value = split_fused(fused, config.key_heads, config.head_size)
    heads = Heads(turned(query, block.query_norm), turned(key, block.key_norm), value)
    x = x + apply(block.out, position.attend(heads, None))
    return x + position.feed_forward(layer_norm(x, block.ffn_norm, config.family_config.epsilon))


def final_norm(config: Config, norm: Norm, x: Array) -> Array:
    """Apply the last norm."""
    return layer_norm(x, norm, config.family_config.epsilon)


PERSIMMON = Family(config_from, ends, block, ffn, compute, final_norm)
