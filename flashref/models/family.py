"""What every family of models says of itself: its config, its tensors, and the arithmetic of its block."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from flashref.models.config_values import Values, activation, count, flag
from flashref.models.parts import Linear, Norm, Position
from flashref.types import FFN, Array, DomainError, ImageError

T = TypeVar("T")


class Config(NamedTuple):
    """What is known of a model of any family, before a weight is read.

    width is d, neurons is n; key_heads: heads of keys and values, which groups of `heads` share; tau:
    FATReLU's; tied: the output head is the token embedding; family_config: what only this family knows.
    """

    family: str
    layers: int
    width: int
    neurons: int
    heads: int
    key_heads: int
    head_size: int
    context: int
    vocabulary: int
    activation: str
    tau: float
    tied: bool
    family_config: Any


def usual_config(family: str, values: Values) -> Config:
    """What Llama, Persimmon and Phi say under the same keys, without a family_config. Raises ImageError."""
    width, heads = count(values, "hidden_size"), count(values, "num_attention_heads")
    key_heads = count(values, "num_key_value_heads", default=heads)
    divided("num_attention_heads", heads, "num_key_value_heads", key_heads)
    name, tau = activation(values, "hidden_act")
    return Config(
        family=family,
        layers=count(values, "num_hidden_layers"),
        width=width,
        neurons=count(values, "intermediate_size"),
        heads=heads,
        key_heads=key_heads,
        head_size=divided("hidden_size", width, "num_attention_heads", heads),
        context=count(values, "max_position_embeddings"),
        vocabulary=count(values, "vocab_size"),
        activation=name,
        tau=tau,
        tied=flag(values, "tie_word_embeddings", False),
        family_config=None,
    )


def with_even_heads(config: Config, values: Values) -> Config:
    """The config of a model whose heads share the width; DomainError if its head_dim says otherwise."""
    if values.get("head_dim") not in (None, config.head_size):
        raise DomainError(
            f"config.json has head_dim {values['head_dim']!r}, but a {config.family.capitalize()}'s heads "
            f"share the width, {config.head_size} each; remove the key"
        )
    return config


class Tensor(NamedTuple):
    """A checkpoint's tensor by name and shape: it stands where its array will be, until it is loaded."""

    name: str
    shape: tuple[int, ...]


class Ends(NamedTuple):
    """What is before the first block and after the last; None for what a model has not.

    tokens: (vocabulary, embedded); positions: (rows, d), learned; project_in, project_out: between embedded
    and d; norm: the last; head: (vocabulary, embedded), its weight None where it is `tokens`.
    """

    tokens: Array
    head: Linear
    norm: Norm | None
    positions: Array | None = None
    project_in: Linear | None = None
    project_out: Linear | None = None


class Family(NamedTuple):
    """One family of models.

    ends, block, ffn: trees whose leaves are `Tensor`s; a block is a tuple of the family's own, an FFN has
    `down` as it is stored, (d, n). compute: config, a loaded block, x (…, d) and its position to x after the
    block. final_norm: config, the last norm and x to x.
    """

    config_from: Callable[[Values], Config]
    ends: Callable[[Config], Ends]
    block: Callable[[Config, int], Any]
    ffn: Callable[[Config, int], FFN]
    compute: Callable[[Config, Any, Any, Position], Any]
    final_norm: Callable[[Config, Norm, Any], Any]


def tensor(name: str, *shape: int) -> Any:
    """A leaf, for the field of an array."""
    return Tensor(name, shape)


def linear(name: str, outputs: int, inputs: int, bias: bool) -> Linear:
    """The leaves of a linear map."""
    return Linear(
        tensor(f"{name}.weight", outputs, inputs), tensor(f"{name}.bias", outputs) if bias else None
    )


def norm(name: str, width: int, shift: bool = True) -> Norm:
    """The leaves of a norm."""
    return Norm(tensor(f"{name}.weight", width), tensor(f"{name}.bias", width) if shift else None)


def plain_ends(config: Config, tokens: str, norm: Norm, head_bias: bool = False) -> Ends:
    """The leaves of embeddings, last norm and output head, for a model with nothing else at its ends."""
    embeddings = tensor(tokens, config.vocabulary, config.width)
    head = linear("lm_head", config.vocabulary, config.width, head_bias)
    return Ends(embeddings, head._replace(weight=embeddings) if config.tied else head, norm)


def plain_ffn(config: Config, up: str, down: str, biases: bool) -> FFN:
    """The leaves of an FFN without a gate."""
    above = linear(up, config.neurons, config.width, biases)
    below = linear(down, config.width, config.neurons, biases)
    return FFN(
        config.activation,
        above.weight,
        below.weight,
        up_bias=above.bias,
        down_bias=below.bias,
        tau=config.tau,
    )


def fill(tree: T, change: Callable[[Any], Any]) -> T:
    """The same tree with `change` of every leaf: a Tensor or an array; all else stays."""
    if isinstance(tree, Tensor) or hasattr(tree, "dtype"):
        return change(tree)  # type: ignore[no-any-return]
    if isinstance(tree, tuple):
        parts = [fill(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def leaves(tree: object) -> Iterator[Tensor]:
    """The tensors in a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from leaves(part)


def divided(key: str, whole: int, by: str, heads: int) -> int:
    """The size of a head, or of a group of them. Raises ImageError if the heads do not divide the whole."""
    if whole % heads:
        raise ImageError(f"config.json has {key} {whole}, which {by} {heads} does not divide; correct it")
    return whole // heads
