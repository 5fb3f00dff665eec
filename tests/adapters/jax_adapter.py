"""flashref.xla as an adapter of the conformance kit: NumPy in, NumPy out, and few compiled programs.

A new shape costs XLA 70 ms and more, so neurons, widths and ids are padded with zeros, which is exact, to one
shape (64, or the next power of two), and activations are branches of one program. What padding would hide is
asked before: shapes and dtypes by tracing, ids against the true n by `valid_ids`. A False flag becomes an
IndexError.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import flashref
from flashref import xla
from flashref.types import FFN, STORED_DTYPES, DomainError, IdsError, Predictor, ShapeError, widen

name = "flashref.xla"
version = flashref.__version__
dtypes = frozenset({"F32", "F16", "BF16"})
accumulate = "F32"
flushes_subnormals = True
max_elements = None
unsupported = {
    **dict.fromkeys(
        ("bundle_layout", "pack_bundles", "unpack_bundles", "gather_rows", "read_plan"),
        "bytes and offsets stay out of JAX",
    ),
    "logits": "xla has no transformer yet",
}

ACTIVATIONS = tuple(xla.ACTIVATIONS)
PLACEMENTS = ("swap_with_last", "fill_holes")
SEMANTICS = ("resident", "predicted")
INT32_MAX = 2**31 - 1
SCALAR = jax.ShapeDtypeStruct((), np.float32)
FLOAT32_MAX = float(np.finfo(np.float32).max)


# --- Networks and predictors


def predict_active(x, a, b, bias, threshold):
    predictor = _padded_predictor(x, Predictor(a, b, bias, threshold))
    ids, size = _predict(_padded(x, _room(len(x))), predictor)
    found = np.asarray(ids)[: int(size)].astype(np.int64)
    return found[found < len(b)]  # a neuron of padding has the logit 0


def dense_ffn(x, *of):
    ffn = FFN(*of)
    program, x_padded, padded = _padded_ffn(x, ffn)
    return np.array(_dense(program, x_padded, padded))[: len(x)]


def sparse_ffn(x, *of):
    *fields, active = of
    ffn = FFN(*fields)
    program, x_padded, padded = _padded_ffn(x, ffn)
    y, valid = _sparse(program, x_padded, padded, _padded_ids(active, len(ffn.up)), len(ffn.up))
    _refuse_unless(valid)
    return np.array(y)[: len(x)]


_predict = jax.jit(xla.predict_active)


def _programs(function):
    """A function of (FFN, …), for each activation, without and with a gate."""

    def without_gate(activation):
        return lambda ffn, *rest: function(
            ffn._replace(activation=activation, gate=None, gate_bias=None), *rest
        )

    def with_gate(activation):
        return lambda ffn, *rest: function(ffn._replace(activation=activation), *rest)

    return [choose(activation) for choose in (without_gate, with_gate) for activation in ACTIVATIONS]


@jax.jit
def _dense(program, x, ffn):
    return jax.lax.switch(program, _programs(lambda ffn: xla.dense_ffn(x, ffn)), ffn)


@jax.jit
def _sparse(program, x, ffn, active, n):
    y, valid = jax.lax.switch(program, _programs(lambda ffn: xla.sparse_ffn(x, ffn, active)), ffn)
    return y, valid & xla.valid_ids(active, n)


def _padded_ffn(x, ffn):
    """The number of its program, x and the network with gate and biases of zeros where it has none."""
    if ffn.activation not in ACTIVATIONS:
        raise DomainError(f"xla: there is no activation {ffn.activation!r}")
    _refuse_shapes(xla.dense_ffn, _shape(x), FFN(ACTIVATIONS[0], *map(_shape, ffn[1:7]), SCALAR))
    if not 0 <= ffn.tau <= FLOAT32_MAX:
        raise DomainError(f"tau must be at least 0 and finite in float32, not {ffn.tau}")
    n, d = _room(len(ffn.up)), _room(len(x))
    shapes = ((n, d), (n, d), (n, d), (n,), (n,), (d,))
    fields = [
        np.zeros(shape, ffn.up.dtype) if field is None else _padded(field, *shape)
        for field, shape in zip(ffn[1:7], shapes, strict=True)
    ]
    program = ACTIVATIONS.index(ffn.activation) + len(ACTIVATIONS) * (ffn.gate is not None)
    return program, _padded(x, d), FFN("", *fields, np.float32(ffn.tau))


def _padded_predictor(x, predictor):
    a, b, bias, threshold = predictor
    _refuse_shapes(xla.predict_active, _shape(x), Predictor(_shape(a), _shape(b), _shape(bias), SCALAR))
    if np.isnan(threshold):
        raise DomainError("a threshold must be a number, not NaN")
    n, r, d = map(_room, (len(b), *a.shape))
    bias = np.zeros(n, b.dtype) if bias is None else _padded(bias, n)
    return Predictor(_padded(a, r, d), _padded(b, n, r), bias, np.float32(threshold))


# --- The window


def run_window(n, k, capacities, actives):
    if n < 1:
        raise DomainError(f"a window needs n ≥ 1, not {n}")
    tokens = max(map(len, actives), default=0)
    lanes = [(s, layer) for s in range(len(actives)) for layer in range(len(capacities))]
    windows = [_empty_window(n, k, capacity) for capacity in capacities]
    if not tokens or not lanes:
        return [[[] for _ in sequence] for sequence in actives]
    places = _room(n)
    ids = np.zeros((_room(tokens, 16), _room(len(lanes), 16), places), np.int32)
    sizes = np.zeros(ids.shape[:2], np.int32)
    for lane, (s, layer) in enumerate(lanes):
        for t, token in enumerate(actives[s]):
            ids[t, lane], sizes[t, lane] = _padded_ids(token[layer], n)
    each = [windows[layer] for _, layer in lanes] + [windows[0]] * (ids.shape[1] - len(lanes))
    deltas, valid = _windows(jax.tree.map(lambda *parts: np.stack(parts), *each), xla.Padded(ids, sizes), n)
    _refuse_unless(valid)
    deltas = jax.tree.map(np.asarray, deltas)
    return [
        [
            [_ids_of(deltas, (t, s * len(capacities) + layer)) for layer in range(len(capacities))]
            for t in range(len(sequence))
        ]
        for s, sequence in enumerate(actives)
    ]


@jax.jit
def _windows(windows, actives, n):
    """Tokens one after the other, sequences and layers side by side."""

    def token(windows, active):
        windows, deltas, valid = jax.vmap(xla.window_update)(windows, active)
        return windows, (deltas, valid & jax.vmap(xla.valid_ids, (0, None))(active, n))

    return jax.lax.scan(token, windows, actives)[1]


def _empty_window(n, k, capacity):
    # No trace has 2^31 tokens, no layer as many neurons: what is larger means the same.
    return xla.empty_window(_room(n), min(k, INT32_MAX), min(capacity, INT32_MAX))


def _ids_of(deltas, where):
    return [part.ids[where][: part.size[where]].astype(np.int64) for part in deltas]


# --- The DRAM matrix


def run_slots(capacity, placement, deltas, rows):
    number, steps = PLACEMENTS.index(placement), []
    slots = xla.empty_slots(capacity if capacity < 0 else _room(capacity))
    matrix = None
    for delta, new in zip(deltas, rows, strict=True):
        if len(new) != len(delta[0]):
            raise ShapeError(f"{len(delta[0])} ids to load, but {len(new)} rows")
        if new.shape[1:] != rows[0].shape[1:] or new.dtype != rows[0].dtype:
            raise ShapeError(f"rows of {new.dtype} {new.shape[1:]} do not fit the matrix")
        m = _room(max(map(len, delta)))
        width = int(np.prod(new.shape[1:]))
        flat = _padded(new.reshape(len(new), width), m, _room(width, 128))
        if matrix is None:
            matrix = np.zeros((len(slots.ids), flat.shape[1]), flat.dtype)
        padded = xla.Delta(*(xla.pad_ids(ids, m) for ids in delta))
        slots, matrix, moved, valid = _place(number, slots, matrix, padded, flat)
        _refuse_unless(valid)
        used = int(slots.used)
        if used > capacity:  # the padded matrix has more rows
            raise DomainError(f"{used} rows do not fit a matrix of {capacity}")
        kept = np.array(matrix)[:used, :width].reshape(used, *new.shape[1:])
        steps.append([np.asarray(slots.ids)[:used].astype(np.int64), kept, int(moved)])
    return steps


@jax.jit
def _place(placement, slots, matrix, delta, rows):
    placements = [getattr(xla, name) for name in PLACEMENTS]
    slots, moves, valid = jax.lax.switch(placement, placements, slots, delta)
    matrix, inside = xla.apply_moves(matrix, moves, rows)
    return slots, matrix, moves.source.size, valid & inside


# --- A token through a layer


def run_decode(layers, xs, k, capacities, semantics, placement, block, max_gap, bypass_rows):
    if bypass_rows is not None and bypass_rows < 1:
        raise DomainError(f"the bypass buffer needs at least one row, not {bypass_rows}")
    choices = PLACEMENTS.index(placement), SEMANTICS.index(semantics)
    names = ("loaded", "evicted", "bypassed", "moved_rows")
    shape = (*xs.shape[:2], len(layers))
    counters = {counter: np.zeros(shape, np.int64) for counter in (*names, "useful_bytes")}
    ys = np.zeros((*shape, xs.shape[2]), np.float32)
    for layer, ((network, predictor), capacity) in enumerate(zip(layers, capacities, strict=True)):
        ffn, predictor = FFN(*network), Predictor(*predictor)
        program = _layer(xs[0, 0] if xs.size else np.zeros(xs.shape[2], np.float32), ffn, predictor)
        bundle_bytes = (2 + (ffn.gate is not None)) * ffn.up.nbytes // len(ffn.up)
        first = _empty_layer(len(ffn.up), k, capacity, program[1])
        for s, sequence in enumerate(xs):
            state = first
            for t, x in enumerate(sequence):
                padded = _padded(x, _room(len(x)))
                y, state, sizes, valid = _decode(choices, state, padded, *program, len(ffn.up))
                _refuse_unless(valid)
                ys[s, t, layer] = np.asarray(y)[: len(x)]
                for counter, size in zip(names, np.asarray(sizes), strict=True):
                    counters[counter][s, t, layer] = size
                read = counters["loaded"][s, t, layer] + counters["bypassed"][s, t, layer]
                counters["useful_bytes"][s, t, layer] = read * bundle_bytes
    return ys, counters


def _layer(x, ffn, predictor):
    """Activation, bundles (n, 3 d), biases and predictor. Without a gate, up is the gate of ones."""
    predictor = _padded_predictor(x, predictor)
    # float32, whatever its dtype is, so that there is one program for each dtype of the network.
    predictor = Predictor(*map(widen, predictor[:3]), predictor.threshold)
    _, _, padded = _padded_ffn(x, ffn)
    if ffn.gate is None:
        one = np.uint16(0x3F80) if ffn.up.dtype == np.uint16 else ffn.up.dtype.type(1)
        padded = padded._replace(
            gate=padded.up,
            gate_bias=padded.up_bias,
            up=np.zeros_like(padded.up),
            up_bias=np.full_like(padded.up_bias, one),
        )
    bundles = np.concatenate([padded.gate, padded.up, padded.down], axis=1)
    rest = padded.up_bias, padded.gate_bias, padded.down_bias, padded.tau
    return ACTIVATIONS.index(ffn.activation), bundles, rest, predictor


def _empty_layer(n, k, capacity, bundles):
    rows = _room(min(capacity, n))
    return (
        _empty_window(n, k, capacity),
        xla.empty_slots(rows),
        np.zeros((rows, bundles.shape[1]), bundles.dtype),
    )


@jax.jit
def _decode(choices, state, x, activation, bundles, biases, predictor, n):
    window, slots, matrix = state
    placement, predicted_only = choices
    active = xla.predict_active(x, predictor)
    places = jnp.arange(len(bundles))
    active = active._replace(size=((places < active.size) & (active.ids < n)).sum(dtype=jnp.int32))

    window, delta, known = xla.window_update(window, active)
    rows, _ = xla.take_rows(bundles, delta.load)
    slots, matrix, moved, placed = _place(placement, slots, matrix, delta, rows)

    # What is in DRAM: the used slots and the bypass. The chosen ones in ascending id, then rows of zeros.
    passing, _ = xla.take_rows(bundles, delta.bypass)
    row_ids = jnp.concatenate([slots.ids, delta.bypass.ids])
    there = jnp.concatenate([jnp.arange(len(slots.ids)) < slots.used, places < delta.bypass.size])
    predicted = jnp.any(row_ids[:, None] == jnp.where(places < active.size, active.ids, -2), axis=1)
    chosen = there & (predicted | (predicted_only == 0))
    order = jnp.argsort(jnp.where(chosen, row_ids, INT32_MAX))
    rows = jnp.where(chosen[:, None], jnp.concatenate([matrix, passing]), 0).astype(matrix.dtype)[order]
    chosen_ids = xla.Padded(row_ids[order], chosen.sum(dtype=jnp.int32))

    gate, up, down = jnp.split(rows, 3, axis=1)
    up_bias, gate_bias, down_bias, tau = biases
    scalars = [xla.take_rows(bias, chosen_ids) for bias in (up_bias, gate_bias)]
    networks = [
        lambda x, tau, name=name: xla.dense_ffn(
            x, FFN(name, up, down, gate, scalars[0][0], scalars[1][0], down_bias, tau)
        )
        for name in ACTIVATIONS
    ]
    y = jax.lax.switch(activation, networks, x, tau)
    sizes = jnp.stack([delta.load.size, delta.evict.size, delta.bypass.size, moved])
    return y, (window, slots, matrix), sizes, known & placed & scalars[0][1]


# --- Padding and refusals


def _room(size, least=64):
    return max(least, 1 << (size - 1).bit_length())


def _padded(array, *shape):
    padded = np.zeros(shape, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def _padded_ids(ids, n):
    return xla.pad_ids(ids, _room(n))


def _shape(array):
    if array is None:
        return None
    if array.dtype not in STORED_DTYPES.values():  # JAX would narrow float64 without a word
        raise ShapeError(f"arrays must be F32, F16 or BF16 (as uint16 bits), not {array.dtype}")
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _refuse_shapes(function, *arguments):
    """Traces the function with these shapes and dtypes: it raises for what does not fit.

    Only which sizes are equal decides that, so sizes are numbered, and few shapes are traced.
    """
    numbers = {}

    def numbered(array):
        sizes = (numbers.setdefault(size, len(numbers) + 1) for size in array.shape)
        return jax.ShapeDtypeStruct(tuple(sizes), array.dtype)

    _trace(function, *jax.tree.map(numbered, arguments, is_leaf=lambda part: hasattr(part, "shape")))


@cache
def _trace(function, *arguments):
    jax.eval_shape(function, *arguments)


def _refuse_unless(valid):
    if not np.all(valid):
        raise IdsError("xla: the ids are out of range, out of order, or of another state")
