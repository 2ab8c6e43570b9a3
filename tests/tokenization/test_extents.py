"""Which tokens are trained on, against the offsets of the `tokenizers` library, span by span and token by token."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization import extents
from lightning_lance.tokenization.extents import Characters, extents_of, trained_tokens
from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.long_texts import encode_texts
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer
from tests.support.laws import examples
from tests.support.small_tokenizers import LLAMA3, TRAINING, byte_level, sentence_piece

Span = tuple[int, int]

KINDS = ["bytes", "plain", "nfc", "pieces"]


@cache
def made(kind: str) -> Tokenizer:
    if kind == "bytes":
        return byte_tokenizer()
    if kind == "pieces":
        return Tokenizer(sentence_piece(), "</s>")
    return Tokenizer(byte_level(LLAMA3, normalizers.NFC() if kind == "nfc" else None))


@cache
def reference(kind: str) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer.from_str(made(kind).to_json())
    model.encode_special_tokens = True
    return model


def by_hand(kind: str, text: str, spans: list[Span]) -> list[bool]:
    """A token that a span touches is trained on, and EOS with the last character."""
    trained = []
    for begin, end in reference(kind).encode(text, add_special_tokens=False).offsets:
        trained.append(any(low < max(end, begin + 1) and begin < high for low, high in spans))
    return [*trained, any(low < len(text) <= high for low, high in spans)]


def trained(kind: str, texts: list[str], spans: list[list[Span]], max_bytes: int = 1 << 20) -> list[bool]:
    array = pa.array(["ahead", *texts], pa.large_string()).slice(1)
    encoded = encode_texts(made(kind), array, max_bytes)
    characters = Characters(array)
    found = extents_of(made(kind), characters, encoded, max_bytes)
    of = np.repeat(np.arange(len(texts)), [len(some) for some in spans])
    flat = np.asarray([span for some in spans for span in some], np.int64).reshape(-1, 2)
    return trained_tokens(characters, found, encoded.offsets, of, flat).tolist()  # type: ignore[no-any-return]


letters = st.sampled_from([*"ab \n'é", "the", " in", "e\u0301", "ü", "東", "🙂", "<|im_start|>", *TRAINING[:3]])
texts = st.lists(letters, max_size=6).map("".join)


@examples(60)
@given(st.sampled_from(KINDS), st.lists(texts, min_size=1, max_size=4), st.data())
def test_tokens_are_trained_on_that_a_span_touches(kind: str, texts: list[str], data: st.DataObject):
    spans: list[list[Span]] = []
    for text in texts:
        sides = st.integers(0, len(text))
        drawn = data.draw(st.lists(st.tuples(sides, sides), max_size=3))
        spans.append([(min(span), max(span)) for span in drawn])
    expected = []
    for text, some in zip(texts, spans, strict=True):
        expected += by_hand(kind, text, [span for span in some if span[0] < span[1]])
    assert trained(kind, texts, spans) == expected


def test_the_lengths_of_tokens_tell_where_they_are_wherever_that_is_exact(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    by_reference = extents._by_reference

    def counted(tokenizer: Tokenizer, characters: Characters, text: int, max_bytes: int) -> object:
        asked.append(text)
        return by_reference(tokenizer, characters, text, max_bytes)

    monkeypatch.setattr(extents, "_by_reference", counted)
    monkeypatch.setattr(extents, "_TOGETHER", 3)
    texts = ["naïve the café", "e\u0301 the", "", "東京 in"]
    for kind, expected in {"bytes": [], "plain": [], "nfc": [1], "pieces": [0, 1, 2, 3]}.items():
        trained(kind, texts, [[(0, 1)], [], [], [(1, 2)]])
        assert asked == expected, kind
        asked.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_in_pieces_are_as_whole_ones(kind: str):
    text = "the naïve\nin the 東京 e\u0301\n" * 9
    spans = [(3, 9), (70, 71), (len(text) - 1, len(text))]
    ids = made(kind).encode(text)
    array = pa.array([text], pa.large_string())
    assert encode_texts(made(kind), array, 64).ids.tolist() == ids or kind == "pieces"
    if kind == "pieces":
        # Each piece begins as a text does, with a space of its own.
        assert trained(kind, [text], [spans], 64)[-1]
        return
    assert trained(kind, [text], [spans], 64) == by_hand(kind, text, spans)


def test_ids_that_the_offsets_do_not_belong_to_are_refused():
    array = pa.array(["the in"], pa.large_string())
    wrong = Encoded(np.asarray([1, 2, 3]), np.asarray([0, 3]))
    with pytest.raises(ConfigError, match=r"does not say where the tokens of a text lie .*loss_mask_column"):
        extents_of(made("plain"), Characters(array), wrong, 99)
