"""Wrong networks: which neurons, biases, activations."""

import math

import numpy as np

from mutants.engine import Network, rows_of
from mutants.registry import plant

# --- Which neurons


@plant("computed: a stray dense kernel overwrites the sparse result", "FFN-4", "FFN-5", "FFN-8")
class SumsAllNeuronsWhateverTheIds(Network):
    def sparse(self, x, ffn, ids):
        return self.dense(x, ffn)


@plant("computed: a mask instead of rows", "FFN-6", "FFN-4", "FFN-5")
class LeavesOutTheLastChosenNeuron(Network):
    def sparse(self, x, ffn, ids):
        return self.output(x, rows_of(ffn, ids[:-1]))


@plant("computed: row count floored to a multiple of the block", "FFN-1", "FFN-2")
class FloorsRowsToAMultipleOf4(Network):
    multiple = 4

    def dense(self, x, ffn):
        n = len(ffn.up)
        return self.output(
            x, rows_of(ffn, np.arange(n // self.multiple * self.multiple if n > self.multiple else n))
        )


@plant("computed: row count floored to a multiple of the block", "FFN-1", "FFN-2")
class FloorsRowsToAMultipleOf8(FloorsRowsToAMultipleOf4):
    multiple = 8


@plant("computed: row count floored to a multiple of the block", "FFN-2")
class FloorsRowsToAMultipleOf16(FloorsRowsToAMultipleOf4):
    multiple = 16


@plant("computed: the wrong matrix decides", "FFN-1", "FFN-2", "FFN-4")
class AppliesTheActivationToUpInsteadOfTheGate(Network):
    def hidden(self, x, ffn):
        if ffn.gate is None:
            return super().hidden(x, ffn)
        a = self.activate(ffn.activation, self.pre_activation(x, ffn.up, ffn.up_bias), ffn.tau)
        return a * self.pre_activation(x, ffn.gate, ffn.gate_bias)


@plant("computed: the wrong matrix decides", "FFN-1", "FFN-2", "FFN-4", "FFN-5")
class SkipsGatedNeuronsWhoseUpIsNegative(Network):
    def hidden(self, x, ffn):
        up = self.pre_activation(x, ffn.up, ffn.up_bias)
        return super().hidden(x, ffn) if ffn.gate is None else super().hidden(x, ffn) * (up > 0)


@plant("computed: scratch of one width (row tails)", "FFN-2", "FFN-5")
class LeavesOutColumnsBehindAMultipleOf8(Network):
    def products(self, x, matrix):
        d = len(x) if len(x) < 8 else len(x) // 8 * 8
        return self.widen(matrix[:, :d]) @ x[:d]


# --- Biases


@plant("computed: up bias added after the mask (PowerInfer)", "FFN-4", "FFN-5", "FFN-8")
class AddsTheUpBiasAfterTheMask(Network):
    def sparse(self, x, ffn, ids):
        mask = np.isin(np.arange(len(ffn.up)), ids)
        masked = np.where(mask, self.products(x, ffn.up), np.float32(0))
        z = masked if ffn.up_bias is None else masked + self.widen(ffn.up_bias)
        if ffn.gate is not None:
            return super().sparse(x, ffn, ids)
        y = self.total(self.activate(ffn.activation, z, ffn.tau), ffn.down)
        return y if ffn.down_bias is None else y + self.widen(ffn.down_bias)


@plant("computed: both biases dropped in the sparse path (NimbleEdge)", "FFN-4", "FFN-5", "FFN-6", "FFN-8")
class DropsBothBiasesOnTheSparsePath(Network):
    def sparse(self, x, ffn, ids):
        return super().sparse(x, ffn._replace(up_bias=None, down_bias=None), ids)


@plant("computed: biases of the sparse path", "FFN-8")
class DropsTheDownBiasOfTheEmptySet(Network):
    def sparse(self, x, ffn, ids):
        return super().sparse(x, ffn, ids) if len(ids) else np.zeros_like(x)


@plant("computed: biases", "FFN-1", "FFN-2", "FFN-4")
class IgnoresTheGateBias(Network):
    def hidden(self, x, ffn):
        return super().hidden(x, ffn._replace(gate_bias=None))


@plant("computed: a bias freed while still pointed to (llminflash)", "FFN-4", "FFN-5", "FFN-6")
class TakesTheFirstBiasesInsteadOfTheChosen(Network):
    def sparse(self, x, ffn, ids):
        first = None if ffn.up_bias is None else ffn.up_bias[: len(ids)]
        return self.output(x, rows_of(ffn, ids)._replace(up_bias=first))


# --- Activations


@plant("computed: SiLU hard-coded though the model uses GELU (olmlx)", "FFN-2", "FFN-5")
class UsesSiluForGelu(Network):
    def activate(self, name, z, tau):
        return super().activate("silu" if name.startswith("gelu") else name, z, tau)


@plant("computed: another activation than the model's", "FFN-2", "FFN-5")
class UsesTheTanhFormOfGeluForTheErfForm(Network):
    def activate(self, name, z, tau):
        return super().activate("gelu_tanh" if name == "gelu_erf" else name, z, tau)


@plant("computed: ReLU on CPU, another on GPU (NimbleEdge)", "FFN-6", "FFN-4", "FFN-5")
class UsesReluForSquaredReluOnTheSparsePath(Network):
    def sparse(self, x, ffn, ids):
        name = "relu" if ffn.activation == "squared_relu" else ffn.activation
        return super().sparse(x, ffn._replace(activation=name), ids)


@plant("computed: cancellation", "FFN-2", "FFN-5")
class ComputesGeluFromOnePlusErf(Network):
    def activate(self, name, z, tau):
        if name != "gelu_erf":
            return super().activate(name, z, tau)
        erf = np.float32([math.erf(v / math.sqrt(2)) for v in z.tolist()])
        return np.float32(0.5) * z * (np.float32(1) + erf)


@plant("computed: cancellation", "FFN-2", "FFN-5")
class ComputesSiluFromOnePlusTanh(Network):
    def activate(self, name, z, tau):
        if name != "silu":
            return super().activate(name, z, tau)
        return np.float32(0.5) * z * (np.float32(1) + np.tanh(np.float32(0.5) * z))


@plant("computed: activation", "FFN-1", "FFN-2", "FFN-4", "FFN-5")
class SubtractsTauFromWhatExceedsIt(Network):
    def activate(self, name, z, tau):
        a = super().activate(name, z, tau)
        return np.where(a > 0, a - np.float32(tau), a) if name == "fatrelu" else a


@plant("computed: activation, a tie", "FFN-1", "FFN-4")
class LetsAPreActivationOfJustTauThrough(Network):
    def activate(self, name, z, tau):
        return (
            np.where(z >= np.float32(tau), z, np.float32(0))
            if name == "fatrelu"
            else super().activate(name, z, tau)
        )


@plant("computed: activation", "FFN-1", "FFN-2", "FFN-4", "FFN-5")
class SquaresBeforeItClips(Network):
    def activate(self, name, z, tau):
        return z * z if name == "squared_relu" else super().activate(name, z, tau)


@plant("computed: activation, an argument never used", "FFN-1", "FFN-2", "FFN-4")
class IgnoresTau(Network):
    def activate(self, name, z, tau):
        return super().activate(name, z, 0.0)
