"""Copies of a remote store on a local disk: what is read is the same, and no file of others is touched.

The stores are behind Lance's object store for files, which is as remote as any to this package. tests/integration has S3.
"""

import errno
import os
import pickle
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import LanceDataModule, TokenStore, TokenWindows, WindowLoader
from lightning_lance.errors import ConfigError
from lightning_lance.store import staging
from lightning_lance.store.staging import FOLDER
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents, only_append
from tests.support.warm import server

TEXTS = [f"text {i} " * (40 + 7 * i % 50) for i in range(120)]


def built(place: Path, texts: list[str] = TEXTS, **budget: Any) -> TokenStore:
    """Builds a store of several data files."""
    arguments: dict[str, Any] = {"val_fraction": 0.2, "data_dir": place.parent, "commit_tokens": 8000, **budget}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_lance.engines.local.commit_final", only_append)
        return prepare(ListSource(documents(*texts)), ByteTokenizer(), str(place), **arguments)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return built(tmp_path_factory.mktemp("store") / "x.lance")


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(staging, "_ROOM_SECONDS", 0.01)
    monkeypatch.setattr(staging, "_WAITS", (0.01,))
    monkeypatch.setattr(staging, "_PIECE_BYTES", 4096)


def remote(store: TokenStore | Path) -> str:
    return f"file-object-store://{store.uri if isinstance(store, TokenStore) else store}"


def opened(store: TokenStore | Path, folder: Path, max_bytes: int | None = None, begins: bool = True) -> TokenStore:
    there = TokenStore.open(remote(store))
    assert there.reader == "take"
    there.stage(folder, max_bytes)
    if begins:
        there.read(np.array([0]), 5)
    return there


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + 100
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def state_of(store: TokenStore) -> staging.Staging:
    assert store._staging is not None
    return store._staging


def whole(store: TokenStore) -> list[list[int]]:
    return [store.read(np.array([0]), store.num_tokens(split), split)[0].tolist() for split in ("train", "val")]


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / FOLDER).glob("*.copy") if staging._COPY.fullmatch(path.name))


def test_a_store_is_read_from_its_copies_and_nothing_else_changes(tmp_path: Path):
    """Through two epochs and a resume, whenever the copies arrive. At the end, the store itself is not needed."""
    local = built(tmp_path / "x.lance")

    def served(store: TokenStore) -> tuple[list[Any], list[Any]]:
        batches, digests = [], []
        loader = WindowLoader(store, 100, 8, seed=3)
        for _ in range(2):
            for batch in loader:
                batches.append(batch["input_ids"].tolist())
                digests.append({**loader.state_dict(), "stores": None})
        return batches, digests

    plain = served(local)
    store = opened(local, tmp_path, begins=False)
    assert served(store) == plain
    until(lambda: store.reader == "mapped")
    assert len(copies(tmp_path)) == len(local._dataset.get_fragments()) > 4
    again = opened(local, tmp_path, begins=False)
    resumed, first = WindowLoader(again, 100, 8, seed=3), WindowLoader(local, 100, 8, seed=3)
    middle = len(first) // 2
    for _, _batch in zip(range(middle), first, strict=False):
        pass
    again.read(np.array([0]), 5)
    until(lambda: again.reader == "mapped")
    assert state_of(again)._copied_bytes == 0
    resumed.load_state_dict(first.state_dict())
    shutil.rmtree(tmp_path / "x.lance" / "data")
    assert [batch["input_ids"].tolist() for batch in resumed] == plain[0][middle : len(first)]
    assert served(store) == plain
    assert TokenWindows(again, 100)[7]["input_ids"].tolist() == TokenWindows(store, 100)[7]["input_ids"].tolist()
    for path in (tmp_path / FOLDER, *(tmp_path / FOLDER).iterdir()):
        assert path.stat().st_mode & 0o077 == 0


