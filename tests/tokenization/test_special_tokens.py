"""No text is encoded to the EOS token; a tokenizer that would do so raises an error when it is loaded."""

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer
from tests.support.small_tokenizers import EOS, token, tokenizer_json


def load(fields: dict[str, Any] | str, eos: str | None = None) -> Tokenizer:
    return Tokenizer(fields if isinstance(fields, str) else json.dumps(fields), eos)


def byte_level(**changes: Any) -> dict[str, Any]:
    return tokenizer_json([EOS], model={"type": "BPE"}, **changes)


def words(*vocabulary: str, unknown: str = "<unk>", **changes: Any) -> tokenizers.Tokenizer:
    """Return a tokenizer of whole words between spaces."""
    model = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def refused(fields: dict[str, Any] | str, eos: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(fields, eos)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_eos_token_that_is_not_marked_as_special():
    fields = byte_level()
    fields["added_tokens"][0]["special"] = False
    message = refused(fields)
    assert "since it is not marked as special" in message
    assert "choose another one with tokenizer.eos_token, such as one of its special tokens (it has none)" in message
    fields["added_tokens"].append(token(262, "<end>"))
    assert "special tokens (<end>)" in refused(fields)
    assert load(fields, "<end>").eos_id == 262


@pytest.mark.parametrize("flags", [{"normalized": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}])
def test_whatever_its_other_marks_are(flags: dict[str, bool]):
    fields = byte_level()
    fields["added_tokens"][0] |= {"special": False, **flags}
    assert "not marked as special" in refused(fields)


@pytest.mark.parametrize("eos", ["the", "\u0120the", "t", "in", "\u0120"])
def test_a_word_of_the_vocabulary_ends_no_document(eos: str):
    assert f" to its EOS token {eos!r}" in refused(byte_level(), eos)


def test_a_whole_word_that_no_merge_makes():
    """With ignore_merges, a word of the vocabulary is one token."""
    fields = byte_level(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    )
    fields["model"]["vocab"]["<end>"] = 261
    fields["added_tokens"] = [token(262, EOS)]
    assert load(fields, "<end>").eos_id == 261
    fields["model"]["ignore_merges"] = True
    assert " to its EOS token '<end>'" in refused(fields, "<end>")


def test_a_normalizer_that_spells_it():
    made = words("<unk>", "<end>", "a", normalizer=normalizers.Replace("STOP", "<end>"))
    assert " to its EOS token '<end>'" in refused(made.to_str(), "<end>")
    lowercase = words("<unk>", "a", normalizer=normalizers.Lowercase())
    lowercase.add_tokens([AddedToken("<END>", normalized=True)])
    assert " to its EOS token '<END>'" in refused(lowercase.to_str(), "<END>")


def test_the_token_for_the_unknown_ends_no_document():
    assert "is also its unknown token" in refused(words("</s>", "a", unknown="</s>").to_str())
    # A model with all bytes does not need it.
    fields = byte_level()
    fields["model"] |= {"unk_token": EOS, "vocab": {**fields["model"]["vocab"], EOS: 261}}
    assert load(fields).eos_token == EOS


def test_tokens_that_share_an_id():
    fields = byte_level()
    fields["added_tokens"] = [token(261, EOS), token(261, "<end>")]
    assert "its added token '<end>' has the id 261" in refused(fields)
    fields = byte_level()
    fields["model"]["vocab"]["zz"] = 7
    fields["added_tokens"] = [token(262, EOS)]
    assert "share the id 7" in refused(fields, "zz")


def test_padding_may_be_eos():
    fields = byte_level(
        padding={"strategy": "BatchLongest", "direction": "Right", "pad_id": 261, "pad_type_id": 0, "pad_token": EOS}
    )
    fields["padding"]["pad_to_multiple_of"] = None
    assert load(fields).digest == load(byte_level()).digest


def test_a_tokenizer_without_any_special_token_says_so():
    assert "special tokens (it has none)" in refused(tokenizer_json([], model={"type": "BPE"}))
    assert "has no EOS token '<nothing>'" in refused(byte_tokenizer().to_json(), "<nothing>")
