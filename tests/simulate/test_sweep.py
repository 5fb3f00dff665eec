"""Many configurations of one trace: means by hand, and the same outcomes from every executor."""

import itertools
import multiprocessing
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from math import ceil

import numpy as np
import pytest

from flashref.bundle import bundle_extents, bundle_layout
from flashref.models.budget import Demand
from flashref.simulate import sweep as module
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.orders import ORDERS, by_use
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.policies import POLICIES, Study
from flashref.simulate.sweep import (
    Choices,
    Configuration,
    Estimate,
    Grid,
    Impossible,
    configurations,
    irrelevant,
    sweep,
)
from flashref.simulate.tokens import Host
from flashref.simulate.trace import trace_of
from flashref.simulate.window import uses_of
from flashref.slots import empty_slots, swap_with_last
from flashref.storage.device import PRESETS, read_time
from flashref.storage.plan import read_plan
from flashref.window import empty_window, resident_neurons, window_update

N, D, LAYERS, WARM, BLOCK = 40, 24, 2, 2, 64
LAYOUT = bundle_layout(N, D, "F16", ("up", "down"), BLOCK)  # 96 bytes on a stride of 128
RESIDENT, PREDICTORS = 3000, 700
DEMAND = Demand(20_000, RESIDENT, PREDICTORS, LAYERS, N, LAYOUT.stride)
FLASH = Flash((LAYOUT,) * LAYERS, (unbundled_layouts(LAYOUT),) * LAYERS, 12_800, 12_345)
HOST = Host(copy_bandwidth=3 * 10**8, compute_bandwidth=7 * 10**8)
DEVICES = {"gen4": PRESETS["nvme_gen4"]._replace(block=BLOCK), "ufs": PRESETS["ufs40"]._replace(block=BLOCK)}
CHOICES = Choices(POLICIES, ORDERS, DEVICES, HOST)


def study_of(tokens):
    generator = np.random.default_rng(7)
    popular = generator.beta(0.3, 1.0, (LAYERS, N))
    predicted = [
        [np.flatnonzero(generator.random(N) < popular[layer]) for layer in range(LAYERS)]
        for _ in range(tokens)
    ]
    return predicted, Study(uses_of(trace_of(predicted, [N] * LAYERS, WARM), 5), FLASH, DEMAND, moved_by_swap)


PREDICTED, STUDY = study_of(9)
ASKED = configurations(
    Grid(
        ["naive", "hybrid", "window", "lru"],
        [0.2, 0.6, 0.9],
        [None, 2],
        ["natural", "use"],
        [False, True],
        [0, 256],
        list(DEVICES),
    )
)


@pytest.fixture(scope="module")
def outcomes():
    return list(sweep(STUDY, CHOICES, ASKED))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("bundled", "order", "max_gap"), [(True, "natural", 0), (False, "use", 256)])
def test_an_outcome_is_the_mean_of_sums_token_by_token(bundled, order, max_gap, device):
    """Everything again from window_update, swap_with_last, bundle_extents, read_plan and read_time."""
    (outcome,) = sweep(STUDY, CHOICES, [Configuration("window", 0.9, 3, order, bundled, max_gap, device)])
    kept = POLICIES["window"](STUDY, 0.9, 3)
    orders = [None, None] if order == "natural" else by_use(STUDY.uses.trace)
    windows = [empty_window(N, 3, N)] * LAYERS
    slots = [empty_slots(N)] * LAYERS
    rows = []
    for token, layers in enumerate(PREDICTED):
        useful = read = requests = io = copied = weights = 0
        for layer, ids in enumerate(layers):
            windows[layer], delta = window_update(windows[layer], ids)
            slots[layer], moves = swap_with_last(slots[layer], delta)
            fields = [LAYOUT] if bundled else unbundled_layouts(LAYOUT)
            extents = [
                extent
                for field in fields
                for extent in bundle_extents(field._replace(order=orders[layer]), delta.load)
            ]
            plan = read_plan(extents, BLOCK, max_gap)
            useful += 96 * len(delta.load)
            read += sum(extent.length for extent in plan)
            requests += len(plan)
            io += read_time(DEVICES[device], [extent.length for extent in plan])
            copied += 96 * (len(delta.load) + len(moves.source))
            weights += 96 * len(resident_neurons(windows[layer]))
        weights += RESIDENT + PREDICTORS
        memory = ceil(copied * 10**9 / HOST.copy_bandwidth)
        compute = ceil(weights * 10**9 / HOST.compute_bandwidth)
        if token >= WARM:
            total, overlapped = io + memory + compute, max(io, memory + compute)
            rows.append([useful, read, requests, copied, io, memory, compute, total, overlapped])
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    means[4:] = [mean / 1e6 for mean in means[4:]]
    assert outcome[3:-1] == pytest.approx(means, rel=1e-12)
    assert outcome.window == 3 and outcome.dram_bytes == kept.dram_bytes


