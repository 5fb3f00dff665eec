"""What a text costs with each method of the paper's Table 2, on its own model and at OPT 6.7B's shape."""

from typing import NamedTuple

import numpy as np

from flashref.models.opened import OpenModel
from flashref.models.text import GeneratedText
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.methods import Method, measured_cost, simulated_cost
from flashref.simulate.pieces import Replay, methods_of, replay_tokens
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.simulate.trace import ActivationTrace, trace_of


class Tables(NamedTuple):
    """The five methods of Table 2 on one text.

    methods: on the model that wrote the text.
    scaled: at OPT 6.7B's shape; empty if that was not asked for.
    """

    methods: tuple[Method, ...]
    scaled: tuple[Method, ...]


def trace_of_text(model: OpenModel, text: GeneratedText) -> ActivationTrace:
    """Make a trace of what was predicted for a text; `simulate` replays it, and `save_trace` keeps it.

    Args:
        model: the model that wrote the text.
        text: a text of `generate`.

    Returns:
        The trace: of the layers that are not resident whole; the tokens of the prompt are its warm-up.
    """
    neurons = model.prepared.checkpoint.config.neurons
    predicted = [[ids.astype(np.int64) for ids in layers] for layers in text.record.predicted]
    return trace_of(predicted, [neurons] * len(model.prepared.sparse), text.record.first_counted)


def tables_of_text(model: OpenModel, text: GeneratedText, scaled: bool = True) -> Tables:
    """Compute what a new token of a text would have cost with each method of the paper's Table 2.

    Args:
        model: the model that wrote the text.
        text: a text of `generate`.
        scaled: whether to replay the text at OPT 6.7B's shape too.

    Returns:
        The tables. Times are simulated on the model's device. They are measured too if its reader is
        "direct" and the same weights lie on flash without bundling.
    """
    setup = model.open()
    request, sparse = setup.prepared.request, list(setup.prepared.sparse)
    costs = [simulated_cost(request.device)]
    if setup.storage.read_rows is not None:
        costs.append(measured_cost(setup.storage.read, setup.storage.read_rows))
    bundled = tuple(setup.layouts[layer] for layer in sparse)
    rows = setup.storage.rows
    flash = Flash(
        bundled=bundled,
        unbundled=tuple(rows[layer] for layer in sparse) if rows else tuple(map(unbundled_layouts, bundled)),
        image_bytes=setup.storage.image.container.size,
        tensor_bytes=setup.demand.total,
    )
    demand = setup.demand._replace(layers=len(sparse), dense=())
    budget = setup.budget._replace(capacities=tuple(setup.budget.capacities[layer] for layer in sparse))
    replay = Replay(flash, demand, budget, request.placement, costs)
    record = text.record
    methods = methods_of(
        replay,
        replay_tokens(replay, record.predicted, record.first_counted),
        len(record.predicted) - record.first_counted,
    )
    if not scaled:
        return Tables(methods, ())
    mean, largest = (None if known is None else known[sparse] for known in setup.prepared.statistics)
    neurons = bundled[0].n
    large = scale_to_opt_6_7b(
        record, neurons, request.window, (mean, largest), request.placement, request.device
    )
    return Tables(methods, large)
