"""What the blocks are built of, against its definition: rotation, linear maps, norms, heads."""

import math

import numpy as np
import pytest

from flashref.models.parts import (
    Linear,
    Norm,
    Rotary,
    apply,
    layer_norm,
    rms_norm,
    rotate,
    split_fused,
    split_heads,
)

U = 2.0**-24  # unit roundoff of float32


def turned(x, positions, rotary):
    """Each pair as a complex number, multiplied by one of the float32 angle."""
    half = len(rotary.frequencies)
    angles = np.float32(positions)[..., None, None] * np.float32(rotary.frequencies)
    whole = (x[..., :half] + 1j * x[..., half : 2 * half]) * rotary.scale * np.exp(1j * angles.astype(float))
    return np.concatenate([whole.real, whole.imag, x[..., 2 * half :]], axis=-1)


@pytest.mark.parametrize(("size", "half"), [(2, 1), (6, 3), (10, 2)])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_rotation_is_multiplication_by_complex_numbers(size, half, shape):
    random = np.random.default_rng(0)
    x, positions = random.standard_normal((*shape, 3, size)), random.integers(0, 5000, shape)
    rotary = Rotary(tuple(np.float32(random.uniform(0, 1, half)).tolist()), 1.5)
    found = rotate(x, positions, rotary)
    assert found.shape == x.shape and found.dtype == np.float64
    # Sine and cosine in float32, within 4 u of 1, times the scale.
    assert np.abs(found - turned(x, positions, rotary)).max() <= 2 * 1.5 * 5 * U * np.abs(x).max()
    assert (found[..., 2 * half :] == x[..., 2 * half :]).all()
    assert rotate(x.astype(np.float32), positions, rotary).dtype == np.float32


def test_a_rotation_by_hand():
    # A quarter of a turn a token takes (1, 0) to (0, 1), (−1, 0), (0, −1); the third value stays.
    quarter = Rotary((float(np.float32(math.pi / 2)),))
    x = np.tile([1.0, 0.0, 7.0], (4, 1, 1))
    expected = [[[1, 0, 7]], [[0, 1, 7]], [[-1, 0, 7]], [[0, -1, 7]]]
    # An angle of up to 3 · π/2 is rounded twice, and then sine and cosine are within 4 u.
    np.testing.assert_allclose(rotate(x, np.arange(4), quarter), expected, rtol=0, atol=(2 * 4.8 + 4) * U)


def test_linear_maps_and_heads():
    weight, x = np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([[1.0, 0], [0, 10]])
    assert apply(Linear(weight, None), x).tolist() == [[1, 3, 5], [20, 40, 60]]
    assert apply(Linear(weight, np.array([1.0, 0, 0])), x[0]).tolist() == [2, 3, 5]
    assert split_heads(np.arange(6), 3).tolist() == [[0, 1], [2, 3], [4, 5]]
    two = np.arange(8).reshape(2, 4)
    assert split_heads(two, 2).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (5, 1), (4, 2), (3, 3)])
def test_a_fused_map_gives_each_group_its_queries_its_key_and_its_value(shape, heads, key_heads):
    size, group = 2, heads // key_heads
    labels = []
    for of in range(key_heads):
        labels += [("query", of * group + i, j) for i in range(group) for j in range(size)]
        labels += [(what, of, j) for what in ("key", "value") for j in range(size)]
    number = {label: i for i, label in enumerate(labels)}
    fused = np.broadcast_to(np.arange(len(labels)), (*shape, len(labels)))
    split = split_fused(fused, key_heads, size)
    for what, count in (("query", heads), ("key", key_heads), ("value", key_heads)):
        part = getattr(split, what)
        assert part.shape == (*shape, count, size)
        assert (part == [[number[what, i, j] for j in range(size)] for i in range(count)]).all()


def test_norms_by_hand():
    # (1, 3, 5): mean 3, variance 8/3, mean square 35/3.
    x, scale, shift = np.array([[1.0, 3, 5]]), np.array([1.0, 2, 4]), np.array([0.0, 0, 1])
    deviation, root = math.sqrt(8 / 3 + 0.5), math.sqrt(35 / 3 + 0.5)
    plain_norm = layer_norm(x, Norm(None, None), 0.5)
    np.testing.assert_allclose(plain_norm, np.array([[-2, 0, 2]]) / deviation, rtol=1e-15)
    both = layer_norm(x, Norm(scale, shift), 0.5)
    np.testing.assert_allclose(both, [[-2 / deviation, 0, 8 / deviation + 1]], rtol=1e-15)
    assert (layer_norm(x + 100, Norm(None, None), 0.5) == plain_norm).all()  # whole numbers are exact
    np.testing.assert_allclose(rms_norm(x, Norm(None, None), 0.5), x / root, rtol=1e-15)
    np.testing.assert_allclose(rms_norm(x, Norm(scale, None), 0.5), x * scale / root, rtol=1e-15)
