"""Chapter 80: decoding through the image against the FFN in memory, and plain sets."""

from fractions import Fraction
from zlib import crc32

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from flashref import (
    active_neurons,
    bundle_extents,
    bundle_layout,
    decode_layer,
    dense_ffn,
    empty_layer,
    pack_bundles,
    same,
    sparse_ffn,
)
from flashref.bounds import ffn_bound
from flashref.conformance.definitions import exact_ffn
from flashref.conformance.strategies import dyadic_cases, id_sets, plain_cases, read_only
from flashref.decode import ResidentFFN, read_batches, sum_predicted, sum_resident
from flashref.definitions import window_model
from flashref.ffn import take_neurons
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import PRESETS
from flashref.storage.plan import read_plan
from flashref.storage.readers import memory_reader, recording_reader
from flashref.types import FFN, DomainError, IdsError, ImageError, Read, ReadError, stored_dtype
from flashref.window import Delta


class Setup:
    """A layer packed into an image of its own, with everything a token needs."""

    def __init__(
        self, ffn, k, capacity, *, bypass_rows=None, max_gap=0, block=16, order=None, gate_stays=False
    ):
        n, d = ffn.up.shape
        matrices = {"gate": ffn.gate, "up": ffn.up, "down": ffn.down}
        fields = [f for f, m in matrices.items() if m is not None and not (gate_stays and f == "gate")]
        self.ffn = ffn
        self.layout = bundle_layout(n, d, stored_dtype(ffn.up), fields, block, block, order)
        packed = pack_bundles(self.layout, matrices)
        image = np.concatenate([np.zeros(block, np.uint8), packed, np.zeros(-len(packed) % block, np.uint8)])
        by_position = packed.reshape(n, -1)
        checksums = np.zeros(n, np.uint32)
        checksums[slice(None) if order is None else order] = [crc32(b.tobytes()) for b in by_position]
        self.batches = []
        device = PRESETS["paper_m1max_fig2b"]._replace(block=block)
        self.read = recording_reader(memory_reader(image, device), self.batches)
        resident = ResidentFFN(
            ffn.activation,
            ffn.gate if gate_stays else None,
            ffn.up_bias,
            ffn.gate_bias,
            ffn.down_bias,
            ffn.tau,
        )
        self.layer = empty_layer(self.layout, resident, k, capacity, bypass_rows, max_gap, checksums)


@st.composite
def setups(draw, cases, scales=(-1, -0.5, 0.5, 1)):
    """(setup, [(x, predicted), …], place, semantics): any window, capacity, order, gap and bypass buffer."""
    x, ffn = draw(cases)
    n = len(ffn.up)
    setup = Setup(
        ffn,
        draw(st.integers(1, 4)),
        draw(st.integers(0, n)),
        bypass_rows=draw(st.none() | st.integers(1, 3)),
        max_gap=draw(st.sampled_from([0, 64])),
        block=draw(st.sampled_from([4, 16, 64])),
        order=draw(st.none() | st.permutations(range(n)).map(np.array)),
        gate_stays=ffn.gate is not None and draw(st.booleans()),
    )
    tokens = draw(st.lists(st.tuples(st.sampled_from(scales), id_sets(n)), min_size=1, max_size=6))
    tokens = [((x * np.float32(scale)), predicted) for scale, predicted in tokens]
    place = draw(st.sampled_from([swap_with_last, fill_holes]))
    return setup, tokens, place, draw(st.sampled_from([sum_resident, sum_predicted]))


def chosen_by_definition(setup, tokens, semantics):
    """Per token: the ids summed, and the sets, from plain sets over the full history."""
    window = setup.layer.window
    history = window_model(window.k, window.capacity, [predicted for _, predicted in tokens])
    for (_, predicted), (after, load, evict, bypass, _) in zip(tokens, history, strict=True):
        chosen = predicted if semantics is sum_predicted else after | bypass
        yield sorted(chosen), after, load, evict, bypass


def run(setup, tokens, place, semantics):
    layer = setup.layer
    for x, predicted in tokens:
        y, layer, step = decode_layer(layer, x, lambda _, p=predicted: p, place, setup.read, semantics)
        yield y, layer, step


@pytest.mark.req("DEC-2", "DEC-3")
@given(setups(dyadic_cases(), scales=(-1, 1)))
def test_the_output_is_the_exact_sum_over_the_chosen_neurons(case):
    setup, tokens, _, semantics = case
    event(semantics.__name__)
    definition = chosen_by_definition(setup, tokens, semantics)
    for (x, _), (y, _, _), (chosen, *_) in zip(tokens, run(*case), definition, strict=True):
        assert y.tolist() == [float(v) for v in exact_ffn(x, setup.ffn, chosen)]


