"""The state in a checkpoint: a wrong one is refused at once, or continues with an epoch that ends."""

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import LanceDataModule, TokenStore, WindowLoader
from lightning_lance.errors import StoreError
from lightning_lance.inspection.resume import verify_resume
from lightning_lance.serving.states import FIELDS, checked_state
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

SOURCE = ListSource(
    (*documents(*["abc" * 30] * 8), *documents(*["xyz" * 30] * 5, language="Rust")),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    uri = str(tmp_path_factory.mktemp("data") / "x.lance")
    prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=9)
    return prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0)


def make(store: TokenStore, **changes: Any) -> WindowLoader:
    return WindowLoader(store, **{"context_length": 8, "batch_size": 4, **changes})


def batches(loader: WindowLoader, most: int = 10_000) -> list[Any]:
    found = []
    for batch in loader:
        found.append(batch["input_ids"].tolist())
        assert len(found) <= most, "an epoch without end"
    return found


def take(loader: WindowLoader, count: int) -> list[Any]:
    iterator = iter(loader)
    return [next(iterator)["input_ids"].tolist() for _ in range(count)]


def at(loader: WindowLoader, state: dict[str, Any]) -> WindowLoader:
    loader.load_state_dict(state)
    return loader


MIXES: list[dict[str, float]] = [{}, {"Python": 2, "Rust": 1}]

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**12, -(10**12), 2**60, 2**62, 2**63, 10**30, -(2**63) - 1]),
    st.sampled_from([0.0, 4.0, 1.5, float("nan"), float("inf")]),
    st.sampled_from(["", "4", "shuffle", "sequential", "train", "val", "g" * 16, "0" * 16, "Python", "\x1b[31m"]),
    st.lists(st.sampled_from([0, 1, -1, 10**12, 2**62, True, 1.0, "1", None]), max_size=3),
    st.dictionaries(
        st.sampled_from(["Python", "Rust", "language", 3]), st.sampled_from([1, 0.5, -1, "a", ["Python"], None])
    ),
    st.sampled_from([b"x", (1, 2), {"a"}, torch.zeros(2), np.zeros(2), np.int64(3), Path("x"), object()]),
)


