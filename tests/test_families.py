"""The parts of the five families against their definitions, and every config.json that is refused."""

import json
import math
from fractions import Fraction
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_checkpoint import write_file

from flashref.simulate.shapes.families import decoder_of_config
from flashref.simulate.shapes.presets import CONFIGS
from flashref.transformer import config_values
from flashref.transformer.checkpoint import load_ffn, open_checkpoint, parse_config, tensor_shapes
from flashref.transformer.families import FAMILIES
from flashref.transformer.families.falcon import alibi
from flashref.transformer.family import Config, Tensor, fill, leaves
from flashref.transformer.model import load_model
from flashref.transformer.parts import (
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
from flashref.transformer.rotary import rotary_from
from flashref.types import DomainError, FlashrefError, ImageError, ShapeError, same

U = 2.0**-24  # unit roundoff of float32

# Every key that a family needs, and no other.
NEEDED = {
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 12,
        "ffn_dim": 5,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "vocab_size": 7,
        "activation_function": "relu",
    },
    "falcon": {"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 3, "vocab_size": 7},
} | {
    family: {
        "num_hidden_layers": 2,
        "hidden_size": 12,
        "intermediate_size": 5,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "vocab_size": 7,
        "hidden_act": "relu",
    }
    for family in ("persimmon", "phi", "llama")
}
ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0, "original_max_position_embeddings": 16}
ROPE |= {"beta_fast": 8, "beta_slow": 0.5, "attention_factor": None, "mscale": 0.7, "mscale_all_dim": 1.3}
ROPE |= {"truncate": False, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What a family reads besides, each key with a value that opens.
OPTIONAL = {
    "opt": {
        "word_embed_proj_dim": 3,
        "do_layer_norm_before": False,
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "_remove_final_layer_norm": True,
        "tie_word_embeddings": False,
    },
    "falcon": {
        "ffn_hidden_size": 5,
        "max_position_embeddings": 32,
        "activation": "relu",
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "multi_query": False,
        "num_kv_heads": 1,
        "num_ln_in_parallel_attn": 1,
        "alibi": False,
        "bias": True,
        "layer_norm_epsilon": 1e-3,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE,
    },
    "persimmon": {
        "qk_layernorm": False,
        "layer_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "rope_theta": 500,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "phi": {
        "num_key_value_heads": 1,
        "qk_layernorm": True,
        "layer_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 1.0,
        "rope_parameters": ROPE,
    },
    "llama": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.01,
        "attention_bias": True,
        "mlp_bias": True,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "rope_parameters": ROPE | {"rope_type": "llama3"},
        "original_max_position_embeddings": 8,
    },
}


def config_of(family, **changes) -> Config:
    """The config of a family's needed keys with these changes; None leaves a key out."""
    values = {"model_type": family} | NEEDED[family] | changes
    return parse_config(json.dumps({key: value for key, value in values.items() if value is not None}))


# --- Rotary positions


def frequencies(size, context=32, **values):
    return rotary_from(values, size, context).frequencies


