"""From text to token ids and back: by a model's tokenizer.json (extra `hf`), or one token for each byte."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flashref.types import DomainError, ImageError, MissingExtra

TOKENIZER = "tokenizer.json"
BYTES = 256  # a model with at most this vocabulary and without a tokenizer.json takes bytes


class Tokenizer(NamedTuple):
    """Two functions: from a text to token ids, with those that the model expects at its start; and back."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def open_tokenizer(folder: str | os.PathLike[str], vocabulary: int) -> Tokenizer:
    """Open the tokenizer of a checkpoint.

    Args:
        folder: the folder of the checkpoint.
        vocabulary: the number of the model's token ids.

    Returns:
        The tokenizer of its tokenizer.json; without one, bytes, if the vocabulary has at most 256 ids.

    Raises:
        DomainError: there is no tokenizer.json, and the vocabulary is larger.
        ImageError: the tokenizer.json is damaged, or has more ids than the model.
        MissingExtra: the library that reads it is not installed.
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
    """Decode new ids, as the text goes on after the prompt."""
    prompt, whole = (tokenizer.decode(ids) for ids in (prompt_ids, [*prompt_ids, *new_ids]))
    # Some tokenizers drop the first space of a text, so the new ids alone may give another text.
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new_ids)


def text_pieces(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Iterable[int]) -> Iterator[str]:
    """Decode new ids piece by piece as they come; the pieces together are `written_text`.

    A character is held back until all its bytes are there.
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
    """Turn a text into its UTF-8 bytes; bytes that the shell could not decode become themselves again."""
    try:
        return list(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise DomainError(
            f"the text cannot be written as UTF-8 ({error.reason}); remove lone surrogates"
        ) from None


def decode_bytes(ids: Sequence[int]) -> str:
    """Turn bytes into a text, with U+FFFD where they are not UTF-8; DomainError for ids beyond 255."""
    for token_id in ids:
        if not 0 <= token_id < 256:
            raise DomainError(f"token id {token_id} is not a byte; use 0 … 255")
    return bytes(ids).decode("utf-8", "replace")


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file whole; ImageError if it is missing, is empty or is not UTF-8."""
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
        raise ImageError(f"{path}: is not a tokenizer ({error}); get the file again") from None
    # The file's truncation and padding are for batches of texts; transformers ignores them too.
    known.no_truncation()
    known.no_padding()
    added = known.encode("").ids  # the post-processor may add ids that are not in the vocabulary
    largest = max([*known.get_vocab(with_added_tokens=True).values(), *added], default=-1)
    if not 0 <= largest < vocabulary:
        raise ImageError(
            f"{path}: has ids up to {largest}, but the model's vocabulary is {vocabulary}; "
            "give the tokenizer of this model"
        )

    def encode(text: str) -> list[int]:
        # Bytes that the shell could not decode are not characters, so no tokenizer knows them.
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
