"""The laws of the ledger, without source, tokenizer and store: results are made from rows in memory."""

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build.ledger import Ledger
from lightning_lance.build.plan import Budget
from lightning_lance.build.unit import Unit, UnitResult
from lightning_lance.errors import SourceError
from lightning_lance.format.metadata import CommitMetadata, commit_from

EMPTY = CommitMetadata("fingerprint", {}, {}, "shards", "<eos>", 0, 256)


class Row(NamedTuple):
    """A row of a shard: a document, a row that the screening skips, or a row that the source filters."""

    kind: str
    text: int
    tokens: int
    language: str
    repo: str
    crlf: bool


Corpus = Sequence[Sequence[Row]]

rows = st.builds(
    Row,
    st.sampled_from(["document", "document", "document", "null", "empty", "hidden"]),
    st.integers(0, 12),
    st.integers(1, 5),
    st.sampled_from(["Python", "Rust"]),
    st.sampled_from(["r1", "r2", "r3"]),
    st.booleans(),
)
corpora = st.lists(st.lists(rows, min_size=1, max_size=8), min_size=1, max_size=4)
budgets = st.builds(Budget, st.none() | st.integers(1, 25), st.none() | st.integers(1, 60))
rules = st.lists(
    st.sampled_from([{"repo": "r1"}, {"language": "Rust"}, {"repo": "r2", "language": "Python"}, {"id": "0:1"}]),
    unique_by=repr,
    max_size=3,
)


@dataclass(frozen=True)
class Batching:
    """Where results end within a shard, whether the last one ends the shard, and where duplicates are found."""

    size: Sequence[int] = (1,)
    ends_shard: bool = True
    ask_ahead: bool = False

    def ends(self, first: int, last: int) -> Iterator[int]:
        for i in range(last):
            first += self.size[i % len(self.size)]
            if first >= last:
                break
            yield first
        yield last


batchings = st.builds(Batching, st.lists(st.integers(1, 5), min_size=1, max_size=5), st.booleans(), st.booleans())


def result_of(corpus: Corpus, shard: int, low: int, high: int, hashed: bool) -> UnitResult:
    """Return the rows from `low` to `high` of a shard as the result of a unit."""
    found = [(row, made) for row, made in enumerate(corpus[shard]) if low <= row < high and made.kind == "document"]
    made = [made for _, made in found]
    table = {
        "language": pa.array([row.language for row in made], pa.string()),
        "repo": pa.array([row.repo for row in made], pa.string()),
        "id": pa.array([f"{shard}:{row}" for row, _ in found], pa.string()),
    }
    return UnitResult(
        shard,
        rows=np.array([row for row, _ in found], np.int64),
        num_tokens=np.array([row.tokens for row in made], np.int64),
        text_bytes=np.array([10 + row.text for row in made], np.int64),
        documents=pa.table(table),
        noted={"crlf": np.array([row.crlf for row in made], bool)},
        skipped={
            why: np.array([row for row in range(low, high) if corpus[shard][row].kind == why], np.int64)
            for why in ("null", "empty")
        },
        next_row=high,
        hashes=np.array([row.text for row in made], np.uint64) if hashed else None,
    )


def without(result: UnitResult, duplicate: np.ndarray) -> UnitResult:
    """Return the result of a build that removed duplicates before encoding."""
    return replace(
        result,
        rows=result.rows[~duplicate],
        num_tokens=result.num_tokens[~duplicate],
        text_bytes=result.text_bytes[~duplicate],
        documents=result.documents.filter(pa.array(~duplicate)),
        noted={what: mask[~duplicate] for what, mask in result.noted.items()},
        skipped={**result.skipped, "duplicate": result.rows[duplicate]},
        hashes=None,
    )


@dataclass(frozen=True)
class Stored:
    """The committed state: the metadata, the documents by id, and the hashes for de-duplication."""

    commit: CommitMetadata = EMPTY
    ids: tuple[str, ...] = ()
    hashes: tuple[int, ...] = field(default=())


def built(
    corpus: Corpus,
    batching: Batching,
    budget: Budget,
    dedup: bool,
    before: Stored = Stored(),
    kill_after: int | None = None,
) -> Stored:
    """Continue from a commit. If killed after some results, return the last commit of that moment."""
    names = [f"shard {i}" for i in range(len(corpus))]
    known = [np.array(before.hashes, np.uint64)] if dedup else None
    ledger = Ledger(before.commit, budget, names, hashes=known)
    if ledger.met:
        return before
    unit = ledger.next_unit()
    results: list[UnitResult] = []
    for shard in range(unit.shard, len(corpus)):
        low = unit.row if shard == unit.shard else 0
        for high in batching.ends(low, len(corpus[shard])):
            results.append(result_of(corpus, shard, low, high, dedup))
            low = high
        results[-1] = replace(results[-1], ends_shard=batching.ends_shard)
    if batching.ask_ahead and ledger.seen is not None:
        results = [without(result, ~ledger.seen.add(result.hashes)) for result in results]
    ids, hashes = [*before.ids], [*before.hashes]
    for i, result in enumerate(results[:kill_after]):
        met = ledger.met
        folded = ledger.fold(result)
        assert not (met and (folded.stored.any() or folded.forgotten.any()))
        assert not (folded.stored & folded.forgotten).any()
        ids += result.documents.column("id").filter(pa.array(folded.stored)).to_pylist()
        taken = result.rows[folded.stored | folded.forgotten].tolist()
        hashes += [corpus[result.shard][row].text for row in taken]
        last = i + 1 == len(results) or results[i + 1].shard > result.shard
        if last and not batching.ends_shard and not ledger.met:
            ledger.end_shard()
    if ledger.commit.shard == len(corpus):
        ledger.end_source()
    assert commit_from(json.loads(json.dumps(asdict(ledger.commit)))) == ledger.commit
    return Stored(ledger.commit, tuple(ids), tuple(hashes))


