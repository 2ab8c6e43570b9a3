"""The lines that clients of the network log for each request: a build makes thousands, and tells of those that fail itself.

The names of their loggers are those of their packages, which differ between versions of the Hub's client. A level that was set
for one of them stays as it is.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of the Hub's client by its versions, and of what reads from buckets and other servers.
_LOGGERS = (
    "httpx", "httpx2", "httpcore", "httpcore2", "urllib3.connectionpool", "aiohttp.client", "botocore.credentials",
    "aiobotocore.credentials", "s3fs", "fsspec",
)  # fmt: skip

_lock = threading.Lock()
_entered = 0


class _OnlyTroubles(logging.Filter):
    """Lets warnings and errors pass, and what a logger was told to log by its own level."""

    def filter(self, record: logging.LogRecord) -> bool:
        own = logging.getLogger(record.name).level
        return record.levelno >= logging.WARNING or (own != logging.NOTSET and record.levelno >= own)


_filter = _OnlyTroubles()
_quiet: set[logging.Logger] = set()


@contextmanager
def quiet_requests() -> Iterator[None]:
    """Log no line for each request within it, in any thread: some clients send from threads of their own."""
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
    """Give the names of the packages that send the Hub's requests; none as long as nobody has imported its client."""
    hub = sys.modules.get("huggingface_hub")
    if hub is None:
        return set()
    return {kind.__module__.partition(".")[0] for kind in type(hub.get_session()).__mro__}
