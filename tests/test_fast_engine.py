import json
import re
import subprocess
import sys

import gigatoken
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import fast_engine
from lightning_lance.fast_engine import NEWER, gigatoken_knows, newer_characters
from lightning_lance.tokenization import byte_tokenizer

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
    assert gigatoken_knows({**fields, "normalizer": normalizer}) == known


def test_engines_that_have_grown_are_made_anew(monkeypatch: pytest.MonkeyPatch):
    tokenizer, made = byte_tokenizer(), []
    load = gigatoken.Tokenizer.from_json
    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda spec: made.append(spec) or load(spec))
    texts = pa.array(["some text"] * 10, pa.large_string())
    expected = tokenizer.encode_batch(texts).ids.tolist()
    for resident, anew in ((0, 0), (1 << 40, 5), (None, 5), (0, 0)):
        monkeypatch.setattr(fast_engine, "_resident", lambda resident=resident: resident)
        monkeypatch.setattr(fast_engine, "_LEAST_BYTES", 50)
        monkeypatch.setattr(fast_engine, "_MOST_BYTES", 50)
        made.clear()
        for _ in range(6):
            assert tokenizer.encode_batch(texts).ids.tolist() == expected
        assert len(made) in (anew, anew + 1)


WORDS = """
import sys
import numpy as np, pyarrow as pa
from lightning_lance import fast_engine
from lightning_lance.tokenization import train_bpe
fast_engine._ROOM_BYTES, fast_engine._LEAST_BYTES = int(sys.argv[1]) << 20, 2 << 20
tokenizer = train_bpe(["some words"], 300)
chance, most = np.random.default_rng(0), 0
for _ in range(20):
    letters = chance.integers(97, 123, (200_000, 9)).astype(np.uint8)
    letters[:, 8] = 32
    texts = pa.array([bytes(part).decode() for part in np.array_split(letters.reshape(-1), 40)], pa.large_string())
    tokenizer.encode_batch(texts)
    most = max(most, fast_engine._resident())
print(most >> 20)
"""


@pytest.mark.skipif(fast_engine._resident() is None, reason="the system does not tell the memory of a process")
def test_memory_does_not_follow_the_words_of_a_corpus():
    """Words that never come twice: an engine remembers all of them."""
    bounded, unbounded = (
        int(subprocess.run([sys.executable, "-c", WORDS, room], capture_output=True, text=True, check=True).stdout)
        for room in ("60", "100000")
    )
    assert bounded < unbounded - 100
