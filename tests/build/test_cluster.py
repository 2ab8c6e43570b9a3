"""The laws of a build on a cluster: whatever ends when, dies or is done twice, the store is that of the local engine."""

import pickle
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import Corpus, TokenStore
from lightning_lance.build import progress, unit_tasks
from lightning_lance.build.cluster import ClusterBuild
from lightning_lance.build.progress import figures_of
from lightning_lance.build.unit import Unit
from lightning_lance.build.unit_queue import UnitState
from lightning_lance.build.unit_results import read_result
from lightning_lance.build.workers import Outcome
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.lance_names import UNITS
from lightning_lance.maintenance import forget, verify_store
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.messages.escaping import logger
from lightning_lance.readers.cuts import Cut
from lightning_lance.sources.source import ReadReport
from lightning_lance.sources.validation import WithValidation
from lightning_lance.tokenization import ByteTokenizer
from lightning_lance.tokenization.tokenizer import Tokenizer
from tests.support.laws import examples
from tests.support.stores import ListSource
from tests.support.streams import provenance, streams
from tests.support.workers import DiedError, DriverDied, FakeEngine, FakeWorkers


@dataclass(frozen=True)
class DivisibleSource(ListSource):
    """A source whose shards are cut after any row."""

    def cuts(self, shard: int, part_bytes: int) -> list[Cut]:
        rows = len(self.documents[shard * self.per_shard :][: self.per_shard])
        return [Cut(row, row) for row in range(part_bytes, rows, part_bytes)]

    def begin_at(self, shard: int, cut: Cut) -> None:
        pass


@dataclass(frozen=True)
class BrokenSource(DivisibleSource):
    """A source whose second shard cannot be read at one row, the third if no other is given, but behind it."""

    broken: int = 2

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for batch in super().read(shard, row):
            if shard == 1 and batch.column("row")[0].as_py() == self.broken:
                self.trouble.bad_shards[1] = {"shard": "1", "row": self.broken, "error": "broken"}
                return
            yield batch


texts = st.lists(
    st.tuples(
        st.sampled_from(["a", "bb", "ccc" * 700, "d\n", " ", "", None, "ee" * 2000, "x"]),
        st.sampled_from(["Python", "Rust", "C"]),
        st.sampled_from(["r1", "r2", "r3", "r4"]),
    ),
    min_size=1,
    max_size=24,
)
budgets = st.sampled_from([{}, {"max_documents": 1}, {"max_documents": 7}, {"max_tokens": 5}, {"max_tokens": 5000}])


COUNTS = (
    "shard", "row", "documents", "tokens", "text_bytes", "languages", "skipped", "noted", "files", "forgotten", "exhausted",
    "fingerprint", "shards", "bad_shards",
)  # fmt: skip


def content(store: TokenStore) -> dict[str, Any]:
    """Everything that the engines must agree on."""
    counts = {name: getattr(store.commit, name) for name in COUNTS}
    return {"streams": streams(store), "documents": provenance(store), "counts": counts}


def leftovers(store: TokenStore) -> list[str]:
    """Results of units, and data files of no version."""
    place = Path(store.uri)
    versions = [lance.dataset(store.uri, version=each["version"]) for each in lance.dataset(store.uri).versions()]
    fragments = [fragment for version in versions for fragment in version.get_fragments()]
    known = {file.path for fragment in fragments for file in fragment.data_files()}
    data = [path.name for path in (place / "data").iterdir() if path.name not in known]
    return [*data, *(path.name for path in (place / UNITS).glob("*"))]


def build(
    source: ListSource, folder: Path, name: str, budget: dict[str, int], engine: Any, **options: Any
) -> TokenStore:
    corpus = Corpus(source, ByteTokenizer(), folder / f"{name}.lance", val_fraction=0.3, **budget)
    return corpus.prepare(engine=engine, durable=False, **options)


engines = st.builds(
    FakeEngine,
    st.integers(0, 2**32),
    slots=st.integers(1, 5),
    max_lead=st.none() | st.integers(1, 6),
    unit_bytes=st.integers(1, 4),
    deaths=st.sampled_from([0.0, 0.3]),
)


