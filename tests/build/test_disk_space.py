import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_lance.build.disk_space import expected_tokens, merging_bytes
from lightning_lance.build.plan import Budget
from lightning_lance.errors import ConfigError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import compaction
from lightning_lance.maintenance.compaction import GrowthMerges, merge_groups, merges_of_growth
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

MIB = 1 << 20
NONE = CommitMetadata("", {}, {}, "", "", 0, 0)
SEEN = replace(NONE, documents=10, tokens=1000, text_bytes=4000, shard=2)


@pytest.mark.parametrize(
    ("budget", "seen", "num_bytes", "tokens"),
    [
        (Budget(), NONE, None, None),
        (Budget(max_documents=50), NONE, None, None),
        (Budget(max_tokens=50), NONE, None, 50),
        (Budget(max_documents=30), SEEN, None, 3000),
        (Budget(max_documents=30, max_tokens=2000), SEEN, None, 2000),
        (Budget(), SEEN, 400_000, 100_000),
        (Budget(max_tokens=10**12), SEEN, 400_000, 100_000),
        (Budget(), SEEN, None, 4000),  # two of eight shards
        (Budget(), replace(SEEN, row=5), None, None),  # how much of the third is read, nobody knows
    ],
)
def test_what_ends_the_reading_first_counts(
    budget: Budget, seen: CommitMetadata, num_bytes: int | None, tokens: float | None
):
    assert expected_tokens(budget, seen, num_bytes, num_shards=8) == tokens


def build(tmp_path: Path, **budget: Any) -> Any:
    return prepare(ListSource(documents(*["text"] * 40)), ByteTokenizer(), data_dir=tmp_path / "data", **budget)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "needs about" in message]


def test_a_build_that_cannot_fit_is_refused_before_anything_is_stored(tmp_path: Path):
    """With the real disk: no disk holds 10^18 tokens."""
    for budget in ({"max_tokens": 10**18}, {"max_documents": 10**18}):
        with pytest.raises(
            ConfigError,
            match=r"needs about [\d,.]+ TB \([\d,]+ T tokens of 2 bytes\), and .* merged; [\d,.]+ [GT]B are free in '",
        ):
            build(tmp_path, **budget)
    assert not list((tmp_path / "data").glob("*.lance"))


def test_what_is_needed_and_free_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("DEBUG", "lightning_lance"):
        build(tmp_path, max_documents=20)
        (tmp_path / "a.txt").write_text("text")
        prepare(FilesSource(["*.txt"], root=str(tmp_path)), ByteTokenizer(), data_dir=tmp_path, max_tokens=10**18)
    assert [bool(re.search(r"needs about \d+ bytes \(\d+ tokens of 2 bytes\), and", m)) for m in told(caplog)] == [
        True
    ] * 2
    caplog.clear()
    with caplog.at_level("DEBUG", "lightning_lance"):
        build(tmp_path, max_documents=40)
    assert [
        "needs about 220 bytes more than it has now (200 tokens of 2 bytes in total), and " in m for m in told(caplog)
    ] == [True]


