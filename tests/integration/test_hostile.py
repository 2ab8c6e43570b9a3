"""A store from somebody else is input: whatever its metadata says, it is read right, or refused in one sentence."""

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lance.fragment import FragmentMetadata

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
from lightning_lance.format import commit as commit_module
from lightning_lance.format.checksums import write_sums
from lightning_lance.format.commit import data_file_infos, read_commit
from lightning_lance.format.lance_io import dataset_at, fragments_of
from lightning_lance.format.layout import files_of, properties_of
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.json_checks import json_of, object_of
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, only_append

COMMIT, FILES = "lightning_lance", "lightning_lance_files"
VOCABULARY = 257
BLOCK = 2048

# Reads stores whose places come line by line, and says of each what it found; a crash of it is a crash of the package.
READER = """
import json, sys
import numpy as np
from lightning_lance import TokenStore
from lightning_lance.errors import LightningLanceError
from lightning_lance.maintenance.integrity import verify_store

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
        answer["problems"] = [str(problem) for problem in verify_store(line.strip())]
    except LightningLanceError as error:
        answer["problems"] = [str(error)]
    for reader in ("auto", "take"):
        try:
            answer[reader] = tokens(TokenStore.open(line.strip(), reader=reader))
        except LightningLanceError as error:
            answer[reader] = str(error)
    print(json.dumps(answer), flush=True)
"""


def commit_from(text: str) -> CommitMetadata:
    return commit_module.commit_from(object_of(json_of(text, "it"), "it"))


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
        patch.setattr("lightning_lance.engines.local.commit_final", only_append)
        for budget in (8, 16, None):
            prepare(source, ByteTokenizer(), str(folder), val_fraction=0.3, max_documents=budget)
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
    dataset = dataset_at(StoreLocation(str(store)), None)
    return {
        COMMIT: asdict(read_commit(dataset, str(store))),
        FILES: json.loads(properties_of(data_file_infos(dataset))[FILES]),
    }


