import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build import pipeline
from lightning_lance.build.pipeline import encoded_batches
from lightning_lance.sources.source import OpenedSource
from lightning_lance.tokenization.gigatoken import ENCODERS
from lightning_lance.tokenization.tokenizer import byte_tokenizer
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

TEXTS = ["one", "", None, "four", "five", "six", None, "eight", "nine", "ten", "eleven"]
TOKENIZER = byte_tokenizer()


@given(shard=st.integers(0, 3), row=st.integers(0, 4), limit=st.none() | st.integers(0, 12))
def test_the_texts_from_the_cursor_on_come_in_order_up_to_the_limit(shard: int, row: int, limit: int | None):
    source = ListSource(documents(*TEXTS))
    made: list[tuple[int, str | None]] = []
    for place, batch in encoded_batches(source, TOKENIZER, shard, row, limit):
        if batch is None:
            made.append((place, None))
            continue
        ids, offsets = batch.encoded
        assert len(batch.sizes) == len(batch.batch)
        assert len(batch.documents) == len(batch.wanted) == len(offsets) - 1
        made += [(place, bytes(ids[low:high].tolist()).decode()) for low, high in pairwise(offsets)]
    expected: list[tuple[int, str | None]] = []
    for place in range(shard, 3):
        texts = TEXTS[place * 4 :][:4][row if place == shard else 0 :]
        kept = [text for text in texts if text][: None if limit is None else limit - sum(1 for _, t in expected if t)]
        expected += [*((place, text) for text in kept), (place, None)]
    assert made == expected


@examples(20)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["Python", ""]))
def test_units_with_an_upper_bound_follow_each_other(limit: int, per_batch: int, language: str):
    """The result of a batch that the bound cuts names the first row of the next unit; skipped rows count once."""
    made = [document for text in TEXTS for document in (*documents(text), *documents("hidden", language="Rust"))]
    languages = (language,) if language else ()
    source = ListSource(tuple(made), per_shard=8, per_batch=per_batch, languages=languages)

    def results(shard: int, row: int, bound: int | None) -> Iterator[tuple[list[str], dict[str, int], int | None]]:
        """Return the documents of one unit, result by result, up to the one that reaches the bound."""
        for place, batch in encoded_batches(source, TOKENIZER, shard, row, bound):
            if place != shard or batch is None:
                return
            result = batch.result(shard)
            assert result.num_tokens.tolist() == (np.diff(batch.encoded.offsets) + 1).tolist()
            assert result.text_bytes.tolist() == [len(text) for text in batch.documents.column("text").to_pylist()]
            assert result.documents.column("id").to_pylist() == [f"{shard}:{row}" for row in result.rows]
            yield (
                result.documents.column("id").to_pylist(),
                {why: len(rows) for why, rows in result.skipped.items()},
                result.next_row,
            )
            if bound is not None:
                bound -= len(result.rows)
                if not bound:
                    return

    for shard in range(len(source.shards)):
        whole = [*results(shard, 0, None)]
        ids: list[str] = []
        skipped = Counter[str]()
        row, rows = 0, len(source.documents[shard * 8 :][:8])
        while row < rows:
            before = row
            for some, why, behind in results(shard, row, limit):
                ids += some
                skipped.update(why)
                assert behind is not None
                row = behind
            assert row > before
        assert ids == [name for some, _, _ in whole for name in some]
        assert +skipped == +sum((Counter(why) for _, why, _ in whole), Counter())


class Broken(ListSource):
    def read(self, shard: int, row: int):
        yield from super().read(shard, row)
        raise OSError("the disk is gone")


def test_an_error_of_the_source_is_raised_and_closing_ends_all_threads():
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        list(encoded_batches(Broken(documents(*TEXTS)), TOKENIZER, 0, 0))
    batches = encoded_batches(ListSource(documents(*TEXTS * 50)), TOKENIZER, 0, 0)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_only_few_batches_are_read_ahead():
    read: list[int] = []

    class Counted(ListSource):
        def read(self, shard: int, row: int):
            for batch in super().read(shard, row):
                read.append(shard)
                yield batch

        def open(self, pin: object = None) -> OpenedSource:
            return self

    batches = encoded_batches(Counted(documents(*["text"] * 300), per_shard=1000), TOKENIZER, 0, 0)
    _, first = next(batches)
    assert first is not None
    assert isinstance(first.batch, pa.Table)
    threading.Event().wait(0.3)
    # Encoded or waiting, and one more that releases the first; read ahead, and one being read.
    assert len(read) <= ENCODERS + pipeline._WAITING + pipeline._READ_AHEAD + 2
    batches.close()


def test_no_more_is_read_while_large_documents_are_under_way(monkeypatch: pytest.MonkeyPatch):
    """One at a time, if a single document exceeds the bound of text in flight; small ones after it still pass."""
    monkeypatch.setattr(pipeline, "_ROOM_BYTES", 1000)
    read: list[int] = []

    class Watched(ListSource):
        def read(self, shard: int, row: int):
            for batch in super().read(shard, row):
                read.append(len(read))
                yield batch

        def open(self, pin: object = None) -> OpenedSource:
            return self

    texts = [*["x" * 2000] * 4, *["y"] * 20]
    made = []
    for _, batch in encoded_batches(Watched(documents(*texts), per_shard=100, per_batch=1), TOKENIZER, 0, 0):
        if batch is not None:
            made += batch.documents.column("text").to_pylist()
            if len(made) <= 4:
                assert len(read) == len(made)
            del batch
    assert made == texts


def test_a_reader_that_waits_for_room_ends_when_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "_ROOM_BYTES", 10)
    before = threading.active_count()
    batches = encoded_batches(ListSource(documents(*["x" * 100] * 50)), TOKENIZER, 0, 0)
    next(batches)
    batches.close()
    assert threading.active_count() == before