def assert_near(found, expected, base):
    """Within what rounding the exponent, the power, its inverse and three steps of scaling costs."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert abs(one - float(other)) <= (math.log(base) + 8) * U * float(other)
        assert one == float(np.float32(one))


def plain(size, base):
    with mpmath.workdps(40):
        return [mpmath.power(base, -mpmath.mpf(2 * i) / size) for i in range(size // 2)]


@pytest.mark.parametrize(("size", "base"), [(2, 10_000), (6, 10_000), (32, 25_000), (80, 500_000)])
def test_frequencies_fall_by_equal_ratios_from_1(size, base):
    assert_near(frequencies(size, rope_theta=base), plain(size, base), base)
    assert frequencies(size, rope_theta=base)[0] == 1
    assert frequencies(4) == (1.0, float(np.float32(0.01)))  # 10 000 if nothing is said


def test_old_and_new_keys_say_the_same():
    new = {"rope_theta": 500, "rope_type": "linear", "factor": 3, "partial_rotary_factor": 0.5}
    old = {"rope_theta": 500, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 3}}
    expected = [frequency / 3 for frequency in plain(6, 500)]
    for values in ({"rope_parameters": new}, old, old | {"rope_parameters": None}):
        assert_near(frequencies(12, **values), expected, 500)
    # As in transformers: what is inside goes before what is beside, rope_scaling before rope_parameters.
    both = {"rope_theta": 7, "rope_parameters": new, "partial_rotary_factor": 1.0}
    assert_near(frequencies(12, **both), expected, 500)
    other = {"rope_theta": 500, "partial_rotary_factor": 0.5, "type": "linear", "factor": 3}
    assert_near(frequencies(12, rope_parameters={"rope_theta": 9.0}, rope_scaling=other), expected, 500)
    for empty in (None, {}):
        assert frequencies(4, rope_scaling=empty, rope_parameters=empty) == frequencies(4)


def test_share_of_a_head_that_is_turned():
    for share, count in ((0.5, 5), (0.4, 4), (0.24, 2), (1.0, 10)):
        assert len(rotary_from({}, 20, 32, share).frequencies) == count
        assert len(frequencies(20, partial_rotary_factor=share)) == count
    assert len(rotary_from({"partial_rotary_factor": 0.2}, 20, 32, 0.5).frequencies) == 2


def test_linear_divides_and_dynamic_changes_nothing_within_the_context():
    scaled = {"factor": 2.5, "rope_theta": 1e4}
    found = frequencies(8, rope_parameters=scaled | {"rope_type": "linear"})
    assert_near(found, [frequency / 2.5 for frequency in plain(8, 10_000)], 10_000)
    assert frequencies(8, rope_parameters=scaled | {"rope_type": "dynamic"}) == frequencies(8)


def llama3(frequency, factor, low, high, context):
    """As Llama 3.1's own code has it: by wavelength."""
    wavelength = 2 * mpmath.pi / frequency
    if wavelength < mpmath.mpf(context) / high:
        return frequency
    if wavelength > mpmath.mpf(context) / low:
        return frequency / factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def test_llama3_stretches_long_waves_keeps_short_ones_and_mixes_between():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = scaling | {"rope_type": "llama3", "rope_theta": 500_000.0}
    expected = [llama3(frequency, 8, 1, 4, 8192) for frequency in plain(128, 500_000)]
    kept = [float(new / old) for new, old in zip(expected, plain(128, 500_000), strict=True)]
    assert kept.count(1.0) > 20 and sum(0.126 < share < 0.999 for share in kept) > 3
    for values, context in (
        ({"rope_parameters": rope | {"original_max_position_embeddings": 8192}}, 131_072),
        ({"rope_parameters": rope}, 8192),
        # The key beside goes before the one inside, as in transformers.
        (
            {
                "rope_parameters": rope | {"original_max_position_embeddings": 1},
                "original_max_position_embeddings": 8192,
            },
            131_072,
        ),
    ):
        assert_near(frequencies(128, context, **values), expected, 500_000)


def yarn(size, base, factor, context, fast, slow, truncate):
    """The paper's NTK-by-parts (Peng et al. 2023, §3.2), its ramp over the index of the pair."""

    def index(turns):
        return size * mpmath.log(context / (2 * mpmath.pi * turns)) / (2 * mpmath.log(base))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = mpmath.floor(low), mpmath.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if low == high else 0
    for i, frequency in enumerate(plain(size, base)):
        ramp = min(max((i - low) / (high - low), 0), 1)
        yield frequency * (1 - ramp) + frequency / factor * ramp


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("size", "base", "context"), [(64, 10_000.0, 2048), (64, 10_000.0, 32), (10, 50.0, 2048), (2, 3.0, 99)]
)
@pytest.mark.parametrize(("fast", "slow"), [(32, 1), (8, 0.5), (3, 3)])
def test_yarn_stretches_by_the_index_of_the_pair(size, base, context, fast, slow, truncate):
    rope = {"rope_type": "yarn", "rope_theta": base, "factor": 4.0}
    rope["original_max_position_embeddings"] = context
    expected = list(yarn(size, base, 4, context, fast, slow, truncate))
    given_turns = rope | {"beta_fast": fast, "beta_slow": slow, "truncate": truncate}
    assert_near(frequencies(size, 8192, rope_parameters=given_turns), expected, base)
    if (fast, slow, truncate) == (32, 1, True):  # what holds if nothing is said
        assert_near(frequencies(size, 8192, rope_parameters=rope), expected, base)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"factor": 4}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1),
        ({"factor": 4, "attention_factor": 0.3}, 0.3),
        ({"factor": 4, "mscale": 7, "mscale_all_dim": 3}, (7 * math.log(4) + 10) / (3 * math.log(4) + 10)),
        ({"factor": 4, "mscale": 0.7}, 0.1 * math.log(4) + 1),
        ({"factor": 4, "mscale": 0, "mscale_all_dim": 2}, 0.1 * math.log(4) + 1),
    ],
)  # fmt: skip
def test_yarn_scales_sine_and_cosine(scaling, expected):
    values = {"rope_parameters": {"rope_type": "yarn"} | scaling}
    assert rotary_from(values, 8, 32).scale == pytest.approx(expected, rel=1e-15)  # a few roundings
    assert rotary_from({}, 8, 32).scale == 1


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
    np.testing.assert_allclose(rotate(x, np.arange(4), quarter), expected, atol=1e-6)


