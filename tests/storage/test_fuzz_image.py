"""Edited images: each opens as what it says, to the safetensors library too, or is refused in a sentence."""

import json
import sys
import zlib

import pytest
import safetensors
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from image_edits import CONSTANT, check, edited, joined, make_seeds, opening_peak, padded, parts

from flashref.storage.container import (
    PARSED_BYTES,
    SPARE_BYTES,
    encode_header,
    read_container,
    tensor_bytes,
)
from flashref.storage.image import open_image
from flashref.types import ImageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("edited")


@pytest.fixture(scope="module")
def seeds(folder):
    return make_seeds(folder)


def test_what_is_not_edited_can_be_opened(folder, seeds):
    for seed in seeds:
        assert check(folder / "edited", seed.raw, False, seed)


@pytest.mark.req("IMG-1", "IMG-14", "IMG-15")
@settings(max_examples=10 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_an_edited_image_is_what_it_says_or_is_refused(folder, seeds, data):
    def choose(n):
        return data.draw(st.integers(0, n - 1))

    seed, path = seeds[choose(2)], folder / "edited"
    raw, mended = edited(seed, choose)
    event("opened" if check(path, raw, mended, seed) else "refused")
    assert opening_peak(path) <= len(raw) + CONSTANT


@pytest.mark.req("IMG-1", "IMG-15")
@settings(max_examples=5 * settings.default.max_examples)
@given(st.randoms(use_true_random=True))
def test_edits_at_random_are_no_better(folder, seeds, random):
    # Hypothesis likes small numbers, which are choices of a few places; here all are equally likely.
    seed = seeds[random.randrange(2)]
    check(folder / "edited", *edited(seed, random.randrange), seed)


def in_file(folder, text, data=b""):
    path = folder / "header"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


# What nests in what, so that whoever prints, compares or walks it may run out of stack.
NESTED = {
    "shape": b'{"a":{"dtype":"U8","shape":%s,"data_offsets":[0,0]}}',
    "dtype": b'{"a":{"dtype":%s,"shape":[0],"data_offsets":[0,0]}}',
    "entry": b'{"a":%s}',
    "metadata": b'{"__metadata__":%s}',
}


@pytest.mark.parametrize("place", NESTED)
def test_no_depth_of_nesting_is_too_much(folder, place):
    limit = sys.getrecursionlimit()
    for depth in (1, 70, *range(limit - 120, limit + 10, 3), 100_000):
        for opening, closing in ((b"[", b"]"), (b'{"b":', b"}")):
            inner = b"0" if opening != b"[" else b""
            text = NESTED[place] % (opening * depth + inner + closing * depth)
            with pytest.raises(ImageError) as told:
                read_container(in_file(folder, text))
            assert len(str(told.value)) < len(str(folder)) + 400


def rewritten(seed, change, more=0):
    """The image with its header changed, all checksums right, and some zeros behind it."""
    text, data = parts(seed)
    header = json.loads(text)
    change(header)
    return joined(seed, padded(json.dumps(header, separators=(",", ":")).encode()), data + bytes(more))


def with_record(seed, old, new):
    """The image with something else in the record of its bundles."""

    def change(header):
        bundles = header["__metadata__"]["bundles"]
        assert bundles.count(old) == 1
        header["__metadata__"]["bundles"] = bundles.replace(old, new)

    return rewritten(seed, change)


RECORDS = {"fields": '["up","down"]', "order": "[2,0,1]", "d": "1", "layer": "0", "stride": "4"}


@pytest.mark.req("IMG-15")
@pytest.mark.parametrize("field", RECORDS)
def test_no_depth_of_nesting_in_a_record_is_too_much(folder, seeds, field):
    limit, path = sys.getrecursionlimit(), folder / "deep"
    for depth in (1, 70, *range(limit - 120, limit + 10, 3)):
        new = f'"{field}":{"[" * depth}{"]" * depth}'
        path.write_bytes(with_record(seeds[0], f'"{field}":{RECORDS[field]}', new))
        with pytest.raises(ImageError, match="metadata do not describe its tensors"):
            open_image(path)


RECORD = '{"layer":0,"fields":["up","down"],"d":1,"stride":4,"order":[2,0,1]}'
FOREIGN = {
    "a layer that is true": ('"layer":0', '"layer":false'),
    "a d that is true": ('"d":1', '"d":true'),
    "an order with true in it": ('"order":[2,0,1]', '"order":[2,0,true]'),
    "a word more": ('"layer":0', '"layer":0,"rank":3'),
    "a word less": (',"order":[2,0,1]', ""),
    "no record": (RECORD, "[0]"),
    "no fields": ('"fields":["up","down"]', '"fields":[]'),
    "fields that are one word": ('"fields":["up","down"]', '"fields":"up"'),
    "nothing said of the bundles": (f'"layers.0.bundles":{RECORD}', ""),
    "a key of a thousand signs": ('"layers.0.bundles"', f'"{"x" * 1000}"'),
    "a key of two lines": ('"layers.0.bundles"', '"x\\ny"'),
}


@pytest.mark.req("IMG-15")
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_record_that_is_not_what_packing_writes_is_refused(folder, seeds, kind):
    raw = with_record(seeds[0], *FOREIGN[kind])
    assert not check(folder / "foreign", raw, True, seeds[0])


@pytest.mark.req("IMG-15")
def test_a_layer_that_is_no_number_is_refused_whatever_its_tensors_are_called(folder, seeds):
    def renamed(header):
        for end in ("", ".crc32"):
            header[f"layers.True.bundles{end}"] = header.pop(f"layers.0.bundles{end}")
        bundles = (
            header["__metadata__"]["bundles"].replace("layers.0", "layers.True").replace('r":0', 'r":true')
        )
        header["__metadata__"]["bundles"] = bundles

    (folder / "true").write_bytes(rewritten(seeds[0], renamed))
    with pytest.raises(ImageError, match="has a layer, d or order that is not a whole number"):
        open_image(folder / "true")


def in_metadata(key, word):
    return lambda header: header["__metadata__"].update({key: word})


WORDS = {
    "bundled": ("maybe", "True", "", "1", "null"),
    "block": ("+512", " 512", "512 ", "5_12", "0512", "512.0", "\u0665\u0661\u0662", "256", "-512", "0", ""),
}


@pytest.mark.req("IMG-15")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("key", WORDS)
def test_a_word_that_packing_does_not_write_is_refused(folder, seeds, seed, key):
    path = folder / "word"
    for word in WORDS[key]:
        path.write_bytes(rewritten(seeds[seed], in_metadata(key, word)))
        with pytest.raises(ImageError, match="metadata do not describe its tensors"):
            open_image(path)


@pytest.mark.req("IMG-15")
def test_a_block_that_is_no_power_of_two_is_refused_even_without_bundles(folder):
    # Everything lies on blocks of 1536, for there is one tensor and the file has 3 · 512 · 2 bytes.
    metadata = {
        "format": "flashref-image",
        "version": "1",
        "block": "1536",
        "bundled": "true",
        "bundles": "{}",
    }
    header = encode_header({"crc32": ("U32", (384,))}, metadata | {"fingerprint": "", "config": ""}, 1536)
    path = folder / "thrice"
    path.write_bytes(header + zlib.crc32(header).to_bytes(4, "little") + bytes(1532))
    assert path.stat().st_size == 3072
    with pytest.raises(ImageError, match="does not start on a block of '1536' bytes"):
        open_image(path)


def by_hand(folder, tensors, entries=128):
    """An image without bundles, of zeros: its table of checksums holds the header's, and zeros."""
    metadata = {"format": "flashref-image", "version": "1", "block": "512", "bundled": "true"}
    metadata |= {"bundles": "{}", "fingerprint": "", "config": ""}
    header = encode_header(tensors | {"crc32": ("U32", (entries,))}, metadata, 512)
    path, data = folder / "by hand", bytes(sum(tensor_bytes(*tensor) for tensor in tensors.values()))
    path.write_bytes(header + data + zlib.crc32(header).to_bytes(4 * entries, "little"))
    return path


@pytest.mark.req("IMG-15")
def test_more_tensors_than_checksums_are_refused(folder):
    empty = {f"e{i}": ("U8", (0,)) for i in range(128)}  # the CRC-32 of no bytes is 0
    with pytest.raises(ImageError, match="the tensor 'e127' does not match its checksum"):
        open_image(by_hand(folder, empty))
    del empty["e127"]
    assert len(open_image(by_hand(folder, empty)).resident) == 127
    path = by_hand(folder, {}, entries=1)
    path.write_bytes(
        path.read_bytes()[:-4].replace(
            b'"shape":[1],"data_offsets":[0,4]', b'"shape":[0],"data_offsets":[0,0]'
        )
    )
    with pytest.raises(ImageError, match="its header does not match its checksum"):
        open_image(path)


def test_a_long_name_does_not_make_a_long_message(folder):
    with pytest.raises(ImageError, match=r"'xxx.*x' does not match its checksum") as told:
        open_image(by_hand(folder, {"x" * 1000: ("U8", (512,))}))
    assert len(str(told.value)) < len(str(folder)) + 300
    wide = json.dumps([[["y" * 30] * 6] * 6] * 6)
    with pytest.raises(ImageError, match="impossible shape") as told:
        read_container(in_file(folder, NESTED["shape"] % wide.encode()))
    assert len(str(told.value)) < len(str(folder)) + 300


@pytest.mark.parametrize("text", [b'{"__metadata__":{"a":"\\ud800"}}', b'{"__metadata__":{"\\udfff":"a"}}'])
def test_half_a_character_in_the_metadata_is_refused_here_as_there(folder, text):
    path = in_file(folder, text)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(path.read_bytes())
    with pytest.raises(ImageError, match="metadata are not Unicode strings"):
        read_container(path)


# Memory and work


@pytest.mark.req("IMG-14")
def test_a_table_of_checksums_is_held_once(folder, seeds):
    path, more = folder / "table", 8 << 20

    def longer(header):
        table = header["crc32"]
        table["shape"][0] += more // 4
        table["data_offsets"][1] += more

    path.write_bytes(rewritten(seeds[0], longer, more))
    assert open_image(path).resident
    assert opening_peak(path) < path.stat().st_size + CONSTANT


MANY = 2000
NOTHING = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
LARGE_HEADERS = {
    "empty lists": b'{"a":[%s]}' % b",".join([b"[]"] * MANY),
    "empty objects": b'{"a":[%s]}' % b",".join([b"{}"] * MANY),
    "objects": b'{"a":[%s]}' % b",".join([b'{"a":0}'] * MANY),
    "numbers": b'{"a":[%s]}' % b",".join([b"300"] * MANY),
    "words": b'{"a":[%s]}' % b",".join([b'"bc"'] * MANY),
    "names": b"{%s}" % b",".join(b'"%x":0' % i for i in range(MANY)),
    "tensors": b"{%s}"
    % b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(MANY)),
    "one wide character": b'{"a":"%s\xf0\x9f\x98\x80"}' % (b"x" * 8 * MANY),
}


