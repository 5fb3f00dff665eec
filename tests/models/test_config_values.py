"""Values of a config.json: their bounds, null, and the first key that is given."""

import math

import pytest

from flashref.models import config_values
from flashref.types import ImageError, same


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
        assert flag(values, "a", False) is False and positive(values, "a", 0.5) == 0.5
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
    assert flag({"a": False}, "a", True) is False and flag({"a": True}, "a", False) is True
    assert flag({}, "a", True) is True


def test_null_is_no_flag_that_is_true_unless_it_is_given():
    # transformers takes null for false there, and it could as well be meant as left out.
    with pytest.raises(ImageError, match=r"config.json has a None; it must be true or false"):
        config_values.flag({"a": None}, "a", True)
