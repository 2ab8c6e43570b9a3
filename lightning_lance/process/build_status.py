"""The status file of a build, beside its store: the builder, its start and progress, or why it failed."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lightning_lance.errors import LightningLanceError, SourceError, StoreError
from lightning_lance.json_checks import count_of, flag_of, json_of, object_of, text_of
from lightning_lance.location import beside
from lightning_lance.messages.formatting import format_percent, format_tokens, pluralize
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.process.files import remove_parts, write_atomic
from lightning_lance.process.locks import content_of

# Between two writes: often enough for waiting processes, and too seldom to slow the build.
_WRITE_SECONDS = 1.0
# A share of the budget may exceed 1 if the last documents are long.
_MOST = 1e9


@dataclass(frozen=True)
class BuildStatus:
    """The status of a build.

    Attributes:
        run: Random id of this build.
        fingerprint: Fingerprint of the corpus.
        builder: Process and machine.
        since: Start time, UTC.
        documents: Documents packed so far, of the whole store.
        tokens: Tokens packed so far.
        share: Share of the budget, 0 to 1.
        failure: The error that ended it, None while it runs.
        of_source: Whether the error was a SourceError.
    """

    run: str
    fingerprint: str
    builder: str
    since: str
    documents: int = 0
    tokens: int = 0
    share: float = 0.0
    failure: str | None = None
    of_source: bool = False

    def __str__(self) -> str:
        figures = [pluralize(self.documents, "document"), format_tokens(self.tokens), format_percent(self.share)]
        return f"{self.builder}, since {self.since}: {', '.join(filter(None, figures))}"


def _share_of(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ValueError(f"{name} is not a share")
    return float(value)


def _failure_of(value: Any, name: str) -> str | None:
    if value is None:
        return None
    return text_of(value, name)


# The check of each field.
_FIELDS: dict[str, Callable[[Any, str], Any]] = {
    "run": text_of,
    "fingerprint": text_of,
    "builder": text_of,
    "since": text_of,
    "documents": count_of,
    "tokens": count_of,
    "share": _share_of,
    "failure": _failure_of,
    "of_source": flag_of,
}


def status_file(uri: str) -> Path | None:
    """Return the path of the status file of a store; None for a bucket."""
    return beside(uri, "building.json")


def read_status(path: Path | None) -> BuildStatus | None:
    """Read a status file; None if it is missing or invalid, or there is no place for it."""
    if path is None:
        return None
    try:
        content = object_of(json_of(content_of(path).decode(), "it"), "it")
        # Earlier versions wrote fewer fields, later ones may write more.
        known = {entry.name: entry.default for entry in fields(BuildStatus)} | content
        values: dict[str, Any] = {}
        for name, read in _FIELDS.items():
            values[name] = read(known[name], name)
        return BuildStatus(**values)
    except (OSError, ValueError):
        return None


def remove_status(path: Path) -> None:
    """Remove a status file and the parts left by killed writers. A foreign file at this path stays."""
    remove_parts(path)
    if read_status(path) is not None and not path.is_symlink():
        path.unlink(missing_ok=True)


def _is_blank(path: Path) -> bool:
    """Return whether a file is blank, as a status file may be after a power cut."""
    with suppress(OSError):
        return not content_of(path).strip(b"\0")
    return False


def failure_of(status: BuildStatus, uri: str) -> SourceError | StoreError:
    """Return the error of a process that waited for a build that failed."""
    kind = SourceError if status.of_source else StoreError
    return kind(
        f"This process waited for the build of {uri!r} by {status.builder}, which failed: {status.failure} (fix the cause and "
        "run again; the build resumes after the last commit)."
    )


class StatusFile:
    """Writes the status of one build of a corpus, which begins with the documents and tokens that the store has already.

    Errors of writing are ignored, since the build is worth more than its status.
    """

    def __init__(self, path: Path, fingerprint: str, documents: int = 0, tokens: int = 0) -> None:
        self._path = path
        builder = f"process {os.getpid()} on {socket.gethostname()}"
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._status = BuildStatus(secrets.token_hex(8), fingerprint, builder, since, documents, tokens)
        self._written = -_WRITE_SECONDS

    def begin(self) -> StatusFile:
        """Write the file. The caller holds this object already, so that it can remove the file if interrupted."""
        self._write()
        return self

    def update(self, documents: int, tokens: int, share: float) -> None:
        """Write the progress, at most once a second, but at once when the build is complete."""
        complete = share >= 1 > self._status.share
        self._status = replace(self._status, documents=documents, tokens=tokens, share=share)
        if complete or time.monotonic() - self._written > _WRITE_SECONDS:
            self._write()

    def failed(self, error: BaseException) -> None:
        """Write the cause of a failure, for waiting processes. It stays until the next build."""
        cause = in_one_line(error, 2000)
        if not isinstance(error, LightningLanceError):
            cause = f"{type(error).__name__}: {cause}"
        self._status = replace(self._status, failure=cause, of_source=isinstance(error, SourceError))
        self._write()

    def remove(self) -> None:
        """Remove the file, unless it records a failure or another build has written it."""
        found = read_status(self._path)
        if self._status.failure is None and found is not None and found.run == self._status.run:
            with suppress(OSError):
                remove_status(self._path)

    def _write(self) -> None:
        self._written = time.monotonic()
        if os.path.lexists(self._path) and read_status(self._path) is None and not _is_blank(self._path):
            return  # a foreign file
        with suppress(OSError):
            write_atomic(self._path, json.dumps(asdict(self._status)))
