"""Whole texts at once in JAX: the blocks of `families` in float32, over all tokens of several texts.

It goes layer by layer, so a model of any size needs memory for one layer and for the hidden states between
two. Weights come as `load_model` and `load_ffn` return them, in any stored dtype.
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

# From `chosen_by` and what the up projection receives, (tokens, d), to the mask of the neurons that are
# summed, (tokens, n).
Choose = Callable[[Any, jax.Array], jax.Array]


class Passed(NamedTuple):
    """What a block computed for texts: the hidden states after it, and what its up projection received.

    Both are (…, tokens, d).
    """

    hidden: jax.Array
    inputs: jax.Array


def embed_texts(model: Model, ids: Array) -> jax.Array:
    """Compute what the first block receives.

    Args:
        model: the model; only its ends are used.
        ids: token ids, (texts, tokens); each text begins at position 0.

    Returns:
        (texts, tokens, d) float32.
    """
    return jnp.asarray(embed(model, ids, np.arange(ids.shape[-1])))


def pass_block(
    config: Config, block: Any, ffn: FFN, hidden: jax.Array, choose: Choose, chosen_by: Any = None
) -> Passed:
    """Pass texts through one block.

    Args:
        config: the model's config.
        block, ffn: the block and the FFN of one layer; all matrices of the FFN are (n, d).
        hidden: what the block receives, (texts, tokens, d).
        choose: returns the mask of the neurons that are summed. Use one function of a module for all layers,
            because each new function is compiled anew.
        chosen_by: the first argument of `choose`: a tree of arrays, which has the same shapes in all layers.

    Returns:
        The hidden states after the block, and what the up projection received (decision 5: the predictor sees
        the same vectors), both shaped as `hidden`.
    """
    widened = fill((block, ffn), _on_device)
    return Passed(*_pass_block(config, *widened, hidden, choose, chosen_by))


def every_neuron(_: Any, inputs: jax.Array) -> jax.Array:
    """Choose all neurons, as the dense FFN does."""
    return jnp.ones((len(inputs), 1), bool)


def causal_attention(heads: Heads, bias: Bias | None) -> Any:
    """Let every token of a text attend to itself and to every earlier one: `attend` of a `Position`.

    Args:
        heads: query (tokens, heads, size), key and value (tokens, key heads, size).
        bias: returns what is added to the scores; None: nothing is.

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
    """Compute −ln p of each token from the tokens before it.

    Args:
        model: the model; only its ends are used.
        hidden: the hidden states after the last block, (texts, tokens, d).
        ids: the token ids of the texts, (texts, tokens).

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
    """Widen weights to float32 on the device; arrays that are there already are returned as they are."""
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