def rewritten(store: Path, folder: Path, properties: dict[str, str]) -> Path:
    """Give a copy of a store, whose only version has these properties; its checksums are right."""
    made = folder / "h.lance"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(store, made)
    dataset = dataset_at(StoreLocation(str(made)), None)
    operation = lance.LanceOperation.Overwrite(dataset.lance_schema, fragments_of(dataset))
    lance.LanceDataset.commit(
        dataset,
        lance.Transaction(read_version=dataset.version, operation=operation, transaction_properties=properties),
        max_retries=0,
    )
    now = lance.dataset(str(made))
    for tag in now.tags.list():
        now.tags.delete(tag)
    now.cleanup_old_versions(older_than=timedelta(0))
    write_sums(StoreLocation(str(made)))
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


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_the_store_itself_is_read_right(
    store: Path, truth: dict[str, list[int]], reader: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    properties = {name: json.dumps(value) for name, value in metadata_of(store).items()}
    assert len(json.loads(properties[FILES])["files"]) == 3
    for folder in (store, rewritten(store, tmp_path, properties)):
        assert reader(folder) == {"problems": [], "auto": truth, "take": truth}


@pytest.mark.parametrize("rows", [500, 2000, 9000])
def test_a_part_that_begins_before_its_file_is_refused(
    rows: int, store: Path, reader: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    """The sums of rows and tokens are right."""
    made = metadata_of(store)
    made[FILES]["streams"].append(["val", ""])
    parts = next(iter(made[FILES]["files"].values()))[3]
    number, tokens, count = parts[0]
    added = [len(made[FILES]["streams"]) - 1, -rows * BLOCK, -rows]
    parts[:1] = [added, [number, tokens + rows * BLOCK, count + rows]]
    answer = reader(rewritten(store, tmp_path, {name: json.dumps(value) for name, value in made.items()}))
    assert answer["problems"]
    assert "the tokens of a part is -" in answer["auto"]
    assert "the tokens of a part is -" in answer["take"]


def test_lies_that_fit_are_found_by_verify(
    store: Path, truth: dict[str, list[int]], reader: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    """Streams under each other's name, and tokens moved from one part to the next: all sums are right."""
    names = metadata_of(store)
    streams = names[FILES]["streams"]
    of_train = [place for place, (split, _) in enumerate(streams) if split == "train"]
    streams[of_train[0]], streams[of_train[1]] = streams[of_train[1]], streams[of_train[0]]
    sizes = metadata_of(store)
    every = [part for *_, parts in sizes[FILES]["files"].values() for part in parts]
    first, second = [part for part in every if 9 < part[1] % BLOCK < BLOCK - 9][:2]
    first[1], second[1] = first[1] - 9, second[1] + 9
    vocabulary = metadata_of(store)
    vocabulary[COMMIT].update(eos_id=7, vocab_size=100)
    ends = metadata_of(store)
    ends[COMMIT]["eos_id"] = ord("7")
    for made, said in (
        (ends, "its documents do not all end with EOS (the id 55)"),
        (names, "of its rows differs from its commit metadata"),
        (sizes, "of its rows differ from its commit metadata"),
        (vocabulary, "in a vocabulary of 100"),
    ):
        answer = reader(rewritten(store, tmp_path, {name: json.dumps(value) for name, value in made.items()}))
        assert any(said in problem for problem in answer["problems"]), answer["problems"]


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fingerprint", 7, "fingerprint is 7: expected text"),
        ("fingerprint", "\ud800", "expected valid Unicode text"),
        ("recipe", [], "recipe is a list: expected an object"),
        ("pin", None, "pin is None: expected an object"),
        ("eos_id", 257, "eos_id is 257: expected a whole number from 0 to 256"),
        ("eos_id", -1, "eos_id is -1"),
        ("vocab_size", 0, "vocab_size is 0"),
        ("vocab_size", 2**40, "expected a whole number from 1 to 4,294,967,296"),
        ("tokens", "12", "tokens is '12'"),
        ("tokens", 1.0, "tokens is 1.0"),
        ("tokens", 10**30, "tokens is 1000"),
        ("documents", True, "documents is True"),
        ("row", -1, "row is -1: expected a whole number from 0 on"),
        ("languages", {"C": "3"}, "languages.C is '3'"),
        ("languages", ["C"], "languages is a list"),
        ("skipped", None, "skipped is None"),
        ("files", {"a": -1}, "files.a is -1"),
        ("exhausted", 1, "exhausted is 1: expected true or false"),
        ("bad_shards", [7], "an entry of bad_shards is 7"),
        ("forgotten", [{}], "rule is missing"),
        ("forgotten", [{"rule": {"repo": 7}}], "rule.repo is 7: expected text"),
        (
            "forgotten",
            [{"rule": {}, "documents": 10**9, "tokens": 0, "languages": {}}],
            "documents without the forgotten",
        ),
        ("forgotten", [{}] * 1_000_000, "forgotten has 1,000,000 rules: expected 100,000 at most"),
    ],
)
def test_a_field_that_cannot_be_is_named(store: Path, field: str, value: Any, message: str):
    made = metadata_of(store)[COMMIT]
    with pytest.raises(ValueError, match=message):
        commit_from(json.dumps({**made, field: value}))


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "7", "null", '"text"', "NaN", '{"a": NaN}', "[" * 100_000, f'{{"tokens": {LONG}}}', "{}"],
)
def test_what_is_no_metadata_is_refused(text: str, store: Path, tmp_path: Path):
    with pytest.raises(ValueError):
        commit_from(text)
    if text != "{}":
        with pytest.raises(ValueError):
            files_of({FILES: text})
    with pytest.raises(StoreError, match=r"The commit metadata of the token store .* cannot be used"):
        TokenStore.open(rewritten(store, tmp_path, {COMMIT: text}))


def test_a_deep_recipe_is_refused_and_unknown_fields_are_kept(store: Path):
    made = metadata_of(store)[COMMIT]
    deep: Any = {}
    for _ in range(200):
        deep = {"a": [deep]}
    with pytest.raises(ValueError, match="recipe is nested 50 levels deep or more"):
        commit_from(json.dumps({**made, "recipe": deep}))
    with pytest.raises(ValueError, match="unknown is nested 50 levels deep or more"):
        commit_from(json.dumps({**made, "invented": deep}))
    assert asdict(commit_from(json.dumps({**made, "invented": 3}))) == {**made, "unknown": {"invented": 3}}
    with pytest.raises(ValueError, match="shards is missing"):
        commit_from(json.dumps({name: value for name, value in made.items() if name != "shards"}))


def documents_at(offsets: list[list[int] | None]) -> pa.Array:
    """Lists of documents that begin at some offsets of their rows."""
    kind = pa.list_(pa.struct([("offset", pa.int32()), ("id", pa.string())]))
    return pa.array([part and [{"offset": offset, "id": "0:0"} for offset in part] for part in offsets], kind)


def rows_like(**columns: pa.Array | None) -> pa.Table:
    """Two rows as in a store, with other columns; None leaves one out."""
    kept = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(16, np.uint16)), 8),
        "num_tokens": pa.array([8, 5], pa.int32()),
        "split": pa.array(["train"] * 2),
        "language": pa.array(["C"] * 2),
        "documents": documents_at([[0], [3]]),
    }
    made = {name: columns.get(name, column) for name, column in kept.items()}
    return pa.table({name: column for name, column in made.items() if column is not None})


def tokens_as(kind: pa.DataType, size: int = 8) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * size), kind), size)


