"""Seeded calls of every operation: valid ones on dyadic data, and ones that must be refused."""

import numpy as np

from flashref.types import FFN, Predictor

ACTIVATIONS = ("relu", "squared_relu", "fatrelu", "silu", "gelu_tanh", "gelu_erf")
DTYPES = ("F32", "F16", "BF16")


def dyadic(rng, *shape, dtype="F32"):
    values = (rng.integers(-2, 3, shape) / 2).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])


def ids(rng, n):
    return np.flatnonzero(rng.random(n) < rng.choice([0, 0.3, 0.7, 1]))


def network(rng, n, d, activations=ACTIVATIONS):
    dtype, gated = str(rng.choice(DTYPES)), bool(rng.random() < 0.5)

    def maybe(share, *shape):
        return dyadic(rng, *shape, dtype=dtype) if rng.random() < share else None

    return FFN(
        str(rng.choice(activations)),
        up=dyadic(rng, n, d, dtype=dtype),
        down=dyadic(rng, n, d, dtype=dtype),
        gate=maybe(gated, n, d),
        up_bias=maybe(0.5, n),
        gate_bias=maybe(0.5 * gated, n),
        down_bias=maybe(0.5, d),
        tau=float(rng.choice([0, 0.5])),
    )


def predictor_of(rng, n, d):
    r, dtype = int(rng.integers(1, 4)), str(rng.choice(DTYPES))
    bias = dyadic(rng, n, dtype=dtype) if rng.random() < 0.5 else None
    a, b = dyadic(rng, r, d, dtype=dtype), dyadic(rng, n, r, dtype=dtype)
    return Predictor(
        a, b, bias, float(rng.choice([-1, 0, 0.5, np.inf, -np.inf], p=[0.3, 0.3, 0.3, 0.05, 0.05]))
    )


def layout(rng):
    fields = [["up", "down"], ["gate", "up", "down"], ["größe"]][rng.integers(3)]
    n, d = (int(size) for size in rng.integers(1, 9, 2))
    order = rng.permutation(n) if rng.random() < 0.5 else None
    return n, d, str(rng.choice(DTYPES)), fields, int(2 ** rng.integers(0, 8)), order


