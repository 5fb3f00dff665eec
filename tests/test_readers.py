"""Chapter 56: both readers against plain slices, and the direct one against everything that can go wrong."""

import contextlib
import errno
import mmap
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashref import Device, Extent
from flashref.storage import readers as readers_module
from flashref.storage.device import read_time
from flashref.storage.plan import plan_bytes, plan_io, read_plan
from flashref.storage.readers import DirectReader, memory_reader, recording_reader
from flashref.types import DomainError, LayoutError, ReadError, ShapeError

BLOCK = 4096
BLOCKS = 48
IMAGE = np.random.default_rng(56).integers(0, 256, BLOCKS * BLOCK, np.uint8)
IMAGE.setflags(write=False)
DEVICE = Device(50_000, 100_000, 10**9, queue_depth=4, knee=1.5)
TIMEOUT = 30  # seconds; only a test that fails waits so long

ALIGNED = st.lists(
    st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 6)).map(
        lambda run: Extent(run[0] * BLOCK, min(run[1], BLOCKS - run[0]) * BLOCK)
    ),
    max_size=12,
).map(tuple)
WANTED = st.lists(st.builds(Extent, st.integers(0, IMAGE.size - 9000), st.integers(1, 9000)), max_size=10)


def slices(extents):
    return [IMAGE[offset : offset + length].tobytes() for offset, length in extents]


def contents(result):
    return [buffer.tobytes() for buffer in result.buffers]


