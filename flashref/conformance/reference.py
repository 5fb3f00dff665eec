"""flashref's own NumPy functions as an adapter: the first user of the kit, and an example (chapter 96).

A module with functions is all that an adapter needs: `flashref conformance flashref.conformance.reference`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flashref import __version__, bundle, decode, ffn, gather, slots, window
from flashref import predictor as predictor_chapter
from flashref.bundle import Layout
from flashref.conformance.adapter import COUNTERS
from flashref.decode import ResidentFFN, Step
from flashref.storage import plan
from flashref.storage.device import PRESETS
from flashref.storage.readers import memory_reader
from flashref.types import FFN, Array, DomainError, Extent, Ids, Predictor, Reader, stored_dtype
from flashref.window import Delta

name = "flashref"
version = __version__
unsupported: Mapping[str, str] = {}

# Words of chapter 96 → functions; another word is refused.
PLACEMENTS = {"swap_with_last": slots.swap_with_last, "fill_holes": slots.fill_holes}
SEMANTICS = {"resident": decode.sum_resident, "predicted": decode.sum_predicted}


def predict_active(x: Array, *of: Any) -> Ids:
    """The ids that the predictor (a, b, bias, threshold) calls active."""
    return predictor_chapter.predict_active(x, Predictor(*of))


def dense_ffn(x: Array, *of: Any) -> Array:
    """The FFN of all neurons."""
    return ffn.dense_ffn(x, FFN(*of))


def sparse_ffn(x: Array, *of: Any) -> Array:
    """The FFN of the neurons in the last argument."""
    *network, active = of
    return ffn.sparse_ffn(x, FFN(*network), active)


def bundle_layout(*of: Any) -> Any:
    """The stride, and (offset, length) of each id's bundle."""
    *layout_of, ids = of
    layout = bundle.bundle_layout(*layout_of)
    return layout.stride, bundle.bundle_extents(layout, ids)


def pack_bundles(n: int, d: int, dtype: str, fields: Any, block: int, order: Any, matrices: Any) -> Array:
    """The bytes of all bundles; one matrix a field."""
    layout = bundle.bundle_layout(n, d, dtype, fields, block, 0, order)
    return bundle.pack_bundles(layout, dict(zip(fields, matrices, strict=False)))


def unpack_bundles(n: int, d: int, dtype: str, fields: Any, block: int, order: Any, packed: Array) -> Any:
    """The matrices again, in the order of the fields."""
    layout = bundle.bundle_layout(n, d, dtype, fields, block, 0, order)
    return list(bundle.unpack_bundles(layout, packed).values())


def read_plan(extents: Array, block: int, max_gap: int) -> Any:
    """Aligned reads (offset, length) that cover the extents."""
    return plan.read_plan([Extent(*pair) for pair in extents.tolist()], block, max_gap)


def gather_rows(image: Array, *of: Any) -> Any:
    """Rows (m, fields, d), and [requests, useful_bytes, read_bytes]."""
    *layout_of, ids, max_gap = of
    layout = bundle.bundle_layout(*layout_of)
    rows, io = gather.gather_rows(_reader(image, layout.block), layout, ids, max_gap)
    return rows, io[:3]


def run_window(n: int, k: int, capacities: Any, actives: Any) -> Any:
    """[load, evict, bypass] of every sequence, token and layer."""
    answer: list[Any] = []
    for sequence in actives:
        windows = [window.empty_window(n, k, capacity) for capacity in capacities]
        answer.append([])
        for token in sequence:
            updated = [window.window_update(w, active) for w, active in zip(windows, token, strict=True)]
            windows = [after for after, _ in updated]
            answer[-1].append([delta for _, delta in updated])
    return answer


def run_slots(capacity: int, placement: str, deltas: Any, rows: Any) -> Any:
    """After every step: the ids in use, their rows, and how many rows were moved."""
    table, steps = slots.empty_slots(capacity), []
    matrix = np.zeros((capacity, *rows[0].shape[1:]), rows[0].dtype)
    for delta, new in zip(deltas, rows, strict=True):
        table, moves = _choice(PLACEMENTS, placement)(table, Delta(*delta))
        matrix = slots.apply_moves(matrix, moves, new)
        steps.append([table.ids[: table.used], matrix[: table.used], len(moves.source)])
    return steps


