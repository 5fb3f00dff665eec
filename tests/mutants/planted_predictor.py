"""Wrong predictors, as far as predicted ids can show it."""

import numpy as np

from flashref.types import widen
from mutants.engine import Chooser
from mutants.registry import plant


@plant("predictors: ReLU between the factors in one and not in the other", "PRD-1", "PRD-5", "DEC-2")
class PutsAReluBetweenTheFactors(Chooser):
    def logits(self, x, predictor):
        z = widen(predictor.b) @ np.maximum(widen(predictor.a) @ x, 0)
        return z if predictor.bias is None else z + widen(predictor.bias)


@plant("computed: a tie", "PRD-1", "DEC-2")
class PredictsALogitOfJustTheThreshold(Chooser):
    def choose(self, x, predictor):
        return np.flatnonzero(self.logits(x, predictor) >= self.bar(predictor))


@plant("computed: a threshold scaled by 0.9, wrong for negative scores", "PRD-1", "PRD-5", "DEC-2")
class ScalesTheThresholdByNineTenths(Chooser):
    def bar(self, predictor):
        return np.float32(0.9) * super().bar(predictor)


@plant("computed: a threshold argument never used (PowerInfer)", "PRD-1", "PRD-5", "DEC-2")
class IgnoresTheThreshold(Chooser):
    def bar(self, predictor):
        return np.float32(0)


@plant("predictors: bias", "PRD-1", "PRD-5", "DEC-2")
class IgnoresTheBiasOfThePredictor(Chooser):
    def logits(self, x, predictor):
        return super().logits(x, predictor._replace(bias=None))


@plant("predictors: a threshold on probabilities", "PRD-1", "PRD-5", "DEC-2")
class ComparesProbabilitiesWithTheThreshold(Chooser):
    def logits(self, x, predictor):
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-super().logits(x, predictor)))


@plant("predictors: a threshold on probabilities", "PRD-5")
class ComparesProbabilitiesThatSaturate(Chooser):
    def choose(self, x, predictor):
        def sigmoid(z):
            with np.errstate(over="ignore"):
                return np.float32(1) / (np.float32(1) + np.exp(-z))

        return np.flatnonzero(sigmoid(self.logits(x, predictor)) > sigmoid(self.bar(predictor)))


@plant("computed: k+1 kept by a top-k (mlx-examples)", "PRD-1", "PRD-5", "DEC-2")
class KeepsOneMoreThanItCounted(Chooser):
    def choose(self, x, predictor):
        z = self.logits(x, predictor)
        count = len(super().choose(x, predictor)) + 1
        return np.sort(np.argsort(-z, kind="stable")[:count])


@plant("computed: a budget instead of a threshold", "PRD-1", "PRD-5")
class KeepsAtMostHalfOfTheNeurons(Chooser):
    def choose(self, x, predictor):
        z, chosen = self.logits(x, predictor), super().choose(x, predictor)
        return np.sort(chosen[np.argsort(-z[chosen], kind="stable")][: -(-len(z) // 2)])


@plant("predictors: inputs √d too small", "PRD-1", "PRD-5", "DEC-2")
class FeedsInputsTooSmallByTheRootOfD(Chooser):
    def logits(self, x, predictor):
        return super().logits(x / np.float32(np.sqrt(len(x))), predictor)


@plant("predictors: trained on another tensor (pre- against post-layernorm)", "PRD-1", "PRD-5", "DEC-2")
class FeedsThePredictorANormalisedInput(Chooser):
    def logits(self, x, predictor):
        return super().logits((x - x.mean()) / (x.std() + np.float32(1e-5)), predictor)


@plant("predictors: balance weight 0, so that the predictor says never", "PRD-1", "PRD-5", "DEC-2")
class NeverPredictsANeuron(Chooser):
    def choose(self, x, predictor):
        return np.zeros(0, np.int64)


@plant("computed: a threshold argument with a meaning of its own", "PRD-3", "PRD-1")
class TakesAnInfiniteThresholdForNone(Chooser):
    def choose(self, x, predictor):
        if np.isinf(predictor.threshold):
            return np.arange(len(predictor.b))
        return super().choose(x, predictor)


@plant("bytes: precision", "PRD-5")
class ComputesLogitsInFp16(Chooser):
    def logits(self, x, predictor):
        with np.errstate(over="ignore", invalid="ignore"):
            return super().logits(x.astype(np.float16).astype(np.float32), predictor).astype(np.float16)


@plant("what fits is not asked", "PRD-4", "IOP-7")
class TakesAThresholdThatIsNoNumber(Chooser):
    def check(self, x, predictor):
        super().check(x, predictor._replace(threshold=0.0))


@plant("what fits is not asked", "PRD-4", "IOP-7")
class TakesInputsThatAreLongerThanThePredictor(Chooser):
    def check(self, x, predictor):
        super().check(x[: predictor.a.shape[1]], predictor)

    def logits(self, x, predictor):
        return super().logits(x[: predictor.a.shape[1]], predictor)


@plant("predictors: a wrong file gives output instead of an error", "PRD-4", "IOP-7")
class GuessesThePredictorsOfAnotherRank(Chooser):
    def check(self, x, predictor):
        super().check(x, self.fitted(predictor))

    def fitted(self, predictor):
        rank = min(predictor.a.shape[0], predictor.b.shape[1])
        return predictor._replace(a=predictor.a[:rank], b=predictor.b[:, :rank])

    def logits(self, x, predictor):
        return super().logits(x, self.fitted(predictor))
