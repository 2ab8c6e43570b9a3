"""Builds that are killed at every call that changes a file.

Each point is a kind and a number: the third time that a checksum file is renamed, say. Points are calls of Python that change
files, as audit events tell of them, and calls of Lance that write. What Lance leaves where it is killed within a call is made
of what the whole call leaves.

This module is the server, too: it imports everything, uses nothing of it, and forks a process for each build.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.dataset import Tags
from lance.file import LanceFileSession

from lightning_lance.format import lance_io
from lightning_lance.format.commit import last_commit
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import compaction
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.process import locks
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents
from tests.support.streams import provenance, streams

SERVER = "import sys; sys.path[:0] = [sys.argv[1]]; from tests.support.crashes import serve; serve()"

# Two languages, two splits; a batch of these is a commit.
SOURCE = ListSource(
    tuple(
        document
        for i in range(8)
        for document in documents(f"text {i} " * (i + 1), language="Rust" if i % 3 else "Python", repo=f"repo{i % 5}")
    ),
    per_shard=4,
    per_batch=2,
)
# Fewer commits than there are batches, so that there is a merge in the midst, and a last commit that merges again.
OPTIONS: dict[str, Any] = {"commit_tokens": 1, "val_fraction": 0.3, "durable": False}
FAN = 3
LEASE = 2.0
# What is there before a build of a kind begins: nothing, a store of a smaller budget, or one of another recipe.
SMALLER = 2
KINDS = ("new", "grown", "replaced")

_CHANGES = {
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "shutil.rmtree": 1,
    "shutil.copyfile": 2,
    "shutil.move": 2,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What differs from build to build in the names of files.
_VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[01]{24}[0-9a-f]{26}|(?<=\.)[0-9a-f]{16}(?=\.part)|\d+(?=[-.])")


class Points:
    """Counts the points that a process comes to, by kind, and kills it at one of them.

    Args:
        folder: Changes elsewhere do not count.
        at: Kind and number of the point; None for none.
    """

    def __init__(self, folder: Path, at: tuple[str, int] | None) -> None:
        self._folder = f"{folder}{os.sep}"
        self._at = at
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()

    def reach(self, kind: str, last_words: Callable[[], object] | None = None) -> None:
        """Count a point. If the process ends here, do `last_words` before."""
        with self._lock:
            self.seen[kind] += 1
            if (kind, self.seen[kind]) == self._at:
                # So that they are no points themselves.
                self._folder = "\0"
                if last_words is not None:
                    last_words()
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, (str, os.PathLike)) and bool(flags & _WRITES)
            if changes and (name := self._name(path)) is not None:
                self.reach(f"open {name}")
                # It is there, and nothing is in it yet.
                self.reach(f"opened {name}", Path(path).touch)
        elif event in _CHANGES:
            # What follows the paths is the folder that they are in, where there is one: a removal of all goes by that.
            inside = arguments[_CHANGES[event]] if event in ("os.remove", "os.rmdir") else -1
            names = [self._name(path, inside) for path in arguments[: _CHANGES[event]]]
            if any(name is not None for name in names):
                self.reach(f"{event} {names[0]}")

    def _name(self, path: Any, inside: int = -1) -> str | None:
        folder = os.getcwd() if inside < 0 else os.readlink(f"/proc/self/fd/{inside}")  # noqa: PTH109, PTH115
        place = os.path.join(folder, os.fspath(path))  # noqa: PTH118
        if isinstance(place, bytes) or not place.startswith(self._folder):
            return None
        return _VARYING.sub("*", place.removeprefix(self._folder))

    def install(self) -> None:
        """Let all calls that change files come here first."""
        sys.addaudithook(self.audit)
        for owner, name in (
            (lance_io, "write_fragments"),
            (lance.LanceDataset, "commit"),
            (Tags, "create"),
            (Tags, "update"),
            (Tags, "delete"),
            (LanceFileSession, "delete_file"),
            (LanceFileSession, "upload_file"),
        ):
            setattr(owner, name, self._around(name, getattr(owner, name)))

    def _around(self, name: str, call: Callable[..., Any]) -> Any:
        def around(*arguments: Any, **named: Any) -> Any:
            self.reach(f"before {name}")
            if name == "write_fragments":
                arguments = (self._passing(arguments[0]), *arguments[1:])
            hint = self._hint(arguments)
            result = call(*arguments, **named)
            if name == "commit":
                self._within_commit(Path(result.uri), int(result.version), hint)
            self.reach(f"after {name}")
            return result

        return staticmethod(around) if name == "commit" else around

    def _passing(self, rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
        def passing() -> Iterator[pa.RecordBatch]:
            for batch in rows:
                self.reach("rows of write_fragments")
                yield batch
            self.reach("end of write_fragments")

        return pa.RecordBatchReader.from_batches(rows.schema, passing())

    def _hint(self, arguments: tuple[Any, ...]) -> bytes | None:
        uri = getattr(arguments[0], "uri", arguments[0])
        file = Path(uri, "_versions", "latest_version_hint.json") if isinstance(uri, str) else None
        return file.read_bytes() if file is not None and file.is_file() else None

    def _within_commit(self, store: Path, version: int, hint: bytes | None) -> None:
        """Lance writes the transaction, then the manifest under another name, then it names it, then it writes the hint."""
        versions = store / "_versions"
        manifest, hints = versions / f"{2**64 - 1 - version:020d}.manifest", versions / "latest_version_hint.json"

        def without_hint() -> None:
            if hint is None:
                hints.unlink(missing_ok=True)
            else:
                hints.write_bytes(hint)

        def unnamed() -> None:
            without_hint()
            manifest.rename(f"{manifest}#1")

        def without_manifest() -> None:
            without_hint()
            manifest.unlink()

        self.reach("commit has written the transaction", without_manifest)
        self.reach("commit has written the manifest", unnamed)
        self.reach("commit has named the manifest", without_hint)


def begin(kind: str, folder: Path) -> None:
    """Make what is there before a build of a kind."""
    _build(folder, **{"grown": {"max_documents": SMALLER}, "replaced": {"val_fraction": 0.0}}[kind])


def _build(folder: Path, **options: Any) -> TokenStore:
    compaction._FAN = FAN
    # A lock that names nobody yet is waited for so long.
    locks.LEASE_SECONDS = LEASE
    return prepare(SOURCE, ByteTokenizer(), str(folder / "x.lance"), **{**OPTIONS, **options})


def build(kind: str, folder: Path) -> TokenStore:
    """Make what a build of a kind makes."""
    return _build(folder, rebuild=kind == "replaced")


def description(folder: Path, store: TokenStore) -> dict[str, Any]:
    """All that must be the same after a kill: what readers see, and the files, but for what is random in their names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = Counter(_VARYING.sub("*", str(path.relative_to(folder))) for path in files)
    data = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.parent.name == "data")
    folders = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())
    tags = {name: tag["version"] - store.version for name, tag in lance.dataset(store.uri).tags.list().items()}
    told = {
        "streams": {str(key): tokens for key, tokens in streams(store).items()},
        "documents": {str(key): found for key, found in provenance(store).items()},
        "commit": repr(store.commit),
        "files": dict(sorted(names.items())),
        "data": data,
        "folders": folders,
        # Of a grown store, an older one is kept, and how much older it is tells nothing.
        "tags": {name: min(by, 0) and -1 for name, by in sorted(tags.items())},
    }
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def _in_fork(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a forked process; give how it ended, and what it gave."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            answer = work()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], json.loads(text or "null")


def serve() -> None:
    """Answer requests, one a line: (kind, folder, point)."""
    import awkward  # noqa: F401 - the store's tokens go through it
    import gigatoken  # noqa: F401
    import tokenizers  # noqa: F401

    from tests.support import compared  # noqa: F401

    for line in sys.stdin:
        kind, place, begun, at = json.loads(line)
        folder = Path(place)
        print(json.dumps(_one(kind, folder, begun, at and (at[0], at[1]))), flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def _one(kind: str, folder: Path, begun: str, at: tuple[str, int] | None) -> dict[str, Any]:
    """Build and be killed at a point, then build again."""
    if kind != "new":
        if not Path(begun).exists():
            Path(begun).mkdir(parents=True)
            _in_fork(lambda: begin(kind, Path(begun)))
        shutil.copytree(begun, folder)
    else:
        folder.mkdir(parents=True)

    def first() -> Any:
        points = Points(folder, at)
        points.install()
        build(kind, folder)
        return points.seen

    def again() -> Any:
        uri = str(folder / "x.lance")
        before = last_commit(StoreLocation(uri))
        store = build(kind, folder)
        if before == store.commit:
            # Nothing was left to build, and a store that is only found is not written to: so what was left goes with this.
            clean(uri)
            store = TokenStore.open(uri)
        return description(folder, store)

    ended, seen = _in_fork(first)
    _, found = _in_fork(again)
    return {"killed": os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL, "seen": seen, "found": found}


class Server:
    """A process that forks one for each build, which costs a hundredth of starting it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAYON_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1", "LANCE_IO_THREADS": "2"},
        )

    def ask(self, kind: str, at: tuple[str, int] | None) -> dict[str, Any]:
        """Build, be killed at a point, and build again."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        asked = (kind, str(self._folder / str(self._count)), str(self._folder / f"begun-{kind}"), at)
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)
