"""What each policy reads, keeps and multiplies, against the definitions and the replays of one trace."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref.bundle import bundle_layout
from flashref.conformance.strategies import id_sets
from flashref.decode import read_batches
from flashref.models.budget import Demand, solve_budget
from flashref.simulate.caches.classic import lfu
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.methods import simulated_cost
from flashref.simulate.orders import ORDERS
from flashref.simulate.pieces import Replay, methods_of, replay_tokens
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.policies import POLICIES, Study
from flashref.simulate.sweep import Choices, Estimate, Grid, Impossible, configurations, sweep
from flashref.simulate.tokens import Host
from flashref.simulate.trace import trace_of
from flashref.simulate.window import uses_of
from flashref.slots import swap_with_last
from flashref.storage.device import PRESETS
from flashref.types import same
from flashref.window import empty_window, resident_neurons, window_update

CACHES = [name for name in POLICIES if name not in ("naive", "hybrid", "predictor", "window")]
BLOCK = 64
DEVICES = {"fast": PRESETS["nvme_gen4"]._replace(block=BLOCK)}
HOST = Host(10**9, 2 * 10**9)


@st.composite
def models(draw):
    """predicted[token][layer], a study of it with one size for all layers, and its fields."""
    n, d = draw(st.integers(1, 20)), draw(st.integers(1, 24))
    layers, tokens = draw(st.integers(1, 3)), draw(st.integers(2, 7))
    predicted = [[np.array(draw(id_sets(n)), np.int64) for _ in range(layers)] for _ in range(tokens)]
    warm = draw(st.integers(1, tokens - 1))
    layout = bundle_layout(n, d, "F16", ("up", "down"), BLOCK)
    ffn = layers * n * layout.bundle_bytes
    resident, predictors = draw(st.integers(0, 4000)), draw(st.integers(0, 500))
    flash = Flash(
        bundled=(layout,) * layers,
        unbundled=(unbundled_layouts(layout),) * layers,
        image_bytes=BLOCK * draw(st.integers(1, 100)),
        tensor_bytes=resident + ffn,
    )
    demand = Demand(0, resident, predictors, layers, n, layout.stride)
    demand = demand._replace(total=demand.fixed + draw(st.integers(0, ffn)))  # rows for none, some or all
    uses = uses_of(trace_of(predicted, [n] * layers, warm), 5)
    return predicted, Study(uses, flash, demand, moved_by_swap)


memories = st.floats(0.3, 1).map(lambda share: round(share, 2))


def kept_by(name, study, memory, window=None):
    """What the policy keeps, and in what memory: all, if that which was drawn is too little."""
    if memory * study.demand.total < study.demand.fixed:
        memory = 1.0
    return POLICIES[name](study, memory, window), memory


def test_naive_reads_the_image_and_keeps_nothing():
    predicted = [[[0, 1]], [[2]]]
    layout = bundle_layout(4, 8, "F16", ("up", "down"), BLOCK)
    flash = Flash((layout,), (unbundled_layouts(layout),), 1024, 900)
    study = Study(uses_of(trace_of(predicted, [4]), 1), flash, Demand(900, 50, 7, 1, 4, 32), moved_by_swap)
    kept = POLICIES["naive"](study, 0.001, None)  # of any memory
    assert [run.length for run in kept.runs] == [1024]
    assert (kept.useful_run_bytes, kept.dense_bytes, kept.dram_bytes) == (900, 50, 0)
    assert kept.summed.tolist() == [[4], [4]]
    assert kept.window is None and not len(kept.reads.ids)


@given(models(), memories)
def test_hybrid_keeps_whole_layers_from_the_first_on(model, memory):
    study = model[1]
    kept, memory = kept_by("hybrid", study, memory)
    demand, layout = study.demand, study.flash.bundled[0]
    layer_bytes = demand.neurons * demand.stride
    whole = min(max(int(memory * demand.total) - demand.resident, 0) // layer_bytes, demand.layers)
    assert kept.dram_bytes == demand.resident + whole * layer_bytes
    assert len(kept.runs) == demand.layers - whole
    lengths = [run.length for run in kept.runs]
    assert all(run % BLOCK == 0 and layer_bytes <= run < layer_bytes + BLOCK for run in lengths)
    assert kept.useful_run_bytes == (demand.layers - whole) * demand.neurons * layout.bundle_bytes
    assert (kept.summed == demand.neurons).all() and kept.dense_bytes == demand.resident
    assert not len(kept.reads.ids)


@given(models())
def test_the_predictor_reads_all_that_is_predicted_and_keeps_none(model):
    predicted, study = model
    kept, _ = kept_by("predictor", study, 1.0)
    sizes = [[len(ids) for ids in layers] for layers in predicted]
    assert np.diff(kept.reads.starts).reshape(-1, study.demand.layers).tolist() == sizes
    assert kept.reads.ids.tolist() == [i for layers in predicted for ids in layers for i in ids.tolist()]
    assert kept.summed.tolist() == sizes and not kept.reads.resident.any()
    assert kept.dram_bytes == study.demand.fixed
    assert kept.dense_bytes == study.demand.resident + study.demand.predictors
    assert kept.runs == () and kept.useful_run_bytes == 0


@given(models(), memories, st.none() | st.integers(1, 5))
def test_the_window_is_that_of_window_update_with_rows_by_largest_need(model, memory, window):
    predicted, study = model
    kept, memory = kept_by("window", study, memory, min(window, len(predicted)) if window else None)
    demand, layers = study.demand, study.demand.layers
    unbounded = np.zeros((len(predicted), layers, 5), int)
    for k in range(1, 6):
        for layer in range(layers):
            for token in range(len(predicted)):
                sets = [predicted[t][layer].tolist() for t in range(max(token - k + 1, 0), token + 1)]
                unbounded[token, layer, k - 1] = len(set().union(*sets))
    longest = min(5, len(predicted))
    statistics = unbounded[:, :, :longest].mean(0), unbounded[:, :, :longest].max(0)
    asked = min(window, len(predicted)) if window else None
    budget = solve_budget(demand, memory, asked, *statistics)
    assert (kept.window, kept.dram_bytes) == (budget.window, budget.dram_bytes)
    wanted = unbounded[study.uses.trace.first_counted :, :, min(budget.window, longest) - 1]
    assert kept.overfull == np.mean([row > budget.capacities for row in wanted])

    summed, batches = [], []
    windows = [empty_window(demand.neurons, budget.window, rows) for rows in budget.capacities]
    for layers_of_token in predicted:
        for layer, ids in enumerate(layers_of_token):
            windows[layer], delta = window_update(windows[layer], ids)
            summed.append(len(resident_neurons(windows[layer])) + len(delta.bypass))
            batches += [batch.tolist() for batch in read_batches(delta, demand.bypass_rows)]
    assert kept.summed.reshape(-1).tolist() == summed
    assert [part.tolist() for part in np.split(kept.reads.ids, kept.reads.starts[1:-1])] == batches
    assert kept.dense_bytes == demand.resident + demand.predictors


@pytest.mark.parametrize("name", CACHES)
@given(models(), memories)
def test_a_cache_has_the_memory_that_a_window_would_have(name, model, memory):
    study = model[1]
    kept, memory = kept_by(name, study, memory)
    demand = study.demand
    units = kept.reads.resident.sum(axis=1)
    assert (demand.fixed + units * demand.stride <= int(round(memory * 100) * demand.total // 100)).all()
    assert kept.dram_bytes == demand.fixed + int(units.max()) * demand.stride
    assert kept.summed.tolist() == [[len(ids) for ids in layers] for layers in model[0]]
    assert kept.dense_bytes == demand.resident + demand.predictors
    assert kept.window is None and kept.runs == ()


@given(models())
def test_no_cache_reads_less_than_belady(model):
    counted = {}
    for name in CACHES:
        kept, _ = kept_by(name, model[1], 1.0)
        trace = model[1].uses.trace
        counted[name] = int(np.diff(kept.reads.starts)[trace.first_counted * trace.layers :].sum())
    assert min(counted.values()) == counted["belady"]


def test_a_window_that_is_not_given_is_the_largest_whose_mean_need_fits():
    n = 20
    predicted = [[[0]]] * 15 + [[list(range(n))]] + [[[0]]] * 4
    layout = bundle_layout(n, 8, "F16", ("up", "down"), BLOCK)
    flash = Flash((layout,), (unbundled_layouts(layout),), 1024, 900)
    demand = Demand(0, 50, 7, 1, n, 32)
    study = Study(
        uses_of(trace_of(predicted, [n]), 5),
        flash,
        demand._replace(total=demand.fixed + 10 * 32),
        moved_by_swap,
    )
    # With k = 5 a mean of 5.75 rows is needed, and 20 at most: ten do for the one and not for the other.
    assert POLICIES["window"](study, 1.0, None).window == 5


def test_lfu_halves_its_counts_every_32_tokens():
    generator = np.random.default_rng(3)
    often = np.where(np.arange(70)[:, None] < 35, np.linspace(0.9, 0.05, 16), np.linspace(0.05, 0.9, 16))
    predicted = [[np.flatnonzero(generator.random(16) < chances)] for chances in often]
    layout = bundle_layout(16, 8, "F16", ("up", "down"), BLOCK)
    demand = Demand(0, 50, 7, 1, 16, 32)
    study = Study(
        uses_of(trace_of(predicted, [16]), 5),
        Flash((layout,), (unbundled_layouts(layout),), 1024, 900),
        demand._replace(total=demand.fixed + 6 * 32),
        moved_by_swap,
    )
    trace = study.uses.trace
    every_32, every_token, never = (lfu(period)(trace, (32,), 6 * 32) for period in (32, 1, 1000))
    kept = POLICIES["lfu"](study, 1.0, None)
    assert same(kept.reads, every_32)
    assert not same(kept.reads, every_token) and not same(kept.reads, never)


def test_pinned_needs_tokens_that_are_not_counted():
    layout = bundle_layout(4, 8, "F16", ("up", "down"), BLOCK)
    flash = Flash((layout,), (unbundled_layouts(layout),), 1024, 900)
    study = Study(uses_of(trace_of([[[0, 1]]], [4]), 1), flash, Demand(900, 50, 7, 1, 4, 32), moved_by_swap)
    choices = Choices(POLICIES, ORDERS, DEVICES, HOST)
    asked = configurations(Grid(["pinned", "lru"], [1.0], [None], ["natural"], [True], [0], ["fast"]))
    first, second = sweep(study, choices, asked)
    assert isinstance(first, Impossible) and "has no warm-up tokens" in first.reason
    assert isinstance(second, Estimate)


@given(models(), memories, st.none() | st.integers(1, 2))
def test_the_five_methods_cost_what_their_replays_do(model, memory, window):
    """flashref run's replays, one token after the other, and the sweep's arrays give the same figures."""
    predicted, study = model
    _, memory = kept_by("predictor", study, memory)
    demand, trace = study.demand, study.uses.trace
    unions = study.uses.unions
    budget = solve_budget(demand, memory, window, unions.mean(axis=0), unions.max(axis=0))
    device = DEVICES["fast"]
    replay = Replay(study.flash, demand, budget, swap_with_last, [simulated_cost(device)])
    totals = replay_tokens(replay, predicted, trace.first_counted)
    methods = methods_of(replay, totals, trace.tokens - trace.first_counted)
    asked = configurations(
        Grid(
            ["naive", "hybrid", "predictor", "window"],
            [memory],
            [window],
            ["natural"],
            [False, True],
            [0],
            ["fast"],
        )
    )
    outcomes = {
        (each.configuration.policy, each.configuration.bundled): each
        for each in sweep(study, Choices(POLICIES, ORDERS, DEVICES, HOST), asked)
    }
    assert len(outcomes) == 6
    same = [("naive", True), ("hybrid", True), ("predictor", False), ("window", False), ("window", True)]
    for method, key in zip(methods, same, strict=True):
        outcome = outcomes[key]
        assert outcome.dram_bytes == method.dram_bytes
        for field, value in (
            (outcome.useful_bytes, method.useful_bytes_per_token),
            (outcome.read_bytes, method.flash_bytes_per_token),
            (outcome.reads, method.reads_per_token),
            (outcome.io_ms, method.simulated_io_ms_per_token),
        ):
            assert field == pytest.approx(value, rel=1e-12)
    loaded = POLICIES["window"](study, memory, window).reads.loaded[trace.first_counted :].sum(axis=1).mean()
    copied = loaded * study.flash.bundled[0].bundle_bytes + methods[-1].dram_moved_bytes_per_token
    assert outcomes["window", True].copied_bytes == pytest.approx(copied, rel=1e-12)
    assert outcomes["window", False].copied_bytes == pytest.approx(copied, rel=1e-12)
    assert [outcomes[key].copied_bytes for key in same[:3]] == [0, 0, 0]
