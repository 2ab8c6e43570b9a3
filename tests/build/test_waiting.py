"""Waiting for a store that another process builds."""

import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lance
import pytest

from lightning_lance.build import waiting
from lightning_lance.build.waiting import wait_for
from lightning_lance.errors import SourceError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import StoreLocation
from lightning_lance.process import locks
from lightning_lance.process.build_status import StatusFile
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, append_commit, documents

SOURCE = ListSource(documents("some text", "other text"))


def test_who_waits_for_tokens_waits_for_a_builder_that_lives_and_fails_with_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    uri, file = str(tmp_path / "x.lance"), tmp_path / "x.building.json"

    def left_waiting(waits: Future[None]) -> bool:
        return not futures.wait([waits], timeout=0.3).done

    with ThreadPoolExecutor(1) as thread:
        # The failure of the last build, which starts again soon.
        StatusFile(file, "f").failed(SourceError("the network is gone"))
        waits = thread.submit(wait_for, StoreLocation(uri), 15)
        assert left_waiting(waits)
        lives = StatusFile(file, "f").begin()
        prepare(SOURCE, ByteTokenizer(), str(tmp_path / "y.lance"))
        (tmp_path / "y.lance").rename(uri)
        waits.result(60)
        waits = thread.submit(wait_for, StoreLocation(uri), 10**9)
        waits.result(60)  # the source has no more
        append_commit(
            StoreLocation(uri),
            lance.dataset(uri).to_table().slice(0, 0),
            replace(last_commit(StoreLocation(uri)), exhausted=False),
        )
        waits = thread.submit(wait_for, StoreLocation(uri), 10**9)
        assert left_waiting(waits)
        lives.failed(StoreError("the disk is full"))
        with pytest.raises(
            StoreError, match=rf"waited for the build of '{uri}' by process \d+ on .*, which failed: the disk is full"
        ):
            waits.result(60)
        # Committed tokens are enough, even if the builder failed.
        wait_for(StoreLocation(uri), 15)
        monkeypatch.setattr(waiting, "_BEGIN_SECONDS", 0.1)
        with pytest.raises(StoreError, match="the disk is full"):
            wait_for(StoreLocation(uri), 10**9)


def test_who_waits_says_what_for_and_ends_with_a_builder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A stale lease, as of a builder that was killed, here or on another machine."""
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "_LOG_SECONDS", 0.2)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.3)
    uri, lock = str(tmp_path / "x.lance"), tmp_path / "x.lock"
    said = f"Waiting for the store {uri}: 10 of 15 tokens are committed"
    prepare(SOURCE, ByteTokenizer(), uri, max_documents=1)

    def until_told(what: str, live: bool = False) -> None:
        """Wait for a line, while a live builder keeps its lease fresh."""
        begin = time.monotonic()
        while f"{said}{what}" not in [record.getMessage() for record in caplog.records]:
            assert time.monotonic() - begin < 30, caplog.messages
            if live:
                lock.write_text("somebody")
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(wait_for, StoreLocation(uri), 15)
        try:
            nobody = ", and no process builds it: run 'lightning-lance prepare' for it."
            until_told(nobody)
            caplog.clear()
            until_told(nobody)  # once more, though nothing has changed
            until_told(".", live=True)
            StatusFile(tmp_path / "x.building.json", "f").begin()
            with pytest.raises(
                StoreError, match=r"has 10 of the 15 .*its builder \(process \d+ on .* has shown no sign of life"
            ):
                waits.result(60)
            assert any("shows no sign of life" in message for message in caplog.messages)
        finally:
            # Another builder takes over, and commits the tokens.
            lock.unlink(missing_ok=True)
            prepare(SOURCE, ByteTokenizer(), uri)
    wait_for(StoreLocation(uri), 15)
