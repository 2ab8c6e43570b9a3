import json
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
