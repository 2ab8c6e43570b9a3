"""Retries: which errors are transient, how long to wait, and when to give up.

The libraries below retry by themselves: each retries other errors, waits without jitter and counts nothing, and their retries
multiply when they are stacked. So requests to the Hub are retried here, one by one, before those libraries see the failure.
Reads from elsewhere (a bucket, a disk) are retried by the reader of a shard.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import zstandard

from lightning_lance.errors import ConfigError, LightningLanceError, SourceError, causes, described, whole_number
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.redaction import in_one_line, redacted, shown_cause
from lightning_lance.process.request_logs import quiet_requests
from lightning_lance.type_hints import is_number

_log = logger(__name__)

# The first wait is short, since most failures are of one bad server among many. Each wait doubles, up to a minute.
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 60.0
# The longest wait that a server may ask for: the Hub counts requests in windows of five minutes.
_LONGEST_ASKED = 300.0
# A day: sockets refuse larger numbers.
_LONGEST_TIMEOUT = 86_400
# Before anything was reached: long enough for a short failure, short for a wrong name or a machine without a network.
_FIRST_SECONDS, _FIRST_CONNECT_SECONDS = 2.0, 5.0

# Too early, too late, too many, and faults of the server.
_STATUSES = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE,
    errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EAGAIN, errno.EINTR,
}  # fmt: skip
# By name, since they come from httpx, aiohttp, botocore, urllib3 or fsspec, none of which is imported here.
_NETWORK = {
    "TransportError", "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "FSTimeoutError",
    "EndpointConnectionError", "ConnectionClosedError", "HTTPClientError", "IncompleteRead", "ProtocolError",
}  # fmt: skip
_BAD_DATA = (
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
    UnicodeDecodeError,
    EOFError,
    zlib.error,
    zstandard.ZstdError,
)

# No requests remaining, and the seconds until there are more.
_RATE_LIMIT = re.compile(r"\br=0;\s*t=(\d+)")

# Classes of network errors that are permanent: the request itself is impossible.
_NEVER = {
    "OfflineModeIsEnabled",
    "UnsupportedProtocol",
    "LocalProtocolError",
    "ClientConnectorCertificateError",
    "InvalidURL",
}

# Errors of clients that could not even connect, by name; see `_NETWORK`.
_NO_CONNECTION = {
    "ConnectError", "ConnectTimeout", "ProxyError", "ClientConnectorError", "ConnectionTimeoutError",
    "EndpointConnectionError", "ConnectTimeoutError", "ConnectionRefusedError", "gaierror",
}  # fmt: skip
_NO_ROUTE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}
# The Hub's client asks here which coding agent may run it, before its first request, and waits for the answer.
_AGENTS = "/api/agent-harnesses"

_Result = TypeVar("_Result")

_active = threading.local()


class Gate(Protocol):
    """Where requests to the Hub wait for their turn, those of other processes too."""

    def wait(self) -> None:
        """Wait until the next request may be sent."""
        ...

    def hold(self, seconds: float) -> None:
        """Have all requests wait so long, since the Hub has asked for it."""
        ...


_gate: Gate | None = None


def set_gate(gate: Gate | None) -> None:
    """Send all requests of this process to the Hub through a gate; None for none."""
    global _gate
    _gate = gate


class RetryPolicy:
    """Retries failures of one source, and counts them.

    Before anything was reached, a server that cannot be connected to is tried for a few seconds only, without a word.

    Args:
        name: The source, for messages.
        max_retries: Tries after the first, in a row and without progress, before it gives up.
        timeout_seconds: The longest silence of a server.
        what: What is read, as the user calls it, for the message that it cannot be reached.
        cure: What to do then.
        reached: Whether it was reached before, by an earlier build.

    Attributes:
        incidents: Retried failures, by what happened.
        reached: Whether anything has answered yet.

    Raises:
        ConfigError: If a number is out of its range.
    """

    def __init__(
        self,
        name: str,
        max_retries: int,
        timeout_seconds: float,
        what: str = "",
        cure: str = "check the network, then run it again",
        reached: bool = False,
    ) -> None:
        self._name = name
        self.max_retries = 0
        if not is_number(max_retries) or max_retries != 0:
            self.max_retries = whole_number("source.max_retries", max_retries)
        if not is_number(timeout_seconds) or not 0 < timeout_seconds <= _LONGEST_TIMEOUT:
            raise ConfigError(
                f"source.timeout_seconds is {described(timeout_seconds)}: expected a number above 0, up to "
                f"{_LONGEST_TIMEOUT:,}."
            )
        self.timeout_seconds = float(timeout_seconds)
        self.incidents: Counter[str] = Counter()
        self.reached = reached
        self._what = what or f"Source {name!r}"
        self._cure = cure
        # Many machines that fail together must not come back together.
        self._random = Random()

    def __getstate__(self) -> dict[str, Any]:
        # A worker waits by chances of its own.
        return {**vars(self), "_random": None, "incidents": Counter()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._random = Random()

    def wait(self, tries: int, what: str, error: object, asked: float | None = None) -> None:
        """Wait before the next try.

        Args:
            tries: Failures in a row.
            what: What failed, for the message.
            error: How it failed.
            asked: Seconds that the server asked to wait.

        Raises:
            SourceError: If there were too many failures.
        """
        told = str(error)
        shown = None
        if isinstance(error, BaseException):
            cause = _of_network(error)
            told = f"{type(cause).__name__}: {cause}"
            shown = shown_cause(error)
        what, told = redacted(what), in_one_line(told, 200)
        if tries > self.max_retries:
            raise SourceError(
                f"Source {self._name!r} gave up on {what} after {pluralize(tries, 'try', 'tries')} ({told}): all that is "
                "committed is safe; run the same again later and it goes on from there, or raise source.max_retries."
            ) from shown
        seconds = min(_FIRST_WAIT * 2.0 ** min(tries - 1, 20), _LONGEST_WAIT) * self._random.uniform(0.5, 1.0)
        seconds = max(seconds, min(asked or 0.0, _LONGEST_ASKED))
        self.incidents[told.split(":")[0]] += 1
        _log.warning("%s: %s; try %d of %d in %.1f s.", what, told, tries, self.max_retries, seconds)
        time.sleep(seconds)

    def call(self, what: str, function: Callable[[], _Result]) -> _Result:
        """Call a function, again as long as its error is transient."""
        tries = 0
        began = time.monotonic()
        while True:
            try:
                with self.active():
                    result = function()
            except Exception as error:
                raise_own(error)
                if not is_transient(error):
                    raise
                tries += 1
                if self._is_first_contact(error):
                    self._try_to_reach(tries, began, error)
                else:
                    self.wait(tries, what, error)
            else:
                self.reached = True
                return result

    def _is_first_contact(self, error: BaseException) -> bool:
        return not self.reached and _is_unreachable(error)

    def _try_to_reach(self, tries: int, began: float, error: Exception, place: str = "") -> None:
        """Wait a moment before another first contact. SourceError after a few seconds."""
        if tries > self.max_retries or time.monotonic() - began > _FIRST_SECONDS:
            where = f"{place}: " if place else ""
            raise SourceError(
                f"{self._what} cannot be reached ({where}{_why_unreachable(error)}): {self._cure}."
            ) from shown_cause(error)
        time.sleep(_FIRST_WAIT * tries)

    @contextmanager
    def active(self) -> Generator[None, None, None]:
        """Retry each request of this thread to the Hub, and log none."""
        from huggingface_hub import get_session

        client: Any = get_session()
        if not getattr(client.send, "patient", False):
            # All its requests go through this public method. A transport would see neither redirects nor cut bodies, and
            # another client would end the requests of other threads.
            client.send = _patient(client.send)
        before = getattr(_active, "patience", None)
        _active.patience = self
        try:
            with quiet_requests():
                yield
        finally:
            _active.patience = before

    def send(self, plain: Callable[..., Any], request: Any, options: Mapping[str, Any]) -> Any:
        """Send a request of the Hub's client until the answer is no transient failure."""
        what = f"{request.method} {request.url}"
        tries = 0
        began = time.monotonic()
        while True:
            tries += 1
            times = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout_seconds)
            if not self.reached:
                times["connect"] = min(self.timeout_seconds, _FIRST_CONNECT_SECONDS)
            request.extensions = {**request.extensions, "timeout": times}
            try:
                response = plain(request, **options)
            except Exception as error:
                if not is_transient(error):
                    raise
                if self._is_first_contact(error):
                    self._try_to_reach(tries, began, error, _hub())
                else:
                    self.wait(tries, what, error)
                continue
            self.reached = True
            if response.status_code not in _STATUSES:
                return response
            response.close()
            self.wait(tries, what, f"HTTP {response.status_code}", _asked(response.headers))


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _patient(plain: Callable[..., Any]) -> Callable[..., Any]:
    def send(request: Any, **options: Any) -> Any:
        patience = getattr(_active, "patience", None)
        hub = _hub()
        # `datasets` counts downloads on another server by the same client: that may fail.
        if not str(request.url).startswith(hub):
            return plain(request, **options)
        if patience is None:
            return through_gate(request, **options)
        if str(request.url) == f"{hub}{_AGENTS}":
            # Its client takes any error for "no agent".
            raise ConnectionError("a build does not wait for that")
        return patience.send(through_gate, request, options)

    def through_gate(request: Any, **options: Any) -> Any:
        gate = _gate
        if gate is None:
            return plain(request, **options)
        gate.wait()
        response = plain(request, **options)
        if response.status_code == 429:
            gate.hold(min(_asked(response.headers) or 0.0, _LONGEST_ASKED))
        return response

    send.patient = True  # type: ignore[attr-defined] # so that a client is wrapped once
    return send