def by_hand(corpus: Corpus, budget: Budget, forget: Sequence[dict[str, str]], dedup: bool) -> Stored:
    """The definition: one document after the other."""
    counts = {name: Counter[str]() for name in ("skipped", "noted", "languages")}
    forgotten = [{"rule": rule, "documents": 0, "tokens": 0, "languages": {}} for rule in forget]
    files: dict[str, int] = {}
    commit = replace(EMPTY, files=files, forgotten=forgotten)
    ids: list[str] = []
    hashes: list[int] = []
    for shard, made in enumerate(corpus):
        for number, row in enumerate(made):
            commit = replace(commit, shard=shard, row=number + 1)
            files[f"shard {shard}"] = number + 1
            if row.kind in ("null", "empty"):
                counts["skipped"][row.kind] += 1
            elif row.kind == "document" and dedup and row.text in hashes:
                counts["skipped"]["duplicate"] += 1
            elif row.kind == "document":
                hashes.append(row.text)
                counts["languages"][row.language] += 1
                counts["noted"]["crlf"] += row.crlf
                commit = replace(
                    commit,
                    documents=commit.documents + 1,
                    tokens=commit.tokens + row.tokens,
                    text_bytes=commit.text_bytes + 10 + row.text,
                )
                words = {"id": f"{shard}:{number}", "language": row.language, "repo": row.repo}
                matching = [entry for entry in forgotten if entry["rule"].items() <= words.items()]
                if not matching:
                    ids.append(words["id"])
                else:
                    matching[0]["documents"] += 1
                    matching[0]["tokens"] += row.tokens
                    languages = matching[0]["languages"]
                    languages[row.language] = languages.get(row.language, 0) + 1
            if budget.met(commit):
                break
        if budget.met(commit):
            break
        commit = replace(commit, shard=shard + 1, row=0, exhausted=shard + 1 == len(corpus))
    counted = {name: dict(+counter) for name, counter in counts.items()}
    return Stored(replace(commit, **counted), tuple(ids), tuple(hashes))


def ruled(forget: Sequence[dict[str, str]]) -> Stored:
    entries: list[dict[str, Any]] = [{"rule": rule, "documents": 0, "tokens": 0, "languages": {}} for rule in forget]
    return Stored(replace(EMPTY, forgotten=entries))


@given(corpora, batchings, budgets, rules, st.booleans())
def test_results_of_any_size_give_what_one_document_after_the_other_gives(
    corpus: Corpus, batching: Batching, budget: Budget, forget: Sequence[dict[str, str]], dedup: bool
):
    assert built(corpus, batching, budget, dedup, ruled(forget)) == by_hand(corpus, budget, forget, dedup)


@given(corpora, batchings, budgets, st.booleans())
def test_a_budget_is_kept_to_the_document(corpus: Corpus, batching: Batching, budget: Budget, dedup: bool):
    whole, stored = (built(corpus, batching, most, dedup) for most in (Budget(), budget))
    tokens = [corpus[int(shard)][int(row)].tokens for shard, row in (entry.split(":") for entry in whole.ids)]
    count = len(stored.ids)
    assert stored.ids == whole.ids[:count]
    assert stored.commit.documents == count
    assert stored.commit.tokens == sum(tokens[:count])
    if budget.met(stored.commit) and not stored.commit.exhausted:
        # The last document reached the budget, and the one before did not.
        assert budget.max_documents is None or count <= budget.max_documents
        assert budget.max_tokens is None or sum(tokens[: count - 1]) < budget.max_tokens
    else:
        assert count == len(tokens)


@given(corpora, batchings)
def test_of_equal_texts_the_first_is_stored_whatever_the_units(corpus: Corpus, batching: Batching):
    seen = set[int]()
    expected = []
    for shard, made in enumerate(corpus):
        for number, row in enumerate(made):
            if row.kind == "document" and row.text not in seen:
                seen.add(row.text)
                expected.append(f"{shard}:{number}")
    stored = built(corpus, batching, Budget(), dedup=True)
    assert stored.ids == tuple(expected)
    everything = built(corpus, batching, Budget(), dedup=False)
    assert stored.commit.documents + stored.commit.skipped.get("duplicate", 0) == everything.commit.documents


