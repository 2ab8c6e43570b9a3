from pathlib import Path

from lightning_lance.format.lance_io import dataset_at
from lightning_lance.format.tags import keep_build
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.maintenance.disk_usage import disk_usage
from lightning_lance.process.locks import Lease
from tests.support.commits import NOTE, rows_of
from tests.support.stores import append_commit, finish, written


def files(uri: str) -> dict[Path, int]:
    return {path: path.stat().st_size for path in Path(uri).rglob("*") if path.is_file()}


def test_what_is_reclaimable_is_what_a_clean_up_removes(tmp_path: Path):
    location = StoreLocation(str(tmp_path / "x.lance"))
    append_commit(location, rows_of(1), NOTE)
    append_commit(location, rows_of(2), NOTE)
    # Merges both, so the file of each is only in older versions, of which one is kept.
    dataset = dataset_at(location, None)
    dataset.tags.create("mine", 1)
    finish(location, rows_of(3), NOTE)
    dataset = dataset_at(location, None)
    keep_build(dataset, location.uri)
    usage = disk_usage(location, dataset)
    before = files(location.uri)
    assert usage.total == sum(before.values())
    assert usage.older > 0
    assert usage.reclaimable == 0
    dataset.tags.delete("mine")
    unkept = disk_usage(location, dataset)
    assert (unkept.newest, unkept.older) == (usage.newest, 0)
    assert unkept.reclaimable > usage.older
    clean(location.uri)
    gone = before.keys() - files(location.uri).keys()
    # Its tag is gone already.
    assert sum(before[path] for path in gone if path.name != "mine.json") == unkept.reclaimable
    assert disk_usage(location, dataset)[1:] == (usage.newest, 0, 0)


def test_files_of_no_version_are_reclaimable_unless_a_builder_may_commit_them(tmp_path: Path):
    location = StoreLocation(str(tmp_path / "x.lance"))
    append_commit(location, rows_of(1), NOTE)
    before = files(location.uri)
    written(location.uri, rows_of(4))
    left = sum(size for path, size in files(location.uri).items() if path not in before)
    dataset = dataset_at(location, None)
    assert disk_usage(location, dataset).reclaimable == left > 0
    lease = Lease(tmp_path / "x.lock")
    assert lease.take()
    assert disk_usage(location, dataset).reclaimable == 0
    lease.release()