@given(texts, st.sampled_from(["none", "exact"]), budgets, engines, st.sampled_from([0.0, 60.0]))
@examples(8)
def test_the_store_is_that_of_the_local_engine(
    made: list[Any], dedup: Any, budget: dict[str, int], engine: FakeEngine, seconds: float
) -> None:
    source = DivisibleSource(tuple(made), dedup=dedup)
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            local = content(build(source, folder, "local", budget, "local"))
        except SourceError:
            with pytest.raises(SourceError, match="gave no documents"):
                build(source, folder, "cluster", budget, engine)
            return
        store = build(source, folder, "cluster", budget, engine, commit_seconds=seconds)
        assert content(store) == local
        assert leftovers(store) == []
        assert verify_store(store.uri) == []


@given(
    texts, st.sampled_from(["none", "exact"]), budgets, engines, st.lists(st.integers(0, 12), max_size=3), st.booleans()
)
@examples(6)
def test_drivers_that_die_lose_and_double_nothing(
    made: list[Any], dedup: Any, budget: dict[str, int], engine: FakeEngine, deaths: list[int], often: bool
) -> None:
    source = DivisibleSource((("first", "Python", "r1"), *made), dedup=dedup)
    with TemporaryDirectory() as name:
        folder = Path(name)
        local = content(build(source, folder, "local", budget, "local"))
        seconds = 0.0 if often else 60.0
        for after in deaths:
            with suppress(DriverDied):
                build(source, folder, "cluster", budget, replace(engine, driver_dies=after), commit_seconds=seconds)
        store = build(source, folder, "cluster", budget, engine, commit_seconds=seconds)
        assert content(store) == local
        assert leftovers(store) == []


@given(texts, st.sampled_from(["none", "exact"]), st.lists(st.booleans(), min_size=2, max_size=4), engines)
@examples(4)
def test_a_build_may_change_its_engine_and_forget(
    made: list[Any], dedup: Any, on_cluster: list[bool], engine: FakeEngine
) -> None:
    source = DivisibleSource((("first", "Python", "r1"), *made), dedup=dedup)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for step, cluster in enumerate(on_cluster):
            budget = {} if step == len(on_cluster) - 1 else {"max_documents": 3 * step + 1}
            # A driver that died before has left results.
            with suppress(DriverDied):
                build(source, folder, "mixed", budget, replace(engine, driver_dies=2))
            local = build(source, folder, "local", budget, "local")
            store = build(source, folder, "mixed", budget, engine if cluster else "local")
            assert content(store) == content(local)
            if not step:
                for each in (local, store):
                    forget(each.uri, {"repo": "r1"})
        assert leftovers(store) == []


@pytest.mark.parametrize("dedup", ["none", "exact"])
@pytest.mark.parametrize(("max_lead", "broken"), [(1, 2), (None, 2), (None, 0)])
def test_the_rest_of_a_broken_shard_is_skipped_and_copies_of_it_are_stored(
    tmp_path: Path, dedup: Any, max_lead: int | None, broken: int
) -> None:
    # The third shard has copies of what the second would have had.
    texts = [f"text {i}" for i in [*range(16), *range(8, 16)]]
    made = tuple((text, "Python", "") for text in texts)
    source = BrokenSource(made, per_shard=8, per_batch=1, dedup=dedup, broken=broken)
    local = content(build(source, tmp_path, "local", {}, "local"))
    source.trouble.bad_shards.clear()
    store = build(source, tmp_path, "cluster", {}, FakeEngine(slots=3, max_lead=max_lead, unit_bytes=1))
    assert content(store) == local
    assert store.commit.documents == 8 + broken + (8 if dedup == "none" else 8 - broken)
    assert leftovers(store) == []


@dataclass(frozen=True)
class FlakySource(DivisibleSource):
    """A source whose second shard breaks at its third row when that is read for the time `breaks`; 0 for never."""

    notes: Path = Path()
    breaks: int = 0

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for batch in super().read(shard, row):
            if shard == 1 and batch.column("row")[0].as_py() == 2:
                with (self.notes / "read").open("a") as notes:
                    notes.write("x")
                if (self.notes / "read").stat().st_size == self.breaks:
                    self.trouble.bad_shards[1] = {"shard": "1", "row": 2, "error": "broken"}
                    return
            yield batch


