"""Everything that a run needs, opened and solved: the model on flash, its memory, and its proof."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.cli import options as words
from flashref.cli.opening import Storage, open_storage
from flashref.cli.wish import Wish, solve
from flashref.decode import Predict
from flashref.ffn import active_neurons
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import load_ffn
from flashref.models.flash import Decoder, empty_layers, gate_predictor
from flashref.models.model import Model, load_model
from flashref.models.predictors import FILE_NAME
from flashref.models.proof import Proof
from flashref.predictor import predict_active
from flashref.storage.image import Image, image_tensor
from flashref.storage.progress import Progress
from flashref.types import FFN, DomainError, ImageError, same, widen


class Setup(NamedTuple):
    """ffns: of the checkpoint, to judge by; None with --no-proof, where the proof checks sets only."""

    storage: Storage
    layouts: tuple[Layout, ...]
    demand: Demand
    budget: Budget
    ffns: tuple[FFN, ...] | None
    proof: Proof
    decoder: Decoder


def set_up(wish: Wish, resources: ExitStack, advance: Progress) -> tuple[Wish, Setup]:
    """The image opened or packed, the budget solved for it, and weights in memory to judge it by.

    Gives the wish without statistics of another model. Raises ImageError, DomainError.
    """
    options, checkpoint = wish.options, wish.checkpoint
    storage = open_storage(options, checkpoint, wish.device, resources, advance)
    wish = _of_this_model(wish, storage.image)
    layers = range(checkpoint.config.layers)
    layouts = tuple(storage.image.layouts[layer][0] for layer in layers)
    demand, budget = solve(wish, layouts[0])
    semantics = words.SEMANTICS[options.semantics]
    model = _load(wish, storage.image)
    ffns, read = None, storage.read
    if not options.no_proof:
        ffns = tuple(_widened(load_ffn(checkpoint, layer)) for layer in layers)
    proof = Proof(ffns, budget, semantics, exact=options.predictor in ("exact", "gate"))
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
    placement = words.PLACEMENTS[options.placement]
    decoder = Decoder(model, states, _predict(wish, model, ffns), placement, read, semantics)
    return wish, Setup(storage, layouts, demand, budget, ffns, proof, decoder)


def with_own_activation(wish: Wish, ffns: Sequence[FFN]) -> tuple[FFN, ...]:
    """The same weights, with the activation that the model came with."""
    activation, tau = wish.own
    return tuple(ffn._replace(activation=activation, tau=tau) for ffn in ffns)


def _of_this_model(wish: Wish, image: Image) -> Wish:
    """ImageError if trained predictors were fitted to another model; its statistics alone are left out."""
    predictors, options = wish.predictors, wish.options
    if predictors is None or predictors.origin is None or predictors.origin.fingerprint == image.fingerprint:
        return wish
    if options.predictor == "trained" or options.predictors:
        raise ImageError(
            f"{options.predictors or options.model / FILE_NAME}: was fitted to another model, or to "
            "other weights of it; fit others with `flashref train`"
        )
    return wish._replace(predictors=None)


def _load(wish: Wish, image: Image) -> Model:
    """What is resident of the model; as it is stored where memory is held to the budget."""
    checkpoint, options = wish.checkpoint, wish.options
    dtype = None if options.no_proof else np.float32
    model = load_model(checkpoint.config, partial(image_tensor, image), dtype)
    if options.predictor != "gate":
        return model
    gates = [image_tensor(image, fields["gate"]) for fields in checkpoint.layers]
    ffns = tuple(ffn._replace(gate=gate) for ffn, gate in zip(model.ffns, gates, strict=True))
    return model._replace(ffns=ffns)


def _predict(wish: Wish, model: Model, ffns: Sequence[FFN] | None) -> tuple[Predict | None, ...]:
    """A function x → ids for every layer; None for one that is resident whole."""
    kind = wish.options.predictor
    if kind == "gate":
        return tuple(gate_predictor(ffn) for ffn in model.ffns)
    if kind == "exact":
        if ffns is None:
            raise DomainError("the exact predictor needs the weights in memory; leave --no-proof out")
        return tuple(lambda x, ffn=ffn: active_neurons(x, ffn) for ffn in ffns)
    assert wish.predictors is not None
    found: list[Predict | None] = []
    for one in wish.predictors.layers:
        if one is not None and not wish.options.no_proof:
            one = one._replace(a=widen(one.a), b=widen(one.b))
        found.append(None if one is None else partial(predict_active, predictor=one))
    return tuple(found)


def _widened(ffn: FFN) -> FFN:
    """The same weights as float32: the same bits in every result, and no widening at every token."""
    arrays = {name: widen(array) for name, array in ffn._asdict().items() if isinstance(array, np.ndarray)}
    # Column by column: the pre-activations are summed over d.
    arrays |= {name: np.asfortranarray(arrays[name]) for name in ("gate", "up") if name in arrays}
    return FFN(**{**ffn._asdict(), **arrays})
