"""Splits a text into three parts without common passages: to fit on, to choose on, to judge on."""

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
Range = tuple[int, int]  # a stretch of a text: the tokens from the first number up to, not with, the second

LONGEST = 512  # the most tokens of a chunk


class Text(NamedTuple):
    """A text as token ids, and the SHA-256 of its UTF-8 bytes."""

    ids: Tokens
    sha256: str


class TextParts(NamedTuple):
    """The parts of a text, (chunks, length) ids each; the model reads each chunk as a text of its own."""

    fit: Tokens
    choose: Tokens
    judge: Tokens


class PartRanges(NamedTuple):
    """Where the three parts lie in a text; each may consist of several stretches."""

    fit: tuple[Range, ...]
    choose: tuple[Range, ...]
    judge: tuple[Range, ...]


def open_text(path: Path, checkpoint: Checkpoint) -> Text:
    """Read a text and turn it into the model's tokens.

    Args:
        path: a text file in UTF-8.
        checkpoint: the model, whose tokenizer is used.

    Returns:
        The text.

    Raises:
        DomainError: the file cannot be read as UTF-8, or the tokenizer gives an id beyond the vocabulary.
    """
    vocabulary = checkpoint.config.vocabulary
    text = read_text(path)
    ids = np.array(open_tokenizer(checkpoint.directory, vocabulary).encode(text), np.int32)
    if len(ids) and int(ids.max()) >= vocabulary:
        raise DomainError(
            f"{path}: the tokenizer gives token {ids.max()}, but the model's vocabulary has {vocabulary} "
            "tokens; take the tokenizer.json of this model"
        )
    return Text(ids, sha256(text.encode()).hexdigest())


def chunk_length(checkpoint: Checkpoint) -> int:
    """The length of the chunks that a text is cut into.

    Args:
        checkpoint: the model.

    Returns:
        Tokens: the model's context, but at most 512.
    """
    return min(checkpoint.config.context, LONGEST)


