"""The JAX twin: jit = vmap = loop, gradients, bad ids, compiles. The kit judges its values too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import jax_adapter
from conftest import sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from flashref import ffn as reference
from flashref import slots, window, xla
from flashref.arithmetic import ACTIVATIONS, SLOPES
from flashref.bounds import TINY, ffn_bound
from flashref.conformance.strategies import SIZES, active_sets, dyadic_arrays, plain_arrays, stored
from flashref.predictor import active_band
from flashref.slots import Moves, Slots
from flashref.types import FFN, IdsError, Predictor, ShapeError
from flashref.window import Delta

U = 2.0**-24
BATCH = 2


@pytest.fixture(autouse=True, scope="module")
def strict_and_clean():
    """No silent promotion or broadcasting while these tests run, and no compiled programs after them."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
    jax.clear_caches()


def compiled(function):
    """jit with a cache of its own, and jit of vmap over all arguments but the second."""
    return jax.jit(lambda *of: function(*of)), jax.jit(jax.vmap(function, in_axes=(0, None, 0)))


def ids_of(padded):
    return np.asarray(padded.ids)[: int(padded.size)].tolist()


# --- jit = vmap = loop


# Activation, gated, biases (up, gate, down), stored dtype, (n, d): a program each, so few.
NETWORKS = [
    ("relu", False, (0, 0, 0), "F32", (5, 4)),
    ("squared_relu", True, (1, 0, 0), "F16", (3, 1)),
    ("fatrelu", False, (1, 0, 1), "BF16", (8, 6)),
    ("silu", True, (1, 1, 1), "F32", (11, 3)),
    ("gelu_tanh", False, (0, 0, 1), "F16", (1, 1)),
    ("gelu_erf", True, (0, 1, 0), "BF16", (5, 4)),
]


def draw_network(draw, network, arrays):
    activation, gated, (up_bias, gate_bias, down_bias), dtype, (n, d) = network

    def array(*shape):
        return stored(draw(arrays(shape)), dtype)

    return FFN(
        activation,
        array(n, d),
        array(n, d),
        array(n, d) if gated else None,
        array(n) if up_bias else None,
        array(n) if gate_bias else None,
        array(d) if down_bias else None,
        tau=0.25 if activation == "fatrelu" else 0.0,
    )


@pytest.mark.parametrize(
    "network", sampled(NETWORKS, NETWORKS[::3]), ids=[network[0] for network in NETWORKS]
)
def test_sparse_ffn_alone_and_in_a_batch_is_within_the_bound(network):
    alone, batched = compiled(xla.sparse_ffn)
    n, d = network[-1]

    @settings(max_examples=12)
    @given(st.data())
    def check(data):
        ffn = draw_network(data.draw, network, lambda shape: plain_arrays(shape, "F32", 8.0, False))
        xs = data.draw(plain_arrays((BATCH, d), "F32", 8.0, False))
        sets = [data.draw(active_sets(n)) for _ in range(BATCH)]
        active = [xla.pad_ids(ids, n) for ids in sets]
        together = numpy(batched(xs, ffn, stacked(active)))
        for i in range(BATCH):
            taken = reference.take_neurons(ffn, sets[i])
            near = 2 * ffn_bound(xs[i], taken)  # the reference has an error too
            right = reference.dense_ffn(xs[i], taken).astype(np.float64)
            for y, valid in (alone(xs[i], ffn, active[i]), (together[0][i], together[1][i])):
                assert valid and y.dtype == np.float32
                assert (np.abs(np.asarray(y) - right) <= near).all()

    check()


@settings(max_examples=12)
@given(st.data())
def test_predict_active_alone_and_in_a_batch_is_within_the_band(data):
    n, d = 8, 6
    arrays = [data.draw(plain_arrays(shape, "F32", 8.0, False)) for shape in ((2, d), (n, 2), (n,))]
    predictor = Predictor(*arrays, threshold=-0.5)
    xs = data.draw(plain_arrays((BATCH, d), "F32", 8.0, False))
    for x, ids, size in zip(xs, *numpy(PREDICT_BATCH(xs, predictor)), strict=True):
        must, may = map(set, (ids.tolist() for ids in active_band(x, predictor)))
        for found in (PREDICT(x, predictor), xla.Padded(ids, size)):
            assert must <= set(ids_of(found)) <= must | may
            assert ids_of(found) == sorted(set(ids_of(found)))