NULLS = pa.array([[1] * 8, None], pa.list_(pa.uint16(), 8))
HOLES = pa.array([[1] * 8, [1] * 7 + [None]], pa.list_(pa.uint16(), 8))
ODD_ROWS: dict[str, dict[str, pa.Array | None]] = {
    "signed tokens": {"tokens": tokens_as(pa.int16())},
    "wide tokens": {"tokens": tokens_as(pa.uint64())},
    "small tokens": {"tokens": tokens_as(pa.uint8())},
    "float tokens": {"tokens": tokens_as(pa.float32())},
    "another type than the recipe's": {"tokens": tokens_as(pa.uint32())},
    "huge rows": {"tokens": tokens_as(pa.uint16(), (1 << 20) + 1)},
    "lists of any length": {"tokens": pa.array([[1] * 8] * 2, pa.list_(pa.uint16()))},
    "text for tokens": {"tokens": pa.array(["a", "b"])},
    "null rows": {"tokens": NULLS},
    "null tokens": {"tokens": HOLES},
    "no tokens": {"tokens": None},
    "no counts": {"num_tokens": None},
    "no splits": {"split": None},
    "no languages": {"language": None},
    "null counts": {"num_tokens": pa.array([8, None], pa.int32())},
    "negative counts": {"num_tokens": pa.array([8, -3], pa.int32())},
    "large counts": {"num_tokens": pa.array([8, 9], pa.int32())},
    "empty rows": {"num_tokens": pa.array([8, 0], pa.int32())},
    "wide counts": {"num_tokens": pa.array([8, 5], pa.int64())},
    "null splits": {"split": pa.array(["train", None])},
    "unknown splits": {"split": pa.array(["train", "test"])},
    "null languages": {"language": pa.array(["C", None])},
    "numbers for languages": {"language": pa.array([1, 2])},
    "no documents": {"documents": None},
    "null documents": {"documents": documents_at([[0], None])},
    "documents before their row": {"documents": documents_at([[0], [-1]])},
    "documents behind their row": {"documents": documents_at([[0], [5]])},
    "documents in no order": {"documents": documents_at([[0], [3, 1]])},
    "no first document": {"documents": documents_at([[], [3]])},
    "text for documents": {"documents": pa.array(["a", "b"])},
}


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_odd_columns_are_refused_in_one_sentence(
    odd: str, store: Path, reader: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    uri = str(tmp_path / "odd.lance")
    made = {**metadata_of(store)[COMMIT], "forgotten": [], "tokens": 13}
    if odd != "another type than the recipe's":
        made["recipe"] = {**made["recipe"], "dtype": "uint16"}
    dataset = lance.write_dataset(rows_like(**ODD_ROWS[odd]), uri)
    operation = lance.LanceOperation.Overwrite(dataset.lance_schema, fragments_of(dataset))
    properties = {COMMIT: json.dumps(made)}
    transaction = lance.Transaction(
        read_version=dataset.version, operation=operation, transaction_properties=properties
    )
    lance.LanceDataset.commit(dataset, transaction, max_retries=0)
    write_sums(StoreLocation(uri))
    answer = reader(Path(uri))
    for kind in ("auto", "take"):
        assert isinstance(answer[kind], str), f"{kind} gave {answer[kind]}"
        assert len(answer[kind]) > 20
        assert "\n" not in answer[kind]
    assert answer["problems"]


def test_a_data_file_of_two_fragments_or_another_folder_is_refused(store: Path, tmp_path: Path):
    for change in ("twice", "elsewhere"):
        made = tmp_path / f"{change}.lance"
        shutil.copytree(store, made)
        dataset = dataset_at(StoreLocation(str(made)), None)
        fragments = fragments_of(dataset)
        told = [fragment.to_json() for fragment in fragments]
        if change == "twice":
            told[1]["files"] = told[0]["files"]
            told[1]["physical_rows"] = told[0]["physical_rows"]
        else:
            shutil.copy(made / "data" / told[0]["files"][0]["path"], tmp_path / "other.lance")
            told[0]["files"][0]["path"] = "../../other.lance"
        parts = [FragmentMetadata.from_json(json.dumps(fragment)) for fragment in told]
        operation = lance.LanceOperation.Overwrite(dataset.lance_schema, parts)
        properties = {COMMIT: json.dumps(metadata_of(store)[COMMIT])}
        transaction = lance.Transaction(
            read_version=dataset.version, operation=operation, transaction_properties=properties
        )
        lance.LanceDataset.commit(dataset, transaction, max_retries=0)
        write_sums(StoreLocation(str(made)))
        with pytest.raises(StoreError, match=r"is in it twice|is outside its folder"):
            TokenStore.open(made)
        assert verify_store(str(made))