@given(corpora, batchings, st.sampled_from(["r1", "r2"]))
def test_to_forget_is_to_filter_first(corpus: Corpus, batching: Batching, repo: str):
    filtered = [[row._replace(kind="hidden") if row.repo == repo else row for row in made] for made in corpus]
    stored = built(corpus, batching, Budget(), False, ruled([{"repo": repo}]))
    expected = built(filtered, batching, Budget(), False)
    assert stored.ids == expected.ids
    assert stored.commit.stored_documents == expected.commit.documents
    assert stored.commit.stored_tokens == expected.commit.tokens
    assert stored.commit.stored_languages == expected.commit.languages


@given(corpora, st.lists(batchings, min_size=2, max_size=5), budgets, rules, st.booleans(), st.data())
def test_killed_builds_end_with_what_one_build_gives(
    corpus: Corpus,
    attempts: Sequence[Batching],
    budget: Budget,
    forget: Sequence[dict[str, str]],
    dedup: bool,
    data: st.DataObject,
):
    """Each attempt continues from the last commit, in results of its own sizes; results that were not folded are lost."""
    stored = ruled(forget)
    for batching in attempts[:-1]:
        stored = built(corpus, batching, budget, dedup, stored, kill_after=data.draw(st.integers(0, 6)))
    stored = built(corpus, attempts[-1], budget, dedup, stored)
    assert stored == built(corpus, Batching(), budget, dedup, ruled(forget))


@given(corpora, batchings, st.lists(st.integers(1, 25), min_size=1, max_size=4), rules, st.booleans())
def test_to_grow_is_to_build_with_the_larger_budget(
    corpus: Corpus, batching: Batching, documents: Sequence[int], forget: Sequence[dict[str, str]], dedup: bool
):
    stored = ruled(forget)
    for most in sorted(documents):
        stored = built(corpus, batching, Budget(most), dedup, stored)
    assert stored == built(corpus, Batching(), Budget(max(documents)), dedup, ruled(forget))


DOCUMENT = Row("document", 1, 3, "Python", "r1", False)


def test_a_result_that_does_not_follow_the_cursor_is_refused():
    corpus = [[DOCUMENT] * 4, [DOCUMENT]]
    ledger = Ledger(EMPTY, Budget(), ["a", "b"])
    with pytest.raises(SourceError, match="gave row 0 of shard 1, expected row 0 of shard 0"):
        ledger.fold(result_of(corpus, 1, 0, 1, False))
    ledger.fold(result_of(corpus, 0, 0, 2, False))
    with pytest.raises(SourceError, match="gave row 1 of shard 0, expected row 2 of shard 0"):
        ledger.fold(result_of(corpus, 0, 1, 4, False))
    assert (ledger.commit.documents, ledger.commit.row) == (2, 2)


def test_the_next_unit_begins_at_the_cursor_and_knows_what_is_left_of_the_budget():
    ledger = Ledger(EMPTY, Budget(10, 100), ["a"])
    assert ledger.next_unit() == Unit(0, 0, None, 10, 100)
    ledger.fold(result_of([[DOCUMENT] * 4], 0, 0, 2, False))
    assert ledger.next_unit() == Unit(0, 2, None, 8, 94)
    assert Ledger(EMPTY, Budget(), ["a"]).next_unit() == Unit(0)


def test_the_rest_of_a_bad_shard_is_left_out():
    ledger = Ledger(EMPTY, Budget(), ["a", "b"])
    bad = {"shard": "a", "row": 2, "why": "damaged"}
    ledger.fold(replace(result_of([[DOCUMENT] * 4], 0, 0, 2, False), ends_shard=True, bad_shard=bad))
    assert (ledger.commit.shard, ledger.commit.row, ledger.commit.bad_shards) == (1, 0, [bad])
    ledger.end_shard()
    assert (ledger.commit.shard, ledger.commit.bad_shards) == (2, [bad])


def test_a_source_without_a_wanted_language_is_not_exhausted():
    ledger = Ledger(EMPTY, Budget(), ["a"], ["Python", "Rust"])
    assert ledger.missing == ["Python", "Rust"]
    ledger.fold(result_of([[DOCUMENT]], 0, 0, 1, False))
    assert ledger.missing == ["Rust"]
    ledger.end_source()
    assert not ledger.commit.exhausted
    assert not ledger.met


def test_the_last_twenty_shards_are_listed():
    corpus = [[DOCUMENT]] * 25
    stored = built(corpus, Batching(), Budget(), dedup=False)
    assert [*stored.commit.files] == [f"shard {i}" for i in range(5, 25)]


def test_units_and_results_are_plain_values():
    """They are sent to other processes and back."""
    unit = Unit(3, 10, 20, max_tokens=5)
    assert pickle.loads(pickle.dumps(unit)) == unit
    result = result_of([[DOCUMENT] * 4], 0, 0, 3, True)
    copy = pickle.loads(pickle.dumps(result))
    ledgers = [Ledger(EMPTY, Budget(), ["a"], hashes=[]) for _ in range(2)]
    for ledger, each in zip(ledgers, (result, copy), strict=True):
        assert ledger.fold(each).stored.tolist() == [True, False, False]
    assert ledgers[0].commit == ledgers[1].commit