PREDICT = jax.jit(xla.predict_active)
PREDICT_BATCH = jax.jit(jax.vmap(xla.predict_active, in_axes=(0, None)))


def test_a_threshold_is_strict_and_more_ids_than_places_are_not_valid():
    predictor = Predictor(np.float32([[1, 1]]), np.float32([[1], [2], [-1], [3]]), None, 3.0)
    places = jax.jit(lambda *of: [xla.predict_active(*of, m=m) for m in (None, 1, 6)])
    every, few, more = places(np.float32([1, 2]), predictor)
    valid = jax.jit(lambda *sets: [xla.valid_ids(ids, 4) for ids in sets])(every, few, more)
    assert ids_of(every) == ids_of(more) == [1, 3] and few.ids.shape == (1,)
    assert valid == [True, False, True]


GRID = np.concatenate(
    [np.linspace(-110, 40, 30_001), np.linspace(-6, 3, 30_001), 10.0 ** np.arange(-30, 39), [-1.0764134]]
)  # the last: 4.15 u in gelu_erf if a rounding of its polynomial is forgotten


@pytest.mark.parametrize("name", SLOPES)
def test_smooth_activations_are_within_4_u_and_their_slopes_right(name):
    z = GRID.astype(np.float32)
    exact = ACTIVATIONS[name](np.clip(z.astype(np.float64), -1e9, 1e9), np.float32(0))
    near = z < 1e9
    y = np.asarray(jax.jit(xla.ACTIVATIONS[name])(z, np.float32(0)), np.float64)
    assert (np.abs(y - exact) <= 4 * U * np.abs(exact) + TINY)[near].all()
    assert (y[~near] == z[~near]).all()
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(lambda z: xla.ACTIVATIONS[name](z, 0.0))))(z))
    assert np.isfinite(slopes).all()
    near = np.abs(z) < 40  # a sum of terms up to |z| · 40 · 2u
    assert (np.abs(slopes - SLOPES[name](z.astype(np.float64))) <= 2.0**-18)[near].all()


# --- Stored rows


def test_rows_are_taken_bit_for_bit_subnormals_and_zeros_included():
    random = np.random.default_rng(0)
    for dtype, bits in ((np.float32, np.uint32), (np.float16, np.uint16), (np.uint16, np.uint16)):
        matrix = random.integers(0, 2 ** (8 * bits().itemsize), (8, 6)).astype(bits)
        matrix[0, :3] = 1, 1 << (8 * bits().itemsize - 1), 0  # a subnormal, −0, +0
        finite = matrix if dtype == np.uint16 else np.where(np.isfinite(matrix.view(dtype)), matrix, 0)
        rows, valid = jax.jit(xla.take_rows)(finite.view(dtype), xla.pad_ids([0, 3, 7], 5))
        assert valid and rows.dtype == dtype
        assert (np.asarray(rows).view(bits)[:3] == finite[[0, 3, 7]]).all()
        assert (np.asarray(rows)[3:] == 0).all()


def test_every_f16_and_every_normal_bf16_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16)
    widened = np.asarray(jax.jit(xla.widen)(every)).view(np.uint32)
    normal = (every & 0x7F80) > 0  # XLA on a CPU may flush the others
    assert (widened[normal] == every[normal].astype(np.uint32) << 16).all()
    halves = every.view(np.float16)[np.isfinite(every.view(np.float16))]
    widened = np.asarray(jax.jit(xla.widen)(halves))
    assert (widened.view(np.uint32) == halves.astype(np.float32).view(np.uint32)).all()


# --- Gradients


def slopes_of(function):
    """Of Σ weights · y by x and by every array of the network."""
    return jax.grad(lambda x, ffn, weights, *of: (weights * function(x, ffn, *of)).sum(), (0, 1))


SPARSE_SLOPES = slopes_of(lambda *of: xla.sparse_ffn(*of)[0])


@jax.jit
def dense_and_sparse_slopes(x, ffn, weights, active):
    return slopes_of(xla.dense_ffn)(x, ffn, weights), SPARSE_SLOPES(x, ffn, weights, active)


