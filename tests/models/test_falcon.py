"""What only a Falcon has: ALiBi's slopes and biases, and what holds if its config says nothing."""

import math
from fractions import Fraction

import mpmath
import pytest
from family_configs import config_of

from flashref.models.families.falcon import alibi


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


def test_what_a_falcon_has_if_its_config_says_nothing():
    assert config_of("falcon", new_decoder_architecture=True).key_heads == 3
    assert config_of("falcon", multi_query=False).key_heads == 3
    assert config_of("falcon", hidden_size=None, n_embed=12) == config_of("falcon")
    config = config_of("falcon")
    assert (config.context, config.neurons, config.key_heads, config.activation) == (2048, 48, 1, "gelu_erf")
