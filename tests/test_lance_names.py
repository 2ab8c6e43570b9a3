"""The names of Lance's files, compared with those that Lance makes."""

import re
import subprocess
from pathlib import Path

import lance
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance import lance_names as names
from tests.support.merges import NOTE, append
from tests.support.paths import ROOT

# Patterns that would make a second place for these names.
ELSEWHERE = r'"(_versions|_transactions|_refs|_deletions|_indices)|\\?\.(manifest|txn)\b|"\.tmp|f"data/\{(file|path)'


def test_files_that_lance_makes_have_these_names(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    note = append(uri, [(0, "C", 10)], 0, NOTE)
    append(uri, [(0, "C", 3000)], 1, note)
    assert TokenStore.open(uri, 1).keep("mine")
    lance.dataset(uri).create_branch("theirs", 1)
    lance.dataset(uri).delete("num_tokens = 2048")
    files = {path.relative_to(uri).as_posix() for path in Path(uri).rglob("*") if path.is_file()}
    for version in (1, 2, 3):
        transaction = names.transaction_of(version, lance.dataset(uri, version=version).read_transaction(version).uuid)
        assert {names.manifest_of(version), transaction} <= files
        assert names.of_a_version(transaction)
        assert names.version_of(transaction) == version
        assert names.uuid_of(transaction).encode() in Path(uri, transaction).read_bytes()
        for fragment in lance.dataset(uri, version=version).get_fragments():
            for file in fragment.data_files():
                assert names.data_file_at(file.path) in files
                assert names.is_data_name(file.path)
                assert Path(uri, names.data_file_at(file.path)).read_bytes().endswith(names.MAGIC)
    assert {names.tag_file("mine"), names.branch_file("theirs")} <= files
    assert any(path.startswith(names.DELETIONS) for path in files)
    others = {path for path in files if not names.belongs(path) and not names.may_be_left(path)}
    assert {path.split("/")[0] for path in others} <= {"lightning_lance.sums.json", "tree", "_refs"}
    assert all(names.is_folder(path.rpartition("/")[0]) for path in files - others)
    # In this order of removal, a store exists until its newest version is removed, and that version is whole until then.
    order = sorted(files, key=names.removal_order)
    versions = [names.version_of(path) for path in order if names.is_manifest(path) and names.of_a_version(path)]
    assert versions == [1, 2, 3]


@given(st.integers(1, 2**63))
def test_a_manifest_tells_its_version(version: int):
    path = names.manifest_of(version)
    assert names.version_of(path) == version
    assert names.of_a_version(path)
    assert names.belongs(path)


def test_no_other_module_knows_them():
    listed = subprocess.run(["git", "ls-files", "lightning_lance/**.py"], cwd=ROOT, capture_output=True, text=True)
    files = [Path(ROOT, name) for name in listed.stdout.split()]
    assert len(files) > 50
    found = {file.name for file in files if file.exists() and re.search(ELSEWHERE, file.read_text("utf-8"))}
    assert found == {"lance_names.py"}
