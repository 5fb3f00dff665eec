"""flashref's adapter with one bug at a time; most of them happened in real engines."""

import numpy as np

from flashref import bundle, window
from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS
from flashref.types import FFN
from flashref.window import Delta


def biased_mask(x, *of):
    *network, active = of
    ffn = FFN(*network)
    y = reference.sparse_ffn(x, *of)
    if ffn.up_bias is None or ffn.gate is not None:
        return y
    others = np.setdiff1d(np.arange(len(ffn.up)), active)
    ffn = ffn._replace(up=ffn.up * 0, down_bias=None)
    return y + reference.sparse_ffn(x, *ffn, others)


def with_network(change):
    return {
        "dense_ffn": lambda x, *of: reference.dense_ffn(x, *change(FFN(*of))),
        "sparse_ffn": lambda x, *of: reference.sparse_ffn(x, *change(FFN(*of[:-1])), of[-1]),
    }


def in_float16(x, *of):
    with np.errstate(over="ignore"):
        return reference.dense_ffn(x, *of).astype(np.float16).astype(np.float32)


def truncated(array):
    if array is None or array.dtype != np.float32:
        return array
    return (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF0000).view(np.float32)


def minus_tau(x, *of):
    ffn = FFN(*of)
    if ffn.activation != "fatrelu" or ffn.gate is not None or ffn.up_bias is not None or not 0 <= ffn.tau < 9:
        return reference.dense_ffn(x, *of)
    bias = np.full(len(ffn.up), -ffn.tau, np.float32)
    return reference.dense_ffn(x, *ffn._replace(activation="relu", up_bias=bias.astype(ffn.up.dtype)))


def not_strict(x, a, b, bias, threshold):
    return reference.predict_active(x, a, b, bias, np.nextafter(np.float32(threshold), np.float32(-np.inf)))


def one_window_for_all_layers(n, k, capacities, actives):
    result = []
    for sequence in actives:
        shared, deltas = window.empty_window(n, k, max(capacities)), []
        for token in sequence:
            deltas.append([])
            for active in token:
                shared, delta = window.window_update(shared, active)
                deltas[-1].append(delta)
        result.append(deltas)
    return result


def union_over_the_batch(n, k, capacities, actives):
    united = [
        [np.unique(np.concatenate([s[t][layer] for s in actives])) for layer in range(len(capacities))]
        for t in range(len(actives[0]))
    ]
    return reference.run_window(n, k, capacities, [united] * len(actives))


def window_with(update):
    def run_window(n, k, capacities, actives):
        result = []
        for sequence in actives:
            windows = [window.empty_window(n, k, capacity) for capacity in capacities]
            result.append([])
            for token in sequence:
                stepped = [update(w, active) for w, active in zip(windows, token, strict=True)]
                windows = [after for after, _ in stepped]
                result[-1].append([delta for _, delta in stepped])
        return result

    return run_window


def inserts_before_it_evicts(w, active):
    """Room is made for old and new rows together, so the oldest leave too early."""
    after, delta = window.window_update(w, active)
    if len(window.resident_neurons(w)) + len(delta.load) > w.capacity and len(active) <= w.capacity:
        return window.window_update(w._replace(last=np.full_like(w.last, -1)), active)
    return after, delta


def skips_inserts_when_full(w, active):
    after, delta = window.window_update(w, active)
    if len(active) >= w.capacity:
        kept = np.isin(np.arange(len(w.last)), delta.load)
        return after._replace(last=np.where(kept, -1, after.last)), Delta(
            delta.load[:0], delta.evict, np.union1d(delta.load, delta.bypass)
        )
    return after, delta


def bypass_is_remembered(w, active):
    after, delta = window.window_update(w, active)
    last = after.last.copy()
    last[delta.bypass] = w.token
    return after._replace(last=last), delta


def empty_token_is_none(w, active):
    return window.window_update(w, active) if len(active) else (w, Delta(active, active, active))


def offsets_of_32_bits(*of):
    stride, extents = reference.bundle_layout(*of)
    return stride, [(int(np.int64(offset).astype(np.int32)), length) for offset, length in extents]


