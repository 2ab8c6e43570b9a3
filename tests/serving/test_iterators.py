"""Two iterators of one loader, threads, copies, forks: each window is served once, or an error says why not."""

import copy
import itertools
import json
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lance import TokenStore, TokenWindows, WindowLoader
from lightning_lance.errors import StoreError
from lightning_lance.serving import read_ahead
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.forks import in_a_fork
from tests.support.stores import ListSource, documents
from tests.support.warm import TRAINING, server

pytestmark = pytest.mark.filterwarnings(
    "ignore:lance is not fork-safe", "ignore:This process .* is multi-threaded", "ignore:This DataLoader will create"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    source = ListSource(documents(*["".join(chr(i) for i in range(1, 120))] * 9))
    return prepare(source, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def rows(batches: Any) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in batches]


def in_time(work: Any) -> Any:
    """Return the result of `work()` in a fork; a fork that hangs ends itself."""

    def bounded() -> Any:
        timer = threading.Timer(20, os._exit, [3])
        timer.daemon = True
        timer.start()
        try:
            return work()
        except Exception as error:
            return error

    return in_a_fork(bounded)


OUT_OF_DATE = "out of date: a newer iterator or a loaded state"


def test_a_newer_iterator_takes_over_and_the_older_one_is_refused(store: TokenStore):
    whole = rows(WindowLoader(store, 4, 8))
    loader = WindowLoader(store, 4, 8)
    first, second = iter(loader), iter(loader)
    served = [next(first), next(first), next(second)]
    with pytest.raises(StoreError, match=OUT_OF_DATE):
        next(first)
    with pytest.raises(StoreError, match="has failed before"):
        next(first)
    assert rows([*served, *second]) == whole
    assert loader.state_dict()["cursor"] == 8 * len(whole)
    with pytest.raises(StoreError, match=OUT_OF_DATE):
        list(zip(loader, loader, strict=True))


def test_an_iterator_that_has_ended_stays_so(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    first = iter(loader)
    rows(first)
    second = iter(loader)
    next(second)
    assert rows(first) == []
    next(second)


def test_an_iterator_that_is_left_before_it_is_used_takes_nothing_over(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    iterator, unused = iter(loader), iter(loader)
    first = next(iterator)
    del unused
    assert rows([first, *iterator]) == rows(WindowLoader(store, 4, 8))


def test_a_state_that_is_loaded_ends_the_iterators_before(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    state, early = loader.state_dict(), iter(loader)
    next(early)
    loader.load_state_dict(state)
    with pytest.raises(StoreError, match="or a loaded state has moved"):
        next(early)
    assert rows(loader) == rows(WindowLoader(store, 4, 8))


def test_iterators_for_validation_are_independent(store: TokenStore):
    loader = WindowLoader(store, 4, 8, order="sequential", resumable=False)
    whole = rows(loader)
    assert [pair[0]["input_ids"].tolist() for pair in zip(loader, loader, strict=True)] == whole
    suspended = iter(loader)
    next(suspended)
    assert rows(loader) == whole
    assert rows(suspended) == whole[1:]


def test_threads_share_an_iterator(store: TokenStore):
    """Each batch goes to one thread, and a state saved meanwhile lies between two batches."""
    whole = rows(WindowLoader(store, 4, 1))
    loader = WindowLoader(store, 4, 1)
    iterator, states = iter(loader), list[Any]()

    def consume() -> list[Any]:
        return rows(iterator)

    with ThreadPoolExecutor(5) as threads:
        parts = [threads.submit(consume) for _ in range(4)]
        while not all(part.done() for part in parts):
            states.append(loader.state_dict())
    assert sorted(itertools.chain(*(part.result() for part in parts))) == sorted(whole)
    for state in states[:: len(states) // 10 + 1]:
        WindowLoader(store, 4, 1).load_state_dict(state)


def test_iterators_in_threads_serve_no_window_twice(store: TokenStore):
    loader = WindowLoader(store, 4, 1)

    def consume() -> Iterator[Any]:
        try:
            for batch in loader:
                yield batch["input_ids"].tolist()
        except StoreError:
            return

    with ThreadPoolExecutor(4) as threads:
        parts = [threads.submit(lambda: list(itertools.islice(consume(), 100))) for _ in range(4)]
    served = [str(row) for part in parts for row in part.result()]
    place = loader.state_dict()
    assert place["cursor"] == len(served)
    whole = [str(row) for row in itertools.chain(rows(WindowLoader(store, 4, 1)))]
    assert sorted(served) == sorted((whole + rows_of_next_epochs(store))[: len(served)])


def rows_of_next_epochs(store: TokenStore) -> list[str]:
    loader = WindowLoader(store, 4, 1)
    rows(loader)
    return [str(row) for _ in range(3) for row in rows(loader)]


def fails(*_: Any) -> Any:
    raise StoreError("the disk is gone")


@pytest.mark.parametrize("read_later", [fails, lambda *_: fails], ids=["before", "in the thread"])
def test_an_error_while_reading_ends_the_iterator_and_loses_no_window(
    read_later: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch
):
    opened = TokenStore.open(store.uri)
    loader = WindowLoader(opened, 4, 8)
    iterator = iter(loader)
    served = [next(iterator)]
    # Without its file, every read fails until the file is back. What was read ahead is served.
    monkeypatch.setattr(TokenStore, "read_later", read_later)
    with pytest.raises(StoreError, match="the disk is gone"):
        served += iterator
    with pytest.raises(StoreError, match=r"has failed before \(StoreError: the disk is gone\): call iter\(\)"):
        next(iterator)
    monkeypatch.undo()
    assert rows([*served, *loader]) == rows(WindowLoader(store, 4, 8))


def test_a_closed_iterator_ends_and_its_threads_too(store: TokenStore):
    loader = WindowLoader(store, 4, 1)
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert rows(iterator) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_of_a_loader_goes_its_own_way(store: TokenStore, copied: Any):
    loader = WindowLoader(store, 4, 8)
    iterator = iter(loader)
    next(iterator)
    other = copied(loader)
    left = rows(other)
    assert loader.state_dict()["cursor"] == 8
    assert rows(iterator) == left
    assert loader.state_dict() == other.state_dict()
    with pytest.raises(StoreError, match="An iterator of a WindowLoader cannot be copied"):
        copied(iter(loader))


def test_an_iterator_is_an_error_in_a_fork_and_the_loader_is_not(store: TokenStore):
    for reader in ("mapped", "take"):
        loader = WindowLoader(TokenStore.open(store.uri, reader=reader), 4, 8)
        iterator = iter(loader)
        next(iterator)
        error = in_time(lambda iterator=iterator: next(iterator))
        assert isinstance(error, StoreError)
        assert f"This iterator belongs to process {os.getpid()}, and its reading threads" in str(error)
        state = loader.state_dict()
        in_the_fork = in_time(lambda loader=loader: rows(loader))
        in_time(lambda loader=loader, state=state: loader.load_state_dict(state))
        in_time(lambda iterator=iterator: iterator.close())
        left = rows(iterator)
        if reader == "mapped":
            assert in_the_fork == left
        else:
            assert isinstance(in_the_fork, StoreError)


def test_a_fork_while_another_thread_reads_does_not_hang(store: TokenStore):
    loader, stop = WindowLoader(store, 4, 1), threading.Event()

    def consume() -> None:
        while not stop.is_set():
            rows(loader)

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        for _ in range(5):
            assert in_time(lambda: len(rows(itertools.islice(loader, 3)))) in (0, 1, 2, 3)
            assert set(in_time(loader.state_dict)) == set(loader.state_dict())
    finally:
        stop.set()
        thread.join(60)


class Batches(torch.utils.data.IterableDataset[Any]):
    def __init__(self, loader: WindowLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class Shards(torch.utils.data.IterableDataset[Any]):
    """Each worker has a loader for its own part."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        options: dict[str, Any] = {"rank": worker.id, "world_size": worker.num_workers} if worker else {}
        return iter(WindowLoader(self.store, 4, 2, **options))


def test_a_loader_in_workers_of_a_dataloader_is_refused_where_windows_would_come_twice(store: TokenStore):
    def through(dataset: Any, workers: int) -> list[Any]:
        return rows(
            torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, timeout=60 if workers else 0)
        )

    loader = WindowLoader(store, 4, 8)
    with pytest.raises(StoreError, match="was passed to 2 workers of a DataLoader: each would return all windows"):
        through(Batches(loader), 2)
    assert through(Batches(loader), 0) == rows(WindowLoader(store, 4, 8))
    validation = WindowLoader(store, 4, 8, resumable=False)
    assert through(Batches(validation), 1) == rows(validation)
    served = [row for batch in through(Shards(store), 2) for row in batch]
    assert sorted(served) == sorted(row for batch in rows(WindowLoader(store, 4, 4)) for row in batch)


def test_windows_of_a_store_that_a_pool_of_threads_reads_can_be_read_in_a_fork_if_they_are_mapped(store: TokenStore):
    for reader in ("mapped", "take"):
        windows = TokenWindows(TokenStore.open(store.uri, reader=reader), 4)

        def ids(i: int, windows: TokenWindows = windows) -> list[int]:
            return windows[i]["input_ids"].tolist()

        with ThreadPoolExecutor(3) as threads:
            expected = list(threads.map(ids, range(6)))
            in_the_fork = in_time(lambda ids=ids: [ids(i) for i in range(6)])
        if reader == "mapped":
            assert in_the_fork == expected
        else:
            assert isinstance(in_the_fork, StoreError)
            assert "start workers by 'forkserver' or 'spawn'" in str(in_the_fork)


TRAVELLED = """
import json, pickle, sys
from pathlib import Path
loader = pickle.loads(Path(sys.argv[1]).read_bytes())
print(json.dumps([[batch["input_ids"].tolist() for batch in loader], loader.state_dict()["cursor"]]))
"""


def test_a_loader_travels_to_another_process(store: TokenStore, tmp_path: Path):
    loader = WindowLoader(store, 4, 8)
    next(iter(loader))
    (tmp_path / "loader").write_bytes(pickle.dumps(loader))
    done = server(TRAINING).run(TRAVELLED, tmp_path / "loader", timeout=100)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [rows(loader), loader.state_dict()["cursor"]]


LATE = """
import sys, threading
from lightning_lance import TokenStore, WindowLoader
loader = WindowLoader(TokenStore.open(sys.argv[1]), 4, 8)
def late():
    threading.main_thread().join()
    print(sum(1 for _ in loader), len(loader))
threading.Thread(target=late).start()
"""


def test_a_thread_that_trains_on_after_the_main_threads_end_gets_its_windows(store: TokenStore):
    done = server(TRAINING).run(LATE, store.uri, timeout=100)
    assert done.stderr == ""
    served, length = done.stdout.split()
    assert served == length


def test_an_iterator_ends_in_silence_where_the_modules_went_first(store: TokenStore, monkeypatch: pytest.MonkeyPatch):
    before = {*threading.enumerate()}
    iterator = iter(WindowLoader(store, 4, 8))
    next(iterator)
    # So it is for what is still open when the interpreter exits.
    monkeypatch.setattr(read_ahead, "os", None)
    iterator.close()
    assert not [thread for thread in {*threading.enumerate()} - before if thread.name.startswith("windows")]


def test_an_interrupt_while_a_batch_is_made_loses_no_window(store: TokenStore, monkeypatch: pytest.MonkeyPatch):
    loader = WindowLoader(store, 4, 8)
    iterator = iter(loader)
    served = [next(iterator)]
    with monkeypatch.context() as patched:
        patched.setattr(loader._make, "batch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
    assert rows([*served, *loader]) == rows(WindowLoader(store, 4, 8))
