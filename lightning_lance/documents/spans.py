"""The parts of documents that are trained on: pairs of character offsets, from a column of the source.

A document has a list of pairs [begin, end), in characters (Unicode code points) of its text, as Python counts them. Null in
place of a list means the whole document; an empty list, nothing of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.columns import UnfitShard, is_list, is_string, simple, simple_type
from lightning_lance.errors import ConfigError

#: The column of a document batch. No column of a source has this name.
LOSS_SPANS = "//loss_spans"

# Names of fields. A length in place of an end would be taken for one.
_BEGIN = re.compile("begin|start", re.IGNORECASE)
_END = re.compile("end|stop", re.IGNORECASE)
_LENGTH = re.compile("len|size|count|width", re.IGNORECASE)
_FLAT = pa.large_list(pa.int64())
_EXPECTED = "lists of pairs of character offsets, such as [[0, 12], [40, 57]]"


def check_spans(kind: pa.DataType, name: str, where: str) -> None:
    """Raise UnfitShard if a column of this type, which `where` has by this name, cannot hold spans."""
    known = simple_type(kind)
    if not (is_string(known) or pa.types.is_null(known) or (is_list(known) and _is_pair(known.value_type))):
        raise UnfitShard(
            f"Column {name!r} of {where} holds {kind}, expected {_EXPECTED}: name another by source.loss_mask_column",
            of_text=False,
        )


def _is_pair(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    if pa.types.is_struct(kind):
        for field in kind:
            if not pa.types.is_integer(field.type):
                return False
        return _sides(kind.names) is not None
    return is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type))


def _sides(names: Sequence[str]) -> tuple[int, int] | None:
    """Return which of the fields of an object are the begin and the end of a span; None if they are not.

    Fields have no order in JSON, and some programs sort them, so names that say what they are count more than their order.
    """
    if len(names) != 2 or any(map(_LENGTH.search, names)):
        return None
    if _END.search(names[0]) and _BEGIN.search(names[1]):
        return 1, 0
    return 0, 1


def flat_spans(values: pa.Array, name: str, where: str) -> pa.Array:
    """Return spans as lists of whole numbers, the begins and ends in turn: large_list<int64>, null where there are none.

    Args:
        values: (n,) lists of pairs: lists of two, or structs of two numbers; or such lists written as text.
        name: The column, for messages.
        where: The shard, for messages.

    Raises:
        UnfitShard: If a value is anything else.
    """
    check_spans(values.type, name, where)
    values = simple(values)
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), _FLAT)
    if is_string(values.type):
        return pa.array([_parsed(text, name, where) for text in values.to_pylist()], _FLAT)
    pairs = values.flatten()
    counts = np.asarray(pc.fill_null(pc.list_value_length(values), 0)).astype(np.int64)
    if pa.types.is_struct(pairs.type):
        begin, end = _sides(pairs.type.names) or (0, 1)
        numbers = np.empty(2 * len(pairs), np.int64)
        numbers[0::2] = pc.fill_null(pairs.field(begin), -1)
        numbers[1::2] = pc.fill_null(pairs.field(end), -1)
        is_odd = bool(pairs.null_count)
    else:
        is_odd = bool(pairs.null_count) or bool((np.asarray(pc.list_value_length(pairs)) != 2).any())
        numbers = np.asarray(pc.fill_null(pairs.flatten().cast(pa.int64()), -1))
    if is_odd:
        raise UnfitShard(f"Column {name!r} of {where} has a span that is no pair, expected {_EXPECTED}", of_text=False)
    borders = pa.array(np.append(0, np.cumsum(2 * counts)))
    return pa.LargeListArray.from_arrays(borders, pa.array(numbers), mask=values.is_null())


def _parsed(text: str | None, name: str, where: str) -> list[int] | None:
    """Return the begins and ends that a text spells, as JSON or as Python writes them."""
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except ValueError:
        value = _literal(text)
    if value is None:
        return None
    flat = []
    for pair in value if isinstance(value, list) else [()]:
        sides = pair
        if isinstance(pair, dict):
            order = _sides([*map(str, pair)]) or ()
            values = list(pair.values())
            sides = [values[side] for side in order]
        if not isinstance(sides, list) or list(map(type, sides)) != [int, int]:
            raise UnfitShard(f"Column {name!r} of {where} has {text[:60]!r}, expected {_EXPECTED}", of_text=False)
        flat += sides
    return flat


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()


def spans_of(documents: pa.Table, chars: np.ndarray, shift: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the spans of documents, in the order of the documents; null is the whole of one.

    Args:
        documents: n rows of a document batch, with `LOSS_SPANS`.
        chars: (n,) characters of their texts.
        shift: (n,) characters that were removed before them.
        where: The shard, for messages.

    Returns:
        (m,) the number of each span's document, and (m, 2) the characters from which and up to which it goes.

    Raises:
        ConfigError: If a span is not within its text.
    """
    lists = documents.column(LOSS_SPANS)
    lists = lists.combine_chunks() if lists.num_chunks != 1 else lists.chunk(0)
    whole = np.flatnonzero(np.asarray(lists.is_null()))
    counts = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64) // 2
    of = np.repeat(np.arange(len(lists)), counts)
    pairs = np.asarray(lists.flatten()).reshape(-1, 2)
    wrong = (pairs[:, 0] < 0) | (pairs[:, 1] < pairs[:, 0]) | (pairs[:, 1] > (chars + shift)[of])
    if wrong.any():
        place = int(wrong.argmax())
        row = int(documents.column("row")[int(of[place])].as_py())
        raise ConfigError(
            f"Document {row:,} of {where} has the span {pairs[place].tolist()} in a text of "
            f"{int((chars + shift)[of[place]]):,} characters: expected [begin, end] within it, counted in characters."
        )
    pairs = np.maximum(pairs - shift[of][:, None], 0)
    everything = np.stack([np.zeros(len(whole), np.int64), chars[whole]], axis=1)
    of, pairs = np.append(of, whole), np.concatenate([pairs, everything])
    order = np.argsort(of, kind="stable")
    return of[order], pairs[order]