def test_without_a_budget_it_is_told_when_it_will_be_known_and_then_what_is_missing_by_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Ten shards of 20 tokens: after the first, 180 tokens of 2 bytes are missing."""
    with caplog.at_level("DEBUG", "lightning_lance"):
        build(tmp_path, commit_seconds=0)
    lines = [m for m in caplog.messages if " free in " in m]
    assert len(lines) == 2
    assert " can be estimated after the first of 10 shards; " in lines[0]
    assert "needs about 396 bytes more than it has now (200 tokens of 2 bytes in total), and " in lines[1]
    caplog.clear()
    with caplog.at_level("DEBUG", "lightning_lance"):
        prepare(ListSource(documents("text"), per_shard=40), ByteTokenizer(), data_dir=tmp_path)
    assert " can be estimated when the whole source is read; " in next(m for m in caplog.messages if " free in " in m)


@pytest.mark.parametrize(
    ("free", "shown"),
    [(10**12, False), (1000, True), (10**9, False)],
    ids=["small", "half of what is free", "below half"],
)
def test_people_are_told_only_where_it_matters(
    free: int, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A build of 40 documents, 440 bytes and as many again for a merge."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with caplog.at_level("INFO", "lightning_lance"):
        build(tmp_path, max_documents=40)
    assert bool(told(caplog)) is shown
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    caplog.clear()
    with caplog.at_level("INFO", "lightning_lance"):
        source = ListSource(documents(*["text"] * 40), name="large")
        prepare(source, ByteTokenizer(), data_dir=tmp_path / "data", max_tokens=10**9)
    assert "The store " in told(caplog)[0]


def test_growing_needs_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build(tmp_path, max_documents=30)  # 150 tokens
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=101))
    assert build(tmp_path, max_documents=40).num_tokens() > 0  # 50 more, of 2 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=399))
    with pytest.raises(ConfigError, match=r"\(200 tokens of 2 bytes\)"):  # 400 bytes
        prepare(ListSource(documents(*["text"] * 40)), ByteTokenizer(), str(tmp_path / "x"), max_tokens=200)


def test_what_was_worked_out_from_a_part_is_a_warning_until_it_is_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=250))
    build(tmp_path, max_documents=40)  # 400 bytes, as it looks after the first batch
    assert [record.levelname for record in caplog.records if "free disk space" in record.message] == ["WARNING"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=190))
    with pytest.raises(ConfigError, match="free disk space"):
        prepare(ListSource(documents(*["text"] * 40)), ByteTokenizer(), str(tmp_path / "x"), max_documents=40)


@pytest.mark.parametrize(
    ("new", "loose", "commit", "most"),
    [
        (100, 0, 10, 100),  # all of it, should it be cut into commits
        (100, 50, 10, 150),
        (1000 * MIB, 50, 10, 64 * MIB + 50),
        (1000 * MIB, 50, 300 * MIB, 300 * MIB + 50),
        (1000 * MIB, 50, math.inf, 1000 * MIB + 50),
    ],
)
def test_what_is_merged_is_there_twice(new: int, loose: int, commit: float, most: int):
    assert merging_bytes(new, GrowthMerges(loose, 64 * MIB), commit) == most


def test_two_full_fragments_grow_with_the_store(tmp_path: Path):
    for new, most in ((MIB, 64 * MIB), (128 << 30, 256 * MIB), (40 << 40, 2 << 30)):
        assert merges_of_growth(StoreLocation(str(tmp_path / "x.lance")), new) == GrowthMerges(0, most)


@examples(50)
@example([], [(19, False), (20, False)])
@example([30_000], [(28, False), (29, False)])
@given(
    st.lists(st.integers(1, 60), max_size=20),
    st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=40),
)
def test_no_build_needs_more_than_that(before: list[int], commits: list[tuple[int, bool]]):
    """Of a store with any fragments, all of which a tag keeps; the streams of some commits take turns."""
    full = 20 * 32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "fragments_of", lambda dataset: before)
        patch.setattr(compaction, "fragment_sizes", lambda fragments, files: before)
        new = sum(size for size, _ in commits)
        merges = merges_of_growth(StoreLocation("/nowhere/x.lance"), new, full=full)
    largest = max([size for size, mixed in commits if mixed], default=0)
    # Each fragment, and whether the tag keeps it.
    fragments = [(size, True) for size in before]
    most = 0

    def merge(group: range) -> None:
        nonlocal most
        sizes = [size for size, _ in fragments]
        made = sum(sizes[group.start : group.stop])
        most = max(most, sum(before) + sum(size for size, kept in fragments if not kept) + made)
        fragments[group.start : group.stop] = [(made, False)]

    for i, (size, mixed) in enumerate(commits):
        fragments.append((size, False))
        if mixed:
            merge(range(len(fragments) - 1, len(fragments)))
        while groups := merge_groups([size for size, _ in fragments], full, i == len(commits) - 1):
            merge(groups[0])
    assert most - sum(before) - new <= merging_bytes(new, merges, largest)


def test_where_there_is_no_room_to_merge_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The store itself would fit, but its growth also rewrites the last fragment, which is not full."""
    store = build(tmp_path, max_documents=20)
    loose = merges_of_growth(StoreLocation(store.uri), 220).loose
    assert loose == sum(path.stat().st_size for path in Path(store.uri, "data").iterdir())
    assert merges_of_growth(StoreLocation(store.uri), 220, full=32 * loose).loose == 0
    for free, levels in ((220 + 220 + loose - 1, ["WARNING"]), (220 + 220 + loose + 1, [])):
        caplog.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        place = tmp_path / str(free) / "x.lance"
        shutil.copytree(store.uri, place)
        made = ListSource(documents(*["text"] * 40))
        prepare(made, ByteTokenizer(), str(place), max_documents=40)
        assert [record.levelname for record in caplog.records if "more while it is merged" in record.message] == levels
