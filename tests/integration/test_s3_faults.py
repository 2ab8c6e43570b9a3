"""A store in a bucket whose server fails as real ones do: everything gives what it gives on a local disk."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.bucket import Bucket, serving
from tests.support.corpora import prepare
from tests.support.lives import SOURCE, life, whole
from tests.support.stores import ListSource

SECRET = "HUSH-the-secret"


class Faults:
    """Stands before the server: every so many requests it fails, breaks off or waits, in turn. Its clock is a day late."""

    def __init__(self) -> None:
        self.on = False
        self.denied = ""
        self.count = 0
        self.failed: dict[str, int] = {}
        self._lock = threading.Lock()

    def around(self, app: Any) -> Any:
        def faulty(environ: dict[str, Any], start_response: Any) -> Any:
            writes = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
            if self.denied and writes and self.denied in environ["PATH_INFO"]:
                body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                start_response("403 Forbidden", [("Content-Length", str(len(body)))])
                return [body]
            if not self.on:
                return app(environ, start_response)
            with self._lock:
                self.count += 1
                fault = {0: "503", 3: "reset", 5: "slow"}.get(self.count % 11, "")
                self.failed[fault] = self.failed.get(fault, 0) + 1
            if fault == "503":
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]
            if fault == "reset":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionError("reset")
            if fault == "slow":
                time.sleep(0.1)

            def late(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                skewed = [
                    (name, "Sat, 01 Jan 2000 00:00:00 GMT" if name.lower() in ("date", "last-modified") else value)
                    for name, value in headers
                ]
                return start_response(status, skewed, *rest)

            return app(environ, late)

        return faulty


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def bucket(faults: Faults) -> Iterator[Bucket]:
    with serving() as bucket:
        bucket.wrap(faults.around)
        yield bucket


@pytest.fixture
def options(bucket: Bucket) -> dict[str, str]:
    return {**bucket.lance_options, "aws_secret_access_key": SECRET}


def test_a_bucket_with_faults_gives_what_a_disk_gives(
    bucket: Bucket, options: dict[str, str], faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    faults.on = True
    try:
        there = list(life("s3://bucket/stores/x.lance", tmp_path / "there", options, 9000))
    finally:
        faults.on = False
    assert min(faults.failed[fault] for fault in ("503", "reset", "slow")) > 3
    here = list(life(str(tmp_path / "stores" / "x.lance"), tmp_path / "here", None, 9000))
    for of_bucket, of_disk in zip(there, here, strict=True):
        assert of_bucket == of_disk
    assert SECRET not in caplog.text
    for entry in bucket.client.list_objects_v2(Bucket="bucket")["Contents"]:
        assert SECRET.encode() not in bucket.client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()


def test_a_staged_store_is_copied_in_spite_of_faults(
    bucket: Bucket, options: dict[str, str], faults: Faults, tmp_path: Path
):
    uri = "s3://bucket/staged/x.lance"
    prepare(SOURCE, ByteTokenizer(), uri, storage_options=options, val_fraction=0.2, data_dir=tmp_path)
    local = prepare(SOURCE, ByteTokenizer(), val_fraction=0.2, data_dir=tmp_path)
    faults.on = True
    try:
        store = TokenStore.open(uri, storage_options=options)
        store.stage(tmp_path / "stage")
        assert whole(store) == whole(local)
        end = time.monotonic() + 60
        while store.reader != "mapped" and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        faults.on = False
    assert store.reader == "mapped"
    before = faults.count
    faults.on = True
    assert whole(store) == whole(local)
    faults.on = False
    assert faults.count == before
    for path in (tmp_path / "stage").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_permission_lost_in_the_middle_is_one_sentence(
    options: dict[str, str], faults: Faults, tmp_path: Path, part: str
):
    uri = f"s3://bucket/lost-{part}.lance"
    arguments: dict[str, Any] = {"storage_options": options, "val_fraction": 0.2, "data_dir": tmp_path}

    class Loses(ListSource):
        def read(self, shard: int, row: int) -> Iterator[Any]:
            if shard == 6:
                faults.denied = f"lost-{part}.lance/{part}"
            yield from super().read(shard, row)

    small = prepare(SOURCE, ByteTokenizer(), uri, max_documents=10, **arguments)
    try:
        with pytest.raises(StoreError, match="access is denied: check the bucket, and the permissions") as denied:
            prepare(Loses(SOURCE.documents), ByteTokenizer(), uri, **arguments)
    finally:
        faults.denied = ""
    assert "\n" not in str(denied.value)
    assert SECRET not in str(denied.value)
    assert TokenStore.open(uri, storage_options=options).commit == small.commit
    assert verify_store(uri, options) == []
    grown = prepare(SOURCE, ByteTokenizer(), uri, **arguments)
    assert whole(grown) == whole(prepare(SOURCE, ByteTokenizer(), val_fraction=0.2, data_dir=tmp_path))
