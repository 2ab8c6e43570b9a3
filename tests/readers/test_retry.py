import asyncio
import concurrent.futures
import errno
import socket
import time
import zlib

import pyarrow as pa
import pytest

from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.readers import retry
from lightning_lance.readers.retry import RetryPolicy, _asked, is_bad_data, is_transient
from lightning_lance.sources.datasets import DatasetSource


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class TransportError(Exception):
    """Named as that of httpx."""


def told(status: int) -> Exception:
    error = RuntimeError("answered")
    error.response = Answer(status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "transient", "bad"),
    [
        (told(503), True, False),
        (told(429), True, False),
        (told(404), False, False),
        (told(401), False, False),
        (TransportError("cut"), True, False),
        (ConnectionResetError(), True, False),
        (TimeoutError(), True, False),
        (asyncio.TimeoutError(), True, False),
        (concurrent.futures.TimeoutError(), True, False),
        (OSError(errno.EIO, "disk"), True, False),
        (FileNotFoundError(errno.ENOENT, "gone"), False, False),
        (PermissionError(errno.EACCES, "no"), False, False),
        (pa.ArrowInvalid("no footer"), False, True),
        (OSError("Corrupt snappy compressed data"), False, True),
        (EOFError("ended early"), False, True),
        (zlib.error("garbled"), False, True),
        (RuntimeError("odd"), False, False),
    ],
)
def test_what_time_cures_and_what_is_no_good(error: Exception, transient: bool, bad: bool):
    assert (is_transient(error), is_bad_data(error) and not is_transient(error)) == (transient, bad)
    outer = RuntimeError("while reading")
    outer.__cause__ = error
    assert is_transient(outer) == transient


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=3;t=55'}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None):
    assert _asked(headers) == seconds
    assert _asked({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) < 0  # type: ignore[operator]


def test_waits_grow_vary_and_end(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    patience = RetryPolicy("mine", 12, 30.0)
    for tries in range(1, 13):
        patience.wait(tries, "reading x", OSError("cut"))
    assert all(0.1 * 2**i <= seconds <= 0.2 * 2**i for i, seconds in enumerate(waited[:9]))
    assert all(30 <= seconds <= 60 for seconds in waited[9:])
    patience.wait(1, "reading x", "HTTP 429", asked=17.0)
    patience.wait(1, "reading x", "HTTP 429", asked=1e6)
    assert waited[-2:] == [17.0, 300.0]
    with pytest.raises(
        SourceError, match=r"gave up on reading x after 13 tries \(OSError: cut\): all that is committed"
    ):
        patience.wait(13, "reading x", OSError("cut"))
    with pytest.raises(SourceError, match=r"after 1 try \(OSError: cut\)"):
        RetryPolicy("mine", 0, 30.0).wait(1, "reading x", OSError("cut"))
    assert patience.incidents == {"OSError": 12, "HTTP 429": 2}


@pytest.mark.parametrize(
    ("host", "why"), [("127.0.0.1", "connection refused"), ("no-such-host.invalid", "its name does not resolve")]
)
def test_what_was_never_reached_is_told_soon_and_what_was_is_waited_for(
    host: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.5)

    def connect() -> None:
        socket.create_connection((host, 9), 5)

    patience = RetryPolicy("mine", 20, 30.0, "The dataset 'a/b'", "set HF_ENDPOINT")
    began = time.monotonic()
    with pytest.raises(SourceError, match=rf"^The dataset 'a/b' cannot be reached \({why}\): set HF_ENDPOINT\.$"):
        patience.call("listing", connect)
    assert time.monotonic() - began < 5
    assert caplog.messages == []
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    patience.call("listing", lambda: None)
    for known in (patience, RetryPolicy("mine", 20, 30.0, reached=True)):
        with pytest.raises(SourceError, match="gave up on reading after 21 tries"):
            known.call("reading", connect)
    assert len(caplog.messages) == 40


def test_an_error_of_ours_passes_through_a_library_unchanged():
    """Otherwise it would be tried again, or told once more in the words of the library."""
    told = SourceError("once")

    def library() -> None:
        try:
            try:
                raise told from ConnectionRefusedError()
            except SourceError as error:
                raise ConnectionError("Couldn't reach the Hub") from error
        except ConnectionError:
            raise OSError("could not connect")  # noqa: B904 - as libraries do

    with pytest.raises(SourceError) as raised:
        RetryPolicy("mine", 20, 30.0).call("listing", library)
    assert raised.value is told


def test_only_what_time_cures_is_done_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    patience, calls = RetryPolicy("mine", 3, 30.0), []

    def fail(error: Exception, times: int) -> int:
        calls.append(error)
        if len(calls) <= times:
            raise error
        return len(calls)

    assert patience.call("listing", lambda: fail(ConnectionError(), 3)) == 4
    calls.clear()
    with pytest.raises(FileNotFoundError):
        patience.call("listing", lambda: fail(FileNotFoundError(errno.ENOENT, "gone"), 1))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_retries", -1, "source.max_retries is -1"),
        ("timeout_seconds", 0, "source.timeout_seconds is 0"),
        ("on_bad_shard", "warn", "source.on_bad_shard is 'warn': expected error or skip"),
    ],
)
def test_what_is_no_patience_is_refused(name: str, value: object, message: str):
    with pytest.raises(ConfigError, match=message):
        DatasetSource("parquet", data_files=["x"], **{name: value})  # type: ignore[arg-type]
