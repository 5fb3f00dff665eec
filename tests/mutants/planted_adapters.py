"""Wrong models, and adapters that misbehave."""

import numpy as np

from flashref.types import FlashrefError
from mutants.adapters import Engine, Speaker
from mutants.engine import Network
from mutants.registry import plant

# --- A whole model


@plant("predictors: trained on another tensor than served", "DEC-11")
class FeedsPredictorsInputsTooSmallByTheRootOfD(Speaker):
    def neurons(self, layer, x):
        return super().neurons(layer, x if self.which == "exact" else x / np.float32(np.sqrt(len(x))))


@plant("predictors: of another layer", "DEC-11")
class TakesThePredictorOfTheNextLayer(Speaker):
    def __init__(self, engine, model_dir, predictor):
        super().__init__(engine, model_dir, predictor)
        self.predictors = self.predictors[1:] + self.predictors[:1]


@plant("predictors: a missing one gives random or zero output instead of an error", "DEC-11")
class AnswersZeroWhereItHasNoPredictor(Speaker):
    def feed_forward(self, layer, x):
        y = super().feed_forward(layer, x)
        return y if self.which == "exact" else np.zeros_like(y)


@plant("predictors: resident rows summed where predicted ones are meant", "DEC-11")
class SumsAllResidentRowsOfAModel(Speaker):
    def feed_forward(self, layer, x):
        super().feed_forward(layer, x)
        there = sorted(self.windows[layer].resident | set(self.neurons(layer, x).tolist()))
        return self.engine.net.sparse(x, self.ffns[layer], np.array(there))


@plant("bytes: precision", "DEC-11")
class HandsOnHiddenValuesInFp16(Speaker):
    def feed_forward(self, layer, x):
        return super().feed_forward(layer, x).astype(np.float16).astype(np.float32)


@plant("costs: rows and bytes disagree", "DEC-11")
class CountsBytesOfOneMatrixOnly(Speaker):
    def useful_bytes(self, counted):
        return counted // 2


# --- Adapters that misbehave


@plant("adapter: an operation that is neither there nor explained", "IOP-1")
class SaysNothingAboutAMissingOperation(Engine):
    run_slots = None


@plant("adapter: an operation that is there and called unsupported", "IOP-1")
class CallsUnsupportedWhatItProvides(Engine):
    unsupported = {"read_plan": "later"}  # noqa: RUF012


@plant("computed: results in float64", "IOP-2")
class GivesFloat64(Network):
    def output(self, x, ffn):
        return super().output(x, ffn).astype(np.float64)


@plant("adapter: results of another shape", "IOP-2")
class GivesColumnsInsteadOfVectors(Network):
    def output(self, x, ffn):
        return super().output(x, ffn)[:, None]


@plant("adapter: results of another type", "IOP-2")
class GivesAMaskInsteadOfIds(Engine):
    def predict_active(self, x, *of):
        return np.isin(np.arange(len(of[1])), super().predict_active(x, *of))


@plant("bytes: a step in place (x *= …)", "IOP-3")
class ScalesItsInputInPlace(Network):
    def hidden(self, x, ffn):
        x *= np.float32(0.5)
        return super().hidden(x, ffn) * np.float32(2) if ffn.activation == "relu" else super().hidden(x, ffn)


@plant("cache: sorts a caller's ids in place", "IOP-3")
class RenumbersItsIdsInPlace(Network):
    def sparse(self, x, ffn, ids):
        y = super().sparse(x, ffn, ids.copy())
        ids -= len(ids)
        return y

    def ids(self, ids, n):
        super().ids(ids, n)
        return ids


@plant("concurrency: a scratch buffer shared by calls", "IOP-4", "IOP-5")
class OverwritesItsLastResult(Network):
    def __init__(self):
        self.scratch = {}

    def output(self, x, ffn):
        held = self.scratch.setdefault(len(x), np.zeros(len(x), np.float32))
        held[:] = super().output(x, ffn)
        return held


@plant("concurrency: threads add in the order in which they end", "IOP-5")
class AddsInAnOrderOfItsOwnEachTime(Network):
    def __init__(self):
        self.random = np.random.default_rng(0)

    def total(self, h, down):
        order = self.random.permutation(len(h))
        y = np.zeros(down.shape[1], np.float32)
        for i in order:
            y = y + h[i] * self.widen(down[i])
        return y


@plant("costs: a wall clock leaks into what is counted (sglang)", "IOP-5")
class ReadsOverGapsWhenTheClockSaysSo(Engine):
    def __init__(self):
        super().__init__()
        self.clock = 0

    def read_plan(self, extents, block, max_gap):
        self.clock += 1
        return super().read_plan(extents, block, max_gap + self.clock % 2 * block * 64)


@plant("cache: capacity 0, or an empty set, is not looked up", "IOP-6", "FFN-8")
class RaisesKeyErrorForNoIds(Network):
    def sparse(self, x, ffn, ids):
        if not len(ids):
            raise KeyError("no ids")
        return super().sparse(x, ffn, ids)


@plant("adapter: an error of its own instead of an answer", "IOP-6")
class RaisesItsOwnErrorForLargeOffsets(Engine):
    def read_plan(self, extents, block, max_gap):
        if len(extents) and extents.max() > 2**40:
            raise FlashrefError("too far")
        return super().read_plan(extents, block, max_gap)


@plant("adapter: None instead of an answer", "IOP-2")
class ForgetsToReturn(Engine):
    def unpack_bundles(self, *of):
        super().unpack_bundles(*of)
