"""Every kind of damage is found, and does no harm to a process that opens the store without verifying it."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pytest

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import SUMS
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import integrity
from lightning_lance.maintenance.integrity import verify_store
from tests.support.bucket import serving
from tests.support.commands import run
from tests.support.commits import NOTE, rows_of
from tests.support.merges import append
from tests.support.stores import append_commit
from tests.support.warm import BUILDING, server

WAYS = 200
NOTE_OF_5001 = replace(NOTE, tokens=5001)

OPENS = """
import sys, json
import numpy as np
from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
for place in sys.argv[1:]:
    try:
        store = TokenStore.open(place)
        for split in ("train", "val"):
            size = store.num_tokens(split)
            if size:
                store.read(np.zeros(1, np.int64), size, split)
        print(json.dumps("read"), flush=True)
    except StoreError as error:
        print(json.dumps(str(error)), flush=True)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two versions, one of them kept by a tag, with merged and single fragments."""
    folder = tmp_path_factory.mktemp("store") / "x.lance"
    note = append(str(folder), [(0, "C", 3000), (1, "Rust", 10)], 0)
    note = append(str(folder), [(0, "C", 5000)], 2, note, 1)
    note = append(str(folder), [(0, "Rust", 3000), (1, "C", 7)], 3, note)
    return folder


def damage(folder: Path, draw: random.Random) -> str:
    """Damage a store in one way, and return a description."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "_refs" not in file.parts)
    files = [file for file in files if file.name != "latest_version_hint.json"]
    data = [file for file in files if file.parent.name == "data"]
    manifests = [file for file in files if file.suffix == ".manifest"]
    way = draw.choice(["flip"] * 6 + ["cut", "swap", "remove manifest", "remove data", "overwrite"])
    file = draw.choice(files)
    if way == "flip":
        content = bytearray(file.read_bytes())
        bit = draw.randrange(len(content) * 8)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        return f"bit {bit} of {file}"
    if way == "cut":
        file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])
    elif way == "swap":
        file, other = draw.sample(data, 2)
        mine, theirs = file.read_bytes(), other.read_bytes()
        file.write_bytes(theirs)
        other.write_bytes(mine)
    elif way == "overwrite":
        file = draw.choice(data)
        file.write_bytes(draw.randbytes(file.stat().st_size))
    else:
        file = draw.choice(manifests if way == "remove manifest" else data)
        file.unlink()
    return f"{way} {file}"


def test_a_whole_store_has_no_problem(store: Path):
    assert verify_store(str(store)) == []