@pytest.fixture(scope="module")
def saved(store: TokenStore) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Mixtures and their states: at the beginning, in the first epoch, at its end, and in the second one."""
    made: list[tuple[dict[str, float], dict[str, Any]]] = []
    for mix in MIXES:
        loader = make(store, mix=mix)
        for steps in (0, 3, len(loader) - 3, 5):
            take(loader, steps)
            made.append((mix, loader.state_dict()))
    return made


@examples(32)
@given(
    st.integers(0, 7),
    st.sampled_from(["error", "restart", "continue"]),
    st.sampled_from(sorted(FIELDS)),
    odd_values,
)
def test_one_changed_field_is_refused_and_changes_nothing_or_gives_an_epoch_that_ends(
    store: TokenStore, saved: list[Any], place: int, on_data_change: str, field: str, value: Any
):
    mix, state = saved[place]
    loader = make(store, mix=mix, on_data_change=on_data_change)
    take(loader, 3)
    before, stores = loader.state_dict(), loader.stores
    refused = ""
    try:
        loader.load_state_dict({**state, field: value})
    except StoreError as error:
        refused = str(error)
    if refused:
        assert not {"\n", "\x1b"} & {*refused}
        assert loader.state_dict() == before
        assert all(store is stores[name] for name, store in loader.stores.items())
        assert take(loader, 2) == take(at(make(store, mix=mix), before), 2)
        return
    assert len(batches(loader)) <= len(loader)
    # The state that follows an accepted one is accepted too.
    at(make(store, mix=mix, on_data_change=on_data_change), loader.state_dict())


@examples(20)
@given(st.sampled_from(["name", "uri", "fingerprint", "tokens", "forgotten", "version", "more"]), odd_values)
def test_one_changed_field_of_a_store_is_refused_or_does_not_matter(store: TokenStore, field: str, value: Any):
    saved = make(store)
    take(saved, 5)
    state = saved.state_dict()
    state["stores"][0][field] = value
    loader = make(store)
    before = loader.state_dict()
    try:
        loader.load_state_dict(state)
    except StoreError:
        assert loader.state_dict() == before
    else:
        assert batches(loader) == batches(saved)


def test_a_state_with_a_field_too_few_or_too_many_is_refused(store: TokenStore):
    loader = make(store)
    state = loader.state_dict()
    for name in state:
        with pytest.raises(StoreError, match=f"The state lacks {name}: expected"):
            loader.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(StoreError, match="The state has the unknown field 'step': expected"):
        loader.load_state_dict({**state, "step": 3})
    for wrong in (None, [], "state", 3):
        with pytest.raises(StoreError, match="expected the mapping"):
            loader.load_state_dict(wrong)  # type: ignore[arg-type]


def test_what_cannot_be_is_named(store: TokenStore):
    loader = make(store)
    take(loader, len(loader))
    take(loader, 2)
    state = loader.state_dict()
    size = state["num_windows"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cursor": 10**12}, f"beyond the end of its epoch at {2 * size}; "),
        ({"epoch_start": 10**6}, "its epoch begins at 1,000,000, beyond the cursor"),
        (
            {"epoch_start": size - 1, "digest_from": size - 1},
            f"epoch 1 begins at {size - 1}, with epochs of {size} windows",
        ),
        ({"epoch": 10**12}, "epoch 1,000,000,000,000 begins at"),
        ({"origin": size + 7}, "digest_from is"),
        ({"taken": [0, 0]}, "taken has 2 numbers, but there are 1 components"),
        ({"taken": [5]}, r"taken is \[5\], but the mixture begins at 0"),
        ({"digest": "nothex"}, "digest is 'nothex': expected 16 hexadecimal digits"),
        ({"digest_from": state["cursor"]}, "the digest covers no window, but is"),
        (
            {"cursor": size, "digest": "0" * 16, "ended": True},
            "the epoch has ended, but none of its windows is consumed",
        ),
        ({"num_windows": size + 1}, "The checkpoint's epoch had"),
        ({"mix": {"Python": float("nan")}}, "mix is {'Python': nan}: expected weights above 0"),
        ({"seed": 10**6000}, "seed is .* too long to show: expected a whole number"),
        ({"cursor": "4" * 10**6}, "cursor is '444.{1,200}': expected a whole number"),
    ]
    for change, said in wrong:
        with pytest.raises(StoreError, match=said):
            make(store).load_state_dict({**state, **change})


def test_a_state_of_a_long_run_is_taken_at_once(store: TokenStore, tmp_path: Path):
    saved = make(store)
    take(saved, 3)
    state, size = saved.state_dict(), saved.num_windows
    begin = 10**11 // size * size
    later = {**state, "cursor": begin + 12, "epoch": begin // size, "epoch_start": begin, "digest_from": begin}
    loader = make(store)
    began = time.monotonic()
    loader.load_state_dict(later)
    assert len(batches(loader)) == len(loader) - 3
    torch.save({"state": {**later, "digest": "0123456789abcdef"}}, tmp_path / "x.ckpt")
    with pytest.raises(StoreError, match="The 12 windows that this version"):
        verify_resume(str(tmp_path / "x.ckpt"), {})
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "change",
    [
        {"cursor": 10**12},
        {"cursor": "4"},
        {"digest_from": -5},
        {"num_windows": float("nan")},
        {"more": 1},
        {"mix": {"Go": 1}},
    ],
)
def test_verify_resume_says_at_once_what_cannot_be(store: TokenStore, tmp_path: Path, change: dict[str, Any]):
    loader = make(store)
    take(loader, 3)
    torch.save({"loops": [{**loader.state_dict(), **change}]}, tmp_path / "x.ckpt")
    began = time.monotonic()
    with pytest.raises(StoreError):
        verify_resume(str(tmp_path / "x.ckpt"), {})
    assert time.monotonic() - began < 5


def test_verify_resume_names_the_field_that_is_missing(store: TokenStore, tmp_path: Path):
    state = make(store).state_dict()
    del state["digest"]
    torch.save({"loops": [state]}, tmp_path / "x.ckpt")
    with pytest.raises(StoreError, match="The state lacks digest"):
        verify_resume(str(tmp_path / "x.ckpt"), {})


def test_a_checkpoint_of_the_first_version_is_a_state():
    """Literal states of earlier versions."""
    state = {
        "cursor": 24,
        "epoch": 0,
        "epoch_start": 0,
        "ended": False,
        "origin": 0,
        "taken": [0],
        "digest": "8988be17673d245b",
        "digest_from": 0,
        "num_windows": 1345,
        "stores": [
            {"name": "", "uri": "x.lance", "fingerprint": "f" * 32, "tokens": 21526, "forgotten": [], "version": 1}
        ],
        "split": "train",
        "context_length": 16,
        "order": "shuffle",
        "seed": 0,
        "shuffle_block": None,
        "where": {},
        "mix": {},
    }
    assert checked_state(state) == state
    assert checked_state(copy.deepcopy({**state, "seed": np.int64(0), "taken": (np.int32(0),)})) == state


def datamodule(store: TokenStore, **changes: Any) -> LanceDataModule:
    data = LanceDataModule(store.uri, 8, 4, **changes)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("loader_is_there", [False, True])
@pytest.mark.parametrize("change", [{"cursor": 10**12}, {"taken": None}, {"num_windows": 7}, {"seed": 1}, {"more": 0}])
def test_a_datamodule_that_refuses_a_state_goes_on_as_before(
    store: TokenStore, loader_is_there: bool, change: dict[str, Any]
):
    data, expected = datamodule(store), datamodule(store)
    if loader_is_there:
        take(data.train_dataloader(), 3)
        take(expected.train_dataloader(), 3)
    before, stores = data.state_dict(), data.stores
    state = make(store).state_dict()
    small = prepare(SOURCE, ByteTokenizer(), store.uri, val_fraction=0.0, max_documents=9)
    state["stores"] = make(small).state_dict()["stores"]
    with pytest.raises(StoreError):
        data.load_state_dict({**state, **change})
    assert data.state_dict() == before
    assert data.stores == stores
    assert batches(data.train_dataloader()) == batches(expected.train_dataloader())


@pytest.mark.parametrize("empty", [None, 0, False, "", [], torch.tensor(0), torch.zeros(2), np.zeros(0)])
def test_what_is_empty_and_no_mapping_is_no_first_window(store: TokenStore, empty: Any):
    data = datamodule(store)
    take(data.train_dataloader(), 3)
    before = data.state_dict()
    with pytest.raises(StoreError, match="expected the mapping that"):
        data.load_state_dict(empty)
    assert data.state_dict() == before
    data.load_state_dict({})
    assert data.state_dict()["cursor"] == 0
