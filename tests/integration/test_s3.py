"""Sources and stores in a bucket, of a real S3 server on loopback."""

import importlib
import json
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.build.coordination import CommitTurn
from lightning_lance.errors import ConfigError, SourceError, StoreError
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.serving import read_ahead
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.bucket import Bucket, serving
from tests.support.corpora import data_of, prepare
from tests.support.stores import ListSource, documents

TEXTS = [f"text {i} " * 60 for i in range(300)]


class Watch:
    """Stands before the server: counts the requests for tokens that are there at once, and makes them wait for each other.

    The first that come after `reads` has got to 2 go on when `together` of them are there.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reads, self.together, self.most, self._now = 0, 0, 0, 0

    def around(self, app: Any) -> Any:
        def watched(environ: dict[str, Any], start_response: Any) -> Any:
            if environ["REQUEST_METHOD"] != "GET" or ".lance/data/" not in environ["PATH_INFO"]:
                return app(environ, start_response)
            with self._changed:
                self._now += 1
                self.most = max(self.most, self._now)
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: self.reads < 2 or self.most >= self.together, timeout=30):
                    self.together = 0
            try:
                return app(environ, start_response)
            finally:
                with self._changed:
                    self._now -= 1

        return watched


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def bucket(watch: Watch) -> Iterator[Bucket]:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink)
    with serving() as bucket:
        bucket.wrap(watch.around)
        for name, body in {"x.jsonl.zst": zstandard.compress(lines), "x.parquet": sink.getvalue().to_pybytes()}.items():
            bucket.client.put_object(Bucket="bucket", Key=f"corpus/{name}", Body=body)
        yield bucket


@pytest.fixture(scope="module")
def endpoint(bucket: Bucket) -> str:
    return bucket.endpoint


def source(endpoint: str, kind: str, pattern: str) -> DatasetSource:
    options = {"endpoint_url": endpoint, "key": "k", "secret": "s"}
    return DatasetSource(kind, data_files=[f"s3://bucket/corpus/{pattern}"], storage_options=options)


def test_sources_in_a_bucket(endpoint: str, tmp_path: Path):
    stream = [i for text in TEXTS for i in [*text.encode(), 256]]
    for kind, pattern in (("json", "*.jsonl.zst"), ("parquet", "*.parquet")):
        store = prepare(source(endpoint, kind, pattern), ByteTokenizer(), data_dir=tmp_path / kind, val_fraction=0.0)
        assert store.read(np.array([0]), store.num_tokens())[0].tolist() == stream
    with pytest.raises(ConfigError, match=r"No file matches 's3://bucket/corpus/\*.csv'"):
        source(endpoint, "csv", "*.csv").open()


def test_a_store_in_a_bucket_is_built_continued_and_read(bucket: Bucket, endpoint: str, tmp_path: Path):
    corpus, options = source(endpoint, "parquet", "*.parquet"), bucket.lance_options
    arguments: dict[str, Any] = {"uri": "s3://bucket/stores/x.lance", "storage_options": options, "val_fraction": 0.2}
    small = prepare(corpus, ByteTokenizer(), max_documents=100, **arguments)
    store = prepare(corpus, ByteTokenizer(), **arguments)
    assert (small.version, store.version, store.reader) == (1, 2, "take")
    local = prepare(corpus, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.2)
    assert local.reader == "mapped"
    for split in ("train", "val"):
        assert store.num_tokens(split) == local.num_tokens(split)
        starts = np.random.default_rng(0).integers(0, local.num_tokens(split) - 700, 50)
        assert np.array_equal(store.read(starts, 700, split), local.read(starts, 700, split))
    data = data_of(corpus, ByteTokenizer(), 64, 8, **arguments)
    assert not data.prepare_data_per_node
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (8, 64)
    again = TokenStore.open("s3://bucket/stores/x.lance", storage_options=options)
    assert again.fingerprint == local.fingerprint == store.fingerprint


def test_masks_in_a_bucket(bucket: Bucket, tmp_path: Path):
    sink = pa.BufferOutputStream()
    spans = [[[number % 40, 50], [200, 300]] if number % 3 else [] for number in range(len(TEXTS))]
    pq.write_table(pa.table({"text": TEXTS, "spans": spans}), sink)
    bucket.client.put_object(Bucket="bucket", Key="chats/x.parquet", Body=sink.getvalue().to_pybytes())
    (tmp_path / "x.parquet").write_bytes(sink.getvalue().to_pybytes())
    access = {"endpoint_url": bucket.endpoint, "key": "k", "secret": "s"}
    chats = DatasetSource.parquet("s3://bucket/chats/x.parquet", loss_mask_column="spans", storage_options=access)
    place: dict[str, Any] = {"uri": "s3://bucket/stores/chats.lance", "storage_options": bucket.lance_options}
    store = prepare(chats, ByteTokenizer(), **place)
    local = prepare(
        DatasetSource.parquet(tmp_path / "x.parquet", loss_mask_column="spans"), ByteTokenizer(), data_dir=tmp_path
    )
    assert (store.reader, local.reader) == ("take", "mapped")
    for split in ("train", "val"):
        start = np.zeros(1, np.int64)
        whole = [one.read_channel("loss_mask", start, one.num_tokens(split), split) for one in (store, local)]
        assert np.array_equal(*whole)
        assert 0 < whole[0].sum() < whole[0].size
    # Orders differ, since the files of the sources have other names.
    batch = next(iter(WindowLoader(store, 64, 8, order="sequential")))
    expected = next(iter(WindowLoader(local, 64, 8, order="sequential")))
    assert all(batch[name].equal(values) for name, values in expected.items())
    assert verify_store(store.uri, bucket.lance_options) == []


def test_of_builders_in_a_bucket_the_commit_decides(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All begin; who loses a commit waits, and takes over where no more come."""
    monkeypatch.setattr(importlib.import_module("lightning_lance.build.runner"), "COMMIT_MARGIN_SECONDS", 1.0)
    source, far, lost = ListSource(documents(*TEXTS[:100])), threading.Event(), threading.Event()
    arguments: dict[str, Any] = {"storage_options": bucket.lance_options, "commit_tokens": 3000, "commit_seconds": 1.0}

    class Dies(ListSource):
        """Of a builder that has committed some, and fails when one of the others has lost a commit to another."""

        def read(self, shard: int, row: int) -> Iterator[pa.Table]:
            if shard == 12:
                far.set()
                assert lost.wait(60)
                raise SourceError("the network is gone")
            yield from super().read(shard, row)

    def build(source: ListSource) -> TokenStore:
        return prepare(source, ByteTokenizer(), "s3://bucket/stores/z.lance", data_dir=tmp_path, **arguments)

    conflict = CommitTurn.conflict
    monkeypatch.setattr(CommitTurn, "conflict", lambda turn: (conflict(turn), lost.set()))
    with ThreadPoolExecutor(3) as threads:
        dies = threads.submit(build, Dies(source.documents))
        assert far.wait(60)
        building = [threads.submit(build, source) for _ in range(2)]
        with pytest.raises(SourceError, match="the network is gone"):
            dies.result(60)
        stores = [future.result(60) for future in building]
    assert len({store.version for store in stores}) == 1
    local = prepare(source, ByteTokenizer(), data_dir=tmp_path)
    for split in ("train", "val"):
        assert stores[0].num_tokens(split) == local.num_tokens(split)
    whole = [store.read(np.array([0]), store.num_tokens(), "train").tolist() for store in (stores[0], local)]
    assert whole[0] == whole[1]


