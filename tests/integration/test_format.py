"""A store of another version of this package is told as such, and what a later one noted is not lost."""

import json
import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lance
import pytest

from lightning_lance import LanceDataModule, TokenStore, WindowLoader
from lightning_lance.build.waiting import wait_for
from lightning_lance.cli.main import main
from lightning_lance.errors import FormatError, StoreError
from lightning_lance.format.checksums import SUMS, write_sums
from lightning_lance.format.commit import data_file_infos, read_commit
from lightning_lance.format.lance_io import fragments_of
from lightning_lance.format.layout import properties_of
from lightning_lance.inspection.resume import verify_resume
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents

SOURCE = ListSource(documents(*[f"document {i}" * 20 for i in range(20)]))


def build(uri: str, **options: Any) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), uri, **{"val_fraction": 0.0, **options})


def stored_note(uri: str) -> dict[str, Any]:
    dataset = lance.dataset(uri)
    return json.loads(dataset.read_transaction(dataset.version).transaction_properties["lightning_lance"])  # type: ignore[no-any-return]


def rewritten(uri: str, text: str) -> None:
    """Commit what is there once more, with other metadata."""
    dataset = lance.dataset(uri)
    operation = lance.LanceOperation.Overwrite(dataset.lance_schema, fragments_of(dataset))
    properties = {"lightning_lance": text, **properties_of(data_file_infos(dataset))}
    made = lance.Transaction(read_version=dataset.version, operation=operation, transaction_properties=properties)
    lance.LanceDataset.commit(dataset, made, max_retries=0)
    write_sums(StoreLocation(uri))


def of_format(uri: str, number: Any, **more: Any) -> None:
    note = stored_note(uri)
    note["recipe"]["format"] = number
    rewritten(uri, json.dumps({**note, **more}))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return build(str(tmp_path / "x.lance"), max_documents=10).uri


def test_a_store_of_a_newer_version_is_told_as_such_and_stays(uri: str, tmp_path: Path):
    checkpoint = tmp_path / "last.ckpt"
    state = WindowLoader(TokenStore.open(uri), 16, 4).state_dict()
    of_format(uri, 3, sum_of_ids=1)
    before = {path: path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()}
    import torch

    torch.save({"loader": state}, checkpoint)
    served = LanceDataModule(uri, 16, 4)
    calls = [
        lambda: TokenStore.open(uri),
        lambda: TokenStore.open(uri, verify=True),
        lambda: verify_store(uri),
        lambda: build(uri, max_documents=10),
        lambda: build(uri),
        lambda: build(uri, val_fraction=0.5),
        lambda: build(uri, val_fraction=0.5, rebuild=True),
        lambda: build(uri, rebuild=True),
        lambda: forget(uri, {"repo": "repo1"}),
        lambda: wait_for(StoreLocation(uri), 10),
        lambda: verify_resume(str(checkpoint), {}),
        lambda: served.setup("fit"),
    ]
    for call in calls:
        with pytest.raises(StoreError) as error:
            call()
        assert str(error.value) == (
            f"The token store {uri!r} was written by a newer version (format 3): upgrade lightning-lance."
        )
    # Nothing was removed or written, not even by the rebuild; and a damaged list of checksums is not what counts.
    assert {path: path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()} == before
    Path(uri, SUMS).unlink()
    with pytest.raises(FormatError, match="upgrade"):
        verify_store(uri)


@pytest.mark.parametrize("command", [["verify"], ["forget", "repo=repo1"]])
def test_the_command_tells_it_too(uri: str, command: list[str], monkeypatch: pytest.MonkeyPatch):
    of_format(uri, 3)
    monkeypatch.setattr(sys, "argv", ["lightning-lance", command[0], uri, *command[1:]])
    with pytest.raises(
        SystemExit, match=r"^error: .* written by a newer version \(format 3\): upgrade lightning-lance\.$"
    ):
        main()


def test_a_store_of_an_older_version_is_told_as_such_and_may_be_replaced(uri: str):
    of_format(uri, 1)
    for call in (lambda: TokenStore.open(uri), lambda: build(uri), lambda: forget(uri, {"repo": "repo1"})):
        with pytest.raises(
            FormatError, match=r"by an older version \(format 1\), but this one reads format 2: build it"
        ):
            call()
    assert build(uri, rebuild=True).commit.documents == 20


def test_fields_that_a_later_version_added_are_kept(uri: str, caplog: pytest.LogCaptureFixture):
    rewritten(uri, json.dumps({**stored_note(uri), "sum_of_ids": [1, {"a": None}]}))
    assert TokenStore.open(uri).commit.documents == 10
    assert verify_store(uri) == []
    assert build(uri, max_documents=10).commit.documents == 10
    assert caplog.messages == []
    assert build(uri).commit.documents == 20
    assert any("unknown fields sum_of_ids are kept" in message for message in caplog.messages)
    assert stored_note(uri)["sum_of_ids"] == [1, {"a": None}]
    assert forget(uri, {"repo": "repo1"}).documents == 1
    assert stored_note(uri)["sum_of_ids"] == [1, {"a": None}]


def test_the_metadata_on_disk_has_one_field_more_than_before(uri: str):
    """The words of the user, which earlier versions keep as they keep any field of later ones."""
    note = stored_note(uri)
    assert note.pop("labels") == {"source": "list", "tokenizer": "bytes"}
    assert sorted(note) == [
        *(
            "bad_shards",
            "documents",
            "eos_id",
            "eos_token",
            "exhausted",
            "files",
            "fingerprint",
            "forgotten",
            "languages",
        ),
        *("noted", "pin", "recipe", "row", "shard", "shards", "skipped", "text_bytes", "tokens", "vocab_size"),
    ]
    # What was read as a whole may be written as a whole.
    commit = read_commit(lance.dataset(uri), uri)
    rewritten(uri, json.dumps({**asdict(commit), "more": 1}))
    assert read_commit(lance.dataset(uri), uri).unknown == {"more": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"recipe": 3}', '{"recipe": {"format": 2}}'])
def test_metadata_that_cannot_be_read_is_told_in_a_sentence(uri: str, text: str):
    rewritten(uri, text)
    for call in (lambda: TokenStore.open(uri), lambda: build(uri), lambda: forget(uri, {"repo": "repo1"})):
        with pytest.raises(StoreError, match=r"The commit metadata of the token store .* cannot be used"):
            call()
    (problem,) = verify_store(uri)
    assert "cannot be read" in problem.what


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(FormatError("newer", newer=True)))
    assert (str(error), error.newer) == ("newer", True)
