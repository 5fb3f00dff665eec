"""PyTorch on the CPU as an adapter: kernels, sums and sets that flashref has no part in."""

import numpy as np
import torch
import torch.nn.functional as F

from flashref.types import FFN, Predictor

name, version = "torch", torch.__version__
unsupported = {
    "bundle_layout": "this adapter computes offsets only where it gathers",
    "pack_bundles": "this adapter reads images and writes none",
    "unpack_bundles": "this adapter reads bundles one by one",
    "read_plan": "this adapter plans only where it gathers",
    "run_slots": "this adapter keeps ids, and no matrix of rows",
    "logits": "this adapter knows no transformer",
}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
ACTIVATIONS = {
    "relu": lambda z, tau: F.relu(z),
    "squared_relu": lambda z, tau: F.relu(z).square(),
    "fatrelu": lambda z, tau: F.threshold(z, tau, 0.0),
    "silu": lambda z, tau: z * torch.sigmoid(z),
    "gelu_tanh": lambda z, tau: z * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)),
    "gelu_erf": lambda z, tau: 0.5 * z * torch.special.erfc(-z / 2**0.5),
}
EXACT_IN_FLOAT32 = ("relu", "squared_relu", "fatrelu")


def predict_active(x, a, b, bias, threshold):
    expect(a.ndim == b.ndim == 2 and b.shape[1] == a.shape[0], "a must be (r, d) and b (n, r)")
    expect(bias is None or bias.shape == b.shape[:1], "the bias must be (n,)")
    expect(x.dtype == np.float32 and x.shape == a.shape[1:], "x must be float32 of (d,)")
    expect(not np.isnan(threshold), "the threshold must be a number")
    logits = F.linear(F.linear(torch.tensor(x), widened(a)), widened(b), widened(bias))
    return (logits > torch.tensor(threshold, dtype=torch.float32)).nonzero().flatten().numpy()


def dense_ffn(x, *of):
    return network_output(x, FFN(*of), slice(None))


def sparse_ffn(x, *of):
    *network, active = of
    return network_output(x, FFN(*network), ascending(active, len(network[1])))