def stride_of(d, dtype, fields, block):
    size = len(fields) * d * (4 if dtype == "F32" else 2)
    return 2 ** (size - 1).bit_length() if size < block else -(-size // block) * block


def predict_active(rng):
    n, d = (int(size) for size in rng.integers(1, 9, 2))
    return dyadic(rng, d), *predictor_of(rng, n, d)


def dense_ffn(rng):
    n, d = (int(size) for size in rng.integers(0, 9, 2))
    return dyadic(rng, d), *network(rng, n, d)


def sparse_ffn(rng):
    x, *of = dense_ffn(rng)
    return x, *of, ids(rng, len(of[1]))


def bundle_layout(rng):
    n, d, dtype, fields, block, order = layout(rng)
    return n, d, dtype, fields, block, block * int(rng.choice([0, 1, 2**33, 2**54])), order, ids(rng, n)


def pack_bundles(rng):
    n, d, dtype, fields, block, order = layout(rng)
    return n, d, dtype, fields, block, order, [dyadic(rng, n, d, dtype=dtype) for _ in fields]


def unpack_bundles(rng):
    n, d, dtype, fields, block, order = layout(rng)
    packed = rng.integers(0, 256, n * stride_of(d, dtype, fields, block), np.uint8)
    return n, d, dtype, fields, block, order, packed


def read_plan(rng):
    extents = np.stack([rng.integers(0, 900, 6), rng.integers(1, 90, 6)], axis=1)[: rng.integers(7)]
    block = int(2 ** rng.integers(0, 8))
    return extents, block, int(rng.choice([0, block - 1, block, 3 * block]))


def gather_rows(rng):
    n, d, dtype, fields, block, order = layout(rng)
    start, size = block * int(rng.integers(3)), n * stride_of(d, dtype, fields, block)
    image = rng.integers(0, 256, -(-(start + size) // block) * block, np.uint8)
    max_gap = int(rng.choice([0, block, 200]))
    return image, n, d, dtype, fields, block, start, order, ids(rng, n), max_gap


def run_window(rng):
    n, layers = (int(size) for size in rng.integers(1, 9, 2))
    capacities = [int(size) for size in rng.integers(0, n + 2, layers)]
    actives = [[[ids(rng, n) for _ in range(layers)] for _ in range(rng.integers(7))] for _ in range(2)]
    return n, int(rng.integers(1, 5)), capacities, actives


def run_slots(rng):
    capacity, width, dtype = int(rng.integers(0, 9)), int(rng.integers(1, 4)), str(rng.choice(DTYPES))
    there, deltas, rows = np.zeros(0, np.int64), [], []
    for _ in range(rng.integers(1, 7)):
        evict = there[rng.random(len(there)) < 0.5]
        stay = np.setdiff1d(there, evict)
        new = np.setdiff1d(np.arange(12), there)
        load = np.sort(rng.permutation(new)[: rng.integers(capacity - len(stay) + 1)])
        there = np.union1d(stay, load)
        deltas.append([load, evict, np.setdiff1d(new, load)[:2]])
        rows.append(dyadic(rng, len(load), 2, width, dtype=dtype))
    return capacity, str(rng.choice(["swap_with_last", "fill_holes"])), deltas, rows


def run_decode(rng):
    d = int(rng.integers(1, 6))
    sizes = [int(n) for n in rng.integers(1, 9, rng.integers(1, 4))]
    return (
        [[network(rng, n, d), predictor_of(rng, n, d)] for n in sizes],
        dyadic(rng, *rng.integers(1, 5, 2), d),
        int(rng.integers(1, 4)),
        [int(rng.integers(0, n + 2)) for n in sizes],
        str(rng.choice(["resident", "predicted"])),
        str(rng.choice(["swap_with_last", "fill_holes"])),
        int(2 ** rng.integers(0, 8)),
        int(rng.choice([0, 64])),
        int(rng.integers(1, 5)),
    )


VALID = {
    make.__name__: make
    for make in (
        predict_active, dense_ffn, sparse_ffn, bundle_layout, pack_bundles, unpack_bundles, read_plan,
        gather_rows, run_window, run_slots, run_decode,
    )
}  # fmt: skip

# Operation, a parameter, and values that it must refuse in place of a valid one.
_BAD_IDS = (
    np.int64([1, 0]),
    np.int64([0, 0]),
    np.int64([-1]),
    np.int64([99]),
    np.float64([0.0]),
    np.int64([[0]]),
)
_NOT_FINITE = np.float32([[np.inf]])
BAD = [
    ("predict_active", "x", (np.float32([[1]]), np.float64([1, 1]), np.zeros(9, np.float32))),
    ("predict_active", "a", (np.zeros((1, 9), np.float32), np.float32([1]), np.zeros((9, 1), np.float32))),
    ("predict_active", "b", (np.zeros((2, 9), np.float32), np.float32([1]))),
    ("predict_active", "bias", (np.zeros(9, np.float32), np.zeros((2, 2), np.float32), np.int64([0]))),
    ("predict_active", "threshold", (float("nan"),)),
    *(
        (operation, *of)
        for operation in ("dense_ffn", "sparse_ffn")
        for of in (
            ("x", (np.zeros(9, np.float32), np.float64([1, 1]), np.float32([[1, 1]]))),
            ("activation", ("tanh", "", "relu gelu", "rel", "RELU", "squared")),
            ("up", (np.zeros((9, 2), np.float32), np.float32([1, 1]), np.float64([[1, 1]]))),
            ("down", (np.zeros((9, 2), np.float32), np.zeros((2, 9), np.float32), np.float16([[1, 1]] * 9))),
            ("gate", (np.zeros((9, 2), np.float32), np.float64([[1, 1]]))),
            ("up_bias", (np.zeros(9, np.float32), np.zeros((1, 1), np.float32))),
            ("gate_bias", (np.zeros(9, np.float32),)),
            ("down_bias", (np.zeros(9, np.float32), np.float64([1, 1]))),
            ("tau", (-1.0, float("nan"), float("inf"), 1e39)),
        )
    ),
    ("sparse_ffn", "active", _BAD_IDS),
    ("bundle_layout", "n", (0, -1)),
    ("bundle_layout", "d", (0, -1)),
    ("bundle_layout", "dtype", ("F64", "", "F3")),
    ("bundle_layout", "fields", ([], ["up", "up"])),
    ("bundle_layout", "block", (0, 3, -1, -4096)),
    ("bundle_layout", "start", (1, -4096)),
    ("bundle_layout", "order", (np.int64([0]), np.int64([0] * 3), np.int64([0, 1, 3]), np.int64([-1, 0, 1]))),
    ("bundle_layout", "ids", _BAD_IDS),
    ("pack_bundles", "matrices", ([], [np.zeros((3, 2), np.float32)], [np.zeros((3, 2), np.float16)] * 2,
                                  [np.zeros((2, 3), np.float32)] * 2, [np.float32([[0, np.inf]] * 3)] * 2)),
    ("unpack_bundles", "packed", (np.zeros(1, np.uint8), np.zeros(12, np.float32), np.zeros((1, 48), "u1"))),
    ("read_plan", "extents", (np.int64([[0, 0]]), np.int64([[-1, 2]]), np.int64([[0, -1]]))),
    ("read_plan", "block", (0, 3, -2)),
    ("read_plan", "max_gap", (-1,)),
    ("gather_rows", "ids", _BAD_IDS),
    ("gather_rows", "block", (0, 3)),
    ("run_window", "n", (0, -1)),
    ("run_window", "k", (0, -1)),
    ("run_window", "capacities", ([-1],)),
    ("run_window", "actives", tuple([[[bad]]] for bad in _BAD_IDS)),
    ("run_slots", "capacity", (-1, 1)),
    ("run_slots", "deltas", (
        [[np.int64([1, 0]), np.int64([]), np.int64([])]],
        [[np.int64([1, 1]), np.int64([]), np.int64([])]],
        [[np.int64([0, 1]), np.int64([5]), np.int64([])]],
        [[np.int64([0, 1, 2]), np.int64([]), np.int64([])]],
    )),
    ("run_slots", "rows", ([np.zeros((1, 2), np.float32)],)),
    ("run_decode", "k", (0, -1)),
    ("run_decode", "capacities", ([-1], [])),
    ("run_decode", "block", (0, 3)),
    ("run_decode", "max_gap", (-1,)),
    ("run_decode", "bypass_rows", (0, -1)),
    ("run_decode", "xs", (np.zeros((1, 1, 9), np.float32),)),
]  # fmt: skip


def small(operation):
    """One valid call of each operation that BAD's values are put into: n = 3 and d = 2, or so."""
    weights, none = np.float32([[1, 0], [0, 1], [1, 1]]), np.int64([])
    of = FFN(
        "relu", weights, weights, weights, np.float32([1, 1, 1]), np.float32([1, 1, 1]), np.float32([0, 1])
    )
    predictor = Predictor(np.float32([[1, 0]]), np.float32([[1], [0], [-1]]), np.float32([0, 0, 0]), 0.0)
    x, described = np.float32([1, 1]), (3, 2, "F32", ["up", "down"], 16)
    return {
        "predict_active": (x, *predictor),
        "dense_ffn": (x, *of),
        "sparse_ffn": (x, *of, np.int64([0, 2])),
        "bundle_layout": (*described, 16, np.int64([2, 0, 1]), np.int64([0, 1])),
        "pack_bundles": (*described, None, [weights, weights]),
        "unpack_bundles": (*described, None, np.zeros(48, np.uint8)),
        "read_plan": (np.int64([[0, 5], [40, 2]]), 16, 0),
        "gather_rows": (np.zeros(48, np.uint8), *described, 0, None, np.int64([0, 2]), 0),
        "run_window": (3, 2, [2], [[[np.int64([0, 1])]]]),
        "run_slots": (2, "fill_holes", [[np.int64([0, 1]), none, none]], [np.zeros((2, 2), np.float32)]),
        "run_decode": ([[of, predictor]], x.reshape(1, 1, 2), 2, [1], "resident", "fill_holes", 16, 0, 1),
    }[operation]
