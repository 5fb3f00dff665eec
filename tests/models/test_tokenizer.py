"""Text to token ids and back: as transformers does it, and one sentence for everything that cannot be."""

import json
import sys

import pytest
from random_models import write_tokenizer

from flashref.models.tokens import open_tokenizer, read_text
from flashref.types import DomainError, ImageError, MissingExtra

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra hf, test)")

TEXTS = ["In the beginning", " spaces  and\n\ttabs ", "é☃ \U0001f600 \0", "<s> is no text</s>", ""]


def test_bytes_are_the_tokens_of_a_small_vocabulary_without_tokenizer(tmp_path):
    tokenizer = open_tokenizer(tmp_path, 256)
    assert tokenizer.encode("é!") == [195, 169, 33] and tokenizer.decode([195, 169, 33]) == "é!"


def test_a_tokenizer_comes_before_bytes(tmp_path):
    vocabulary = {"<s>": 0, "a": 1, "b": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<s>"}
    write_tokenizer(tmp_path, model=model, pre_tokenizer={"type": "Whitespace"}, post_processor=None)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(json.loads((tmp_path / "tokenizer.json").read_text()) | {"added_tokens": []})
    )
    assert open_tokenizer(tmp_path, 3).encode("b a b") == [2, 1, 2]


def test_special_tokens_are_added_and_what_the_file_says_of_batches_is_not(tmp_path):
    write_tokenizer(
        tmp_path,
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 40},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "</s>",
        },
    )
    tokenizer = open_tokenizer(tmp_path, 280)
    ids = tokenizer.encode("In the beginning was")
    assert ids[0] == 0 and len(ids) > 3 and 1 not in ids
    assert tokenizer.decode(ids) == "<s>In the beginning was"
    assert tokenizer.decode(ids[1:]) == "In the beginning was"


@pytest.mark.parametrize("template", ["<s> $A", "$A", "<s> $A </s>"])
def test_ids_and_text_are_those_of_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")
    write_tokenizer(tmp_path, template=template)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path, 280)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"] and ids[:1] == ([0] if template[0] == "<" else ids[:1])
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode([5, 279, 7]) == theirs.decode([5, 279, 7])


def test_a_vocabulary_without_tokenizer_says_what_is_missing(tmp_path):
    with pytest.raises(DomainError) as caught:
        open_tokenizer(tmp_path, 257)
    text = str(caught.value)
    assert f"{tmp_path}: has a vocabulary of 257 and no tokenizer.json; add it" in text


def test_a_tokenizer_without_the_library_names_the_extra(tmp_path, monkeypatch):
    write_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"; install flashref with its `hf` extra$"):
        open_tokenizer(tmp_path, 280)


def added(number):
    return {"id": number, "content": "<x>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path):
    size = write_tokenizer(tmp_path).get_vocab_size()
    open_tokenizer(tmp_path, size)
    with pytest.raises(
        ImageError, match=f"has ids up to {size - 1}, but the model's vocabulary is {size - 1}"
    ):
        open_tokenizer(tmp_path, size - 1)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    # Tokens that were added behind the vocabulary count, and what the template puts around a text.
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(values | {"added_tokens": [*values["added_tokens"], added(size)]})
    )
    open_tokenizer(tmp_path, size + 1)
    with pytest.raises(ImageError, match=f"has ids up to {size}, but"):
        open_tokenizer(tmp_path, size)
    values["post_processor"]["special_tokens"]["<s>"]["ids"] = [size + 7]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ImageError, match=f"has ids up to {size + 7}, but"):
        open_tokenizer(tmp_path, size + 7)


@pytest.mark.parametrize("damage", ["cut", "no model", "unknown merge", "nothing", "bytes", "no tokens"])
def test_a_damaged_tokenizer_is_refused_in_one_sentence(tmp_path, damage):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    text = path.read_text()
    values = json.loads(text)
    if damage == "no model":
        del values["model"]
    if damage == "unknown merge":
        values["model"]["merges"].append(["zzz", "yyy"])
    if damage == "no tokens":
        values = values | {"added_tokens": [], "post_processor": None}
        values["model"] |= {"vocab": {}, "merges": []}
    path.write_text({"cut": text[:999], "nothing": ""}.get(damage, json.dumps(values)))
    if damage == "bytes":
        path.write_bytes(b"\xff{}")
    with pytest.raises(ImageError) as caught:
        open_tokenizer(tmp_path, 280)
    assert str(path) in str(caught.value) and ";" in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_that_is_no_unicode_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(DomainError, match="cannot be written as UTF-8"):
        open_tokenizer(tmp_path, 280).encode("a\udcff")


def test_a_text_is_every_byte_of_its_file(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a\r\né\n".encode())
    assert read_text(path) == "a\r\né\n"


def test_a_text_that_is_none_says_where(tmp_path):
    path = tmp_path / "text"
    with pytest.raises(
        ImageError, match=r"text: cannot be read \(No such file or directory\); check the path"
    ):
        read_text(path)
    with pytest.raises(ImageError, match="cannot be read"):
        read_text(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="text: is empty; give a text"):
        read_text(path)
    path.write_bytes(b"abc\xc3\xa9\xff!")
    with pytest.raises(ImageError, match=r"text: is not UTF-8 at byte 5 \(invalid start byte\); convert it"):
        read_text(path)
