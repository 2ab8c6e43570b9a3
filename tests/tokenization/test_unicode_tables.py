import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.arrow import offsets_and_bytes
from lightning_lance.tokenization import unicode_tables
from lightning_lance.tokenization.unicode_tables import (
    BLOCK,
    KNOWN,
    NEWER,
    Differing,
    split_at_new_characters,
)

RANGES = [tuple(int(end, 16) for end in (part.split("-") * 2)[:2]) for part in NEWER.split()]
edges = [point + step for ends in RANGES for point in ends for step in (-1, 0, 1)]


few = st.one_of(st.sampled_from(edges).map(chr), st.characters(exclude_categories=["Cs"]))
# Most texts have long stretches of ASCII.
some = st.lists(st.one_of(few, st.text("ab ", min_size=5, max_size=30)), max_size=12).map("".join)


@given(st.lists(some, max_size=5), st.text(max_size=9))
def test_texts_with_newer_characters_are_found(texts: list[str], before: str):
    expected = [any(low <= ord(c) <= high for c in text for low, high in RANGES) for text in texts]
    found = KNOWN.find(pa.array([before, *texts], pa.large_string()).slice(1))
    assert (found is None) == (not any(expected))
    assert found is None or found.tolist() == expected


def test_the_table_is_in_order():
    points = [point for ends in RANGES for point in ends]
    assert points == sorted(points)
    assert re.fullmatch(r"[0-9A-F -]+", NEWER)


words = st.lists(st.one_of(st.sampled_from(["ab", "\u00e9", "\u3000", " ", "  ", "\n", "\x7f"]), few), max_size=20)


@given(st.lists(st.one_of(words.map("".join), words.map(" ".join)), max_size=5), st.text(max_size=9), st.booleans())
def test_newer_characters_stand_apart(texts: list[str], before: str, at_spaces: bool):
    array = pa.array([before, *texts], pa.large_string()).slice(1)
    parts = split_at_new_characters(array, at_spaces)
    if parts is None:
        assert KNOWN.find(array) is None
        return
    pieces, firsts = parts.pieces.to_pylist(), parts.firsts.tolist()
    assert [pieces[low:high] for low, high in pairwise(firsts)] == [
        cut_as_told(text, pieces[low:high]) for text, (low, high) in zip(texts, pairwise(firsts), strict=True)
    ]
    # Nothing is copied.
    assert offsets_and_bytes(parts.pieces)[1].ctypes.data == offsets_and_bytes(array)[1].ctypes.data
    holds = [any(low <= ord(c) <= high for c in piece for low, high in RANGES) for piece in pieces]
    assert parts.newer.tolist() == holds
    for low, high in pairwise(firsts):
        if not at_spaces:
            assert high == low + 1
        # No more pieces than needed.
        assert all(holds[i] != holds[i + 1] for i in range(low, high - 1))
        for piece, following in pairwise(pieces[low:high]):
            assert is_cut(piece + following, len(piece))
        if at_spaces:
            for i in range(low, high):
                # A separate piece is a stretch of words, each with such a character.
                assert not holds[i] or all(map(has_newer, words_of(pieces[i])))


def is_cut(text: str, place: int) -> bool:
    """Return whether a text may be cut at a place: before a single space between two certainly visible characters."""
    around = text[place - 1 : place + 2]
    return (
        len(around) == 3
        and around[1] == " "
        and not re.search(r"[\x00-\x20\x7f]", around[0] + around[2])
        and not any(character.encode()[0] in (0xC2, 0xE1, 0xE2, 0xE3) for character in around)
    )


def words_of(text: str) -> list[str]:
    cuts = [0, *(place for place in range(1, len(text)) if is_cut(text, place)), len(text)]
    return [text[low:high] for low, high in pairwise(cuts)]


def test_all_white_space_of_unicode_may_be_a_border():
    """No text is cut beside white space of any kind."""
    for point in range(0x80, 0x110000):
        if chr(point).isspace():
            assert not is_cut(f"a {chr(point)}", 1)
            assert (
                unicode_tables._cuts(np.frombuffer(f"a {chr(point)}b {chr(point)}".encode(), np.uint8)).tolist() == []
            )


@given(st.lists(st.text(), max_size=4), st.sets(st.sampled_from([0xE9, 0x3B1, 0x4E00, 0x1F600, 0x10FFFF, 0x301])))
def test_what_is_not_known_is_asked_for_once(texts: list[str], differ: set[int]):
    asked: list[int] = []

    def compare(blocks: Sequence[int]) -> np.ndarray:
        asked.extend(blocks)
        return np.asarray([point for point in differ if point // BLOCK in blocks], np.int64)

    differing = Differing(np.empty(0, np.int64), compare)
    array = pa.array(texts, pa.large_string())
    for _ in range(3):
        found = differing.find(array)
        expected = [any(ord(c) in differ for c in text) for text in texts]
        assert (found is None) == (not any(expected))
        assert found is None or found.tolist() == expected
    assert sorted(asked) == sorted({ord(c) // BLOCK for text in texts for c in text if ord(c) >= 0x80})


def test_no_more_is_asked_at_once_than_takes_a_moment():
    asked: list[int] = []

    def compare(blocks: Sequence[int]) -> np.ndarray:
        asked.append(len(blocks))
        return np.empty(0, np.int64)

    differing = Differing(np.empty(0, np.int64), compare)
    texts = pa.array([chr(point) for point in range(0x4E00, 0x9F00)], pa.large_string())
    first = differing.find(texts)
    assert first is not None
    assert first.sum() == len(texts) - max(asked) * BLOCK
    while differing.find(texts) is not None:
        pass
    assert sum(asked) == len(texts) // BLOCK
    assert max(asked) <= unicode_tables._AT_ONCE


def has_newer(text: str) -> bool:
    return any(low <= ord(c) <= high for c in text for low, high in RANGES)


def cut_as_told(text: str, pieces: list[str]) -> list[str]:
    """Return a text in pieces of the same lengths as `pieces`."""
    cuts = [0]
    for piece in pieces:
        cuts.append(cuts[-1] + len(piece))
    return [text[low:high] for low, high in pairwise([*cuts[:-1], len(text)])]
