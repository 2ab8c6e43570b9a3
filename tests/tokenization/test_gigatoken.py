import json
import subprocess
import sys
import unicodedata
from itertools import pairwise

import gigatoken
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.tokenization import gigatoken as gigatoken_module
from lightning_lance.tokenization.gigatoken import cuts_at_spaces, is_supported
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer


@pytest.mark.parametrize(
    ("normalizer", "known"),
    [
        (None, True),
        ({"type": "NFC"}, True),
        ({"type": "Sequence", "normalizers": []}, True),
        ({"type": "NFKC"}, False),
        ({"type": "Lowercase"}, False),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]}, False),
    ],
)
def test_normalizers_that_were_not_compared_go_to_the_other_engine(normalizer: object, known: bool):
    fields = json.loads(byte_tokenizer().to_json())
    assert is_supported({**fields, "normalizer": normalizer}) == known


def added(content: str, **flags: bool) -> dict[str, object]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": 300, "content": content, **plain, **flags}


def with_added(*tokens: dict[str, object], normalizer: str | None = None) -> str:
    fields = json.loads(byte_tokenizer().to_json())
    fields["normalizer"] = normalizer and {"type": normalizer}
    fields["added_tokens"] += [{**token, "id": 257 + place} for place, token in enumerate(tokens)]
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        # NFC changes the text or a following mark: the Greek question mark, a stroke through a character.
        (with_added(added("end;"), normalizer="NFC"), "end\u037e"),
        (with_added(added("<end>"), normalizer="NFC"), "<end>\u0338"),
        (with_added(added("e\u0301nd"), normalizer="NFC"), "\u00e9nd"),
        # A token that is not normalized is found first.
        (with_added(added("<t>x", normalized=False), added("y<t>")), "y<t>x"),
        (with_added(added("y<t>x"), added("<t>", normalized=False)), "y<t>x"),
        (with_added(added("  "), added(" a", normalized=False)), "   a"),
        # A special token is plain text, and still hides tokens that overlap it.
        (with_added(added("<t>x", special=True), added("<t>")), "<t>x"),
        (with_added(added("x<t>y", special=True), added("<t>")), "x<t>y"),
        # White space that a token strips, or that another token has.
        (with_added(added("  "), added("<t>", lstrip=True, normalized=False)), "a  <t>"),
    ],
)
def test_added_tokens_are_found_as_the_tokenizers_library_finds_them(spec: str, text: str):
    tokenizer, reference = Tokenizer(spec), Tokenizer(spec, engine="tokenizers")
    # The first comparison finds no difference.
    tokenizer.encode_batch(pa.array(["plain text"] * 100, pa.large_string()))
    texts = pa.array(["plain text"] * 10 + [text], pa.large_string())
    assert tokenizer.encode_batch(texts).ids.tolist() == reference.encode_batch(texts).ids.tolist()


@pytest.mark.parametrize(
    ("tokens", "normalizer"),
    [
        ([added(" " * count) for count in range(2, 25)], "NFC"),
        ([added("|||EMAIL_ADDRESS|||"), added("<|end|>", special=True)], "NFC"),
        ([added("<think>", normalized=False), added("</think>", normalized=False)], "NFC"),
        ([added("\uff5cUser\uff5c")], None),
        ([added("</s>", rstrip=True, normalized=False)], None),
        ([added("ab"), added("abc"), added("bcd")], None),
    ],
)
def test_usual_added_tokens_are_left_to_the_fast_engine(tokens: list[dict[str, object]], normalizer: str | None):
    spec = with_added(*tokens, normalizer=normalizer)
    tokenizer, reference = Tokenizer(spec), Tokenizer(spec, engine="tokenizers")
    assert tokenizer.engine == "gigatoken"
    contents = [str(token["content"]) for token in tokens]
    found = [first + between + last for first in contents for between in ("", " ", "\n", "x") for last in contents]
    texts = pa.array(["plain text"] * 100 + found, pa.large_string())
    assert tokenizer.encode_batch(texts).ids.tolist() == reference.encode_batch(texts).ids.tolist()


def test_which_characters_of_ascii_nfc_makes_or_changes():
    # All others are as they are.
    points = [point for point in map(chr, range(0x110000)) if unicodedata.decomposition(point)]
    made = {unicodedata.normalize("NFC", point) for point in points if not point.isascii()}
    assert frozenset(one for one in made if len(one) == 1 and one.isascii()) == gigatoken_module._MADE_BY_NFC
    parts = [unicodedata.decomposition(point).split() for point in points]
    first = {chr(int(part[0], 16)) for part in parts if len(part) == 2 and not part[0].startswith("<")}
    assert frozenset(one for one in first if one.isascii()) <= gigatoken_module._CHANGED_BY_NFC


