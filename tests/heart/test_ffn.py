"""Chapter 10: the FFN against exact arithmetic, and sparse against dense to the bit."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from flashref import active_neurons, dense_ffn, same, sparse_ffn
from flashref.arithmetic import activate
from flashref.bounds import ffn_bound
from flashref.conformance.definitions import exact_activation, exact_ffn, scalar_sum
from flashref.conformance.strategies import (
    ACTIVATIONS,
    DTYPES,
    dyadic_cases,
    id_sets,
    plain_arrays,
    plain_cases,
    read_only,
    stored,
)
from flashref.ffn import SPARSE_ACTIVATIONS, add_neurons, take_neurons
from flashref.types import FFN, DomainError, IdsError, ShapeError, widen


@pytest.mark.req("FFN-1")
@given(dyadic_cases())
def test_dense_is_exact_on_dyadic_data(case):
    assert dense_ffn(*read_only(case)).tolist() == [float(v) for v in exact_ffn(*case)]


@pytest.mark.req("FFN-4")
@given(dyadic_cases(), st.data())
def test_sparse_is_the_exact_sum_over_its_neurons(case, data):
    x, ffn = read_only(case)
    active = data.draw(id_sets(len(ffn.up)))
    event(f"{len(active)} of {len(ffn.up)}")
    assert sparse_ffn(x, ffn, active).tolist() == [float(v) for v in exact_ffn(x, ffn, active)]


@pytest.mark.req("FFN-5")
@given(plain_cases(), st.data())
def test_sparse_stays_within_the_bound_of_its_neurons(case, data):
    x, ffn = case
    active = data.draw(id_sets(len(ffn.up)))
    bound = ffn_bound(x, take_neurons(ffn, active))
    y = sparse_ffn(x, ffn, active)
    for got, want, most in zip(y, exact_ffn(x, ffn, active), bound, strict=True):
        assert abs(Fraction(float(got)) - want) <= Fraction(float(most))


def scalar_ffn(x, ffn):
    """The order of the reference, one float32 operation at a time; also the pre-activations."""

    def pre(matrix, bias):
        rows = widen(matrix)
        z = scalar_sum(x, rows.T, np.zeros(len(rows)))
        return (
            z if bias is None else np.array([np.float32(a + b) for a, b in zip(z, widen(bias), strict=True)])
        )

    z = pre(ffn.up, ffn.up_bias)
    gate = z if ffn.gate is None else pre(ffn.gate, ffn.gate_bias)
    h = activate(ffn.activation, gate, ffn.tau)
    if ffn.gate is not None:
        h = np.array([np.float32(a * b) for a, b in zip(h, z, strict=True)], np.float32)
    y = scalar_sum(h, widen(ffn.down), np.zeros(len(x)))
    if ffn.down_bias is not None:
        y = np.array([np.float32(a + b) for a, b in zip(y, widen(ffn.down_bias), strict=True)], np.float32)
    return y, gate


@pytest.mark.req("FFN-3", "FFN-10")
@given(plain_cases())
def test_dense_is_the_scalar_loop_and_activity_its_sign(case):
    x, ffn = read_only(case)
    y, z = scalar_ffn(x, ffn)
    assert same(dense_ffn(x, ffn), y)
    threshold = np.float32(ffn.tau) if ffn.activation == "fatrelu" else np.float32(0)
    smooth = ffn.activation in ("silu", "gelu_tanh", "gelu_erf")
    active = [i for i, value in enumerate(z) if smooth or value > threshold]
    assert same(active_neurons(x, ffn), np.array(active, np.int64))


@pytest.mark.req("FFN-6", "FFN-7")
@given(plain_cases(), st.data())
def test_a_set_that_covers_the_active_neurons_gives_the_bits_of_dense(case, data):
    x, ffn = case
    covering = sorted(set(active_neurons(x, ffn).tolist()) | set(data.draw(id_sets(len(ffn.up)))))
    event(f"skips {len(ffn.up) - len(covering)}")
    assert same(sparse_ffn(x, ffn, covering), dense_ffn(x, ffn))


@pytest.mark.req("FFN-7")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_every_combination_is_sparse_to_the_bit(dtype, activation, gated):
    rng = np.random.default_rng(3)
    for biases in product((False, True), repeat=3):

        def array(*shape, present=True):
            return stored(rng.standard_normal(shape, np.float32), dtype) if present else None

        ffn = FFN(
            activation,
            array(67, 19),
            array(67, 19),
            array(67, 19, present=gated),
            array(67, present=biases[0]),
            array(67, present=biases[1] and gated),
            array(19, present=biases[2]),
            tau=0.3,
        )
        x = rng.standard_normal(19, np.float32)
        active = active_neurons(x, ffn)
        assert (len(active) < 50) == (activation in SPARSE_ACTIVATIONS)
        covering = np.union1d(active, rng.choice(67, 9, replace=False))
        for ids in (active, covering):
            assert same(sparse_ffn(x, ffn, ids), dense_ffn(x, ffn))
        if len(active) < 67:  # a missing active neuron shows
            assert not same(sparse_ffn(x, ffn, active[1:]), dense_ffn(x, ffn))


@pytest.mark.req("FFN-6")
@given(dyadic_cases(), st.data())
def test_adding_inactive_neurons_changes_nothing_on_dyadic_data(case, data):
    x, ffn = case
    active = [
        i
        for i in range(len(ffn.up))
        if any(exact_ffn(x, ffn._replace(down_bias=None, down=np.ones_like(ffn.up)), [i]))
        or data.draw(st.booleans())
    ]
    assert same(sparse_ffn(x, ffn, active), dense_ffn(x, ffn))


@pytest.mark.req("FFN-4")
@given(dyadic_cases(), st.data())
def test_what_a_predictor_misses_is_a_sum_of_missing_terms(case, data):
    x, ffn = case
    n = len(ffn.up)
    kept = data.draw(id_sets(n))
    missing = sorted(set(range(n)) - set(kept))
    rest = sparse_ffn(x, ffn._replace(down_bias=None), missing)
    assert (sparse_ffn(x, ffn, kept) + rest).tolist() == dense_ffn(x, ffn).tolist()


@pytest.mark.req("FFN-1")
@given(dyadic_cases(dtypes=["F32"]), st.data())
def test_the_network_is_linear_in_down_on_dyadic_data(case, data):
    x, ffn = case
    ffn = ffn._replace(down_bias=None)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=ffn.down.size, max_size=ffn.down.size)))
    mask = mask.reshape(ffn.down.shape)
    one, other = (dense_ffn(x, ffn._replace(down=np.where(m, ffn.down, 0))) for m in (mask, ~mask))
    assert (one + other).tolist() == dense_ffn(x, ffn).tolist()
    assert dense_ffn(x, ffn._replace(down=2 * ffn.down)).tolist() == (2 * dense_ffn(x, ffn)).tolist()


@pytest.mark.req("FFN-8")
@given(plain_cases())
def test_the_empty_set_gives_the_down_bias(case):
    x, ffn = case
    expected = np.zeros(len(x), np.float32) if ffn.down_bias is None else widen(ffn.down_bias)
    assert same(sparse_ffn(x, ffn, []), expected + np.float32(0))


@pytest.mark.req("FFN-8")
@pytest.mark.parametrize("bad", [[3], [-1], [1, 0], [1, 1], [0.5]])
def test_bad_ids_are_refused(bad):
    ffn = FFN("relu", np.ones((3, 2), np.float32), np.ones((3, 2), np.float32))
    with pytest.raises(IdsError):
        sparse_ffn(np.float32([1, 1]), ffn, bad)


@pytest.mark.req("FFN-11")
@given(plain_cases(), st.data())
def test_rows_and_biases_travel_together(case, data):
    _, ffn = case
    ids = data.draw(id_sets(len(ffn.up)))
    taken = take_neurons(ffn, ids)
    for name in ("up", "down", "gate", "up_bias", "gate_bias"):
        whole, part = getattr(ffn, name), getattr(taken, name)
        assert (whole is None) == (part is None)
        if whole is not None:
            assert len(part) == len(ids)
            assert all(same(part[j], whole[i]) for j, i in enumerate(ids))
    assert same((taken.down_bias, taken.activation, taken.tau), (ffn.down_bias, ffn.activation, ffn.tau))


@pytest.mark.req("FFN-12")
@given(plain_cases(), st.data())
def test_a_sum_in_parts_is_the_sum_in_one(case, data):
    x, ffn = case
    n = len(ffn.up)
    cut = data.draw(st.integers(0, n))
    y = read_only(data.draw(plain_arrays(x.shape)))
    part = add_neurons(y, x, take_neurons(ffn, range(cut)))
    assert same(add_neurons(part, x, take_neurons(ffn, range(cut, n))), add_neurons(y, x, ffn))


@pytest.mark.req("FFN-9")
def test_what_does_not_fit_is_refused():
    f = np.float32
    good = FFN("relu", np.ones((3, 2), f), np.ones((3, 2), f))
    x = np.ones(2, f)
    dense_ffn(x, good)
    dense_ffn(x, good._replace(tau=float(np.finfo(f).max)))
    bad = [
        good._replace(down=np.ones((2, 3), f)),
        good._replace(down=np.ones((4, 2), f)),
        good._replace(down=np.ones((3, 2), np.float16)),
        good._replace(up=np.ones((3, 2), np.float16)),
        good._replace(up=np.ones(3, f)),
        good._replace(up=np.ones((3, 2, 1), f)),
        good._replace(gate=np.ones((2, 2), f)),
        good._replace(up_bias=np.ones(2, f)),
        good._replace(gate_bias=np.ones(3, f)),
        good._replace(down_bias=np.ones(3, f)),
        good._replace(up=np.ones((3, 2))),
    ]
    for ffn in bad:
        with pytest.raises(ShapeError):
            dense_ffn(x, ffn)
        for function in (active_neurons, lambda x, ffn: sparse_ffn(x, ffn, [0])):
            with pytest.raises(ShapeError):
                function(x, ffn)
    for size in (1, 3):
        with pytest.raises(ShapeError, match="y must have"):
            add_neurons(np.ones(size, f), x, good)
    for other in (np.ones(1, f), np.ones(3, f), np.ones(2), np.ones(2, np.float16), np.ones((1, 2), f)):
        with pytest.raises(ShapeError, match="x must be"):
            dense_ffn(other, good)
    for ffn in (
        good._replace(activation="swish"),
        good._replace(tau=-1.0),
        good._replace(tau=float("nan")),
        good._replace(tau=1e39),
    ):
        with pytest.raises(DomainError):
            dense_ffn(x, ffn)


def test_fatrelu_gives_z_itself_beyond_its_threshold():
    ffn = FFN("fatrelu", np.float32([[1]]), np.float32([[1]]), tau=0.5)
    given_x = np.float32([0.5, 0.75, -1])
    assert [dense_ffn(given_x[i : i + 1], ffn)[0] for i in range(3)] == [0, 0.75, 0]
    assert exact_activation("fatrelu", Fraction(3, 4), 0.5) == Fraction(3, 4)
