"""Storage that fails: what each fault does, and that no damaged bundle is used."""

import errno
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_to_read import direct_reader
from safetensors.numpy import save_file

from flashref import gather_rows, same
from flashref.storage.container import read_container
from flashref.storage.device import PRESETS, Device
from flashref.storage.faults import (
    CALL_KINDS,
    FAULT_KINDS,
    SLOWEST_NS,
    Fault,
    faulty_preadv,
    faulty_reader,
    random_faults,
)
from flashref.storage.image import open_image, pack_image
from flashref.storage.readers import memory_reader
from flashref.types import DomainError, Extent, ImageError, ReadError

HARMLESS = ("short", "interrupted", "slow")
DEVICE = PRESETS["paper_m1max_fig2b"]
BLOCK = 512
BYTES = bytes(range(1, 17))


# What each fault does


def test_a_schedule_comes_from_its_seed_alone():
    kinds = FAULT_KINDS + CALL_KINDS
    assert random_faults(3, 100, 0.5, kinds) == random_faults(np.random.default_rng(3), 100, 0.5, kinds)
    assert random_faults(3, 100, 0.5, kinds) != random_faults(4, 100, 0.5, kinds)
    assert random_faults(3, 100, 0) == {}
    drawn = random_faults(3, 1000, 1, kinds)
    assert list(drawn) == list(range(1000))
    for kind in kinds:
        ats = [fault.at for fault in drawn.values() if fault.kind == kind]
        assert len(ats) > 100 and len(set(ats)) > 90  # of 1000 / 6 each
        assert min(ats) >= 0 and (max(ats) < SLOWEST_NS) == (kind == "slow")
    assert 400 < len(random_faults(0, 1000, 0.5)) < 600
    assert {fault.kind for fault in random_faults(0, 100, 1).values()} == set(FAULT_KINDS)


def call(fault, size=16, given=16):
    """What one call delivers into a buffer of 0xFF, and the buffer; the storage has `given` bytes more."""

    def storage(descriptor, buffers, offset):
        assert (descriptor, offset) == (7, 4096)
        buffers[0][:given] = BYTES[:given]
        return given

    buffer, waited = bytearray(b"\xff" * size), []
    preadv = faulty_preadv({1: fault}, waited.append, storage)
    assert preadv(7, [memoryview(bytearray(size))], 4096) == given  # call 0 is sound
    count = preadv(7, [memoryview(buffer)], 4096)
    return count, bytes(buffer), waited


def test_a_call_delivers_what_its_fault_leaves():
    assert call(Fault("short", 5)) == (5, BYTES[:5] + b"\xa5" * 11, [])
    assert call(Fault("short", 16 * 3 + 5)) == call(Fault("short", 5))
    assert call(Fault("short", 0)) == (1, BYTES[:1] + b"\xa5" * 15, [])
    assert call(Fault("short", 9), given=3) == (1, BYTES[:1] + b"\xa5" * 15, [])
    assert call(Fault("flip", 8 * 2 + 5)) == (16, BYTES[:2] + b"\x23" + BYTES[3:], [])
    assert call(Fault("flip", 128 + 21)) == call(Fault("flip", 21))
    assert call(Fault("torn", 5)) == (16, BYTES[:5] + bytes(11), [])
    assert call(Fault("torn", 21)) == call(Fault("torn", 5))
    assert call(Fault("torn", 1), given=3) == (3, BYTES[:1] + bytes(2) + b"\xff" * 13, [])
    assert call(Fault("slow", 77)) == (16, BYTES, [77])
    for kind in ("short", "flip", "torn"):  # the file has ended
        assert call(Fault(kind, 3), given=0) == (0, b"\xff" * 16, [])


def test_a_call_that_fails_says_so_as_the_system_does():
    with pytest.raises(InterruptedError) as interrupted:
        call(Fault("interrupted", 0))
    assert interrupted.value.errno == errno.EINTR
    with pytest.raises(OSError, match="Input/output error") as failed:
        call(Fault("error", 0))
    assert failed.value.errno == errno.EIO and not isinstance(failed.value, InterruptedError)


