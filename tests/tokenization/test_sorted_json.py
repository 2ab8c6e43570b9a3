import gc
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_lance.process.memory import without_collections
from lightning_lance.tokenization.identity import identity_of_text
from lightning_lance.tokenization.sorted_json import sorted_json

# Lone surrogates too: JSON may have them as escapes.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
MERGES = st.lists(st.lists(TEXTS, min_size=2, max_size=2) | st.lists(SCALARS, min_size=1, max_size=3))
VOCABULARIES = st.dictionaries(TEXTS, st.integers() | st.booleans() | SCALARS)
VALUES = st.recursive(
    SCALARS | MERGES | VOCABULARIES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
@example({"a": 1, "b": True})
@example([["a", "b"], "cd"])
@example([["a", "b"], ["c"]])
@example([["a", "b"], ["c", 1]])
@example([])
@example({})
@example('"\\\x00\x1f\x7f\u2028\ud800\U0010ffff')
@example({"\uffff": 0, "\U00010000": 1, "": 2})
def test_the_text_is_that_of_the_json_module(value: Any):
    assert sorted_json(value) == json.dumps(value, sort_keys=True, ensure_ascii=False)


@pytest.mark.parametrize("enabled", [False, True])
def test_collections_are_as_before_behind_a_tokenizer(enabled: bool):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with without_collections():
            assert not gc.isenabled()
        identity_of_text("{", None)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
