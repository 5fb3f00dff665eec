"""The safetensors container: what the library writes is read, what it must not say is refused."""

import errno
import json
import math
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from flashref.storage.container import (
    NUMPY_DTYPES,
    encode_header,
    read_container,
    require_finite,
    tensor_array,
    tensor_pieces,
)
from flashref.storage.files import create_file
from flashref.types import DomainError, ImageError, same

NATIVE = {"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4"}
NATIVE |= {"U64": "u8", "I64": "i8", "F16": "f2", "F32": "f4", "F64": "f8", "C64": "c8"}
BITS = {"BF16": "u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1"}  # NumPy knows their bits only


def raw_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def claim(dtype="U8", shape=(1,), offsets=(0, 1)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@st.composite
def tensor_sets(draw, dtypes):
    names = draw(st.lists(st.text(min_size=1, max_size=5), max_size=5, unique=True))
    arrays = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(dtypes)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        data = np.random.default_rng(len(arrays)).bytes(math.prod(shape) * np.dtype(dtypes[dtype]).itemsize)
        data = bytes(byte & 1 for byte in data) if dtype == "BOOL" else data
        arrays[name] = (dtype, np.frombuffer(data, dtypes[dtype]).reshape(shape))
    return arrays


@given(tensor_sets(NATIVE), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
def test_what_the_library_writes_is_read(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "library.safetensors"
    path.write_bytes(
        safetensors.numpy.save({name: array for name, (_, array) in tensors.items()}, metadata or None)
    )
    container = read_container(path)
    assert container.metadata == metadata
    assert container.size == path.stat().st_size
    assert set(container.tensors) == set(tensors)
    for name, (dtype, expected) in tensors.items():
        entry, array = container.tensors[name], tensor_array(container, name)
        assert (entry.dtype, entry.shape) == (dtype, expected.shape)
        assert path.read_bytes()[entry.offset : entry.offset + entry.length] == expected.tobytes()
        assert same(array, expected)
        assert array.flags.c_contiguous and array.flags.owndata
        assert b"".join(piece.tobytes() for piece in tensor_pieces(container, name)) == expected.tobytes()
    starts = [entry.offset for entry in container.tensors.values()]
    assert starts == sorted(starts)


@given(tensor_sets(NATIVE | BITS), st.sampled_from([8, 512, 4096]))
def test_what_is_encoded_the_library_reads(tmp_path_factory, tensors, block):
    entries = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    header = encode_header(entries, {"a": "ä"}, block)
    assert len(header) % block == 0
    whole = header + b"".join(array.tobytes() for _, array in tensors.values())
    got = {
        name: (told["dtype"], tuple(told["shape"]), bytes(told["data"]))
        for name, told in safetensors.deserialize(whole)
    }
    assert got == {name: (dtype, array.shape, array.tobytes()) for name, (dtype, array) in tensors.items()}
    path = tmp_path_factory.getbasetemp() / "encoded.safetensors"
    path.write_bytes(whole)
    container = read_container(path)
    assert list(container.tensors) == list(tensors) or any(array.size == 0 for _, array in tensors.values())
    assert container.metadata == {"a": "ä"}
    for name, (_, array) in tensors.items():
        assert same(tensor_array(container, name), array)


def test_tensors_longer_than_a_piece_arrive_whole(tmp_path):
    data = np.random.default_rng(0).bytes((9 << 20) + 3)
    path = raw_file(tmp_path / "x", {"a": claim("U8", [len(data)], [0, len(data)])}, data)
    container = read_container(path)
    pieces = [piece.tobytes() for piece in tensor_pieces(container, "a")]
    assert max(map(len, pieces)) == 4 << 20
    assert b"".join(pieces) == tensor_array(container, "a").tobytes() == data


def test_a_reader_that_gives_little_at_a_time_changes_nothing(tmp_path, monkeypatch):
    class Slow:
        def __init__(self, path, mode, buffering):
            self.file = io_open(path, mode, buffering=0)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def readinto(self, buffer):
            return self.file.readinto(buffer[:3])

        def __getattr__(self, name):
            return getattr(self.file, name)

    io_open = open
    path = raw_file(tmp_path / "x", {"a": claim("U8", [10], [0, 10])}, bytes(range(10)))
    monkeypatch.setattr("builtins.open", Slow)
    container = read_container(path)
    array = tensor_array(container, "a")
    monkeypatch.undo()
    assert array.tolist() == list(range(10))


ONE = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
BAD_HEADERS = {
    "overlap": {"a": claim(shape=[2], offsets=[0, 2]), "b": claim(shape=[2], offsets=[1, 3])},
    "same place": {"a": claim(), "b": claim(), "c": claim("U8", [2], [1, 3])},
    "hole": {"a": claim(offsets=[0, 1]), "b": claim(offsets=[2, 3])},
    "not from the start": {"a": claim(shape=[2], offsets=[1, 3])},
    "beyond the end": {"a": claim(shape=[4], offsets=[0, 4])},
    "before the end": {"a": claim(shape=[2], offsets=[0, 2])},
    "wrong length": {"a": claim("F32", [1], [0, 3])},
    "backwards": {"a": claim(shape=[1], offsets=[3, 2])},
    "huge shape": {"a": claim(shape=[1 << 62, 1 << 62], offsets=[0, 3])},
    "huge but empty": {
        "a": claim(shape=[0, 1 << 62, 1 << 62], offsets=[0, 0]),
        "b": claim(shape=[3], offsets=[0, 3]),
    },
    "number of 10000 digits": b'{"a":{"dtype":"U8","shape":[' + b"1" * 10_000 + b'],"data_offsets":[0,3]}}',
    "65 dimensions": {"a": claim(shape=[1] * 64 + [3], offsets=[0, 3])},
    "negative": {"a": claim(shape=[-3], offsets=[0, 3])},
    "float": {"a": claim(shape=[3.0], offsets=[0, 3])},
    "NaN": {"a": claim(shape=[float("nan")], offsets=[0, 3])},
    "true for 1": {"a": claim(shape=[True, 3], offsets=[0, 3])},
    "text for a shape": {"a": {"dtype": "U8", "shape": "3", "data_offsets": [0, 3]}},
    "three offsets": {"a": claim(shape=[3], offsets=[0, 3, 3])},
    "unknown dtype": {"a": claim("F7", [3], [0, 3])},
    "a list for a dtype": {"a": claim([], [3], [0, 3])},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 3]}},
    "more than known": {"a": claim(shape=[3], offsets=[0, 3]) | {"crc": 1}},
    "not an entry": {"a": 3},
    "metadata": {"__metadata__": {"x": 1}, "a": claim(shape=[3], offsets=[0, 3])},
    "metadata list": {"__metadata__": [], "a": claim(shape=[3], offsets=[0, 3])},
    "twice": b"{" + ONE + b"," + ONE + b"}",
    "a key twice": b'{"a":{"dtype":"U8","dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
    "lone surrogate": b'{"\\ud800":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
    "nesting": b'{"a":' + b"[" * 100_000,
    "not an object": b"[]",
    "space before": b' {"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
    "cut": b'{"a":{"dtype":"U8","sha',
    "not UTF-8": b'{"\xff":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_a_header_that_cannot_be_is_refused(tmp_path, kind):
    path = raw_file(tmp_path / "bad.safetensors", BAD_HEADERS[kind], b"abc")
    with pytest.raises(ImageError, match=r"bad\.safetensors: .*; ") as caught:
        read_container(path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["1" * 5000, "1" * 20, str(1 << 63), "1e3", "Infinity"])
def test_absurd_numbers_are_named(tmp_path, number):
    text = f'{{"a":{{"dtype":"U8","shape":[{number}],"data_offsets":[0,3]}}}}'
    with pytest.raises(ImageError, match=f"holds {number[:20]}, where only whole numbers of 63 bits"):
        read_container(raw_file(tmp_path / "x", text.encode(), b"abc"))


def test_a_headers_order_does_not_matter(tmp_path):
    header = {"c": claim(shape=[2], offsets=[1, 3]), "b": claim(), "a": claim(shape=[0], offsets=[0, 0])}
    path = raw_file(tmp_path / "x", header, b"xyz")
    assert {name for name, _ in safetensors.deserialize(path.read_bytes())} == {"a", "b", "c"}
    container = read_container(path)
    assert list(container.tensors) == ["a", "b", "c"]
    assert tensor_array(container, "c").tobytes() == b"yz"


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 100, 3])
def test_a_header_length_beyond_the_file_is_refused(tmp_path, length):
    path = raw_file(tmp_path / "x", b"{}", length=length)
    with pytest.raises(ImageError, match=f"claims {length} bytes"):
        read_container(path)