def always_whole_blocks(n, d, dtype, fields, block, start, order, ids):
    layout = bundle.bundle_layout(n, d, dtype, fields, block, start, order)
    layout = layout._replace(stride=-(-layout.bundle_bytes // block) * block)
    return layout.stride, bundle.bundle_extents(layout, ids)


def without_subnormals(n, d, dtype, fields, block, order, packed):
    matrices = reference.unpack_bundles(n, d, dtype, fields, block, order, packed)
    tiny = np.float16(2.0**-14)
    return [np.where(abs(m) < tiny, np.float16(0), m) if m.dtype == np.float16 else m for m in matrices]


def rows_by_position(image, n, d, dtype, fields, block, start, order, ids, max_gap):
    return reference.gather_rows(image, n, d, dtype, fields, block, start, None, ids, max_gap)


def stale_rows(capacity, placement, deltas, rows):
    """A row that fills a hole keeps the bytes of the one that was there."""
    steps = reference.run_slots(capacity, placement, deltas, rows)
    for step, before in zip(steps[1:], steps, strict=False):
        ids, matrix, moved = step
        if moved:
            step[1] = matrix = matrix.copy()
            same_place = min(len(matrix), len(before[1]))
            matrix[:same_place] = before[1][:same_place]
    return steps


def without_moves(capacity, placement, deltas, rows):
    return [[ids, matrix, 0] for ids, matrix, _ in reference.run_slots(capacity, placement, deltas, rows)]


def decode_with(**changes):
    def run_decode(layers, xs, k, capacities, semantics, placement, block, max_gap, bypass_rows):
        of = locals()
        of |= {name: change(of) for name, change in changes.items()}
        return reference.run_decode(*(of[name] for name in OPERATIONS["run_decode"]))

    return run_decode


def layers_by_name(*of):
    layers, _, _, capacities, *_ = of
    order = sorted(range(len(layers)), key=str)
    named = [[layers[i] for i in order], *of[1:3], [capacities[i] for i in order], *of[4:]]
    return reference.run_decode(*named)


def one_sequence_after_another(layers, xs, *of):
    """The window and the rows of a sequence are still there when the next one begins."""
    flat = xs.reshape(1, -1, xs.shape[2])
    ys, counters = reference.run_decode(layers, flat, *of)
    shape = (*xs.shape[:2], len(layers))
    return ys.reshape(*shape, -1), {name: counts.reshape(shape) for name, counts in counters.items()}


def useful_as_read(*of):
    ys, counters = reference.run_decode(*of)
    return ys, counters | {"useful_bytes": counters["read_bytes"]}


# What it does wrong → the operations that do it.
MUTANTS = {
    "drops the last active neuron": {"sparse_ffn": lambda x,
                                     *of: reference.sparse_ffn(x, *of[:-1], of[-1][:-1])},
    "clamps ids": {"sparse_ffn": lambda x,
                   *of: reference.sparse_ffn(x, *of[:-1], np.unique(np.clip(of[-1], 0, len(of[1]) - 1)))},
    "sorts ids": {"sparse_ffn": lambda x, *of: reference.sparse_ffn(x, *of[:-1], np.unique(of[-1]))},
    "adds the bias after the mask": {"sparse_ffn": biased_mask},
    "loses the up bias": with_network(lambda ffn: ffn._replace(up_bias=None)),
    "loses the gate bias": with_network(lambda ffn: ffn._replace(gate_bias=None)),
    "loses the down bias of an empty set": {
        "sparse_ffn": lambda x, *of: reference.sparse_ffn(x, *of) if len(of[-1]) else np.zeros_like(x)},
    "subtracts tau": {"dense_ffn": minus_tau},
    "has GELU's tanh for its erf": with_network(
        lambda ffn: ffn._replace(activation="gelu_tanh" if ffn.activation == "gelu_erf" else ffn.activation)),
    "has SiLU for every smooth activation": with_network(
        lambda ffn: ffn._replace(activation="silu" if ffn.activation.startswith("gelu") else ffn.activation)),
    "truncates weights to bfloat16": with_network(lambda ffn: ffn._replace(up=truncated(ffn.up),
                                                                           down=truncated(ffn.down))),
    "sums in float16": {"dense_ffn": in_float16},
    "rounds n to a multiple of 4": {
        "dense_ffn": lambda x, *of: reference.sparse_ffn(x, *of, np.arange(len(of[1]) // 4 * 4))},
    "lets a tie be active": {"predict_active": not_strict},
    "ignores the threshold": {"predict_active": lambda x, a, b, bias,
                              _: reference.predict_active(x, a, b, bias, 0.0)},
    "scales the threshold": {
        "predict_active": lambda x, a, b, bias, t: reference.predict_active(x, a, b, bias, 0.9 * t)},
    "loses the predictor's bias": {"predict_active": lambda x, a, b, bias,
                                   t: reference.predict_active(x, a, b, None, t)},
    "evicts a token early": {"run_window": lambda n, k,
                             *of: reference.run_window(n, max(k - 1, min(k, 1)), *of)},
    "evicts a token late": {"run_window": lambda n, k, *of: reference.run_window(n, k + 1, *of)},
    "has one window for all layers": {"run_window": one_window_for_all_layers},
    "unites the batch": {"run_window": union_over_the_batch},
    "inserts before it evicts": {"run_window": window_with(inserts_before_it_evicts)},
    "skips inserts when full": {"run_window": window_with(skips_inserts_when_full)},
    "remembers the bypass": {"run_window": window_with(bypass_is_remembered)},
    "counts no empty token": {"run_window": window_with(empty_token_is_none)},
    "has offsets of 32 bits": {"bundle_layout": offsets_of_32_bits},
    "aligns every bundle to a block": {"bundle_layout": always_whole_blocks},
    "packs the fields in reverse": {"pack_bundles": lambda *of: reference.pack_bundles(*of[:-1],
                                                                                       of[-1][::-1])},
    "flushes float16's subnormals": {"unpack_bundles": without_subnormals},
    "ignores the order": {"gather_rows": rows_by_position},
    "reads over no gap": {"gather_rows": lambda *of: reference.gather_rows(*of[:-1], 0)},
    "merges a byte too far": {"read_plan": lambda extents, block,
                              gap: reference.read_plan(extents, block, gap + 1 if gap >= 0 else gap)},
    "merges a byte too little": {"read_plan": lambda extents, block,
                                 gap: reference.read_plan(extents, block, gap - (gap > 0))},
    "leaves stale rows": {"run_slots": stale_rows},
    "counts no moves": {"run_slots": without_moves},
    "takes the other placement": {"run_slots": lambda capacity, placement, *of: reference.run_slots(
        capacity, "fill_holes" if placement == "swap_with_last" else "swap_with_last", *of)},
    "sums what is predicted": {"run_decode": decode_with(semantics=lambda _: "predicted")},
    "sums what is resident": {"run_decode": decode_with(semantics=lambda _: "resident")},
    "has a row too many": {
        "run_decode": decode_with(capacities=lambda of: [c + 1 for c in of["capacities"]])},
    "never reads over gaps": {"run_decode": decode_with(max_gap=lambda _: 0)},
    "sorts layers by name": {"run_decode": layers_by_name},
    "goes on from the last sequence": {"run_decode": one_sequence_after_another},
    "counts what is read as useful": {"run_decode": useful_as_read},
}  # fmt: skip
