import json
import os
from pathlib import Path

import pytest

from lightning_lance.build.coordination import LeaseTurn
from lightning_lance.errors import SourceError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import StoreLocation
from lightning_lance.process import build_status as status
from lightning_lance.process.build_status import BuildStatus, StatusFile, failure_of, read_status
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


def test_a_status_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "x.building.json"
    writer = StatusFile(file, "f").begin()
    begun = read_status(file)
    assert begun is not None
    assert str(begun).startswith(begun.builder + ", since 20")
    assert str(begun).endswith(": 0 documents, 0 tokens")
    writer.update(5000, 7_000_000, 0.25)
    assert read_status(file) == begun
    monkeypatch.setattr(status, "_WRITE_SECONDS", 0.0)
    writer.update(5000, 7_000_000, 0.25)
    assert str(read_status(file)).endswith(": 5,000 documents, 7.00 M tokens, 25 %")
    writer.remove()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_is_told_what_the_store_has_before_anything_is_packed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    uri, lock, file = str(tmp_path / "x.lance"), tmp_path / "x.lock", tmp_path / "x.building.json"
    prepare(ListSource(documents(*["text"] * 30)), ByteTokenizer(), uri, max_documents=20)
    with LeaseTurn(uri, "f", lock, file) as builder, LeaseTurn(uri, "f", lock, file) as waiting:
        builder.wait(last_commit(StoreLocation(uri)))
        assert builder.mine
        waiting.wait(last_commit(StoreLocation(uri)))
        assert not waiting.mine
    (told,) = [message for message in caplog.messages if "Another process builds" in message]
    assert told.endswith(": 20 documents, 100 tokens).")


@pytest.mark.parametrize(
    ("error", "told", "kind"),
    [
        (SourceError("the network\nis gone"), "the network\\nis gone", SourceError),
        (StoreError("the disk is full"), "the disk is full", StoreError),
        (ValueError("a bug"), "ValueError: a bug", StoreError),
    ],
)
def test_a_failure_stays_and_becomes_the_error_of_others(tmp_path: Path, error: Exception, told: str, kind: type):
    file = tmp_path / "x.building.json"
    writer = StatusFile(file, "f").begin()
    writer.failed(error)
    writer.remove()
    found = read_status(file)
    assert found is not None
    made = failure_of(found, "x.lance")
    assert type(made) is kind
    assert str(made).startswith(
        f"This process waited for the build of 'x.lance' by {found.builder}, which failed: {told} ("
    )


def test_the_file_of_another_build_is_left_alone(tmp_path: Path):
    file = tmp_path / "x.building.json"
    first, second = StatusFile(file, "f").begin(), StatusFile(file, "f").begin()
    first.remove()
    assert file.exists()
    second.remove()
    assert not file.exists()


def test_what_cannot_be_read_or_written_is_no_error(tmp_path: Path):
    file = tmp_path / "x.building.json"
    assert read_status(file) is None
    for text in ("", "{", "[1]", json.dumps({"of": "another version"})):
        file.write_text(text)
        assert read_status(file) is None
    writer = StatusFile(tmp_path / "nowhere" / "x.json", "f").begin()
    writer.update(1, 1, 1.0)
    writer.remove()
    assert BuildStatus("r", "f", "b", "s").failure is None


STATUS = {"run": "r", "fingerprint": "f", "builder": "b", "since": "s"}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "7",
        json.dumps({"run": "r"}),
        json.dumps({**STATUS, "documents": "many"}),
        json.dumps({**STATUS, "tokens": 10**30}),
        json.dumps({**STATUS, "share": float("nan")}),
        json.dumps({**STATUS, "share": "half"}),
        json.dumps({**STATUS, "failure": 7}),
        json.dumps({**STATUS, "builder": "\ud800"}),
    ],
)
def test_a_file_of_another_form_is_no_status(tmp_path: Path, content: str):
    assert str(read_status(put(tmp_path, json.dumps({**STATUS, "share": 1, "later": []})))) == (
        "b, since s: 0 documents, 0 tokens, 100 %"
    )
    file = put(tmp_path, content)
    assert read_status(file) is None
    # A foreign file stays, and does not stop the build.
    prepare(ListSource(documents("text")), ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0)
    assert file.read_text() == content


@pytest.mark.parametrize("content", ["", "\0" * 200])
def test_a_status_that_a_power_cut_has_emptied_is_written_again(tmp_path: Path, content: str):
    writer = StatusFile(put(tmp_path, content), "f").begin()
    assert read_status(tmp_path / "x.building.json") is not None
    writer.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_no_status_and_nobody_waits_for_it(tmp_path: Path):
    file = tmp_path / "x.building.json"
    os.mkfifo(file)
    # The pipe has a writer, so that a wrong read ends.
    writer = os.open(file, os.O_RDWR)
    os.write(writer, json.dumps(STATUS).encode())
    assert read_status(file) is None
    StatusFile(file, "f").remove()
    assert file.is_fifo()
    os.close(writer)


def put(folder: Path, content: str) -> Path:
    file = folder / "x.building.json"
    file.write_text(content)
    return file
