"""Passes texts through a model layer by layer, and records what each layer's up projection receives."""

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

AT_ONCE = 1 << 22  # the most pre-activations that are in memory at a time


class Layer(NamedTuple):
    """One layer in float32, on the device. block: the weights outside the FFN, in the family's own tuple."""

    block: Any
    ffn: FFN


class Selection(NamedTuple):
    """Which neurons an FFN sums: the arguments `choose` and `chosen_by` of `pass_block`."""

    choose: Choose = every_neuron
    chosen_by: Any = None


DENSE = Selection()


class LayerOutput(NamedTuple):
    """What a layer gives: the hidden states after it, and what its up projection received.

    Both are (texts, tokens, d).
    """

    hidden: Floats
    ffn_inputs: Floats


class Recorded(NamedTuple):
    """A layer and what its up projection received: (tokens, d) for each of the recorded texts."""

    number: int
    ffn: FFN
    inputs: tuple[Floats, ...]


def require_sparse(checkpoint: Checkpoint) -> None:
    """Refuse a model whose activation makes every neuron active (decision 7): nothing can be predicted there.

    Args:
        checkpoint: the model.

    Raises:
        DomainError: every neuron of the model is always active.
    """
    name = checkpoint.config.activation
    if name not in SPARSE_ACTIVATIONS:
        raise DomainError(
            f"{checkpoint.directory}: every neuron of a {name} model is active, so there is nothing to "
            "predict; choose another activation with --activation relu or --activation fatrelu:T"
        )


def load_ends(checkpoint: Checkpoint) -> Model:
    """Load the embeddings and the head of a model, without its layers."""
    return load_model(checkpoint.config._replace(layers=0), partial(load_tensor, checkpoint))


def load_layer(checkpoint: Checkpoint, index: int) -> Layer:
    """Load one layer of a checkpoint, in float32, onto the device."""
    config = checkpoint.config
    block = FAMILIES[config.family].block(config, index)
    stored = Layer(fill(block, lambda leaf: load_tensor(checkpoint, leaf.name)), load_ffn(checkpoint, index))
    layer: Layer = fill(stored, lambda array: jnp.asarray(widen(array)))
    return layer


def embed_chunks(model: Model, chunks: Tokens) -> Floats:
    """The hidden states that the first layer receives, (texts, tokens, d), for chunks of token ids."""
    return np.asarray(embed_texts(model, chunks))


def pass_layer(
    config: Config,
    layer: Layer,
    hidden: Floats,
    selection: Selection = DENSE,
    advance: Callable[[int], None] = lambda texts: None,
) -> LayerOutput:
    """Pass every text through one layer, some texts at a time.

    Args:
        config: the model's config.
        layer: the layer, on the device.
        hidden: (texts, tokens, d) float32, the hidden states that the layer receives.
        selection: which neurons the layer's FFN sums.
        advance: called with the number of texts that have passed so far.

    Returns:
        The hidden states after the layer, and what its up projection received.
    """
    after, inputs = np.empty_like(hidden), np.empty_like(hidden)
    for texts in batches(hidden, config.neurons):
        after[texts], inputs[texts] = pass_block(config, *layer, jnp.asarray(hidden[texts]), *selection)
        advance(min(texts.stop, len(hidden)))
    return LayerOutput(after, inputs)


def batches(hidden: Floats, neurons: int) -> list[slice]:
    """Slices of the texts, each with as many texts as memory allows, of nearly equal size."""
    count, length = hidden.shape[:2]
    pieces = -(-count // max(AT_ONCE // (length * neurons), 1))
    size = -(-count // pieces)
    return [slice(first, first + size) for first in range(0, count, size)]


def record(
    checkpoint: Checkpoint, texts: Sequence[Tokens], progress: Progress = unseen
) -> Iterator[Recorded]:
    """Record what the up projection of each layer receives, which is what a predictor sees (decision 5).

    One layer and 3 · tokens · d float32 values are in memory at a time.

    Args:
        checkpoint: the model.
        texts: for each text, (chunks, length) token ids; each chunk is a text of its own for the model.
        progress: called for every layer, with the number of chunks that have passed the layer.

    Returns:
        The layers in turn, each with what its up projection received.
    """
    config = checkpoint.config
    hidden = embed_chunks(load_ends(checkpoint), np.concatenate(texts))
    ends = np.cumsum([len(text) for text in texts])[:-1]
    for index in range(config.layers):
        layer = load_layer(checkpoint, index)
        what = f"recording layer {index + 1} of {config.layers}"
        hidden, inputs = pass_layer(
            config, layer, hidden, advance=partial(_advance, progress, what, len(hidden))
        )
        width = inputs.shape[-1]
        yield Recorded(index, layer.ffn, tuple(part.reshape(-1, width) for part in np.split(inputs, ends)))


def _advance(progress: Progress, what: str, total: int, done: int) -> None:
    progress(what, done, total)
