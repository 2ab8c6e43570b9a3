"""Real processes that build, started at no cost: forks of one that has imported everything and used nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightning_lance.errors import SourceError
from lightning_lance.sources.files import python_stdlib
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents

TEXTS = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(Path(python_stdlib().root).glob("*.py"))]
# Two languages, and repositories of which some are for validation: 500 documents and 14 M tokens.
STDLIB = tuple(
    entry
    for i, text in enumerate(TEXTS * 3)
    for entry in documents(text, language="Rust" if i % 3 else "Python", repo=f"repo{i % 40}")
)

SERVER = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
import awkward, gigatoken, tokenizers
from tests.support import builders
# The children are gone as soon as they have ended, so that nobody takes them for alive.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        builders.run(line)
        os._exit(0)
    print(pid, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Watched(ListSource):
    """Documents that count who reads them, stop at a shard until a file is there, or fail at one."""

    gate: str = ""
    at: int = -1
    fails: bool = False
    reads: list[int] = dataclasses.field(default_factory=list)

    def identity(self) -> dict[str, Any]:
        return {"documents": len(self.documents)}

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        self.reads.append(shard)
        if shard == self.at:
            Path(self.gate + ".reached").touch()
            until(Path(self.gate).exists, 100)
            if self.fails:
                raise SourceError("the network is gone")
        yield from super().read(shard, row)


def until(holds: Callable[[], Any], seconds: float = 150) -> None:
    """Wait for what another process does."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < seconds, "it did not come"
        time.sleep(0.005)


def run(line: str) -> None:
    """What a child does: build, and write down how it went."""
    import logging

    from lightning_lance.process import files, locks
    from lightning_lance.tokenization.configs import ByteTokenizer
    from tests.support.corpora import prepare

    asked = json.loads(line)
    told: dict[str, Any] = {"messages": []}
    result = Path(asked.pop("result"))

    def keep(record: logging.LogRecord) -> None:
        told["messages"].append(record.getMessage())
        result.with_suffix(".warned").touch()

    handler = logging.Handler(logging.WARNING)
    handler.emit = keep  # type: ignore[method-assign]
    logging.getLogger("lightning_lance").addHandler(handler)
    locks.LEASE_SECONDS = asked.pop("lease", locks.LEASE_SECONDS)
    source = Watched(STDLIB, 20, 4, **asked.pop("source", {}))
    try:
        store = prepare(source, ByteTokenizer(), asked.pop("uri"), val_fraction=0.3, **asked)
        told["version"] = store.version
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    told["reads"] = len(source.reads)
    files.write_atomic(result, json.dumps(told))


class Builder:
    """A process that builds."""

    def __init__(self, pid: int, result: Path) -> None:
        self.pid, self._result = pid, result

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def has_warned(self) -> bool:
        """Return whether it has logged a warning, as that it waits for another process."""
        return self._result.with_suffix(".warned").exists()

    def kill(self) -> bool:
        """`kill -9`; whether it was still building."""
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            return False
        until(lambda: not self.alive())
        return not self._result.exists()

    def result(self, seconds: float = 150) -> dict[str, Any]:
        until(self._result.exists, seconds)
        until(lambda: not self.alive())
        return json.loads(self._result.read_text())  # type: ignore[no-any-return]


class Builders:
    """Starts processes that build the same store."""

    def __init__(self) -> None:
        self._started: list[Builder] = []

    def __enter__(self) -> "Builders":
        command = [sys.executable, "-c", SERVER, str(ROOT)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def start(self, uri: Path, **options: Any) -> Builder:
        result = uri.parent.with_name(f"{len(self._started)}.result")
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"uri": str(uri), "result": str(result), **options}) + "\n")
        self._server.stdin.flush()
        self._started.append(Builder(int(self._server.stdout.readline()), result))
        return self._started[-1]

    def __exit__(self, *_: object) -> None:
        for builder in self._started:
            if builder.alive():
                builder.kill()
        self._server.communicate()
