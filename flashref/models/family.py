"""What a family of models consists of: its config, its tensors, and the arithmetic of its block."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from flashref.models.config_values import Values, activation, count, flag
from flashref.models.parts import Linear, Norm, Position
from flashref.types import FFN, Array, DomainError, ImageError

T = TypeVar("T")


class Config(NamedTuple):
    """The config of a model of any family.

    Attributes:
        family: the name of the family, a key of FAMILIES.
        layers: the number of layers.
        width: d.
        neurons: n, of each layer.
        heads: the heads of queries.
        key_heads: the heads of keys and values; a group of query heads shares each.
        head_size: the values of a head.
        context: the most tokens of a text.
        vocabulary: the number of token ids.
        activation: its name in FFN.activation.
        tau: FATReLU's tau; 0 for other activations.
        tied: whether the output head is the token embedding.
        family_config: what only this family has.
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
    """Read the keys that Llama, Persimmon and Phi share; the family_config is left out.

    Args:
        family: the name of the family.
        values: the parsed config.json.

    Raises:
        ImageError: a value is missing or wrong.
        DomainError: the activation is not known.
    """
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
    """Return the config of a model whose heads share the width; DomainError if head_dim says otherwise."""
    if values.get("head_dim") not in (None, config.head_size):
        raise DomainError(
            f"config.json has head_dim {values['head_dim']!r}, but a {config.family.capitalize()}'s heads "
            f"share the width, {config.head_size} each; remove the key"
        )
    return config


class Tensor(NamedTuple):
    """The name and the shape of a checkpoint's tensor; it stands in the place of the array to be loaded."""

    name: str
    shape: tuple[int, ...]


class Ends(NamedTuple):
    """The tensors before the first block and after the last; None for those that a model does not have.

    Attributes:
        tokens: the token embeddings, (vocabulary, embedded).
        head: the output head; its weight is (vocabulary, embedded), and `tokens` where it is tied.
        norm: the last norm.
        positions: learned positions, (rows, d).
        project_in, project_out: from the width of the embeddings to d, and back.
    """

    tokens: Array
    head: Linear
    norm: Norm | None
    positions: Array | None = None
    project_in: Linear | None = None
    project_out: Linear | None = None


class Family(NamedTuple):
    """One family of models, as functions.

    Attributes:
        config_from: from a parsed config.json to the Config.
        ends, block, ffn: from a Config (and a layer) to a tree whose leaves are `Tensor`s. A block is a tuple
            of the family's own; an FFN has `down` as it is stored, (d, n).
        compute: from a Config, a loaded block, x (…, d) and its Position to x after the block.
        final_norm: from a Config, the last norm and x to the normed x.
    """

    config_from: Callable[[Values], Config]
    ends: Callable[[Config], Ends]
    block: Callable[[Config, int], Any]
    ffn: Callable[[Config, int], FFN]
    compute: Callable[[Config, Any, Any, Position], Any]
    final_norm: Callable[[Config, Norm, Any], Any]


def tensor(name: str, *shape: int) -> Any:
    """Make a leaf, which stands in the place of an array."""
    return Tensor(name, shape)


def linear(name: str, outputs: int, inputs: int, bias: bool) -> Linear:
    """Make the leaves of a linear map."""
    return Linear(
        tensor(f"{name}.weight", outputs, inputs), tensor(f"{name}.bias", outputs) if bias else None
    )


def norm(name: str, width: int, shift: bool = True) -> Norm:
    """Make the leaves of a norm."""
    return Norm(tensor(f"{name}.weight", width), tensor(f"{name}.bias", width) if shift else None)


def plain_ends(config: Config, tokens: str, norm: Norm, head_bias: bool = False) -> Ends:
    """Make the leaves of the ends of a model that has only embeddings, a last norm and an output head."""
    embeddings = tensor(tokens, config.vocabulary, config.width)
    head = linear("lm_head", config.vocabulary, config.width, head_bias)
    return Ends(embeddings, head._replace(weight=embeddings) if config.tied else head, norm)


def plain_ffn(config: Config, up: str, down: str, biases: bool) -> FFN:
    """Make the leaves of an FFN without a gate."""
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
    """Replace every leaf of a tree, a Tensor or an array, by `change` of it; everything else stays."""
    if isinstance(tree, Tensor) or hasattr(tree, "dtype"):
        return change(tree)  # type: ignore[no-any-return]
    if isinstance(tree, tuple):
        parts = [fill(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def leaves(tree: object) -> Iterator[Tensor]:
    """Yield the Tensors of a tree in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from leaves(part)


def divided(key: str, whole: int, by: str, heads: int) -> int:
    """Divide a size by a number of heads; ImageError, with the keys of config.json, if a rest is left."""
    if whole % heads:
        raise ImageError(f"config.json has {key} {whole}, which {by} {heads} does not divide; correct it")
    return whole // heads
