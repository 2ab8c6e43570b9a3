import re
from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents import string_buffers
from lightning_lance.newer import NEWER, newer_characters, parted

RANGES = [tuple(int(end, 16) for end in (part.split("-") * 2)[:2]) for part in NEWER.split()]
edges = [point + step for ends in RANGES for point in ends for step in (-1, 0, 1)]


few = st.one_of(st.sampled_from(edges).map(chr), st.characters(exclude_categories=["Cs"]))
# Most texts have long stretches of ASCII.
some = st.lists(st.one_of(few, st.text("ab ", min_size=5, max_size=30)), max_size=12).map("".join)


@given(st.lists(some, max_size=5), st.text(max_size=9))
def test_texts_with_newer_characters_are_found(texts: list[str], before: str):
    expected = [any(low <= ord(c) <= high for c in text for low, high in RANGES) for text in texts]
    found = newer_characters(pa.array([before, *texts], pa.large_string()).slice(1))
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
    parts = parted(array, at_spaces)
    if parts is None:
        assert newer_characters(array) is None
        return
    pieces, firsts = parts.pieces.to_pylist(), parts.firsts.tolist()
    assert [pieces[low:high] for low, high in pairwise(firsts)] == [
        cut_as_told(text, pieces[low:high]) for text, (low, high) in zip(texts, pairwise(firsts), strict=True)
    ]
    # Nothing is copied.
    assert string_buffers(parts.pieces)[1].ctypes.data == string_buffers(array)[1].ctypes.data
    holds = [any(low <= ord(c) <= high for c in piece for low, high in RANGES) for piece in pieces]
    assert parts.newer.tolist() == holds
    for low, high in pairwise(firsts):
        if not at_spaces:
            assert high == low + 1
        # No more pieces than needed, and none without a reason.
        assert all(holds[i] != holds[i + 1] for i in range(low, high - 1))
        for piece, following in pairwise(pieces[low:high]):
            assert re.fullmatch("[!-~] [!-~]", piece[-1:] + following[:2])
        if at_spaces:
            for i in range(low, high):
                # What stands apart is a stretch of words each of which holds one.
                assert not holds[i] or all(map(has_newer, re.split("(?<=[!-~])(?= [!-~])", pieces[i])))


def has_newer(text: str) -> bool:
    return any(low <= ord(c) <= high for c in text for low, high in RANGES)


def cut_as_told(text: str, pieces: list[str]) -> list[str]:
    """Cut a text into pieces as long as some."""
    cuts = [0]
    for piece in pieces:
        cuts.append(cuts[-1] + len(piece))
    return [text[low:high] for low, high in pairwise([*cuts[:-1], len(text)])]
