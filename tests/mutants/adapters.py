"""The engine's operations, and whole runs of it: what the kit calls."""

from functools import partial
from pathlib import Path

import numpy as np

from flashref.conformance.adapter import COUNTERS, PLACEMENTS, SEMANTICS
from flashref.ffn import active_neurons
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.model import load_model, one_at_a_time
from flashref.models.predictors import FILE_NAME, load_predictors
from flashref.types import FFN, DomainError, Predictor, stored_dtype
from mutants.engine import Chooser, Network, Table, Window, int64s
from mutants.storage import Flash, Planner


class Decoder:
    """Chapter 80: every sequence, token and layer."""

    def __init__(self, engine, layers, k, capacities, semantics, placement, block, max_gap, bypass_rows):
        if bypass_rows < 1 or semantics not in SEMANTICS or placement not in PLACEMENTS:
            raise DomainError("no such run")
        self.engine, self.layers = engine, [(FFN(*ffn), Predictor(*of)) for ffn, of in layers]
        self.k, self.capacities, self.placement = k, capacities, placement
        self.semantics, self.max_gap, self.bypass_rows = semantics, max_gap, bypass_rows
        self.flash, self.images = [], []
        for ffn, _ in self.layers:
            named = {"gate": ffn.gate, "up": ffn.up, "down": ffn.down}
            stored = {field: matrix for field, matrix in named.items() if matrix is not None}
            self.flash.append(engine.flash(*ffn.up.shape, stored_dtype(ffn.up), list(stored), block))
            packed = self.flash[-1].pack(list(stored.values()))
            self.images.append(np.concatenate([packed, np.zeros(-len(packed) % block, np.uint8)]))

    def run(self, xs):
        shape = (*xs.shape[:2], len(self.layers))
        ys = np.zeros((*shape, xs.shape[2]), np.float32)
        counters = {name: np.zeros(shape, np.int64) for name in COUNTERS}
        for s, sequence in enumerate(xs):
            self.states = self.begin()
            for t, x in enumerate(sequence):
                self.now = t
                for number in range(len(self.layers)):
                    ys[s, t, number], counted = self.token(number, x)
                    for name, count in zip(COUNTERS, counted, strict=True):
                        counters[name][s, t, number] = count
        return ys, counters

    def begin(self):
        """The window and the rows of each layer, empty."""
        return [
            (
                self.engine.window(flash.n, self.k, capacity),
                self.engine.table(capacity, self.placement, (len(flash.fields), flash.d), flash.dtype),
            )
            for flash, capacity in zip(self.flash, self.capacities, strict=True)
        ]

    def token(self, number, x):
        window, table = self.states[number]
        predicted = self.predicted(number, x)
        load, evict, bypass = window.token(set(predicted))
        rows, cost = self.fetch(number, load, bypass)
        moved = table.step(evict, load, [rows[neuron] for neuron in load])
        in_dram = dict(zip(table.ids, table.rows, strict=True)) | {neuron: rows[neuron] for neuron in bypass}
        y = self.sum(number, x, self.chosen(predicted, in_dram, bypass), in_dram)
        return y, self.counted(predicted, load, bypass, evict, cost, moved)

    def predicted(self, number, x):
        return self.engine.chooser.choose(x, self.layers[number][1]).tolist()

    def batches(self, load, bypass):
        pieces = [bypass[i : i + self.bypass_rows] for i in range(0, len(bypass), self.bypass_rows)] or [[]]
        return [sorted(load + pieces[0]), *pieces[1:]]

    def fetch(self, number, load, bypass):
        rows, cost = {}, np.zeros(3, np.int64)
        for batch in self.batches(load, bypass):
            read, one = self.flash[number].gather(self.images[number], batch, self.max_gap)
            rows |= dict(zip(batch, read, strict=True))
            cost += one
        return rows, cost.tolist()

    def chosen(self, predicted, in_dram, bypass):
        return predicted if self.semantics == "predicted" else list(in_dram)

    def sum(self, number, x, chosen, in_dram):
        ffn, flash = self.layers[number][0], self.flash[number]
        rows = np.array([in_dram[neuron] for neuron in chosen], flash.dtype)
        rows = rows.reshape(len(chosen), len(flash.fields), flash.d)
        of = {field: rows[:, j] for j, field in enumerate(flash.fields)}
        return self.engine.net.output(x, self.with_scalars(ffn, chosen)._replace(**of))

    def with_scalars(self, ffn, chosen):
        scalars = {
            name: getattr(ffn, name)[chosen]
            for name in ("up_bias", "gate_bias")
            if getattr(ffn, name) is not None
        }
        return ffn._replace(**scalars)

    def counted(self, predicted, load, bypass, evict, cost, moved):
        return len(load), len(bypass), len(evict), *cost, moved


