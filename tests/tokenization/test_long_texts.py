from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.screening import LongDocuments
from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.long_texts import cut_points, encode_texts
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer, train_bpe
from tests.support.laws import examples

texts = st.text(st.sampled_from("ab \n\t\r.é東🙂"), max_size=200)
limits = st.integers(16, 64)


def pieces(text: str, limit: int) -> list[bytes]:
    data = text.encode()
    cuts = cut_points(np.frombuffer(data, np.uint8), limit)
    return [data[low:high] for low, high in pairwise([0, *cuts, len(data)])]


@given(texts, limits)
def test_pieces_are_bounded_whole_characters_and_make_the_text(text: str, limit: int):
    made = pieces(text, limit)
    assert b"".join(made).decode() == text
    for i, piece in enumerate(made):
        piece.decode()
        # All pieces but the last are longer than half the limit, less one character.
        assert limit // 2 - 3 <= len(piece) <= limit or i == len(made) - 1
        assert len(piece) <= limit


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("0123456789abcdef", "0123456789abcdef"),  # no longer than the limit
        ("0123456789\nab\ncde fgh", "0123456789\nab\n"),  # the last line end between characters that are not spaces
        ("0123456789a\n\ncd  fgh", "0123456789a\n\n"),  # a line end
        ("0123456789a\n bc defg", "0123456789a\n"),
        ("0123456789a bcd efgh", "0123456789a bcd"),  # before a space
        ("0123456789\tab  cdefgh", "0123456789\tab"),
        ("a\n b 0123456789abcdefgh", "a\n b 0123456789a"),  # not in the first half: between characters
        ("0123456789abcde東gh", "0123456789abcde"),
        (" " * 30, " " * 16),
    ],
)
def test_where_a_text_is_cut(text: str, first: str):
    assert pieces(text, 16)[0].decode() == first


@given(st.lists(texts, max_size=6), limits)
def test_a_text_in_pieces_is_one_text(many: list[str], limit: int):
    """With a byte tokenizer, cuts never change the ids, for any mix of long, short and empty texts."""
    array = pa.array(["before", *many], pa.large_string()).slice(1)
    ids, offsets = encode_texts(byte_tokenizer(), array, limit)
    assert [bytes(ids[low:high].tolist()).decode() for low, high in pairwise(offsets)] == many


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([["def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n"] * 5], 300)


@examples(20)
@given(st.lists(st.sampled_from(["def f(x):", "    return x", "x = 'é'  # 東", "\tpass", "}"]), max_size=60), limits)
def test_cuts_at_line_ends_change_no_token(bpe: Tokenizer, lines: list[str], limit: int):
    # Lines that begin with text, none of them empty: a cut falls between two of them.
    text = "\n".join(line.strip() for line in lines)
    array = pa.array([text], pa.large_string())
    assert encode_texts(bpe, array, limit).ids.tolist() == bpe.encode_batch(array).ids.tolist()


def test_the_ids_do_not_depend_on_the_batch(bpe: Tokenizer):
    long, short = "def f(x): return x " * 50, "class A"
    alone = encode_texts(bpe, pa.array([long], pa.large_string()), 64).ids.tolist()
    ids, offsets = encode_texts(bpe, pa.array([short, long, "", long], pa.large_string()), 64)
    assert ids[offsets[1] : offsets[2]].tolist() == ids[offsets[3] : offsets[4]].tolist() == alone
    assert ids.dtype == np.uint16
    reference = Tokenizer(bpe.to_json(), engine="tokenizers")
    assert encode_texts(reference, pa.array([long], pa.large_string()), 64).ids.tolist() == alone


def test_wrong_rules_are_told():
    with pytest.raises(ConfigError, match="max_document_bytes is 15: expected a whole number of bytes, at least 16"):
        LongDocuments(15)
    with pytest.raises(ConfigError, match="long_documents is 'cut': expected split or skip"):
        LongDocuments(16, "cut")  # type: ignore[arg-type]
