"""Everything that decoding needs, opened and solved: the model on flash, its memory, and its proof."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.decode import Predict
from flashref.ffn import active_neurons
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import load_ffn
from flashref.models.flash import Decoder, empty_layers, gate_predictor
from flashref.models.model import Model, load_model
from flashref.models.predictors import FILE_NAME
from flashref.models.prepared import Prepared, solve
from flashref.models.proof import Proof
from flashref.models.storage import Storage, open_storage
from flashref.predictor import predict_active
from flashref.storage.image import Image, image_tensor
from flashref.storage.progress import Progress
from flashref.types import FFN, ImageError, same, widen


class Setup(NamedTuple):
    """A model that is ready to decode.

    prepared: without statistics of another model; layouts: of each layer's bundles; ffns: of the checkpoint,
    to judge by, None without a proof, where only resident sets are checked.
    """

    prepared: Prepared
    storage: Storage
    layouts: tuple[Layout, ...]
    demand: Demand
    budget: Budget
    ffns: tuple[FFN, ...] | None
    proof: Proof
    decoder: Decoder


def set_up(prepared: Prepared, resources: ExitStack, progress: Progress) -> Setup:
    """Open the image or pack it, solve the budget for it, and load the weights to judge it by.

    Args:
        prepared: the model.
        resources: closes what was opened.
        progress: is told how far packing and checking have come.

    Raises:
        ImageError: the image, or the predictors, are another model's.
        DomainError: the memory is too small for the image's blocks.
    """
    checkpoint, request = prepared.checkpoint, prepared.request
    storage = open_storage(checkpoint, request, resources, progress)
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


def _of_this_model(prepared: Prepared, image: Image) -> Prepared:
    """ImageError if trained predictors were fitted to another model; its statistics alone are left out."""
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
    """What is resident of the model; as it is stored where memory is held to the budget."""
    checkpoint, request = prepared.checkpoint, prepared.request
    dtype = np.float32 if request.proof else None
    model = load_model(checkpoint.config, partial(image_tensor, image), dtype)
    if request.predictor != "gate":
        return model
    gates = [image_tensor(image, fields["gate"]) for fields in checkpoint.layers]
    ffns = tuple(ffn._replace(gate=gate) for ffn, gate in zip(model.ffns, gates, strict=True))
    return model._replace(ffns=ffns)


def _predict(prepared: Prepared, model: Model, ffns: Sequence[FFN] | None) -> tuple[Predict | None, ...]:
    """A function x → ids for every layer; None for one that is resident whole."""
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
    """The same weights as float32: the same bits in every result, and no widening at every token."""
    arrays = {name: widen(array) for name, array in ffn._asdict().items() if isinstance(array, np.ndarray)}
    # Column by column: the pre-activations are summed over d.
    arrays |= {name: np.asfortranarray(arrays[name]) for name in ("gate", "up") if name in arrays}
    return FFN(**{**ffn._asdict(), **arrays})
