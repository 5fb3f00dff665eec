"""Whole texts at once, in JAX: the blocks of `families` in float32, over all tokens of several texts.

It goes layer by layer, so that a model of any size needs memory for one layer and for what passes between
two. Weights come as `load_model` and `load_ffn` give them, in any stored dtype.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flashref.models.families import FAMILIES
from flashref.models.family import Config, fill
from flashref.models.model import Model, embed, last_hidden
from flashref.models.parts import Bias, Heads, Position, apply
from flashref.types import FFN, Array, widen
from flashref.xla import neuron_values, sum_neurons

# From what the up projections receive, (tokens, d), to the mask of the neurons that are summed, (tokens, n).
Choose = Callable[[Any, jax.Array], jax.Array]


class Passed(NamedTuple):
    """A block over a text. hidden: (…, tokens, d) after it; inputs: what its up projection received."""

    hidden: jax.Array
    inputs: jax.Array


def embed_texts(model: Model, ids: Array) -> jax.Array:
    """What the first block receives.

    Args:
        model: with its ends; its blocks are not needed.
        ids: (texts, tokens) token ids, each text from position 0.

    Returns:
        (texts, tokens, d) float32.
    """
    return jnp.asarray(embed(model, ids, np.arange(ids.shape[-1])))


def pass_block(
    config: Config, block: Any, ffn: FFN, hidden: jax.Array, choose: Choose, chosen_by: Any = None
) -> Passed:
    """Every text through one block.

    Args:
        config: of the model.
        block, ffn: of one layer; `down` is neuron-major.
        hidden: (texts, tokens, d), what the block receives.
        choose: gives the mask of the neurons that are summed. One module-level function should serve all
            layers, for each function compiles anew.
        chosen_by: the first argument of `choose`, a tree of arrays of the same shapes in every layer.

    Returns:
        Hidden states after the block, and what the up projection received (decision 5), both as `hidden` is.
    """
    widened = fill((block, ffn), _on_device)
    return Passed(*_pass_block(config, *widened, hidden, choose, chosen_by))


def every_neuron(_: Any, inputs: jax.Array) -> jax.Array:
    """The mask of the dense FFN, a `Choose`: all neurons are summed."""
    return jnp.ones((len(inputs), 1), bool)


def causal_attention(heads: Heads, bias: Bias | None) -> Any:
    """Attention of every token of a text to itself and to every earlier one, the `attend` of a `Place`.

    Args:
        heads: query (tokens, heads, size), key and value (tokens, key heads, size).
        bias: what is added to the scores, or None.

    Returns:
        (tokens, heads · size).
    """
    tokens, key_heads, size = heads.key.shape
    query = jnp.asarray(heads.query).reshape(tokens, key_heads, -1, size) * size**-0.5
    scores = jnp.einsum("tkgs,uks->kgtu", query, heads.key)
    if bias is not None:
        scores = scores + bias(tokens).reshape(key_heads, -1, 1, tokens)
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return jnp.einsum("kgtu,uks->tkgs", weights, heads.value).reshape(tokens, -1)


def losses(model: Model, hidden: Array | jax.Array, ids: Array) -> jax.Array:
    """−ln p of each following token.

    Args:
        model: with its ends; its blocks are not needed.
        hidden: (texts, tokens, d) after the last block.
        ids: (texts, tokens), the texts themselves.

    Returns:
        (texts, tokens − 1) float32, in nats.
    """
    ends = fill(model.ends, _on_device)
    return jnp.stack(
        [
            _losses(model.config, ends, text, jnp.asarray(following))
            for text, following in zip(np.asarray(hidden), ids[:, 1:], strict=True)
        ]
    )


def _on_device(stored: Any) -> jax.Array:
    """Weights as float32; those that are there already stay as they are."""
    return stored if isinstance(stored, jax.Array) else jnp.asarray(widen(stored))


@partial(jax.jit, static_argnames=("config", "choose"))
def _pass_block(
    config: Config, block: Any, ffn: FFN, hidden: jax.Array, choose: Choose, chosen_by: Any
) -> Passed:
    def one_text(hidden: jax.Array) -> Passed:
        received: list[jax.Array] = []

        def feed_forward(inputs: Any) -> Any:
            received.append(inputs)
            values = jax.vmap(partial(neuron_values, ffn=ffn))(inputs)
            chosen = jnp.where(choose(chosen_by, inputs), values, 0)
            return jax.vmap(partial(sum_neurons, ffn=ffn))(chosen)

        positions: Any = jnp.arange(len(hidden))
        position = Position(positions, causal_attention, feed_forward)
        return Passed(FAMILIES[config.family].compute(config, block, hidden, position), received[0])

    return jax.vmap(one_text)(hidden)


@partial(jax.jit, static_argnames="config")
def _losses(config: Config, ends: Any, hidden: jax.Array, following: jax.Array) -> jax.Array:
    x = last_hidden(Model(config, ends, (), ()), hidden[:-1])
    logits: Any = apply(ends.head, x)
    chosen = jnp.take_along_axis(logits, following[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
