"""From the columns of a source to document batches: the one shape that the build side passes on.

A document batch is an Arrow table with `row` (int64, position among the rows that the source lets through in its shard),
`text` (large_string, null where there is none), `language` (string), and one string column for each further word of
`columns` (`repo`, `path`, `license`, ...). All strings are UTF-8. Five columns are there only where they are needed: `split`
(string, `train` or `val`) if the source has its own validation documents, and, bool, `not_utf8` (the text is null since it was
not UTF-8), `not_json` (all is null since the line was no JSON object), `bom` (a byte order mark was taken off its text) and
`REPLACED` (something of the other strings was not UTF-8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.columns import (
    REPLACED,
    UnfitShard,
    begin,
    column_at,
    column_type,
    in_words,
    is_text,
    is_unicode,
    listed,
    meant,
    names_in,
    steps_to,
    text_bytes,
    valid_strings,
    without_rest,
)
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError, described


def select_columns(table: pa.Table, columns: Mapping[str, str], where: str) -> dict[str, pa.Array]:
    """Pick the columns of a source by our words for them.

    Args:
        table: Rows as the source has them.
        columns: Our word to the name of the source's column, or of a field of it (see columns.py); must have `text`.
        where: The shard, in words, for the message.

    Returns:
        Our word to its column; texts as large_string (one batch may hold more than 2 GiB), the others as string, null where
        there is no such column; `not_utf8` (bool) if some texts are null since they are not UTF-8; and `REPLACED` (bool) if
        in others of their values something was replaced for that.

    Raises:
        UnfitShard: If there is no text, or it is no text.
    """
    picked: dict[str, pa.Array] = {}
    replaced = np.zeros(len(table), bool)
    for word, name in columns.items():
        if word == "text":
            check_text(table.schema, name, where)
        column = column_at(table, name)
        if column is None:
            # Shards of one corpus differ: what one of them does not know is null there.
            picked[word] = pa.nulls(len(table), pa.string())
        elif word == "text":
            # Some corpora hold strings that are not UTF-8: as bytes, they are looked at again.
            picked[word], invalid = decode_utf8(text_bytes(column))
            if invalid is not None:
                picked["not_utf8"] = pa.array(invalid)
        else:
            picked[word], odd = in_words(column)
            replaced |= False if odd is None else odd
    if REPLACED in table.column_names:
        replaced |= np.asarray(pc.fill_null(table.column(REPLACED), False))
    return {**picked, REPLACED: pa.array(replaced)} if replaced.any() else picked


def check_text(schema: pa.Schema, name: str, where: str) -> None:
    """Check that one of the columns is the text.

    Args:
        schema: Of the shard.
        name: Of the column that is meant to be the text.
        where: The shard, in words, for the message.

    Raises:
        UnfitShard: If there is none, or it holds another type.
    """
    steps = steps_to(schema, name)
    if steps is None:
        raise UnfitShard(
            f"{begin(where)} has no column {name!r}, which source.columns gives for 'text': {meant(name, names_in(schema))}"
            f"there are {listed(schema, [name])}"
        )
    kind = column_type(schema, steps)
    if not is_text(kind):
        raise UnfitShard(
            f"Column {name!r} of {where} cannot be read as 'text': it holds {kind}, expected strings or bytes"
        )


_BOM = "\ufeff"
# In the metadata of a batch's schema.
_COVERED = b"lightning_lance_covered"

# What the package itself writes beside the words of `columns`.
_RESERVED = {"row", "id", "offset", "hash", "language", "tokens", "split", "not_utf8", "not_json", "bom"}


def validate_columns(columns: Mapping[str, str], where: str) -> None:
    """Check the words for columns.

    Raises:
        ConfigError: If it is no mapping, `text` is missing, or a word is one that the store has already.
    """
    if not isinstance(columns, Mapping):
        raise ConfigError(
            f"source.columns of {where} is {described(columns)}: expected a mapping of our words to its columns, such as "
            "{text: content}."
        )
    if "text" not in columns:
        raise ConfigError(
            f"source.columns of {where} gives no column for 'text': got {dict(columns)}, expected {{'text': NAME, ...}}."
        )
    for word, column in columns.items():
        if not isinstance(word, str) or not word or "\0" in word or not is_unicode(word):
            raise ConfigError(f"source.columns of {where} has the word {word!r}: expected text, such as license.")
        if not isinstance(column, str) or not column:
            raise ConfigError(
                f"source.columns of {where} gives {described(column)} for {word!r}: expected the name of a column, or leave "
                "the word out."
            )
    if taken := sorted(_RESERVED & {*columns}):
        cure = f"choose another, such as 'source_{taken[0]}'"
        if taken[0] == "language":
            cure = f"give source.language_column={columns['language']}, from which the language comes, or {cure}"
        raise ConfigError(f"source.columns of {where} uses the word {taken[0]!r}, which the store has already: {cure}.")


def decode_utf8(raw: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Read bytes as UTF-8. Copies nothing where all of them are.

    Args:
        raw: (n,) large_binary.

    Returns:
        The texts as large_string, null for those that are not UTF-8, and (n,) bool, which those are; None if all are.
    """
    raw = without_rest(raw)
    try:
        return raw.cast(pa.large_string()), None
    except pa.ArrowInvalid:
        valid = np.fromiter((_is_utf8(raw.slice(i, 1)) for i in range(len(raw))), bool, len(raw))
        return raw.take(pa.array(np.arange(len(raw)), mask=~valid)).cast(pa.large_string()), ~valid


