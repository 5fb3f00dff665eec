"""Chapter 56: the direct reader's queue, clock, workers and memory, and everything that can go wrong."""

import errno
import mmap
import os
import threading
import time
import warnings

import image_to_read
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_to_read import ALIGNED, BLOCK, BLOCKS, IMAGE, TIMEOUT, contents, direct_reader, slices

from flashref import Extent
from flashref.storage import readers as readers_module
from flashref.storage.readers import DirectReader
from flashref.types import DomainError, ReadError

folder = image_to_read.folder
shared = image_to_read.shared
path = image_to_read.path


@pytest.mark.req("RDR-7")
@given(extents=ALIGNED, seed=st.integers(0, 2**32))
def test_short_reads_and_interruptions_are_continued(shared, extents, seed):
    random, lock = np.random.default_rng(seed), threading.Lock()

    def preadv(descriptor, buffers, offset):
        with lock:
            kind, most = random.integers(4), int(random.integers(1, 3 * BLOCK))
        if kind == 0:
            raise InterruptedError(errno.EINTR, "interrupted")
        # The kernel refuses O_DIRECT into part of a block: read whole, deliver the beginning.
        whole = bytearray(len(buffers[0]))
        got = os.preadv(shared._buffered, [whole], offset)
        count = min(got, most)
        buffers[0][:count] = whole[:count]
        return count

    shared._preadv, kept = preadv, shared._preadv
    try:
        assert contents(shared.read(extents)) == slices(extents)
    finally:
        shared._preadv = kept


@pytest.mark.req("RDR-8")
@pytest.mark.parametrize("depth", [1, 3, 8])
def test_the_queue_is_full_and_never_fuller(path, depth):
    together, lock = threading.Barrier(depth, timeout=TIMEOUT), threading.Lock()
    outstanding, highest, threads = 0, 0, set()

    def preadv(*call):
        nonlocal outstanding, highest
        with lock:
            outstanding += 1
            highest = max(highest, outstanding)
            threads.add(threading.get_ident())
        together.wait()  # passes only if `depth` reads are under way at once
        with lock:
            outstanding -= 1
        return os.preadv(*call)

    batch = tuple(Extent(i * BLOCK, BLOCK) for i in range(3 * depth))
    with direct_reader(path, depth, preadv=preadv) as reader:
        for _ in range(3):
            assert contents(reader.read(batch)) == slices(batch)
    assert highest == depth
    assert len(threads) == depth  # long-lived: the same ones in every batch
    assert threading.get_ident() not in threads


@pytest.mark.req("RDR-9")
def test_time_is_the_clocks(path):
    events = []

    def clock():
        events.append("clock")
        return {1: 5000, 2: 12_345}[events.count("clock")]

    def preadv(*call):
        events.append("read")
        return os.preadv(*call)

    with direct_reader(path, clock=clock, preadv=preadv) as reader:
        assert reader.read((Extent(0, BLOCK), Extent(BLOCK, BLOCK))).nanoseconds == 7345
    assert events == ["clock", "read", "read", "clock"]


@pytest.mark.req("RDR-10")
@pytest.mark.parametrize("size", [5 * BLOCK + 1000, 5 * BLOCK, 5 * BLOCK + 512])
def test_a_file_that_ends_early_names_itself_and_the_offset(path, size):
    with direct_reader(path) as reader:
        os.truncate(path, size)
        with pytest.raises(ReadError, match=f"{path} ends at byte {size}"):
            reader.read((Extent(0, BLOCK), Extent(4 * BLOCK, 4 * BLOCK)))
        assert contents(reader.read((Extent(0, BLOCK),))) == slices([Extent(0, BLOCK)])


@pytest.mark.req("RDR-10")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyError("bug"), SystemExit(3)])
def test_an_error_in_a_worker_reaches_the_caller(path, error):
    bad = 7 * BLOCK

    def preadv(descriptor, buffers, offset):
        if offset == bad:
            raise error
        return os.preadv(descriptor, buffers, offset)

    batch = tuple(Extent(i * BLOCK, BLOCK) for i in range(12))
    with direct_reader(path, preadv=preadv) as reader:
        for _ in range(3):
            expected = ReadError if isinstance(error, OSError) else type(error)
            with pytest.raises(expected) as raised:
                reader.read(batch)
            if expected is ReadError:
                assert str(raised.value) == f"{path} cannot be read at byte {bad}: Input/output error"
            assert contents(reader.read(batch[:7])) == slices(batch[:7])


@pytest.mark.req("RDR-10")
def test_after_an_error_the_other_workers_stop(path, monkeypatch):
    failed, asked, both = threading.Event(), [], threading.Barrier(2, timeout=TIMEOUT)

    class Outcomes(readers_module.SimpleQueue):
        def put(self, outcome):
            super().put(outcome)
            failed.set()

    def preadv(descriptor, buffers, offset):
        asked.append(offset)
        both.wait()
        if offset == 0:
            raise OSError(errno.EIO, "Input/output error")
        assert failed.wait(TIMEOUT)
        raise KeyError("a later error is not the one to report")

    with direct_reader(path, 2, preadv=preadv) as reader:
        monkeypatch.setattr(readers_module, "SimpleQueue", Outcomes)
        with pytest.raises(ReadError):
            reader.read(tuple(Extent(i * BLOCK, BLOCK) for i in range(12)))
    assert sorted(asked) == [0, BLOCK]  # the one that failed, and the one beside it


