"""Whole texts at once, in JAX: the blocks of `families` in float32, over (texts, tokens) of them.

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
from flashref.xla.activations import ACTIVATIONS

# From what the up projections receive, (tokens, d), to which neurons are summed, (tokens, n) bool.
Choose = Callable[[Any, jax.Array], jax.Array]


class Passed(NamedTuple):
    """A block over a text. hidden: (…, tokens, d) after it; inputs: what its up projection received."""

    hidden: jax.Array
    inputs: jax.Array


def embed_texts(model: Model, ids: Array) -> jax.Array:
    """What the first block receives, (texts, tokens, d) float32. ids: (texts, tokens), from position 0."""
    return jnp.asarray(embed(model, ids, np.arange(ids.shape[-1])))


def pass_block(
    config: Config, block: Any, ffn: FFN, hidden: jax.Array, choose: Choose, chosen_by: Any = None
) -> Passed:
    """Every text of (texts, tokens, d) through one block, its own tokens before each.

    block, ffn: of one layer, down neuron-major. choose: one module-level function for all layers, or each
    compiles anew; chosen_by: its first argument, a tree of arrays of the same shapes in every layer.
    """
    widened = fill((block, ffn), _on_device)
    return Passed(*_pass_block(config, *widened, hidden, choose, chosen_by))


def every_neuron(_: Any, inputs: jax.Array) -> jax.Array:
    """The dense FFN: all are summed."""
    return jnp.ones((len(inputs), 1), bool)


def pre_activations(ffn: FFN, inputs: jax.Array) -> jax.Array:
    """What the activation is applied to, (tokens, n): the gate's where there is one, else up's."""
    if ffn.gate is not None:
        return _affine(inputs, ffn.gate, ffn.gate_bias)
    return _affine(inputs, ffn.up, ffn.up_bias)


def losses(model: Model, hidden: Array | jax.Array, ids: Array) -> jax.Array:
    """−ln p of each following token, (texts, tokens − 1), in nats. hidden: after the last block."""
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
            z = pre_activations(ffn, inputs)
            h = ACTIVATIONS[ffn.activation](z, jnp.float32(ffn.tau))
            if ffn.gate is not None:
                h = h * _affine(inputs, ffn.up, ffn.up_bias)
            h = jnp.where(choose(chosen_by, inputs), h, 0)
            y = h @ jnp.asarray(ffn.down)
            return y if ffn.down_bias is None else y + ffn.down_bias

        positions: Any = jnp.arange(len(hidden))
        after = FAMILIES[config.family].compute(
            config, block, hidden, Position(positions, _attend, feed_forward)
        )
        return Passed(after, received[0])

    return jax.vmap(one_text)(hidden)


def _attend(heads: Heads, bias: Bias | None) -> Any:
    """Causal attention of all tokens: each to itself and to every earlier one."""
    tokens, key_heads, size = heads.key.shape
    query = jnp.asarray(heads.query).reshape(tokens, key_heads, -1, size) * size**-0.5
    scores = jnp.einsum("tkgs,uks->kgtu", query, heads.key)
    if bias is not None:
        scores = scores + bias(tokens).reshape(key_heads, -1, 1, tokens)
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return jnp.einsum("kgtu,uks->tkgs", weights, heads.value).reshape(tokens, -1)


def _affine(x: jax.Array, weight: Any, bias: Any) -> jax.Array:
    y: jax.Array = x @ weight.T
    return y if bias is None else y + bias


@partial(jax.jit, static_argnames="config")
def _losses(config: Config, ends: Any, hidden: jax.Array, following: jax.Array) -> jax.Array:
    x = last_hidden(Model(config, ends, (), ()), hidden[:-1])
    logits: Any = apply(ends.head, x)
    chosen = jnp.take_along_axis(logits, following[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
