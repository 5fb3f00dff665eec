"""Wrong runs over tokens, layers and sequences."""

import numpy as np

from mutants.adapters import Decoder
from mutants.registry import plant

# --- What a token sums


@plant("computed: three outputs in use for one predictor", "DEC-3", "DEC-2", "DEC-6")
class SumsThePredictedInResidentSemantics(Decoder):
    def chosen(self, predicted, in_dram, bypass):
        return predicted


@plant("computed: three outputs in use for one predictor", "DEC-3", "DEC-2", "DEC-6")
class SumsPredictedAndWindowInPredictedSemantics(Decoder):
    def chosen(self, predicted, in_dram, bypass):
        return sorted({*predicted, *in_dram})


@plant("computed: three outputs in use for one predictor", "DEC-3", "DEC-2", "DEC-6")
class SwapsResidentAndPredicted(Decoder):
    def chosen(self, predicted, in_dram, bypass):
        return predicted if self.semantics == "resident" else list(in_dram)


@plant("cache: a token without neurons below its working set", "DEC-2", "DEC-3", "DEC-6")
class LeavesTheBypassOutOfTheSum(Decoder):
    def chosen(self, predicted, in_dram, bypass):
        return [neuron for neuron in super().chosen(predicted, in_dram, bypass) if neuron not in bypass]


@plant("cache: the bypass summed twice", "DEC-3", "DEC-2", "DEC-6")
class SumsTheBypassTwice(Decoder):
    def chosen(self, predicted, in_dram, bypass):
        return [*super().chosen(predicted, in_dram, bypass), *bypass]


@plant("computed: the down bias once a batch", "DEC-2", "DEC-3", "DEC-6")
class AddsTheDownBiasForEachBatch(Decoder):
    def fetch(self, number, load, bypass):
        self.more = len(self.batches(load, bypass)) - 1
        return super().fetch(number, load, bypass)

    def sum(self, number, x, chosen, in_dram):
        y, bias = super().sum(number, x, chosen, in_dram), self.layers[number][0].down_bias
        return y if bias is None else y + np.float32(self.more) * self.engine.net.widen(bias)


@plant("computed: biases by row instead of by neuron", "DEC-2", "DEC-3", "DEC-6")
class TakesBiasesByRowInsteadOfByNeuron(Decoder):
    def with_scalars(self, ffn, chosen):
        return super().with_scalars(ffn, list(range(len(chosen))))


@plant("cache: the bypass beyond its buffer", "DEC-2", "DEC-3")
class DropsTheBypassBeyondItsBuffer(Decoder):
    def token(self, number, x):
        self.dropped = []
        return super().token(number, x)

    def fetch(self, number, load, bypass):
        self.dropped = bypass[self.bypass_rows :]
        return super().fetch(number, load, bypass)

    def chosen(self, predicted, in_dram, bypass):
        return [i for i in super().chosen(predicted, in_dram, bypass) if i not in self.dropped]


@plant("cache: a bypass buffer overwritten before it is summed", "DEC-2", "DEC-3", "DEC-6")
class OverwritesTheBypassBufferBeforeTheSum(Decoder):
    def fetch(self, number, load, bypass):
        rows, cost = super().fetch(number, load, bypass)
        last = bypass[-self.bypass_rows :]
        return rows | {i: rows[last[j % len(last)]] for j, i in enumerate(bypass)}, cost


@plant("cache: rows that were evicted are summed", "DEC-2", "DEC-3")
class SumsTheRowsThatItReadFirst(Decoder):
    """Rows are looked up by id among all that were ever read, of whichever layer."""

    def begin(self):
        self.known = {}
        return super().begin()

    def sum(self, number, x, chosen, in_dram):
        for neuron, row in in_dram.items():
            self.known.setdefault(neuron, row)
        return super().sum(number, x, chosen, self.known)


@plant("cache: scores averaged over positions", "DEC-2", "DEC-7")
class AveragesScoresOverPositions(Decoder):
    def begin(self):
        self.sums = [0.0] * len(self.layers)
        self.seen = [0] * len(self.layers)
        return super().begin()

    def predicted(self, number, x):
        predictor = self.layers[number][1]
        self.sums[number] = self.sums[number] + self.engine.chooser.logits(x, predictor)
        self.seen[number] += 1
        return np.flatnonzero(
            self.sums[number] / self.seen[number] > np.float32(predictor.threshold)
        ).tolist()


# --- Layers and sequences


@plant("bytes: layer 10 sorted before layer 2 by file name", "DEC-2", "DEC-3", "DEC-6")
class SortsLayersByName(Decoder):
    def sum(self, number, x, chosen, in_dram):
        names = sorted(str(layer) for layer in range(len(self.layers)))
        return super().sum(int(names[number]), x, chosen, in_dram)


