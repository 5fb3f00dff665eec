"""One text in three parts that share nothing: to fit on, to choose on, to judge on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.models.origin import Origin
from flashref.types import DomainError

Tokens = npt.NDArray[np.int32]
Range = tuple[int, int]  # of token ids, [first, end)

LONGEST = 512  # tokens of a chunk, where the context is longer


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


def split_ranges(tokens: int, length: int) -> Ranges:
    """Whole chunks: the last tenth of a text to judge on, the one before to choose on, the rest to fit on.

    Raises DomainError for a text of fewer than three chunks, or chunks that foresee nothing.
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
    """The three parts in chunks; what a chunk to choose or to judge on repeats of an earlier part is dropped.

    A chunk is dropped if it occurs, at any place, in a part before its own. Raises DomainError if nothing
    is left of a part.
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
    """The chunks of a text that predictors may be judged on, and what they are, with {} for the text.

    sha256: of the text. Of a text that they were made of, it is the part kept for this; of any other, all.
    Raises DomainError for a text that was fitted or chosen on, or has not a whole chunk.
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
    """DomainError if there is none."""
    if not len(chunks):
        raise DomainError(f"the text is too short: judging takes a chunk of {chunks.shape[1]} tokens")
    return chunks


def _without(chunks: Tokens, pieces: Sequence[Tokens]) -> Tokens:
    """The chunks that occur nowhere in these pieces."""
    length = chunks.shape[1]
    known = [_hashes(piece, length) for piece in pieces if len(piece) >= length]
    own = [_hashes(chunk, length) for chunk in chunks]
    nothing = np.empty(0, np.uint64)
    return chunks[~np.isin(np.concatenate([nothing, *own]), np.concatenate([nothing, *known]))]


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
