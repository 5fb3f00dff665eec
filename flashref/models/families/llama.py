"""Llama (paper §4.1 and appendix): a gated FFN, grouped queries, rotary positions and RMS norms."""

from typing import NamedTuple

from flashref.models.config_values import Values, count, flag, positive
from flashref.models.family import Config, Ends, Family, linear, norm, plain_ends, usual_config
from flashref.models.parts import (
    Heads,
    Linear,
    Norm,
    Position,
    Rotary,
    apply,
    rms_norm,
    rotate,
    split_heads,
)
from flashref.models.rotary import whole_rotary_from
from flashref.types import FFN, Array


class LlamaConfig(NamedTuple):
    """What only a Llama's config.json has."""

    epsilon: float
    rotary: Rotary
    biases: bool  # of attention
    ffn_biases: bool


class Block(NamedTuple):
    """The resident part of one layer."""

    attention_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    ffn_norm: Norm


def config_from(values: Values) -> Config:
    """Read the config of a Llama from a parsed config.json; ImageError or DomainError if it is none."""
    config = usual_config("llama", values)
    config = config._replace(head_size=count(values, "head_dim", default=config.head_size))
    return config._replace(
        family_config=LlamaConfig(
            epsilon=positive(values, "rms_norm_eps", 1e-6),
            rotary=whole_rotary_from(values, config.head_size, config.context),
            biases=flag(values, "attention_bias", False),
            ffn_biases=flag(values, "mlp_bias", False),
        )
    )


def ends(config: Config) -> Ends:
    """Name the embeddings, the last norm and the output head."""
    return plain_ends(config, "model.embed_tokens.weight", norm("model.norm", config.width, shift=False))


def block(config: Config, layer: int) -> Block:
    """Name the tensors of a layer, without its FFN."""
    d, name = config.width, f"model.layers.{layer}"
    queries, keys = config.heads * config.head_size, config.key_heads * config.head_size
    return Block(
        attention_norm=norm(f"{name}.input_layernorm", d, shift=False),
        query=linear(f"{name}.self_attn.q_proj", queries, d, config.family_config.biases),
        key=linear(f"{name}.self_attn.k_proj", keys, d, config.family_config.biases),
        value=linear(f"{name}.self_attn.v_proj", keys, d, config.family_config.biases),
        out=linear(f"{name}.self_attn.o_proj", d, queries, config.family_config.biases),
        ffn_norm=norm(f"{name}.post_attention_layernorm", d, shift=False),
    )


def ffn(config: Config, layer: int) -> FFN:
    """Name the tensors of a layer's FFN."""
    d, n, name = config.width, config.neurons, f"model.layers.{layer}.mlp"
    gate, up = (
        linear(f"{name}.{which}_proj", n, d, config.family_config.ffn_biases) for which in ("gate", "up")
    )
    down = linear(f"{name}.down_proj", d, n, config.family_config.ffn_biases)
    return FFN(
        config.activation,
        up.weight,
        down.weight,
        gate=gate.weight,
        up_bias=up.bias,
        gate_bias=gate.bias,
        down_bias=down.bias,
        tau=config.tau,
    )


def compute(config: Config, block: Block, x: Array, position: Position) -> Array:
    """Compute x, (…, d), after the block."""
    normed = rms_norm(x, block.attention_norm, config.family_config.epsilon)
    heads = Heads(
        rotate(
            split_heads(apply(block.query, normed), config.heads),
            position.positions,
            config.family_config.rotary,
        ),
        rotate(
            split_heads(apply(block.key, normed), config.key_heads),
            position.positions,
            config.family_config.rotary,
        ),
        split_heads(apply(block.value, normed), config.key_heads),
    )
    x = x + apply(block.out, position.attend(heads, None))
    return x + position.feed_forward(rms_norm(x, block.ffn_norm, config.family_config.epsilon))


def final_norm(config: Config, norm: Norm, x: Array) -> Array:
    """Apply the last norm."""
    return rms_norm(x, norm, config.family_config.epsilon)


LLAMA = Family(config_from, ends, block, ffn, compute, final_norm)
