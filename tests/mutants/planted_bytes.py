"""Wrong layouts: bytes at the wrong place."""

import numpy as np

from mutants.registry import plant
from mutants.storage import Flash

# --- Layout and packing


@plant("bytes: the writer and the reader share one wrong layout (1bit-MONSTER)", "BND-5", "GTH-1")
class BundlesDownBeforeUp(Flash):
    def bundle(self, matrices, neuron):
        return super().bundle(matrices[::-1], neuron)

    def rows(self, bundles):
        return super().rows(bundles)[:, ::-1].copy()


@plant("bytes: bundle written with 8193 values, read as 8192", "BND-4", "BND-5")
class WritesOneValueMoreThanItReads(Flash):
    def pack(self, matrices):
        one = bytes(self.dtype.itemsize)
        packed = b"".join(self.bundle(matrices, i) + one + self.padding() for i in self.order)
        return np.frombuffer(packed, np.uint8)[: self.n * self.stride].copy()


@plant("bytes: stride", "BND-1", "BND-7", "GTH-1")
class AddsOneValueToTheStride(Flash):
    def stride_of(self, size):
        return super().stride_of(size + self.dtype.itemsize)


@plant("bytes: stride", "BND-1", "BND-7")
class RoundsEveryStrideToAPowerOf2(Flash):
    def stride_of(self, size):
        return 1 << (size - 1).bit_length()


@plant("bytes: bundles without padding", "BND-2", "BND-1", "BND-5")
class PacksBundlesWithoutPadding(Flash):
    def stride_of(self, size):
        return size


@plant("bytes: alignment constants that differ between writer and reader", "BND-4", "BND-5")
class PacksToAnotherAlignmentThanItReads(Flash):
    def padding(self):
        return bytes(-self.bundle_bytes % 16)

    def pack(self, matrices):
        packed = super().pack(matrices)
        return np.resize(
            np.concatenate([packed, np.zeros(self.n * self.stride, np.uint8)]), self.n * self.stride
        )


@plant("bytes: non-contiguous arrays written as if contiguous (safetensors)", "BND-5", "BND-4")
class WritesTransposedMatricesAsTheyLie(Flash):
    def pack(self, matrices):
        return super().pack([matrix.T.copy().reshape(matrix.shape) for matrix in matrices])


@plant("bytes: padding", "BND-5")
class LeavesRubbishInThePadding(Flash):
    def padding(self):
        return bytes([0xCD]) * (self.stride - self.bundle_bytes)


@plant("bytes: byte order", "BND-5")
class WritesBigEndianValues(Flash):
    def bundle(self, matrices, neuron):
        return super().bundle([matrix.byteswap() for matrix in matrices], neuron)

    def rows(self, bundles):
        return super().rows(bundles).byteswap()


@plant("bytes: bits lost on the way", "BND-4", "BND-5")
class LosesTheSignOfZero(Flash):
    def bundle(self, matrices, neuron):
        if self.dtype == np.uint16:
            return super().bundle(matrices, neuron)
        return super().bundle([matrix + self.dtype.type(0) for matrix in matrices], neuron)


@plant("bytes: bits lost on the way", "BND-4", "BND-5")
class FlushesSubnormalsWhenItPacks(Flash):
    def bundle(self, matrices, neuron):
        if self.dtype == np.uint16:
            return super().bundle(matrices, neuron)
        smallest = np.finfo(self.dtype).smallest_normal
        flushed = [np.where(np.abs(m) < smallest, self.dtype.type(0), m) for m in matrices]
        return super().bundle(flushed, neuron)


@plant("bytes: order", "BND-7", "BND-5", "GTH-1")
class TakesTheOrderForItsInverse(Flash):
    def offset(self, neuron):
        return self.start + self.order[neuron] * self.stride


@plant("bytes: extents", "BND-7", "GTH-3")
class CountsThePaddingAsPartOfTheBundle(Flash):
    def extents(self, ids):
        return [(self.offset(neuron), self.stride) for neuron in ids]


@plant("bytes: extents", "BND-7", "GTH-1")
class NumbersExtentsByTheirPlaceInTheList(Flash):
    def extents(self, ids):
        return super().extents(self.order[: len(ids)])


@plant("bytes: offsets in 32 bits", "BND-8")
class KeepsOffsetsIn32Bits(Flash):
    def extents(self, ids):
        low = [(offset & 0xFFFFFFFF, length) for offset, length in super().extents(ids)]
        return [(offset - 2**32 if offset >= 2**31 else offset, length) for offset, length in low]


@plant("bytes: offsets in float64", "BND-8")
class KeepsOffsetsInFloat64(Flash):
    def extents(self, ids):
        return [(int(float(offset) + 0.0), length) for offset, length in super().extents(ids)]

    def offset(self, neuron):
        return float(self.start) + float(self.order.index(neuron)) * float(self.stride)


@plant("bytes: a limit that two constants give", "BND-3", "IOP-7")
class RoundsABlockUpToAPowerOf2(Flash):
    def __init__(self, n, d, dtype, fields, block, start=0, order=None):
        block = 1 << max(0, block - 1).bit_length()
        super().__init__(n, d, dtype, fields, block, start // block * block, order)


@plant("bytes: not finite values packed", "BND-6")
class PacksValuesThatAreNotFinite(Flash):
    def check(self, matrices):
        finite = []
        for matrix in matrices:
            exponent = {4: 0x7F800000, 2: 0x7C00 if matrix.dtype == np.float16 else 0x7F80}.get(
                matrix.itemsize, 0
            )
            bits = matrix.view(f"u{matrix.itemsize}")
            finite.append(
                np.where(bits & exponent == exponent, 0, bits).astype(bits.dtype).view(matrix.dtype)
            )
        super().check(finite)


@plant("bytes: what fits is not asked", "BND-6")
class FillsAMissingFieldWithZeros(Flash):
    def pack(self, matrices):
        return super().pack([*matrices, *[np.zeros_like(matrices[0])] * (len(self.fields) - len(matrices))])

    def check(self, matrices):
        super().check([*matrices, *[matrices[0]] * (len(self.fields) - len(matrices))])


@plant("ids: clamped", "BND-9", "TYP-2", "GTH-2")
class ClampsIdsToTheLayer(Flash):
    def ids(self, ids):
        return np.unique(np.clip(ids, 0, self.n - 1)).tolist()


@plant("ids: unsorted ones and duplicates accepted", "GTH-2", "BND-9", "TYP-2")
class GathersIdsInAnyOrder(Flash):
    def ids(self, ids):
        super().ids(sorted(set(ids.tolist())))
        return ids.tolist()


@plant("bytes: NaN payloads, and padding, pass through arithmetic", "BND-4", "GTH-1")
class UnpacksThroughFloat32(Flash):
    def rows(self, bundles):
        rows = super().rows(bundles)
        if self.dtype == np.float16:
            wide = rows.astype(np.float32)
            rows = np.where(np.abs(wide) < 2.0**-14, 0, wide).astype(np.float16)
        return rows