@pytest.mark.req("RDR-10", "RDR-11")
@pytest.mark.parametrize("depth", [1, 2])
def test_ctrl_c_leaves_a_usable_reader(path, monkeypatch, depth):
    under_way, go_on, lock = threading.Event(), threading.Event(), threading.Lock()
    asked, late = [], []

    class Outcomes(readers_module.SimpleQueue):
        def get(self):  # of the caller, who waits for the workers
            assert under_way.wait(TIMEOUT)
            raise KeyboardInterrupt

    class Thread(threading.Thread):
        def join(self, *timeout):
            go_on.set()
            super().join(*timeout)

    def preadv(descriptor, buffers, offset):
        with lock:
            asked.append(offset)
            first = len(asked) == 1
        if first:
            under_way.set()
            assert go_on.wait(TIMEOUT)
            buffers[0][:] = bytes(len(buffers[0]))  # the batch was given up long ago
            late.append(offset)
            return len(buffers[0])
        return os.preadv(descriptor, buffers, offset)

    monkeypatch.setattr(readers_module.threading, "Thread", Thread)
    with direct_reader(path, depth, preadv=preadv) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(readers_module, "SimpleQueue", Outcomes)
            with pytest.raises(KeyboardInterrupt):
                reader.read(tuple(Extent(i * BLOCK, BLOCK) for i in range(1, 4)))
        if depth == 1:  # its only worker must come back first, and reads nothing more of that batch
            go_on.set()
        result = reader.read((Extent(0, BLOCK),))
    assert late == asked[:1]  # closing waited for it, and it wrote into memory of its own
    assert contents(result) == slices([Extent(0, BLOCK)])
    assert depth == 2 or asked == [BLOCK, 0]


@pytest.mark.req("RDR-11")
def test_closing_gives_everything_back_and_twice_is_once(path):
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    reader = direct_reader(path, 5)
    assert threading.active_count() == threads + 5
    kept = reader.read((Extent(0, BLOCK),))
    reader.close()
    reader.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/dev/fd")) == descriptors
    assert contents(kept) == slices([Extent(0, BLOCK)])
    with pytest.raises(ReadError, match="closed"):
        reader.read((Extent(0, BLOCK),))
    with pytest.raises(ReadError, match="closed"):
        reader.read(())


def test_what_is_not_given_is_32_reads_of_whole_4_kib_blocks(path):
    before = set(threading.enumerate())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reader = DirectReader(path)
    with reader:
        assert (reader.queue_depth, reader.block) == (32, 4096)
        workers = set(threading.enumerate()) - before
        assert len(workers) == 32
        assert all(worker.daemon for worker in workers)  # a reader left open keeps no program alive
    with pytest.raises(TypeError):
        DirectReader(path, 32, 4096, time.perf_counter_ns)  # a clock must be named


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs MADV_HUGEPAGE, which only Linux has")
def test_memory_is_asked_for_in_huge_pages(path, monkeypatch):
    asked = []

    class Mapping(mmap.mmap):
        def __new__(cls, descriptor, size, **options):
            asked.append(options)
            return super().__new__(cls, descriptor, size, **options)

        def madvise(self, advice):
            asked.append(advice)
            super().madvise(advice)

    with direct_reader(path) as reader:
        monkeypatch.setattr(mmap, "mmap", Mapping)
        reader.read((Extent(0, BLOCK),))
    assert asked == [{"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}, mmap.MADV_HUGEPAGE]


def test_memory_is_whole_huge_pages_and_kept_while_it_is_enough(path):
    huge = 2 * 2**20
    with direct_reader(path) as reader:
        for blocks, pages in ((512, 1), (3, 1), (512, 1), (513, 2), (1024, 2)):
            before = reader._memory
            reader.read((Extent(0, BLOCK),) * blocks)
            assert reader._memory.size == pages * huge
            assert reader._memory is before or before.size < blocks * BLOCK


def test_memory_grows_and_serves_small_batches_again(shared):
    sizes = [1, BLOCKS, 2, 40, 3]
    for blocks in sizes:
        batch = tuple(Extent(i * BLOCK, BLOCK) for i in range(blocks)) + (Extent(0, IMAGE.size),) * 12
        assert contents(shared.read(batch)) == slices(batch)


@pytest.mark.parametrize(
    ("queue_depth", "block"), [(0, 4096), (-1, 4096), (4, 256), (4, 0), (4, 4095), (4, 1280)]
)
def test_impossible_readers_are_refused(path, queue_depth, block):
    with pytest.raises(DomainError):
        DirectReader(path, queue_depth, block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        DirectReader(path, 1, 512).close()


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ReadError, match="nowhere cannot be opened"):
        DirectReader(tmp_path / "nowhere")
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(ReadError, match="is not a regular file"):
        DirectReader(tmp_path)
    assert len(os.listdir("/dev/fd")) == descriptors
