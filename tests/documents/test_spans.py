from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_lance.documents.columns import UnfitShard
from lightning_lance.documents.spans import LOSS_SPANS, flat_spans, spans_of
from lightning_lance.errors import ConfigError

GIVEN = [[[0, 2], [3, 7]], None, [], [[1, 1]]]
FLAT = [[0, 2, 3, 7], None, [], [1, 1]]
AS_STRUCTS = [None if row is None else [{"begin": low, "end": high} for low, high in row] for row in GIVEN]
SORTED = [None if row is None else [{"end": high, "start": low} for low, high in row] for row in GIVEN]
STRUCT = pa.struct([("begin", pa.int32()), ("end", pa.int32())])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(GIVEN, pa.list_(pa.list_(pa.int32()))),
        pa.array(GIVEN, pa.large_list(pa.list_(pa.uint16(), 2))),
        pa.array([[[9, 9]], *GIVEN], pa.list_(pa.list_(pa.int64()))).slice(1),
        pa.array(AS_STRUCTS, pa.list_(STRUCT)),
        pa.array(["[[0,2],[3,7]]", None, "[]", "[[1, 1]]"]),
        pa.array([None if row is None else str(row) for row in AS_STRUCTS], pa.large_string()),
        pa.array(["[[0,2],[3,7]]", "null", "[]", "[[1, 1]]"]),
        pa.array(["[[0,2],[3,7]]", None, "[]", "[[1, 1]]"]).dictionary_encode(),
        pa.array(["[[0,2],[3,7]]", None, "[]", "[[1, 1]]"], pa.string_view()),
        # Some programs sort the names of fields.
        pa.array(SORTED, pa.list_(pa.struct([("end", pa.int64()), ("start", pa.int64())]))),
        pa.array([None if row is None else json.dumps(row) for row in SORTED]),
    ],
    ids=lambda values: str(values.type),
)
def test_spans_are_read_however_they_are_written(values: pa.Array):
    assert flat_spans(values, "spans", "shard 'x'").to_pylist() == FLAT


def test_a_column_of_nulls_means_whole_documents():
    assert flat_spans(pa.nulls(2), "spans", "x").to_pylist() == [None, None]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1, 2]]),
        pa.array([1]),
        pa.array([[["a", "b"]]]),
        pa.array([[[0, 1, 2]]]),
        pa.array([[None]], pa.list_(pa.list_(pa.int64()))),
        pa.array(["0-2"]),
        pa.array(["[[0, 2.5]]"]),
        pa.array(["[[0, true]]"]),
        pa.array(["{}"]),
        pa.array([[{"a": 1, "b": 2, "c": 3}]]),
        # As ends, lengths would be other spans.
        pa.array([[{"start": 3, "length": 10}]]),
        pa.array(['[{"start": 3, "length": 10}]']),
    ],
    ids=str,
)
def test_what_is_no_list_of_pairs_is_refused(values: pa.Array):
    with pytest.raises(
        UnfitShard, match=r"Column 'spans' of x .*expected lists of pairs of character offsets, such as"
    ):
        flat_spans(values, "spans", "x")


def documents(spans: list[Any]) -> pa.Table:
    return pa.table({"row": np.arange(5, 5 + len(spans)), LOSS_SPANS: pa.array(spans, pa.large_list(pa.int64()))})


def test_spans_come_by_document_and_null_is_all_of_one():
    of, spans = spans_of(documents(FLAT), np.asarray([9, 4, 3, 2]), np.asarray([1, 0, 0, 0]), "x")
    assert of.tolist() == [0, 0, 1, 3]
    # A byte order mark that was removed counted too.
    assert spans.tolist() == [[0, 1], [2, 6], [0, 4], [1, 1]]


@pytest.mark.parametrize("span", [[0, 10], [3, 2], [-1, 2]])
def test_spans_outside_their_texts_are_refused_with_the_place(span: list[int]):
    message = r"Document 6 of shard 'x' has the span .* in a text of 9 characters: expected \[begin, end\] within it"
    with pytest.raises(ConfigError, match=message):
        spans_of(documents([[], span]), np.asarray([3, 9]), np.zeros(2, np.int64), "shard 'x'")
