import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_lance import TokenStore, prepare
from lightning_lance.errors import StoreError
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.store.fork_reader import ForkedReader
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.forks import in_a_fork
from tests.support.stores import ListSource, documents


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    source = ListSource(documents("abc" * 1000, "x" * 3000))
    return prepare(source, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


@pytest.mark.filterwarnings("ignore:lance is not fork-safe", "ignore:This process .* is multi-threaded")
def test_a_fork_of_a_reader_that_has_scanned_reads_the_same(store: TokenStore):
    taken = TokenStore.open(store.uri, reader="take")
    taken._dataset.to_table()  # after which Lance itself crashes in one fork of six
    starts = np.asarray([0, 10, 5000])
    expected = taken.read(starts, 900)
    for _ in range(3):
        assert np.array_equal(in_a_fork(lambda: taken.read(starts, 900)), expected)
    assert np.array_equal(taken.read(starts, 900), expected)


def test_the_process_ends_with_its_reader(store: TokenStore):
    reader = ForkedReader(store.uri, store.version, None)
    assert reader.take(np.asarray([1, 0])).shape == (2, 2048)
    process = reader._end.peek()[2][1]  # type: ignore[index]
    reader._end()
    assert process.returncode == 0


def test_what_cannot_be_read_is_told_by_who_asked(store: TokenStore, tmp_path: Path):
    with pytest.raises(StoreError, match="cannot be read"):
        ForkedReader(store.uri, store.version, None).take(np.asarray([10_000]))
    with pytest.raises(StoreError, match="cannot be read"):
        ForkedReader(str(tmp_path / "none.lance"), 1, None).take(np.asarray([0]))


def test_a_killed_reader_is_told_of(store: TokenStore):
    reader = ForkedReader(store.uri, store.version, None)
    process: subprocess.Popen[bytes] = reader._end.peek()[2][1]  # type: ignore[index]
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(StoreError, match="start workers by 'forkserver' or 'spawn'"):
        reader.take(np.asarray([0]))


@pytest.mark.filterwarnings("ignore:lance is not fork-safe", "ignore:This process .* is multi-threaded")
def test_a_fork_of_a_process_that_has_built_says_what_it_cannot_do(tmp_path: Path):
    source = ListSource(documents("abc" * 100, "x" * 300))
    built = prepare(source, ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.0, max_documents=1)

    def said(work: Callable[[], Any]) -> str:
        try:
            return f"done: {work()}"
        except StoreError as error:
            return str(error)

    refused = {
        "A build cannot be done by process": lambda: prepare(source, ByteTokenizer(), tmp_path / "y.lance"),
        "A verification cannot be done by process": lambda: verify_store(built.uri),
        "Forgetting cannot be done by process": lambda: forget(built.uri, {"id": "0:0"}),
    }
    for words, work in refused.items():
        answer = in_a_fork(lambda work=work: said(work))  # type: ignore[misc]
        assert str(answer).startswith(words)
        assert "a process that is spawned" in str(answer)
    # What is there is found.
    again = in_a_fork(
        lambda: said(lambda: prepare(source, ByteTokenizer(), built.uri, val_fraction=0.0, max_documents=1).version)
    )
    assert again == f"done: {built.version}"


@pytest.mark.filterwarnings("ignore:lance is not fork-safe", "ignore:This process .* is multi-threaded")
def test_a_reader_ends_although_a_fork_has_its_pipe_open_and_not_with_the_fork(store: TokenStore):
    reader = ForkedReader(store.uri, store.version, None)
    process: subprocess.Popen[bytes] = reader._end.peek()[2][1]  # type: ignore[index]
    in_a_fork(lambda: reader._end())
    assert reader.take(np.asarray([0])).shape == (1, 2048)
    held, holding = os.pipe()
    if (child := os.fork()) == 0:
        os.close(holding)
        os.read(held, 1)  # until the parent is done
        os._exit(0)
    try:
        reader._end()
        assert process.returncode == 0
    finally:
        os.close(holding)
        os.waitpid(child, 0)
        os.close(held)
