"""Columns beside the tokens, from a set of tokens to batches, against documents in plain Python lists.

Each token has its own number as its label. So whatever order windows have, and whatever is cut, packed, rearranged or mixed,
the label of a token that is served says which token it has to be, and whether it is trained on.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import Corpus, LanceDataModule, TokenStore, TokenWindows, WindowLoader
from lightning_lance.build import packing
from lightning_lance.convert import export_tokens, import_tokens, imports
from lightning_lance.convert import source as token_source
from lightning_lance.documents.spans import LOSS_SPANS
from lightning_lance.errors import BuildInterrupted, ConfigError, SourceError, StoreError
from lightning_lance.inspection.show import learned_tokens, show_step
from lightning_lance.maintenance import forget, repacking, verify_store
from lightning_lance.readers.cuts import Cut
from lightning_lance.serving.batches import Batch
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.sources import DatasetSource, dataset_reader
from lightning_lance.store.staging import Copy
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.laws import examples
from tests.support.stores import ListSource, kept
from tests.support.streams import EOS
from tests.support.workers import FakeEngine

CONTEXT = 13
COLUMNS = {"loss_mask": "mask", "token_labels": "number", "repo": "repo"}
FIM = FillInTheMiddle(0, 1, 2, seed=3, fim_rate=0.7)


class Known(NamedTuple):
    """What is known of all tokens, by their numbers: the ids, and whether they are trained on."""

    ids: np.ndarray
    trained: np.ndarray


def write(file: Path, lengths: list[int], seed: int = 0, first: int = 0) -> Known:
    """Write documents of some lengths, some of which end with EOS, and return what is known of their tokens."""
    draw = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"input_ids": [], "mask": [], "number": [], "repo": [], "lang": []}
    ids, trained = [], []
    number = first
    for place, length in enumerate(lengths):
        text = draw.integers(3, 200, length).tolist()
        mask = [bool(flag) for flag in draw.integers(0, 2, length)]
        if place % 5 == 1:
            mask = [False] * length
        if place % 5 == 2:
            mask = [True] * length
        closed = place % 3 == 0
        # EOS of a document that lacks it is trained on as the last token is, and has its label.
        last = not mask[-1] if closed else mask[-1]
        rows["input_ids"].append([*text, EOS] if closed else text)
        rows["mask"].append([*mask, last] if closed else mask)
        rows["number"].append([*range(number, number + length + closed)])
        rows["repo"].append(f"r{place}")
        rows["lang"].append("Go" if place % 2 else "Rust")
        ids += [*text, EOS]
        trained += [*mask, last]
        number += length + 1
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"input_ids": pa.list_(pa.int32()), "mask": pa.list_(pa.bool_()), "number": pa.large_list(pa.int64())}
    table = {name: pa.array(values, kinds.get(name)) for name, values in rows.items()}
    pq.write_table(pa.table(table), file, row_group_size=4)
    return Known(np.asarray(ids), np.asarray(trained))


def imported(folder: Path, file: Path, **options: Any) -> TokenStore:
    options = {"columns": COLUMNS, "data_dir": folder / "data", **options}
    return import_tokens("parquet", file, folder / "x.lance", ByteTokenizer(), **options)


def check(batch: Batch, known: Known, exact: bool = True) -> set[int]:
    """Check a batch, and return the numbers of its tokens. Without `exact`, EOS has the number before its own."""
    ids = batch["input_ids"].numpy()
    labels = batch["token_labels"].numpy()
    trained = batch["loss_mask"].numpy()
    targets = batch["targets"].numpy()
    assert (labels.dtype, trained.dtype) == (np.int64, np.bool_)
    assert np.array_equal(trained, targets != -100)
    is_ours = labels >= 0
    numbers = labels + ((ids == EOS) & (known.ids[np.maximum(labels, 0)] != EOS) & is_ours)
    assert np.array_equal(ids[is_ours], known.ids[numbers[is_ours]])
    # The target of an input is the next token.
    learned = is_ours[:, 1:]
    assert np.array_equal(trained[:, :-1][learned], known.trained[numbers[:, 1:][learned]])
    assert np.array_equal(targets[:, :-1][trained[:, :-1]], ids[:, 1:][trained[:, :-1]])
    return {*numbers[is_ours].tolist()}


def column(store: TokenStore, channel: str) -> list[Any]:
    return store.read_channel(channel, np.zeros(1, np.int64), store.num_tokens()).tolist()[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, TokenStore, Known]:
    """Two stores, of which one has no channels, and what is known of the tokens of the other."""
    folder = tmp_path_factory.mktemp("made")
    known = write(folder / "x.parquet", [5, 40, 1, 13, 9, 70, 2, 3, 26, 33, 8] * 3)
    store = imported(folder, folder / "x.parquet", language_column="lang")
    plain = imported(folder / "plain", folder / "x.parquet", columns={"repo": "repo"}, language_column="lang")
    return store, plain, known


def test_a_store_has_what_the_columns_had(tmp_path: Path):
    known = write(tmp_path / "x.parquet", [5, 3000, 1, 13, 2048, 7])
    store = imported(tmp_path, tmp_path / "x.parquet")
    assert store.channels == ("loss_mask", "token_labels")
    assert store.read(np.zeros(1, np.int64), store.num_tokens())[0].tolist() == known.ids.tolist()
    assert column(store, "loss_mask") == known.trained.tolist()
    places = np.asarray([0, 4, 5, 2046, 3001])
    by_take = TokenStore.open(store.uri, reader="take")
    for reader in (store, by_take):
        assert reader.read_channel("loss_mask", places, 2050).tolist() == [
            known.trained[place : place + 2050].tolist() for place in places
        ]
    assert (store.reader, by_take.reader) == ("mapped", "take")
    # As a store in a bucket reads copies that have arrived.
    copies = {}
    for path in Path(store.uri, "data").iterdir():
        with path.open("rb") as file:
            copies[path.name] = Copy(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    by_take._reader.read_from(copies)
    assert by_take.reader == "mapped"
    for channel in store.channels:
        assert column(by_take, channel) == column(store, channel)
    assert not verify_store(store.uri)
    with pytest.raises(ConfigError, match=r"has no channel 'labels': it has loss_mask and token_labels"):
        store.read_channel("labels", places, 3)


@examples(12)
@given(data=st.data())
def test_whatever_is_served_has_its_own_mask_and_label(made: tuple[TokenStore, TokenStore, Known], data: st.DataObject):
    store, _, known = made
    options: dict[str, Any] = {"windows": data.draw(st.sampled_from(["packed", "stream"]))}
    options["mix"] = data.draw(st.sampled_from([{}, {"Go": 2, "Rust": 1}]))
    options["fim"] = data.draw(st.sampled_from([None, FIM]))
    options["document_ids"] = data.draw(st.booleans())
    size, ranks = data.draw(st.sampled_from([(1, 1), (3, 1), (2, 2), (1, 3)]))
    loaders = [WindowLoader(store, CONTEXT, size, rank=rank, world_size=ranks, **options) for rank in range(ranks)]
    [every] = [WindowLoader(store, CONTEXT, 1, **options)]
    whole = list(every)
    seen = set()
    stopped = data.draw(st.integers(0, len(loaders[0])))
    for rank, loader in enumerate(loaders):
        for step, batch in enumerate(loader):
            assert all(batch[name].equal(value) for name, value in loader.windows(step).batch.items())
            if step == stopped < len(loader) - 1:
                state = loader.state_dict()
                loader = WindowLoader(store, CONTEXT, size, rank=rank, world_size=ranks, **options)
                loader.load_state_dict(state)
                following = next(iter(loader))
                expected = whole[(step + 1) * size * ranks + rank * size :][:size]
                assert following["token_labels"].tolist() == [one["token_labels"].tolist()[0] for one in expected]
                break
            seen |= check(batch, known)
    for batch in whole:
        seen |= check(batch, known)
    if not options["fim"] and not options["mix"] and options["windows"] == "packed":
        assert len(seen) > 0.8 * len(known.ids)


@pytest.mark.parametrize("fim", [None, FIM])
def test_the_rows_of_a_short_context_have_their_own_mask_and_label(
    made: tuple[TokenStore, TokenStore, Known], fim: FillInTheMiddle | None
):
    store, _, known = made
    loader = WindowLoader(store, 12, 2, context_length_schedule=[[0, 4], [3, 12]], fim=fim)
    shapes = []
    for step, batch in enumerate(loader):
        check(batch, known)
        shown = loader.windows(step).batch
        assert {name: part.tolist() for name, part in shown.items()} == {
            name: part.tolist() for name, part in batch.items()
        }
        shapes.append((*batch["loss_mask"].shape,))
    assert shapes[:5] == [(6, 4), (6, 4), (6, 4), (2, 12), (2, 12)]


def test_sentinels_are_trained_on_with_their_document_and_have_no_label(made: tuple[TokenStore, TokenStore, Known]):
    store, _, _ = made
    loader = WindowLoader(store, 64, 4, fim=FIM)
    found: dict[bool, int] = {True: 0, False: 0}
    # Two epochs, which rearrange other documents.
    for step in range(2 * len(loader)):
        windows = loader.windows(step)
        labelled, trained = windows.channels["token_labels"], windows.channels["loss_mask"]
        for tokens, labels, mask in zip(windows.tokens, labelled, trained, strict=True):
            ends = [*(np.flatnonzero(tokens == EOS) + 1).tolist(), len(tokens)]
            begin = 0
            for end in ends:
                is_sentinel = np.isin(tokens[begin:end], [0, 1, 2])
                assert np.array_equal(labels[begin:end] == -100, is_sentinel)
                if is_sentinel.any() and end < len(tokens):
                    expected = mask[begin:end][~is_sentinel].any()
                    assert (mask[begin:end][is_sentinel] == expected).all()
                    found[bool(expected)] += 1
                begin = end
    assert min(found.values()) > 2


def test_a_store_without_channels_is_trained_on_as_a_whole_and_that_is_told(
    made: tuple[TokenStore, TokenStore, Known], caplog: pytest.LogCaptureFixture
):
    store, plain, known = made
    loader = WindowLoader({"chat": store, "prose": plain}, CONTEXT, 4, mix={"chat": 1, "prose": 1})
    assert "The store 'prose' has no loss_mask: all its tokens are trained on." in caplog.text
    assert "The store 'prose' has no token_labels: the label of all its tokens is -100." in caplog.text
    of_plain = 0
    for step, batch in enumerate(loader):
        check(batch, known)
        names = loader.windows(step).stores
        for number, name in enumerate(names):
            if name == "prose":
                of_plain += 1
                assert (batch["token_labels"][number] == -100).all()
                assert batch["loss_mask"][number].all()
    assert of_plain > 10
    # Without channels, batches are what they were.
    assert [*next(iter(WindowLoader(plain, CONTEXT, 4)))] == ["input_ids", "targets"]
    asked = next(iter(WindowLoader(plain, CONTEXT, 4, channels=["loss_mask"])))
    assert [*asked] == ["input_ids", "targets", "loss_mask"]
    assert asked["loss_mask"].all()
    for wrong in (["mask"], "loss_mask", [1], 3):
        with pytest.raises(ConfigError, match=r"channels (has|is) .*: expected a list of channels, of which there are"):
            WindowLoader(plain, CONTEXT, 4, channels=wrong)  # type: ignore[arg-type]


def test_all_loaders_of_a_datamodule_have_batches_with_the_same_keys(tmp_path: Path):
    write(tmp_path / "x.parquet", [20] * 30)
    chosen = [{"loss_mask": "mask"}, {}, {"token_labels": "number"}]
    corpora: dict[str, Any] = {}
    for name, columns, language in zip(("chat", "prose", "code"), chosen, ("Go", "Rust", "C"), strict=True):
        options: dict[str, Any] = {"columns": columns, "language": language, "val_fraction": 0.5}
        corpora[name] = imported(tmp_path / name, tmp_path / "x.parquet", **options).uri
    ways: list[dict[str, Any]] = [
        {"val_by": "store"},
        {"val_by": "language", "batch_format": "huggingface"},
        {"val_by": "store", "mix": {"chat": 1, "prose": 1}},
    ]
    for way in ways:
        data = LanceDataModule(corpora, 8, 2, **way)
        data.setup("fit")
        loaders = [data.train_dataloader(), data.predict_dataloader(), *data.val_dataloader()]
        assert data.val_names == ["", *(way.get("mix") or (["C", "Go", "Rust"] if "batch_format" in way else corpora))]
        batches = [next(iter(loader)) for loader in loaders]
        assert {(*batch,) for batch in batches} == {(*batches[0],)}
        assert "token_labels" in batches[0]
        of_prose = batches[2 + data.val_names.index("Rust" if "batch_format" in way else "prose")]
        assert (of_prose["token_labels"] == -100).all()
        assert ("loss_mask" in of_prose) == ("batch_format" not in way)
        assert of_prose.get("loss_mask", torch.ones(1)).all()


def test_labels_of_transformers_and_windows_of_a_dataset(made: tuple[TokenStore, TokenStore, Known]):
    store, _, known = made
    plain = TokenWindows(store, CONTEXT)
    theirs = TokenWindows(store, CONTEXT, batch_format="huggingface")
    for place in range(len(plain)):
        check({name: value[None] for name, value in plain[place].items()}, known)
        batch = theirs[place]
        assert [*batch] == ["input_ids", "labels", "token_labels"]
        expected = np.where(known.trained[batch["token_labels"].numpy()], batch["input_ids"].numpy(), -100)
        numbered = batch["input_ids"].numpy() != EOS
        assert np.array_equal(batch["labels"].numpy()[numbered], expected[numbered])


def test_borders_that_are_masked_are_masked_in_both(made: tuple[TokenStore, TokenStore, Known]):
    store, _, _ = made
    batch = next(iter(WindowLoader(store, 64, 4, mask_boundary_targets=True)))
    plain = next(iter(WindowLoader(store, 64, 4)))
    at_eos = batch["input_ids"] == EOS
    assert not batch["loss_mask"][at_eos].any()
    assert (batch["targets"][at_eos] == -100).all()
    assert np.array_equal(batch["loss_mask"][~at_eos], plain["loss_mask"][~at_eos])
    # And shown as such: targets begin with the second token of a window.
    for number, window in enumerate(show_step(WindowLoader(store, 64, 4), 0)):
        shown = {piece.trained for document in window.documents for piece in document.pieces}
        assert shown == {False, *plain["loss_mask"][number].tolist()}
    assert learned_tokens(WindowLoader(store, 64, 4), 0) == (int(plain["loss_mask"].sum()), 256)


def test_kills_merges_growth_and_removal_keep_them_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lengths = [5, 900, 1, 13, 300, 70, 2, 2100, 26, 33, 8] * 4
    known = write(tmp_path / "x.parquet", lengths)
    monkeypatch.setattr(dataset_reader, "BATCH_ROWS", 3)
    monkeypatch.setattr(repacking, "_ROWS", 2)
    monkeypatch.setattr(repacking, "_ROWS_WRITTEN", 1)
    encoded = imports._encoded
    calls: list[int] = []

    def stopping(batch: pa.Table) -> Any:
        calls.append(len(batch))
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return encoded(batch)

    monkeypatch.setattr(imports, "_encoded", stopping)
    stops = 0
    for budget in (20, 35, None):
        while True:
            try:
                store = imported(tmp_path, tmp_path / "x.parquet", commit_tokens=1, max_documents=budget)
                break
            except BuildInterrupted:
                stops += 1
        count = sum(lengths[:budget]) + len(lengths[:budget])
        assert column(store, "loss_mask") == known.trained[:count].tolist()
        assert store.read(np.zeros(1, np.int64), count)[0].tolist() == known.ids[:count].tolist()
    assert stops == 2
    whole = column(store, "token_labels")
    forget(store.uri, {"repo": "r7"})
    begin = sum(lengths[:7]) + 7
    end = begin + lengths[7] + 1
    left = TokenStore.open(store.uri)
    assert column(left, "loss_mask") == np.delete(known.trained, slice(begin, end)).tolist()
    assert column(left, "token_labels") == np.delete(whole, slice(begin, end)).tolist()
    assert not verify_store(store.uri)


def test_what_a_rule_keeps_out_of_a_growing_store_takes_its_values_along(tmp_path: Path):
    lengths = [5, 9, 1, 13, 30, 7, 2, 21]
    known = write(tmp_path / "x.parquet", lengths)
    store = imported(tmp_path, tmp_path / "x.parquet", max_documents=3)
    forget(store.uri, {"repo": "r5"}, future=True)
    grown = imported(tmp_path, tmp_path / "x.parquet")
    begin = sum(lengths[:5]) + 5
    gone = slice(begin, begin + lengths[5] + 1)
    assert grown.read(np.zeros(1, np.int64), grown.num_tokens())[0].tolist() == np.delete(known.ids, gone).tolist()
    assert column(grown, "loss_mask") == np.delete(known.trained, gone).tolist()


def test_documents_that_end_at_eos_take_their_values_along(tmp_path: Path):
    known = write(tmp_path / "closed.parquet", [5, 40, 1, 13, 9, 70, 2, 3])
    numbers = np.arange(len(known.ids))
    # Samples of one length, across documents and files; the last one does not end with EOS.
    for file, cut in enumerate(np.split(np.arange(len(numbers) - 1), [63, 98])):
        rows: dict[str, list[Any]] = {}
        for name, values in {"input_ids": known.ids, "mask": known.trained, "number": numbers}.items():
            rows[name] = [part.tolist() for part in np.split(values[cut], range(7, len(cut), 7))]
        pq.write_table(pa.table(rows), tmp_path / f"{file}.parquet")
    columns = {"loss_mask": "mask", "token_labels": "number"}
    store = imported(tmp_path, tmp_path / "[0-9].parquet", columns=columns, documents="eos")
    assert store.read(np.zeros(1, np.int64), store.num_tokens())[0].tolist() == known.ids.tolist()
    assert column(store, "loss_mask") == [*known.trained[:-1].tolist(), known.trained[-2]]
    assert column(store, "token_labels") == [*numbers[:-1].tolist(), numbers[-2]]
    pq.write_table(pa.table({"input_ids": [[1, 2], [3, EOS]], "mask": [[1, 1], [0]]}), tmp_path / "odd.parquet")
    with pytest.raises(ConfigError, match=r"^Item 1 of .* has 1 values of loss_mask and 2 ids: expected as many"):
        imported(tmp_path, tmp_path / "odd.parquet", columns={"loss_mask": "mask"}, documents="eos", rebuild=True)


def test_values_that_cannot_be_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file may have been written as it should not be: then its checksum is right."""
    write(tmp_path / "x.parquet", [5, 40, 1])
    stored_values, blocks_of = token_source.stored_values, packing.blocks_of

    def twice(*given: Any) -> Any:
        return 2 * stored_values(*given)

    def filled(values: Any, block: int) -> Any:
        return blocks_of(np.maximum(values, 1), block)

    for module, name, wrong, said in [
        (token_source, "stored_values", twice, "has the loss_mask 2, which is neither 0 nor 1"),
        (packing, "blocks_of", filled, "has more values of loss_mask than tokens"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            store = imported(tmp_path / name, tmp_path / "x.parquet", columns={"loss_mask": "mask"})
        assert [problem.what for problem in verify_store(store.uri)] == [said]


def test_what_is_exported_is_imported_again(made: tuple[TokenStore, TokenStore, Known], tmp_path: Path, caplog: Any):
    store, _, _ = made
    export_tokens(store.uri, "parquet", tmp_path / "out")
    again = import_tokens(
        "parquet",
        tmp_path / "out",
        tmp_path / "again.lance",
        ByteTokenizer(),
        columns={"loss_mask": "loss_mask", "token_labels": "token_labels"},
        language_column="language",
        data_dir=tmp_path / "data",
    )
    for channel in store.channels:
        assert column(again, channel) == column(store, channel)
    export_tokens(store.uri, "megatron", tmp_path / "megatron")
    assert "The format megatron has no place for loss_mask and token_labels, which is left out" in caplog.text


def test_labels_of_hugging_face_are_a_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [[5, 6, 7], [8, 9], [1, 1]]
    labels = [[-100, 6, 7], [-100, -100], [1, 1]]
    pq.write_table(pa.table({"input_ids": rows, "labels": labels}), tmp_path / "x.parquet")
    caplog.set_level("INFO")
    assert imported(tmp_path / "plain", tmp_path / "x.parquet", columns={}).channels == ()
    assert (
        caplog.text.count("The set has a column 'labels', which is not taken: columns.hf_labels=labels takes it.") == 1
    )
    store = imported(tmp_path, tmp_path / "x.parquet", columns={"hf_labels": "labels"})
    assert column(store, "loss_mask") == [False, True, True, True, False, False, False, True, True, True]
    assert store.channels == ("loss_mask",)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (
            {"loss_mask": "m"},
            [[1, 1], [1, 0]],
            r"Document 1 of .* has 2 values of loss_mask and 3 ids: expected as many",
        ),
        ({"loss_mask": "m"}, [[1, 1], None], r"Document 1 of .* has 0 values of loss_mask and 3 ids"),
        (
            {"loss_mask": "m"},
            [[1, 1], [1, -100, 1]],
            r"Document 1 of .* has the value -100 of loss_mask: .*columns.hf_labels",
        ),
        (
            {"hf_labels": "m"},
            [[1, 2], [-100, 4, 4]],
            r"Document 1 of .* has the value 4 of hf_labels: .*columns.token_labels",
        ),
        (
            {"token_labels": "m"},
            [[1, 2], [1, 1 << 40, 1]],
            r"has the value 1,099,511,627,776 of token_labels: .*32 bits",
        ),
        ({"loss_mask": "m"}, [[1, 1], [1, None, 1]], r"has null among its values of loss_mask"),
        (
            {"loss_mask": "m"},
            [["a"], ["b"]],
            r"Column 'm' of .* holds list<.*string>, expected lists with a value for each id",
        ),
        ({"loss_mask": "n"}, [[1, 1], [1, 1, 1]], r"has no column 'n'"),
        ({"loss_mask": "m", "hf_labels": "m"}, [[1, 1], [1, 1, 1]], r"both say what is trained on"),
    ],
)
def test_what_is_not_aligned_is_refused(tmp_path: Path, columns: dict[str, str], values: Any, message: str):
    pq.write_table(pa.table({"input_ids": [[1, 2], [3, 4, 5]], "m": values}), tmp_path / "x.parquet")
    with pytest.raises((ConfigError, SourceError), match=message):
        imported(tmp_path, tmp_path / "x.parquet", columns=columns)


