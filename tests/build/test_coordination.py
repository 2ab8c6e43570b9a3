"""Which process builds. test_runner.py has tests with real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_lance.build import coordination
from lightning_lance.build.coordination import CommitTurn, LeaseTurn
from lightning_lance.errors import StoreError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.process.build_status import StatusFile
from tests.support.paths import ROOT

NOTE = CommitMetadata("f", {}, {}, "", "<eos>", 0, 1, documents=3, tokens=2_000_000)


def lease_turn(folder: Path, fingerprint: str = "f") -> LeaseTurn:
    return LeaseTurn("x.lance", fingerprint, folder / "x.lock", folder / "x.building.json")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coordination, "POLL_SECONDS", 0.0)


def test_one_has_it_and_the_other_waits_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with lease_turn(tmp_path) as first, lease_turn(tmp_path) as second:
        first.wait(None)
        assert first.mine
        for _ in range(3):
            second.wait(None)
        assert not second.mine
        (line,) = caplog.messages
        assert line.startswith(f"Another process builds x.lance; waiting for it (process {os.getpid()} on ")
        # The holder of the lease continues after a conflict.
        first.conflict()
        assert first.mine
        first.__exit__(None, None, None)
        second.wait(NOTE)
        assert second.mine
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_told_to_those_who_wait_and_to_nobody_else(tmp_path: Path):
    with lease_turn(tmp_path) as waits, lease_turn(tmp_path, "g") as other, lease_turn(tmp_path) as fails:
        fails.wait(None)
        waits.wait(None)
        other.wait(None)
        fails.failed(StoreError("the disk is full"))
        with pytest.raises(StoreError, match=r"This process waited for .*, which failed: the disk is full"):
            waits.wait(None)
        fails.__exit__(None, None, None)
        with pytest.raises(StoreError, match="the disk is full"):
            waits.wait(None)
        # A failure of another store.
        other.wait(None)
        assert other.mine
    StatusFile(tmp_path / "x.building.json", "f").failed(StoreError("the disk is full"))
    with lease_turn(tmp_path) as later:
        later.wait(None)
        assert later.mine
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_builder_of_a_complete_store_left_stays_for_the_next_build(tmp_path: Path):
    script = (
        "from tests.build.test_coordination import *; lease_turn(Path(sys.argv[1])).wait(None); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {*left} == {"x.lock", "x.building.json"}
    with lease_turn(tmp_path):
        """There is nothing to build."""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left
    with lease_turn(tmp_path) as builds:
        builds.wait(None)
        assert builds.mine
    assert list(tmp_path.iterdir()) == []


def test_a_complete_store_is_opened_when_its_builder_has_tidied_up(tmp_path: Path):
    with lease_turn(tmp_path) as builds, lease_turn(tmp_path) as asks:
        assert not asks.finishing()
        builds.wait(None)
        assert not asks.finishing()
        builds.progress(5, 50, 1.0)
        assert asks.finishing()
        assert not builds.finishing()
        builds.__exit__(None, None, None)
        assert not asks.finishing()
    assert list(tmp_path.iterdir()) == []


def test_without_leases_the_loser_waits_while_commits_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with CommitTurn("s3://b/x.lance", patience=90) as turn:
        turn.wait(None)
        assert turn.mine
        turn.conflict()
        for documents in range(1, 5):
            now[0] += 89
            turn.wait(CommitMetadata("f", {}, {}, "", "<eos>", 0, 1, documents=documents))
            assert not turn.mine
        assert (
            "Another process builds s3://b/x.lance; waiting for it (committed: 1 document, 0 tokens)."
            in caplog.messages
        )
        now[0] += 91
        turn.wait(CommitMetadata("f", {}, {}, "", "<eos>", 0, 1, documents=4))
        assert turn.mine