@pytest.fixture(scope="module")
def staged(local: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    store = opened(local, tmp_path_factory.mktemp("staged"))
    until(lambda: store.reader == "mapped")
    return store


@examples(30)
@given(data=st.data())
def test_any_part_of_the_files_may_be_there(staged: TokenStore, local: TokenStore, data: st.DataObject):
    every = state_of(staged)._copies
    names = data.draw(st.sets(st.sampled_from(sorted(every))))
    staged._reader.read_from({name: every[name] for name in names})
    assert (staged.reader == "mapped") == (len(names) == len(every))
    split = data.draw(st.sampled_from(["train", "val"]))
    length = data.draw(st.integers(1, 5000))
    most = local.num_tokens(split) - length
    starts = np.asarray(data.draw(st.lists(st.integers(0, most), max_size=6)), np.int64)
    assert np.array_equal(staged.read(starts, length, split), local.read(starts, length, split))


def test_all_that_are_given_a_folder_share_it(local: TokenStore, tmp_path: Path):
    """Each file is copied once, whoever copies it, also across a pickle."""
    first = opened(local, tmp_path, begins=False)
    stores = [first, opened(local, tmp_path), pickle.loads(pickle.dumps(first))]
    for store in (first, stores[2]):
        store.read(np.array([0]), 5)
    until(lambda: all(store.reader == "mapped" for store in stores))
    assert [whole(store) for store in stores] == [whole(local)] * 3
    copied = sum(state_of(store)._copied_bytes for store in stores)
    assert copied == sum(path.stat().st_size for path in copies(tmp_path))


# Copies a file and the first pieces of another, and hangs.
COPIER = """
import sys, time
import numpy as np
from lightning_lance import TokenStore
from lightning_lance.store import staging
uri, folder = sys.argv[1:]
opened, left = staging.data_session, [12]
class Hangs:
    def __init__(self, session):
        self._session = session
    def read_range(self, name, begin, size):
        left[0] -= 1
        if left[0] < 0:
            time.sleep(600)
        return self._session.read_range(name, begin, size)
staging.data_session = lambda location: Hangs(opened(location))
staging._PIECE_BYTES = 4096
staging._PIECES_AT_ONCE = 1
store = TokenStore.open(uri)
store.stage(folder)
store.read(np.array([0]), 5)
time.sleep(600)
"""


def test_a_copier_that_was_killed_is_replaced(local: TokenStore, tmp_path: Path):
    dead = server(("numpy", "lance", "lightning_lance.store.token_store")).start(COPIER, remote(local), tmp_path)
    try:
        until(lambda: [path for path in (tmp_path / FOLDER).glob("*.part") if copies(tmp_path)])
        store = opened(local, tmp_path)
        until(lambda: state_of(store)._copies)
        time.sleep(0.05)
        # The living one is waited for, and what it is writing stays.
        assert state_of(store)._copied_bytes == 0
        assert len(list((tmp_path / FOLDER).glob("*.part"))) == 1
        assert store.reader == "take"
        assert whole(store) == whole(local)
    finally:
        os.kill(dead.pid, signal.SIGKILL)
    until(lambda: store.reader == "mapped")
    assert whole(store) == whole(local)
    assert not list((tmp_path / FOLDER).glob("*.part"))


def test_the_bound_and_what_makes_room(local: TokenStore, tmp_path: Path):
    held = [opened(local, tmp_path)]
    until(lambda: held[0].reader == "mapped")
    every = copies(tmp_path)
    total = sum(path.stat().st_size for path in every)
    used = [copy.path for copy in state_of(held[0])._copies.values()]
    # Files of others, whatever their names.
    others = ["notes.txt", "a.12.0123456789abcdef.copy", "x.part", f"{every[0].name}.part"]
    for name in others:
        (tmp_path / FOLDER / name).write_text("mine")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / FOLDER / "0.4.0123456789abcdef.copy").symlink_to(tmp_path / "mine")
    # Another store finds no room while they are in use, and is read from where it is.
    other = built(tmp_path / "other.lance", [f"other {text}" for text in TEXTS])
    wanting = opened(other, tmp_path, total + 1)
    time.sleep(0.1)
    assert all(path.exists() for path in used)
    assert wanting.reader == "take"
    assert not state_of(wanting)._copies
    assert whole(wanting) == whole(other)
    # Once they are unused, the longest unused goes first. Their maps do not all end at one moment.
    state_of(wanting).stop()
    assert state_of(wanting).join(60)
    os.utime(every[2], (1, 1))
    held.clear()
    wanting = opened(other, tmp_path, total + 1)
    until(lambda: state_of(wanting)._copies)
    assert not every[2].exists()
    until(lambda: len(state_of(wanting)._copies) >= len(every) - 1)
    assert sum(
        path.stat().st_size for path in copies(tmp_path) if path.name not in others and not path.is_symlink()
    ) <= (total + 1)
    assert whole(wanting) == whole(other)
    for name in (*others, "0.4.0123456789abcdef.copy"):
        assert (tmp_path / FOLDER / name).read_text() == "mine"


@contextmanager
def pipe_at(place: Path) -> Iterator[None]:
    os.mkfifo(place)
    try:
        yield
    finally:
        if place.is_fifo():
            # A copier that waits for a writer goes on.
            os.close(os.open(place, os.O_RDWR))