def run_decode(
    layers: Any,
    xs: Array,
    k: int,
    capacities: Any,
    semantics: str,
    placement: str,
    block: int,
    max_gap: int,
    bypass_rows: int,
) -> Any:
    """Every sequence, token and layer, each layer read from an image of its own: (ys, counters)."""
    place, choose = _choice(PLACEMENTS, placement), _choice(SEMANTICS, semantics)
    flash = [_packed(network, block) for network, _ in layers]
    ys, steps = [], []
    for sequence in xs:
        states = [
            decode.empty_layer(layout, resident, k, capacity, bypass_rows, max_gap)
            for (layout, resident, _), capacity in zip(flash, capacities, strict=True)
        ]
        for x in sequence:
            for number, ((_, predictor), (*_, read)) in enumerate(zip(layers, flash, strict=True)):
                predict = partial(predictor_chapter.predict_active, predictor=predictor)
                y, states[number], step = decode.decode_layer(states[number], x, predict, place, read, choose)
                ys.append(y)
                steps.append(step)
    shape = (*xs.shape[:2], len(layers))
    return np.reshape(ys, (*shape, xs.shape[2])), _counters(steps, shape)


def logits(model_dir: str, token_ids: Ids, predictor: str) -> Any:
    """The logits after each token of a model directory, its FFNs read from images in memory."""
    # Here: the kit starts this adapter again after every crash, and loading the models takes half of a start.
    from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
    from flashref.models.model import load_model, one_at_a_time
    from flashref.models.predictors import FILE_NAME, load_predictors

    checkpoint = open_checkpoint(model_dir)
    config = checkpoint.config
    model = load_model(config, partial(load_tensor, checkpoint))
    networks = [load_ffn(checkpoint, layer) for layer in range(config.layers)]
    predict: Sequence[decode.Predict] = [partial(ffn.active_neurons, ffn=network) for network in networks]
    if predictor == "trained":
        path = Path(model_dir) / FILE_NAME
        trained = load_predictors(path, config.layers, config.neurons, config.width).layers
        everything = np.arange(config.neurons)  # of a layer without a predictor (decision 15)
        predict = [
            partial(predictor_chapter.predict_active, predictor=one) if one else lambda x: everything
            for one in trained
        ]
    flash = [_packed(network, 4096) for network in networks]
    states = [decode.empty_layer(layout, resident, 4, layout.n // 2) for layout, resident, _ in flash]
    steps = []

    def feed_forward(layer: int, x: Array) -> Array:
        y, states[layer], step = decode.decode_layer(
            states[layer], x, predict[layer], slots.swap_with_last, flash[layer][2], decode.sum_predicted
        )
        steps.append(step)
        return y

    forward = one_at_a_time(model, feed_forward)
    after_each = np.stack([forward(token) for token in token_ids.tolist()])
    return after_each, _counters(steps, (len(token_ids), config.layers))


def _choice(functions: Mapping[str, Any], word: str) -> Any:
    """The function that a word names."""
    if word not in functions:
        raise DomainError(f"{word!r} is unknown; use one of {', '.join(functions)}")
    return functions[word]


def _packed(network: FFN, block: int) -> tuple[Layout, ResidentFFN, Reader]:
    """A layer's layout, what stays resident of it, and a reader of its image."""
    matrices = {"gate": network.gate, "up": network.up, "down": network.down}
    stored = {field: matrix for field, matrix in matrices.items() if matrix is not None}
    n, d = network.up.shape
    layout = bundle.bundle_layout(n, d, stored_dtype(network.up), tuple(stored), block)
    biases = network.up_bias, network.gate_bias, network.down_bias
    resident = ResidentFFN(network.activation, None, *biases, network.tau)
    return layout, resident, _reader(bundle.pack_bundles(layout, stored), block)


def _reader(image: Array, block: int) -> Reader:
    """A reader of an image in memory; zeros follow up to the next block."""
    padded = np.concatenate([image, np.zeros(-len(image) % block, np.uint8)])
    return memory_reader(padded, PRESETS["paper_m1max_fig2b"]._replace(block=block))


def _counters(steps: Sequence[Step], shape: tuple[int, ...]) -> dict[str, Array]:
    """The counters of steps in this shape, under their names."""
    rows = [
        (len(step.load), len(step.bypass), len(step.evict), *step.io[:3], len(step.moves.source))
        for step in steps
    ]
    columns = np.reshape(rows, (*shape, len(COUNTERS)))
    return {name: columns[..., i] for i, name in enumerate(COUNTERS)}