def test_a_slow_call_really_waits_if_nobody_says_how(monkeypatch):
    seen = []
    monkeypatch.setattr("time.sleep", seen.append)
    faulty_preadv({0: Fault("slow", 2_500_000)}, preadv=lambda *_: 1)(0, [b""], 0)
    assert seen == [0.0025]


def test_a_slow_batch_takes_longer_and_damaged_bytes_are_read_only():
    device, extents = Device(100, 0, 0, block=8), (Extent(8, 8), Extent(0, 8))
    schedule = {0: Fault("slow", 30), 1: Fault("flip", 70), 2: Fault("torn", 12)}
    read = faulty_reader(memory_reader(BYTES, device), schedule)
    plain = memory_reader(BYTES, device)(extents).nanoseconds
    results = [read(extents) for _ in range(4)]
    assert [result.nanoseconds - plain for result in results] == [30, 0, 0, 0]
    for _, flags in ((b, b.flags) for result in results for b in result.buffers):
        assert not flags.writeable


@pytest.mark.parametrize("kind", ["short", "interrupted", "melted"])
def test_a_fault_that_cannot_strike_is_refused(kind):
    with pytest.raises(DomainError, match=f"{kind}.* is not possible here; use error, flip, torn, slow$"):
        faulty_reader(memory_reader(BYTES, DEVICE), {3: Fault(kind, 0)})
    with pytest.raises(DomainError, match=r"'melted' is not possible here; use .*, short, interrupted$"):
        faulty_preadv({3: Fault("melted", 0)})


# The real reader over calls that fail


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "image"
    path.write_bytes(np.random.default_rng(5).bytes(16 * BLOCK))
    return path


@given(seed=st.integers(0, 2**32), blocks=st.lists(st.integers(0, 15), min_size=1, max_size=6))
def test_short_interrupted_and_slow_calls_cannot_be_seen(noise, seed, blocks):
    whole, batch = noise.read_bytes(), tuple(Extent(block * BLOCK, BLOCK) for block in blocks)
    time = 0

    def wait(nanoseconds):
        nonlocal time
        time += nanoseconds

    schedule = random_faults(seed, 40, 0.6, HARMLESS)
    preadv = faulty_preadv(schedule, wait)
    with direct_reader(noise, 1, BLOCK, clock=lambda: time, preadv=preadv) as reader:
        buffers, nanoseconds = reader.read(batch)
    assert [buffer.tobytes() for buffer in buffers] == [whole[o : o + length] for o, length in batch]
    assert nanoseconds == time


def test_a_failing_call_names_the_file_and_the_byte_and_the_next_batch_is_whole(noise):
    batch = (Extent(0, BLOCK), Extent(3 * BLOCK, 2 * BLOCK))
    schedule = {1: Fault("short", BLOCK), 2: Fault("error", 0)}
    with direct_reader(noise, 1, BLOCK, preadv=faulty_preadv(schedule)) as reader:
        with pytest.raises(ReadError, match=f"image cannot be read at byte {4 * BLOCK}: Input/output error"):
            reader.read(batch)
        whole = noise.read_bytes()
        assert [b.tobytes() for b in reader.read(batch).buffers] == [whole[o : o + n] for o, n in batch]


# No damaged bundle is used

Small = namedtuple("Small", "raw layout checksums rows")


def small_image(folder, n, d, order=None):
    """An image of one layer: its bytes, where the bundles lie, and what NumPy says the rows are."""
    rng = np.random.default_rng(n)
    up = rng.standard_normal((n, d)).astype(np.float16)
    down = rng.standard_normal((d, n)).astype(np.float16)
    save_file({"up": up, "down": down}, folder / "model.safetensors")
    checkpoint = read_container(folder / "model.safetensors")
    tensors, names = dict.fromkeys(("up", "down"), checkpoint), {0: {"up": "up", "down": "down"}}
    orders = None if order is None else {0: order}
    pack_image(folder / "image", tensors, names, "{}", BLOCK, orders)
    image = open_image(folder / "image")
    rows = np.stack([up, down.T], axis=1)
    raw = np.fromfile(folder / "image", np.uint8)
    return Small(raw, image.layouts[0][0], image.checksums[0][0], rows)


def rows_read(small, damaged, ids):
    read = memory_reader(damaged, DEVICE._replace(block=BLOCK))
    return gather_rows(read, small.layout, ids, checksums=small.checksums).rows


