import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from lightning_lance.format.checksums import SUMS, Root, listed, read_sums, write_sums
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import fence_stale_builders, find_orphans
from tests.support.merges import NOTE, append


def test_every_version_is_listed_from_its_commit_on_until_it_is_removed(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    session = Root(StoreLocation(uri))
    for i in range(3):
        note = append(uri, [(0, "C", 10)], i, note)
        assert read_sums(session).keys() == listed(session)
        assert len(listed(session)) == 2 * (i + 1)
    append(uri, [(0, "C", 10)], 3, note, 1 << 30)
    assert read_sums(session).keys() == listed(session)
    assert len(listed(session)) == 2


def test_what_a_killed_writer_left_half_written_is_no_version_and_goes(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    note = append(uri, [(0, "C", 10)], 0)
    session, place = Root(StoreLocation(uri)), tmp_path / "x.lance"
    halves = ["_versions/.tmpPc5kcK", "_versions/18446744073709551613.manifest#1", "_transactions/.tmpab", ".tmpcd"]
    for half in halves:
        (place / half).write_bytes(b"half")
    left = find_orphans(StoreLocation(uri))
    assert left == {*halves}
    assert read_sums(session).keys() == listed(session)
    fence_stale_builders(StoreLocation(uri), 1, left)
    append(uri, [(0, "C", 10)], 1, note, 1 << 30)
    assert read_sums(session).keys() == listed(session)
    assert len(listed(session)) == 2
    assert not any((place / half).exists() for half in halves)


def test_a_sum_is_of_the_file_as_it_was_written(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 10)], 0)
    session = Root(StoreLocation(uri))
    before = read_sums(session)
    (manifest,) = (tmp_path / "x.lance" / "_versions").glob("*.manifest")
    manifest.write_bytes(b"damaged")
    write_sums(StoreLocation(uri))
    assert read_sums(session) == before


def test_a_damaged_list_is_not_believed(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    session = Root(StoreLocation(uri))
    assert read_sums(session) is None
    append(uri, [(0, "C", 10)], 0)
    (tmp_path / "x.lance" / SUMS).write_text((tmp_path / "x.lance" / SUMS).read_text().replace("1", "2"))
    with pytest.raises(ValueError, match="differs from its own hash"):
        read_sums(session)


@pytest.mark.parametrize(
    "listed_sums",
    [
        [],
        {"_versions/../../other": [3, "ab"]},
        {"/dev/zero": [3, "ab"]},
        {"_versions/x.manifest": [3, "ab"]},
        {f"_versions/{2**64 - 2:020d}.manifest": [-1, "ab"]},
        {f"_versions/{2**64 - 2:020d}.manifest": [3]},
        {f"_versions/{2**64 - 2:020d}.manifest": {"size": 3}},
    ],
)
def test_a_list_of_another_form_is_not_believed_and_written_anew(tmp_path: Path, listed_sums: Any):
    """Its own hash is right, as in a manipulated list."""
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 10)], 0)
    text = json.dumps(listed_sums)
    content = json.dumps({"sums": text, "hash": xxhash.xxh3_64_hexdigest(text.encode())})
    (tmp_path / "x.lance" / SUMS).write_text(content)
    with pytest.raises(ValueError):
        read_sums(Root(StoreLocation(uri)))
    (problem,) = verify_store(uri)
    assert "the list of checksums is damaged" in problem.what
    assert write_sums(StoreLocation(uri))
    assert verify_store(uri) == []