# Parts of texts.


@dataclass(frozen=True)
class SpannedSource(ListSource):
    """Documents of which parts are trained on, in shards that are cut after any row."""

    spans: tuple[Any, ...] = ()
    channels: tuple[str, ...] = ("loss_mask",)

    def cuts(self, shard: int, part_bytes: int) -> list[Cut]:
        return [Cut(row, row) for row in range(part_bytes, self.per_shard, part_bytes)]

    def begin_at(self, shard: int, cut: Cut) -> None:
        pass

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for batch in super().read(shard, row):
            first = shard * self.per_shard
            rows = batch.column("row").to_pylist()
            spans = [self.spans[first + row] for row in rows]
            yield batch.append_column(LOSS_SPANS, pa.array(spans, pa.large_list(pa.int64())))


def trained_bytes(text: str, spans: list[int] | None) -> list[bool]:
    """Return which bytes of a text, and of EOS, are trained on, character by character."""
    pairs = [(0, len(text))] if spans is None else [*zip(spans[::2], spans[1::2], strict=True)]
    flags = []
    for place, character in enumerate(text):
        flag = any(low <= place < high for low, high in pairs)
        flags += [flag] * len(character.encode())
    return [*flags, flags[-1]]


written = st.sampled_from(["a", "bb", "é🙂x", "ccc" * 700, "d\n", " ", "", None, "ü" * 1500, "the end"])
spanned = st.tuples(written, st.sampled_from(["C", "Go"]), st.none() | st.lists(st.floats(0, 1), max_size=4))


