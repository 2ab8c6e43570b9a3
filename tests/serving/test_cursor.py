import random
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError, StoreReplaced
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents, only_append
from tests.support.walks import walk

SOURCE = ListSource(
    (
        *documents(*("".join(random.Random(i).choices("abc", k=90)) for i in range(8)), language="Python"),
        *documents(*("".join(random.Random(i).choices("xyz", k=90)) for i in range(5)), language="Rust"),
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def cursor(store: TokenStore, on_data_change: Any = "error", **changes: Any) -> Cursor:
    options = {"split": "train", "context_length": 8, "order": "shuffle", "seed": 0, "shuffle_block": None}
    return Cursor(
        WindowSelection(**{"stores": {"": store}, "where": {}, "mix": {}, **options, **changes}), on_data_change
    )


mixes = st.sampled_from([{}, {"Python": 0.7, "Rust": 0.3}, {"Rust": 5, "Python": 1}])


@examples(20)
@given(mixes, st.sampled_from([None, 5]), st.lists(st.integers(0, 200), min_size=2, max_size=4))
def test_a_state_continues_the_walk_and_its_digest(
    store: TokenStore, mix: dict[str, float], block: int | None, parts: list[int]
):
    whole = cursor(store, mix=mix, shuffle_block=block)
    expected = walk(whole, sum(parts))
    place, served = cursor(store, mix=mix, shuffle_block=block), []
    for part in parts:
        resumed = cursor(store, mix=mix, shuffle_block=block)
        resumed.load_state_dict(place.state_dict())
        served += walk(resumed, part)
        place = resumed
    assert served == expected
    assert place.state_dict() == whole.state_dict()


@examples(20)
@given(st.integers(1, 300), st.integers(1, 300))
def test_new_weights_leave_each_component_where_it_was(store: TokenStore, before: int, after: int):
    """Each component continues in its own order, whatever its weight."""
    place = cursor(store, mix={"Python": 3, "Rust": 1})
    first = walk(place, before)
    changed = cursor(store, mix={"Rust": 0.9, "Python": 0.1})
    changed.load_state_dict(place.state_dict())
    assert changed.state_dict()["cursor"] == before
    served = first + walk(changed, after)
    border = store.streams()[1].start
    for name, mine in [("Python", [s for s in served if s < border]), ("Rust", [s for s in served if s >= border])]:
        assert mine == walk(cursor(store, mix={name: 1}), len(mine))
        assert changed.components()[name]["windows"] == len(mine)


def test_the_order_in_which_weights_are_written_does_not_matter_to_a_resume(store: TokenStore):
    place = cursor(store, mix={"Python": 0.5, "Rust": 0.5})
    served = walk(place, 5)
    turned = cursor(store, mix={"Rust": 0.5, "Python": 0.5})
    turned.load_state_dict(place.state_dict())
    served += walk(turned, 100)
    border = store.streams()[1].start
    for name, mine in [("Python", [s for s in served if s < border]), ("Rust", [s for s in served if s >= border])]:
        assert mine == walk(cursor(store, mix={name: 1}), len(mine))


def test_the_digest_tells_other_windows_apart(store: TokenStore):
    def digest(place: Cursor, windows: int) -> str:
        walk(place, windows)
        return str(place.state_dict()["digest"])

    seen = [
        digest(cursor(store, **options), windows)
        for options in ({}, {"seed": 1}, {"order": "sequential"}, {"mix": {"Python": 1}})
        for windows in (20, 21)
    ]
    assert len({*seen}) == len(seen)


def test_a_difference_is_named_field_by_field(store: TokenStore):
    state = cursor(store).state_dict()
    other = {**state, "seed": 7, "where": {"language": ["Go"]}, "stores": [{**state["stores"][0], "fingerprint": "f"}]}
    said = r"seed: 7 -> 0; where: \{'language': \['Go'\]\} -> \{\}; stores: built with other settings"
    with pytest.raises(StoreError, match=rf"continues other data \({said}\): .*on_data_change=restart"):
        cursor(store).load_state_dict(other)
    elsewhere = {**state, "stores": [{**state["stores"][0], "fingerprint": "f", "uri": "/old.lance"}]}
    with pytest.raises(StoreError, match=f"stores: '/old.lance' -> '{store.uri}', built with other settings"):
        cursor(store).load_state_dict(elsewhere)


def test_a_store_whose_rows_were_deleted_is_continued_as_it_was_or_refused(tmp_path: Path):
    """A version by another program has the commit metadata of the one before, but fewer windows."""
    store = prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    place = cursor(store)
    walk(place, 60)
    lance.dataset(store.uri).delete("language = 'Rust'")
    resumed = cursor(TokenStore.open(store.uri))
    resumed.load_state_dict(place.state_dict())
    assert walk(resumed, 20) == walk(place, 20)
    state = {**place.state_dict(), "num_windows": 7}
    with pytest.raises(
        StoreError, match="epoch had 7 windows, but with this store it has 145: rows were deleted or added"
    ):
        cursor(store).load_state_dict(state)


def test_what_is_adopted_is_kept_or_what_came_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A builder commits and removes the version opened for the next epoch before it is tagged."""
    source = ListSource(documents(*["some text"] * 40))
    old = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, max_documents=10)
    place, keeping, lost = cursor(old), TokenStore.keep_for_training, list[int]()
    prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, max_documents=20)
    lance.dataset(old.uri).tags.delete(f"build-{20 * 10}")

    def keep(store: TokenStore) -> bool:
        if not lost:
            lost.append(store.version)
            prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
        return keeping(store)

    monkeypatch.setattr(TokenStore, "keep_for_training", keep)
    place.next_epoch(extend=True)
    (adopted,) = place.serving.stores.values()
    assert adopted.commit.documents == 40
    tags = {name: tag["version"] for name, tag in lance.dataset(old.uri).tags.list().items()}
    (mine,) = (name for name in tags if name.startswith(f"checkpoint-{adopted.commit.tokens}-run-"))
    assert tags[mine] == adopted.version
    assert lost[0] not in tags.values()


def test_a_store_that_was_compacted_is_continued_at_the_version_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lance may change the order of rows in a compacted version, with the same counts."""
    # A build without its last merge leaves something to compact.
    monkeypatch.setattr("lightning_lance.engines.local.commit_final", only_append)
    source = ListSource(documents("a" * 3000, "b" * 3000, "c" * 20_000), per_shard=1, per_batch=1)
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, commit_tokens=3000)
    lance.dataset(store.uri).optimize.compact_files(target_rows_per_fragment=8)
    compacted = TokenStore.open(store.uri)
    assert compacted.version > store.version
    resumed = cursor(compacted)
    resumed.load_state_dict(cursor(store).state_dict())
    pinned = resumed.serving.stores[""]
    assert pinned.version <= store.version
    begin = np.zeros(1, np.int64)
    assert np.array_equal(pinned.read(begin, 20_000), store.read(begin, 20_000))


def test_other_data_may_be_begun_or_continued(store: TokenStore):
    place = cursor(store)
    walk(place, place.num_windows + 30)
    changed = cursor(store, "restart", seed=1)
    changed.load_state_dict(place.state_dict())
    assert walk(changed, 50) == walk(cursor(store, seed=1), 50)
    changed = cursor(store, "continue", seed=1)
    changed.load_state_dict(place.state_dict())
    assert walk(changed, 20) == walk(cursor(store, seed=1), place.num_windows + 50)[-20:]


def test_another_context_length_goes_on_after_as_many_tokens(store: TokenStore):
    place = cursor(store, order="sequential")
    walk(place, place.num_windows + 15)
    longer = cursor(store, order="sequential", context_length=20)
    longer.load_state_dict(place.state_dict())
    assert (longer.epoch, longer.position) == (1, 6)
    assert walk(longer, 1) == [120]
    assert (
        walk(longer, longer.num_windows - 7)[-1] == walk(cursor(store, order="sequential", context_length=20), 58)[-1]
    )


def test_the_next_epoch_adopts_what_was_appended(tmp_path: Path):
    small = prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path, max_documents=5, val_fraction=0.0)
    growing, fixed = cursor(small), cursor(small)
    first = walk(growing, 20)
    whole = prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert walk(growing, growing.num_windows - 20) == walk(fixed, fixed.num_windows)[20:]
    assert first == walk(cursor(small), 20)
    growing.next_epoch(extend=True)
    assert growing.serving.stores[""].version == whole.version
    assert growing.num_windows == cursor(whole).num_windows > fixed.num_windows
    assert growing.value == growing.epoch_start == fixed.num_windows
    expected = walk(cursor(whole), 2 * growing.num_windows)[growing.num_windows :]
    assert walk(growing, growing.num_windows) == expected
    resumed = cursor(whole)
    resumed.load_state_dict(growing.state_dict())
    assert walk(resumed, 9) == walk(growing, 9)
    fixed.next_epoch(extend=False)
    assert fixed.serving.stores[""].version == small.version


def test_another_store_is_not_adopted_in_the_middle_of_a_run(tmp_path: Path):
    """Another store was built at the same uri: the run ends with one sentence, and its position is unchanged."""
    uri = str(tmp_path / "x.lance")
    place = cursor(prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0))
    walk(place, place.num_windows)
    before = place.state_dict()
    prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.4, rebuild=True)
    with pytest.raises(StoreReplaced, match="was replaced by one with other settings while it was read"):
        place.next_epoch(extend=True)
    assert place.state_dict() == before
    place.next_epoch(extend=False)  # what is mapped stays


def test_what_has_not_changed_is_not_tagged_again(tmp_path: Path):
    store = prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    store.keep_for_training("ab")
    store.keep_for_checkpoints()
    place = cursor(store)
    place.next_epoch(extend=True)
    place.next_epoch(extend=True)
    assert place.serving.stores[""] is store
    assert sorted(lance.dataset(store.uri).tags.list()) == [
        f"{what}-{store.commit.tokens}" for what in ("build", "checkpoint")
    ]
