"""Merging keeps the streams and their documents unchanged, and leaves few fragments, versions and pages."""

import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.file import LanceFileReader

from lightning_lance import TokenStore
from lightning_lance.build.packing import Packer
from lightning_lance.errors import CommitConflict, StoreError
from lightning_lance.format.checksums import Root, listed, read_sums
from lightning_lance.format.commit import data_file_infos, last_commit, last_version, replace_fragments
from lightning_lance.format.lance_io import fragments_of, write_rows
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.rows import BLOCK
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import compaction, removal, repacking
from lightning_lance.maintenance.compaction import compact, full_bytes_at, merge_groups
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import clean_up, fence_stale_builders, find_orphans
from tests.support import stores
from tests.support.laws import examples
from tests.support.merges import EOS, NOTE, Made, append, check_same_readers, commits, contents
from tests.support.stores import append_commit, finish, packed
from tests.support.warm import BUILDING, server

#: What a full fragment has in a large store, over what the first one has.
LARGE = 32


@examples(13)
@given(commits, st.sampled_from([1, LARGE * 30_000, 1 << 30]), st.booleans())
def test_a_merged_store_is_the_same(parts: list[list[Made]], full: int, tidy_each: bool):
    with tempfile.TemporaryDirectory() as folder:
        uri, other, note, numbered = f"{folder}/x.lance", f"{folder}/y.lance", NOTE, 0
        for part in parts[:-1]:
            append(other, part, numbered, note)
            note = append(uri, part, numbered, note)
            numbered += len(part)
            if tidy_each:
                before = lance.dataset(uri).version
                # At most once, unless a commit is as large as a full fragment.
                assert compact(StoreLocation(uri), before, full=full) <= before + 1 or full < 1 << 30
                assert contents(uri) == contents(other)
                assert last_commit(StoreLocation(uri)) == note
        before = last_version(StoreLocation(uri))[0]
        append(other, parts[-1], numbered, note)
        note = append(uri, parts[-1], numbered, note, full)
        assert contents(uri) == contents(other)
        assert last_commit(StoreLocation(uri)) == note
        check_same_readers(uri)
        dataset = lance.dataset(uri)
        assert len(dataset.versions()) == 1
        assert {name: tag["version"] for name, tag in dataset.tags.list().items()} == {
            f"build-{note.tokens}": dataset.version
        }
        sizes = [file.size for file in data_file_infos(dataset).values()]
        assert len(sizes) <= 1 + sum(sizes) / full_bytes_at(0, full)
        # In one transaction, unless there was more to merge than a full fragment.
        assert dataset.version == before + 1 or full < 1 << 30
        # In a merged fragment, each stream has at most one partial block.
        if len(sizes) == 1:
            rows = dataset.to_table(columns=["split", "language", "num_tokens"]).to_pylist()
            short = [(row["split"], row["language"]) for row in rows if row["num_tokens"] < BLOCK]
            assert len(short) == len(set(short))


