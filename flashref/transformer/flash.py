"""A model whose FFNs are read from flash, one token at a time."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flashref.decode import Place, Predict, Semantics, decode_layer, empty_layer
from flashref.storage.image import Image
from flashref.transformer.budget import Budget, Demand
from flashref.transformer.generate import Choose, generate
from flashref.transformer.opt import FeedForward, Model, one_at_a_time
from flashref.types import Array, LayerState, Reader, ResidentFFN, Step, Vector

Observe = Callable[[int, Vector, Vector, Step], None]  # layer, x, y, what happened


class Decoder(NamedTuple):
    """Everything that decoding from flash needs; `layers` are the states before the first token."""

    model: Model
    layers: tuple[LayerState, ...]
    predict: tuple[Predict, ...]
    place: Place
    read: Reader
    semantics: Semantics


def empty_layers(image: Image, model: Model, demand: Demand, budget: Budget) -> tuple[LayerState, ...]:
    """Every layer before the first token, over an opened image; biases come from the resident tensors."""
    return tuple(
        empty_layer(
            image.layouts[layer][0],
            ResidentFFN(model.config.activation, up_bias=block.up_bias, down_bias=block.down_bias),
            budget.window,
            budget.capacities[layer],
            demand.bypass_rows,
            checksums=image.checksums[layer][0],
        )
        for layer, block in enumerate(model.blocks)
    )


def flash_ffn(decoder: Decoder, observe: Observe) -> FeedForward:
    """The FFN that reads from flash, for `forward`. It holds the layers' states: empty windows at first."""
    states = list(decoder.layers)

    def feed_forward(layer: int, x: Array) -> Array:
        y, states[layer], step = decode_layer(
            states[layer], x, decoder.predict[layer], decoder.place, decoder.read, decoder.semantics
        )
        observe(layer, x, y, step)
        return y

    return feed_forward


def decode_text(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    count: int,
    choose: Choose,
    observe: Observe,
    before_pass: Callable[[int], bool],
) -> list[int]:
    """`count` new tokens after the prompt, whose tokens pass through the same windows (decision 21).

    before_pass: called with the number of each forward pass; if it answers True, windows are emptied first.
    """
    feed_forward = flash_ffn(decoder, observe)
    forward_one = one_at_a_time(decoder.model, lambda layer, x: feed_forward(layer, x))
    passes = 0

    def next_pass(token_id: int) -> Array:
        nonlocal feed_forward, passes
        if before_pass(passes):
            feed_forward = flash_ffn(decoder, observe)
        passes += 1
        return forward_one(token_id)

    config = decoder.model.config
    tokens = generate(
        next_pass, prompt_ids, count, choose, context=config.context, vocabulary=config.vocabulary
    )
    return [token_id for token_id, _ in tokens]
