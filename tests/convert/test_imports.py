"""Token sets of other tools, as those tools wrote them: see tests/fixtures/formats/make.py."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lightning_lance.convert import chunk_files, documents, import_tokens, imports, litdata, megatron, nanogpt
from lightning_lance.errors import BuildInterrupted, ConfigError, StoreError
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization import ByteTokenizer, TrainedBPE
from tests.support.hub import Hub
from tests.support.paths import ROOT
from tests.support.streams import EOS, streams

FORMATS = ROOT / "tests/fixtures/formats"
DOCUMENTS: dict[str, list[list[int]]] = json.loads((FORMATS / "documents.json").read_text())
# The last tokens of `mds_cut/val` fill no sample.
CUT = {"train": DOCUMENTS["train"], "val": [*DOCUMENTS["val"][:4], DOCUMENTS["val"][4][:4]]}

Import = Callable[..., TokenStore]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Imports a set of tokens."""

    def make(kind: str, place: Path | str, uri: str = "x.lance", **options: Any) -> TokenStore:
        options = {"data_dir": tmp_path / "data", "tokenizer": ByteTokenizer(), **options}
        return import_tokens(kind, place, tmp_path / uri, **options)

    return make


def joined(split: list[list[int]]) -> list[int]:
    return [token for ids in split for token in [*ids, EOS]]


def tokens_of(store: TokenStore) -> dict[str, list[int]]:
    return {split: found for (split, language), found in streams(store).items() if not language}


def documents_of(store: TokenStore, split: str = "train") -> list[list[int]]:
    begins = store.document_begins(split)
    tokens = store.read(np.zeros(1, np.int64), store.num_tokens(split), split)[0]
    return [part.tolist()[:-1] for part in np.split(tokens, begins[1:])]


def write_nanogpt(folder: Path, ending: list[int] | None = None) -> Path:
    folder.mkdir(parents=True)
    for split, made in DOCUMENTS.items():
        np.asarray([*joined(made), *(ending or [])], np.uint16).tofile(folder / f"{split}.bin")
    return folder


def write_parquet(file: Path, rows: list[list[int] | None], **columns: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32())), **columns}), file, row_group_size=3)
    return file


# Token for token.


@pytest.mark.parametrize(
    ("kind", "place", "options", "expected"),
    [
        ("megatron", "megatron", {}, DOCUMENTS),
        ("megatron", "megatron/train_several", {"val": FORMATS / "megatron/val_several.idx"}, DOCUMENTS),
        ("megatron", "megatron/train_several", {"val": FORMATS / "megatron/val.bin"}, DOCUMENTS),
        ("megatron", "megatron", {"documents": "eos"}, DOCUMENTS),
        ("mds", "mds", {}, DOCUMENTS),
        ("mds", "mds_zstd", {}, DOCUMENTS),
        ("mds", "mds_cut", {"documents": "eos"}, CUT),
        ("litdata", "litdata", {}, DOCUMENTS),
        ("litdata", "litdata_zstd", {}, DOCUMENTS),
        ("litdata", "litdata", {"documents": "eos"}, DOCUMENTS),
    ],
)
def test_what_other_tools_wrote_is_stored_token_for_token(
    imported: Import, kind: str, place: str, options: dict[str, Any], expected: dict[str, list[list[int]]]
):
    store = imported(kind, FORMATS / place, **options)
    assert tokens_of(store) == {split: joined(made) for split, made in expected.items()}
    for split, made in expected.items():
        assert documents_of(store, split) == made
    assert store.commit.exhausted
    assert store.tokenizer.eos_id == EOS


