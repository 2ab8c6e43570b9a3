"""A source that notes what is read of it, and whose reader may die, wait or fail at a row. Workers of a cluster import it."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightning_lance.sources import FilesSource


@dataclass(frozen=True)
class WatchedSource:
    """Files, of which each reading of a unit is noted in a folder.

    Attributes:
        files: The files.
        notes: The folder.
        at: The first row of a unit whose reading meets a fate; None for none.
        fate: What happens then: `die` kills the reading process each time, `die once` the first time, `wait` waits until the
            file `go` is in the folder, `slow` sleeps 0.2 s in every unit.
    """

    files: FilesSource
    notes: Path
    at: int | None = None
    fate: str = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "files":
            raise AttributeError(name)
        return getattr(self.files, name)

    def identity(self) -> dict[str, Any]:
        return self.files.identity()

    def open(self, pin: Mapping[str, Any] | None = None) -> "OpenedWatched":
        return OpenedWatched(self, self.files.open(pin))

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def wanted(self) -> Sequence[str]:
        return self.files.wanted

    @property
    def metadata(self) -> Sequence[str]:
        return self.files.metadata

    @property
    def dedup(self) -> Any:
        return self.files.dedup

    @property
    def has_validation(self) -> bool:
        return False


class OpenedWatched:
    def __init__(self, source: WatchedSource, opened: Any) -> None:
        self._source, self._opened = source, opened

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._opened, name)

    def cuts(self, shard: int, part_bytes: int) -> list[int]:
        return list(self._opened.cuts(shard, part_bytes))

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        source = self._source
        with (source.notes / "read").open("a") as notes:
            notes.write(f"{shard} {row}\n")
        for batch in self._opened.read(shard, row):
            if source.fate == "slow":
                time.sleep(0.2)
            if row == source.at:
                self._meet_fate()
            yield batch

    def _meet_fate(self) -> None:
        notes = self._source.notes
        met = notes / "met"
        if self._source.fate == "die" or (self._source.fate == "die once" and not met.exists()):
            met.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        met.write_text(str(os.getpid()))
        end = time.monotonic() + 60
        while self._source.fate == "wait" and not (notes / "go").exists() and time.monotonic() < end:
            time.sleep(0.05)


def readings(notes: Path) -> list[str]:
    """Return what was read, `shard row` each."""
    return (notes / "read").read_text().splitlines()