def gather_rows(image, n, d, dtype, fields, block, start, order, ids, max_gap):
    expect(n > 0 and d > 0 and dtype in ITEM_BYTES, "n and d must be at least 1, dtype a stored one")
    expect(len(fields) == len(set(fields)) > 0, "fields must be distinct")
    expect(block > 0 and block.bit_count() == 1, "block must be a power of two")
    expect(start >= 0 and start % block == 0, "start must be a multiple of the block")
    expect(order is None or sorted(order.tolist()) == list(range(n)), "order must be a permutation")
    expect(max_gap >= 0, "max_gap must be at least 0")
    wanted = ascending(ids, n)
    bundle = len(fields) * d * ITEM_BYTES[dtype]
    stride = 1 << (bundle - 1).bit_length() if bundle < block else -(-bundle // block) * block
    positions = wanted if order is None else torch.argsort(torch.tensor(order))[wanted]
    every_byte = (start + positions * stride).reshape(-1, 1) + torch.arange(bundle)
    rows = torch.tensor(image)[every_byte].numpy().view(STORED[dtype])
    requests, read_bytes = cost(torch.unique(every_byte // block), block, max_gap)
    return rows.reshape(len(wanted), len(fields), d), [requests, len(wanted) * bundle, read_bytes]


def run_window(n, k, capacities, actives):
    expect(n > 0 and k > 0 and min(capacities, default=0) >= 0, "n, k ≥ 1 and capacities ≥ 0")
    expect(all(len(token) == len(capacities) for s in actives for token in s), "a capacity for each layer")
    result = []
    for sequence in actives:
        windows = [KeptSets(n, k, capacity) for capacity in capacities]
        masks = [[mask(ascending(ids, n), n) for ids in token] for token in sequence]
        steps = [[w.step(predicted) for w, predicted in zip(windows, token, strict=True)] for token in masks]
        result.append([[[ids.numpy() for ids in map(ids_of, delta)] for delta in token] for token in steps])
    return result


def run_decode(layers, xs, k, capacities, semantics, placement, block, max_gap, bypass_rows):
    """Every token sums from the weights themselves; which neurons, the window and the semantics say."""
    expect(semantics in ("resident", "predicted"), "semantics must be resident or predicted")
    expect(placement in ("swap_with_last", "fill_holes"), "the placement is unknown")
    expect(k > 0 and bypass_rows > 0 and max_gap >= 0, "k and bypass_rows must be at least 1, max_gap 0")
    expect(block > 0 and block.bit_count() == 1, "block must be a power of two")
    expect(len(capacities) == len(layers) and min(capacities, default=0) >= 0, "a capacity for each layer")
    expect(xs.ndim == 3 and xs.dtype == np.float32, "xs must be float32 of (sequences, tokens, d)")
    ys = np.zeros((*xs.shape[:2], len(layers), xs.shape[2]), np.float32)
    counters = {
        c: np.zeros(ys.shape[:3], np.int64) for c in ("loaded", "bypassed", "evicted", "useful_bytes")
    }
    for s, sequence in enumerate(xs):
        for number, (of, predictor) in enumerate(layers):
            network, n = FFN(*of), len(of.up)
            bundle = (2 if network.gate is None else 3) * network.up[:1].nbytes
            window = KeptSets(n, k, capacities[number])
            for t, x in enumerate(sequence):
                predicted = mask(torch.tensor(predict_active(x, *Predictor(*predictor))), n)
                load, evict, bypass = window.step(predicted)
                chosen = window.resident | bypass if semantics == "resident" else predicted
                ys[s, t, number] = network_output(x, network, ids_of(chosen))
                sizes = [int(part.sum()) for part in (load, bypass, evict)]
                sizes.append((sizes[0] + sizes[1]) * bundle)
                for counter, size in zip(counters.values(), sizes, strict=True):
                    counter[s, t, number] = size
    return ys, counters


class KeptSets:
    """A window as chapter 30 defines it: a mask of what each token kept."""

    def __init__(self, n, k, capacity):
        self.k, self.capacity = k, capacity
        self.kept = torch.zeros(0, n, dtype=torch.bool)
        self.resident = torch.zeros(n, dtype=torch.bool)

    def step(self, predicted):
        """Masks (load, evict, bypass)."""
        kept = self.kept[max(len(self.kept) - self.k + 1, 0) :]
        while len(kept) and int((predicted | kept.any(0)).sum()) > self.capacity:
            kept = kept[1:]
        there_first = torch.cat([ids_of(predicted & self.resident), ids_of(predicted & ~self.resident)])
        keeps = mask(there_first[: self.capacity], len(predicted))
        self.kept = torch.cat([kept, keeps.reshape(1, -1)])
        before, self.resident = self.resident, self.kept.any(0)
        return self.resident & ~before, before & ~self.resident, predicted & ~keeps


def network_output(x, ffn, chosen):
    """y over chosen rows; a matrix-vector product each for gate, up and down."""
    check(x, ffn)
    z = F.linear(torch.tensor(x), rows(ffn.up, chosen), rows(ffn.up_bias, chosen))
    if ffn.gate is None:
        h = activated(ffn, z)
    else:
        h = activated(ffn, F.linear(torch.tensor(x), rows(ffn.gate, chosen), rows(ffn.gate_bias, chosen))) * z
    y = h @ rows(ffn.down, chosen)
    return (y if ffn.down_bias is None else y + widened(ffn.down_bias)).numpy()


def activated(ffn, z):
    act = ACTIVATIONS[ffn.activation]
    return act(z, ffn.tau) if ffn.activation in EXACT_IN_FLOAT32 else act(z.double(), ffn.tau).float()


def check(x, ffn):
    n, d = ffn.up.shape if ffn.up.ndim == 2 else (-1, -1)
    shapes = {
        "up": (n, d),
        "down": (n, d),
        "gate": (n, d),
        "up_bias": (n,),
        "gate_bias": (n,),
        "down_bias": (d,),
    }
    for field, shape in shapes.items():
        array = getattr(ffn, field)
        fits = array is None or (array.shape == shape and array.dtype == ffn.up.dtype)
        expect(fits and n >= 0, f"{field} must be {ffn.up.dtype} of {shape}")
    expect(ffn.gate is not None or ffn.gate_bias is None, "gate_bias needs a gate")
    expect(x.dtype == np.float32 and x.shape == (d,), "x must be float32 of (d,)")
    expect(ffn.up.dtype in STORED.values(), "weights must be F32, F16 or BF16")
    expect(ffn.activation in ACTIVATIONS, "the activation is unknown")
    expect(0 <= ffn.tau <= float(np.finfo(np.float32).max), "tau must be at least 0 and finite")


def expect(condition, text):
    if not condition:
        raise ValueError(text)


def widened(weights):
    """float32 of the same values; BF16 comes as the bits of uint16."""
    if weights is None:
        return None
    if weights.dtype == np.uint16:
        return torch.tensor(weights.view(np.int16)).view(torch.bfloat16).float()
    expect(weights.dtype in (np.float32, np.float16), "weights must be F32, F16 or BF16")
    return torch.tensor(weights).float()


def rows(weights, chosen):
    return None if weights is None else widened(weights)[chosen]


def ascending(ids, n):
    given = np.asarray(ids)
    expect(given.ndim == 1 and (given.dtype.kind in "iu" or given.size == 0), "ids must be integers")
    found = torch.tensor(given.astype(np.int64))
    expect(bool(((found >= 0) & (found < n)).all()), f"ids must lie in 0 … {n - 1}")
    expect(bool((found.diff() > 0).all()), "ids must be strictly ascending")
    return found


def mask(ids, n):
    found = torch.zeros(n, dtype=torch.bool)
    found[ids] = True
    return found


def ids_of(found):
    return found.nonzero().flatten()


def cost(blocks, block, max_gap):
    """(requests, read_bytes) of reading these blocks, and the gaps between them that are small enough."""
    if not len(blocks):
        return 0, 0
    gaps = (blocks.diff() - 1) * block
    read_over = gaps[(gaps > 0) & (gaps <= max_gap)].sum()
    return 1 + int(((gaps > 0) & (gaps > max_gap)).sum()), len(blocks) * block + int(read_over)
