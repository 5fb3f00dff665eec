"""An image of random bytes, in memory and in files, and what must be read of it."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from flashref import Device, Extent
from flashref.storage.readers import DirectReader

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


def slices(extents):
    return [IMAGE[offset : offset + length].tobytes() for offset, length in extents]


def contents(result):
    return [buffer.tobytes() for buffer in result.buffers]


def direct_reader(path, queue_depth=4, block=BLOCK, **options):
    """A DirectReader that may fall back to the page cache: not every machine's file system has O_DIRECT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return DirectReader(path, queue_depth, block, **options)


# A test file takes the fixtures that it needs as its own: path = image_to_read.path


@pytest.fixture(scope="module", params=["tmp", "/var/tmp"])
def folder(request, tmp_path_factory):
    if request.param == "tmp":
        yield tmp_path_factory.mktemp("readers")
        return
    if not os.access(request.param, os.W_OK):
        pytest.skip(f"needs a second folder on disk; {request.param} cannot be written")
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