@pytest.mark.req("DEC-4", "DEC-7", "DEC-1")
@given(setups(plain_cases()))
def test_the_output_has_the_bits_of_the_sparse_ffn_and_the_counters_of_the_sets(case):
    setup, tokens, _, semantics = case
    definition = chosen_by_definition(setup, tokens, semantics)
    before = 0
    for token, ((x, predicted), (y, layer, step), sets) in enumerate(
        zip(tokens, run(*case), definition, strict=True)
    ):
        chosen, after, load, evict, bypass = sets
        assert same(y, sparse_ffn(x, setup.ffn, chosen))
        assert step.predicted.tolist() == sorted(predicted)
        got = [step.resident, step.load, step.evict, step.bypass]
        assert [ids.tolist() for ids in got] == [sorted(s) for s in (after, load, evict, bypass)]
        if token == 0:
            assert load | bypass == set(predicted)
        batches = setup.batches[before:]
        before = len(setup.batches)
        assert step.io.useful_bytes == len(load | bypass) * setup.layout.bundle_bytes
        assert step.io.requests == sum(len(batch.extents) for batch in batches)
        assert step.io.read_bytes == sum(e.length for batch in batches for e in batch.extents)
        assert step.io.nanoseconds == sum(step.times)
        assert list(step.times) == [batch.nanoseconds for batch in batches]
        for batch, ids in zip(batches, read_batches(Delta(*step[1:4]), layer.bypass_rows), strict=False):
            wanted = bundle_extents(setup.layout, ids)
            assert batch.extents == read_plan(wanted, setup.layout.block, layer.max_gap)
        # One batch, and one more for each further buffer of bypassed rows.
        buffers = -(-len(bypass) // layer.bypass_rows)
        assert len(batches) == max(buffers, 1 if load | bypass else 0)
        assert len(step.moves.put) == len(load)
        assert sorted(layer.slots.ids[: layer.slots.used].tolist()) == sorted(after)


@pytest.mark.req("DEC-6")
@given(setups(plain_cases()))
def test_the_output_is_within_the_bound_of_the_chosen_neurons(case):
    setup, tokens, _, semantics = case
    definition = chosen_by_definition(setup, tokens, semantics)
    for (x, _), (y, _, _), (chosen, *_) in zip(tokens, run(*case), definition, strict=True):
        bound = ffn_bound(x, take_neurons(setup.ffn, chosen))
        for got, want, most in zip(y, exact_ffn(x, setup.ffn, chosen), bound, strict=True):
            assert abs(Fraction(float(got)) - want) <= Fraction(float(most))


@pytest.mark.req("DEC-5")
@given(setups(plain_cases()))
def test_with_the_exact_predictor_flash_changes_no_bit(case):
    setup, tokens, place, semantics = case
    layer = setup.layer
    for x, _ in tokens:
        y, layer, step = decode_layer(
            layer, x, lambda v: active_neurons(v, setup.ffn), place, setup.read, semantics
        )
        event("bypass" if len(step.bypass) else "room")
        assert same(y, dense_ffn(x, setup.ffn))


@pytest.mark.req("DEC-8")
@given(setups(plain_cases()))
def test_the_state_that_is_passed_does_not_change(case):
    setup, tokens, place, semantics = case
    layer = setup.layer
    for x, predicted in tokens:
        read_only((layer.window, layer.slots, layer.matrix, x))
        first = decode_layer(layer, x, lambda _, p=predicted: p, place, setup.read, semantics)

        def fail(extents):
            raise ReadError("the disk is gone")

        if first[2].io.requests:
            with pytest.raises(ReadError):
                decode_layer(layer, x, lambda _, p=predicted: p, place, fail, semantics)
        again = decode_layer(layer, x, lambda _, p=predicted: p, place, setup.read, semantics)
        assert same(first, again)
        layer = first[1]


@pytest.mark.req("DEC-8", "GTH-4")
def test_a_damaged_bundle_is_refused_wherever_it_goes():
    ffn = FFN("relu", up=np.ones((6, 2), np.float32), down=np.ones((6, 2), np.float32))
    setup = Setup(ffn, 1, 2, bypass_rows=2)  # of six neurons two are kept, and two batches pass by
    x = np.ones(2, np.float32)

    def decode(layer, neuron):
        [damaged] = bundle_extents(setup.layout, [neuron])

        def read(extents):
            buffers, nanoseconds = setup.read(extents)
            spoilt = [buffer.copy() for buffer in buffers]
            for extent, buffer in zip(extents, spoilt, strict=True):
                if 0 <= (at := damaged.offset - extent.offset) < extent.length:
                    buffer[at + 3] ^= 0x80  # the sign of the first value
            return Read(tuple(spoilt), nanoseconds)

        return decode_layer(layer, x, lambda _: np.arange(6), swap_with_last, read, sum_resident)

    for neuron in range(6):
        with pytest.raises(ImageError, match=f"the bundle of neuron {neuron} "):
            decode(setup.layer, neuron)
        y, _, _ = decode(setup.layer._replace(checksums=None), neuron)  # no checksums, no complaint
        assert not same(y, dense_ffn(x, ffn))


@pytest.mark.req("DEC-4")
@given(setups(plain_cases()), st.randoms(use_true_random=False))
def test_the_order_of_the_slots_changes_no_bit(case, random):
    setup, tokens, place, semantics = case
    layer = setup.layer
    for x, predicted in tokens:
        used = layer.slots.used
        shuffled = list(range(used))
        random.shuffle(shuffled)
        ids, matrix = layer.slots.ids.copy(), layer.matrix.copy()
        ids[:used], matrix[:used] = ids[shuffled], matrix[shuffled]
        other = layer._replace(slots=layer.slots._replace(ids=ids), matrix=matrix)
        y, after, step = decode_layer(layer, x, lambda _, p=predicted: p, place, setup.read, semantics)
        again, _, other_step = decode_layer(other, x, lambda _, p=predicted: p, place, setup.read, semantics)
        assert same(y, again)
        assert same(step.io, other_step.io)
        layer = after


@pytest.mark.req("DEC-9")
@given(setups(plain_cases()), st.lists(st.integers(0, 2), max_size=12))
def test_interleaved_sequences_and_layers_do_not_meet(case, turns):
    """Three sequences over one image take turns; each gets what it gets alone."""
    setup, tokens, place, semantics = case
    alone = [(y, step) for y, _, step in run(*case)]
    runs = [run(*case) for _ in range(3)]
    done = [0, 0, 0]
    for turn in turns:
        if done[turn] < len(tokens):
            y, _, step = next(runs[turn])
            assert same((y, step), alone[done[turn]])
            done[turn] += 1


def test_a_long_bypass_is_summed_in_ascending_order_over_its_pieces():
    # Magnitudes differ so much that any other order shows. Capacity 1, a buffer of 2 rows, 7 neurons.
    rng = np.random.default_rng(2)
    down = (rng.standard_normal((7, 3)) * 10.0 ** rng.integers(-6, 7, (7, 1))).astype(np.float32)
    ffn = FFN("relu", np.ones((7, 1), np.float32).repeat(3, axis=1), down)
    setup = Setup(ffn, k=3, capacity=1, bypass_rows=2)
    x = np.float32([1, 2, 3])
    layer = setup.layer
    for predicted in ([4], range(7), range(7)):
        y, layer, step = decode_layer(
            layer, x, lambda _, p=predicted: p, swap_with_last, setup.read, sum_resident
        )
    assert step.resident.tolist() == [4]
    assert step.bypass.tolist() == [0, 1, 2, 3, 5, 6]
    assert len(step.times) == 3
    assert same(y, dense_ffn(x, ffn))


@pytest.mark.req("DEC-7")
def test_a_bypass_may_take_any_number_of_batches():
    ffn = FFN("relu", np.arange(1, 302, dtype=np.float32)[:, None], np.ones((301, 1), np.float32))
    setup = Setup(ffn, k=2, capacity=1, bypass_rows=1, block=4)
    x, layer = np.float32([1]), setup.layer
    for predicted in ([300], range(301)):
        y, layer, step = decode_layer(
            layer, x, lambda _, p=predicted: p, swap_with_last, setup.read, sum_resident
        )
    assert len(step.times) == 300
    assert same(y, dense_ffn(x, ffn))


@pytest.mark.req("DEC-10")
@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)), st.integers(1, 5))
def test_batches_hold_the_load_and_the_bypass_in_buffers(load, bypass, bypass_rows):
    load = load - bypass
    delta = Delta(*(np.array(sorted(s), np.int64) for s in (load, set(), bypass)))
    expected, rest = [sorted(load)], sorted(bypass)
    while rest:
        if len(rest) < len(bypass):
            expected.append([])
        expected[-1] = sorted(expected[-1] + rest[:bypass_rows])
        rest = rest[bypass_rows:]
    assert [ids.tolist() for ids in read_batches(delta, bypass_rows)] == expected