@pytest.mark.parametrize(
    ("place", "columns", "options"),
    [
        ("mds_masks", {"loss_mask": "mask"}, {"dtype": "uint16"}),
        ("mds_masks", {"hf_labels": "labels"}, {"dtype": "uint16"}),
        ("mds_masks_cut", {"loss_mask": "mask"}, {"documents": "eos"}),
    ],
)
def test_masks_and_labels_of_mds_stay_with_their_tokens(
    imported: Import, place: str, columns: dict[str, str], options: dict[str, Any]
):
    store = imported("mds", FORMATS / place, columns={**columns, "token_labels": "number"}, **options)
    for split, made in DOCUMENTS.items():
        flat = joined(made)
        size = len(flat) // 16 * 16 if place == "mds_masks_cut" else len(flat)
        numbers = [*range(size)]
        # EOS that is added has what the token before it has.
        if flat[size - 1] != EOS:
            numbers.append(size - 1)
        found = {}
        for channel in store.channels:
            found[channel] = store.read_channel(channel, np.zeros(1, np.int64), len(numbers), split)[0].tolist()
        assert store.num_tokens(split) == len(numbers)
        assert found == {"loss_mask": [number % 3 > 0 for number in numbers], "token_labels": numbers}


def test_masks_of_mds_that_do_not_fit_are_named(imported: Import, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    imported("mds", FORMATS / "mds_masks", dtype="uint16")
    assert "The set has a column 'labels', which is not taken: columns.hf_labels=labels takes it." in caplog.text
    for columns, message in [
        ({"token_labels": "mask"}, r"^The column 'mask' .* is of 'bytes', expected ndarray: .*columns.token_labels"),
        ({"loss_mask": "labels"}, r"^Document 0 of .* of loss_mask: expected 0 and 1"),
        ({"hf_labels": "mask"}, r"^Document 0 of .* has the value 0 of hf_labels: expected -100 or the id"),
    ]:
        with pytest.raises(ConfigError, match=message):
            imported("mds", FORMATS / "mds_masks", "y.lance", dtype="uint16", columns=columns)
    with pytest.raises(ConfigError, match=r"'source' .* is of 'str', expected bytes or ndarray"):
        imported("mds", FORMATS / "mds", "y.lance", columns={"loss_mask": "source"})
    # Some bytes for each sample, in place of some for each id.
    shutil.copytree(FORMATS / "mds/train", tmp_path / "odd")
    index = tmp_path / "odd/index.json"
    index.write_text(index.read_text().replace('"str"', '"bytes"'))
    message = r"^Sample 0 of .* has 6 bytes of loss_mask and \d+ ids: expected 1, 2, 4 or 8 for each\.$"
    with pytest.raises(ConfigError, match=message):
        imported("mds", tmp_path / "odd", "y.lance", columns={"loss_mask": "source"})


def test_a_stream_without_eos_is_told(imported: Import, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "x.bin"
    np.arange(5, 60, dtype=np.uint16).tofile(file)
    assert documents_of(imported("nanogpt", file)) == [[*range(5, 60)]]
    assert (
        f"x.bin' has no EOS, which is the id {EOS}: all of it is one document; if it has several, give" in caplog.text
    )


def test_nanogpt_files_are_cut_at_eos(imported: Import, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_nanogpt(tmp_path / "nanogpt")
    store = imported("nanogpt", folder)
    assert tokens_of(store) == {split: joined(made) for split, made in DOCUMENTS.items()}
    assert documents_of(store) == DOCUMENTS["train"]
    # What follows the last EOS is a document too.
    rest = imported("nanogpt", write_nanogpt(tmp_path / "rest", [5, 6]), "rest.lance")
    assert documents_of(rest) == [*DOCUMENTS["train"], [5, 6]]
    assert "has no EOS" not in caplog.text
    alone = imported("nanogpt", folder / "train.bin", "alone.lance", val_fraction=0.3)
    assert 0 < alone.num_tokens("val") < alone.num_tokens("train")
    assert sorted(documents_of(alone) + documents_of(alone, "val")) == sorted(DOCUMENTS["train"])


def test_parquet_keeps_languages_and_metadata(imported: Import, tmp_path: Path):
    made = DOCUMENTS["train"]
    others = {"repo_name": [f"r{i % 3}" for i in range(len(made))], "lang": ["Rust", "Python"] * (len(made) // 2)}
    for low in (0, 7):
        columns = {name: values[low : low + 7] for name, values in others.items()}
        write_parquet(tmp_path / f"corpus/train-{low}.parquet", made[low : low + 7], **columns)
    write_parquet(tmp_path / "corpus/validation-0.parquet", DOCUMENTS["val"], repo_name=["v"] * 5, lang=["Rust"] * 5)
    store = imported("parquet", tmp_path / "corpus", columns={"repo": "repo_name"}, language_column="lang")
    assert streams(store) == {
        ("train", "Python"): joined(made[1::2]),
        ("train", "Rust"): joined(made[::2]),
        ("val", "Rust"): joined(DOCUMENTS["val"]),
    }
    assert len(store.find_documents({"repo": "r1"})) == others["repo_name"].count("r1")
    # The texts of MDS are metadata too.
    mds = imported("mds", FORMATS / "mds", "mds.lance", columns={"book": "source"}, language="Python")
    assert len(mds.find_documents({"book": "book 1", "language": "Python"})) == 5


IMPORT = """
import json, sys
from lightning_lance.convert import import_tokens
from lightning_lance.tokenization import ByteTokenizer
store = import_tokens("parquet", "owner/tokens", "x.lance", ByteTokenizer(), val="validation")
print(json.dumps([store.version, store.commit.pin, {split: store.read([0], store.num_tokens(split), split)[0].tolist()
                 for split in ("train", "val")}]))
"""


def test_a_dataset_of_the_hub_is_pinned_to_its_commit(tmp_path: Path):
    repository = tmp_path / "hub/datasets/owner/tokens/data"
    write_parquet(repository / "train-00000-of-00001.parquet", DOCUMENTS["train"])
    write_parquet(repository / "validation-00000-of-00001.parquet", DOCUMENTS["val"])
    with Hub(tmp_path / "hub") as hub:
        first, again = (hub.run(IMPORT, tmp_path / "home") for _ in range(2))
    assert first.returncode == 0, first.stderr
    version, pin, tokens = json.loads(first.stdout)
    assert tokens == {split: joined(made) for split, made in DOCUMENTS.items()}
    assert len(pin["train"]["revision"]) == 40
    assert json.loads(again.stdout) == [version, pin, tokens]


# Once.


def test_an_import_that_is_run_again_builds_nothing(imported: Import, tmp_path: Path):
    folder = write_nanogpt(tmp_path / "nanogpt")
    store = imported("nanogpt", folder)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.suffix != ".lock"}
    # Wherever the files are now.
    shutil.move(folder, tmp_path / "moved")
    again = imported("nanogpt", tmp_path / "moved")
    assert again.version == store.version
    now = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.suffix != ".lock"}
    inside = {file: time for file, time in files.items() if file.is_file() and ".lance" in str(file)}
    assert inside.items() <= now.items()
    with pytest.raises(StoreError, match=r"built with other settings .*documents.*: give another uri"):
        imported("megatron", FORMATS / "megatron")


@pytest.mark.parametrize(("kind", "options"), [("nanogpt", {}), ("megatron", {}), ("mds", {"documents": "eos"})])
def test_an_interrupted_import_goes_on_after_its_last_commit(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
):
    for module in (documents, nanogpt):
        monkeypatch.setattr(module, "BATCH_TOKENS", 40)
    monkeypatch.setattr(nanogpt, "_SHARD_TOKENS", 100)
    monkeypatch.setattr(megatron, "_SHARD_DOCUMENTS", 4)
    place = write_nanogpt(tmp_path / "nanogpt") if kind == "nanogpt" else FORMATS / {"mds": "mds_cut"}.get(kind, kind)
    whole = imported(kind, place, "whole.lance", **options)
    seen = imports._encoded
    told: list[int] = []

    def stopping(batch: pa.Table) -> Any:
        told.append(len(batch))
        if len(told) in (3, 7, 10):
            raise KeyboardInterrupt
        return seen(batch)

    monkeypatch.setattr(imports, "_encoded", stopping)
    stops = 0
    while True:
        try:
            store = imported(kind, place, commit_tokens=1, **options)
            break
        except BuildInterrupted:
            stops += 1
    assert stops == 3
    assert streams(store) == streams(whole)
    assert store.commit == whole.commit
    assert [documents_of(store, split) for split in ("train", "val")] == [
        documents_of(whole, split) for split in ("train", "val")
    ]
    # What was committed was not read again.
    assert sum(told) < 2 * whole.commit.documents


def test_a_budget_ends_an_import_and_a_larger_one_goes_on(imported: Import, tmp_path: Path):
    folder = write_nanogpt(tmp_path / "nanogpt")
    assert imported("nanogpt", folder, max_documents=7).commit.documents == 7
    store = imported("nanogpt", folder)
    assert documents_of(store) == DOCUMENTS["train"]


# What is refused.


def write_messages(folder: Path) -> dict[str, Path]:
    plain = [[1, 2], [3]]
    flat = np.asarray([1, EOS, EOS, 2, EOS], np.uint16)
    flat.tofile(folder / "empty.bin")
    (folder / "odd.bin").write_bytes(b"123")
    np.asarray([1, 257, EOS], np.uint16).tofile(folder / "beyond.bin")
    (folder / "nothing").mkdir()
    places = {
        "beyond": write_parquet(folder / "beyond.parquet", [*plain, [4, 300]]),
        "negative": write_parquet(folder / "negative.parquet", [[1], [-100, 2]]),
        "within": write_parquet(folder / "within.parquet", [[1, EOS], [2, EOS, 3, EOS]]),
        "none": write_parquet(folder / "none.parquet", [[1], None]),
        "only EOS": write_parquet(folder / "only.parquet", [[1], [EOS]]),
        "no column": folder / "other.parquet",
        "texts": folder / "texts.parquet",
    }
    pq.write_table(pa.table({"input_idz": plain}), places["no column"])
    pq.write_table(pa.table({"input_ids": ["a"]}), places["texts"])
    return places


def test_what_does_not_fit_is_named_with_its_document_and_its_cure(imported: Import, tmp_path: Path):
    places = write_messages(tmp_path)
    store = tmp_path / "x.lance"
    cases: list[tuple[str, Path | str, dict[str, Any], str]] = [
        ("parquet", places["beyond"], {}, r"^Document 2 of '.*beyond.parquet' has the token id 300, but the tokenizer has 257"),
        ("parquet", places["negative"], {}, "^Document 1 of .* has the token id -100, but"),
        ("parquet", places["within"], {}, "^Document 1 of .* has EOS, 256, within .*: documents=eos cuts"),
        ("parquet", places["none"], {}, "^Document 1 of .* is empty, expected .*: empty=skip leaves such documents out"),
        ("parquet", places["only EOS"], {}, "^Document 1 of .* is empty"),
        ("parquet", places["no column"], {}, "no column 'input_ids'.*did you mean 'input_idz'"),
        ("parquet", places["beyond"], {"columns": {"text_of": "a"}}, "has no column 'a'.*; set columns.text_of"),
        ("parquet", places["texts"], {}, "holds string, expected lists of whole numbers.*columns.tokens"),
        ("parquet", tmp_path / "nothing", {}, "nothing"),
        ("nanogpt", tmp_path / "empty.bin", {}, "^Document 1 of .* is empty"),
        ("nanogpt", tmp_path / "beyond.bin", {}, "^Document 0 of .* has the token id 257"),
        ("nanogpt", tmp_path / "odd.bin", {}, "has 3 bytes, expected two for each token"),
        ("nanogpt", FORMATS / "megatron/train.bin", {}, "import it as megatron"),
        ("nanogpt", tmp_path / "missing", {}, "which does not exist: expected a .bin file, or a folder"),
        ("nanogpt", "s3://bucket/x", {}, "expected .* on a disk of this machine"),
        ("megatron", tmp_path / "nothing", {}, "expected the .idx file"),
        ("mds", FORMATS / "litdata", {}, "index without shards.*may be litdata"),
        ("litdata", FORMATS / "mds", {}, "index without chunks.*may be mds"),
        ("mds", FORMATS / "mds", {"columns": {"tokens": "tokes"}}, "no column 'tokes' .did you mean 'tokens'"),
        ("mds", FORMATS / "mds", {"columns": {"tokens": "source"}}, "is of 'str', expected bytes or ndarray"),
        ("mds", FORMATS / "mds", {"dtype": "uint16"}, "^Document 0 of .* has EOS, 256, within"),
        ("mds", FORMATS / "mds", {"val": FORMATS / "mds/val"}, "validation tokens of its own"),
        ("mds", FORMATS / "mds/val", {"val": FORMATS / "mds/val"}, "read for training and for validation"),
        ("mds", FORMATS / "mds", {"val_fraction": 0.5}, "val_fraction is 0.5, and .* has validation tokens of its own"),
        ("mds_cut", FORMATS / "mds", {}, "^format is 'mds_cut': expected one of nanogpt, .*did you mean 'mds'"),
        ("megatron", FORMATS / "megatron", {"columns": {"tokens": "x"}}, "columns is given, .* for parquet and mds"),
        ("litdata", FORMATS / "litdata", {"dtype": "int32"}, "dtype is given"),
        ("nanogpt", tmp_path / "empty.bin", {"documents": "items"}, "its documents end at EOS; leave it out"),
        ("mds", FORMATS / "mds", {"tokenizer": TrainedBPE(300)}, "trained on texts: give the tokenizer that made"),
        ("mds", FORMATS / "mds", {"documents": "eos", "columns": {"book": "source"}}, "leave out either"),
        ("mds", FORMATS / "mds", {"columns": {"text": "source"}}, "text"),
    ]  # fmt: skip
    for kind, place, options, message in cases:
        with pytest.raises(Exception, match=message) as raised:
            imported(kind, place, **options)
        assert type(raised.value).__module__ == "lightning_lance.errors", (kind, place, raised.value)
        assert not store.exists() or not list(store.rglob("*.manifest")), (kind, place)
        shutil.rmtree(store, ignore_errors=True)


def test_empty_documents_may_be_left_out_and_are_counted(imported: Import, tmp_path: Path):
    file = write_parquet(tmp_path / "x.parquet", [[], [1, EOS], None, [EOS], [2]])
    store = imported("parquet", file, empty="skip")
    assert documents_of(store) == [[1], [2]]
    assert store.commit.skipped == {"empty": 3}


@pytest.mark.parametrize(
    ("kind", "file", "change"),
    [
        ("megatron", "train.idx", lambda raw: raw[:60]),
        ("megatron", "train.idx", lambda raw: b"X" + raw[1:]),
        ("megatron", "train.idx", lambda raw: raw[:34] + b"\xff" + raw[35:]),
        ("megatron", "train.bin", lambda raw: raw[:100]),
        ("mds", "train/shard.00000.mds", lambda raw: raw[:-1]),
        ("mds", "train/index.json", lambda raw: raw[:-9]),
        ("mds_zstd", "train/shard.00000.mds.zstd", lambda raw: raw[:50]),
        ("litdata", "train/chunk-0-0.bin", lambda raw: raw[:-2]),
        ("litdata_zstd", "train/chunk-0-0.zstd.bin", lambda raw: raw[:20]),
        ("litdata", "train/chunk-0-0.bin", None),
    ],
)
def test_a_damaged_file_is_named(
    imported: Import, tmp_path: Path, kind: str, file: str, change: Callable[[bytes], bytes] | None
):
    folder = tmp_path / "set"
    shutil.copytree(FORMATS / kind, folder)
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(Exception, match=r"(copy|check the place|repair)") as raised:
        imported(kind.partition("_")[0], folder)
    assert type(raised.value).__module__ == "lightning_lance.errors", raised.value
    assert Path(file).name.partition(".")[0] in str(raised.value)


def test_litdata_that_is_no_token_set_is_refused(imported: Import, tmp_path: Path):
    folder = tmp_path / "set"
    shutil.copytree(FORMATS / "litdata/train", folder)
    index = json.loads((folder / "index.json").read_text())
    for key, value, message in (
        ("data_format", ["int", "jpeg"], "TokensLoader"),
        ("data_format", ["no_header_tensor:0"], "TokensLoader"),
        ("encryption", {"algorithm": "fernet"}, "encrypted"),
    ):
        changed = {**index, "config": {**index["config"], key: value}}
        (folder / "index.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=message):
            imported("litdata", folder)


# What others may write into a set.


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "", 7, None])
@pytest.mark.parametrize("kind", ["mds", "litdata"])
def test_an_index_names_no_file_outside_its_folder(imported: Import, tmp_path: Path, kind: str, name: Any):
    shutil.copytree(FORMATS / f"{kind}/train", tmp_path / "set")
    file = tmp_path / "set/index.json"
    index = json.loads(file.read_text())
    if kind == "mds":
        shutil.copy(tmp_path / "set" / index["shards"][0]["raw_data"]["basename"], tmp_path / "secret.bin")
        index["shards"][0]["raw_data"]["basename"] = name
    else:
        shutil.copy(tmp_path / "set" / index["chunks"][0]["filename"], tmp_path / "secret.bin")
        index["chunks"][0]["filename"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"^The index of .*set' names .*, expected a file in its folder"):
        imported(kind, tmp_path / "set")


@pytest.mark.parametrize("value", [7, None, [7], {}, [{"filename": {}}], [[]]])
def test_an_index_of_another_form_is_refused(imported: Import, tmp_path: Path, value: Any):
    for kind, key in (("mds", "shards"), ("litdata", "chunks")):
        folder = tmp_path / kind
        shutil.copytree(FORMATS / f"{kind}/train", folder)
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**index, key: value}))
        with pytest.raises(ConfigError):
            imported(kind, folder)


