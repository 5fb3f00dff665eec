"""Wrong weights: precision, stored bits, and what should have been refused."""

import numpy as np

from flashref.arithmetic import ACTIVATIONS
from flashref.types import ShapeError, widen
from mutants.engine import Network
from mutants.registry import plant

# --- Precision and stored bits


@plant("bytes: precision", "FFN-2", "FFN-5", "DEC-6")
class AccumulatesInFp16(Network):
    def products(self, x, matrix):
        total = np.zeros(len(matrix), np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            for column, value in zip(self.widen(matrix).T, x, strict=True):
                total = (total + column * value).astype(np.float16)
        return np.nan_to_num(total.astype(np.float32))


@plant("bytes: precision", "FFN-5", "FFN-2", "DEC-6")
class RoundsWeightsToBf16(Network):
    def widen(self, weights):
        bits = widen(weights).view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


@plant("bytes: weights recovered as f(I) − f(0) in fp16", "FFN-2", "FFN-5")
class RecoversWeightsAsADifferenceInFp16(Network):
    def pre_activation(self, x, matrix, bias):
        if bias is None:
            return super().pre_activation(x, matrix, bias)
        offset = self.widen(bias)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            shifted = (self.widen(matrix) + offset).astype(np.float16)
            recovered = np.nan_to_num(shifted.astype(np.float32) - offset).astype(np.float16)
        return recovered.astype(np.float32) @ x + self.widen(bias)


@plant("bytes: fp16 subnormals decoded 2^-14 too large", "TYP-5")
class DecodesFp16SubnormalsTooLarge(Network):
    def widen(self, weights):
        wide = widen(weights)
        if weights.dtype != np.float16:
            return wide
        subnormal = (weights.view(np.uint16) & 0x7C00) == 0
        return np.where(subnormal, wide * np.float32(2**14), wide)


@plant("bytes: fp16 subnormals", "TYP-5")
class FlushesFp16Subnormals(Network):
    def widen(self, weights):
        wide = widen(weights)
        return np.where(np.abs(wide) < 2.0**-14, 0, wide) if weights.dtype == np.float16 else wide


@plant("bytes: bfloat16 bits read as float16 (olmlx)", "TYP-5", "FFN-1", "FFN-2")
class ReadsBf16AsFp16(Network):
    def widen(self, weights):
        return super().widen(weights.view(np.float16) if weights.dtype == np.uint16 else weights)


# --- What must be refused


@plant("ids: clamped", "FFN-8", "TYP-2", "IOP-7")
class ClampsIds(Network):
    def ids(self, ids, n):
        return np.unique(np.clip(ids, 0, max(n - 1, 0)))


@plant("ids: negative ones wrap", "TYP-2", "FFN-8", "IOP-7")
class WrapsNegativeIds(Network):
    def ids(self, ids, n):
        return super().ids(
            np.unique(np.where(ids < 0, ids + n, ids)) if len(ids) and min(ids) >= -n else ids, n
        )


@plant("ids: duplicates summed twice", "FFN-8", "TYP-2", "IOP-7")
class SumsAnIdTwice(Network):
    def ids(self, ids, n):
        super().ids(np.unique(ids), n)
        return ids


@plant("ids: in 32 bits", "FFN-8", "TYP-2", "IOP-7")
class NarrowsIdsTo32Bits(Network):
    def ids(self, ids, n):
        with np.errstate(all="ignore"):
            return super().ids(np.unique(ids.astype(np.int32)), n)


@plant("what fits is not asked", "FFN-9", "IOP-7")
class TakesAnUnknownActivationForRelu(Network):
    def check(self, x, ffn):
        name = ffn.activation if ffn.activation in ACTIVATIONS else "relu"
        super().check(x, ffn._replace(activation=name))

    def activate(self, name, z, tau):
        return super().activate(name if name in ACTIVATIONS else "relu", z, tau)


@plant("what fits is not asked", "FFN-9", "IOP-7")
class CutsMatricesToTheirCommonRows(Network):
    def check(self, x, ffn):
        super().check(x, self.common(ffn))

    def common(self, ffn):
        of = {name: getattr(ffn, name) for name in ("up", "down", "gate")}
        given = {name: matrix for name, matrix in of.items() if matrix is not None and matrix.ndim == 2}
        n = min(map(len, given.values()))
        return ffn._replace(**{name: matrix[:n] for name, matrix in given.items()})

    def output(self, x, ffn):
        return super().output(x, self.common(ffn))


@plant("what fits is not asked", "FFN-9", "IOP-7")
class TakesATauBelow0(Network):
    def check(self, x, ffn):
        if not np.isfinite(ffn.tau):
            raise ShapeError("tau must be finite")
        super().check(x, ffn._replace(tau=abs(ffn.tau)))