# --- ALiBi


def bfloat16(value):
    """A fraction rounded to eight significant bits, ties to even."""
    if value == 0:
        return Fraction(0)
    quantum = Fraction(2) ** (math.floor(math.log2(value)) - 7)
    return round(value / quantum) * quantum


def test_slopes_of_8_and_12_heads():
    # Press et al. 2022: 1/2 … 1/256 for 8; for 12, every second one of 16 heads follows: 2^−0.5, 2^−1.5 ….
    eight = [2.0**-i for i in range(1, 9)]
    assert alibi(8, 1, 2).tolist() == [[0, slope] for slope in eight]
    four = [181 / 2**8, 181 / 2**9, 181 / 2**10, 181 / 2**11]  # 0.70711 … in eight bits
    assert alibi(12, 1, 2)[:, 1].tolist() == eight + four
    assert alibi(1, 1, 3).tolist() == [[0, 2.0**-8, 2.0**-7]]
    assert alibi(8, 4, 2).tolist() == [[0, slope / 2] for slope in eight]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 12, 32, 71])
def test_alibi_grows_with_the_position_in_bfloat16(heads):
    biases, size = alibi(heads, 10, 600), 10
    assert biases.shape == (heads, 600)
    even = 1 << (heads.bit_length() - 1)
    with mpmath.workdps(40):
        slopes = [mpmath.power(2, -mpmath.mpf(8 * i) / even) for i in range(1, even + 1)]
        slopes += [mpmath.power(2, -mpmath.mpf(8 * i) / (2 * even)) for i in range(1, 2 * (heads - even), 2)]
        slopes = [bfloat16(Fraction(str(slope))) for slope in slopes]
    for row, slope in zip(biases, slopes, strict=True):
        for position in (0, 1, 3, 100, 255, 257, 259, 511, 599):  # 257 is a tie between 256 and 258
            expected = bfloat16(slope * bfloat16(Fraction(position)))
            assert row[position] == float(expected) / math.sqrt(size)


# --- Linear maps, norms, heads


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
    assert layer_norm(x + 100, Norm(None, None), 0.5) == pytest.approx(plain_norm, rel=1e-12)
    np.testing.assert_allclose(rms_norm(x, Norm(None, None), 0.5), x / root, rtol=1e-15)
    np.testing.assert_allclose(rms_norm(x, Norm(scale, None), 0.5), x * scale / root, rtol=1e-15)


# --- Tensors

PUBLISHED = {
    **{
        name: CONFIGS[name] | {"activation_function": "relu"} for name in ("opt-350m", "opt-6.7b", "opt-175b")
    },
    "falcon-7b": CONFIGS["falcon-7b"],
    **{
        name: CONFIGS[name] | {"max_position_embeddings": 2048}
        for name in ("persimmon-8b", "phi-2", "llama-2-7b")
    },
    "falcon-40b": {
        "model_type": "falcon",
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "hidden_size": 8192,
        "vocab_size": 65_024,
        "new_decoder_architecture": True,
    },
    "falcon-rw-1b": {
        "model_type": "falcon",
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "hidden_size": 2048,
        "vocab_size": 50_304,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    },
}
VARIANTS = {
    f"{family}, {'all keys' if optional else 'needed keys'}": {
        "model_type": family,
        **NEEDED[family],
        **(OPTIONAL[family] if optional else {}),
    }
    for family in FAMILIES
    for optional in (False, True)
}


