"""Trace files: bit for bit back, openable by anyone, and refused in one sentence when they are not whole."""

import json
import shutil

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from flashref.conformance.strategies import id_sets
from flashref.simulate.trace import trace_of
from flashref.simulate.trace_file import Description, load_description, load_trace, save_trace
from flashref.types import DomainError, ImageError, same

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DESCRIPTION = Description("OPT, a poem", "seed 7")


@st.composite
def traces_to_save(draw):
    units = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    tokens = draw(st.integers(1, 5))
    sets = [[np.array(draw(id_sets(n)), np.int64) for n in units] for _ in range(tokens)]
    return trace_of(sets, units, draw(st.integers(0, tokens - 1)))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    numbers = iter(range(10**9))
    return lambda: folder / str(next(numbers))


def small():
    """Two layers of 9 and 3 units, two tokens."""
    sets = [[[0, 8], [2]], [[1, 2, 7], []]]
    return trace_of([[np.array(ids, np.int64) for ids in layers] for layers in sets], [9, 3], 1)


@given(traces_to_save(), TEXT, TEXT)
def test_a_trace_comes_back_bit_for_bit(scratch, trace, what, source):
    first, second = scratch(), scratch()
    save_trace(first, trace, Description(what, source))
    assert same(load_trace(first), trace)
    assert load_description(first) == Description(what, source)
    save_trace(second, trace, Description(what, source))
    assert first.read_bytes() == second.read_bytes()


def test_layers_of_any_size_come_back(scratch):
    path = scratch()
    units = [1, 8, 70_000]
    trace = trace_of([[np.array([0]), np.arange(8), np.array([0, 65_535, 69_999])]], units)
    save_trace(path, trace._replace(units=tuple(np.array(units))), DESCRIPTION)  # NumPy's integers will do
    assert same(load_trace(path), trace)


def test_a_full_disk_is_refused_with_the_bytes_needed(scratch, monkeypatch):
    path = scratch()
    save_trace(path, small(), DESCRIPTION)
    free = shutil.disk_usage(path.parent)._replace(free=path.stat().st_size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(ImageError, match=f"needs {path.stat().st_size} bytes, but {free.free} are free"):
        save_trace(scratch(), small(), DESCRIPTION)


def test_any_reader_of_safetensors_finds_the_bits(scratch):
    path = scratch()
    save_trace(path, small(), DESCRIPTION)
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0  # where the tensors begin
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {
            "format": "flashref-trace",
            "version": "1",
            "what": "OPT, a poem",
            "source": "seed 7",
            "units": "[9, 3]",
            "first_counted": "1",
        }
        tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
    # Unit i is bit i % 8 of byte i // 8, the lowest first.
    assert tensors == {"layers.0.active": [[0b1, 0b1], [0b1000_0110, 0]], "layers.1.active": [[0b100], [0]]}


def test_a_file_is_never_overwritten_and_none_is_left_half_written(scratch, tmp_path):
    path = scratch()
    save_trace(path, small(), DESCRIPTION)
    before = path.read_bytes()
    with pytest.raises(ImageError, match="exists"):
        save_trace(path, small(), Description("another", ""))
    assert path.read_bytes() == before
    with pytest.raises(ImageError, match="cannot be written"):
        save_trace(tmp_path / "no folder" / "trace", small(), DESCRIPTION)
    with pytest.raises(DomainError, match="Unicode"):
        save_trace(tmp_path / "trace", small(), Description("\ud800", ""))
    assert list(tmp_path.iterdir()) == []


def rewritten(scratch, metadata=(), tensors=(), drop=()):
    """The small trace with other metadata and tensors, written by safetensors' own writer."""
    from safetensors.numpy import save_file

    path, changed = scratch(), scratch()
    save_trace(path, small(), DESCRIPTION)
    with safetensors.safe_open(path, "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = {**file.metadata(), **dict(metadata)}
    found.update(tensors)
    kept = {name: tensor for name, tensor in found.items() if name not in drop}
    save_file(kept, changed, {key: value for key, value in values.items() if value is not None})
    return changed


def test_what_another_writer_wrote_is_read(scratch):
    assert same(load_trace(rewritten(scratch)), small())


LAYER = "layers.1.active"
ONE = np.uint8([[4], [0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"format": None}}, "no trace"),
        ({"metadata": {"format": "pt"}}, "no trace"),
        ({"metadata": {"version": "2"}}, "version '2', and this flashref reads version 1"),
        ({"metadata": {"version": None}}, "version ''"),
        *(
            ({"metadata": {"units": units}}, "does not say how many units")
            for units in (
                None,
                "",
                "[",
                "9",
                "[]",
                "[9, 0]",
                "[9, true]",
                "[9, 3.0]",
                "[9, -3]",
                "[9, 2147483648]",
            )
        ),
        ({"metadata": {"units": "[" * 9000}}, "does not say how many units"),
        ({"metadata": {"units": "[9, 9]"}}, r"shape \(2, 1\), not as U8 of shape \(2, 2\)"),
        ({"metadata": {"units": "[9]"}}, "holds 2 tensors for 1 layers"),
        ({"metadata": {"units": "[9, 3, 3]"}}, "lacks the tensor 'layers.2.active'"),
        ({"drop": [LAYER]}, "lacks the tensor 'layers.1.active'"),
        ({"tensors": {"more": ONE}}, "holds 3 tensors for 2 layers"),
        ({"tensors": {LAYER: ONE.astype(np.int8)}}, "as I8 of shape"),
        ({"tensors": {LAYER: np.uint8([[4]])}}, r"shape \(1, 1\)"),
        ({"tensors": {LAYER: np.uint8([4, 0])}}, r"shape \(2,\)"),
        ({"tensors": {LAYER: np.uint8([[8], [0]])}}, "bits set after a layer's last unit"),
        ({"tensors": {"layers.0.active": np.uint8([[0, 2], [0, 0]])}}, "bits set after"),
        (
            {
                "tensors": {
                    name: np.zeros((0, w), np.uint8) for name, w in (("layers.0.active", 2), (LAYER, 1))
                }
            },
            "but has 0 tokens",
        ),
        ({"tensors": {"layers.0.active": np.array(1, np.uint8)}}, "but has 0 tokens"),
        *(
            ({"metadata": {"first_counted": first}}, "counts from token")
            for first in (None, "", "2", "-1", "1.0", "²", "٠", "9" * 5000)
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(scratch, change, message):
    path = rewritten(scratch, **change)
    with pytest.raises(ImageError, match=message) as refusal:
        load_trace(path)
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < len(str(path)) + 200


def test_a_missing_or_truncated_file_is_refused(scratch):
    path, cut = scratch(), scratch()
    with pytest.raises(ImageError, match="cannot be read"):
        load_trace(path)
    save_trace(path, small(), DESCRIPTION)
    whole = path.read_bytes()
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(ImageError):
            load_trace(cut)
    header = json.dumps({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    cut.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ImageError, match="no trace"):
        load_description(cut)


@given(st.data())
def test_a_changed_byte_is_refused_or_changes_a_set(scratch, data):
    path, changed = scratch(), scratch()
    save_trace(path, small(), DESCRIPTION)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    changed.write_bytes(whole)
    try:
        trace = load_trace(changed)
    except ImageError:
        return
    sets = [[trace.active(token, layer) for layer in range(trace.layers)] for token in range(trace.tokens)]
    assert same(trace_of(sets, trace.units, trace.first_counted), trace)  # whatever it is, it is a trace