def neurons_at(small):
    """neuron → its padded bundle's place."""
    order = range(small.layout.n) if small.layout.order is None else small.layout.order.tolist()
    stride = small.layout.stride
    return {
        neuron: slice(small.layout.start + p * stride, small.layout.start + (p + 1) * stride)
        for p, neuron in enumerate(order)
    }


def check_damage(small, damaged):
    """Bundles that differ are refused by name, alone and among others; all the others are read."""
    places = neurons_at(small)
    hurt = [
        neuron for neuron in sorted(places) if not same(damaged[places[neuron]], small.raw[places[neuron]])
    ]
    sound = [neuron for neuron in sorted(places) if neuron not in hurt]
    assert same(rows_read(small, damaged, sound), small.rows[sound])
    for neuron in hurt:
        at = places[neuron].start
        with pytest.raises(
            ImageError, match=f"bundle of neuron {neuron} at byte {at} does not match"
        ) as told:
            rows_read(small, damaged, [neuron])
        assert str(told.value).endswith("the image is damaged, remove it and pack it again")
    if hurt:
        with pytest.raises(ImageError, match=f"bundle of neuron {hurt[0]} "):
            rows_read(small, damaged, range(small.layout.n))
    return hurt


@pytest.mark.req("IMG-14", "GTH-4")
def test_every_single_bit_of_every_bundle_counts(tmp_path):
    # Bundles of 12 bytes in strides of 16, so that a quarter is padding; three share a block with its pad.
    small = small_image(tmp_path, 3, 3, [2, 0, 1])
    assert (small.layout.bundle_bytes, small.layout.stride) == (12, 16)
    assert same(rows_read(small, small.raw, range(3)), small.rows)
    hurt = []
    for bit in range(8 * 3 * 16):
        damaged = small.raw.copy()
        damaged[small.layout.start + bit // 8] ^= 1 << bit % 8
        hurt += check_damage(small, damaged)
    assert hurt == [2] * 128 + [0] * 128 + [1] * 128


@pytest.mark.req("IMG-14", "GTH-4")
def test_every_bit_of_a_bundle_of_many_blocks_counts(tmp_path):
    small = small_image(tmp_path, 2, 140)  # 560 bytes in strides of two blocks
    assert (small.layout.bundle_bytes, small.layout.stride) == (560, 1024)
    for bit in range(0, 8 * 2048, 31):  # at places that have no divisor in common with a byte's 8 bits
        damaged = small.raw.copy()
        damaged[small.layout.start + bit // 8] ^= 1 << bit % 8
        assert check_damage(small, damaged) == [bit // 8 // 1024]


@pytest.mark.req("IMG-14", "GTH-4")
@pytest.mark.parametrize("left", ["zeros", "ones", "what was there before"])
def test_every_torn_write_is_seen_in_every_bundle_that_it_hit(tmp_path, left):
    small = small_image(tmp_path, 3, 3)
    start, end = small.layout.start, small.layout.start + 3 * 16
    before = {"zeros": 0, "ones": 255, "what was there before": np.roll(small.raw[start:end], 16)}[left]
    counts = set()
    for first in range(start, end):
        damaged = small.raw.copy()
        damaged[start:end] = before
        damaged[start:first] = small.raw[start:first]
        counts.add(len(check_damage(small, damaged)))
    assert counts == ({1, 2, 3} if left == "ones" else {0, 1, 2, 3})  # the last padding is zeros anyway


@pytest.mark.req("GTH-4")
@given(seed=st.integers(0, 2**32))
def test_a_batch_with_a_fault_gives_the_right_rows_or_none(small_once, seed):
    small, ids = small_once, range(9)
    read = faulty_reader(memory_reader(small.raw, DEVICE._replace(block=BLOCK)), random_faults(seed, 6, 0.5))
    for _ in range(6):
        try:
            rows = gather_rows(read, small.layout, ids, checksums=small.checksums).rows
        except (ImageError, ReadError):
            continue
        assert same(rows, small.rows)
    assert same(gather_rows(read, small.layout, ids).rows, small.rows)  # behind the schedule


@pytest.fixture(scope="module")
def small_once(tmp_path_factory):
    return small_image(tmp_path_factory.mktemp("small"), 9, 40)
