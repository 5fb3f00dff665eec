"""The split of a text: three parts of whole chunks, none of which occurs in an earlier part."""

import numpy as np
import pytest
from tools import train_tiny

from flashref.models.origin import Origin, Source
from flashref.training.texts import cut_chunks, cut_parts, some_chunks, split_ranges, unseen_chunks
from flashref.types import DomainError


def test_a_text_is_split_into_whole_chunks_eight_to_one_to_one():
    assert split_ranges(1000, 10) == (((0, 800),), ((800, 900),), ((900, 1000),))
    assert split_ranges(39, 10) == (((0, 10),), ((10, 20),), ((20, 30),))
    with pytest.raises(
        DomainError, match=r"29 tokens is too short: .* 10 tokens each; .* at least 30 tokens"
    ):
        split_ranges(29, 10)
    with pytest.raises(DomainError, match="a context of 1 token has no next token to predict"):
        split_ranges(100, 1)


def test_chunks_do_not_overlap_and_drop_the_rest():
    ids = np.arange(20, dtype=np.int32)
    assert cut_chunks(ids, [(0, 11)], 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut_chunks(ids, [(0, 3), (10, 15)], 4).tolist() == [[0, 1, 2, 10], [11, 12, 13, 14]]


def test_a_chunk_that_occurs_in_an_earlier_part_is_dropped_wherever_it_stands_there():
    ids = np.random.default_rng(0).integers(0, 256, 100).astype(np.int32)
    ranges = split_ranges(100, 5)  # 80, 10, 10
    ids[80:85] = ids[33:38]  # across two chunks of the part to fit on
    ids[90:95] = ids[87:92].copy()  # hence not a chunk of any part: it overlaps where the parts meet
    ids[95:100] = ids[85:90]
    parts = cut_parts(ids, ranges, 5)
    assert parts.fit.tolist() == ids[:80].reshape(-1, 5).tolist()
    assert parts.choose.tolist() == [ids[85:90].tolist()]
    assert parts.judge.tolist() == [ids[90:95].tolist()]
    ids[90:95] = ids[2:7]
    with pytest.raises(DomainError, match="no part of the text is left to judge on"):
        cut_parts(ids, ranges, 5)
    with pytest.raises(DomainError, match="no part of the text is left to choose on"):
        cut_parts(np.zeros(100, np.int32), ranges, 5)


def test_some_chunks_are_drawn_once_each_and_stay_in_order():
    chunks = np.arange(40, dtype=np.int32).reshape(20, 2)
    some = some_chunks(chunks, 7, seed=0)
    rows = some[:, 0].tolist()
    assert len(some) == 7 and rows == sorted(set(rows)) and rows != list(range(0, 14, 2))
    assert some_chunks(chunks, 99, 0).tolist() == chunks.tolist()
    assert len(some_chunks(chunks, 0, 0)) == 1


def origin(fit, choose, judge):
    return Origin("f", "relu", 0.0, Source(*fit), Source(*choose), Source(*judge))


def test_of_the_text_that_predictors_are_made_of_only_what_they_have_not_seen_is_judged():
    ids = np.random.default_rng(1).integers(0, 256, 100).astype(np.int32)
    ids[90:95] = ids[7:12]  # seen after all
    (fit,), (choose,), (judge,) = split_ranges(100, 5)
    of_one = origin(("a", (fit,)), ("a", (choose,)), ("a", (judge,)))
    chunks, what = unseen_chunks(ids, "a", of_one, 5)
    assert chunks.tolist() == [ids[95:].tolist()] and "nothing was fitted or chosen on" in what
    chunks, what = unseen_chunks(ids, "b", of_one, 5)
    assert chunks.shape == (20, 5) and "another text" in what
    chunks, what = unseen_chunks(ids, "b", None, 5)
    assert chunks.shape == (20, 5) and "does not say" in what
    with pytest.raises(DomainError, match="takes at least one chunk of 5 tokens"):
        unseen_chunks(ids[:4], "b", of_one, 5)


def test_a_held_out_file_of_its_own_is_judged_and_the_texts_of_the_fit_are_refused():
    ids = np.arange(100, dtype=np.int32)
    apart = origin(("a", ((0, 50),)), ("b", ((0, 100),)), ("c", ((0, 60),)))
    assert unseen_chunks(ids, "c", apart, 5)[0].tolist() == ids[:60].reshape(-1, 5).tolist()
    for seen in "ab":
        with pytest.raises(DomainError, match="were fitted on this text, or their thresholds were"):
            unseen_chunks(ids, seen, apart, 5)


def test_a_part_to_judge_on_without_a_chunk_is_refused_and_one_of_two_texts_is_whole():
    ids = np.arange(100, dtype=np.int32)
    with pytest.raises(DomainError, match="takes at least one chunk of 5 tokens"):
        unseen_chunks(ids, "c", origin(("a", ((0, 50),)), ("b", ((0, 100),)), ("c", ((0, 4),))), 5)
    # Chosen on another text, whose ranges say nothing of this one.
    ids[50:55] = ids[95:]
    apart = origin(("a", ((0, 50),)), ("b", ((50, 95),)), ("a", ((95, 100),)))
    assert unseen_chunks(ids, "a", apart, 5)[0].tolist() == [[95, 96, 97, 98, 99]]


@pytest.mark.parametrize("part", [(), ((0, 0),), ((5, 7),)])
@pytest.mark.parametrize("which", [1, 2])
def test_an_origin_that_leaves_a_part_without_a_chunk_is_refused(which, part):
    parts = [((0, 50),), ((50, 75),), ((75, 100),)]
    parts[which] = part
    with pytest.raises(DomainError, match="no part of the text is left to"):
        unseen_chunks(np.arange(100, dtype=np.int32), "a", origin(*(("a", part) for part in parts)), 5)


def test_a_part_to_fit_on_that_is_shorter_than_a_chunk_repeats_nothing():
    of_one = origin(("a", ((0, 3),)), ("a", ((50, 75),)), ("a", ((75, 100),)))
    assert unseen_chunks(np.arange(100, dtype=np.int32), "a", of_one, 5)[0].size == 25


def test_a_text_of_one_chunk_again_and_again_is_refused():
    ids = np.tile(np.arange(5, dtype=np.int32), 3)
    with pytest.raises(DomainError, match="no part of the text is left to choose on"):
        cut_parts(ids, split_ranges(15, 5), 5)


def test_the_texts_to_fit_to_choose_and_to_judge_on_share_no_verse():
    # Every verse of this Bible is unique, so a verse in two of the texts would be an overlap.
    books = {"Ge": 2000, "1Sm": 900, "2Sm": 900, "Rev": 1000}
    lines = [b"A title"]
    for book, verses in books.items():
        lines += [f"{book}1:{i} verse {book} {i} {'x' * 80}.".encode() for i in range(verses)]
    text = b"\n".join(lines) + b"\n"
    split = train_tiny.split_text(text)
    assert split.verses == b"".join(line.split(b" ", 1)[1] + b"\n" for line in lines[1:])
    fit, choose, judge = (train_tiny.pieces(split.verses, part) for part in split.ranges)
    assert len(choose) == len(judge) == 65_536
    kinds = [set(part.splitlines()[:-1]) for part in (fit, choose, judge)]
    assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])
    unused = len(split.verses) - len(fit) - len(choose) - len(judge)
    assert 0 <= unused < 2 * len(lines[-1])  # the two broken lines
    for part in (fit, choose, judge):
        assert part.startswith(b"verse ")
