"""The status file of a build, beside its store: who builds since when and how far, or why it failed."""

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

# Between two writes: often enough for those who wait, too seldom to be felt.
_WRITE_SECONDS = 1.0
# A share of the budget may be above 1, where the last documents were long.
_MOST = 1e9


@dataclass(frozen=True)
class BuildStatus:
    """What a build tells about itself.

    Attributes:
        run: Tells this build from those before it.
        fingerprint: Of what is built.
        builder: The process.
        since: When it began, UTC.
        documents: Documents packed so far, of the whole store.
        tokens: Tokens packed so far.
        share: Share of the budget, 0 to 1.
        failure: What ended it, None while it goes on.
        of_source: Whether the failure is the source's.
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
        raise ValueError(f"{name} is no share")
    return float(value)


def _failure_of(value: Any, name: str) -> str | None:
    return None if value is None else text_of(value, name)


# What each field must be, whoever has written it.
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
    """Give the file in which the builder of a store tells how it goes; a bucket has none."""
    return beside(uri, "building.json")


def read_status(path: Path) -> BuildStatus | None:
    """Read a status file; None where there is none, or none that is understood."""
    try:
        told = object_of(json_of(content_of(path).decode(), "it"), "it")
        # A later version may tell more.
        known = {entry.name: entry.default for entry in fields(BuildStatus)} | told
        return BuildStatus(**{name: read(known[name], name) for name, read in _FIELDS.items()})
    except (OSError, ValueError):
        return None


def remove_status(path: Path) -> None:
    """Remove a status file, and what killed writers of it left behind; no file of others at its place."""
    remove_parts(path)
    if read_status(path) is not None and not path.is_symlink():
        path.unlink(missing_ok=True)


def _is_blank(path: Path) -> bool:
    """Tell whether a file holds nothing: a power cut may leave one of ours so."""
    with suppress(OSError):
        return not content_of(path).strip(b"\0")
    return False


def failure_of(status: BuildStatus, uri: str) -> SourceError | StoreError:
    """Make the error of those who waited for a build that failed."""
    kind = SourceError if status.of_source else StoreError
    return kind(
        f"The build of {uri!r} by {status.builder} failed, and this process waited for it: {status.failure} (run it again "
        "when that is mended, it goes on after the last commit)."
    )


class StatusFile:
    """Writes the status of one build. What cannot be written is left out: the build matters more.

    Args:
        path: The file.
        fingerprint: Of what is built.
        documents: Documents that the store has already.
        tokens: Their tokens.
    """

    def __init__(self, path: Path, fingerprint: str, documents: int = 0, tokens: int = 0) -> None:
        self._path = path
        builder = f"process {os.getpid()} on {socket.gethostname()}"
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._status = BuildStatus(secrets.token_hex(8), fingerprint, builder, since, documents, tokens)
        self._written = -_WRITE_SECONDS

    def begin(self) -> StatusFile:
        """Write the file. The caller owns this object already, so an interruption leaves a file that it can remove."""
        self._write()
        return self

    def update(self, documents: int, tokens: int, share: float) -> None:
        """Tell how far the build is; most calls write nothing, but that all is there is told at once."""
        complete = share >= 1 > self._status.share
        self._status = replace(self._status, documents=documents, tokens=tokens, share=share)
        if complete or time.monotonic() - self._written > _WRITE_SECONDS:
            self._write()

    def failed(self, error: BaseException) -> None:
        """Leave the cause for those who wait. It stays until the next build."""
        said = in_one_line(error, 2000)
        if not isinstance(error, LightningLanceError):
            said = f"{type(error).__name__}: {said}"
        self._status = replace(self._status, failure=said, of_source=isinstance(error, SourceError))
        self._write()

    def remove(self) -> None:
        """Remove the file, unless another build has written it since, or it tells of a failure."""
        found = read_status(self._path)
        if self._status.failure is None and found is not None and found.run == self._status.run:
            with suppress(OSError):
                remove_status(self._path)

    def _write(self) -> None:
        self._written = time.monotonic()
        if os.path.lexists(self._path) and read_status(self._path) is None and not _is_blank(self._path):
            return  # it is others'
        with suppress(OSError):
            write_atomic(self._path, json.dumps(asdict(self._status)))