def test_hybrid_and_naive_are_one_batch_of_reads_of_a_mebibyte_in_whole_blocks():
    small = list(
        sweep(
            STUDY,
            CHOICES,
            configurations(Grid(["naive", "hybrid"], [0.9], [None], ["natural"], [True], [0], ["ufs"])),
        )
    )
    large = STUDY._replace(flash=FLASH._replace(image_bytes=(5 << 20) // 2))
    (whole,) = sweep(large, CHOICES, [small[0].configuration])
    sizes = [1 << 20, 1 << 20, 1 << 19]
    assert (whole.reads, whole.read_bytes, whole.useful_bytes) == (3, sum(sizes), 12_345)
    assert whole.io_ms == read_time(DEVICES["ufs"], sizes) / 1e6
    assert whole.compute_ms == ceil((RESIDENT + LAYERS * N * 96) * 10**9 / HOST.compute_bandwidth) / 1e6
    # 0.9 of 20,000 bytes, less 3,000, holds two layers of 40 · 128 bytes: nothing is left to read.
    assert (small[1].reads, small[1].read_bytes, small[1].io_ms) == (0, 0, 0)


def test_what_cannot_be_is_refused_in_its_place_and_the_rest_is_answered(outcomes):
    assert [each.configuration for each in outcomes] == ASKED
    for each in outcomes:
        if each.configuration.policy != "naive" and each.configuration.memory == 0.2:
            assert isinstance(each, Impossible) and "must always be in memory" in each.reason
        else:
            assert isinstance(each, Estimate)


def test_every_combination_is_asked_once_if_it_makes_a_difference():
    lists = (
        ["naive", "hybrid", "predictor", "window", "lru"],
        [0.3, 0.5],
        [None, 4],
        ["natural", "use"],
        [False, True],
        [0, 64],
        ["a", "b"],
    )
    asked = configurations(Grid(*lists))
    assert len(asked) == len(set(asked)) == 2 + 2 * 2 + 2 * 8 * 2 + 4 * 8 * 2 + 2 * 8 * 2
    for each in itertools.product(*lists):
        configuration = Configuration(*each)
        alike = [
            one
            for one in asked
            if all(
                getattr(one, field) == getattr(configuration, field)
                for field in set(Configuration._fields) - irrelevant(configuration.policy)
            )
        ]
        assert len(alike) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_irrelevant_to_a_policy_changes_nothing(policy):
    usual = Configuration(policy, 0.35, 3, "natural", False, 0, "gen4")
    other = {"memory": 0.6, "window": 1, "order": "use", "bundled": True, "max_gap": 4096}
    (expected,) = sweep(STUDY, CHOICES, [usual])
    nothing = irrelevant(policy)
    if policy == "predictor":
        del other["memory"]  # which only decides whether it is possible
    for field, value in other.items():
        (found,) = sweep(STUDY, CHOICES, [usual._replace(**{field: value})])
        assert (found[1:] == expected[1:]) == (field in nothing), field


def test_without_room_for_what_is_always_resident_there_is_no_predictor_either():
    least = STUDY.demand.fixed / STUDY.demand.total
    asked = [
        Configuration(policy, round(least / 2, 3), None, "natural", True, 0, "gen4")
        for policy in ("naive", "predictor", "window")
    ]
    naive, *others = sweep(STUDY, CHOICES, asked)
    assert isinstance(naive, Estimate)
    assert [isinstance(each, Impossible) for each in others] == [True, True]


def test_neighbours_share_the_work(monkeypatch, outcomes):
    calls = []

    def counting(name):
        function = getattr(module, name)

        def counted(*arguments):
            calls.append(name)
            return function(*arguments)

        return counted

    for name in ("read_sizes", "batch_times"):
        monkeypatch.setattr(module, name, counting(name))

    def policy(*arguments):
        calls.append("policy")
        return POLICIES["window"](*arguments)

    def order(trace):
        calls.append("order")
        return by_use(trace)

    asked = configurations(
        Grid(["window"], [0.6, 0.9], [None, 2], ["use"], [False, True], [0, 256], list(DEVICES))
    )
    choices = Choices({"window": policy}, {"use": order}, DEVICES, HOST)
    assert len(list(sweep(STUDY, choices, asked))) == 32
    counts = {name: calls.count(name) for name in set(calls)}
    assert counts == {"order": 1, "policy": 4, "read_sizes": 16, "batch_times": 32}


class Recording(Executor):
    """Runs a task when its result is asked for, and records what it got."""

    def __init__(self):
        self.tasks = []
        self.futures = []

    def submit(self, function, /, *arguments, **keywords):
        self.tasks.append(arguments)
        future = Future()
        self.futures.append(future)
        if len(self.futures) == 1:
            future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize(("parts", "lengths"), [(1, [5]), (2, [3, 2]), (4, [2, 2, 1]), (9, [1] * 5)])
def test_an_executor_gets_so_many_parts(parts, lengths):
    executor = Recording()
    outcomes = sweep(STUDY, CHOICES, ASKED[:5], executor, parts)
    next(outcomes)
    assert [len(task.configurations) for (task,) in executor.tasks] == lengths
    assert [each for (task,) in executor.tasks for each in task.configurations] == ASKED[:5]
    outcomes.close()  # whoever stops asking wants no more work done
    assert all(future.cancelled() for future in executor.futures[1:])


def test_without_configurations_there_are_no_outcomes():
    assert list(sweep(STUDY, CHOICES, [])) == []
    assert list(sweep(STUDY, CHOICES, [], Recording(), 3)) == []


def test_threads_give_the_same_outcomes(outcomes):
    with ThreadPoolExecutor(2) as executor:
        assert list(sweep(STUDY, CHOICES, ASKED, executor, 5)) == outcomes


def test_processes_give_the_same_outcomes(outcomes):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert list(sweep(STUDY, CHOICES, ASKED, executor, 3)) == outcomes


def test_every_policy_can_be_sent_to_a_process():
    asked = configurations(Grid(list(POLICIES), [0.6], [2], ["natural"], [True], [0], ["gen4"]))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert list(sweep(STUDY, CHOICES, asked, executor)) == list(sweep(STUDY, CHOICES, asked))


@pytest.mark.ci
def test_a_dask_cluster_of_two_workers_gives_the_same_outcomes(outcomes, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        with client.get_executor() as executor:
            assert list(sweep(STUDY, CHOICES, ASKED, executor, 4)) == outcomes
        assert len(client.scheduler_info()["workers"]) == 2
    assert not multiprocessing.active_children()