@pytest.mark.parametrize("affix", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_affixes_of_words_are_not_for_the_fast_engine(affix: str):
    fields = json.loads(byte_tokenizer().to_json())
    assert not is_supported({**fields, "model": {**fields["model"], affix: "##"}})


@pytest.mark.parametrize(
    ("changes", "cut"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, True),
        ({"normalizer": {"type": "Prepend", "prepend": "_"}}, False),
        ({"pre_tokenizer": {"type": "Metaspace"}}, False),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, False),
        ({"added_tokens": [added("   ")]}, True),
        ({"added_tokens": [added("two words")]}, False),
        ({"added_tokens": [added("word ")]}, False),
        ({"added_tokens": [added("word", rstrip=True)]}, False),
        ({"added_tokens": [added("two words", special=True)]}, True),
    ],
)
def test_where_texts_may_be_cut_at_spaces(changes: dict[str, object], cut: bool):
    assert cuts_at_spaces({**json.loads(byte_tokenizer().to_json()), **changes}) == cut


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 5))
def test_calls_take_all_texts_once_and_no_more_than_a_worker(sizes: list[int], before: int):
    borders = before + np.append(0, np.cumsum(sizes, dtype=np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gigatoken_module, "_ALONE_BYTES", 10)
        calls = [*gigatoken_module._calls(borders)]
    assert [i for low, high in calls for i in range(low, high)] == [*range(len(sizes))]
    assert all(sum(sizes[low:high]) < 10 for low, high in calls)
    # No call has room for the first text of the next one.
    assert all(sum(sizes[low : high + 1]) >= 10 for low, high in calls[:-1])


def test_no_more_threads_encode_than_there_are_workers(monkeypatch: pytest.MonkeyPatch):
    cores = gigatoken_module._cores()
    for told, expected in (("1", 1), ("0", cores), ("", cores), ("many", cores), ("100000", cores)):
        monkeypatch.setenv("RAYON_NUM_THREADS", told)
        assert gigatoken_module._cores() == expected


@pytest.mark.parametrize(
    ("told", "anew"),
    [
        # Megabytes at each check, and the checks at which the engine is replaced.
        ([900, 900, 900, 900], []),
        ([100, 499, 500, 501, 499, 900, 900], [3, 5]),
        # Memory that is not freed with an engine does not cause another replacement.
        ([100, 600, 600, 600, 600, 1000, 1001], [1, 6]),
        # The old engine may still be in use at the first check.
        ([100, 600, 500, 450, 850, 851], [1, 5]),
        ([None, None, None, None, None, None], [2, 5]),
    ],
)
def test_engines_that_have_grown_are_made_anew(
    monkeypatch: pytest.MonkeyPatch, told: list[int | None], anew: list[int]
):
    made, looks = [], iter(told)
    texts = pa.array(["some text"] * 10, pa.large_string())
    expected = byte_tokenizer().encode_batch(texts).ids.tolist()
    # A check at each batch of 90 bytes.
    monkeypatch.setattr(gigatoken_module, "_LOOK_BYTES", 1)
    monkeypatch.setattr(gigatoken_module, "_MOST_BYTES", 200)
    tokenizer = byte_tokenizer()
    load = gigatoken.Tokenizer.from_json
    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda spec: made.append(spec) or load(spec))
    monkeypatch.setattr(gigatoken_module, "resident", lambda: (size := next(looks)) and (size << 20))
    counts = []
    for _ in told:
        assert tokenizer.encode_batch(texts).ids.tolist() == expected
        counts.append(len(made))
    assert [look for look, (before, after) in enumerate(pairwise([0, *counts])) if after > before] == anew


WORDS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
import numpy as np, pyarrow as pa
from lightning_lance.tokenization import gigatoken as gigatoken_module
from lightning_lance.tokenization.tokenizer import train_bpe
gigatoken_module._ROOM_BYTES, gigatoken_module._LOOK_BYTES = int(sys.argv[1]) << 20, 1 << 20
tokenizer = train_bpe(["some words"], 300)
chance, most, threads = np.random.default_rng(0), 0, ThreadPoolExecutor(2)
for _ in range(20):
    letters = chance.integers(97, 123, (200_000, 9)).astype(np.uint8)
    letters[:, 8] = 32
    texts = pa.array([bytes(part).decode() for part in np.array_split(letters.reshape(-1), 40)], pa.large_string())
    list(threads.map(tokenizer.encode_batch, [texts.slice(low, 10) for low in range(0, 40, 10)]))
    most = max(most, gigatoken_module.resident())
print(most >> 20)
"""


@pytest.mark.skipif(gigatoken_module.resident() is None, reason="the system does not tell the memory of a process")
def test_memory_does_not_follow_the_words_of_a_corpus():
    """Memory stays bounded with words that never repeat, although an engine caches each of them."""
    bounded, unbounded = (
        int(subprocess.run([sys.executable, "-c", WORDS, room], capture_output=True, text=True, check=True).stdout)
        for room in ("60", "100000")
    )
    assert bounded < unbounded - 100