def _is_utf8(one: pa.Array) -> bool:
    try:
        one.cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def document_batch(
    columns: Mapping[str, pa.Array], languages: pa.Array, first_row: int, wanted: Sequence[str], text_filter: TextFilter
) -> pa.Table:
    """Make the document batch of some consecutive rows, without those that the user does not want.

    Args:
        columns: What `select_columns` gave, and `not_json`, of which nothing is known, so that it stays, to be counted.
        languages: One language per row.
        first_row: Position of the first row in its shard.
        wanted: Languages to keep; empty keeps all.
        text_filter: Texts to keep.

    Returns:
        The batch; see `next_row` for the rows that it stands for.
    """
    rows = np.arange(first_row, first_row + len(languages), dtype=np.int64)
    texts, bom = columns["text"], pc.fill_null(pc.starts_with(columns["text"], _BOM), False)
    if pc.any(bom).as_py():
        # It says how a file was written and is no part of the text: the model would learn to write it, the hashes would differ.
        columns = {**columns, "bom": bom}
        texts = pc.if_else(bom, pc.utf8_slice_codeunits(texts, 1), texts)
    strings, replaced = _valid({"language": languages.cast(pa.string()), **columns})
    table = pa.table({"row": rows, "text": texts, **strings})
    if replaced is not None:
        table = table.append_column(REPLACED, pa.array(replaced))
    keep = text_filter.keep(texts)
    if wanted:
        kept = np.asarray(pc.is_in(strings["language"], value_set=pa.array(list(wanted), pa.string())))
        keep &= kept | (np.asarray(columns["not_json"]) if "not_json" in columns else False)
    table = table if keep.all() else table.filter(pa.array(keep))
    return table.replace_schema_metadata({_COVERED: str(first_row + len(languages))})


def _valid(columns: Mapping[str, pa.Array]) -> tuple[dict[str, pa.Array], np.ndarray | None]:
    """Return the columns but for the text, all their strings UTF-8, and (n,) bool, where something was replaced for that.

    A string that is not UTF-8 would make Lance write pages that it cannot read.
    """
    made: dict[str, pa.Array] = {}
    marks = [np.asarray(columns[REPLACED])] if REPLACED in columns else []
    for word, column in columns.items():
        if word in ("text", REPLACED):
            continue
        made[word] = column
        if pa.types.is_string(column.type):
            made[word], odd = valid_strings(column)
            marks += [] if odd is None else [odd]
    return made, np.logical_or.reduce(marks) if marks else None


def next_row(batch: pa.Table) -> int | None:
    """Return the row after those that a document batch stands for, unwanted ones included; None if it does not say.

    A source may go on for hours without a document that is wanted: its cursor moves all the same.
    """
    end = (batch.schema.metadata or {}).get(_COVERED)
    return None if end is None else int(end)


def split_by_bytes(batch: pa.Table, max_bytes: int) -> list[pa.Table]:
    """Cut a document batch into pieces of about `max_bytes` of text, so that memory does not follow the longest texts."""
    sizes = np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), 0), dtype=np.int64)
    piece = np.cumsum(sizes) // max_bytes
    borders = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(batch)]
    pieces = [batch.slice(low, high - low) for low, high in pairwise(borders)]
    # Only the last one is behind all rows.
    return [*(piece.replace_schema_metadata(None) for piece in pieces[:-1]), pieces[-1]]
