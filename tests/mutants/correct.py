"""Correct implementations that differ from flashref in everything that the spec leaves free."""

from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flashref.arithmetic import ACTIVATIONS
from flashref.bounds import TINY
from flashref.conformance.adapter import OPERATIONS, Unsupported
from flashref.types import widen
from mutants.adapters import Decoder, Engine
from mutants.engine import Chooser, Network, Table, Window
from mutants.registry import PARTS, correct

# --- Orders of a sum


@correct
class WritesTheSpecDownPlainly(Engine):
    """BLAS, windows as lists of sets, and sums over rows in the order in which they lie."""


def summed(terms, rows, add):
    """Σ terms[i] · rows[i] by a scalar `add(total, term, row)`."""
    total = np.zeros(rows.shape[1], np.float32)
    for term, row in zip(terms, rows, strict=True):
        total = add(total, term, row)
    return total


class Loops(Network):
    """Both sums as one loop over rows."""

    def products(self, x, matrix):
        return self.sum(x, self.widen(matrix).T)

    def total(self, h, down):
        return self.sum(h, self.widen(down))


@correct
class SumsFromTheLastTermToTheFirst(Loops):
    def sum(self, terms, rows):
        return summed(terms[::-1], rows[::-1], lambda total, term, row: total + term * row)


@correct
class FusesMultiplyAndAdd(Loops):
    def sum(self, terms, rows):
        def fused(total, term, row):
            return (total.astype(np.float64) + np.float64(term) * row.astype(np.float64)).astype(np.float32)

        return summed(terms, rows, fused)


@correct
class SumsPairwise(Loops):
    def sum(self, terms, rows):
        parts = [term * row for term, row in zip(terms, rows, strict=True)]
        while len(parts) > 1:
            odd = parts[-1:] if len(parts) % 2 else []
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)] + odd
        return parts[0] if parts else np.zeros(rows.shape[1], np.float32)


@correct
class SumsInChunksOfThreeRows(Loops):
    def sum(self, terms, rows):
        total = np.zeros(rows.shape[1], np.float32)
        for i in range(0, len(terms), 3):
            total = total + terms[i : i + 3] @ rows[i : i + 3]
        return total


@correct
class PadsRowsWithZerosToAMultipleOf8(Loops):
    def sum(self, terms, rows):
        more = -len(terms) % 8
        return np.pad(terms, (0, more)) @ np.pad(rows, ((0, more), (0, 0)))


@correct
class SumsNeuronsInSeveralThreads(Network):
    def total(self, h, down):
        pieces = [slice(i, i + 4) for i in range(0, len(h), 4)]
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(lambda piece: h[piece] @ self.widen(down[piece]), pieces))
        return np.sum([np.zeros(down.shape[1], np.float32), *parts], axis=0)


@correct
class MasksNeuronsInsteadOfTakingRows(Network):
    def sparse(self, x, ffn, ids):
        h = np.where(np.isin(np.arange(len(ffn.up)), ids), self.hidden(x, ffn), np.float32(0))
        y = self.total(h, ffn.down)
        return y if ffn.down_bias is None else y + self.widen(ffn.down_bias)


@correct
class BeginsASumWithTheBias(Loops):
    def sum(self, terms, rows, start=None):
        total = np.zeros(rows.shape[1], np.float32) if start is None else start
        for term, row in zip(terms, rows, strict=True):
            total = total + term * row
        return total

    def pre_activation(self, x, matrix, bias):
        return self.sum(x, self.widen(matrix).T, None if bias is None else self.widen(bias))


# --- Other arithmetic


class Wide(Network):
    """Everything in float64, and rounded once."""

    def output(self, x, ffn):
        def matrix(of):
            return widen(of).astype(np.float64)

        def pre(rows, bias):
            return matrix(rows) @ x + (0 if bias is None else matrix(bias))

        gated = ffn.gate is not None
        z = pre(ffn.gate, ffn.gate_bias) if gated else pre(ffn.up, ffn.up_bias)
        h = ACTIVATIONS[ffn.activation](z, np.float32(ffn.tau))
        y = (h * pre(ffn.up, ffn.up_bias) if gated else h) @ matrix(ffn.down)
        return (y if ffn.down_bias is None else y + matrix(ffn.down_bias)).astype(np.float32)


