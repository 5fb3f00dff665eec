"""The file of predictors: what was written comes back, and what does not fit the model is refused."""

import json

import numpy as np
import pytest
from random_models import LAYERS, NEURONS, WIDTH, random_weights
from safetensors.numpy import load_file, save, save_file

from flashref import same
from flashref.models.origin import Origin, Source, metadata_of
from flashref.models.predictors import Predictors, load_predictors, predictor_bytes, save_predictors
from flashref.storage.container import read_container
from flashref.types import ImageError, Predictor

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
    assert (
        str(path) in text
        and "\n" not in text
        and text.endswith("give predictors of this model with --predictors FILE")
    )
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
        ("a", zeros(0, WIDTH)),
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


# --- metadata

ORIGIN = Origin(
    "5eed" * 16,
    "fatrelu",
    0.25,
    Source("a" * 64, ((0, 80), (100, 120))),
    Source("a" * 64, ((80, 100),)),
    Source("b" * 64, ((0, 10),)),
)


def given(dense=()):
    """Predictors as they are saved, of unequal ranks, one of them without a bias."""
    rng = np.random.default_rng(3)

    def predictor(layer):
        a, b = rng.standard_normal((layer + 2, WIDTH)), rng.standard_normal((NEURONS, layer + 2))
        bias = rng.standard_normal(NEURONS).astype(np.float16) if layer else None
        return Predictor(a.astype(np.float16), b.astype(np.float16), bias, 0.5 - layer)

    layers = tuple(None if layer in dense else predictor(layer) for layer in range(LAYERS))
    mean = np.array([[NEURONS] * 3 if layer in dense else [1.5, 2, 3] for layer in range(LAYERS)], np.float32)
    return Predictors(layers, mean, (mean + 1).astype(np.int32) - (mean == NEURONS), ORIGIN)


@pytest.mark.parametrize("dense", [(), (0,), (1,), (0, 1)])
def test_what_was_saved_comes_back_with_its_origin_and_its_dense_layers(tmp_path, dense):
    path, saved = tmp_path / "saved", given(dense)
    save_predictors(path, saved)
    found = load_predictors(path, LAYERS, NEURONS, WIDTH, ORIGIN.fingerprint)
    assert found.origin == ORIGIN
    expected = saved if len(dense) < LAYERS else saved._replace(mean_resident=None, largest_resident=None)
    assert same(found[:3], expected[:3])
    again = tmp_path / "again"
    save_predictors(again, saved)
    assert again.read_bytes() == path.read_bytes()
    assert load_file(path).keys() == read_container(path).tensors.keys()  # any safetensors reader opens it
    with pytest.raises(ImageError, match="exists, and files are never overwritten"):
        save_predictors(path, saved)


def test_predictors_of_another_model_are_refused_where_the_model_is_known(tmp_path):
    save_predictors(tmp_path / "saved", given())
    with pytest.raises(ImageError, match="was fitted to another model, or to other weights of it"):
        load_predictors(tmp_path / "saved", LAYERS, NEURONS, WIDTH, "0" * 64)
    save_predictors(tmp_path / "without", given()._replace(origin=None))
    assert load_predictors(tmp_path / "without", LAYERS, NEURONS, WIDTH, "0" * 64).origin is None


@pytest.mark.parametrize("rank", [0, WIDTH + 1])
def test_a_rank_that_no_predictor_needs_is_another_models(tmp_path, rank):
    changed = {"layers.1.a": zeros(rank, WIDTH), "layers.1.b": zeros(NEURONS, rank)}
    assert "predictor for layer 1" in refusal(tmp_path, changed)


GOOD = metadata_of(ORIGIN, [1])
TEXTS = json.loads(GOOD["texts"])


def texts(part="judge", **changes):
    return json.dumps(TEXTS | {part: TEXTS[part] | changes})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"version": "2"}, "has version '2', but only version 1 can be read"),
        ({"version": None}, "has version None"),
        ({"fingerprint": None}, "do not say"),
        ({"activation": None}, "do not say"),
        ({"tau": "-1"}, "do not say"),
        ({"tau": "inf"}, "do not say"),
        ({"tau": "nan"}, "do not say"),
        ({"tau": "x"}, "do not say"),
        ({"dense_layers": "[2]"}, "do not say"),
        ({"dense_layers": "[-1]"}, "do not say"),
        ({"dense_layers": "[true]"}, "do not say"),
        ({"dense_layers": "{}"}, "do not say"),
        ({"dense_layers": "["}, "do not say"),
        ({"dense_layers": "[0, 1]"}, "has a predictor for layer 0, which its metadata call dense"),
        ({"dense_layers": "[]"}, "lacks the tensor 'layers.1.a'"),
        ({"texts": "[]"}, "do not say"),
        ({"texts": json.dumps({"fit": TEXTS["fit"]})}, "do not say"),
        ({"texts": texts(sha256=1)}, "do not say"),
        ({"texts": texts(ranges=[[2, 1]])}, "do not say"),
        ({"texts": texts(ranges=[[-2, 1]])}, "do not say"),
        ({"texts": texts(ranges=[[0, 1.5]])}, "do not say"),
        ({"texts": texts(ranges=[[0]])}, "do not say"),
        ({"texts": texts("fit", ranges=3)}, "do not say"),
        ({"texts": "[" * 100_000}, "do not say"),
    ],
)
def test_metadata_that_are_wrong_are_refused(tmp_path, changed, sentence):
    tensors = {name: array for name, array in random_weights().predictors.items() if "layers.0" in name}
    path = tmp_path / "predictors.safetensors"
    save_file(tensors, path, GOOD)
    assert load(path).origin == ORIGIN and load(path).layers[1] is None
    save_file(tensors, path, {name: value for name, value in (GOOD | changed).items() if value is not None})
    with pytest.raises(ImageError) as caught:
        load(path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
