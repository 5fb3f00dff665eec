"""One flat state machine: window + slots + image + reader, over two layers, against plain dicts and sets."""

import copy
import os
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import PROFILE
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.numpy import save_file

from flashref import dense_ffn, same, sparse_ffn
from flashref.decode import ResidentFFN, decode_layer, empty_layer, sum_predicted, sum_resident
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.container import read_container
from flashref.storage.device import PRESETS
from flashref.storage.faults import Fault, faulty_preadv, faulty_reader
from flashref.storage.image import open_image, pack_image
from flashref.storage.readers import DirectReader, memory_reader
from flashref.types import FFN, ImageError, ReadError

N, D, LAYERS, BLOCK = 9, 64, 2, 512  # a bundle of three F16 rows has 384 bytes and a block of its own
FIELDS = ("gate", "up", "down")


HARMLESS = st.builds(Fault, st.sampled_from(["short", "interrupted", "slow"]), st.integers(0, 2**12))
# Bytes below D · 2 are weights of a bundle, none of them zero, so that a torn write always changes some.
HARMFUL = (
    st.builds(Fault, st.just("error"), st.just(0))
    | st.builds(Fault, st.just("flip"), st.integers(0, 2**16))
    | st.builds(Fault, st.just("torn"), st.integers(0, D * 2 - 1))
)