@examples(10)
@given(st.lists(spanned, min_size=1, max_size=20), st.sampled_from(["none", "exact"]), st.data())
def test_spans_of_texts_are_masks_on_both_engines(made: list[Any], dedup: Any, data: st.DataObject):
    documents, spans = [], []
    expected: dict[tuple[str, str], list[bool]] = {}
    seen = set()
    for number, (text, language, shares) in enumerate([*made, ("last", "C", None)]):
        flat = None
        if shares is not None:
            sides = sorted(int(share * len(text or "")) for share in shares)
            flat = sides[: len(sides) // 2 * 2]
        documents.append((text, language, f"r{number}"))
        spans.append(flat)
        if kept(text) and (dedup == "none" or text not in seen):
            expected.setdefault(("train", language), []).extend(trained_bytes(text, flat))
            seen.add(text)
    source = SpannedSource(tuple(documents), dedup=dedup, spans=tuple(spans))
    engines = [("local", "local"), ("cluster", FakeEngine(data.draw(st.integers(0, 99)), unit_bytes=2, deaths=0.2))]
    with TemporaryDirectory() as folder:
        for name, engine in engines:
            corpus = Corpus(source, ByteTokenizer(), Path(folder, f"{name}.lance"), val_fraction=0.0)
            store = corpus.prepare(engine=engine, durable=False, commit_seconds=data.draw(st.sampled_from([0.0, 60.0])))
            masks = {}
            for stream in store.streams():
                found = store.read_channel("loss_mask", np.asarray([stream.start]), stream.num_tokens)
                masks["train", stream.language] = found[0].tolist()
            assert masks == dict(sorted(expected.items()))


def test_spans_in_columns_of_files(tmp_path: Path):
    rows = [
        {"text": "\ufeffask answer", "spans": [[5, 11]]},
        {"text": "all of it"},
        {"text": "é no", "spans": []},
        {"text": "two é parts", "spans": [{"begin": 0, "end": 3}, {"begin": 6, "end": 11}]},
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8")
    spans = [[[5, 11]], None, [], [[0, 3], [6, 11]]]
    pq.write_table(pa.table({"text": [row["text"] for row in rows], "spans": spans}), tmp_path / "x.parquet")
    expected = []
    for text, flat in [("ask answer", [4, 10]), ("all of it", None), ("é no", []), ("two é parts", [0, 3, 6, 11])]:
        expected += trained_bytes(text, flat)
    made = {}
    for name, source in {
        "lines": DatasetSource.jsonl(tmp_path / "x.jsonl", loss_mask_column="spans"),
        "parquet": DatasetSource.parquet(tmp_path / "x.parquet", loss_mask_column="spans"),
    }.items():
        corpus = Corpus(source, ByteTokenizer(), tmp_path / f"{name}.lance", val_fraction=0.0)
        made[name] = corpus.prepare()
        assert column(made[name], "loss_mask") == expected, name
    # The column decides what is stored.
    plain = Corpus(
        DatasetSource.jsonl(tmp_path / "x.jsonl"), ByteTokenizer(), tmp_path / "lines.lance", val_fraction=0.0
    )
    with pytest.raises(
        StoreError, match=r"channels: \['loss_mask'\] -> None; source.loss_mask_column: 'spans' -> None"
    ):
        plain.prepare()
    (tmp_path / "x.jsonl").write_text('{"text": "abc", "spans": [[1, 4]]}\n')
    again = Corpus(
        DatasetSource.jsonl(tmp_path / "x.jsonl", loss_mask_column="spans"), ByteTokenizer(), tmp_path / "y.lance"
    )
    with pytest.raises(ConfigError, match=r"Document 0 of shard '.*' has the span \[1, 4\] in a text of 3 characters"):
        again.prepare()
    with pytest.raises(ConfigError, match=r"has no column 'span'.*: .*set source.loss_mask_column"):
        DatasetSource.jsonl(tmp_path / "x.jsonl", loss_mask_column="span").open()
    with pytest.raises(ConfigError, match=r"source.loss_mask_column is 'text', the column of the text"):
        DatasetSource.jsonl(tmp_path / "x.jsonl", loss_mask_column="text")
