import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_lance import TokenStore
from lightning_lance.errors import ConfigError
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.tokenization.configs import ByteTokenizer, TokenizerFile
from lightning_lance.tokenization.tokenizer import train_bpe
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


def text(letters: str, seed: int) -> str:
    return "".join(random.Random(seed).choices(letters, k=100))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    """Three languages in one store and a fourth in another: every token encodes its place."""
    code = ListSource(
        (
            *documents(*(text("abc", i) for i in range(4)), language="Go"),
            *documents(*(text("def", i) for i in range(6)), language="Python"),
            *documents(*(text("ghi", i) for i in range(3)), language="Rust"),
        )
    )
    prose = ListSource(documents(*(text("xyz", i) for i in range(5)), language="English"), name="prose")
    data = tmp_path_factory.mktemp("data")
    sources = {"code": code, "prose": prose}
    return {name: prepare(source, ByteTokenizer(), data_dir=data, val_fraction=0.0) for name, source in sources.items()}


def serving(stores: dict[str, TokenStore], **changes: Any) -> WindowSelection:
    options = {"split": "train", "context_length": 8, "order": "shuffle", "seed": 0, "shuffle_block": None}
    return WindowSelection(**{"stores": stores, "where": {}, "mix": {}, **options, **changes})


def letters(served: WindowSelection, count: int | None = None) -> list[str]:
    """Return the set of letters of each window, which has one language."""
    mixture = served.mixture()
    windows = served.reader.read(mixture.locate(np.arange(count or mixture.num_windows)))
    return ["".join(sorted({chr(token) for token in window if token < 256})) for window in windows.tolist()]


def test_where_selects_languages(stores: dict[str, TokenStore]):
    one = {"": stores["code"]}
    assert {*"".join(letters(serving(one)))} == {*"abcdefghi"}
    assert {*"".join(letters(serving(one, where={"language": ["Rust", "Go"]})))} == {*"abcghi"}
    both = serving(stores, where={"language": ["English", "Go"]})
    assert {*"".join(letters(both))} == {*"abcxyz"}
    assert both.mixture().num_windows == sum(
        serving({"": store}, where=where).mixture().num_windows
        for store, where in [(stores["code"], {"language": ["Go"]}), (stores["prose"], {})]
    )


def test_a_mix_of_languages_goes_by_the_weights(stores: dict[str, TokenStore]):
    found = letters(serving({"": stores["code"]}, mix={"Python": 0.75, "Rust": 0.25}), 400)
    assert [sum(window[0] in "def" for window in found[i : i + 4]) for i in range(0, 400, 4)] == [3] * 100
    assert sum(window[0] in "ghi" for window in found) == 100


def test_a_mix_of_stores_goes_by_the_weights_of_their_names(stores: dict[str, TokenStore]):
    found = letters(serving(stores, mix={"prose": 1, "code": 3}, where={"language": ["English", "Python"]}), 400)
    assert sum(window[0] in "xyz" for window in found) == 100
    assert {*"".join(found)} == {*"defxyz"}


def test_components_are_shuffled_by_keys_of_their_own(stores: dict[str, TokenStore]):
    alone = serving({"": stores["code"]}, mix={"Python": 1})
    mixed = serving({"": stores["code"]}, mix={"Go": 1, "Python": 1})
    python = mixed.mixture().locate(np.arange(40))
    assert python.start[python.component == 1].tolist() == alone.mixture().locate(np.arange(20)).start.tolist()
    assert alone.mixture().locate(np.arange(20)).start.tolist() != sorted(python.start[python.component == 1].tolist())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"where": {"repo": ["a"]}}, "where has the column 'repo': expected language"),
        ({"where": {"language": ["Pyton"]}}, "The data, for where, has no language 'Pyton' \\(did you mean 'Python'"),
        ({"where": {"language": "Python"}}, r"where.language is 'Python': expected a list, such as \[Python\]"),
        ({"where": ["Python"]}, r"where is \['Python'\]: expected a mapping, such as {language: \[Python\]}"),
        ({"where": {"language": 3}}, "where.language is 3: expected a list"),
        ({"mix": ["Python"]}, r"mix is \['Python'\]: expected a mapping, such as {Python: 0.7, Rust: 0.3}"),
        ({"context_length": "64"}, "context_length is '64': expected a whole number"),
        ({"mix": {"Ruby": 1}}, "The data, for mix, has no language 'Ruby': it has Go, Python, Rust"),
        (
            {"mix": {"Go": 1}, "where": {"language": ["Rust"]}},
            "The data, for mix, has no language 'Go': it has Rust",
        ),
        ({"shuffle_block": 0}, "shuffle_block is 0"),
        ({"shuffle_block": 4, "order": "sequential"}, "shuffle_block is 4 with order 'sequential'"),
    ],
)
def test_what_is_not_there_is_refused(stores: dict[str, TokenStore], changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        serving({"": stores["code"]}, **changes).mixture()


def test_stores_of_different_tokenizers_are_refused(stores: dict[str, TokenStore], tmp_path: Path):
    file = tmp_path / "bpe.json"
    file.write_text(train_bpe([["some text to train on"]], 300).to_json())
    source = ListSource(documents("other", "words"))
    other = prepare(source, TokenizerFile(str(file)), data_dir=tmp_path, val_fraction=0.0)
    with pytest.raises(ConfigError, match="The stores 'code' and 'other' were built with different tokenizers"):
        serving({"code": stores["code"], "other": other})


def test_weights_of_numpy_are_the_decimals_that_they_show(stores: dict[str, TokenStore]):
    weights = {"Go": 0.1, "Rust": 0.7}
    one = {"": stores["code"]}
    plain = serving(one, mix=weights)
    numpy = serving(one, mix={name: np.float32(weight) for name, weight in weights.items()})
    assert numpy.describe() == plain.describe()
    assert [type(weight) for weight in numpy.mix.values()] == [float, float]