@pytest.mark.req("DEC-1")
def test_a_layer_reads_over_no_gap_and_has_room_for_every_bypass_unless_told_otherwise():
    layer = empty_layer(bundle_layout(3, 2, "F16"), ResidentFFN("relu"), 1, 1)
    assert (layer.max_gap, layer.bypass_rows) == (0, 3)


def test_what_a_layer_cannot_be_is_refused():
    ffn_layout = bundle_layout(3, 2, "F16")
    with pytest.raises(DomainError, match="at least one row"):
        read_batches(Delta(*(np.int64([]),) * 3), 0)
    for bad in ({"k": 0}, {"capacity": -1}, {"bypass_rows": 0}):
        with pytest.raises(DomainError):
            empty_layer(
                **({"layout": ffn_layout, "resident": ResidentFFN("relu"), "k": 1, "capacity": 1} | bad)
            )
    layer = empty_layer(ffn_layout, ResidentFFN("relu"), 1, 1)
    with pytest.raises(IdsError):
        decode_layer(layer, np.zeros(2, np.float32), lambda _: [2, 1], swap_with_last, None, sum_resident)


def test_what_is_always_in_dram_has_a_tau_of_zero_unless_one_is_given():
    assert ResidentFFN("relu") == ResidentFFN("relu", None, None, None, None, 0.0)
