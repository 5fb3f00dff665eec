"""A model whose FFNs are read from flash, one token at a time."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flashref.decode import (
    LayerState,
    Place,
    Predict,
    ResidentFFN,
    Semantics,
    Step,
    decode_layer,
    empty_layer,
)
from flashref.ffn import active_neurons, dense_ffn
from flashref.models.budget import Budget, Demand
from flashref.models.model import FeedForward, Model
from flashref.storage.container import byte_pieces
from flashref.storage.image import Image
from flashref.types import FFN, STORED_DTYPES, Array, Reader, Vector

Observe = Callable[[int, Vector, Vector, Step], None]  # layer, x, y, what happened

GATE_BYTES = 4 << 20  # of a gate projection as float32, at a time


class Decoder(NamedTuple):
    """Everything that decoding from flash needs.

    layers: the states before the first token, or the FFN of a layer that is resident whole, which is not
    predicted (decision 15).
    """

    model: Model
    layers: tuple[LayerState | FFN, ...]
    predict: tuple[Predict | None, ...]
    place: Place
    read: Reader
    semantics: Semantics


def empty_layers(image: Image, model: Model, demand: Demand, budget: Budget) -> tuple[LayerState | FFN, ...]:
    """Every layer before the first token, over an opened image; biases come from the resident tensors."""
    return tuple(
        resident_layer(image, layer, ffn)
        if layer in demand.dense
        else empty_layer(
            image.layouts[layer][0],
            ffn,
            budget.window,
            budget.capacities[layer],
            demand.bypass_rows,
            checksums=image.checksums[layer][0],
        )
        for layer, ffn in enumerate(model.ffns)
    )


def resident_layer(image: Image, layer: int, resident: ResidentFFN) -> FFN:
    """The whole FFN of a layer, from its bundles, in the stored dtype. Raises ImageError."""
    layout = image.layouts[layer][0]
    dtype = STORED_DTYPES[layout.dtype]
    matrices = {field: np.empty((layout.n, layout.d), dtype) for field in layout.fields}
    neurons = np.arange(layout.n) if layout.order is None else layout.order
    done = 0
    for piece in byte_pieces(image.container, layout.start, layout.n * layout.stride, layout.stride):
        bundles = piece.reshape(-1, layout.stride)[:, : layout.bundle_bytes]
        rows = np.ascontiguousarray(bundles).view(dtype).reshape(len(bundles), len(layout.fields), layout.d)
        for number, matrix in enumerate(matrices.values()):
            matrix[neurons[done : done + len(rows)]] = rows[:, number]
        done += len(rows)
    activation, gate, up_bias, gate_bias, down_bias, tau = resident
    return FFN(
        activation,
        matrices["up"],
        matrices["down"],
        matrices.get("gate", gate),
        up_bias,
        gate_bias,
        down_bias,
        tau,
    )


def gate_predictor(resident: ResidentFFN) -> Predict:
    """Which neurons are active, by a resident gate projection: what `active_neurons` says of the FFN."""
    gate, bias = resident.gate, resident.gate_bias
    assert gate is not None
    step = max(1, GATE_BYTES // (4 * gate.shape[1]))

    def predict(x: Vector) -> Array:
        found = []
        for first in range(0, len(gate), step):
            rows = gate[first : first + step]
            bias_rows = None if bias is None else bias[first : first + step]
            # The gate's pre-activation is all that `active_neurons` looks at.
            piece = FFN(resident.activation, rows, rows, up_bias=bias_rows, tau=resident.tau)
            found.append(first + active_neurons(x, piece))
        return np.concatenate(found)

    return predict


def flash_ffn(decoder: Decoder, observe: Observe) -> FeedForward:
    """The FFN that reads from flash, for `forward`. It holds the layers' states: empty windows at first."""
    states = list(decoder.layers)

    def feed_forward(layer: int, x: Array) -> Array:
        state, predict = states[layer], decoder.predict[layer]
        if isinstance(state, FFN) or predict is None:
            assert isinstance(state, FFN)
            return dense_ffn(x, state)
        y, states[layer], step = decode_layer(
            state, x, predict, decoder.place, decoder.read, decoder.semantics
        )
        observe(layer, x, y, step)
        return y

    return feed_forward
