"""Decision 8's budget: what is counted, how rows are shared, and which window is chosen; exact fractions."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from flashref.bundle import bundle_layout
from flashref.models.budget import UNITS, Amount, Demand, demand_of, solve_budget
from flashref.types import DomainError

# One layer of 20 neurons of width 16 in F16: a bundle has 2 · 16 · 2 = 64 bytes, and so has its stride.
LAYOUT = bundle_layout(20, 16, "F16")
TENSORS = {
    "embed.weight": 1000,
    "positions.weight": 100,
    "q.weight": 512,
    "q.bias": 32,
    "norm.weight": 32,
    "norm.bias": 32,
    "head.weight": 1000,
    "0.up.weight": 640,
    "0.up.bias": 40,
    "0.down.weight": 640,
    "1.up.weight": 640,
    "1.down.weight": 640,
    "1.down.bias": 32,
}
MATRICES = [f"{layer}.{field}.weight" for layer in (0, 1) for field in ("up", "down")]


def test_what_is_counted_worked_by_hand():
    demand = demand_of(TENSORS, MATRICES, predictors=300, layers=2, layout=LAYOUT)
    # Everything but the FFN matrices and the biases: 1000 + 100 + 512 + 32 + 1000.
    assert demand == Demand(total=5340, resident=2644, predictors=300, layers=2, neurons=20, stride=64)
    assert demand.bypass_rows == 2  # 20/16, and a part of a row is a row
    # A CRC-32 for each of 2 · 20 bundles, and 2 rows of bypass.
    assert demand.fixed == 2644 + 300 + 2 * 20 * 4 + 2 * 64


@pytest.mark.parametrize(("neurons", "rows"), [(1, 1), (16, 1), (17, 2), (1024, 64)])
def test_the_bypass_buffer_has_a_sixteenth_of_a_layer(neurons, rows):
    assert Demand(10, 0, 0, 1, neurons, 64).bypass_rows == rows


def test_a_budget_worked_by_hand():
    demand = Demand(total=10_000, resident=1000, predictors=200, layers=2, neurons=50, stride=64)
    # Fixed: 1200 + 4 · 100 + 4 · 64 = 1856. Of 5000 bytes 3144 are left: 49 rows of 64, and 8 bytes.
    largest = np.array([[4, 10], [8, 20]])
    budget = solve_budget(demand, 0.5, 2, None, largest)
    assert budget == (5000, 2, (16, 32), 1856 + 48 * 64)  # 49 · 10/30 = 16.3 and 49 · 20/30 = 32.7
    assert all(type(rows) is int for rows in budget.capacities)
    # Nothing stored: in proportion to n. All of memory: 127 rows for two layers of 50.
    assert solve_budget(demand, 0.5, None, None, None).capacities == (24, 24)
    assert solve_budget(demand, 1, None, None, None) == (10_000, 5, (50, 50), 1856 + 100 * 64)


def test_the_window_is_the_largest_whose_mean_fits_every_layer():
    demand = Demand(total=10_000, resident=1000, predictors=200, layers=2, neurons=50, stride=64)
    largest = np.array([[10, 20, 30, 40, 50], [5, 10, 15, 20, 25]])
    # 49 rows shared as 2 to 1, whatever the window: 32 and 16.
    mean = np.array([[8, 16, 24, 32.0, 40], [4, 8, 12, 16.0, 20]])
    assert solve_budget(demand, 0.5, None, mean, largest)[1:3] == (4, (32, 16))
    assert solve_budget(demand, 0.5, None, mean + np.array([[0], [0.1]]), largest).window == 3  # one
    assert solve_budget(demand, 0.5, None, mean * 100, largest).window == 1
    assert solve_budget(demand, 0.5, 7, mean, largest)[1:3] == (7, (32, 16))  # as asked, fit or not
    # Of windows beyond what was measured, the longest measured speaks.
    assert solve_budget(demand, 0.5, None, mean[:, :3], largest[:, :3]).window == 5
    assert solve_budget(
        demand, 0.5, 9, mean, largest * [1, 1, 1, 1, 0] + np.array([[0], [1]])
    ).capacities == (0, 49)


@st.composite
def cases(draw):
    layers, neurons = draw(st.integers(1, 4)), draw(st.integers(1, 60))
    demand = Demand(
        draw(st.integers(1, 200_000)),
        draw(st.integers(0, 5000)),
        draw(st.integers(0, 500)),
        layers,
        neurons,
        draw(st.sampled_from([8, 64, 4096])),
    )
    windows = draw(st.integers(1, 6))
    largest = [
        sorted(draw(st.lists(st.integers(0, neurons), min_size=windows, max_size=windows)))
        for _ in range(layers)
    ]
    shares = draw(st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(9, 10)]))
    return demand, largest, [[float(rows * shares) for rows in row] for row in largest]


def rows_by_definition(demand, memory, largest, k):
    """Decision 8 in exact fractions: what is left, in proportion, floored, at most n."""
    fixed = demand.resident + demand.predictors + 4 * demand.neurons * demand.layers
    fixed += math.ceil(Fraction(demand.neurons, 16)) * demand.stride
    rows = (memory - fixed) // demand.stride
    weights = [demand.neurons] * demand.layers
    if largest and any(row[min(k, len(row)) - 1] for row in largest):
        weights = [row[min(k, len(row)) - 1] for row in largest]
    return [min(demand.neurons, math.floor(Fraction(rows * w, sum(weights)))) for w in weights]


@given(cases(), st.integers(1, 1000), st.none() | st.integers(1, 8), st.booleans())
@example((Demand(100, 29, 0, 1, 1, 1), [[1]], [[1.0]]), 340, None, True)  # fixed: 29 + 4 + 1 = 34
def test_rows_and_window_equal_the_definition(case, thousandths, window, known):
    demand, largest, mean = case
    memory = demand.total * thousandths // 1000
    assume(memory >= demand.fixed)
    arrays = (np.array(mean), np.array(largest, np.int32)) if known else (None, None)
    budget = solve_budget(demand, thousandths / 1000, window, *arrays)
    expected = window or (5 if not known else None)
    for k in [expected] if expected else range(5, 0, -1):
        rows = rows_by_definition(demand, memory, largest if known else None, k)
        if (
            expected
            or k == 1
            or all(row[min(k, len(row)) - 1] <= held for row, held in zip(mean, rows, strict=True))
        ):
            break
    assert budget == (memory, k, tuple(rows), demand.fixed + sum(rows) * demand.stride)
    assert budget.dram_bytes <= budget.memory


@given(cases())
@example((Demand(100, 24, 0, 1, 1, 1), [[1]], [[1.0]]))  # 0.29 · 100 is 28.999999999999996 in floats
def test_the_smallest_fraction_that_is_named_works_and_a_thousandth_less_does_not(case):
    demand, *_ = case
    with pytest.raises(DomainError) as caught:
        solve_budget(demand, 1e-9, None, None, None)
    found = re.search(r"the smallest that works is (\d\.\d{3})$", str(caught.value))
    if demand.fixed > demand.total:
        assert str(caught.value).endswith(
            "no share is enough: use smaller predictors, or none with --predictor exact"
        )
        return
    solve_budget(demand, float(found[1]), None, None, None)
    less = float(Fraction(found[1]) - Fraction(1, 1000))
    with pytest.raises(DomainError, match="must always be in memory"):
        solve_budget(demand, less, None, None, None)


def test_layers_that_are_dense_are_counted_and_get_no_rows():
    # As above, but the second layer's matrices are resident: 2 · 640 more.
    demand = demand_of(TENSORS, MATRICES[:2], 300, 2, LAYOUT, dense=(1,))
    assert demand == Demand(5340, 2644 + 1280, 300, 2, 20, 64, (1,))
    demand = Demand(total=10_000, resident=1000, predictors=200, layers=3, neurons=50, stride=64, dense=(1,))
    # Fixed: 1200 + 4 · 150 + 4 · 64 = 2056. Of 5000 bytes 2944 are left: 46 rows.
    assert solve_budget(demand, 0.5, None, None, None).capacities == (23, 0, 23)
    largest = np.array([[10, 10], [50, 50], [20, 20]])
    assert solve_budget(demand, 0.5, 2, None, largest).capacities == (15, 0, 30)
    # What a dense layer needs decides on no window.
    mean = np.array([[10.0, 10], [50, 50], [20, 20]])
    assert solve_budget(demand, 0.5, None, mean, largest).window == 5
    assert solve_budget(demand, 0.5, None, mean * 2, largest).window == 1
    # Statistics of nothing but dense layers are none; no layer on flash needs no rows.
    assert solve_budget(demand, 0.5, 2, None, largest * [[0], [1], [0]]).capacities == (23, 0, 23)
    assert solve_budget(demand._replace(dense=(0, 1, 2)), 0.5, 2, None, largest).capacities == (0, 0, 0)


@pytest.mark.parametrize(
    ("number", "unit", "memory"),
    [
        ("5", "kB", 5000),
        ("5", "KiB", 5120),
        ("0.0049", "MB", 4900),
        ("5000", "B", 5000),
        ("1", "MiB", 1 << 20),
    ]
    + [("1", unit, UNITS[unit]) for unit in ("GB", "GiB", "TB", "TiB")],
)
def test_bytes_of_a_unit(number, unit, memory):
    demand = Demand(total=10_000, resident=1000, predictors=200, layers=2, neurons=50, stride=64)
    budget = solve_budget(demand, Amount(Fraction(number), unit), 2, None, None)
    assert budget.memory == memory
    rows = min((memory - 1856) // 64 // 2, 50)
    assert budget.capacities == (rows, rows) and budget.dram_bytes == 1856 + 2 * rows * 64


def test_units_of_1000_and_of_1024():
    assert UNITS == {
        "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    }  # fmt: skip


@given(cases(), st.sampled_from(list(UNITS)))
@example((Demand(100, 994, 0, 1, 1, 1), [[1]], [[1.0]]), "kB")  # fixed: 999 bytes
@example((Demand(100, 995, 0, 1, 1, 1), [[1]], [[1.0]]), "kB")  # and 1000
def test_the_smallest_amount_that_is_named_works_and_a_step_less_does_not(case, unit):
    demand, *_ = case
    with pytest.raises(DomainError) as caught:
        solve_budget(demand, Amount(Fraction(0), unit), None, None, None)
    found = re.search(rf"the smallest that works is (\d+(?:\.\d{{3}})?){unit}$", str(caught.value))
    solve_budget(demand, Amount(Fraction(found[1]), unit), None, None, None)
    step = Fraction(1, 1 if unit == "B" else 1000)
    with pytest.raises(DomainError, match=f"{unit} is .* must always be in memory"):
        solve_budget(demand, Amount(Fraction(found[1]) - step, unit), None, None, None)


@pytest.mark.parametrize(
    ("memory", "what", "available", "smallest"),
    [
        (0.5, "0.5 of the model", 17, "1.000"),
        (0.123456789, "0.123456789 of the model", 4, "1.000"),  # a share is told as it was typed
        (Amount(Fraction(20), "B"), "20B", 20, "34B"),
        (Amount(Fraction("0.02"), "kB"), "0.02kB", 20, "0.034kB"),
        (Amount(Fraction("33.99"), "B"), "33.99B", 33, "34B"),
    ],
)
def test_a_memory_that_is_too_small_in_words(memory, what, available, smallest):
    demand = Demand(total=34, resident=29, predictors=0, layers=1, neurons=1, stride=1)  # fixed: 29 + 4 + 1
    with pytest.raises(DomainError) as caught:
        solve_budget(demand, memory, None, None, None)
    assert str(caught.value) == (
        f"{what} is {available} B, but 34 B must always be in memory; the smallest that works is {smallest}"
    )


def test_sizes_that_would_read_alike_are_told_in_bytes():
    demand = Demand(total=2_000_000, resident=1_000_395, predictors=0, layers=1, neurons=1, stride=1)
    with pytest.raises(DomainError) as caught:
        solve_budget(demand, 0.5, None, None, None)
    assert str(caught.value) == (
        "0.5 of the model is 1,000,000 bytes, but 1,000,400 bytes must always be in memory; "
        "the smallest that works is 0.501"
    )


def test_rows_and_bytes_are_exact_where_floats_are_not():
    demand = Demand(total=10_000, resident=1000, predictors=200, layers=2, neurons=50, stride=64)
    # 49 rows are shared as 1 to 48; in floats 49 · (1/49) is 0.9999999999999999.
    assert solve_budget(demand, 0.5, 1, None, np.array([[1], [48]])).capacities == (1, 48)
    # And 1.001 · 1000 is 1000.9999999999999.
    small = demand._replace(resident=0, predictors=0, neurons=1)
    assert solve_budget(small, Amount(Fraction("1.001"), "kB"), 1, None, None).memory == 1001