@correct
class ComputesInFloat64(Engine):
    network, accumulate, touched = Wide, "F64", PARTS["network"][1]


@correct
class ComputesInFloat64AndDoesNotSaySo(Engine):
    network, touched = Wide, PARTS["network"][1]


@correct
class PredictsInFloat64(Chooser):
    def logits(self, x, predictor):
        z = widen(predictor.b).astype(np.float64) @ (widen(predictor.a).astype(np.float64) @ x)
        return z if predictor.bias is None else z + widen(predictor.bias)


def flushed(values):
    return np.where(np.abs(values) < TINY, np.float32(0), values).astype(np.float32)


class FlushingNetwork(Loops):
    def sum(self, terms, rows):
        return summed(terms, rows, lambda total, term, row: flushed(total + flushed(term * row)))

    def activate(self, name, z, tau):
        return flushed(super().activate(name, z, tau))

    def hidden(self, x, ffn):
        return flushed(super().hidden(x, ffn))


class FlushingChooser(Chooser):
    def logits(self, x, predictor):
        total = FlushingNetwork().sum
        z = total(total(x, widen(predictor.a).T), widen(predictor.b).T)
        return z if predictor.bias is None else flushed(z + widen(predictor.bias))


@correct
class FlushesSubnormals(Engine):
    network, predictor, flushes_subnormals = FlushingNetwork, FlushingChooser, True
    touched = (*PARTS["network"][1], "predict_active")


@correct
class ReturnsNegativeZeros(Network):
    def output(self, x, ffn):
        y = super().output(x, ffn)
        return np.where(y == 0, np.float32(-0.0), y)


# --- Other windows, rows and storage


@correct
class CountsHowManyTokensKeepANeuron(Window):
    """The window as a queue of kept sets, and a count for each neuron."""

    def __init__(self, n, k, capacity):
        super().__init__(n, k, capacity)
        self.queue, self.count = deque(), Counter()

    def drop(self):
        self.count -= Counter(self.queue.popleft())  # and forgets counts of 0

    def token(self, predicted):
        before = set(self.count)
        while len(self.queue) >= self.k:
            self.drop()
        while self.queue and len(predicted | set(self.count)) > self.capacity:
            self.drop()
        there, new = sorted(predicted & before), sorted(predicted - before)
        keeps = [*there, *new][: self.capacity]
        self.queue.append(keeps)
        self.count += Counter(keeps)
        after = set(self.count)
        self.resident = after
        return sorted(after - before), sorted(before - after), sorted(predicted - set(keeps))


@correct
class KeepsItsRowsInAnotherOrder(Table):
    """Appends in descending id, and fills holes from the lowest of the last rows."""

    def append(self, load, rows):
        super().append(load[::-1], rows[::-1])

    def close(self, evict, count):
        tail = [j for j in range(count, len(self.ids)) if self.ids[j] not in evict]
        for hole, source in zip([j for j in range(count) if self.ids[j] in evict], tail, strict=True):
            self.move(source, hole)
        del self.ids[count:], self.rows[count:]
        return len(tail)


@correct
class ClosesHolesOneByOneFromTheEnd(Table):
    def close(self, evict, count):
        moved, j = 0, 0
        while j < len(self.ids):
            if self.ids[-1] in evict:
                self.ids.pop(), self.rows.pop()
            elif self.ids[j] in evict:
                self.ids[j], self.rows[j] = self.ids.pop(), self.rows.pop()
                moved += 1
            else:
                j += 1
        return moved


@correct
class KeepsItsWeightsInALayoutOfItsOwn(Decoder):
    """Takes rows from matrices side by side; requests and bytes are those that the layout would cost."""

    def fetch(self, number, load, bypass):
        ffn, flash = self.layers[number][0], self.flash[number]
        cost = np.zeros(3, np.int64)
        for batch in self.batches(load, bypass):
            extents = flash.extents(batch)
            cost += flash.cost(flash.plan(extents, self.max_gap), extents)
        matrices = [ffn.up, ffn.down] if ffn.gate is None else [ffn.gate, ffn.up, ffn.down]
        side_by_side = np.stack(matrices, axis=1)
        return {i: side_by_side[i] for i in [*load, *bypass]}, cost.tolist()