@contextmanager
def socket_at(place: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as server:
        # The path of a socket may have a hundred bytes.
        patch.chdir(place.parent)
        server.bind(place.name)
        yield


@pytest.mark.parametrize("made_at", [pipe_at, socket_at])
def test_what_is_no_file_where_a_copy_should_be_is_replaced(
    local: TokenStore, staged: TokenStore, tmp_path: Path, made_at: Callable[[Path], AbstractContextManager[None]]
):
    name = next(copy.path.name for copy in state_of(staged)._copies.values())
    place = tmp_path / FOLDER / name
    place.parent.mkdir(mode=0o700)
    with made_at(place):
        assert not place.is_file()
        store = opened(local, tmp_path)
        until(lambda: store.reader == "mapped")
    assert place.is_file()
    assert whole(store) == whole(local)


@pytest.mark.parametrize("how", ["full", "fills"])
def test_a_full_disk_ends_the_copying(
    local: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
):
    fsync, written = os.fsync, []

    def fails(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    if how == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    else:
        monkeypatch.setattr(os, "fsync", fails)
    store = opened(local, tmp_path)
    until(lambda: state_of(store).join(0))
    assert whole(store) == whole(local)
    assert len(copies(tmp_path)) == (0 if how == "full" else 2)
    assert not list((tmp_path / FOLDER).glob("*.part"))
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.fullmatch(
        rf"The token store 'file-object-store:///.*/x.lance' is copied no further to '.*/{FOLDER}' \(No space left on "
        r"device\); the rest is read from the store\.",
        warning,
    )


def test_what_is_damaged_is_not_copied_and_what_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    store = built(tmp_path / "x.lance")
    name = store._dataset.get_fragments()[1].data_files()[0].path
    file = tmp_path / "x.lance" / "data" / name
    body = bytearray(file.read_bytes())
    body[-5000] ^= 1
    file.write_bytes(body)
    session_of, fails = staging.data_session, [OSError("reset by peer"), OSError("503")]

    def session(location: Any) -> Any:
        if fails:
            raise_ = fails.pop()
            return SimpleNamespace(read_range=lambda *_: (_ for _ in ()).throw(raise_))
        return session_of(location)

    monkeypatch.setattr(staging, "data_session", session)
    there = opened(tmp_path / "x.lance", tmp_path)
    until(lambda: state_of(there).join(0))
    assert not fails
    copied = {path.name.partition(".")[0] for path in copies(tmp_path)}
    assert name.removesuffix(".lance") not in copied
    assert len(copied) == len(store._dataset.get_fragments()) - 1
    assert there.reader == "take"
    again, damaged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "now (503); trying again" in again
    assert f"has a damaged data file ({name}), which is not copied: 'lightning-lance verify' lists it" in damaged


def test_a_growing_store_is_copied_too_and_merged_files_make_room(tmp_path: Path):
    built(tmp_path / "x.lance", max_documents=60)
    data = LanceDataModule(remote(tmp_path / "x.lance"), 50, 4, stage=tmp_path, extend="next_epoch")
    data.setup("fit")
    loader = data.train_dataloader()
    first = len(list(loader))
    until(lambda: loader.stores[""].reader == "mapped")
    before = copies(tmp_path)
    # Its files are merged into others.
    source = ListSource(documents(*TEXTS))
    grown = prepare(source, ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.2, data_dir=tmp_path)
    assert len(list(loader)) > first
    assert loader.stores[""].version == grown.version
    until(lambda: loader.stores[""].reader == "mapped")
    assert not {*before} >= {*copies(tmp_path)}
    assert whole(loader.stores[""]) == whole(grown)


def test_what_cannot_be_staged_is_refused(local: TokenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store, uri = TokenStore.open(remote(local)), remote(local)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "none" / "none", tmp_path / "file", Path("/proc/x")):
        with pytest.raises(ConfigError, match="expected a folder on a local disk that this user may write"):
            store.stage(folder)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"stage": 5}, "stage is 5: expected a place"),
        ({"stage": "s3://b/x"}, "stage is 's3://b/x': expected a local folder"),
        ({"stage": ""}, "stage is empty"),
        ({"stage": tmp_path, "stage_bytes": 0}, "stage_bytes is 0: expected a whole number from 1 on"),
        ({"stage_bytes": 5}, "set stage too, or leave stage_bytes out"),
    ]
    for options, told in wrong:
        with pytest.raises(ConfigError, match=told):
            LanceDataModule(uri, 8, 2, **options)
    data = LanceDataModule(local.uri, 8, 2, stage=tmp_path)
    assert "stage is not used" in caplog.text
    data.setup("fit")
    assert next(iter(data.train_dataloader()))
    assert not (tmp_path / FOLDER).exists()


def test_a_folder_that_others_may_write_is_refused(local: TokenStore, tmp_path: Path):
    """Whoever can write there decides what is read."""
    store = TokenStore.open(remote(local))
    copies = tmp_path / FOLDER
    copies.mkdir()
    copies.chmod(0o777)
    with pytest.raises(ConfigError, match="belongs to others, or can be written by them"):
        store.stage(tmp_path)
    copies.rmdir()
    (tmp_path / "elsewhere").mkdir()
    copies.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"which cannot be used"):
        store.stage(tmp_path)
