"""Appendix C: what is in memory, in % of the model's bytes."""

from collections.abc import Mapping
from statistics import mean

from flashref.simulate.paper.derivation import FALCON_KEPT, OPT_KEPT, paper_shape
from flashref.simulate.paper.figure import DEVICE, Figure, FigureRow
from flashref.simulate.paper.table3 import Derived, models
from flashref.simulate.shapes.shape import shape_demand

# The shares of appendix C in %; nothing here is computed from them.
PAPER: Mapping[str, tuple[float, float, float, float]] = {
    "OPT 6.7B": (35.3, 1.25, 15.5, 52.1),
    "Falcon 7B": (23.6, 4.0, 25.3, 52.93),
}
PERSIMMON_ALL, LLAMA_GATES = 50.0, 65.0
PERSIMMON_MOST = 0.25  # the share of the FFN to which the window may grow, section C.3


def appendix_c() -> Figure:
    """Derive what is in memory, in % of the model: the sums of section C, and what its caps leave."""
    rows = [row for name in PAPER for row in _added_up(name)]
    others = {"Persimmon 8B": _persimmon_quarter, "Llama 2 7B": _llama_gates}
    for name, model in models().items():
        if model.limits:
            rows += _below_cap(name, model)
            rows += [others[name]()] if name in others else []
    predictors = next(row for row in rows if row.series == "OPT 6.7B: predictors").ours or 0.0
    return Figure(
        "Appendix C: what is in memory",
        "",
        "% of the model",
        "shapes, the ranks of the predictors, and the 24 % and 33 % of the neurons that section C keeps",
        tuple(rows),
        (
            (
                f"OPT's predictors of ranks 128 and 1024 are {predictors:.2f} % of the model in its own "
                "dtype, not 1.25 %. The sum in section C.1 is too small by the difference."
            ),
            (
                "“Always resident” counts embeddings, attention, norms, dense layers, predictors, checksums "
                "and a bypass buffer."
            ),
        ),
    )


def _added_up(name: str) -> list[FigureRow]:
    """The parts of a model that section C adds up."""
    preset, kept = {"OPT 6.7B": ("opt-6.7b", OPT_KEPT), "Falcon 7B": ("falcon-7b", FALCON_KEPT)}[name]
    shape = paper_shape(preset)
    demand = shape_demand(shape, DEVICE.block)
    window = kept * len(shape.sparse_layers) * shape.ffn_bytes
    ours = [demand.resident, demand.predictors, window, demand.resident + demand.predictors + window]
    parts = ("embeddings and attention", "predictors", "neurons of the window", "all")
    return [
        FigureRow(f"{name}: {part}", None, 100 * own / demand.total, given)
        for part, own, given in zip(parts, ours, PAPER[name], strict=True)
    ]


def _below_cap(name: str, model: Derived) -> list[FigureRow]:
    """What a model always needs, and the room for neurons that the paper's cap leaves besides."""
    shape = paper_shape(model.preset)
    demand = shape_demand(shape, DEVICE.block)
    room = int(model.memory * demand.total) - demand.fixed
    ffn = len(shape.sparse_layers) * shape.ffn_bytes
    cap = f"of the paper's cap of {100 * model.memory:.0f} %"
    return [
        FigureRow(f"{name}: always resident", None, 100 * demand.fixed / demand.total, None, cap),
        FigureRow(
            f"{name}: room for neurons",
            None,
            100 * room / demand.total,
            None,
            f"{100 * room / ffn:.1f} % of the neurons of layers with a predictor; one token has "
            f"{100 * mean(shape.sparse_densities):.1f} %",
        ),
    ]


def _persimmon_quarter() -> FigureRow:
    """What Persimmon needs if its window grows to 25 % of the FFN."""
    shape = paper_shape("persimmon-8b")
    demand = shape_demand(shape, DEVICE.block)
    ours = demand.fixed + PERSIMMON_MOST * shape.layers * shape.ffn_bytes
    note = "section C.3 allows 25 % of the FFN and 50 % of the model; by our count they do not go together"
    return FigureRow(
        "Persimmon 8B: with 25 % of the FFN", None, 100 * ours / demand.total, PERSIMMON_ALL, note
    )


def _llama_gates() -> FigureRow:
    """What Llama 2 needs if its gates are resident as exact predictors, with the neurons of one token."""
    shape = paper_shape("llama-2-7b")
    gates = shape.layers * shape.ffn_bytes / len(shape.fields)
    others = shape.layers * shape.ffn_bytes - gates
    ours = shape.resident_bytes + gates + mean(shape.densities) * others
    note = "10 % of the neurons are active; appendix C gives only the sum"
    name = "Llama 2 7B: gates as predictors, k = 1"
    return FigureRow(name, None, 100 * ours / shape.total_bytes, LLAMA_GATES, note)
