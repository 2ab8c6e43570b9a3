"""Sources and stores in a bucket, of a real S3 server on loopback."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from moto.server import ThreadedMotoServer

from lightning_lance import LanceDataModule, TokenStore, prepare
from lightning_lance.errors import ConfigError
from lightning_lance.streaming import DatasetSource
from lightning_lance.tokenizer_choice import ByteChoice

TEXTS = [f"text {i} " * 60 for i in range(300)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink)
    for name, body in {"x.jsonl.zst": zstandard.compress(lines), "x.parquet": sink.getvalue().to_pybytes()}.items():
        client.put_object(Bucket="bucket", Key=f"corpus/{name}", Body=body)
    yield endpoint
    server.stop()


def source(endpoint: str, kind: str, pattern: str) -> DatasetSource:
    options = {"endpoint_url": endpoint, "key": "k", "secret": "s"}
    return DatasetSource(kind, data_files=[f"s3://bucket/corpus/{pattern}"], storage_options=options)


def lance_options(endpoint: str) -> dict[str, str]:
    return {
        "aws_endpoint": endpoint,
        "aws_access_key_id": "k",
        "aws_secret_access_key": "s",
        "aws_region": "us-east-1",
        "allow_http": "true",
    }


def test_sources_in_a_bucket(endpoint: str, tmp_path: Path):
    stream = [i for text in TEXTS for i in [*text.encode(), 256]]
    for kind, pattern in (("json", "*.jsonl.zst"), ("parquet", "*.parquet")):
        store = prepare(source(endpoint, kind, pattern), ByteChoice(), data_dir=tmp_path / kind, val_fraction=0.0)
        assert store.read(np.array([0]), store.num_tokens())[0].tolist() == stream
    with pytest.raises(ConfigError, match=r"No file matches 's3://bucket/corpus/\*.csv'"):
        source(endpoint, "csv", "*.csv").open()


def test_a_store_in_a_bucket_is_built_continued_and_read(endpoint: str, tmp_path: Path):
    corpus, options = source(endpoint, "parquet", "*.parquet"), lance_options(endpoint)
    arguments: dict[str, Any] = {"uri": "s3://bucket/stores/x.lance", "storage_options": options, "val_fraction": 0.2}
    small = prepare(corpus, ByteChoice(), max_documents=100, **arguments)
    store = prepare(corpus, ByteChoice(), **arguments)
    assert (small.version, store.version, store.reader) == (1, 2, "take")
    local = prepare(corpus, ByteChoice(), data_dir=tmp_path, val_fraction=0.2)
    assert local.reader == "mapped"
    for split in ("train", "val"):
        assert store.num_tokens(split) == local.num_tokens(split)
        starts = np.random.default_rng(0).integers(0, local.num_tokens(split) - 700, 50)
        assert np.array_equal(store.read(starts, 700, split), local.read(starts, 700, split))
    data = LanceDataModule(corpus, ByteChoice(), 64, 8, **arguments)
    assert not data.prepare_data_per_node
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (8, 64)
    again = TokenStore.open("s3://bucket/stores/x.lance", storage_options=options)
    assert again.fingerprint == local.fingerprint == store.fingerprint
