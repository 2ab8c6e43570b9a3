import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_lance import TokenStore, TokenWindows, WindowLoader
from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents
from tests.support.warm import TRAINING, server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    source = ListSource(documents(*["".join(chr(i) for i in range(1, 120))] * 5))
    return prepare(source, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def test_windows_are_those_of_the_loader_in_the_order_of_storage(store: TokenStore):
    dataset = TokenWindows(store, 4)
    loader = WindowLoader(store, 4, 8, order="sequential", remainder="short")
    served = [row for batch in loader for row in batch["targets"].tolist()]
    assert [item["targets"].tolist() for item in dataset.__getitems__(list(range(len(dataset))))] == served
    assert torch.equal(dataset[-1]["input_ids"], dataset[len(dataset) - 1]["input_ids"])
    with pytest.raises(IndexError, match=f"there are {len(dataset)}"):
        dataset[len(dataset)]


def test_an_item_has_what_is_asked_for(store: TokenStore):
    item = TokenWindows(store, 6, document_ids=True)[19]
    assert {name: tuple(value.shape) for name, value in item.items()} == dict.fromkeys(
        ("input_ids", "targets", "document_ids"), (6,)
    )
    with pytest.raises(ConfigError, match="cu_seqlens describes a whole batch"):
        TokenWindows(store, 6, cu_seqlens=True)


@pytest.mark.parametrize("index", ["a", 1.5, True, None, slice(1, 3), [1, 2], (), torch.tensor([1, 2]), 10**30])
def test_what_is_no_number_of_a_window_is_refused_in_a_sentence(store: TokenStore, index: Any):
    with pytest.raises(ConfigError, match=r"^indices is .*: expected a list of whole numbers, such as \[0, 5\]\.$"):
        TokenWindows(store, 4)[index]


@pytest.mark.parametrize("index", [3, np.int8(3), np.uint64(3), torch.tensor(3)])
def test_numbers_of_other_libraries_are_numbers(store: TokenStore, index: Any):
    dataset = TokenWindows(store, 4)
    assert torch.equal(dataset[index]["targets"], dataset[3]["targets"])


def test_a_loader_in_the_place_of_a_dataset_is_refused_in_a_sentence(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    with pytest.raises(ConfigError, match="iterate it in place of a DataLoader, or give the DataLoader a TokenWindows"):
        next(iter(torch.utils.data.DataLoader(loader, batch_size=None)))  # type: ignore[arg-type]


def test_a_dataset_travels_as_an_address(store: TokenStore):
    assert len(pickle.dumps(TokenWindows(store, 4))) < 2000


# In a process of its own, where the parent has used the store, warnings are errors, and a hang ends.
SCRIPT = """
import sys, threading, warnings
import torch
from lightning_lance import TokenStore, TokenWindows
# A machine may have fewer cores than workers.
warnings.filterwarnings("ignore", "This DataLoader will create")
if __name__ == "__main__":
    store = TokenStore.open(sys.argv[1], reader=sys.argv[4])
    dataset = TokenWindows(store, 4)
    expected = [item["targets"].tolist() for item in dataset.__getitems__(list(range(len(dataset))))]
    workers = int(sys.argv[3])
    options = {"num_workers": workers, "multiprocessing_context": sys.argv[2]} if workers else {}
    batches = torch.utils.data.DataLoader(dataset, batch_size=8, **options)
    assert [row for batch in batches for row in batch["targets"].tolist()] == expected
    # torch leaves the thread that feeds a worker behind: ended in the middle of its tidying, by the end of the
    # interpreter, Python's resource tracker complains of a lock that is gone already.
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(60)
"""


@pytest.mark.parametrize(
    ("start_method", "workers", "reader"),
    [
        ("fork", 0, "mapped"),
        ("fork", 1, "mapped"),
        ("fork", 4, "mapped"),
        # This worker and the next one import torch again.
        ("forkserver", 1, "mapped"),
        ("spawn", 1, "take"),
    ],
)
def test_worker_processes_give_the_same_windows(
    store: TokenStore, start_method: str, workers: int, reader: str, tmp_path: Path
):
    done = served_by_workers(store, start_method, workers, reader, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_forked_workers_of_a_store_that_is_not_mapped_end_with_what_helps(store: TokenStore, tmp_path: Path):
    done = served_by_workers(store, "fork", 2, "take", tmp_path)
    assert done.returncode == 1
    assert "start workers by 'forkserver' or 'spawn' instead" in done.stderr


def served_by_workers(store: TokenStore, start_method: str, workers: int, reader: str, tmp_path: Path) -> Any:
    script = tmp_path / "serve.py"
    script.write_text(SCRIPT)
    return server(TRAINING).run(script, store.uri, start_method, workers, reader, warnings=["error"], timeout=200)
