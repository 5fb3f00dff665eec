"""A plain engine in NumPy that trusts its arguments, as many do: the kit's page is tried on it."""

import math

import numpy as np


def _each(function):
    return np.vectorize(function, otypes=[np.float64])


def _gelu_tanh(z, tau):
    return z / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


ACTIVATIONS = {
    "relu": lambda z, tau: np.maximum(z, 0),
    "squared_relu": lambda z, tau: np.maximum(z, 0) ** 2,
    "fatrelu": lambda z, tau: np.where(z > np.float32(tau), z, 0),
    "silu": lambda z, tau: z / (1 + np.exp(-z)),
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": lambda z, tau: z * _each(math.erfc)(-z / math.sqrt(2)) / 2,
}


def _wide(array):
    return None if array is None else array.astype(np.float64)


def _affine(x, matrix, bias, active):
    return _wide(matrix[active]) @ x.astype(np.float64) + (0 if bias is None else _wide(bias[active]))


def feed_forward(x, activation, up, down, gate, biases, tau, active):
    up_bias, gate_bias, down_bias = biases
    with np.errstate(over="ignore"):
        h = _affine(x, up, up_bias, active)
        if gate is None:
            h = ACTIVATIONS[activation](h, tau)
        else:
            h = h * ACTIVATIONS[activation](_affine(x, gate, gate_bias, active), tau)
    y = h @ _wide(down[active])
    return (y if down_bias is None else y + _wide(down_bias)).astype(np.float32)


class window:
    """The windows of one sequence, a layer for each capacity."""

    def __init__(self, n, k, capacities):
        self.k, self.capacities = k, capacities
        self.kept = [[] for _ in capacities]
        self.there = [set() for _ in capacities]

    def feed(self, sequence):
        return [
            [self._token(layer, set(ids.tolist())) for layer, ids in enumerate(token)] for token in sequence
        ]

    def _token(self, layer, wanted):
        there, capacity = self.there[layer], self.capacities[layer]
        older = self.kept[layer][-(self.k - 1) :] if self.k > 1 else []
        while older and len(wanted.union(*older)) > capacity:
            older.pop(0)
        mine = set((sorted(wanted & there) + sorted(wanted - there))[:capacity])
        self.kept[layer] = [*older, mine]
        now = self.there[layer] = set().union(*self.kept[layer])
        return [sorted(now - there), sorted(there - now), sorted(wanted - mine)]
