"""Chapter 96's encoding: what `to_json` writes, and that `from_json` gives it back bit for bit."""

import json

import numpy as np
import pytest

from flashref.conformance.transport.codec import CodecError, case_from_text, case_text, from_json, to_json
from flashref.conformance.transport.subject import unchanged

ENCODED = [
    (True, "true"),
    (False, "false"),
    (None, "null"),
    (7, "7"),
    (2**53, "9007199254740992"),
    (2**53 + 1, '{"integer": "9007199254740993"}'),
    (-(2**53), "-9007199254740992"),
    (np.int64(-(2**53) - 1), '{"integer": "-9007199254740993"}'),
    (0.75, '{"float": "0x1.8000000000000p-1"}'),
    (float("-inf"), '{"float": "-inf"}'),
    ([1, ["a"]], '[1, ["a"]]'),
    (np.array([1.0], "<f4"), '{"dtype": "F32", "shape": [1], "data": "AACAPw=="}'),
    (np.array([1.0], ">f4"), '{"dtype": "F32", "shape": [1], "data": "AACAPw=="}'),
    (np.array([[1], [2]], ">u2").T, '{"dtype": "BF16", "shape": [1, 2], "data": "AQACAA=="}'),
]


@pytest.mark.req("IOP-10")
@pytest.mark.parametrize(("value", "text"), ENCODED, ids=[text for _, text in ENCODED])
def test_a_value_is_written_as_the_table_says_and_read_again(value, text):
    assert json.dumps(to_json(value)) == text
    again = from_json(json.loads(text))
    if isinstance(value, np.ndarray):
        value = value.astype(value.dtype.newbyteorder("="))
    assert unchanged(value, again) if isinstance(value, np.ndarray) else again == value
    assert isinstance(again, bool) == isinstance(value, bool)


@pytest.mark.req("IOP-10")
def test_an_array_that_was_read_may_be_written_to():
    from_json({"dtype": "I64", "shape": [1], "data": "AQAAAAAAAAA="})[0] = 3


@pytest.mark.req("IOP-10")
@pytest.mark.parametrize("value", [1j, {1: 2}, np.zeros(1, np.complex64), object()])
def test_what_has_no_encoding_is_refused(value):
    with pytest.raises(CodecError, match="has no encoding"):
        to_json([value])


def test_a_case_is_copied_whole_or_refused():
    case = [np.float32([0.5]), "x", None, 2**60]
    text = case_text(case)
    assert unchanged(case_from_text(text), case)
    for wrong in (text[:-4], f"{text[:8]}!{text[8:]}", text[1:], "", "AAAA"):
        with pytest.raises(CodecError, match="is no case of the kit, or only a part of one"):
            case_from_text(wrong)