@pytest.mark.parametrize("activation", sampled(["relu", "squared_relu", "fatrelu"], ["fatrelu"]))
def test_gradients_equal_those_of_dense_if_all_active_are_there(activation):
    n, d = 5, 4
    gated = activation == "relu"
    network = (activation, gated, (1, gated, 1), "F32", (n, d))

    @settings(max_examples=15)
    @given(st.data())
    def check(data):  # dyadic, so that sums in any order are the same
        ffn = draw_network(data.draw, network, lambda shape: dyadic_arrays(shape, 1))
        x, weights = data.draw(dyadic_arrays((d,), 1)), data.draw(dyadic_arrays((d,), 1))
        active = np.union1d(reference.active_neurons(x, ffn), data.draw(active_sets(n)))
        padded = xla.pad_ids(active, 7)
        padded.ids[len(active) :] = data.draw(st.sampled_from([-5, 0, n, 2**31 - 1]))  # never looked at
        both = dense_and_sparse_slopes(x, ffn, weights, padded)
        for dense, sparse in zip(*map(jax.tree.leaves, numpy(both)), strict=True):
            assert (dense == sparse).all()

    check()


def test_gradients_equal_finite_differences_in_float64():
    activation, n, d, ids = "silu", 5, 4, np.array([0, 2, 3])
    random = np.random.default_rng(3)
    arrays = [random.uniform(-1, 1, shape) for shape in ((d,), (n, d), (n, d), (n, d), (n,), (n,), (d,))]
    weights = random.uniform(-1, 1, d)

    def exact(x, up, down, gate, up_bias, gate_bias, down_bias):
        h = ACTIVATIONS[activation]((gate @ x + gate_bias)[ids], np.float32(0)) * (up @ x + up_bias)[ids]
        return weights @ (h @ down[ids] + down_bias)

    x, *fields = (array.astype(np.float32) for array in arrays)
    arrays = [np.float64(array) for array in (x, *fields)]
    weights = np.float64(np.float32(weights))
    slopes = jax.jit(SPARSE_SLOPES)(
        x, FFN(activation, *fields), weights.astype(np.float32), xla.pad_ids(ids, n)
    )
    for i, slope in enumerate([slopes[0], *slopes[1][1:7]]):
        for where in np.ndindex(slope.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays]
                moved[i][where] += step
                values.append(exact(*moved))
            assert abs((values[0] - values[1]) / 2e-5 - slope[where]) < 100 * U + 1e-9


# --- Bad ids


def bad_sets(n):
    """Negative, n, far beyond, out of order, twice, twice at the end, more than places, less than none."""
    for ids in ([-1, 2], [0, n], [2, 2**31 - 1], [3, 1], [2, 2], [1, 2, 3, 3]):
        yield xla.pad_ids(ids, n)
    for size in (n + 1, -1):
        yield xla.Padded(np.arange(n, dtype=np.int32), np.int32(size))


def test_bad_ids_give_nan_and_a_false_flag():
    ffn = FFN("relu", *(np.ones((5, 4), np.float32) for _ in range(2)))
    x = np.ones(4, np.float32)
    take, sparse = jax.jit(xla.take_rows), jax.jit(xla.sparse_ffn)
    matrices = [stored(ffn.up, dtype) for dtype in ("F32", "F16", "BF16")]
    for active in bad_sets(5):
        y, valid = sparse(x, ffn, active)
        assert not valid and np.isnan(y).all()
        for matrix in matrices:
            rows, valid = take(matrix, active)
            nan = np.asarray(rows) == 0x7FC0 if matrix.dtype == np.uint16 else np.isnan(rows)
            assert not valid and nan.all()
    nowhere = xla.Padded(np.zeros(0, np.int32), np.int32(1))  # an id without a place
    y, valid = sparse(x, ffn, nowhere)
    assert not valid and np.isnan(y).all()
    for good in ([], [0], [4], [0, 1, 2, 3, 4]):
        y, valid = sparse(x, ffn, xla.pad_ids(good, 5))
        assert valid and (np.asarray(y) == 4 * len(good)).all()


