"""OPT, the paper's first model (§4.1): learned positions, ReLU, norms before attention and before the FFN.

OPT-350m differs: its norms come after them, and its embeddings are narrower than its blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

from flashref.models.config_values import Values, activation, count, flag
from flashref.models.family import Config, Ends, Family, divided, linear, norm, plain_ffn, tensor
from flashref.models.parts import Heads, Linear, Norm, Position, apply, layer_norm, split_heads
from flashref.types import FFN, Array

TOP = "model.decoder"  # the beginning of all names of tensors, except the output head's
POSITION_OFFSET = 2  # rows 0 and 1 of embed_positions are for padding, which is not used
EPSILON = 1e-5  # torch's default; OPT's config.json has no key for it


class OptConfig(NamedTuple):
    """What only an OPT's config.json has.

    Attributes:
        embedded: the width of the embeddings.
        pre_norm: whether norms come before attention and FFN; only in OPT-350m they come after them.
        biases: whether every linear map has a bias.
        norm_weights: whether every layer norm has a scale and a shift.
        final_norm: whether there is a last norm.
    """

    embedded: int
    pre_norm: bool
    biases: bool
    norm_weights: bool
    final_norm: bool


class Block(NamedTuple):
    """The resident part of one layer."""

    attention_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    ffn_norm: Norm


def config_from(values: Values) -> Config:
    """Read the config of an OPT from a parsed config.json; ImageError or DomainError if it is none."""
    width, heads = count(values, "hidden_size"), count(values, "num_attention_heads")
    name, tau = activation(values, "activation_function")
    pre_norm = flag(values, "do_layer_norm_before", True)
    return Config(
        family="opt",
        layers=count(values, "num_hidden_layers"),
        width=width,
        neurons=count(values, "ffn_dim"),
        heads=heads,
        key_heads=heads,
        head_size=divided("hidden_size", width, "num_attention_heads", heads),
        context=count(values, "max_position_embeddings"),
        vocabulary=count(values, "vocab_size"),
        activation=name,
        tau=tau,
        tied=flag(values, "tie_word_embeddings", True),
        family_config=OptConfig(
            embedded=count(values, "word_embed_proj_dim", default=width),
            pre_norm=pre_norm,
            biases=flag(values, "enable_bias", True),
            norm_weights=flag(values, "layer_norm_elementwise_affine", True),
            final_norm=pre_norm and not flag(values, "_remove_final_layer_norm", False),
        ),
    )


def ends(config: Config) -> Ends:
    """Name the embeddings, the last norm and the output head."""
    d, e = config.width, config.family_config.embedded
    tokens = tensor(f"{TOP}.embed_tokens.weight", config.vocabulary, e)
    return Ends(
        tokens=tokens,
        positions=tensor(f"{TOP}.embed_positions.weight", config.context + POSITION_OFFSET, d),
        project_in=None if e == d else linear(f"{TOP}.project_in", d, e, False),
        project_out=None if e == d else linear(f"{TOP}.project_out", e, d, False),
        norm=_norm(config, f"{TOP}.final_layer_norm") if config.family_config.final_norm else None,
        head=Linear(tokens, None) if config.tied else linear("lm_head", config.vocabulary, e, False),
    )


def block(config: Config, layer: int) -> Block:
    """Name the tensors of a layer, without its FFN."""
    d, name = config.width, f"{TOP}.layers.{layer}"
    query, key, value, out = (
        linear(f"{name}.self_attn.{which}_proj", d, d, config.family_config.biases)
        for which in ("q", "k", "v", "out")
    )
    return Block(
        attention_norm=_norm(config, f"{name}.self_attn_layer_norm"),
        query=query,
        key=key,
        value=value,
        out=out,
        ffn_norm=_norm(config, f"{name}.final_layer_norm"),
    )


def ffn(config: Config, layer: int) -> FFN:
    """Name the tensors of a layer's FFN."""
    name = f"{TOP}.layers.{layer}"
    return plain_ffn(config, f"{name}.fc1", f"{name}.fc2", config.family_config.biases)


def compute(config: Config, block: Block, x: Array, position: Position) -> Array:
    """Compute x, (…, d), after the block."""

    def attention(x: Array) -> Array:
        query, key, value = (
            split_heads(apply(part, x), config.heads) for part in (block.query, block.key, block.value)
        )
        return apply(block.out, position.attend(Heads(query, key, value), None))

    def half(x: Array, norm: Norm, part: Callable[[Array], Array]) -> Array:
        if config.family_config.pre_norm:
            return x + part(layer_norm(x, norm, EPSILON))
        return layer_norm(x + part(x), norm, EPSILON)

    return half(half(x, block.attention_norm, attention), block.ffn_norm, position.feed_forward)


def final_norm(config: Config, norm: Norm, x: Array) -> Array:
    """Apply the last norm."""
    return layer_norm(x, norm, EPSILON)


def _norm(config: Config, name: str) -> Norm:
    return norm(name, config.width) if config.family_config.norm_weights else Norm(None, None)


OPT = Family(config_from, ends, block, ffn, compute, final_norm)
