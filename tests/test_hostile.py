"""A store from somebody else is input: whatever its metadata says, it is read right, or refused in one sentence."""

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from conftest import ListSource, only_append
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_lance import TokenStore, build, prepare
from lightning_lance.commit import commit_of, notes_of
from lightning_lance.forgetting import forget
from lightning_lance.fragments import dataset_at, fragments_of
from lightning_lance.layout import properties_of
from lightning_lance.sums import write_sums
from lightning_lance.tokenizer_choice import ByteChoice

COMMIT, FILES = "lightning_lance", "lightning_lance_files"
VOCABULARY = 257

# Reads stores whose places come line by line, and says of each what it found; a crash of it is a crash of the package.
READER = """
import json, sys
import numpy as np
from lightning_lance import TokenStore
from lightning_lance.errors import LightningLanceError
from lightning_lance.integrity import check_store

def tokens(store):
    found = {}
    for split in ("train", "val"):
        size = store.num_tokens(split)
        found[split] = store.read(np.zeros(1, np.int64), size, split)[0].tolist() if size else []
        if size:
            store.documents(np.zeros(1, np.int64), min(size, 9), split)
    return found

for line in sys.stdin:
    answer = {}
    try:
        answer["problems"] = [str(problem) for problem in check_store(line.strip())]
    except LightningLanceError as error:
        answer["problems"] = [str(error)]
    for reader in ("auto", "take"):
        try:
            answer[reader] = tokens(TokenStore.open(line.strip(), reader=reader))
        except LightningLanceError as error:
            answer[reader] = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[Callable[[Path], dict[str, Any]]]:
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def read(folder: Path) -> dict[str, Any]:
            print(folder, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, f"the reader ended with {process.wait(60)}"
            return dict(json.loads(answer))

        yield read
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three data files, three streams, two splits, and a rule by which a document was forgotten."""
    folder = tmp_path_factory.mktemp("hostile") / "x.lance"
    texts = [f"{i} " * 900 for i in range(24)]
    languages = ["C", "Rust", "Python"]
    source = ListSource(
        tuple((text, languages[i % 3], f"repo{i}") for i, text in enumerate(texts)), dedup="exact", per_shard=8
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "finish", only_append)
        for budget in (8, 16, None):
            prepare(source, ByteChoice(), str(folder), val_fraction=0.3, max_documents=budget)
    forget(str(folder), {"repo": "repo4"})
    return folder


@pytest.fixture(scope="module")
def truth(store: Path) -> dict[str, list[int]]:
    opened = TokenStore.open(store)
    return {
        split: opened.read(np.zeros(1, np.int64), opened.num_tokens(split), split)[0].tolist()
        for split in ("train", "val")
    }


def metadata_of(store: Path) -> dict[str, Any]:
    dataset = dataset_at(str(store), None, None)
    return {
        COMMIT: asdict(commit_of(dataset, str(store))),
        FILES: json.loads(properties_of(notes_of(dataset))[FILES]),
    }


def rewritten(store: Path, folder: Path, properties: dict[str, str]) -> Path:
    """Give a copy of a store, whose last version has these properties; its checksums are right."""
    made = folder / "h.lance"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(store, made)
    dataset = dataset_at(str(made), None, None)
    operation = lance.LanceOperation.Overwrite(dataset.lance_schema, fragments_of(dataset))
    lance.LanceDataset.commit(
        dataset,
        lance.Transaction(read_version=dataset.version, operation=operation, transaction_properties=properties),
        max_retries=0,
    )
    write_sums(str(made), None)
    return made


def check_answer(answer: dict[str, Any], truth: dict[str, list[int]]) -> None:
    """Right tokens, or refused; and what is opened though it was not right is found by `verify`, and is of the vocabulary."""
    for reader in ("auto", "take"):
        if isinstance(answer[reader], str):
            assert len(answer[reader]) > 20
            assert "\n" not in answer[reader]
            continue
        assert sum(map(len, answer[reader].values())) == sum(map(len, truth.values()))
        assert all(0 <= token < VOCABULARY for tokens in answer[reader].values() for token in tokens)
        assert answer["problems"] or answer[reader] == truth


NUMBERS = [-1, 0, 1, 2, 255, 2048, -2048, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30, -(10**30)]
TEXTS = ["", "0", "12", "val", "train", "forgotten", "\ud800", "\x1b[2J", "x" * 5000]
OTHERS = [None, True, False, 0.5, 1e308, math.nan, math.inf, [], [1], [[]], {}, {"": 0}, [{"rule": {"a": 1}}]]
JUNK = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS])


def places_of(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of all values within one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(more for key, part in inner for more in places_of(part, (*place, key)))]


@st.composite
def changes(draw: st.DrawFn, metadata: dict[str, Any]) -> dict[str, Any]:
    """Change values of metadata: by others, by others near them, or by none."""
    made = copy.deepcopy(metadata)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places_of(made)[1:]))
        outer = made
        for key in way:
            outer = outer[key]
        old = outer[last]
        how = draw(st.sampled_from(["junk", "near", "near", "gone", "twice", "swap"]))
        if how == "near" and isinstance(old, int):
            outer[last] = old + draw(st.sampled_from([-2048, -2, -1, 1, 2, 2048, 4096, 2**20]))
        elif how == "near" and isinstance(old, str):
            outer[last] = draw(st.sampled_from(["val", "train", "C", "Rust", "", old + "x"]))
        elif how == "gone":
            outer.pop(last)
        elif how == "twice" and isinstance(old, list):
            outer[last] = old + old
        elif how == "swap" and isinstance(old, list):
            outer[last] = old[::-1]
        else:
            outer[last] = copy.deepcopy(draw(JUNK))
    return made


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_metadata_says_tokens_are_right_or_refused(
    data: st.DataObject,
    store: Path,
    truth: dict[str, list[int]],
    reader: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
):
    made = data.draw(changes(metadata_of(store)))
    properties = {name: json.dumps(value) for name, value in made.items()}
    check_answer(reader(rewritten(store, tmp_path, properties)), truth)