@pytest.mark.parametrize("breaks", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_shard_that_breaks_in_one_of_two_readings_is_skipped_and_its_copies_are_stored(
    tmp_path: Path, breaks: int, seed: int
) -> None:
    # The shards behind the second have copies of what it would have had, and of each other.
    texts = [f"text {i}" for i in [*range(16), *range(8, 16), *range(14, 22)]]
    flaky = FlakySource(
        tuple((text, "Python", "") for text in texts),
        per_shard=8,
        per_batch=1,
        dedup="exact",
        breaks=breaks,
        notes=tmp_path,
    )
    engine = FakeEngine(seed, slots=4, unit_bytes=(2, 3, 1 << 30)[seed % 3])
    store = build(flaky, tmp_path, "cluster", {}, engine)
    made = content(store)
    (tmp_path / "read").unlink()
    flaky.trouble.bad_shards.clear()
    assert made == content(build(replace(flaky, breaks=1), tmp_path, "local", {}, "local"))
    assert store.commit.documents == 22
    assert leftovers(store) == []


@dataclass(frozen=True)
class NamedSource(BrokenSource):
    """A source that is broken, and has failed once for each shard that was read, with its own names of shards."""

    prefix: str = ""

    @property
    def shards(self) -> list[str]:
        return [f"{self.prefix}{name}" for name in super().shards]

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        self.trouble.incidents["timeout"] += 1
        logger("lightning_lance.sources").warning("A warning about %s.", self.shards[shard])
        yield from super().read(shard, row)


@dataclass(frozen=True)
class HeldOut(NamedSource):
    """A source with validation documents of its own."""

    has_validation: bool = True

    def open(self, pin: Any = None) -> Any:
        val = NamedSource(self.documents[:3], per_batch=1, prefix="val", trouble=ReadReport())
        return WithValidation(val, replace(val, documents=self.documents, prefix="train", trouble=ReadReport()))


def test_failures_and_warnings_of_workers_are_told_as_by_the_local_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = HeldOut(tuple((f"text {i}", "Python", f"r{i}") for i in range(12)))
    told = []
    for name, engine in [("local", "local"), ("cluster", FakeEngine())]:
        caplog.clear()
        store = build(source, tmp_path, name, {}, engine)
        assert [bad["row"] for bad in store.commit.bad_shards] == [2]
        told.append({record.getMessage() for record in caplog.records if record.levelname == "WARNING"})
    assert told[0] == told[1]
    assert "Source 'list' failed 4 times and was retried: 4 x timeout." in told[0]
    assert "A warning about train1." in told[0]


def test_what_a_dead_driver_has_had_done_is_not_done_again(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(12)), dedup="exact")
    first = FakeEngine(slots=2, unit_bytes=2, driver_dies=9)
    with pytest.raises(DriverDied):
        build(source, tmp_path, "x", {}, first)
    second = FakeEngine(slots=2, unit_bytes=2)
    store = build(source, tmp_path, "x", {}, second)
    assert store.commit.documents == 12
    # Six units of two documents each, each scanned and run once.
    done = [*first.made[0].done, *second.made[0].done]
    assert (done.count("run_scan"), done.count("run_unit")) == (6, 6)


def test_a_zombie_that_ends_after_the_build_changes_nothing_and_a_clean_removes_what_it_leaves(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(12)), dedup="exact")

    class Outliving(FakeWorkers):
        def end_zombies(self, count: int) -> None:
            """Have all outlive the build."""

    made: list[Outliving] = []

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            def start(work: Any) -> Any:
                made.append(Outliving(work, Random(1), deaths=0.6))
                return made[-1]

            return ClusterBuild(start, *given, durable, unit_bytes=2, max_retries=1000)

    store = build(source, tmp_path, "x", {}, Engine())
    local = content(build(source, tmp_path, "y", {}, "local"))
    assert (content(store), leftovers(store)) == (local, [])
    assert made[0].zombies
    FakeWorkers.end_zombies(made[0], len(made[0].zombies))
    assert leftovers(store)
    again = build(source, tmp_path, "x", {}, FakeEngine())
    assert (again.version, content(again), verify_store(store.uri)) == (store.version, local, [])
    clean(store.uri)
    cleaned = TokenStore.open(store.uri)
    assert (content(cleaned), leftovers(cleaned)) == (local, [])


