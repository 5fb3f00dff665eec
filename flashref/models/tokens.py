"""Text and token ids: by a model's tokenizer.json (extra `hf`), or a byte a token where it has none."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flashref.types import DomainError, ImageError, MissingExtra

TOKENIZER = "tokenizer.json"
BYTES = 256  # a vocabulary up to this, without a tokenizer.json, is bytes


class Tokenizer(NamedTuple):
    """Text to token ids, with what the model expects at its start, and token ids to text."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def open_tokenizer(folder: str | os.PathLike[str], vocabulary: int) -> Tokenizer:
    """The tokenizer of a checkpoint's directory: its tokenizer.json, or bytes if that fits the vocabulary.

    Raises DomainError if there is neither, MissingExtra if there is no library to read it with, ImageError
    for a tokenizer.json that is damaged or has more ids than the model.
    """
    path = Path(folder) / TOKENIZER
    if path.exists():
        return _from_json(path, vocabulary)
    if vocabulary > BYTES:
        raise DomainError(
            f"{folder}: has a vocabulary of {vocabulary} and no {TOKENIZER}; add it (in transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
        )
    return Tokenizer(encode_bytes, decode_bytes)


def written_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text of new ids, as it goes on where the prompt ends."""
    prompt, whole = (tokenizer.decode(ids) for ids in (prompt_ids, [*prompt_ids, *new_ids]))
    # What begins a text may look otherwise than what goes on: some tokenizers drop a first space.
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new_ids)


def text_pieces(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Iterable[int]) -> Iterator[str]:
    """The text of new ids piece by piece, as they come; the pieces together are `written_text`.

    A character whose bytes are not all there waits until they are.
    """
    ids: list[int] = []
    shown = ""
    for token_id in new_ids:
        ids.append(token_id)
        settled = written_text(tokenizer, prompt_ids, ids).rstrip("\ufffd")
        if len(settled) > len(shown) and settled.startswith(shown):
            yield settled[len(shown) :]
            shown = settled
    if rest := written_text(tokenizer, prompt_ids, ids)[len(shown) :]:
        yield rest


def encode_bytes(text: str) -> list[int]:
    """A text's UTF-8 bytes as token ids; bytes that a shell passed on undecoded come back as they were."""
    try:
        return list(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise DomainError(
            f"the text cannot be written as UTF-8 ({error.reason}); remove lone surrogates"
        ) from None


def decode_bytes(ids: Sequence[int]) -> str:
    """The text of byte-level token ids, with U+FFFD where they are not UTF-8. Raises DomainError."""
    for token_id in ids:
        if not 0 <= token_id < 256:
            raise DomainError(f"token id {token_id} is no byte; byte-level text needs 0 … 255")
    return bytes(ids).decode("utf-8", "replace")


def read_text(path: str | os.PathLike[str]) -> str:
    """A file of UTF-8, every byte of it. Raises ImageError if it is missing, empty or something else."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not content:
        raise ImageError(f"{path}: is empty; give a text")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ImageError(
            f"{path}: is not UTF-8 at byte {error.start} ({error.reason}); convert it to UTF-8"
        ) from None


def _from_json(path: Path, vocabulary: int) -> Tokenizer:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra(f"{path}: needs the package tokenizers", "hf") from None
    text = read_text(path)
    try:
        known = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library has no narrower one
        raise ImageError(f"{path}: is no tokenizer ({error}); get the file again") from None
    # What the file says of batches is not for one text, and transformers ignores it too.
    known.no_truncation()
    known.no_padding()
    added = known.encode("").ids  # by the post-processor, which has ids of its own
    largest = max([*known.get_vocab(with_added_tokens=True).values(), *added], default=-1)
    if not 0 <= largest < vocabulary:
        raise ImageError(
            f"{path}: has ids up to {largest}, but the model's vocabulary is {vocabulary}; "
            "give the tokenizer of this model"
        )

    def encode(text: str) -> list[int]:
        # Bytes that a shell passed on undecoded are none of a tokenizer's characters.
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DomainError(
                f"the text cannot be written as UTF-8 ({error.reason}); give the prompt in UTF-8"
            ) from None
        return list(known.encode(text).ids)

    def decode(ids: Sequence[int]) -> str:
        return str(known.decode(list(ids), skip_special_tokens=False))

    return Tokenizer(encode, decode)
