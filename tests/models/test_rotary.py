"""Rotary positions of a config.json: frequencies of every scaling, the share that is turned, the scale."""

import math

import mpmath
import numpy as np
import pytest

from flashref.models.rotary import rotary_from

U = 2.0**-24  # unit roundoff of float32


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
    assert rotary_from(values, 8, 32).scale == pytest.approx(
        expected, rel=8 * 2.0**-53
    )  # at most 8 operations
    assert rotary_from({}, 8, 32).scale == 1