class Speaker:
    """A whole model: its FFNs over chosen neurons, and rows that stay for four tokens."""

    def __init__(self, engine, model_dir, predictor):
        checkpoint = open_checkpoint(model_dir)
        config = checkpoint.config
        self.engine, self.which = engine, predictor
        self.model = load_model(config, partial(load_tensor, checkpoint))
        self.ffns = [load_ffn(checkpoint, layer) for layer in range(config.layers)]
        path = Path(model_dir) / FILE_NAME
        self.predictors = load_predictors(path, config.layers, config.neurons, config.width).layers
        self.windows = [engine.window(config.neurons, 4, config.neurons // 2) for _ in self.ffns]
        self.counts = []

    def speak(self, token_ids):
        forward = one_at_a_time(self.model, self.feed_forward)
        logits = np.stack([forward(token) for token in token_ids.tolist()])
        columns = np.reshape(self.counts, (len(token_ids), len(self.ffns), 3))
        names = ("loaded", "bypassed", "useful_bytes")
        return logits, {name: columns[..., i] for i, name in enumerate(names)}

    def feed_forward(self, layer, x):
        ids = self.neurons(layer, x)
        load, _, bypass = self.windows[layer].token(set(ids.tolist()))
        useful = len(load + bypass) * 2 * self.ffns[layer].up[0].nbytes
        self.counts.append((len(load), len(bypass), self.useful_bytes(useful)))
        return self.engine.net.sparse(x, self.ffns[layer], ids)

    def neurons(self, layer, x):
        if self.which == "exact":
            return active_neurons(x, self.ffns[layer])
        return self.engine.chooser.choose(x, self.predictors[layer])

    def useful_bytes(self, counted):
        return counted


class Engine:
    """All operations."""

    name, version, unsupported = "engine", "1", {}
    network, predictor, window, table, flash = Network, Chooser, Window, Table, Flash
    planner, decoder, speaker = Planner, Decoder, Speaker

    def __init__(self):
        self.net, self.chooser, self.plans = self.network(), self.predictor(), self.planner()

    def predict_active(self, x, *of):
        self.chooser.check(x, Predictor(*of))
        return self.chooser.choose(x, Predictor(*of))

    def dense_ffn(self, x, *of):
        self.net.check(x, FFN(*of))
        return self.net.dense(x, FFN(*of))

    def sparse_ffn(self, x, *of):
        *network, ids = of
        self.net.check(x, FFN(*network))
        return self.net.sparse(x, FFN(*network), self.net.ids(ids, len(network[1])))

    def bundle_layout(self, *of):
        *layout, ids = of
        flash = self.flash(*layout)
        return flash.stride, np.array(flash.extents(flash.ids(ids)), object).reshape(-1, 2).astype(np.int64)

    def pack_bundles(self, n, d, dtype, fields, block, order, matrices):
        flash = self.flash(n, d, dtype, fields, block, 0, order)
        flash.check(matrices)
        return flash.pack(matrices)

    def unpack_bundles(self, n, d, dtype, fields, block, order, packed):
        return self.flash(n, d, dtype, fields, block, 0, order).unpack(packed)

    def read_plan(self, extents, block, max_gap):
        return self.plans.plan([tuple(pair) for pair in extents.tolist()], block, max_gap)

    def gather_rows(self, image, *of):
        *layout, ids, max_gap = of
        flash = self.flash(*layout)
        return flash.gather(image, flash.ids(ids), max_gap)

    def run_window(self, n, k, capacities, actives):
        answer = []
        for sequence in actives:
            windows = self.windows(n, k, capacities)
            answer.append(
                [[self.update(w, ids) for w, ids in zip(windows, token, strict=True)] for token in sequence]
            )
        return answer

    def windows(self, n, k, capacities):
        return [self.window(n, k, capacity) for capacity in capacities]

    def update(self, window, active):
        return [int64s(ids) for ids in window.token(window.ids(active))]

    def run_slots(self, capacity, placement, deltas, rows):
        table = self.table(capacity, placement, rows[0].shape[1:], rows[0].dtype)
        steps = []
        for (load, evict, _), new in zip(deltas, rows, strict=True):
            table.check(load, evict, new)
            moved = table.step(evict.tolist(), load.tolist(), new)
            steps.append([int64s(table.ids), table.matrix(), moved])
        return steps

    def run_decode(self, layers, xs, *of):
        return self.decoder(self, layers, *of).run(xs)

    def logits(self, model_dir, token_ids, predictor):
        return self.speaker(self, model_dir, predictor).speak(token_ids)