@pytest.mark.parametrize("kind", LARGE_HEADERS)
def test_a_header_takes_memory_in_proportion_to_its_bytes(folder, kind):
    # Python's objects are larger than their text: an empty object has 64 bytes and its text 3.
    text = LARGE_HEADERS[kind]
    assert opening_peak(in_file(folder, text)) < 36 * len(text) + CONSTANT


@pytest.mark.parametrize("kind", LARGE_HEADERS)
def test_a_file_that_is_all_header_is_refused_before_it_takes_more_memory_than_it_has_bytes(folder, kind):
    text, most = LARGE_HEADERS[kind], SPARE_BYTES // (PARSED_BYTES - 1)
    filled = text[:-1].ljust(most - 1) + b"}"
    opened = in_file(folder, filled)
    assert opening_peak(opened) <= opened.stat().st_size + SPARE_BYTES
    refused = in_file(folder, filled[:-1] + b" }")
    with pytest.raises(ImageError, match="more than any model needs"):
        open_image(refused)
    assert opening_peak(refused) < refused.stat().st_size + CONSTANT
    with pytest.raises(ImageError, match="leave out the orders"):
        encode_header({}, {"order": "0" * (SPARE_BYTES // (PARSED_BYTES - 1))}, 512)


def calls_of(function, *args):
    """How many functions of Python and of C are called; no clock can say so little about so much."""
    calls = 0

    def count(frame, kind, argument):
        nonlocal calls
        calls += kind in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return calls


def test_work_is_in_proportion_to_the_number_of_tensors(folder):
    def header(number):
        return in_file(folder, b"{%s}" % b",".join(b'"%x":' % i + NOTHING for i in range(number)))

    calls = [calls_of(read_container, header(number)) for number in (1000, 2000)]
    assert calls[0] < 50 * 1000 and calls[1] < 2.01 * calls[0]
