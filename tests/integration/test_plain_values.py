"""Numbers of numpy, members of enumerations, nodes of OmegaConf: made plain where they are given, or refused."""

import enum
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lightning_lance import LanceDataModule, TokenStore, TokenWindows, WindowLoader
from lightning_lance.errors import ConfigError
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


class Word(str, enum.Enum):
    SHUFFLE = "shuffle"
    PYTHON = "Python"
    TRAIN = "train"
    WRAP = "wrap"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    source = ListSource((*documents(*["abcdef" * 30] * 8), *documents(*["uvwxyz" * 30] * 5, language="Rust")))
    return prepare(source, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


PLAIN: dict[str, Any] = {
    "context_length": 8,
    "batch_size": 4,
    "split": "train",
    "order": "shuffle",
    "seed": 3,
    "shuffle_block": 2,
    "where": {"language": ["Python", "Rust"]},
    "mix": {"Python": 0.7, "Rust": 2},
    "rank": 0,
    "world_size": 2,
    "remainder": "wrap",
    "extend": False,
    "resumable": True,
    "document_ids": True,
}
CONF = OmegaConf.create({"where": {"language": ["Rust", "Python"]}, "mix": {"Python": 0.7, "Rust": 2}})
OTHERS: list[dict[str, Any]] = [
    {"context_length": np.int32(8), "batch_size": np.uint8(4), "seed": np.int64(3), "shuffle_block": np.int16(2)},
    {
        "rank": np.int64(0),
        "world_size": np.int64(2),
        "extend": np.False_,
        "resumable": np.True_,
        "document_ids": np.True_,
    },
    {"split": np.str_("train"), "order": np.str_("shuffle"), "remainder": np.str_("wrap")},
    {"split": Word.TRAIN, "order": Word.SHUFFLE, "remainder": Word.WRAP, "mix": {Word.PYTHON: 0.7, "Rust": 2}},
    {
        "where": {"language": ("Rust", "Python", "Rust")},
        "mix": {np.str_("Python"): np.float32(0.7), "Rust": np.int8(2)},
    },
    {"where": {np.str_("language"): np.array(["Rust", "Python"])}, "mix": {"Python": 0.7, "Rust": np.float64(2)}},
    {"where": CONF.where, "mix": CONF.mix},
]


@pytest.mark.parametrize("others", OTHERS)
def test_other_types_give_the_same_windows_and_the_same_plain_state(store: TokenStore, others: dict[str, Any]):
    plain, other = WindowLoader(store, **PLAIN), WindowLoader(store, **{**PLAIN, **others})
    assert [batch["input_ids"].tolist() for batch in other] == [batch["input_ids"].tolist() for batch in plain]
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert repr(state) == repr(plain.state_dict())
    WindowLoader(store, **PLAIN).load_state_dict(state)


WRONG: list[tuple[str, Any, str]] = [
    *(
        ("seed", value, r"seed is .*: expected a whole number")
        for value in (True, "0", 0.0, None, np.float64(0), Path("0"))
    ),
    *(("rank", value, r"rank is .*: expected a whole number") for value in (False, "0", 0.0, None)),
    *(("world_size", value, r"world_size is .*: expected a whole number") for value in (True, "2", 2.0)),
    *(
        ("batch_size", value, r"batch_size is .*: expected a whole number")
        for value in (True, np.True_, "4", Path("4"))
    ),
    *(("context_length", value, r"context_length is .*: expected a whole number") for value in (True, "8", [8])),
    *(("shuffle_block", value, r"shuffle_block is .*: expected a whole number") for value in (True, "2", 0, -1)),
    *(("split", value, r"split is .*: expected one of train, val") for value in ("test", 1, None, ["train"])),
    *(
        ("order", value, r"order is .*: expected one of")
        for value in (1, None, ["shuffle"], np.zeros(2), Path("shuffle"))
    ),
    *(("remainder", value, r"remainder is .*: expected one of") for value in (True, None, b"drop")),
    *(("on_data_change", value, r"on_data_change is .*: expected one of") for value in (True, None, {})),
    *(("extend", value, r"extend is .*: expected true or false") for value in (1, None)),
    ("extend", "sometimes", r"extend is 'sometimes': expected one of never, next_epoch, now"),
    *(("resumable", value, r"resumable is .*: expected true or false") for value in ("no", 0)),
    *(("document_ids", value, r"document_ids is .*: expected true or false") for value in ("no", 1)),
    ("where", {"language": [3]}, "where.language has 3: expected text"),
    ("where", {"language": [None]}, "where.language has None: expected text"),
    ("where", {"language": b"Rust"}, "where.language has 82: expected text"),
    ("where", {3: ["Rust"]}, "where has the column 3"),
    *(
        ("mix", {"Python": value}, r"mix.Python is .*: expected a weight above 0")
        for value in (True, "1", None, 10**400, 1j)
    ),
    ("mix", {"Python": np.complex64(1)}, "mix.Python is .*: expected a weight above 0"),
    ("mix", {1: 1}, "The data, for mix, has no language 1"),
    ("store", "x.lance", "store is 'x.lance': open it first"),
    ("store", {"a": "x.lance"}, "store\\['a'\\] is 'x.lance': open it first"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_what_cannot_be_made_plain_is_refused(store: TokenStore, name: str, value: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        WindowLoader(**{"store": store, **PLAIN, name: value})


@pytest.mark.parametrize("seed", [True, "0", 0.0, 10**400])
def test_a_seed_that_is_none_is_refused_before_anything_is_built(store: TokenStore, seed: Any):
    with pytest.raises(ConfigError, match="seed"):
        LanceDataModule(store.uri, 8, 4, seed=seed)
    with pytest.raises(ConfigError, match="seed"):
        FillInTheMiddle(1, 2, 3, seed=seed)


def test_a_map_style_dataset_takes_numbers_of_numpy(store: TokenStore):
    plain, other = TokenWindows(store, 8), TokenWindows(store, np.int64(8), np.str_("train"))  # type: ignore[arg-type]
    assert torch.equal(other[np.int64(2)]["input_ids"], plain[2]["input_ids"])  # type: ignore[index]
    assert type(other.context_length) is int
    assert type(other.split) is str
    with pytest.raises(ConfigError, match="split is 3"):
        TokenWindows(store, 8, 3)  # type: ignore[arg-type]


def test_literal_starts(store: TokenStore):
    """Which windows a seed gives may never change: that is what a checkpoint continues."""
    expected = {
        0: [2044, 603, 2020, 35, 1972, 1251],
        -5: [2211, 759, 1947, 335, 1715, 471],
        2**70: [1840, 784, 2056, 728, 1664, 904],
    }
    for seed, starts in expected.items():
        serving = WindowSelection({"": store}, "train", 8, "shuffle", seed, None, {}, {"Rust": 1, "Python": 1})
        assert serving.mixture().locate(np.arange(6)).start.tolist() == starts
