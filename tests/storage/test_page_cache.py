"""Chapter 56: the direct reader reads past the page cache where it can, and says where it cannot."""

import contextlib
import errno
import mmap
import os
import threading
import warnings

import image_to_read
import pytest
from image_to_read import BLOCK, contents, direct_reader, slices

from flashref import Extent
from flashref.storage import readers as readers_module
from flashref.storage.readers import DirectReader

folder = image_to_read.folder
shared = image_to_read.shared
path = image_to_read.path


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


@pytest.mark.parametrize("by", ["open", "preadv"])
@pytest.mark.req("RDR-12")
@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs O_DIRECT, which this system lacks")
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
@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs O_DIRECT, which this system lacks")
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


@pytest.mark.req("RDR-12")
def test_a_warning_turned_error_leaves_nothing_open(path, monkeypatch):
    monkeypatch.setattr(readers_module, "_open_direct", lambda *_: None)
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="page cache"):
            DirectReader(path)
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, descriptors)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs O_DIRECT, which this system lacks")
def test_direct_is_true_where_the_kernel_says_so(shared):
    import fcntl

    assert shared.direct == bool(fcntl.fcntl(shared._descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs O_DIRECT, which this system lacks")
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