def test_a_header_longer_than_the_format_allows_is_refused_unread(tmp_path, monkeypatch):
    path = raw_file(tmp_path / "x", b"{}", length=100_000_001)
    os.truncate(path, 200_000_000)  # sparse
    with pytest.raises(ImageError, match="claims 100000001 bytes"):
        read_container(path)
    monkeypatch.setattr("flashref.storage.container.MAX_HEADER_BYTES", 1016)
    assert len(encode_header({}, {"order": " " * 900}, 1024)) == 1024
    with pytest.raises(ImageError, match="too many for tensors of this size"):
        encode_header({}, {"order": " " * 1000}, 1024)


@pytest.mark.parametrize("data", [b"", b"1234567"])
def test_a_file_too_short_for_a_length_is_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ImageError, match="ends inside its length prefix"):
        read_container(tmp_path / "x")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "regular"),
        (tmp_path / "pipe", "regular"),
    ):
        with pytest.raises(ImageError, match=why):
            read_container(path)


def test_a_file_cut_after_its_header_was_read_is_refused(tmp_path):
    path = raw_file(tmp_path / "x", {"a": claim("U8", [3], [0, 3])}, b"abc")
    container = read_container(path)
    os.truncate(path, container.size - 1)
    with pytest.raises(ImageError, match="the file ends inside the tensor 'a'"):
        tensor_array(container, "a")
    with pytest.raises(ImageError, match="has no tensor 'b'"):
        tensor_array(container, "b")


