"""One text in three parts that share nothing: to fit on, to choose on, to judge on."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.models.checkpoint import Checkpoint
from flashref.models.origin import Origin
from flashref.models.tokens import open_tokenizer, read_text
from flashref.types import DomainError

Tokens = npt.NDArray[np.int32]
Range = tuple[int, int]  # of token ids, [first, end)

LONGEST = 512  # tokens of a chunk, where the context is longer


class Text(NamedTuple):
    """A text as the model has it, and the SHA-256 of its UTF-8."""

    ids: Tokens
    sha256: str


class Parts(NamedTuple):
    """Three texts in chunks, (chunks, length) each; a chunk is seen by the model on its own."""

    fit: Tokens
    choose: Tokens
    judge: Tokens


class Ranges(NamedTuple):
    """Where the three parts lie in a text; each may be of several pieces."""

    fit: tuple[Range, ...]
    choose: tuple[Range, ...]
    judge: tuple[Range, ...]


def open_text(path: Path, checkpoint: Checkpoint) -> Text:
    """A text in the model's tokens.

    Args:
        path: of a file in UTF-8.
        checkpoint: of the model, whose tokenizer is used.

    Raises:
        DomainError: the file is no such text, or has a token that the model does not have.
    """
    vocabulary = checkpoint.config.vocabulary
    text = read_text(path)
    ids = np.array(open_tokenizer(checkpoint.directory, vocabulary).encode(text), np.int32)
    if len(ids) and int(ids.max()) >= vocabulary:
        raise DomainError(f"{path}: has token {ids.max()}, outside the model's vocabulary of {vocabulary}")
    return Text(ids, sha256(text.encode()).hexdigest())


def chunk_length(checkpoint: Checkpoint) -> int:
    """Tokens of a chunk: the model's context, and at most 512."""
    return min(checkpoint.config.context, LONGEST)


def split_ranges(tokens: int, length: int) -> Ranges:
    """Whole chunks: the last tenth of a text to judge on, the one before to choose on, the rest to fit on.

    Args:
        tokens: of the text.
        length: tokens of a chunk.

    Raises:
        DomainError: the text has fewer than three chunks, or a chunk has nothing to foresee.
    """
    if length < 2:
        raise DomainError(f"a context of {length} token foresees none; take a model with a longer one")
    count = tokens // length
    if count < 3:
        raise DomainError(
            f"a text of {tokens} tokens is too short: to fit, to choose and to judge takes three chunks of "
            f"{length}; give {3 * length} tokens or more"
        )
    tenth = max(count // 10, 1)
    first, second, end = (count - 2 * tenth) * length, (count - tenth) * length, count * length
    return Ranges(((0, first),), ((first, second),), ((second, end),))


def cut_chunks(ids: Tokens, ranges: Sequence[Range], length: int) -> Tokens:
    """Non-overlapping chunks of these pieces one after the other; a shorter rest is dropped."""
    piece = np.concatenate([ids[:0], *(ids[first:end] for first, end in ranges)])
    count = len(piece) // length
    return piece[: count * length].reshape(count, length)


def cut_parts(ids: Tokens, ranges: Ranges, length: int) -> Parts:
    """The three parts in chunks, without the chunks that occur, at any place, in a part before their own.

    Args:
        ids: of the text.
        ranges: the three parts of the text.
        length: tokens of a chunk.

    Raises:
        DomainError: nothing is left of a part.
    """
    fit, choose, judge = (cut_chunks(ids, part, length) for part in ranges)
    pieces = [[ids[first:end] for first, end in part] for part in ranges[:2]]
    choose = _without(choose, pieces[0])
    judge = _without(judge, [*pieces[0], *pieces[1]])
    for part, name in ((choose, "choose"), (judge, "judge")):
        if not len(part):
            raise DomainError(
                f"nothing is left of the part of the text to {name} on: every passage is in an earlier part "
                "too, or there is none; give a longer text that does not repeat itself"
            )
    return Parts(fit, choose, judge)


def unseen_chunks(ids: Tokens, sha256: str, origin: Origin | None, length: int) -> tuple[Tokens, str]:
    """The chunks of a text that predictors may be judged on.

    Of a text that the predictors were made of, it is the part that was kept for this; of any other, all.

    Args:
        ids, sha256: of the text.
        origin: what the predictors were made of, or None if their file does not say.
        length: tokens of a chunk.

    Returns:
        The chunks, and a phrase that says what they are, with {} in place of the text's name.

    Raises:
        DomainError: the text was fitted or chosen on, or does not hold a whole chunk.
    """
    if origin is not None and sha256 == origin.judge.sha256:
        if origin.fit.sha256 == origin.choose.sha256 == sha256:
            ranges = Ranges(origin.fit.ranges, origin.choose.ranges, origin.judge.ranges)
            chunks = cut_parts(ids, ranges, length).judge
        else:
            chunks = cut_chunks(ids, origin.judge.ranges, length)
        return _some(chunks), "the part of {} that nothing was fitted or chosen on"
    if origin is not None and sha256 in (origin.fit.sha256, origin.choose.sha256):
        raise DomainError("the predictors were fitted on this text, or chosen on it; judge them on another")
    chunks = _some(cut_chunks(ids, ((0, len(ids)),), length))
    if origin is None:
        return chunks, "{}; the predictors do not say what they were fitted on"
    return chunks, "{}, another text than they were fitted on; passages of both are not known"


def some_chunks(chunks: Tokens, most: int, seed: int) -> Tokens:
    """At most so many of the chunks (and at least one), drawn evenly and kept in order."""
    chosen = np.random.default_rng(seed).permutation(len(chunks))[: max(most, 1)]
    return chunks[np.sort(chosen)]


def _some(chunks: Tokens) -> Tokens:
    """The chunks; DomainError if there is none."""
    if not len(chunks):
        raise DomainError(f"the text is too short: judging takes a chunk of {chunks.shape[1]} tokens")
    return chunks


def _without(chunks: Tokens, pieces: Sequence[Tokens]) -> Tokens:
    """The chunks that occur nowhere in these pieces."""
    length = chunks.shape[1]
    known = [_hashes(piece, length) for piece in pieces if len(piece) >= length]
    found = [_hashes(chunk, length) for chunk in chunks]
    nothing = np.empty(0, np.uint64)
    return chunks[~np.isin(np.concatenate([nothing, *found]), np.concatenate([nothing, *known]))]


def _hashes(ids: Tokens, length: int) -> npt.NDArray[np.uint64]:
    """A hash of the tokens at every place, polynomial modulo 2^64; equal tokens have equal hashes.

    Two different passages of one hash would cost a chunk, no more.
    """
    powers = np.cumprod(np.full(len(ids), 0x9E3779B97F4A7C15, np.uint64))
    sums = np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * powers)
    sums = np.concatenate([np.zeros(1, np.uint64), sums])
    count = len(ids) - length + 1
    # Brought to one power, so that a passage has the same hash wherever it stands.
    inverse = np.cumprod(np.full(count, pow(0x9E3779B97F4A7C15, -1, 1 << 64), np.uint64))
    hashes: npt.NDArray[np.uint64] = (sums[length:] - sums[:count]) * inverse
    return hashes
