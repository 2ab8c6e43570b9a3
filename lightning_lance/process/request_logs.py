"""Silences the log lines of network clients about each request. A build makes thousands, and logs failed ones itself.

The loggers have the names of their packages, which differ between versions of the Hub's client. Levels that the user has set
for one of them stay in force.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Loggers of the Hub's client in its versions, and of clients of buckets and other servers.
_LOGGERS = (
    "httpx", "httpx2", "httpcore", "httpcore2", "urllib3.connectionpool", "aiohttp.client", "botocore.credentials",
    "aiobotocore.credentials", "s3fs", "fsspec",
)  # fmt: skip

_lock = threading.Lock()
_entered = 0


class _OnlyTroubles(logging.Filter):
    """Lets warnings and errors pass, and records at the level that the user has set for the logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        own = logging.getLogger(record.name).level
        return record.levelno >= logging.WARNING or (own != logging.NOTSET and record.levelno >= own)


_filter = _OnlyTroubles()
_quiet: set[logging.Logger] = set()


@contextmanager
def quiet_requests() -> Iterator[None]:
    """Silence the lines about requests within the block, in all threads, since some clients send from their own."""
    global _entered
    with _lock:
        _entered += 1
        for name in {*_LOGGERS, *_hub_client()}:
            logger = logging.getLogger(name)
            logger.addFilter(_filter)
            _quiet.add(logger)
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                while _quiet:
                    _quiet.pop().removeFilter(_filter)


def _hub_client() -> set[str]:
    """Return the names of the packages that send the Hub's requests; empty until its client is imported."""
    hub = sys.modules.get("huggingface_hub")
    if hub is None:
        return set()
    return {kind.__module__.partition(".")[0] for kind in type(hub.get_session()).__mro__}