def test_reads_wait_for_the_bucket_together(
    bucket: Bucket, endpoint: str, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A chunk of batches is one call of Lance, the first a single batch, and several chunks are on their way at once."""
    arguments: dict[str, Any] = {"uri": "s3://bucket/stores/y.lance", "storage_options": bucket.lance_options}
    store = prepare(source(endpoint, "parquet", "*.parquet"), ByteTokenizer(), val_fraction=0.0, **arguments)
    take = type(store._dataset).take

    def counted(dataset: Any, *given: Any, **named: Any) -> Any:
        watch.reads += 1
        return take(dataset, *given, **named)

    monkeypatch.setattr(type(store._dataset), "take", counted)
    monkeypatch.setattr(read_ahead, "_TAKEN", read_ahead._TAKEN._replace(tokens=2 * 8 * 101))
    local = prepare(source(endpoint, "parquet", "*.parquet"), ByteTokenizer(), val_fraction=0.0, data_dir=tmp_path)
    expected = [batch["input_ids"].tolist() for batch in WindowLoader(local, 100, 8)]
    watch.reads, watch.most, watch.together = 0, 0, read_ahead._TAKEN.chunks
    assert [batch["input_ids"].tolist() for batch in WindowLoader(store, 100, 8)] == expected
    assert watch.reads == 1 + -(-(len(expected) - 1) // 2)
    assert watch.most >= read_ahead._TAKEN.chunks > 1


@pytest.mark.parametrize(
    ("pattern", "options", "told"),
    [
        (
            "s3://bucket/x.parquet",
            {"endpoint_url": "http://127.0.0.1:9"},
            r"Source 'dataset' \('s3://bucket/.*'\) cannot be reached \(connection refused\): check the place",
        ),
        (
            "s3://bucket/*.parquet",
            {"endpoint_url": "http://127.0.0.1:9"},
            r"Source 'dataset' \('s3://bucket/.*'\) cannot be reached \(connection refused\): check the place",
        ),
        (
            "s3://bucket/x.parquet",
            {"endpoint_url": "nowhere"},
            "Invalid endpoint: nowhere; check source.storage_options",
        ),
        ("s3://nowhere/x.parquet", {}, "No file matches|The bucket of source .* does not exist"),
        ("s3://nowhere/*.parquet", {}, "No file matches|The bucket of source .* does not exist"),
        ("s3://bucket/x.parquet", {"client_kwargs": {"foo": 1}}, "check source.storage_options"),
    ],
)
def test_a_source_that_cannot_be_reached(
    endpoint: str, tmp_path: Path, pattern: str, options: dict[str, Any], told: str
):
    """Where its identity is asked for, before a place for the store is known."""
    options = {"endpoint_url": endpoint, "key": "HUSHID", "secret": "HUSHKEY", **options}
    corpus = DatasetSource("parquet", data_files=[pattern], storage_options=options, max_retries=0)
    with pytest.raises((ConfigError, SourceError), match=told) as refused:
        prepare(corpus, ByteTokenizer(), data_dir=tmp_path)
    assert "HUSH" not in str(refused.value)


def test_a_source_without_credentials(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    corpus = DatasetSource("parquet", data_files=["s3://b/x.parquet"], storage_options={"endpoint_url": endpoint})
    with pytest.raises(SourceError, match="needs credentials, but none were found: set environment variables"):
        prepare(corpus, ByteTokenizer(), data_dir=tmp_path)


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        (
            "s3://bucket/x.lance",
            {"aws_endpoint": "http://127.0.0.1:9", "client_max_retries": 0},
            "the server does not answer: check",
        ),
        (
            "s3://bucket/x.lance",
            {"allow_http": False},
            "the endpoint does not use https: allow that in storage_options",
        ),
        ("s3://nowhere/x.lance", {}, "the bucket does not exist: check its name"),
        (
            "foo://bucket/x.lance",
            {},
            "the kind of URL is unknown: expected a local folder, or a URL that begins with s3://",
        ),
        ("s3://bucket/x.lance", {"aws_region": ["x"]}, "storage_options.aws_region is of type list: expected text"),
    ],
)
def test_a_store_that_cannot_be_reached(bucket: Bucket, tmp_path: Path, uri: str, options: dict[str, Any], told: str):
    options = {**bucket.lance_options, "aws_secret_access_key": "HUSHKEY", **options}
    for ask in (
        lambda: prepare(
            ListSource(documents("text")), ByteTokenizer(), uri, storage_options=options, data_dir=tmp_path
        ),
        lambda: TokenStore.open(uri, storage_options=options),
        lambda: forget(uri, {"repo": "x"}, options),
        lambda: verify_store(uri, options),
    ):
        with pytest.raises((ConfigError, StoreError), match=told) as refused:
            ask()  # type: ignore[no-untyped-call]
        assert "HUSH" not in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (
            "https://127.0.0.1:9/x.parquet?sig=HUSHSIG",
            r"Source 'dataset' \('https://127.0.0.1:9/x.parquet'\) cannot be reached \(connection refused\): check the",
        ),
        (
            "ftp://u:HUSHPW@127.0.0.1:9/x.parquet",
            r"\('ftp://127.0.0.1:9/x.parquet'\) cannot be reached \(connection refused",
        ),
        ("gs://bucket/x.parquet", "needs another package: Please install gcsfs"),
        ("az://bucket/x.parquet", "needs another package: Install adlfs"),
        ("foo://HUSHID@bucket/x.parquet", "has files of 'foo://', which is not a known protocol"),
    ],
)
def test_other_places_that_cannot_be_reached(tmp_path: Path, pattern: str, told: str):
    corpus = DatasetSource("parquet", data_files=[pattern], max_retries=0, timeout_seconds=3)
    with pytest.raises((ConfigError, SourceError), match=told) as refused:
        prepare(corpus, ByteTokenizer(), data_dir=tmp_path)
    assert "HUSH" not in str(refused.value)


def test_causes_of_errors_do_not_repeat_keys_either():
    """Python prints the causes of an error with it, and a server repeats the key that it does not know."""
    key, uri, refused = "AKexampleKEY99", "s3://bucket/keys.lance", ["nothing"]
    source = ListSource(documents(*["a text"] * 20))

    def around(app: Any) -> Any:
        def refusing(environ: dict[str, Any], start_response: Any) -> Any:
            if environ["REQUEST_METHOD"] != "PUT" or f"keys.lance/{refused[0]}" not in environ["PATH_INFO"]:
                return app(environ, start_response)
            body = f"<Error><Code>InvalidAccessKeyId</Code><Message>no {key}</Message></Error>".encode()
            start_response("403 Forbidden", [("Content-Length", str(len(body)))])
            return [body]

        return refusing

    with serving() as bucket:
        options = {**bucket.lance_options, "aws_access_key_id": key}
        store = prepare(source, ByteTokenizer(), uri, max_documents=5, storage_options=options)
        bucket.wrap(around)

        def grow() -> None:
            prepare(source, ByteTokenizer(), uri, storage_options=options)

        for refused[0], call in (("_versions", grow), ("_transactions", grow), ("data", grow), ("_refs", store.keep)):
            with pytest.raises(StoreError) as raised:
                call()
            told = "".join(traceback.format_exception(raised.value))
            assert "StoreError" in told
            assert key not in told