@plant("predictors: one for all layers", "DEC-2", "DEC-7")
class UsesThePredictorOfTheFirstLayer(Decoder):
    def predicted(self, number, x):
        return super().predicted(0, x)


@plant("computed: mask taken as the union over the batch", "DEC-9", "DEC-2")
class UnitesPredictionsOverTheBatch(Decoder):
    def run(self, xs):
        self.batch = xs
        return super().run(xs)

    def predicted(self, number, x):
        choose, predictor = self.engine.chooser.choose, self.layers[number][1]
        return sorted({i for row in self.batch[:, self.now] for i in choose(row, predictor).tolist()})


@plant("computed: right for one sequence, wrong for more (TEAL)", "DEC-9", "DEC-2", "DEC-3")
class TakesTheMaskOfTheFirstSequence(Decoder):
    def run(self, xs):
        self.first = xs[0] if len(xs) else xs
        return super().run(xs)

    def predicted(self, number, x):
        return super().predicted(number, self.first[self.now])


@plant("computed: a stray dense kernel at batch > 1 (PowerInfer)", "DEC-9", "DEC-2", "DEC-3", "DEC-6")
class RunsTheDenseNetworkForABatch(Decoder):
    def run(self, xs):
        self.dense = len(xs) > 1
        return super().run(xs)

    def sum(self, number, x, chosen, in_dram):
        if self.dense:
            return self.engine.net.output(x, self.layers[number][0])
        return super().sum(number, x, chosen, in_dram)


@plant(
    "concurrency: scratch shared across a parallel loop over tokens (llminflash)", "DEC-9", "DEC-2", "DEC-6"
)
class SharesScratchAmongParallelSequences(Decoder):
    """Two workers fill one buffer of hidden values before either sums it."""

    def run(self, xs):
        ys, counters = super().run(xs)
        for s in range(0, len(xs) - 1, 2):
            ys[s] = ys[s + 1]
        return ys, counters


@plant("cache: state kept across sequences", "DEC-1", "DEC-9")
class StartsASequenceWithTheRowsOfTheLast(Decoder):
    def begin(self):
        self.first = getattr(self, "first", None) or super().begin()
        return self.first


@plant("cache: a key without the layer (aprender, accelerate)", "DEC-2", "DEC-9", "DEC-3")
class KeepsRowsOfAllLayersUnderOneKey(Decoder):
    def begin(self):
        self.cache = {}
        return super().begin()

    def sum(self, number, x, chosen, in_dram):
        cached = {neuron: self.cache.setdefault(neuron, row) for neuron, row in in_dram.items()}
        return super().sum(number, x, chosen, cached)


@plant("predictors: a cache that is warm before the first token", "DEC-1", "DEC-7")
class ReadsTheFirstTokensNeuronsUncounted(Decoder):
    def run(self, xs):
        ys, counters = super().run(xs)
        counters["loaded"][:, :1] = 0
        return ys, counters


# --- Counters


@plant("costs: every expert counted though few were read", "DEC-7")
class CountsEveryPredictedRowAsRead(Decoder):
    def counted(self, predicted, load, bypass, evict, cost, moved):
        cost = cost[0], len(predicted) * self.flash[0].bundle_bytes, cost[2]
        return super().counted(predicted, load, bypass, evict, cost, moved)


@plant("costs: the batches of a bypass", "DEC-10", "DEC-7")
class CountsTheBatchesOfABypassAsOne(Decoder):
    def batches(self, load, bypass):
        return [sorted(load + bypass)]


@plant("costs: the batches of a bypass", "DEC-10", "DEC-7")
class ReadsTheBypassInABatchOfItsOwn(Decoder):
    def batches(self, load, bypass):
        first, *more = super().batches([], bypass)
        return [load, first, *more]


@plant("costs: the bypass is not counted", "DEC-7")
class LeavesTheBypassOutOfTheCounters(Decoder):
    def counted(self, predicted, load, bypass, evict, cost, moved):
        cost = cost[0], len(load) * self.flash[0].bundle_bytes, cost[2]
        return super().counted(predicted, load, bypass, evict, cost, moved)


@plant("counters: moved rows", "DEC-7")
class CountsRowsWrittenAsMoved(Decoder):
    def counted(self, predicted, load, bypass, evict, cost, moved):
        return super().counted(predicted, load, bypass, evict, cost, moved + len(load))


@plant("bytes: precision, on the path of a run alone", "DEC-6")
class SumsRowsOfARunInFp16(Decoder):
    def sum(self, number, x, chosen, in_dram):
        halved = {
            i: row.astype(np.float16).astype(row.dtype) if row.dtype == np.float32 else row
            for i, row in in_dram.items()
        }
        return super().sum(number, x, chosen, halved)