FLOATS = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.float32,
}
FLOATS |= {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
FLOATS |= {"F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz}
FLOATS |= {"F8_E8M0": ml_dtypes.float8_e8m0fnu}


@pytest.mark.parametrize("dtype", FLOATS)
def test_exactly_the_values_that_are_not_finite_are_refused(tmp_path, dtype):
    size = np.dtype(FLOATS[dtype]).itemsize
    if size <= 2:  # every bit pattern
        bits = np.arange(1 << 8 * size, dtype=f"u{size}")
    else:
        special = np.array([0, -0.0, 1, np.inf, -np.inf, np.nan, np.finfo(FLOATS[dtype]).max], FLOATS[dtype])
        bits = np.concatenate([special, np.nextafter(special[:1], special[1:3])]).view(f"u{size}")
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(bits.view(FLOATS[dtype]).astype(np.float64))
    length = NUMPY_DTYPES[dtype].itemsize
    container = read_container(raw_file(tmp_path / "x", {"a": claim(dtype, [1], [0, length])}, bytes(length)))
    good = np.repeat(bits[finite], 2)
    require_finite(container, "a", good.view(np.uint8))
    for bad in bits[~finite][:: max(1, np.count_nonzero(~finite) // 50)]:
        piece = np.append(good, [bad, bad])
        with pytest.raises(DomainError, match="tensor 'a' holds a value that is not finite"):
            require_finite(container, "a", piece.view(np.uint8))


def test_a_value_far_behind_is_seen_too(tmp_path):
    container = read_container(raw_file(tmp_path / "x", {"a": claim("F32", [0], [0, 0])}))
    values = np.zeros(1 << 20, np.float32)
    for place in (65535, 65536, values.size - 1):
        values[:] = 0
        values[place] = np.nan
        with pytest.raises(DomainError):
            require_finite(container, "a", values)


def test_integers_are_always_finite(tmp_path):
    container = read_container(raw_file(tmp_path / "x", {"a": claim("I64", [0], [0, 0])}))
    require_finite(container, "a", np.full(3, -1, np.int64))


def test_a_new_file_appears_whole_under_its_name_only(tmp_path):
    path = tmp_path / "new"
    with create_file(path, 3) as descriptor:
        os.write(descriptor, b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["new"]
    with pytest.raises(ImageError, match="exists"), create_file(path, 3):
        pass
    assert path.read_bytes() == b"abc"


def test_two_who_write_one_name_do_not_collide(tmp_path):
    path = tmp_path / "new"
    with create_file(path, 1) as first:
        os.write(first, b"1")
        with create_file(path, 1) as second:
            os.write(second, b"2")
        with pytest.raises(ImageError, match="exists"), create_file(path, 1):
            pass
        os.unlink(path)  # so that the first may have the name
    assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["new"]


def test_who_comes_second_overwrites_nothing(tmp_path):
    path = tmp_path / "new"
    with pytest.raises(ImageError, match="exists"), create_file(path, 1):
        path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch, taken):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "new"
    if taken:
        with pytest.raises(ImageError, match="exists"), create_file(path, 1):
            path.write_bytes(b"somebody else's")
        assert path.read_bytes() == b"somebody else's"
    else:
        with create_file(path, 1) as descriptor:
            os.write(descriptor, b"1")
        assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["new"]


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in ("none", "file"):
        path = tmp_path / folder / "new"
        with pytest.raises(ImageError, match="cannot be written"), create_file(path, 1):
            pass


@pytest.mark.parametrize(
    "exception", [KeyboardInterrupt, RuntimeError, OSError(errno.EIO, "Input/output error")]
)
def test_whatever_is_raised_leaves_nothing_behind(tmp_path, exception):
    with pytest.raises((KeyboardInterrupt, RuntimeError, ImageError)), create_file(tmp_path / "new", 1):
        raise exception
    assert os.listdir(tmp_path) == []