def test_bad_ids_leave_a_window_and_slots_unchanged():
    update, place = WINDOW, PLACE[4]
    last = np.int32([0, -1, -1, 0, -1, -1])
    before = both(xla.Window(np.int32(2), np.int32(4), np.int32(2), last))  # an empty token would evict
    table = both(xla.Slots(np.int32([3, 0, 5, -1]), np.int32(2)))
    matrix = both(np.arange(8, dtype=np.uint16).reshape(4, 2))
    none = xla.pad_ids([], N)
    for active in bad_sets(N):
        after, delta, valid = numpy(update(before, both(active)))
        assert not valid.any()
        assert jax.tree.all(jax.tree.map(lambda old, new: (old == new).all(), before, after))
        assert not any(part.size.any() for part in delta)
    full, out, there = (xla.pad_ids(ids, N) for ids in ([1, 2, 4], [1], [3]))
    wrong = [
        (full, none),
        (none, out),
        (there, none),
        (there, there),
    ]  # load, evict: too many, not in, in already
    wrong += [(bad, none) for bad in bad_sets(N) if ids_of(bad) not in ([0, N], [2, 2**31 - 1])]
    for load, evict in wrong:
        change, rows = both(xla.Delta(load, evict, none)), np.zeros((BATCH, N, 2), np.uint16)
        for after, moves, valid, moved, inside in numpy(place([table] * 2, change, [matrix] * 2, rows)):
            assert not valid.any() and inside.all() and not any(part.size.any() for part in moves)
            assert (after.ids == table.ids).all() and (after.used == 2).all() and (moved == matrix).all()


def test_moves_of_rows_that_are_not_there_leave_the_matrix_unchanged():
    matrix, rows = np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros((1, 2), np.float32)
    apply, none = jax.jit(xla.apply_moves), xla.pad_ids([], 1)
    for bad in (-1, 3):
        row, one = xla.pad_ids([bad], 1), xla.pad_ids([0], 1)
        for moves in ((row, one, none), (one, row, none), (none, none, row), (one, none, none)):
            after, valid = apply(matrix, xla.Moves(*moves), rows)
            assert not valid and (after == matrix).all()


def test_what_narrowing_would_hide_is_refused():
    for ids in ([2**31], [2**32 + 1], [-(2**40)], np.uint64([2**63]), [0.5], [[0]], [0, 1, 2]):
        with pytest.raises(IdsError):
            xla.pad_ids(ids, 2)
    with pytest.raises(IdsError, match="int32"):
        xla.take_rows(jnp.ones((3, 1)), xla.Padded(np.int64([2**32]), np.int32(1)))


def test_shapes_dtypes_and_tau_are_refused():
    x, ffn = np.ones(4, np.float32), FFN("relu", *(np.ones((5, 4), np.float32) for _ in range(2)))
    none = xla.pad_ids([], 1)
    changes = [
        {"down": ffn.down[:, :3]},
        {"gate_bias": ffn.up[:, 0]},
        {"up_bias": x},
        {"up": ffn.up.astype(np.int32), "down": ffn.up.astype(np.int32)},
        {"activation": "elu"},
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"must be|needs|unknown"):
            xla.sparse_ffn(x, ffn._replace(**change), none)
    with pytest.raises(ShapeError):
        xla.dense_ffn(x[:3], ffn)
    with pytest.raises(ShapeError):
        xla.predict_active(x[:3], Predictor(ffn.up[:1], ffn.up[:, :1], None, 0.0))
    with pytest.raises(ShapeError):
        xla.apply_moves(ffn.up, xla.Moves(none, none, none), ffn.up[:2])
    dense = jax.jit(xla.dense_ffn)
    for tau in (-1.0, np.inf, np.nan):
        assert np.isnan(dense(x, ffn._replace(tau=tau))).all()


# --- Window and slots: equal to NumPy's, token by token, in a batch of sequences


def stacked(values):
    return jax.tree.map(lambda *parts: np.stack(parts), *values)


def both(value):
    return stacked([value] * BATCH)


def numpy(value):
    return jax.tree.map(np.asarray, value)


def one(padded, i):
    return xla.Padded(padded.ids[i], padded.size[i])


def placed(tables, delta, matrices, rows):
    """The first table and matrix by swap_with_last, the second by fill_holes."""
    results = []
    for place, table, matrix in zip((xla.swap_with_last, xla.fill_holes), tables, matrices, strict=True):
        after, moves, valid = place(table, delta)
        results.append((after, moves, valid, *xla.apply_moves(matrix, moves, rows)))
    return results


N = 6
# Integers and copies only, which no optimisation changes: the largest programs here are compiled in a hurry.
HURRIED = {"xla_backend_optimization_level": 0}
WINDOW = jax.jit(jax.vmap(xla.window_update), compiler_options=HURRIED)
PLACE = {  # fewer rows than places for loaded ids, and none
    rows: jax.jit(jax.vmap(placed), compiler_options=HURRIED) for rows in (4, 0)
}


