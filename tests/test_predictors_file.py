"""The file of predictors: what was written comes back, and what does not fit the model is refused."""

import json

import numpy as np
import pytest
from random_models import LAYERS, NEURONS, WIDTH, random_weights
from safetensors.numpy import save, save_file

from flashref import same
from flashref.transformer.predictors import load_predictors, predictor_bytes
from flashref.types import ImageError

RANK = 6
STATISTICS = {
    f"layers.{layer}.{name}": np.arange(1 + layer, 6 + layer).astype(dtype)
    for layer in range(LAYERS)
    for name, dtype in {"mean_resident": np.float64, "largest_resident": np.int32}.items()
}


def written(folder, tensors):
    path = folder / "predictors.safetensors"
    save_file(tensors, path)
    return path


def load(path):
    return load_predictors(path, LAYERS, NEURONS, WIDTH)


def refusal(folder, changed, without=()):
    """The sentence with which a file is refused: the good one with some tensors changed, some left out."""
    tensors = random_weights().predictors | STATISTICS | changed
    path = written(folder, {name: array for name, array in tensors.items() if name not in without})
    with pytest.raises(ImageError) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and "--predictor exact" in text
    return text


def test_what_was_written_comes_back(tmp_path):
    tensors = random_weights().predictors
    found = load(written(tmp_path, tensors | STATISTICS))
    assert len(found.layers) == LAYERS
    for layer, (a, b, bias, threshold) in enumerate(found.layers):
        assert same(a, tensors[f"layers.{layer}.a"]) and same(b, tensors[f"layers.{layer}.b"])
        assert same(bias, tensors[f"layers.{layer}.bias"])
        assert same(threshold, float(np.float32(-0.1)))
    assert same(found.mean_resident, np.array([[1.0, 2, 3, 4, 5], [2, 3, 4, 5, 6]]))
    assert same(found.largest_resident, np.array([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]], np.int32))
    # Both maps in F16, and no bias: LAYERS · RANK · (WIDTH + NEURONS) · 2 bytes.
    assert predictor_bytes(found) == 2 * 6 * (16 + 48) * 2


def test_a_bias_and_statistics_may_be_absent(tmp_path):
    tensors = random_weights().predictors
    del tensors["layers.1.bias"]
    found = load(written(tmp_path, tensors))
    assert found.layers[0].bias is not None and found.layers[1].bias is None
    assert found.mean_resident is None and found.largest_resident is None


def test_bfloat16_maps_come_back_as_bits(tmp_path):
    tensors = random_weights().predictors
    text = save(
        {
            name: array.view(np.uint16) if array.dtype == np.float16 else array
            for name, array in tensors.items()
        }
    )
    length = int.from_bytes(text[:8], "little")
    header = text[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    assert json.loads(header)
    path = tmp_path / "predictors.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + text[8 + length :])
    assert same(load(path).layers[0].a, tensors["layers.0.a"].view(np.uint16))


@pytest.mark.parametrize("part", ["a", "b", "threshold"])
def test_a_missing_tensor_is_named(tmp_path, part):
    assert f"lacks the tensor 'layers.1.{part}'" in refusal(tmp_path, {}, {f"layers.1.{part}"})


@pytest.mark.parametrize("part", ["mean_resident", "largest_resident"])
def test_statistics_come_for_every_layer_or_not_at_all(tmp_path, part):
    assert f"lacks the tensor 'layers.1.{part}'" in refusal(tmp_path, {}, {f"layers.1.{part}"})


def zeros(*shape, dtype=np.float16):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("a", zeros(RANK, WIDTH + 1)),
        ("a", zeros(RANK + 1, WIDTH)),
        ("a", zeros(RANK * WIDTH)),
        ("a", zeros()),
        ("b", zeros(NEURONS + 1, RANK)),
        ("b", zeros(RANK, NEURONS)),
        ("b", zeros()),
        ("bias", zeros(NEURONS + 1)),
        ("bias", zeros(NEURONS, 1)),
        ("threshold", zeros(2, dtype=np.float32)),
        ("threshold", zeros(dtype=np.float32)),
    ],
)
def test_a_wrong_shape_is_another_models(tmp_path, part, wrong):
    text = refusal(tmp_path, {f"layers.1.{part}": wrong})
    assert "predictor for layer 1" in text and "48 neurons of width 16" in text


def test_more_or_fewer_layers_are_another_models(tmp_path):
    tensors = random_weights().predictors
    more = {f"layers.{LAYERS}.{part}": tensors[f"layers.0.{part}"] for part in ("a", "b", "threshold")}
    assert "has a predictor for layer 2, but the model has 2 layers" in refusal(tmp_path, more)
    assert "lacks the tensor 'layers.1.a'" in refusal(
        tmp_path, {}, {name for name in tensors if name.startswith("layers.1")}
    )


@pytest.mark.parametrize("part", ["a", "b", "bias", "threshold"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(tmp_path, part, value):
    name = f"layers.1.{part}"
    changed = random_weights().predictors[name].copy()
    changed.reshape(-1)[-1] = value
    assert f"not finite in {name!r}" in refusal(tmp_path, {name: changed})


@pytest.mark.parametrize("part", ["a", "b", "bias", "threshold"])
def test_a_dtype_that_is_not_stored_is_named(tmp_path, part):
    name = f"layers.0.{part}"
    wide = random_weights().predictors[name].astype(np.float64)
    assert f"has {name!r} in another dtype than F32, F16, BF16" in refusal(tmp_path, {name: wide})


@pytest.mark.parametrize("name", ["mean_resident", "largest_resident"])
def test_statistics_that_are_none(tmp_path, name):
    for wrong in (zeros(4), zeros(), zeros(1, 5)):
        assert f"{name!r} of different windows" in refusal(tmp_path, {f"layers.1.{name}": wrong})
    for wrong in (np.array([1, 2, 3, 4, np.nan]), np.array([-1.0, 2, 3, 4, 5])):
        assert f"{name!r} that counts no neurons" in refusal(tmp_path, {f"layers.1.{name}": wrong})


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "predictors.safetensors"
    with pytest.raises(ImageError, match=r"predictors\.safetensors: cannot be read"):
        load(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(ImageError, match=r"predictors\.safetensors: its header claims"):
        load(path)
