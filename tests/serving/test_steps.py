"""The windows of a step, past or to come, of any rank: those that its batch has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents

SOURCE = ListSource(
    (
        *documents(*(f"go {i:03d} " * 9 for i in range(9)), language="Go"),
        *documents(*["rust " * 20] * 3, language="Rust"),
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def make(store: Any, **options: Any) -> WindowLoader:
    return WindowLoader(store, **{"context_length": 16, "batch_size": 3, **options})


@pytest.mark.parametrize("remainder", ["drop", "wrap", "short"])
@pytest.mark.parametrize("mix", [{}, {"Go": 3, "Rust": 1}], ids=str)
def test_a_step_has_the_windows_of_its_batch(store: TokenStore, remainder: str, mix: dict[str, float]):
    """Two epochs of a lone rank: from the begin, and at any later time."""
    loader = make(store, remainder=remainder, mix=mix)
    ahead = [loader.windows(step).tokens[:, :-1].tolist() for step in range(2 * len(loader))]
    served = []
    for epoch in range(2):
        for number, batch in enumerate(loader):
            served.append(batch["input_ids"].tolist())
            if number + 1 < len(loader):
                assert loader.step == epoch * len(loader) + number + 1
        assert loader.step == (epoch + 1) * len(loader)
    assert served == ahead
    assert [loader.windows(step).tokens[:, :-1].tolist() for step in range(len(served))] == served


@pytest.mark.parametrize("rank", [0, 1])
def test_the_stream_of_each_window_is_that_of_its_documents(tmp_path: Path, store: TokenStore, rank: int):
    other = prepare(ListSource(documents(*["c " * 60] * 3, language="C")), ByteTokenizer(), data_dir=tmp_path)
    loader = make({"a": store, "b": other}, rank=rank, world_size=2, remainder="short")
    steps = [0, 2, len(loader) - 1, len(loader)]
    expected = []
    for step in steps:
        served = loader.windows(step)
        # All documents of a window have one language.
        languages = dict(
            zip(*(served.documents.column(name).to_pylist() for name in ("window", "language")), strict=True)
        )
        expected += [(name, languages[window]) for window, name in enumerate(served.stores)]
    assert loader.streams_of(steps) == expected
    assert {*expected} == {("a", "Go"), ("a", "Rust"), ("b", "C")}
    assert loader.streams_of([]) == []


def test_each_rank_knows_the_windows_of_the_others(store: TokenStore):
    loaders = [make(store, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 1, 5):
        for rank in range(2):
            seen = [loader.windows(step, rank).starts.tolist() for loader in loaders]
            assert seen[0] == seen[1] == loaders[rank].windows(step).starts.tolist()
    every = [
        start for rank in range(2) for step in range(len(loaders[0])) for start in loaders[0].windows(step, rank).starts
    ]
    assert len({*every}) == len(every)


def test_a_resume_on_other_ranks_goes_on_at_the_next_step(store: TokenStore):
    first = make(store)
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    resumed = make(store, batch_size=2)
    resumed.load_state_dict(first.state_dict())
    step = resumed.step
    assert next(iter(resumed))["input_ids"].tolist() == resumed.windows(step).tokens[:, :-1].tolist()
    last = resumed.step + len(resumed)
    with pytest.raises(ConfigError, match=r"step is -1: expected a number of a batch, from 0"):
        resumed.windows(-1)
    with pytest.raises(ConfigError, match="rank is 1 of 1"):
        resumed.windows(last, rank=1)
    longer = make(store, context_length=20)
    longer.load_state_dict(first.state_dict())
    with pytest.raises(StoreError, match="Step 0 was served before the data, the weights or context_length changed"):
        longer.windows(0)
    known = longer.first_known_step
    assert longer.windows(known).tokens[:, :-1].tolist() == next(iter(longer))["input_ids"].tolist()
    with pytest.raises(StoreError, match="was served before"):
        longer.windows(known - 1)
    assert (first.first_known_step, resumed.first_known_step) == (0, 0)


@pytest.mark.parametrize("schedule", [(), [[0, 2], [9, 3], [31, 5]]], ids=str)
@pytest.mark.parametrize("remainder", ["drop", "wrap", "short"])
def test_what_was_served_after_a_resume_on_other_sizes_is_known_once_its_epoch_has_ended(
    store: TokenStore, remainder: str, schedule: Any
):
    options: dict[str, Any] = {"remainder": remainder}
    for consumed in (3, 7):
        first = make(store, batch_size=1, **options)
        for _ in zip(range(consumed), first, strict=False):
            pass
        loader = make(store, batch_size=5, batch_size_schedule=schedule, **options)
        loader.load_state_dict(first.state_dict())
        served = {}
        for _ in range(2):
            for batch in loader:
                served[loader.last_step] = batch["input_ids"].tolist()
                assert loader.windows(loader.last_step).tokens[:, :-1].tolist() == served[loader.last_step]
            # And later, as a callback asks that looks back over some steps.
            seen = {step: loader.windows(step).tokens[:, :-1].tolist() for step in served}
            assert seen == served
            if remainder == "drop" and loader.last_step == max(served):
                opened = make(store, batch_size=5, batch_size_schedule=schedule, **options)
                opened.load_state_dict(loader.state_dict())
                last = loader.last_step
                assert opened.windows(last).tokens[:, :-1].tolist() == served[last]


def test_documents_and_text_of_a_step(store: TokenStore):
    loader = make({"one": store, "two": store}, mix={"one": 1, "two": 2})
    found = loader.windows(4)
    assert sorted(found.stores) == ["one", "two", "two"]
    assert found.text == [store.decode(window) for window in found.tokens]
    assert all("go " in text or "rust" in text for text in found.text)
    rows = found.documents.to_pylist()
    assert [row["window"] for row in rows] == sorted(row["window"] for row in rows)
    for number, start in enumerate(found.starts):
        assert [{**row, "window": number} for row in store.documents(np.array([start]), 17).to_pylist()] == [
            row for row in rows if row["window"] == number
        ]
    assert repr(found).startswith("ServedWindows(step=4, rank=0, starts=[")
    assert len(found) == 3


def test_what_a_loader_rearranges_is_shown_as_it_is_served(tmp_path_factory: pytest.TempPathFactory):
    source = ListSource(documents(*(f"some {i} words of a text " * 3 for i in range(30))))
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("fim"), val_fraction=0.0)
    loader = make(store, fim=FillInTheMiddle(1, 2, 3, seed=0, fim_rate=1.0))
    found = loader.windows(0)
    assert found.tokens[:, :-1].tolist() == next(iter(loader))["input_ids"].tolist()


def test_a_store_decodes_what_it_holds(store: TokenStore):
    window = store.read(np.array([0]), 12)[0]
    text = store.decode(window)
    assert text == bytes(window.tolist()).decode()
    assert store.decode(torch.tensor(window.astype(np.int64))) == text
    assert store.decode([window, window]) == [text, text]
    assert store.decode(torch.tensor([[1, 2], [3, 4]]).reshape(1, 2, 2)) == [
        [store.decode([1, 2]), store.decode([3, 4])]
    ]
    assert store.decode([]) == ""
    assert store.decode([store.commit.eos_id]) == store.commit.eos_token
    assert store.tokenizer.eos_id == store.commit.eos_id
    for wrong in (-100, 257):
        with pytest.raises(ConfigError, match=f"ids has {wrong}: expected ids of tokens, from 0 to 256"):
            store.decode([5, wrong])
    for kind in ("text", 5, [1.5]):
        with pytest.raises(ConfigError, match="expected a list of whole numbers"):
            store.decode(kind)


@pytest.mark.parametrize("remainder", ["drop", "short"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": {"Go": 3, "Rust": 1}},
        {"order": "random"},
        {"shuffle_block": 3},
        {"batch_size_schedule": [[0, 1], [22, 2]]},
        {"batch_size_schedule": [[0, 1], [32, 2]], "mix": {"Go": 3, "Rust": 1}},
    ],
    ids=str,
)
def test_every_step_with_a_document_is_found(store: TokenStore, remainder: str, options: dict[str, Any]):
    """Against a search through the windows of all steps, after a resume with other sizes in the second epoch."""
    before = make(store, batch_size=2, **options)
    list(before)
    for _, _ in zip(range(5), before, strict=False):
        pass
    loader = make(store, remainder=remainder, world_size=2, batch_size=2, **options)
    loader.load_state_dict(before.state_dict())
    [document] = store.find_documents({"id": "0:2"}).to_pylist()
    begin, end = document["begin"], document["end"]
    expected = []
    last = 4 * len(loader)
    for step in range(last):
        for rank in range(2):
            try:
                windows = loader.windows(step, rank)
            except (ConfigError, StoreError):
                continue
            for number, start in enumerate(windows.starts.tolist()):
                if start < end and start + 17 > begin:
                    expected.append((step, rank, number, max(begin - start, 0), min(end - start, 17)))
    found = loader.find("", begin, end, last)
    places = [*zip(*(column.tolist() for column in found[:5]), strict=True)]
    assert expected
    assert sorted(expected) == sorted(place for place in places if place[0] >= 0)