def test_no_copy_is_tokenized_and_no_text_passes_through_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"a marker {i % 7}" for i in range(28)]
    source = DivisibleSource(tuple((text, "Python", "r") for text in texts), dedup="exact")
    encoded: list[str] = []
    passed: list[bytes] = []
    encode = Tokenizer.encode_batch

    def noted(tokenizer: Tokenizer, batch: pa.Array) -> Any:
        encoded.extend(batch.to_pylist())
        return encode(tokenizer, batch)

    def reading(*given: Any) -> Any:
        result = read_result(*given)
        passed.append(pickle.dumps(result))
        return result

    class Watched(FakeWorkers):
        def submit(self, function: Any, *arguments: Any, tries: int = 0) -> Any:
            passed.append(pickle.dumps(arguments))
            return super().submit(function, *arguments, tries=tries)

        def ended(self, seconds: float) -> Any:
            ended = super().ended(seconds)
            passed.append(pickle.dumps([outcome.value for _, outcome in ended]))
            return ended

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            return ClusterBuild(lambda work: Watched(work, Random(0)), *given, durable, unit_bytes=2)

    monkeypatch.setattr(Tokenizer, "encode_batch", noted)
    monkeypatch.setattr(unit_tasks, "read_result", reading)
    store = build(source, tmp_path, "x", {}, Engine(), commit_seconds=0.0)
    assert store.commit.documents == 7
    assert sorted(text for text in encoded if "marker" in text) == sorted({*texts})
    through = b"".join(passed)
    # The results have been seen: each document's metadata is in them.
    assert b"Python" in through
    for kind in ("uint8", "uint16", "int32", "int64"):
        assert np.frombuffer(b"marker", "uint8").astype(kind).tobytes() not in through


def test_units_ahead_of_the_ledger_are_bounded(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(40)))
    engine = FakeEngine(slots=3, max_lead=4, unit_bytes=1)
    widest = 0
    begin = engine.begin

    def watched(*given: Any, durable: bool) -> Any:
        made = begin(*given, durable=durable)
        look = made._look

        def looking(*arguments: Any) -> None:
            nonlocal widest
            waits = (UnitState.UNCUT, UnitState.CUTTING, UnitState.NEW)
            begun = [queued for queued in made._queue if queued.state not in waits]
            widest = max(widest, len(begun))
            look(*arguments)

        made._look = looking  # type: ignore[method-assign]
        return made

    object.__setattr__(engine, "begin", watched)
    build(source, tmp_path, "x", {}, engine)
    assert widest <= 4
    small = FakeEngine(slots=3, unit_bytes=1)
    build(source, tmp_path, "y", {"max_documents": 8}, small)
    # One for each free worker before the first is folded, and no more than the budget asks for after it.
    assert small.made[0].done.count("run_unit") <= 10


def test_progress_has_the_units_and_names_the_slowest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(40)), per_shard=20)

    class Slow(FakeWorkers):
        polls = 0

        def ended(self, seconds: float) -> Any:
            """Does the second unit last, after all others are done and a few looks more."""
            time.sleep(0.005)
            if self.polls == 10:
                return super().ended(seconds)
            held = {task: job for task, job in self.waiting.items() if job[1][0] == Unit(0, 2, 4, cut=Cut(2, 2))}
            for task in held:
                del self.waiting[task]
            self.polls += bool(held) and not self.waiting
            ended = super().ended(seconds) if self.waiting else []
            self.waiting |= held
            return ended

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            return ClusterBuild(lambda work: Slow(work, Random(0)), *given, durable, unit_bytes=2, max_lead=50)

    with caplog.at_level("DEBUG"):
        build(source, tmp_path, "x", {}, Engine(), commit_seconds=0.0)
    figures = [figures_of(record) for record in caplog.records]
    # There are none while fragments are merged.
    lines = [line for line in figures if "units" in line]
    slow = [line for line in lines if line["units_slow"]]
    assert slow[-1]["slowest"] == "Shard '0' of source 'list', rows 2 to 3"
    counts = {name: slow[-1][name] for name in ("units", "units_done", "units_running", "units_slow", "workers")}
    assert counts == {"units": 20, "units_done": 19, "units_running": 1, "units_slow": 1, "workers": 2}
    assert all(line["units_done"] <= line["units"] for line in lines)
    assert "units_slow" not in figures[-1]
    assert {"tokens", "mb_per_second", "share", "documents"} <= slow[-1].keys()