def test_a_fragment_of_streams_that_take_turns_is_put_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even a full one: its description is in every later version."""
    monkeypatch.setattr("lightning_lance.build.packing._HELD_BYTES", 1)
    monkeypatch.setattr("lightning_lance.build.packing._LEAST_BYTES", 1)
    uri, other, names = str(tmp_path / "x.lance"), str(tmp_path / "y.lance"), ["C", "Rust"]
    packer, rows, offsets = Packer(EOS, np.dtype(np.uint16), ["repo"]), [], np.array([0, BLOCK])
    for i in range(12):
        described = pa.table({"language": [names[i % 2]], "id": [f"{i}"], "repo": [f"r{i}"]})
        rows += packer.add(np.full(BLOCK, i, np.uint32), offsets, np.zeros(1, np.int8), described)
    whole = packed(packer, rows)
    for place in (uri, other):
        append_commit(StoreLocation(place), whole, NOTE)
    assert compact(StoreLocation(uri), 1, full=1) == 1
    monkeypatch.setattr(compaction, "_MANY_PARTS", 8)
    assert compact(StoreLocation(uri), 1, full=1) == 2
    (note,) = data_file_infos(lance.dataset(uri)).values()
    assert [part.language for part in note.parts] == names
    assert contents(uri) == contents(other)
    monkeypatch.setattr(compaction, "_MANY_PARTS", 1)
    assert compact(StoreLocation(uri), 2, full=1) == 2


def test_groups_by_literal_sizes():
    assert merge_groups([5, 3, 3], 10 * LARGE, True) == [range(3)]
    assert merge_groups([12, 5, 3, 3, 1], 10 * LARGE, True) == [range(1, 4)]
    assert merge_groups([12, 5, 3, 3, 1, 1], 10 * LARGE, True) == [range(1, 4), range(4, 6)]
    assert merge_groups([], 10 * LARGE, True) == merge_groups([12], 10 * LARGE, True) == []
    # Small ones before a full one are merged with it, or alone where the sum would reach two full ones.
    for final in (True, False):
        assert merge_groups([5, 12, 3], 10 * LARGE, final) == [range(2)]
        assert merge_groups([5, 3, 12, 3], 10 * LARGE, final) == [range(2)]
        assert merge_groups([8, 12, 12, 3], 10 * LARGE, final) == []
        assert merge_groups([3, 3, 1 << 62, 4, 1 << 62, 3], 10 * LARGE, final) == [range(2)]
    # Nothing is due before there are eight of one size, or a full one.
    assert merge_groups([10] * 7, 1000 * LARGE, False) == []
    assert merge_groups([10] * 8, 1000 * LARGE, False) == [range(8)]
    assert merge_groups([80, *[10] * 7], 1000 * LARGE, False) == []
    assert merge_groups([80, *[10] * 8], 1000 * LARGE, False) == [range(1, 9)]
    assert merge_groups([*[10] * 7, 80], 1000 * LARGE, False) == []
    assert merge_groups([*[10] * 7, 80, 10], 1000 * LARGE, False) == [range(9)]
    assert merge_groups([600, 300, 90, 10], 1000 * LARGE, False) == [range(4)]


def test_full_fragments_grow_with_the_store():
    places = (0, 32 << 30, 64 << 30, 1 << 40, 2 << 40)
    assert [full_bytes_at(before) >> 20 for before in places] == [32, 32, 64, 1024, 1024]
    before = 20 * 1024
    assert full_bytes_at(before, 10 * LARGE) == 20
    assert merge_groups([before, 15, 5], 10 * LARGE, False) == [range(1, 3)]
    assert merge_groups([before, 15, 4, 1 << 62, 200, 100, 20], 10 * LARGE, True) == [range(1, 3), range(4, 7)]
    assert merge_groups([before // 2, 15, 15, before // 2, 15], 10 * LARGE, True) == []


#: Bytes of the fragments of any build, some of them full, and some written by another program.
any_size = st.integers(1, 300) | st.integers(10_000, 25_000) | st.integers(10_000, 10_500) | st.just(1 << 62)
any_sizes = st.lists(any_size, max_size=60)


@given(any_sizes, st.lists(st.tuples(any_sizes, st.booleans()), max_size=4))
def test_fragments_are_few_however_the_build_came_to_them(sizes: list[int], later: list[tuple[list[int], bool]]):
    """Killed before a merge, resumed, grown, with forgotten documents: whatever the sizes are."""
    full = 10_000
    for more, final in [*later, ([], False), ([], True)]:
        sizes = [*sizes, *more]
        whole, foreign = sum(size for size in sizes if size < 1 << 62), [size for size in sizes if size == 1 << 62]
        while groups := merge_groups(sizes, full, final):
            group = groups[0]
            merged = sum(sizes[group.start : group.stop])
            assert merged < 2 * full_bytes_at(sum(sizes[: group.start]), full)
            sizes = [*sizes[: group.start], merged, *sizes[group.stop :]]
        # One that is not full may be between two of another program, and one at the end, or eight of each size.
        # Behind one of another program, a full one is as large as anywhere.
        places = np.cumsum([0, *(min(size, full << 10) for size in sizes)]).tolist()
        as_full_ones = 0.0
        for size, before in zip(sizes, places, strict=False):
            if size < 1 << 62:
                as_full_ones += size / full_bytes_at(before, full)
        most = 1.01 * as_full_ones + 2 * len(foreign)
        assert len(sizes) <= most + (1 if final else 7 * 5)
        assert sum(size for size in sizes if size < 1 << 62) == whole


@examples(20)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=400))
def test_tokens_are_written_few_times_however_long_the_build(sizes: list[int]):
    full, written, most, fragments = 10_000 * LARGE, 0, 0, []
    for size in sizes:
        fragments.append(size)
        while groups := merge_groups(fragments, full, False):
            group = groups[0]
            written += sum(fragments[group.start : group.stop])
            most = max(most, sum(fragments[group.start : group.stop]))
            fragments[group.start : group.stop] = [sum(fragments[group.start : group.stop])]
        assert len(fragments) <= LARGE * sum(sizes) / full + 7 * 5
    # Levels of eight from the smallest to a full one, each fragment rewritten once or twice on each.
    assert written <= 8 * sum(sizes)
    # In an undisturbed build, at most a full fragment and a commit are on the disk twice.
    assert most <= full / LARGE + 300


class Folder:
    """Records the largest size of a store on the disk after each write, and its largest number of files that are not data."""

    def __init__(self, uri: str, patch: pytest.MonkeyPatch) -> None:
        self._uri = uri
        self.most = self.most_notes = 0
        for place, name in (
            (repacking, "write_rows"),
            (stores, "write_rows"),
            (compaction, "replace_fragments"),
            (removal, "replace_fragments"),
        ):
            patch.setattr(place, name, self._looked_at(getattr(place, name)))

    def _looked_at(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any, **options: Any) -> Any:
            result = write(*arguments, **options)
            self.look()
            return result

        return written

    def size(self) -> int:
        return sum(path.stat().st_size for path in Path(self._uri).rglob("*") if path.is_file())

    def look(self) -> None:
        self.most = max(self.most, self.size())
        notes = [path for path in Path(self._uri).rglob("*") if path.is_file() and path.parent.name != "data"]
        self.most_notes = max(self.most_notes, len(notes))


@pytest.mark.parametrize("killed", [False, True])
def test_a_build_takes_no_more_disk_than_its_store_and_two_full_fragments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
):
    """Versions, transactions and files of killed builders do not pile up with the number of commits either."""
    uri, note, full = str(tmp_path / "x.lance"), NOTE, 300_000
    folder = Folder(uri, monkeypatch)
    note = append(uri, [(0, "C", 6 * BLOCK - 1)], 0, note)
    commit = folder.size()
    for i in range(1, 60):
        if killed and i % 10 == 9:
            # Merges of the largest size, each killed before its commit, one after the other.
            dataset = lance.dataset(uri)
            for _ in range(full // commit):
                write_rows(StoreLocation(uri), dataset, dataset.schema, dataset.to_table().slice(0, 6).to_batches())
            fence_stale_builders(StoreLocation(uri), int(dataset.version), find_orphans(StoreLocation(uri)))
        if i == 59:
            append(uri, [(0, "C", 6 * BLOCK - 1)], i, note, LARGE * full)
            break
        note = append(uri, [(0, "C", 6 * BLOCK - 1)], i, note)
        folder.look()
        compact(StoreLocation(uri), last_version(StoreLocation(uri))[0], full=LARGE * full)
    assert folder.size() > 4 * full
    assert folder.most < folder.size() + (2 * full if killed else full + 2 * commit)
    # Eight versions, each with its manifest and its transaction, and a few more during a merge.
    assert folder.most_notes < 2 * 12


def test_versions_stay_few_where_no_document_is_kept(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    note = append(uri, [(0, "C", 3000)], 0)
    nothing = lance.dataset(uri).to_table().slice(0, 0)
    for row in range(40):
        append_commit(StoreLocation(uri), nothing, replace(note, row=row))
        compact(StoreLocation(uri), last_version(StoreLocation(uri))[0])
        assert len(lance.dataset(uri).versions()) <= 8
    assert last_commit(StoreLocation(uri)) == replace(note, row=39)
    assert len(read_sums(Root(StoreLocation(uri)))) == len(listed(Root(StoreLocation(uri)))) <= 16


def test_pages_are_large_and_memory_bounded(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(6):
        note = append(uri, [(0, language, 1_000_000) for language in "abc"], 3 * i, note)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    append(uri, [(0, "a", 10)], 18, note, LARGE << 30)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 << 10
    (fragment,) = fragments_of(lance.dataset(uri))
    (column, *_) = LanceFileReader(str(Path(uri, "data", fragment.files[0].path))).metadata().columns
    sizes = [page.buffers[0].size for page in column.pages]
    assert sum(size < 4 << 20 for size in sizes) <= 3
    assert len(list(Path(uri, "data").iterdir())) == len(list(Path(uri, "_transactions").iterdir())) == 1
    # One run for each stream.
    assert len(TokenStore.open(uri)._table("train").places) == 3 or len(sizes) > 1


def test_tagged_versions_stay_and_open_maps_too(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    versions = []
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
        versions.append((note.tokens, TokenStore.open(uri)))
    versions[1][1].keep("checkpoint-6002")
    append(uri, [(0, "C", 10)], 3, note, 1 << 30)
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [2, 4]
    for tokens, store in versions:
        assert store.read(np.zeros(1, np.int64), tokens).shape == (1, tokens)
    newest = TokenStore.open(uri)
    assert newest.at(StoreContent(6002)).version == 2
    assert newest.at(StoreContent(9014)).version == 4
    assert TokenStore.open(uri, version=2).at(StoreContent(9014)).version == 4
    with pytest.raises(StoreError, match=r"no version of .* ends there"):
        newest.at(StoreContent(9003))


MERGE_AND_DIE = """
import os, signal, sys
import lance
from lightning_lance.maintenance import compaction
from tests.support.merges import append
uri, killed = sys.argv[1:]
setattr(compaction, killed, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
append(uri, [(0, "C", 5)], 8, compaction.read_commit(lance.dataset(uri), uri), 1 << 30)
"""


@pytest.mark.parametrize(("killed", "version"), [("replace_fragments", 4), ("clean_up", 5)])
def test_a_killed_merge_leaves_a_store_that_is_whole(tmp_path: Path, killed: str, version: int):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(4):
        note = append(uri, [(0, "C", 3000), (1, "Rust", 10)], 2 * i, note)
    other = str(tmp_path / "y.lance")
    shutil.copytree(uri, other)
    assert server(BUILDING).run(MERGE_AND_DIE, uri, killed, timeout=60).returncode == -signal.SIGKILL
    assert lance.dataset(uri).version == version
    append(other, [(0, "C", 5)], 8, note)
    if version == 4:
        assert contents(uri) == contents(other, 4)
    check_same_readers(uri)
    assert len(list(Path(uri, "data").iterdir())) == 5
    clean_up(StoreLocation(uri), orphans=find_orphans(StoreLocation(uri)))
    assert len(list(Path(uri, "data").iterdir())) == (4 if version == 4 else 1)
    if version == 4:
        append(uri, [(0, "C", 5)], 8, note, 1 << 30)
    assert contents(uri) == contents(other)
    assert len(list(Path(uri, "data").iterdir())) == 1


@pytest.mark.parametrize("tagged", [False, True])
def test_files_from_the_future_go_too(tmp_path: Path, tagged: bool):
    """The clock of a shared disk is ahead, or this machine's was set back; a bucket has another clock anyway."""
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(4):
        note = append(uri, [(0, "C", 3000)], i, note)
        if i == 1 and tagged:
            TokenStore.open(uri).keep("checkpoint-6002")
    for path in (tmp_path / "x.lance").rglob("*"):
        os.utime(path, (time.time() + 3600,) * 2)
    append(uri, [(0, "C", 10)], 4, note, 1 << 30)
    versions = [entry["version"] for entry in lance.dataset(uri).versions()]
    assert versions == ([2, 5] if tagged else [5])
    assert len(list(Path(uri, "data").iterdir())) == (3 if tagged else 1)
    assert len(list(Path(uri, "_transactions").iterdir())) == len(versions)
    assert not verify_store(uri)


def test_files_of_no_version_go(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 10)], 0)
    # Killed before its second commit, and before its first.
    before = lance.dataset(uri)
    made, _ = write_rows(StoreLocation(uri), before, before.schema, before.to_table().to_batches())
    left = Path(uri, "data", made[0].files[0].path)
    other = str(tmp_path / "y.lance")
    first, _ = write_rows(StoreLocation(other), None, before.schema, before.to_table().to_batches())
    assert find_orphans(StoreLocation(other)) == {f"data/{first[0].files[0].path}"}
    found = find_orphans(StoreLocation(uri))
    assert found == {f"data/{left.name}"}
    append(uri, [(0, "C", 10)], 1)
    clean_up(StoreLocation(uri), orphans=found)
    assert not left.exists()
    assert lance.dataset(uri).count_rows() == 2


