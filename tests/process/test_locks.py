import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.process import locks
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import Lease, exclusive

HOLD = """
import socket, sys, time
from lightning_lance.process import locks
socket.gethostname = lambda: sys.argv[2]
locks.LEASE_SECONDS = float(sys.argv[3])
lease = locks.Lease(sys.argv[1])
assert lease.take()
print("held", flush=True)
while not lease.lost:
    time.sleep(0.02)
print("lost", flush=True)
lease.release()
"""


@pytest.fixture
def hold(tmp_path: Path):
    """Start a process that holds the lease until it is taken away."""
    started: list[subprocess.Popen[str]] = []

    def start(host: str = "", seconds: float = locks.LEASE_SECONDS) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            HOLD,
            str(tmp_path / "folder/x.lock"),
            host or os.uname().nodename,
            str(seconds),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(holds: Callable[[], bool], seconds: float) -> float:
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)
    return time.monotonic() - begin


def test_a_second_process_waits_and_a_killed_one_is_replaced_at_once(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], caplog: pytest.LogCaptureFixture
):
    holder, lock = hold(), tmp_path / "folder/x.lock"
    assert not Lease(lock).take()
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with exclusive(lock, "building it"):
        assert time.monotonic() - begin < locks.LEASE_SECONDS / 2
        assert not Lease(lock).take()
    assert list(lock.parent.iterdir()) == []


def test_who_waits_says_so(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], caplog: pytest.LogCaptureFixture, monkeypatch
):
    holder, lock = hold(), tmp_path / "folder/x.lock"
    monkeypatch.setattr(locks.time, "sleep", lambda _: (holder.kill(), holder.wait()))
    with exclusive(lock, "building it"):
        pass
    assert caplog.messages == [f"Another process is building it; waiting for it (file {lock})."]


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_a_silent_holder_is_replaced_and_learns_it(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, fate: str
):
    """Killed on another machine, which cannot be asked for its process; or stopped and resumed."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.5)
    holder = hold("elsewhere" if fate == "killed" else "", 1.5)
    lease = Lease(tmp_path / "folder/x.lock")
    # Nobody takes over while there are heartbeats.
    begin = time.monotonic()
    while time.monotonic() - begin < 2.5:
        assert not lease.take()
        time.sleep(0.1)
    holder.send_signal(signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
    until(lease.take, 20)
    if fate == "stopped":
        holder.send_signal(signal.SIGCONT)
        assert holder.communicate(timeout=20)[0] == "lost\n"
    # Its thread and its release do not touch the new lease.
    assert not lease.lost
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["x.lock"]
    lease.release()
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_lease_of_one_that_was_killed_elsewhere_is_waited_for_and_no_other(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.5)
    holder, lock = hold("elsewhere", 1.5), tmp_path / "folder/x.lock"
    lease = Lease(lock)
    assert not lease.take_from_the_dead()
    # A wrong clock makes it look old until the next heartbeat.
    os.utime(lock, (0, 0))
    assert not lease.take_from_the_dead()
    holder.kill()
    holder.wait()
    os.utime(lock, (0, 0))
    begin = time.monotonic()
    assert lease.take_from_the_dead()
    assert time.monotonic() - begin > 1
    lease.release()
    assert list(lock.parent.iterdir()) == []


def test_an_empty_file_blocks_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its process was killed, or the machine lost power, between creating and writing it."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.3)
    (tmp_path / "x.lock").touch()
    lease = Lease(tmp_path / "x.lock")
    assert until(lease.take, 20) > 0.3
    lease.release()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"The folder '.*/file/x' cannot be created \(Not a directory\): choose another"
    ):
        Lease(tmp_path / "file/x/y.lock")
    (tmp_path / "y.lock").mkdir()
    with pytest.raises(StoreError, match=r"The file '.*y\.lock' cannot be written \(.*\): free disk space or grant"):
        Lease(tmp_path / "y.lock").take()


def test_a_file_is_whole_or_as_it_was(tmp_path: Path):
    file = tmp_path / "a[b].json"
    (tmp_path / "a[b].json.0123.part").write_text("of one that was killed")
    other = tmp_path / "a[b].json2.0123.part"
    other.touch()
    write_atomic(file, "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "two \ud800")
    assert file.read_text() == "one"
    assert sorted(tmp_path.iterdir()) == [file, other]


def test_a_lease_that_a_power_cut_has_emptied_is_taken(tmp_path: Path):
    lease = Lease(tmp_path / "x.lock")
    (tmp_path / "x.lock").write_bytes(b"\0" * 200)
    os.utime(tmp_path / "x.lock", (0, 0))
    assert lease.take_from_the_dead()
    lease.release()
    assert list(tmp_path.iterdir()) == []