def split_ranges(tokens: int, length: int) -> PartRanges:
    """Split a text into whole chunks: eight tenths to fit on, the ninth to choose on, the last to judge on.

    Args:
        tokens: the length of the text.
        length: the length of a chunk, in tokens.

    Returns:
        The three parts.

    Raises:
        DomainError: the text has fewer than three chunks, or a chunk is too short to predict a token in it.
    """
    if length < 2:
        raise DomainError(
            f"a context of {length} token has no next token to predict; take a model with a longer context"
        )
    count = tokens // length
    if count < 3:
        raise DomainError(
            f"a text of {tokens:,} tokens is too short: fitting, choosing and judging take a chunk of "
            f"{length} tokens each; give a text of at least {3 * length:,} tokens"
        )
    tenth = max(count // 10, 1)
    first, second, end = (count - 2 * tenth) * length, (count - tenth) * length, count * length
    return PartRanges(((0, first),), ((first, second),), ((second, end),))


def cut_chunks(ids: Tokens, ranges: Sequence[Range], length: int) -> Tokens:
    """Cut stretches of a text into chunks, one after the other.

    Args:
        ids: the text's token ids.
        ranges: the stretches, which are joined before they are cut.
        length: the length of a chunk, in tokens.

    Returns:
        (chunks, length) token ids; a rest shorter than a chunk is dropped.
    """
    piece = np.concatenate([ids[:0], *(ids[first:end] for first, end in ranges)])
    count = len(piece) // length
    return piece[: count * length].reshape(count, length)


def cut_parts(ids: Tokens, ranges: PartRanges, length: int) -> TextParts:
    """Cut the three parts into chunks, and drop every chunk that occurs anywhere in an earlier part.

    Args:
        ids: the text's token ids.
        ranges: where the three parts lie.
        length: the length of a chunk, in tokens.

    Returns:
        The three parts.

    Raises:
        DomainError: no chunk of a part is left.
    """
    fit, choose, judge = (cut_chunks(ids, part, length) for part in ranges)
    pieces = [[ids[first:end] for first, end in part] for part in ranges[:2]]
    choose = _without(choose, pieces[0])
    judge = _without(judge, [*pieces[0], *pieces[1]])
    for part, name in ((choose, "choose"), (judge, "judge")):
        if not len(part):
            raise DomainError(
                f"no part of the text is left to {name} on: every passage of that part also occurs in an "
                "earlier part; give a longer text that does not repeat itself"
            )
    return TextParts(fit, choose, judge)


def unseen_chunks(ids: Tokens, sha256: str, origin: Origin | None, length: int) -> tuple[Tokens, str]:
    """The chunks of a text on which predictors may be judged.

    In the text that the predictors were fitted on, these are the chunks that were kept for judging; in any
    other text, all chunks.

    Args:
        ids, sha256: the text's token ids and SHA-256.
        origin: the texts that the predictors were fitted on, or None if their file does not say.
        length: the length of a chunk, in tokens.

    Returns:
        The chunks, and a phrase that describes them, with {} in place of the text's name.

    Raises:
        DomainError: all of the text was fitted or chosen on, or the text is shorter than a chunk.
    """
    if origin is not None and sha256 == origin.judge.sha256:
        if origin.fit.sha256 == origin.choose.sha256 == sha256:
            ranges = PartRanges(origin.fit.ranges, origin.choose.ranges, origin.judge.ranges)
            chunks = cut_parts(ids, ranges, length).judge
        else:
            chunks = cut_chunks(ids, origin.judge.ranges, length)
        return _some(chunks), "the part of {} that nothing was fitted or chosen on"
    if origin is not None and sha256 in (origin.fit.sha256, origin.choose.sha256):
        raise DomainError(
            "these predictors were fitted on this text, or their thresholds were chosen on it; "
            "judge them on another text"
        )
    chunks = _some(cut_chunks(ids, ((0, len(ids)),), length))
    if origin is None:
        return chunks, "{}; the predictors' file does not say which text they were fitted on"
    return chunks, "{}, another text than they were fitted on (common passages were not looked for)"


def some_chunks(chunks: Tokens, most: int, seed: int) -> Tokens:
    """Draw some of the chunks at random, and keep their order.

    Args:
        chunks: (chunks, length) token ids.
        most: the most chunks to draw; at least one is drawn.
        seed: decides which chunks are drawn.

    Returns:
        The chunks that were drawn.
    """
    chosen = np.random.default_rng(seed).permutation(len(chunks))[: max(most, 1)]
    return chunks[np.sort(chosen)]


def _some(chunks: Tokens) -> Tokens:
    """The chunks themselves, or DomainError if there is none."""
    if not len(chunks):
        raise DomainError(
            f"the text is too short; judging takes at least one chunk of {chunks.shape[1]} tokens"
        )
    return chunks


def _without(chunks: Tokens, pieces: Sequence[Tokens]) -> Tokens:
    """The chunks that occur nowhere in these pieces of text."""
    length = chunks.shape[1]
    known = [_hashes(piece, length) for piece in pieces if len(piece) >= length]
    found = [_hashes(chunk, length) for chunk in chunks]
    nothing = np.empty(0, np.uint64)
    return chunks[~np.isin(np.concatenate([nothing, *found]), np.concatenate([nothing, *known]))]


def _hashes(ids: Tokens, length: int) -> npt.NDArray[np.uint64]:
    """A polynomial hash, modulo 2^64, of each passage of this length; equal passages have equal hashes.

    If two different passages had the same hash, a chunk would be dropped needlessly, and nothing worse.
    """
    powers = np.cumprod(np.full(len(ids), 0x9E3779B97F4A7C15, np.uint64))
    sums = np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * powers)
    sums = np.concatenate([np.zeros(1, np.uint64), sums])
    count = len(ids) - length + 1
    # Divided by the power of its first token, a passage has the same hash wherever it stands.
    inverse = np.cumprod(np.full(count, pow(0x9E3779B97F4A7C15, -1, 1 << 64), np.uint64))
    hashes: npt.NDArray[np.uint64] = (sums[length:] - sums[:count]) * inverse
    return hashes