def test_a_unit_that_runs_out_of_memory_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(8)))
    asked: list[int] = []

    class Small(FakeWorkers):
        def submit(self, function: Any, *arguments: Any, tries: int = 0) -> Any:
            asked.append(tries)
            return super().submit(function, *arguments, tries=tries)

        def ended(self, seconds: float) -> Any:
            for task, (_, arguments) in self.waiting.items():
                if arguments[0] == Unit(1, 2, cut=Cut(2, 2)):
                    del self.waiting[task]
                    memory = 2**30 * 2 ** asked[-1] if asked[-1] else 0
                    return [(task, Outcome(error=DiedError("killed"), lost=True, memory=memory))]
            return super().ended(seconds)

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            return ClusterBuild(
                lambda work: Small(work, Random(0), slots=1), *given, durable, unit_bytes=2, max_retries=2
            )

    with pytest.raises(SourceError) as refused:
        build(source, tmp_path, "x", {}, Engine())
    rows = "Shard '1' of source 'list', from row 2 on,"
    assert str(refused.value) == (
        f"{rows} has ended its worker 3 times, 3 times for want of memory, at last with 4.29 GB set aside for it (killed): "
        "committed documents are safe; give a worker more memory, or leave these rows out, then run it again."
    )
    assert f"{rows} ran out of memory and is done again with twice the memory (1 of 2): killed" in caplog.messages


def test_a_unit_that_ends_its_workers_is_named(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(8)))

    class Poisoned(FakeWorkers):
        def ended(self, seconds: float) -> Any:
            for task, (_, arguments) in self.waiting.items():
                if arguments[0] == Unit(1, 2, cut=Cut(2, 2)):
                    del self.waiting[task]
                    return [(task, Outcome(error=DiedError("killed"), lost=True))]
            return super().ended(seconds)

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            return ClusterBuild(lambda work: Poisoned(work, Random(0)), *given, durable, unit_bytes=2, max_retries=2)

    with pytest.raises(SourceError) as refused:
        build(source, tmp_path, "x", {}, Engine())
    assert str(refused.value) == (
        "Shard '1' of source 'list', from row 2 on, has ended its worker 3 times (killed): committed documents are safe; give "
        "a worker more memory, or leave these rows out, then run it again."
    )


def test_a_source_that_changes_between_scan_and_run_is_refused(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(4)), dedup="exact")

    class Changing(FakeWorkers):
        def ended(self, seconds: float) -> Any:
            if "run_scan" in self.done:
                changed = tuple((f"other {i}", "Python", f"r{i}") for i in range(4))
                self.work = replace(self.work, opened=replace(source, documents=changed))
            return super().ended(seconds)

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            return ClusterBuild(lambda work: Changing(work, Random(0)), *given, durable)

    with pytest.raises(SourceError, match="gave other documents when it was read again"):
        build(source, tmp_path, "x", {}, Engine())


def test_a_build_that_fails_before_anything_is_done_leaves_nothing(tmp_path: Path) -> None:
    source = DivisibleSource((("   ", "Python", "r"), (None, "Python", "r")))
    with pytest.raises(SourceError, match="gave no documents"):
        build(source, tmp_path, "x", {}, FakeEngine())
    assert not (tmp_path / "x.lance").exists()

    class Engine:
        def begin(self, *given: Any, durable: bool) -> Any:
            def start(work: Any) -> Any:
                raise ConfigError("There is no cluster.")

            return ClusterBuild(start, *given, durable)

    with pytest.raises(ConfigError, match="There is no cluster"):
        build(source, tmp_path, "x", {}, Engine())
    assert not (tmp_path / "x.lance").exists()
    assert not (tmp_path / "x.tokenizer.json").exists()


def test_fragments_are_merged_by_tasks_while_the_build_goes_on(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(40)))
    engine = FakeEngine(unit_bytes=1)
    store = build(source, tmp_path, "x", {}, engine, commit_seconds=0.0)
    # Eight of a size at a time, and all at the end.
    assert engine.made[0].done.count("run_merge") > 4
    assert content(store) == content(build(source, tmp_path, "y", {}, "local"))


def test_clean_removes_what_a_dead_driver_has_left(tmp_path: Path) -> None:
    source = DivisibleSource(tuple((f"text {i}", "Python", f"r{i}") for i in range(12)))
    with pytest.raises(DriverDied):
        build(source, tmp_path, "x", {}, FakeEngine(unit_bytes=2, driver_dies=5))
    assert (tmp_path / "x.lance" / UNITS).is_dir()
    clean(str(tmp_path / "x.lance"))
    assert not (tmp_path / "x.lance" / UNITS).exists()
    store = build(source, tmp_path, "x", {}, FakeEngine())
    assert content(store) == content(build(source, tmp_path, "y", {}, "local"))
