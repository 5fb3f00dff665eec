"""Make a model ready to decode: open its image, solve its budget, load its predictors and its proof."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.decode import LayerState, Predict, ResidentFFN, empty_layer
from flashref.ffn import active_neurons
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import load_ffn
from flashref.models.decoding import Decoder
from flashref.models.image_readers import ImageReaders, open_image_readers
from flashref.models.model import Model, load_model
from flashref.models.predictors import FILE_NAME
from flashref.models.prepared import Prepared, solve
from flashref.models.proof import Proof
from flashref.predictor import predict_active
from flashref.storage.container import byte_pieces
from flashref.storage.image import Image, image_tensor
from flashref.storage.progress import Progress
from flashref.types import FFN, STORED_DTYPES, Array, ImageError, Vector, same, widen

GATE_BYTES = 4 << 20  # of a gate projection as float32, at a time


class Setup(NamedTuple):
    """A model that is ready to decode.

    Attributes:
        prepared: the request and the small files, without the statistics of another model.
        storage: the image and its readers.
        layouts: the layout of each layer's bundles.
        demand: what the model asks of memory.
        budget: the window and the rows of each layer.
        ffns: the checkpoint's FFNs, with which every step is checked; None without a proof.
        proof: checks the steps.
        decoder: what `decode_flash` needs.
    """

    prepared: Prepared
    storage: ImageReaders
    layouts: tuple[Layout, ...]
    demand: Demand
    budget: Budget
    ffns: tuple[FFN, ...] | None
    proof: Proof
    decoder: Decoder


def set_up(prepared: Prepared, resources: ExitStack, progress: Progress) -> Setup:
    """Open or pack the image, solve the budget, and load the weights of the proof.

    Args:
        prepared: the request, and what was read from the small files.
        resources: closes what is opened here.
        progress: is told how far packing and checking have come.

    Returns:
        The model, ready to decode.

    Raises:
        ImageError: the image or the predictors belong to another model.
        DomainError: the memory is too small for the image's blocks.
    """
    checkpoint, request = prepared.checkpoint, prepared.request
    storage = open_image_readers(checkpoint, request, resources, progress)
    prepared = _of_this_model(prepared, storage.image)
    layers = range(checkpoint.config.layers)
    layouts = tuple(storage.image.layouts[layer][0] for layer in layers)
    demand, budget = solve(prepared, layouts[0])
    model = _load(prepared, storage.image)
    ffns, read = None, storage.read
    if request.proof:
        ffns = tuple(_widened(load_ffn(checkpoint, layer)) for layer in layers)
    proof = Proof(ffns, budget, request.semantics, exact=request.predictor in ("exact", "gate"))
    states = empty_layers(storage.image, model, demand, budget)
    if ffns is not None:
        states = tuple(_widened(state) if isinstance(state, FFN) else state for state in states)
        for layer in demand.dense:
            if not same(states[layer], ffns[layer]):
                raise ImageError(
                    f"{storage.image.container.path}: the bundles of layer {layer} are not the checkpoint's, "
                    "although their checksums agree; remove it, or pack another under another name"
                )
        read = proof.checking_reader(read, layouts, (load_ffn(checkpoint, layer) for layer in layers))
    predict = _predict(prepared, model, ffns)
    decoder = Decoder(model, states, predict, request.placement, read, request.semantics)
    return Setup(prepared, storage, layouts, demand, budget, ffns, proof, decoder)


def empty_layers(image: Image, model: Model, demand: Demand, budget: Budget) -> tuple[LayerState | FFN, ...]:
    """Make the layers of a model as they are before the first token.

    Args:
        image: the opened image.
        model: the model without its FFN matrices; it has the biases.
        demand: says which layers are resident whole.
        budget: the window, and the rows of every layer.

    Returns:
        The state of each layer, with an empty window; or its FFN where it is resident whole.

    Raises:
        ImageError: a layer that is resident whole cannot be read.
    """
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
    """Read the whole FFN of one layer from its bundles.

    Args:
        image: the opened image.
        layer: the number of the layer.
        resident: the layer's activation and biases, and its gate where that is not in the bundles.

    Returns:
        The FFN in the stored dtype; its matrices have a row for each neuron.

    Raises:
        ImageError: the image cannot be read.
    """
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
    """Make a predictor that computes the active neurons from a gate projection in memory.

    Args:
        resident: the part of an FFN that is in memory; it has the gate.

    Returns:
        A function that returns what `active_neurons` returns for the whole FFN.
    """
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


def _of_this_model(prepared: Prepared, image: Image) -> Prepared:
    """Raise ImageError for predictors that were fitted to another model; leave out statistics of another."""
    predictors, request = prepared.predictors, prepared.request
    if predictors is None or predictors.origin is None or predictors.origin.fingerprint == image.fingerprint:
        return prepared
    if request.predictor == "trained" or request.predictors:
        path = request.predictors or prepared.checkpoint.directory / FILE_NAME
        raise ImageError(
            f"{path}: was fitted to another model, or to other weights of it; "
            "fit others with `flashref train`"
        )
    return prepared._replace(predictors=None)


def _load(prepared: Prepared, image: Image) -> Model:
    """Load the resident tensors: as float32 for a proof, else as they are stored, in less memory."""
    checkpoint, request = prepared.checkpoint, prepared.request
    dtype = np.float32 if request.proof else None
    model = load_model(checkpoint.config, partial(image_tensor, image), dtype)
    if request.predictor != "gate":
        return model
    gates = [image_tensor(image, fields["gate"]) for fields in checkpoint.layers]
    ffns = tuple(ffn._replace(gate=gate) for ffn, gate in zip(model.ffns, gates, strict=True))
    return model._replace(ffns=ffns)


def _predict(prepared: Prepared, model: Model, ffns: Sequence[FFN] | None) -> tuple[Predict | None, ...]:
    """Make the predictor of each layer; None for a layer that is resident whole."""
    kind = prepared.request.predictor
    if not isinstance(kind, str):
        return tuple(partial(kind, layer) for layer in range(model.config.layers))
    if kind == "gate":
        return tuple(gate_predictor(ffn) for ffn in model.ffns)
    if kind == "exact":
        assert ffns is not None
        return tuple(lambda x, ffn=ffn: active_neurons(x, ffn) for ffn in ffns)
    assert prepared.predictors is not None
    found: list[Predict | None] = []
    for one in prepared.predictors.layers:
        if one is not None and prepared.request.proof:
            one = one._replace(a=widen(one.a), b=widen(one.b))
        found.append(None if one is None else partial(predict_active, predictor=one))
    return tuple(found)


def _widened(ffn: FFN) -> FFN:
    """Widen the weights to float32 once; every result keeps its bits, and no token widens them again."""
    arrays = {name: widen(array) for name, array in ffn._asdict().items() if isinstance(array, np.ndarray)}
    # Column by column: the pre-activations are summed over d.
    arrays |= {name: np.asfortranarray(arrays[name]) for name in ("gate", "up") if name in arrays}
    return FFN(**{**ffn._asdict(), **arrays})