def test_every_damage_is_found_and_named_and_harms_nobody(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Nobody writes to these stores, so there is nothing to wait for.
    monkeypatch.setattr(integrity, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(integrity, "_BETWEEN_LOOKS_SECONDS", 0.0)
    draw = random.Random(0)
    copies, told = [], []
    for i in range(WAYS):
        copies.append(tmp_path / str(i) / "x.lance")
        shutil.copytree(store, copies[-1])
        told.append(damage(copies[-1], draw))
    for copy, what in zip(copies, told, strict=True):
        problems = verify_store(str(copy))
        assert problems, f"not found: {what}"
        name = what.split("/")[-1]
        assert "swap" in what or any(name in problem.place for problem in problems), f"{what}: {problems}"
    opened = server(BUILDING).run(OPENS, *copies, timeout=200)
    answers = opened.stdout.splitlines()
    assert opened.returncode == 0, f"{told[len(answers)]}: {opened.stderr[-3000:]}"
    assert len(answers) == WAYS
    assert sum(json.loads(answer) != "read" for answer in answers) > WAYS / 10


BUILDS = """
import sys
from lightning_lance.maintenance.compaction import compact
from tests.support.merges import NOTE, append
from lightning_lance.format.commit import last_version
from lightning_lance.location import StoreLocation
note, place = NOTE, StoreLocation(sys.argv[1])
for i in range(30):
    last = i == 29
    note = append(sys.argv[1], [(0, "C", 3000), (1, "Rust", 500)], 2 * i, note, 60_000 if last else None)
    if not last:
        compact(place, last_version(place)[0], full=32 * 60_000)
    print(i, flush=True)
"""


def test_a_store_that_is_being_built_is_not_taken_for_damaged(tmp_path: Path):
    """Versions and merged files are removed while the store is verified."""
    uri, checked = str(tmp_path / "x.lance"), 0
    process = server(BUILDING).start(BUILDS, uri)
    process.wait_for_line(timeout=60)
    while process.is_running():
        assert verify_store(uri) == []
        TokenStore.open(uri, verify=True)
        checked += 1
    assert process.wait(timeout=60) == 0
    assert checked > 3
    assert verify_store(uri) == []


def test_damage_of_a_version_that_is_not_on_the_list_yet_is_found(tmp_path: Path):
    """A builder was killed after its commit."""
    uri = str(tmp_path / "x.lance")
    note = append(uri, [(0, "C", 3000)], 0)
    listed = (tmp_path / "x.lance" / SUMS).read_bytes()
    old = {*(tmp_path / "x.lance" / "data").iterdir()}
    append(uri, [(0, "C", 3000)], 1, note)
    (tmp_path / "x.lance" / SUMS).write_bytes(listed)
    assert verify_store(uri) == []
    (file,) = {*(tmp_path / "x.lance" / "data").iterdir()} - old
    file.write_bytes(file.read_bytes()[:-1])
    (problem,) = verify_store(uri)
    assert file.name in problem.place


def test_a_damaged_store_is_refused_at_the_opening_that_asks(store: Path, tmp_path: Path):
    copy = tmp_path / "x.lance"
    shutil.copytree(store, copy)
    TokenStore.open(copy, verify=True)
    file = max((copy / "data").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    TokenStore.open(copy)
    with pytest.raises(StoreError, match=rf"is damaged: data/{file.name} .*differs from its checksum; restore it"):
        TokenStore.open(copy, verify=True)
    code, out, err = run(tmp_path, "verify", str(copy))
    assert (code, len(out.splitlines())) == (1, 1)
    assert file.name in out
    assert "1 problem." in err
    code, out, err = run(tmp_path, "verify", str(store), "sample=0.5")
    assert (code, out) == (0, f"{store}: the sample of 0.5 is as it was written.\n")
    assert err == ""


def test_a_store_in_a_bucket_is_checked_too(tmp_path: Path):
    with serving() as bucket:
        uri, options = "s3://bucket/integrity/x.lance", bucket.lance_options
        append_commit(StoreLocation(uri, options), rows_of(1, 5000), NOTE_OF_5001)
        assert verify_store(uri, options) == []
        (found,) = bucket.client.list_objects(Bucket="bucket", Prefix="integrity/x.lance/data/")["Contents"]
        key = found["Key"]
        body = bytearray(bucket.client.get_object(Bucket="bucket", Key=key)["Body"].read())
        body[50] ^= 4
        bucket.client.put_object(Bucket="bucket", Key=key, Body=bytes(body))
        (problem,) = verify_store(uri, options)
        assert problem.place.startswith(key.removeprefix("integrity/x.lance/"))
        bucket.client.put_object(Bucket="bucket", Key=key, Body=bytes(body) + b"x")
        assert "more than" in verify_store(uri, options)[0].what
        bucket.client.delete_object(Bucket="bucket", Key=key)
        assert verify_store(uri, options)[0].what == "is missing"


def test_what_others_wrote_has_no_checksum(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1, 5000), NOTE_OF_5001)
    lance.write_dataset(rows_of(2), uri, mode="append")
    assert [problem.what for problem in verify_store(uri)] == ["was written by another program, so it has no checksum"]


def test_counts_that_disagree_are_found(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1, 4000), NOTE_OF_5001)
    assert [problem.what for problem in verify_store(uri)] == [
        "version 1 has 4,001 tokens, but its commit metadata says 5,001"
    ]


def test_a_tag_of_a_version_that_is_gone_is_found(store: Path, tmp_path: Path):
    copy = tmp_path / "x.lance"
    shutil.copytree(store, copy)
    (tag,) = (copy / "_refs" / "tags").iterdir()
    tag.write_text(tag.read_text().replace('"version": 2', '"version": 7'))
    assert [problem.place for problem in verify_store(str(copy))] == [f"_refs/tags/{tag.name}"]


def test_what_is_no_store_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="There is no committed token store"):
        verify_store(str(tmp_path / "none.lance"))


REBUILDS = """
import sys
from tests.support.stores import ListSource, documents
from tests.support.corpora import prepare
from lightning_lance.tokenization.configs import ByteTokenizer
source = ListSource(documents(*["some text " * 50] * 12))
for i in range(5):
    prepare(source, ByteTokenizer(), sys.argv[1], val_fraction=i % 2 / 10, rebuild=True, commit_tokens=1, commit_seconds=0)
    print(i, flush=True)
"""


def test_a_store_that_is_rebuilt_meanwhile_is_not_taken_for_damaged(tmp_path: Path):
    """It is whole, missing, or replaced; a reader never sees Lance's own errors."""
    uri, checked, said = str(tmp_path / "x.lance"), 0, list[str]()
    process = server(BUILDING).start(REBUILDS, uri)
    process.wait_for_line(timeout=60)
    while process.is_running():
        try:
            store = TokenStore.open(uri)
            assert verify_store(uri) == []
            checked += 1
            store.keep_for_training()
            store.documents(np.zeros(1, np.int64), 5)
            assert store.newest().fingerprint == store.fingerprint
        except StoreError as error:
            said.append(str(error))
    assert process.wait(timeout=60) == 0, process.output()
    assert checked
    known = ("no committed", "was replaced by one with other settings", "was removed", "the store is gone")
    assert [what for what in said if not any(part in what for part in known)] == []
    assert verify_store(uri) == []
