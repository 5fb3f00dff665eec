"""A model layer by layer over a text: what its up projections receive, and which neurons fire."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models.checkpoint import Checkpoint, load_ffn, load_tensor
from flashref.models.families import FAMILIES
from flashref.models.family import Config, fill
from flashref.models.model import Model, load_model
from flashref.models.whole_text import Choose, embed_texts, every_neuron, pass_block
from flashref.storage.progress import Progress, unseen
from flashref.training.texts import Tokens
from flashref.types import FFN, DomainError, widen

Floats = npt.NDArray[np.float32]

AT_ONCE = 1 << 22  # pre-activations that are in memory at a time


class Layer(NamedTuple):
    """One layer in float32, on the device. block: of the family's own kind; ffn: neuron-major."""

    block: Any
    ffn: FFN


class Way(NamedTuple):
    """Which neurons an FFN sums: arguments of `pass_block`."""

    choose: Choose = every_neuron
    chosen_by: Any = None


DENSE = Way()


class Passed(NamedTuple):
    """Texts after a layer, (texts, tokens, d) each: hidden states, and what the up projection received."""

    hidden: Floats
    inputs: Floats


class Recorded(NamedTuple):
    """A layer and what its up projection received, (tokens, d) for each text that was asked for."""

    number: int
    ffn: FFN
    inputs: tuple[Floats, ...]


def require_sparse(checkpoint: Checkpoint) -> None:
    """Refuse an activation that leaves no neuron at rest (decision 7), for then nothing can be predicted.

    Raises:
        DomainError: the model's activation is such a one.
    """
    name = checkpoint.config.activation
    if name not in SPARSE_ACTIVATIONS:
        raise DomainError(
            f"{checkpoint.directory}: every neuron of a {name} model is active, so there is nothing to "
            "predict; fit to another activation with --activation relu or fatrelu:T"
        )


def load_ends(checkpoint: Checkpoint) -> Model:
    """The model without its layers."""
    return load_model(checkpoint.config._replace(layers=0), partial(load_tensor, checkpoint))


def load_layer(checkpoint: Checkpoint, index: int) -> Layer:
    """A layer of a checkpoint."""
    config = checkpoint.config
    block = FAMILIES[config.family].block(config, index)
    stored = Layer(fill(block, lambda leaf: load_tensor(checkpoint, leaf.name)), load_ffn(checkpoint, index))
    layer: Layer = fill(stored, lambda array: jnp.asarray(widen(array)))
    return layer


def embed_chunks(model: Model, chunks: Tokens) -> Floats:
    """What the first layer receives, (texts, tokens, d)."""
    return np.asarray(embed_texts(model, chunks))


def pass_layer(
    config: Config,
    layer: Layer,
    hidden: Floats,
    way: Way = DENSE,
    passed: Callable[[int], None] = lambda texts: None,
) -> Passed:
    """Every text through one layer, some texts at a time.

    Args:
        config: of the model.
        layer: on the device.
        hidden: (texts, tokens, d), what the layer receives.
        way: which neurons its FFN sums.
        passed: called with the number of texts that have passed so far.
    """
    after, inputs = np.empty_like(hidden), np.empty_like(hidden)
    for texts in batches(hidden, config.neurons):
        after[texts], inputs[texts] = pass_block(config, *layer, jnp.asarray(hidden[texts]), *way)
        passed(min(texts.stop, len(hidden)))
    return Passed(after, inputs)


def batches(hidden: Floats, neurons: int) -> list[slice]:
    """The texts, as many at a time as memory allows, in numbers as equal as can be."""
    count, length = hidden.shape[:2]
    pieces = -(-count // max(AT_ONCE // (length * neurons), 1))
    size = -(-count // pieces)
    return [slice(first, first + size) for first in range(0, count, size)]


def record(
    checkpoint: Checkpoint, texts: Sequence[Tokens], progress: Progress = unseen
) -> Iterator[Recorded]:
    """Each layer in turn with the very tensors that its up projection receives (decision 5).

    In memory are one layer and three times tokens · d float32 values.

    Args:
        checkpoint: of the model.
        texts: (chunks, length) token ids each.
        progress: called for every layer, with the chunks that have passed it.
    """
    config = checkpoint.config
    hidden = embed_chunks(load_ends(checkpoint), np.concatenate(texts))
    ends = np.cumsum([len(text) for text in texts])[:-1]
    for index in range(config.layers):
        layer = load_layer(checkpoint, index)
        what = f"recording layer {index + 1} of {config.layers}"
        hidden, inputs = pass_layer(
            config, layer, hidden, passed=partial(_advance, progress, what, len(hidden))
        )
        width = inputs.shape[-1]
        yield Recorded(index, layer.ffn, tuple(part.reshape(-1, width) for part in np.split(inputs, ends)))


def _advance(progress: Progress, what: str, total: int, done: int) -> None:
    progress(what, done, total)