@pytest.mark.parametrize("name", [*PUBLISHED, *VARIANTS])
def test_tensors_have_as_many_values_as_the_shape_counts(name):
    values = (PUBLISHED | VARIANTS)[name]
    tensors = list(tensor_shapes(parse_config(json.dumps(values))))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    decoder, note = decoder_of_config(values)
    assert note == ""
    assert sum(math.prod(tensor.shape) for tensor in tensors) == decoder.parameters
    published = {"falcon-40b": 41.3, "falcon-rw-1b": 1.31}  # billions, to three digits
    if name in published:
        assert float(f"{decoder.parameters / 1e9:.3g}") == published[name]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_tied_head_is_the_very_array_of_the_embeddings(family, tied):
    config = config_of(family, tie_word_embeddings=tied)
    loads = []

    def load(name):
        loads.append(name)
        return np.zeros({tensor.name: tensor.shape for tensor in tensor_shapes(config)}[name], np.float16)

    model = load_model(config, load)
    assert len(set(loads)) == len(loads)
    assert (model.ends.head.weight is model.ends.tokens) == tied
    assert ("lm_head.weight" in loads) != tied
    assert ("lm_head.bias" in loads) == (family == "phi")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_tensor_of_every_family_is_needed(family, tmp_path):
    config = {"model_type": family} | NEEDED[family] | OPTIONAL[family]
    shapes = tensor_shapes(parse_config(json.dumps(config)))
    tensors = {tensor.name: np.ones(tensor.shape, np.float16) for tensor in shapes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    write_file(file, tensors)
    checkpoint = open_checkpoint(tmp_path)
    fields = ("gate", "up", "down") if family == "llama" else ("up", "down")
    assert [tuple(layer) for layer in checkpoint.layers] == [fields] * 2
    assert load_ffn(checkpoint, 1).down.shape == (checkpoint.config.neurons, checkpoint.config.width)
    for name, array in tensors.items():
        write_file(file, {other: value for other, value in tensors.items() if other != name})
        with pytest.raises(ImageError, match=f"lacks the tensor {name},"):
            open_checkpoint(tmp_path)
        write_file(file, tensors | {name: np.ones((*array.shape, 1), np.float16)})
        with pytest.raises(ShapeError, match=f"the tensor {name} has the shape"):
            open_checkpoint(tmp_path)


def test_trees_are_filled_leaf_by_leaf():
    tree = (Linear(Tensor("a", (1,)), None), (Tensor("b", (2,)), "relu", 0.5), np.zeros(3))
    assert [leaf.name for leaf in leaves(tree)] == ["a", "b"]
    filled = fill(tree, lambda leaf: SimpleNamespace(leaf=leaf.shape))
    assert isinstance(filled[0], Linear) and filled[0].bias is None
    assert [filled[0].weight.leaf, filled[1][0].leaf, filled[2].leaf] == [(1,), (2,), (3,)]
    assert filled[1][1:] == ("relu", 0.5)


# --- What is refused


def test_values_of_a_config_at_their_bounds():
    count, positive = config_values.count, config_values.positive
    assert [count({"a": value}, "a") for value in (1, 2**63 - 1)] == [1, 2**63 - 1]
    for value in (2.0**-126, 1e-5, 2.0**127):
        assert same(positive({"a": value}, "a"), value)
    assert same(positive({"a": 2}, "a"), 2.0)
    for value in (math.nextafter(2.0**-126, 0), math.nextafter(2.0**127, math.inf), math.inf, 0, True, "1"):
        with pytest.raises(ImageError, match=r"config.json has a .* must be a number above 0 within float32"):
            positive({"a": value}, "a")


def test_a_value_that_is_null_is_left_out_and_the_first_key_that_is_given_counts():
    count, flag = config_values.count, config_values.flag
    positive, text = config_values.positive, config_values.text
    for values in ({}, {"a": None}, {"a": None, "b": None}):
        assert count(values, "a", "b", default=3) == 3
        assert flag(values, "a", True) is True and positive(values, "a", 0.5) == 0.5
        assert text(values, "a", "name") == "name"
        for read in (count, positive, text):
            with pytest.raises(ImageError, match=r"config.json lacks a; give the whole"):
                read(values, "a")
        with pytest.raises(ImageError, match=r"config.json lacks a or b; give the whole"):
            count(values, "a", "b")
    assert count({"a": None, "b": 2}, "a", "b", default=3) == count({"b": 2}, "a", "b") == 2
    assert count({"a": 1, "b": 2}, "a", "b", default=3) == count({"a": 1, "b": 2}, "a", "b") == 1
    with pytest.raises(ImageError, match=r"config.json has b 0; it must be a positive integer"):
        count({"a": None, "b": 0}, "a", "b", default=3)
    assert flag({"a": False}, "a", True) is False


@pytest.mark.parametrize(("family", "key"), [(family, key) for family in NEEDED for key in NEEDED[family]])
def test_a_config_without_a_key_that_its_family_needs(family, key):
    with pytest.raises(ImageError, match=f"config.json lacks {key}.*; give the whole config.json"):
        config_of(family, **{key: None})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_keys_above_open(family):
    assert config_of(family).family == family
    assert config_of(family, **OPTIONAL[family]).family == family


ACTIVATION_KEYS = {"opt": "activation_function", "falcon": "activation"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_fatrelu_and_its_threshold_reach_the_ffn(family):
    key = ACTIVATION_KEYS.get(family, "hidden_act")
    config = config_of(family, **{key: "fatrelu", "hidden_act_param": 0.01})
    ffn = FAMILIES[family].ffn(config, 0)
    assert (ffn.activation, ffn.tau) == (config.activation, config.tau) == ("fatrelu", 0.01)
    assert config_of(family, hidden_act_param=0.01).tau == 0  # only FATReLU has one


LLAMA3 = {"type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}
FALCON_AS_OF_OLD = {"num_hidden_layers": None, "hidden_size": None, "num_attention_heads": None}


def test_what_a_falcon_has_if_its_config_says_nothing():
    assert config_of("falcon", new_decoder_architecture=True).key_heads == 3
    assert config_of("falcon", multi_query=False).key_heads == 3
    assert config_of("falcon", **FALCON_AS_OF_OLD, n_layer=2, n_embed=12, n_head=3) == config_of("falcon")
    config = config_of("falcon")
    assert (config.context, config.neurons, config.key_heads, config.activation) == (2048, 48, 1, "gelu_erf")


@pytest.mark.parametrize(
    ("family", "changes", "error", "text"),
    [
        ("opt", {"activation_function": "tanh"}, DomainError, "activation_function 'tanh'; use one of relu"),
        ("falcon", {"activation": "tanh"}, DomainError, "activation 'tanh'; use one of relu"),
        ("llama", {"hidden_act": "reglu"}, DomainError, "hidden_act 'reglu'; use one of relu"),
        ("llama", {"hidden_act": "fatrelu"}, ImageError, "lacks hidden_act_param"),
        ("llama", {"hidden_act": "fatrelu", "hidden_act_param": -1}, ImageError, "hidden_act_param -1;"),
        *((family, {"num_attention_heads": 5}, ImageError, "hidden_size 12, which num_attention_heads 5 does")
          for family in FAMILIES),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, ImageError, "which num_kv_heads 2"),
        ("phi", {"num_key_value_heads": 2}, ImageError, "heads 3, which num_key_value_heads 2"),
        ("llama", {"num_key_value_heads": 2}, ImageError, "heads 3, which num_key_value_heads 2"),
        ("llama", {"head_dim": 5}, ImageError, "turns 5 of a head's 5 values"),
        ("llama", {"partial_rotary_factor": 0.5}, DomainError, "a part of a head only, which no Llama does"),
        ("phi", {"partial_rotary_factor": 0.25}, ImageError, "turns 1 of a head's 4 values"),
        ("phi", {"partial_rotary_factor": 0.1}, ImageError, "turns 0 of a head's 4 values"),
        ("phi", {"partial_rotary_factor": 1.5}, ImageError, "turns 6 of a head's 4 values"),
        ("persimmon", {"hidden_size": 6}, ImageError, "turns 1 of a head's 2 values"),
        ("falcon", {"hidden_size": 9}, ImageError, "turns 3 of a head's 3 values"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, DomainError, "which is no Falcon"),
        ("falcon", {"num_ln_in_parallel_attn": 3, "new_decoder_architecture": True}, DomainError, "is no"),
        ("falcon", {"parallel_attn": False, "new_decoder_architecture": True}, DomainError, "no Falcon"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, DomainError, "by 'longrope'; use one of def"),
        ("llama", {"rope_parameters": {"rope_type": ""}}, DomainError, "rotary positions by ''"),
        ("llama", {"rope_parameters": [1]}, ImageError, r"rope_parameters \[1\]; it must be an object"),
        ("llama", {"rope_scaling": 2}, ImageError, "rope_scaling 2; it must be an object"),
        ("llama", {"rope_theta": 1}, ImageError, "rope_theta 1; it must be above 1"),
        ("llama", {"rope_theta": "1e4"}, ImageError, "rope_theta '1e4'; it must be a number above 0"),
        *(("llama", {"rope_scaling": {"type": kind}}, ImageError, "lacks factor")
          for kind in ("linear", "yarn")),
        ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, ImageError, "4, not below high_freq"),
        *(("llama", {"rope_scaling": LLAMA3 | {key: None}}, ImageError, f"lacks {key}")
          for key in ("factor", "low_freq_factor", "high_freq_factor")),
        ("llama", {"hidden_size": 10**18, "num_attention_heads": 1}, ImageError, "heads of 10{18} values"),
        ("llama", {"head_dim": 65_538}, ImageError, "heads of 65538 values; correct it, at most 65536"),
        ("llama", {"hidden_size": 2**63}, ImageError, "positive integer of 64 bits"),
        ("llama", {"hidden_size": 10**400}, ImageError, "positive integer of 64 bits"),
        ("llama", {"rms_norm_eps": 10**400}, ImageError, "number above 0 within float32"),
        ("llama", {"rms_norm_eps": 1e39}, ImageError, "number above 0 within float32"),
        ("llama", {"rms_norm_eps": 0}, ImageError, "number above 0 within float32"),
        ("llama", {"rms_norm_eps": float("nan")}, ImageError, "NaN is no JSON"),
        ("llama", {"num_hidden_layers": "2"}, ImageError, "num_hidden_layers '2'; it must be a pos"),
        ("llama", {"num_hidden_layers": True}, ImageError, "layers True; it must be a positive"),
        ("llama", {"attention_bias": 1}, ImageError, "attention_bias 1; it must be true or false"),
        ("llama", {"rms_norm_eps": True}, ImageError, "rms_norm_eps True; it must be a number"),
        ("llama", {"hidden_act": ["relu"]}, ImageError, r"hidden_act \['relu'\]; it must be a name"),
    ],
)  # fmt: skip
def test_what_no_model_of_the_family_has(family, changes, error, text):
    with pytest.raises(error, match=text) as caught:
        config_of(family, **changes)
    assert "\n" not in str(caught.value)


numbers = st.integers() | st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**63, 10**400]) | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(["relu", "fatrelu", "yarn"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def damaged(draw):
    """A config.json of some family, as it should be but for one value, of rope_parameters perhaps."""
    family = draw(st.sampled_from(list(FAMILIES)))
    values = {"model_type": family} | NEEDED[family]
    if draw(st.booleans()):
        values |= OPTIONAL[family]
    changed = {"rope_parameters": ROPE | {"rope_type": draw(st.sampled_from(["yarn", "llama3", "linear"]))}}
    if draw(st.booleans()):
        rope = changed["rope_parameters"]
        rope[draw(st.sampled_from(list(rope)))] = draw(json_values)
    else:
        changed = {draw(st.sampled_from([*values, *OPTIONAL[family]])): draw(json_values)}
    return values | changed


@given(damaged())
@example({"model_type": "llama"} | NEEDED["llama"] | {"rope_theta": 1.0000000000000002, "rope_scaling": ROPE})
@example({"model_type": "llama"} | NEEDED["llama"] | {"rope_scaling": ROPE | {"beta_slow": 1e-38}})
@example({"model_type": "llama"} | NEEDED["llama"] | {"rope_scaling": ROPE | {"factor": 1e-38}})
def test_a_damaged_config_opens_or_is_refused_in_one_sentence(values):
    refusal = None
    try:
        config = parse_config(json.dumps(values))
    except FlashrefError as error:  # and no other
        refusal = str(error)
    if refusal is None:
        assert config.family == values["model_type"] and next(tensor_shapes(config)).shape
        rotary = getattr(config.own, "rotary", None)
        assert rotary is None or np.isfinite([*rotary.frequencies, rotary.scale]).all()
    else:
        assert refusal.startswith("config.json") and "\n" not in refusal


def test_a_persimmon_has_a_key_head_for_each_head_whatever_else_is_said():
    values = next(values for values in PUBLISHED.values() if values["model_type"] == "persimmon")
    plain = parse_config(json.dumps(values))
    assert plain.key_heads == plain.heads > 2
    assert parse_config(json.dumps(values | {"num_key_value_heads": 2})) == plain