@settings(max_examples=40)
@given(st.data())
def test_windows_and_slots_equal_the_reference_on_any_trace(data):
    height = data.draw(st.sampled_from(list(PLACE)))
    capacities = st.sampled_from(sorted({0, height // 2, height}))
    sizes = [(data.draw(st.integers(1, 4)), data.draw(capacities)) for _ in range(BATCH)]
    ours = stacked(xla.empty_window(N, *size) for size in sizes)
    theirs = [window.empty_window(N, *size) for size in sizes]
    weights = np.arange(N * 2, dtype=np.uint16).reshape(N, 2) + 1
    tables = [both(xla.empty_slots(height)) for _ in range(2)]
    matrices = [np.zeros((BATCH, height, 2), np.uint16) for _ in range(2)]
    for _ in range(data.draw(st.integers(1, 6))):
        sets = [data.draw(active_sets(N)) for _ in range(BATCH)]
        ours, delta, valid = numpy(WINDOW(ours, stacked(xla.pad_ids(ids, N) for ids in sets)))
        assert valid.all()
        expected = [window.window_update(w, ids) for w, ids in zip(theirs, sets, strict=True)]
        theirs = [after for after, _ in expected]
        rows = np.zeros((BATCH, N, 2), np.uint16)
        for i, (_, change) in enumerate(expected):
            assert [ids_of(one(part, i)) for part in delta] == [part.tolist() for part in change]
            assert ours.last[i].tolist() == theirs[i].last.tolist()
            rows[i, : len(change.load)] = weights[change.load]
        every = numpy(PLACE[height](tables, delta, matrices, rows))
        for p, place in enumerate((slots.swap_with_last, slots.fill_holes)):
            after, moves, valid, moved, inside = every[p]
            assert valid.all() and inside.all()
            for i, (_, change) in enumerate(expected):
                before = Slots(tables[p].ids[i].astype(np.int64), int(tables[p].used[i]))
                right, where = place(before, Delta(*change))
                assert after.ids[i].tolist() == right.ids.tolist() and after.used[i] == right.used
                assert [ids_of(one(part, i)) for part in moves] == [part.tolist() for part in where]
                right = slots.apply_moves(matrices[p][i], Moves(*where), weights[change.load])
                assert (moved[i] == right).all()
            tables[p], matrices[p] = after, moved


# --- Compiles


@pytest.fixture
def compiles():
    """A list that grows by one a program that XLA compiles."""
    seen = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_shape_is_compiled_once_whatever_it_holds(compiles):
    sparse, random = jax.jit(lambda *of: xla.sparse_ffn(*of)), np.random.default_rng(0)
    for repeat in range(3):
        for n, d in ((5, 4), (8, 6)):
            up, down = random.normal(size=(2, n, d)).astype(np.float32)
            ffn = FFN("fatrelu", up, down, tau=random.random())
            ids = np.flatnonzero(random.random(n) < 0.5)
            sparse(random.normal(size=d).astype(np.float32), ffn, xla.pad_ids(ids, n))
        assert len(compiles) == 2, repeat


@pytest.mark.ci
def test_the_adapter_has_one_program_an_operation_and_dtype(compiles):
    random = np.random.default_rng(0)
    for round_ in range(2):
        for i, (n, d) in enumerate(SIZES):
            up, down, gate = random.normal(size=(3, n, d)).astype(np.float32)
            x = random.normal(size=d).astype(np.float32)
            ffn = FFN(jax_adapter.ACTIVATIONS[i], up, down, gate if i % 2 else None, up[:, 0])
            ids = np.flatnonzero(random.random(n) < 0.5)
            near = 2 * ffn_bound(x, reference.take_neurons(ffn, ids))
            y = jax_adapter.sparse_ffn(x, *ffn, ids)
            assert (np.abs(y - reference.sparse_ffn(x, ffn, ids).astype(np.float64)) <= near).all()
            jax_adapter.predict_active(x, up[:1], down[:, :1], None, 0.0)
            with pytest.raises(IndexError):
                jax_adapter.sparse_ffn(x, *ffn, np.array([n]))  # there is padding, but no neuron
        if round_ == 0:
            first = len(compiles)
    assert len(compiles) == first <= 6 * 3