@pytest.mark.parametrize("algorithm", ["zstd", "gz", "bz2"])
def test_what_is_decompressed_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str):
    packers = {"zstd": zstandard.ZstdCompressor().compress, "gz": gzip.compress, "bz2": bz2.compress}
    file = tmp_path / "shard.00000.mds.packed"
    file.write_bytes(packers[algorithm](bytes(1 << 20)))
    monkeypatch.setattr(chunk_files, "_PIECE_BYTES", 1 << 10)
    assert len(chunk_files.content_of(file, algorithm)) == 1 << 20
    monkeypatch.setattr(chunk_files, "_MOST_BYTES", 1 << 14)
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"more than 16,384 bytes once it is decompressed"):
        chunk_files.content_of(file, algorithm)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 19


def test_the_types_of_tokens_are_those_of_the_tools():
    """Of LitData 0.2.76, and of Megatron-LM's DType."""
    assert litdata._DTYPES["no_header_tensor"][20] == "<u2"
    assert litdata._DTYPES["no_header_numpy"][5] == "<u2"
    assert {code: np.dtype(name).name for code, name in megatron._DTYPES.items()} == {
        1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"
    }  # fmt: skip


# Memory.


def test_a_document_without_end_is_refused_before_the_memory_is_full(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(documents, "_LONGEST", 1000)
    np.zeros(3000, np.uint16).tofile(tmp_path / "x.bin")
    with pytest.raises(ConfigError, match=r"No document of .*x.bin' ends within .* expected the EOS id 256"):
        imported("nanogpt", tmp_path / "x.bin")
