"""An engine as somebody else would write it from the spec: BLAS, sets and lists. It is correct.

It is made of small parts. A mutant is one part with one wrong step, a correct variant one with another right
step. Only the refusals are flashref's own.
"""

import numpy as np

from flashref.arithmetic import activate
from flashref.ffn import active_neurons
from flashref.predictor import active_band
from flashref.slots import Slots, swap_with_last
from flashref.types import DomainError, ShapeError, ascending_ids, widen
from flashref.window import Delta, empty_window


def int64s(ids):
    return np.array(list(ids), np.int64)


def rows_of(ffn, ids):
    """The network of these neurons."""
    of = {
        field: getattr(ffn, field)[ids]
        for field in ("up", "down", "gate", "up_bias", "gate_bias")
        if getattr(ffn, field) is not None
    }
    return ffn._replace(**of)


class Network:
    """Chapter 10."""

    def check(self, x, ffn):
        active_neurons(x, ffn)

    def ids(self, ids, n):
        return ascending_ids(ids, n)

    def widen(self, weights):
        return widen(weights)

    def products(self, x, matrix):
        return self.widen(matrix) @ x

    def pre_activation(self, x, matrix, bias):
        z = self.products(x, matrix)
        return z if bias is None else z + self.widen(bias)

    def activate(self, name, z, tau):
        return activate(name, z, tau)

    def hidden(self, x, ffn):
        z = self.pre_activation(x, ffn.up, ffn.up_bias)
        if ffn.gate is None:
            return self.activate(ffn.activation, z, ffn.tau)
        g = self.pre_activation(x, ffn.gate, ffn.gate_bias)
        return self.activate(ffn.activation, g, ffn.tau) * z

    def total(self, h, down):
        return h @ self.widen(down)

    def output(self, x, ffn):
        y = self.total(self.hidden(x, ffn), ffn.down)
        return y if ffn.down_bias is None else y + self.widen(ffn.down_bias)

    def dense(self, x, ffn):
        return self.output(x, ffn)

    def sparse(self, x, ffn, ids):
        return self.output(x, rows_of(ffn, ids))


class Chooser:
    """Chapter 20."""

    def check(self, x, predictor):
        active_band(x, predictor)

    def logits(self, x, predictor):
        z = widen(predictor.b) @ (widen(predictor.a) @ x)
        return z if predictor.bias is None else z + widen(predictor.bias)

    def bar(self, predictor):
        return np.float32(predictor.threshold)

    def choose(self, x, predictor):
        return np.flatnonzero(self.logits(x, predictor) > self.bar(predictor))


class Window:
    """Chapter 30, for one layer: the kept set of every token so far."""

    def __init__(self, n, k, capacity):
        empty_window(n, k, capacity)  # refuses
        self.n, self.k, self.capacity = n, k, capacity
        self.kept, self.start, self.resident = [], 0, set()

    def ids(self, ids):
        return set(ascending_ids(ids, self.n).tolist())

    def oldest(self, predicted):
        """The first token in the window: it never goes back."""
        t = len(self.kept)
        start = max(self.start, t - self.k + 1)
        while start < t and len(predicted.union(*self.kept[start:])) > self.capacity:
            start += 1
        return start

    def keeps(self, predicted):
        """What of a token stays: rows that are there first, then the smallest ids."""
        return set(sorted(predicted, key=lambda i: (i not in self.resident, i))[: self.capacity])

    def token(self, predicted):
        """(load, evict, bypass) of the next token, ascending."""
        self.start = self.oldest(predicted)
        keeps = self.keeps(predicted)
        self.kept.append(keeps)
        before, self.resident = self.resident, set().union(*self.kept[self.start :])
        return self.delta(before, predicted, keeps)

    def delta(self, before, predicted, keeps):
        return sorted(self.resident - before), sorted(before - self.resident), sorted(predicted - keeps)


class Table:
    """Chapter 70: which neuron lies in which row."""

    def __init__(self, capacity, placement, width, dtype):
        if capacity < 0:
            raise DomainError("a matrix has at least 0 rows")
        self.capacity, self.placement, self.width, self.dtype = capacity, placement, width, dtype
        self.ids, self.rows = [], []

    def check(self, load, evict, rows):
        ids = int64s([*self.ids, *[-1] * (self.capacity - len(self.ids))])
        swap_with_last(Slots(ids, len(self.ids)), Delta(load, evict, load[:0]))  # refuses
        if rows.shape != (len(load), *self.width) or rows.dtype != self.dtype:
            raise ShapeError("the new rows do not fit the matrix")

    def step(self, evict, load, rows):
        """Evicts, loads, and returns how many rows were moved."""
        return {"swap_with_last": self.swap_with_last, "fill_holes": self.fill_holes}[self.placement](
            set(evict), list(load), list(rows)
        )

    def swap_with_last(self, evict, load, rows):
        moved = self.close(evict, len(self.ids) - len(evict))
        self.append(load, rows)
        return moved

    def fill_holes(self, evict, load, rows):
        holes = [j for j, neuron in enumerate(self.ids) if neuron in evict][: len(load)]
        for j in holes:
            evict = evict - {self.ids[j]}
            self.ids[j], self.rows[j] = load.pop(0), rows.pop(0)
        moved = self.close(evict, len(self.ids) - len(evict))
        self.append(load, rows)
        return moved

    def close(self, evict, count):
        """Fills the holes below count with the last rows that stay."""
        tail = [j for j in range(count, len(self.ids)) if self.ids[j] not in evict]
        moved = len(tail)
        for j in range(count):
            if self.ids[j] in evict:
                self.move(tail.pop(), j)
        del self.ids[count:], self.rows[count:]
        return moved

    def move(self, source, target):
        self.ids[target], self.rows[target] = self.ids[source], self.rows[source]

    def append(self, load, rows):
        self.ids += load
        self.rows += rows

    def matrix(self):
        return np.array(self.rows, self.dtype).reshape(len(self.ids), *self.width)