class DecodeMachine(RuleBasedStateMachine):
    """Tokens run through both layers; a fault leaves everything as it was, and the token can be repeated."""

    @initialize(
        seed=st.integers(0, 2**16),
        k=st.integers(1, 4),
        capacities=st.tuples(st.integers(0, N), st.integers(0, N)),
        place=st.sampled_from([swap_with_last, fill_holes]),
        semantics=st.sampled_from([sum_resident, sum_predicted]),
        bypass_rows=st.none() | st.integers(1, 3),
        order=st.none() | st.permutations(range(N)),
        direct=st.booleans(),
    )
    def pack(self, seed, k, capacities, place, semantics, bypass_rows, order, direct):
        self.resources = ExitStack()
        folder = Path(self.resources.enter_context(TemporaryDirectory()))
        rng = np.random.default_rng(seed)
        self.k, self.capacities, self.place, self.semantics = k, capacities, place, semantics
        self.x = rng.standard_normal(D, np.float32)
        self.ffns = []
        for _ in range(LAYERS):
            up, down, gate = (rng.standard_normal((N, D)).astype(np.float16) for _ in range(3))
            up_bias, down_bias = (rng.standard_normal(size).astype(np.float16) for size in (N, D))
            self.ffns.append(FFN("relu", up, down, gate, up_bias, None, down_bias))
        self.open_image(folder, order, direct)
        self.layers = [
            empty_layer(
                self.image.layouts[layer][0],
                ResidentFFN("relu", up_bias=ffn.up_bias, down_bias=ffn.down_bias),
                k,
                capacities[layer],
                bypass_rows,
                checksums=self.image.checksums[layer][0],
            )
            for layer, ffn in enumerate(self.ffns)
        ]
        self.kept = [[], []]  # model: a kept set a token
        self.start = [0, 0]  # model: the oldest token in the window
        self.there = [set(), set()]  # model: the resident set

    def open_image(self, folder, order, direct):
        tensors = {}
        for layer, ffn in enumerate(self.ffns):
            tensors |= {f"{layer}.gate": ffn.gate, f"{layer}.up": ffn.up}
            tensors[f"{layer}.down"] = np.ascontiguousarray(ffn.down.T)  # as checkpoints have it
        save_file(tensors, folder / "model.safetensors")
        checkpoint = read_container(folder / "model.safetensors")
        names = {layer: {field: f"{layer}.{field}" for field in FIELDS} for layer in range(LAYERS)}
        orders = None if order is None else {layer: np.array(order) for layer in range(LAYERS)}
        path = folder / "image"
        pack_image(path, dict.fromkeys(tensors, checkpoint), names, "{}", BLOCK, orders)
        self.image, self.direct, self.preadv = open_image(path), direct, os.preadv
        if direct:
            with warnings.catch_warnings():  # where blocks of 512 cannot be read past the page cache
                warnings.simplefilter("ignore", RuntimeWarning)
                reader = DirectReader(path, 3, BLOCK, preadv=lambda *call: self.preadv(*call))
            self.read = self.resources.enter_context(reader).read
        else:
            self.read = memory_reader(path.read_bytes(), PRESETS["paper_m1max_fig2b"]._replace(block=BLOCK))

    def token_of(self, layer, active, read):
        return decode_layer(
            self.layers[layer], self.x, lambda _: sorted(active), self.place, read, self.semantics
        )

    @rule(active=st.tuples(*[st.sets(st.integers(0, N - 1))] * LAYERS))
    def token(self, active):
        for layer, predicted in enumerate(active):
            before = self.there[layer]
            y, self.layers[layer], step = self.token_of(layer, predicted, self.read)

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
            assert same(y, sparse_ffn(self.x, self.ffns[layer], sorted(chosen)))
            assert set(step.load) | set(step.bypass) == predicted - before
            assert set(step.load) == after - before
            assert set(step.evict) == before - after
            assert step.io.useful_bytes == len(predicted - before) * len(FIELDS) * D * 2
            assert step.io.read_bytes == len(predicted - before) * BLOCK

    @rule()
    def token_with_every_neuron_is_dense(self):
        self.token((set(range(N)), set(range(N))))
        for layer, ffn in enumerate(self.ffns):
            y, _, _ = self.token_of(layer, range(N), self.read)
            assert same(y, dense_ffn(self.x, ffn))

    @precondition(lambda self: self.direct)
    @rule(
        active=st.tuples(*[st.sets(st.integers(0, N - 1))] * LAYERS),
        faults=st.dictionaries(st.integers(0, 20), HARMLESS, min_size=1),
    )
    def harmless_faults_of_system_calls_cannot_be_seen(self, active, faults):
        self.preadv = faulty_preadv(faults, lambda nanoseconds: None)
        self.token(active)
        self.preadv = os.preadv

    @precondition(lambda self: any(len(there) < N for there in self.there))
    @rule(fault=HARMFUL, number=st.integers(0, 3), of_a_call=st.booleans())
    def fault(self, fault, number, of_a_call):
        """A token that wants every neuron meets storage that fails; nothing moves, and it can be repeated."""
        expected = ReadError if fault.kind == "error" else ImageError
        for layer, (ffn, there) in enumerate(zip(self.ffns, self.there, strict=True)):
            if len(there) == N:
                continue
            before, read = copy.deepcopy(self.layers[layer]), self.read
            if of_a_call and self.direct:
                self.preadv = faulty_preadv({number: fault})
            else:
                read = faulty_reader(self.read, {number: fault})
            struck = pytest.raises(expected)  # batch 0 and call 0 are always made; others may not be
            with struck if number == 0 else suppress(expected):
                y, _, _ = self.token_of(layer, range(N), read)
                assert same(y, dense_ffn(self.x, ffn))
            self.preadv = os.preadv
            assert same(self.layers[layer], before)
            y, _, _ = self.token_of(layer, range(N), self.read)
            assert same(y, dense_ffn(self.x, ffn))

    @invariant()
    def slots_hold_the_resident_rows(self):
        for ffn, layer, there in zip(self.ffns, self.layers, self.there, strict=True):
            used = layer.slots.ids[: layer.slots.used].tolist()
            assert sorted(used) == sorted(there)
            assert set(np.flatnonzero(layer.window.last >= 0)) == there
            for row, neuron in zip(layer.matrix, used, strict=False):
                assert same(row, np.stack([getattr(ffn, field)[neuron] for field in FIELDS]))

    def teardown(self):
        if hasattr(self, "resources"):
            self.resources.close()


TestDecodeMachine = DecodeMachine.TestCase
if PROFILE == "dev":
    TestDecodeMachine.settings = settings(TestDecodeMachine.settings, max_examples=15)
