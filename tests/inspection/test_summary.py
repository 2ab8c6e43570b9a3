"""Stores in a bucket, and stores that are being built, in lists and by themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_lance import TokenStore
from lightning_lance.build.plan import _labels, make_plan
from lightning_lance.errors import StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.inspection import find_steps, open_run, show_step
from lightning_lance.inspection.summary import describe_store, list_stores
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.deletion import remove
from lightning_lance.process.locks import Lease
from lightning_lance.sources import DatasetSource, FilesSource
from lightning_lance.tokenization import ByteTokenizer, PretrainedTokenizer, TokenizerFile, TrainedBPE
from tests.support.bucket import serving
from tests.support.commits import NOTE, rows_of
from tests.support.corpora import prepare
from tests.support.stores import ListSource, append_commit, documents

SOURCE = ListSource(documents(*(f"text {i}" for i in range(12))))


def test_stores_in_a_bucket():
    with serving() as bucket:
        options = bucket.lance_options
        for name in ("a", "deep/b"):
            prepare(
                SOURCE, ByteTokenizer(), f"s3://bucket/stores/{name}.lance", val_fraction=0.3, storage_options=options
            )
        bucket.client.put_object(Bucket="bucket", Key="stores/readme.md", Body=b"x")
        (listed,) = list_stores("s3://bucket/stores", options)
        assert (listed.name, listed.state, listed.source, listed.documents) == ("a.lance", "complete", "list", 12)
        assert [store.name for store in list_stores("s3://bucket/stores/deep/", options)] == ["b.lance"]
        assert list_stores("s3://bucket/stores/a.lance", options) == [listed]
        info = describe_store(listed.uri, options)
        assert info.summary == listed
        (counts,) = info.languages
        assert sum(count or 0 for count in counts.split_documents.values()) == 12
        assert counts.split_documents["val"]
        assert info.disk is not None
        assert info.disk.newest == listed.bytes
        # What a run would be served from there, and when.
        loader = open_run(listed.uri, options, context_length=8, batch_size=2)
        shown = show_step(loader, 1)
        found = find_steps(loader, {"id": shown[0].documents[0].about["id"]})
        assert (1, 0, 0) in [(sighting.step, sighting.rank, sighting.window) for sighting in found.sightings]
        TokenStore.open(listed.uri, storage_options=options).keep_for_training()
        with pytest.raises(StoreError, match="in use: 1 training run"):
            remove(listed.uri, options)
        assert remove(listed.uri, options, ignore_runs=True) == []
        assert list_stores("s3://bucket/stores", options) == []
        left = bucket.client.list_objects_v2(Bucket="bucket", Prefix="stores/")["Contents"]
        assert {entry["Key"].split("/")[1] for entry in left} == {"readme.md", "deep"}
        with pytest.raises(StoreError, match="There is no committed token store at"):
            remove(listed.uri, options)
        # Nobody knows whether it has a builder.
        location = StoreLocation("s3://bucket/new.lance", options)
        append_commit(location, rows_of(1), NOTE)
        assert [(store.name, store.state) for store in list_stores("s3://bucket", options)] == [
            ("new.lance", "unfinished")
        ]
        with pytest.raises(StoreError, match="the bucket does not exist: check its name"):
            list_stores("s3://nobucket", options)
        with pytest.raises(
            StoreError, match=r"is unfinished, and its last commit is from .*: stop it, and try again 5 min"
        ):
            remove(location.uri, options)


def test_a_store_that_is_being_built_or_whose_build_has_failed(tmp_path: Path):
    location = StoreLocation(str(tmp_path / "x.lance"))
    append_commit(location, rows_of(1), NOTE)
    lease = Lease(tmp_path / "x.lock")
    assert lease.take()
    assert [store.state for store in list_stores(tmp_path)] == ["building"]
    lease.release()
    assert [store.state for store in list_stores(tmp_path)] == ["unfinished"]
    status = {"run": "r", "fingerprint": "f", "builder": "b", "since": "s", "failure": "the disk is full"}
    (tmp_path / "x.building.json").write_text(json.dumps(status), encoding="utf-8")
    assert [store.state for store in list_stores(tmp_path)] == ["failed"]
    append_commit(location, rows_of(2), NOTE)
    info = describe_store(location.uri)
    assert [(version.version, version.kept_by) for version in info.versions] == [(2, ("newest",)), (1, ())]
    remove(location.uri)
    assert list(tmp_path.iterdir()) == []


def test_the_words_of_the_user_are_kept_and_say_no_secrets(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "a.py").write_text("x = 1", encoding="utf-8")
    source = FilesSource("*.py", root=tmp_path)
    assert make_plan(source, ByteTokenizer(), tmp_path / "x").labels == {
        "source": "files",
        "tokenizer": "bytes",
        "patterns": ["*.py"],
        "root": str(tmp_path),
        "exclude": [*source.exclude],
    }
    assert TrainedBPE(512).label == "bpe of 512 ids"
    assert TokenizerFile("my/tokenizer.json").label == "my/tokenizer.json"
    assert PretrainedTokenizer("gpt2", revision="v1").label == "gpt2@v1"
    secret = DatasetSource.parquet("https://me:hunter22@host/x.parquet", revision="main", name="mine")
    assert secret.labels["revision"] == "main"
    assert _labels(secret, ByteTokenizer())["data_files"] == ["https://host/x.parquet"]


def test_a_store_that_is_continued_keeps_its_latest_words(tmp_path: Path):
    def words(name: str, documents_: int) -> Any:
        source = ListSource(SOURCE.documents, name=name)
        prepare(source, ByteTokenizer(), tmp_path / "x.lance", max_documents=documents_)
        commit = last_commit(StoreLocation(str(tmp_path / "x.lance")))
        assert commit is not None
        return commit.labels["source"]

    assert [words("one", 3), words("two", 3), words("three", 9)] == ["one", "one", "three"]