# --- Adapters that are less, or give other types


class Picky(Engine):
    """Raises what is no refusal for whatever its facts say is never sent."""

    def sent(self, *matrices):
        for matrix in matrices:
            if matrix is not None and matrix.dtype != np.float32:
                raise RuntimeError(f"{matrix.dtype} was sent")

    def predict_active(self, x, *of):
        self.sent(of[0])
        return super().predict_active(x, *of)

    def sparse_ffn(self, x, *of):
        self.sent(of[1])
        return super().sparse_ffn(x, *of)

    def dense_ffn(self, x, *of):
        self.sent(of[1])
        return super().dense_ffn(x, *of)

    def run_decode(self, layers, xs, *of):
        self.sent(*[part for ffn, predictor in layers for part in (ffn[1], ffn[2], predictor[0])])
        return super().run_decode(layers, xs, *of)


@correct
class TakesFloat32Only(Picky):
    dtypes = frozenset({"F32"})


@correct
class TakesMatricesOf16Elements(Picky):
    max_elements = 16

    def sent(self, *matrices):
        if any(matrix.size > 16 + 8 for matrix in matrices):  # a bad call has a row or a column more
            raise RuntimeError("a matrix of more than 16 elements was sent")


@correct
class HasTheWindowAndTheSparseNetworkOnly(Engine):
    """Everything else is None, and has a reason."""

    unsupported = dict.fromkeys(sorted(set(OPERATIONS) - {"run_window", "sparse_ffn"}), "not there")


for _operation in HasTheWindowAndTheSparseNetworkOnly.unsupported:
    setattr(HasTheWindowAndTheSparseNetworkOnly, _operation, None)


@correct
class SkipsGatedNetworks(Engine):
    touched = ("dense_ffn",)

    def dense_ffn(self, x, *of):
        if of[3] is not None:
            raise Unsupported("gated networks come later")
        return super().dense_ffn(x, *of)


@correct
class GivesListsAndSmallIntegers(Engine):
    def predict_active(self, x, *of):
        return super().predict_active(x, *of).astype(np.int32)

    def bundle_layout(self, *of):
        stride, extents = super().bundle_layout(*of)
        return [np.int64(stride), extents.tolist()]

    def unpack_bundles(self, *of):
        return tuple(super().unpack_bundles(*of))

    def read_plan(self, extents, block, max_gap):
        return [list(read) for read in super().read_plan(extents, block, max_gap)]

    def update(self, window, active):
        return tuple(ids.tolist() for ids in super().update(window, active))

    def run_slots(self, capacity, placement, deltas, rows):
        steps = super().run_slots(capacity, placement, deltas, rows)
        return [(ids.astype(np.uint8), kept, np.int16(moved)) for ids, kept, moved in steps]

    def run_decode(self, layers, xs, *of):
        ys, counters = super().run_decode(layers, xs, *of)
        return ys, {name: counts.tolist() for name, counts in counters.items()}


@correct
class CountsNothing(Engine):
    touched = ("run_decode", "logits")

    def run_decode(self, layers, xs, *of):
        return super().run_decode(layers, xs, *of)[0], {}

    def logits(self, *of):
        return super().logits(*of)[0], {}


@correct
class CountsBytesOnly(Engine):
    touched = ("run_decode",)

    def run_decode(self, layers, xs, *of):
        ys, counters = super().run_decode(layers, xs, *of)
        return ys, {name: counters[name] for name in ("useful_bytes", "read_bytes")}


@correct
class RefusesInWordsOfItsOwn(Engine):
    """Every refusal is a TypeError or an OverflowError."""

    def __getattribute__(self, name):
        function = super().__getattribute__(name)
        if name not in OPERATIONS:
            return function

        def refusing(*arguments):
            try:
                return function(*arguments)
            except IndexError as error:
                raise OverflowError("no") from error
            except ValueError as error:
                raise TypeError("no") from error

        return refusing
