"""One flat state machine: window + slots + image + reader, over two layers, against plain dicts and sets."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_decode import Setup

from flashref import dense_ffn, same, sparse_ffn
from flashref.decode import decode_layer, sum_predicted, sum_resident
from flashref.slots import fill_holes, swap_with_last
from flashref.types import FFN, FlashrefError, ImageError, Read, ReadError

N, D = 9, 3


def refusing(extents):
    raise ReadError("the disk does not answer")


class DecodeMachine(RuleBasedStateMachine):
    """Tokens run through both layers; a fault leaves everything as it was, and the token can be repeated."""

    @initialize(
        seed=st.integers(0, 2**16),
        k=st.integers(1, 4),
        capacities=st.tuples(st.integers(0, N), st.integers(0, N)),
        place=st.sampled_from([swap_with_last, fill_holes]),
        semantics=st.sampled_from([sum_resident, sum_predicted]),
        bypass_rows=st.none() | st.integers(1, 3),
        order=st.none() | st.permutations(range(N)).map(np.array),
    )
    def pack(self, seed, k, capacities, place, semantics, bypass_rows, order):
        rng = np.random.default_rng(seed)
        self.k, self.capacities, self.place, self.semantics = k, capacities, place, semantics
        self.x = rng.standard_normal(D, np.float32)
        self.setups = []
        for capacity in capacities:
            up, down, gate = (rng.standard_normal((N, D)).astype(np.float16) for _ in range(3))
            bias = rng.standard_normal(N).astype(np.float16)
            ffn = FFN("relu", up, down, gate, bias, None, rng.standard_normal(D).astype(np.float16))
            self.setups.append(Setup(ffn, k, capacity, bypass_rows=bypass_rows, order=order))
        self.layers = [setup.layer for setup in self.setups]
        self.kept = [[], []]  # model: a kept set a token
        self.start = [0, 0]  # model: the oldest token in the window
        self.there = [set(), set()]  # model: the resident set

    def token_of(self, layer, active, read):
        return decode_layer(
            self.layers[layer], self.x, lambda _: sorted(active), self.place, read, self.semantics
        )

    @rule(active=st.tuples(*[st.sets(st.integers(0, N - 1))] * 2))
    def token(self, active):
        for layer, predicted in enumerate(active):
            setup, before = self.setups[layer], self.there[layer]
            y, self.layers[layer], step = self.token_of(layer, predicted, setup.read)

            kept, t = self.kept[layer], len(self.kept[layer])
            start = max(self.start[layer], t - self.k + 1)
            while start < t and len(predicted.union(*kept[start:])) > self.capacities[layer]:
                start += 1
            room = self.capacities[layer]
            kept.append(set((sorted(predicted & before) + sorted(predicted - before))[:room]))
            self.start[layer] = start
            self.there[layer] = after = set().union(*kept[start:])

            bypass = predicted - kept[-1]
            chosen = predicted if self.semantics is sum_predicted else after | bypass
            assert same(y, sparse_ffn(self.x, setup.ffn, sorted(chosen)))
            assert set(step.load) | set(step.bypass) == predicted - before
            assert set(step.load) == after - before
            assert set(step.evict) == before - after
            assert step.io.useful_bytes == len(predicted - before) * setup.layout.bundle_bytes

    @rule()
    def token_with_every_neuron_is_dense(self):
        self.token((set(range(N)), set(range(N))))
        for setup, layer in zip(self.setups, self.layers, strict=True):
            y, _, _ = decode_layer(layer, self.x, lambda _: range(N), self.place, setup.read, self.semantics)
            assert same(y, dense_ffn(self.x, setup.ffn))

    @precondition(lambda self: any(len(there) < N for there in self.there))
    @rule(kind=st.sampled_from(["refuse", "flip a bit"]), bit=st.integers(0, 7))
    def fault(self, kind, bit):
        """A token that wants every neuron meets a reader that fails; the state must not have moved."""

        def flipping(extents):
            buffers = [buffer.copy() for buffer in setup.read(extents).buffers]
            for buffer in buffers:
                buffer[:] ^= np.uint8(1 << bit)
            return Read(tuple(buffers), 0)

        for layer in range(2):
            setup = self.setups[layer]
            if len(self.there[layer]) < N:
                read = refusing if kind == "refuse" else flipping
                expected: type[FlashrefError] = ReadError if kind == "refuse" else ImageError
                with pytest.raises(expected):
                    self.token_of(layer, range(N), read)

    @invariant()
    def slots_hold_the_resident_rows(self):
        for setup, layer, there in zip(self.setups, self.layers, self.there, strict=True):
            used = layer.slots.ids[: layer.slots.used].tolist()
            assert sorted(used) == sorted(there)
            assert set(np.flatnonzero(layer.window.last >= 0)) == there
            for row, neuron in zip(layer.matrix, used, strict=False):
                stored = [getattr(setup.ffn, field)[neuron] for field in setup.layout.fields]
                assert same(row, np.stack(stored))


TestDecodeMachine = DecodeMachine.TestCase