def test_a_builder_that_comes_back_to_its_clean_up_takes_no_file_from_the_next_one(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    left = find_orphans(StoreLocation(uri))
    note = append(uri, [(0, "C", 10)], 0)
    # It is suspended after this commit, and the next builder has written but not committed.
    before = lance.dataset(uri)
    made, notes = write_rows(StoreLocation(uri), before, before.schema, before.to_table().to_batches())
    clean_up(StoreLocation(uri), orphans=left)
    note = replace(note, documents=2, tokens=2 * note.tokens)
    files = {**data_file_infos(before), **notes}
    replace_fragments(StoreLocation(uri), before, before.schema, [*fragments_of(before), *made], files, note)
    assert TokenStore.open(uri, verify=True).num_tokens("train") == 22


def test_a_merge_on_top_of_anothers_commit_is_refused(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    for i in range(2):
        append(uri, [(0, "C", 10)], i)
    with pytest.raises(CommitConflict):
        compact(StoreLocation(uri), 1)
    with pytest.raises(CommitConflict):
        finish(StoreLocation(uri), lance.dataset(uri).to_table(), NOTE, 1)
    assert lance.dataset(uri).version == 2


def test_what_others_have_changed_is_not_gone_on_from(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3 * BLOCK)], i, note)
    lance.write_dataset(lance.dataset(uri).to_table().slice(0, 1), uri, mode="append")
    with pytest.raises(StoreError, match=r"changed by another program since version 3 \(rows were appended\)"):
        finish(StoreLocation(uri), lance.dataset(uri).to_table().slice(0, 0), note)
    assert lance.dataset(uri).version == 4
    # The version from before stays, though no tag keeps it.
    clean_up(StoreLocation(uri))
    lance.dataset(uri, version=3).restore()
    finish(StoreLocation(uri), lance.dataset(uri).to_table().slice(0, 0), note)
    assert TokenStore.open(uri).num_tokens() == 3 * (3 * BLOCK + 1)