def _asked(headers: Mapping[str, str]) -> float | None:
    """Read how long a server asks to wait, in seconds: `Retry-After`, or the Hub's own rate limit."""
    text = headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    if text:
        try:
            return (parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds()
        except (TypeError, ValueError):
            return None
    limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    if limit:
        return float(limit[1])
    return None


def _kinds(error: BaseException) -> set[str]:
    """Return the names of the class of an error and of its bases."""
    return {kind.__name__ for kind in type(error).__mro__}


def raise_own(error: BaseException) -> None:
    """Raise the error of this package that an error is, or was raised from by a library in between; return if it is none."""
    for cause in causes(error):
        if isinstance(cause, LightningLanceError):
            raise cause from cause.__cause__


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later: the network, a server or a disk failed."""
    found = causes(error)
    if any(map(_is_permanent, found)):
        return False
    for cause in found:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # of botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", None) or getattr(cause, "status", None)
        if status in _STATUSES:
            return True
        names = _kinds(cause)
        # In Python 3.10, those of asyncio and of concurrent.futures are classes of their own.
        if names & _NETWORK or "TimeoutError" in names or isinstance(cause, (ConnectionError, socket.gaierror)):
            return True
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            return True
    return False


def _is_permanent(error: BaseException) -> bool:
    # `datasets` keeps only the name of the error about offline mode.
    return not _NEVER.isdisjoint(_kinds(error)) or "OfflineModeIsEnabled" in str(error)


def _is_unreachable(error: BaseException) -> bool:
    """Return whether there was no connection at all: no name, no route, no server at the port."""
    for cause in causes(error):
        if _kinds(cause) & _NO_CONNECTION:
            return True
        if isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
            return True
    return False


def _why_unreachable(error: BaseException) -> str:
    found = causes(error)
    for cause in found:
        if isinstance(cause, socket.gaierror):
            return "its name does not resolve"
        if isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
            return os.strerror(cause.errno).lower()
    if any(map(_is_timeout, found)):
        return "no answer"
    network = _of_network(error)
    return in_one_line(str(network) or type(network).__name__, 200).rstrip(".")


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or "Timeout" in type(error).__name__


def _of_network(error: BaseException) -> BaseException:
    """Return the network error behind an error: some libraries say that a file is missing where its server is."""
    for cause in causes(error):
        if _kinds(cause) & _NETWORK:
            return cause
    return error


def is_bad_data(error: BaseException) -> bool:
    """Return whether the data is bad: of another format, cut off, or garbled."""
    return any(map(_tells_of_bad_data, causes(error)))


def _tells_of_bad_data(error: BaseException) -> bool:
    # From `datasets`: a file has other columns than the first one.
    if type(error).__name__ == "CastError":
        return True
    # Arrow and gzip report garbled bytes by an OSError without errno, JSON by a `ValueError`.
    if isinstance(error, OSError) and error.errno is None:
        return isinstance(error, _BAD_DATA) or not _is_refusal(error)
    return isinstance(error, _BAD_DATA) or type(error) is ValueError


def _is_refusal(error: BaseException) -> bool:
    """Return whether a server answered, or denied access: s3fs reports that without an errno."""
    return getattr(error, "response", None) is not None or isinstance(error, PermissionError)
