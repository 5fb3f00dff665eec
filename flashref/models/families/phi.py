"""Phi and Phi-2 (paper, appendix): attention and FFN side by side, and a part of each head is turned."""

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
    split_heads,
)
from flashref.models.rotary import rotary_from
from flashref.types import FFN, Array


class PhiConfig(NamedTuple):
    """What only a Phi's config.json has."""

    epsilon: float
    rotary: Rotary
    head_norms: bool  # of queries and keys


class Block(NamedTuple):
    """The resident part of one layer."""

    norm: Norm
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    query_norm: Norm | None
    key_norm: Norm | None


def config_from(values: Values) -> Config:
    """Read the config of a Phi from a parsed config.json; ImageError or DomainError if it is none."""
    config = with_even_heads(usual_config("phi", values), values)
    return config._replace(
        family_config=PhiConfig(
            epsilon=positive(values, "layer_norm_eps", 1e-5),
            rotary=rotary_from(values, config.head_size, config.context, 0.5),
            head_norms=flag(values, "qk_layernorm", False),
        )
    )


def ends(config: Config) -> Ends:
    """Name the embeddings, the last norm and the output head."""
    return plain_ends(
        config, "model.embed_tokens.weight", norm("model.final_layernorm", config.width), head_bias=True
    )


def block(config: Config, layer: int) -> Block:
    """Name the tensors of a layer, without its FFN."""
    d, keys, name = config.width, config.key_heads * config.head_size, f"model.layers.{layer}"
    attention = f"{name}.self_attn"
    query_norm, key_norm = (
        norm(f"{attention}.{which}_layernorm", config.head_size) if config.family_config.head_norms else None
        for which in ("q", "k")
    )
    return Block(
        norm=norm(f"{name}.input_layernorm", d),
        query=linear(f"{attention}.q_proj", d, d, True),
        key=linear(f"{attention}.k_proj", keys, d, True),
        value=linear(f"{attention}.v_proj", keys, d, True),
        out=linear(f"{attention}.dense", d, d, True),
        query_norm=query_norm,
        key_norm=key_norm,
    )


def ffn(config: Config, layer: int) -> FFN:
    """Name the tensors of a layer's FFN."""
    name = f"model.layers.{layer}.mlp"
    return plain_ffn(config, f"{name}.fc1", f"{name}.fc2", True)


def compute(config: Config, block: Block, x: Array, position: Position) -> Array:
    """Compute x, (…, d), after the block."""
    normed = layer_norm(x, block.norm, config.family_config.epsilon)

    def turned(part: Linear, heads: int, norm: Norm | None) -> Array:
        of_heads = split_heads(apply(part, normed), heads)
        if norm is not None:
            of_heads = layer_norm(of_heads, norm, config.family_config.epsilon)
        return rotate(of_heads, position.positions, config.family_config.rotary)

    heads = Heads(
        turned(block.query, config.heads, block.query_norm),
        turned(block.key, config.key_heads, block.key_norm),
        split_heads(apply(block.value, normed), config.key_heads),
    )
    return apply(block.out, position.attend(heads, None)) + position.feed_forward(normed) + x


def final_norm(config: Config, norm: Norm, x: Array) -> Array:
    """Apply the last norm."""
    return layer_norm(x, norm, config.family_config.epsilon)


PHI = Family(config_from, ends, block, ffn, compute, final_norm)