def direct_reader(path, queue_depth=4, **options):
    """A DirectReader that may fall back to the page cache: not every machine's file system has O_DIRECT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return DirectReader(path, queue_depth, BLOCK, **options)


@pytest.fixture(scope="module", params=["tmp", "/var/tmp"])
def folder(request, tmp_path_factory):
    if request.param == "tmp":
        yield tmp_path_factory.mktemp("readers")
        return
    if not os.access(request.param, os.W_OK):
        pytest.skip(f"{request.param} is not writable")
    with tempfile.TemporaryDirectory(dir=request.param) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def shared(folder):
    """One reader for many examples: what one batch leaves behind must not disturb the next."""
    path = folder / "image"
    path.write_bytes(IMAGE.tobytes())
    with direct_reader(path) as reader:
        yield reader


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(IMAGE.tobytes())
    return path


@pytest.mark.req("RDR-1", "RDR-3")
@given(extents=ALIGNED)
@example(extents=())
@example(extents=(Extent(0, IMAGE.size),))
@example(extents=(Extent(0, BLOCK),) * 9)  # more reads than workers, and the same again
def test_readers_give_the_bytes_of_the_image(shared, extents):
    for read in (shared.read, memory_reader(IMAGE, DEVICE), memory_reader(IMAGE.tobytes(), DEVICE)):
        result = read(extents)
        assert contents(result) == slices(extents)
        for buffer in result.buffers:
            assert buffer.dtype == np.uint8
            assert not buffer.flags.writeable
        assert type(result.nanoseconds) is int
        assert extents or result == ((), 0)


@pytest.mark.req("RDR-1", "RDR-4")
@given(wanted=WANTED, max_gap=st.sampled_from([0, BLOCK, 3 * BLOCK]))
def test_readers_agree_on_bytes_and_counters(shared, wanted, max_gap):
    plan = read_plan(wanted, BLOCK, max_gap)
    measured, simulated = shared.read(plan), memory_reader(IMAGE, DEVICE)(plan)
    for extent in wanted:
        expected = IMAGE[extent.offset :][: extent.length].tobytes()
        assert plan_bytes(plan, measured.buffers, extent).tobytes() == expected
        assert plan_bytes(plan, simulated.buffers, extent).tobytes() == expected
    costs = [plan_io(plan, wanted, result.nanoseconds) for result in (measured, simulated)]
    assert costs[0][:3] == costs[1][:3]
    assert simulated.nanoseconds == read_time(DEVICE, [read.length for read in plan])


@pytest.mark.req("RDR-2")
@pytest.mark.parametrize(
    ("extent", "message"),
    [
        ((1, BLOCK), "whole blocks"),
        ((0, BLOCK - 1), "whole blocks"),
        ((0, 0), "whole blocks"),
        ((BLOCK, -BLOCK), "whole blocks"),
        ((-BLOCK, BLOCK), "bytes"),
        ((IMAGE.size, BLOCK), "bytes"),
        ((IMAGE.size - BLOCK, 2 * BLOCK), "bytes"),
        ((2**62, BLOCK), "bytes"),
    ],
)
def test_impossible_reads_are_refused_before_anything_is_read(path, extent, message):
    batch = (Extent(0, BLOCK), Extent(*extent))
    read = memory_reader(IMAGE, DEVICE)
    kept = read((Extent(BLOCK, BLOCK),))
    with pytest.raises(LayoutError, match=message):
        read(batch)
    assert contents(kept) == slices([Extent(BLOCK, BLOCK)])

    calls = []
    with direct_reader(path, preadv=lambda *call: calls.append(call) or os.preadv(*call)) as reader:
        with pytest.raises(LayoutError, match=message):
            reader.read(batch)
        assert calls == []
        assert contents(reader.read(batch[:1])) == slices(batch[:1])


@pytest.mark.req("RDR-4")
def test_the_memory_reader_takes_the_devices_time():
    read = memory_reader(IMAGE, DEVICE)
    batch = (Extent(0, BLOCK), Extent(8 * BLOCK, 3 * BLOCK))
    assert read(batch).nanoseconds == read_time(DEVICE, [BLOCK, 3 * BLOCK])
    assert read(batch).nanoseconds != read_time(DEVICE, [BLOCK, BLOCK])


@pytest.mark.req("RDR-5")
def test_the_memory_reader_copies():
    image = IMAGE.copy()
    result = memory_reader(image, DEVICE)((Extent(0, BLOCK),))
    image[:] = 0
    assert contents(result) == slices([Extent(0, BLOCK)])


@pytest.mark.req("RDR-6")
@pytest.mark.parametrize("following", [(), (Extent(0, BLOCK),), (Extent(0, 20 * BLOCK),)])
def test_a_view_kept_too_long_is_nonsense(following):
    read = memory_reader(IMAGE, DEVICE)
    kept = read((Extent(9 * BLOCK, BLOCK), Extent(3 * BLOCK, 2 * BLOCK)))
    read(following)
    assert contents(kept)[1] == b"\xa5" * (2 * BLOCK)
    assert contents(kept)[0] != slices([Extent(9 * BLOCK, BLOCK)])[0]


@pytest.mark.req("RDR-6")
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_memory_reader_uses_its_memory_again(blocks):
    read = memory_reader(IMAGE, DEVICE)
    before, after = read((Extent(0, 3 * BLOCK),)), read((Extent(0, blocks * BLOCK),))
    assert np.shares_memory(before.buffers[0], after.buffers[0])


@pytest.mark.req("RDR-2")
def test_a_block_may_be_one_byte():
    read = memory_reader(IMAGE, DEVICE._replace(block=1))
    batch = (Extent(IMAGE.size - 1, 1), Extent(5, 2))
    assert contents(read(batch)) == slices(batch)
    for extent in ((-1, 2), (IMAGE.size, 1), (0, 0)):
        with pytest.raises(LayoutError):
            read((Extent(*extent),))


def test_images_may_be_mapped(path):
    mapped = np.memmap(path, np.uint8, mode="r")
    assert contents(memory_reader(mapped, DEVICE)((Extent(BLOCK, BLOCK),))) == slices([Extent(BLOCK, BLOCK)])


@pytest.mark.parametrize(
    "image", [np.zeros(8, np.int8), np.zeros((2, 4096), np.uint8), np.zeros((), np.uint8)]
)
def test_images_that_are_not_bytes_are_refused(image):
    with pytest.raises(ShapeError, match="row of uint8"):
        memory_reader(image, DEVICE)


def test_an_impossible_device_is_refused_at_once():
    with pytest.raises(DomainError, match="queue_depth"):
        memory_reader(IMAGE, DEVICE._replace(queue_depth=0))


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


@pytest.mark.req("RDR-7")
@pytest.mark.parametrize("step", [1, 100, 4095, 4096, 5000])
def test_a_read_that_stops_inside_a_block_goes_on_there(path, step):
    # The real system call on the real descriptors: O_DIRECT itself refuses an offset inside a block.
    asked = []

    def preadv(descriptor, buffers, offset):
        asked.append((offset, descriptor))
        if step % 512:  # O_DIRECT takes no odd length either: read it all, claim the beginning
            return min(step, os.preadv(descriptor, buffers, offset))
        return os.preadv(descriptor, [buffers[0][:step]], offset)

    batch = (Extent(2 * BLOCK, 2 * BLOCK),)
    with direct_reader(path, preadv=preadv) as reader:
        assert contents(reader.read(batch)) == slices(batch)
    offsets = range(2 * BLOCK, 4 * BLOCK, step)
    inside, at_start = reader._buffered, reader._descriptor
    assert asked == [(offset, inside if offset % BLOCK else at_start) for offset in offsets]


@pytest.mark.parametrize("blocks", [0, 1, 5])
def test_whole_blocks_are_read_past_the_page_cache(path, blocks):
    descriptors = []

    def preadv(descriptor, *call):
        descriptors.append(descriptor)
        return os.preadv(descriptor, *call)

    with direct_reader(path, preadv=preadv) as reader:
        reader.read((Extent(blocks * BLOCK, BLOCK),))
    assert descriptors == [reader._descriptor]


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


@pytest.mark.parametrize("by", ["open", "preadv"])
@pytest.mark.req("RDR-12")
@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT to refuse")
def test_without_o_direct_the_page_cache_serves(path, monkeypatch, by):
    descriptors = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        real_open, real_preadv, refused = os.open, os.preadv, []

        def refusing_open(name, flags, *rest):
            if flags & os.O_DIRECT:
                refused.append(name)
                raise OSError(errno.EINVAL, "Invalid argument")
            return real_open(name, flags, *rest)

        def refusing_preadv(*call):
            if not refused:
                refused.append(call)
                raise OSError(errno.EINVAL, "Invalid argument")
            return real_preadv(*call)

        patch.setattr(readers_module.os, by, refusing_open if by == "open" else refusing_preadv)
        with pytest.warns(RuntimeWarning, match="page cache") as warned:
            reader = DirectReader(path, 4)
        assert warned[0].filename == __file__
    with reader:
        assert refused
        assert reader.direct is False
        assert contents(reader.read((Extent(BLOCK, 2 * BLOCK),))) == slices([Extent(BLOCK, 2 * BLOCK)])
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.req("RDR-12")
@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT to refuse")
def test_a_refused_descriptor_is_closed_whatever_its_number(path, monkeypatch):
    real_open, real_preadv, real_close, closed = os.open, os.preadv, os.close, []

    def refused(descriptor, *call):
        if descriptor == 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(descriptor, *call)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda name, flags: 0 if flags & os.O_DIRECT else real_open(name, flags))
        patch.setattr(os, "preadv", refused)
        patch.setattr(os, "close", lambda number: real_close(number) if number else closed.append(number))
        reader = direct_reader(path)
    reader.close()
    assert closed == [0]


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages to ask for")
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


@pytest.mark.req("RDR-12")
def test_a_warning_turned_error_leaves_nothing_open(path, monkeypatch):
    monkeypatch.setattr(readers_module, "_open_direct", lambda *_: None)
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="page cache"):
            DirectReader(path)
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, descriptors)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT")
def test_direct_is_true_where_the_kernel_says_so(shared):
    import fcntl

    assert shared.direct == bool(fcntl.fcntl(shared._descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT")
def test_direct_is_true_where_a_block_can_be_read_past_the_page_cache(shared):
    works, descriptor = False, -1
    with contextlib.suppress(OSError):
        descriptor = os.open(shared.path, os.O_RDONLY | os.O_DIRECT)
        works = os.preadv(descriptor, [mmap.mmap(-1, BLOCK)], 0) == BLOCK
    if descriptor >= 0:
        os.close(descriptor)
    assert shared.direct == works


@pytest.mark.req("RDR-12")
@pytest.mark.parametrize("known", [False, True])
def test_where_there_is_no_o_direct_the_file_is_not_cached_if_that_can_be_asked(path, monkeypatch, known):
    import fcntl

    asked = []
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    monkeypatch.delattr(fcntl, "F_NOCACHE", raising=False)
    if known:  # as on macOS
        monkeypatch.setattr(fcntl, "F_NOCACHE", 48, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, *what: asked.append(what))
    with direct_reader(path) as reader:
        assert reader.direct is known
        assert contents(reader.read((Extent(0, BLOCK),))) == slices([Extent(0, BLOCK)])
    assert asked == [(48, 1)] * known


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
    with pytest.raises(ReadError, match="is not a file"):
        DirectReader(tmp_path)
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.req("RDR-13")
def test_recording_writes_down_batches_and_passes_everything_on():
    log = []
    plain, read = memory_reader(IMAGE, DEVICE), recording_reader(memory_reader(IMAGE, DEVICE), log)
    batches = [(Extent(0, BLOCK),), (), (Extent(BLOCK, BLOCK), Extent(0, 2 * BLOCK))]
    for batch in batches:
        result = read(batch)
        assert contents(result) == slices(batch)
        assert result.nanoseconds == plain(batch).nanoseconds
    with pytest.raises(LayoutError):
        read((Extent(1, 1),))
    assert [entry.extents for entry in log] == batches
    assert [entry.nanoseconds for entry in log] == [plain(batch).nanoseconds for batch in batches]
