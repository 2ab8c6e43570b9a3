"""From the columns of a source to document batches, the one shape that all build steps share.

A document batch is an Arrow table with these columns:

    row        int64, the row's position among those of its shard that pass the row filter
    text       large_string, null if missing
    language   string
    ...        string, one for each further word of `columns`: `repo`, `path`, `license`

All strings are UTF-8. Five more columns exist only if needed:

    split      string, `train` or `val`, if the source has its own validation documents
    not_utf8   bool, the text is null because it was not UTF-8
    not_json   bool, the whole row is null because the line was not a JSON object
    bom        bool, a byte order mark was removed from the text
    REPLACED   bool, another string of the row was not UTF-8 and was repaired
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
    names_in,
    steps_to,
    text_bytes,
    valid_strings,
    without_rest,
)
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError, described
from lightning_lance.messages.formatting import suggestion


def select_columns(table: pa.Table, columns: Mapping[str, str], where: str) -> dict[str, pa.Array]:
    """Return the columns of a source by our words for them.

    Args:
        table: Rows of the source.
        columns: Our word to the name of the source's column, or of a field in it (see columns.py); must have `text`.
        where: Name of the shard, for messages.

    Returns:
        Our word to its column: the text as large_string (one batch may hold more than 2 GiB), the others as string, null if
        the source has no such column; `not_utf8` (bool) if some texts are null because they are not UTF-8; and `REPLACED`
        (bool) if invalid UTF-8 was replaced in other columns.

    Raises:
        UnfitShard: If the text column is missing, or is not text.
    """
    picked: dict[str, pa.Array] = {}
    replaced = np.zeros(len(table), bool)
    for word, name in columns.items():
        if word == "text":
            check_text(table.schema, name, where)
        column = column_at(table, name)
        if column is None:
            # Shards of one corpus may have different columns.
            picked[word] = pa.nulls(len(table), pa.string())
        elif word == "text":
            # Some corpora hold strings that are not UTF-8, so the bytes are decoded again.
            picked[word], invalid = decode_utf8(text_bytes(column))
            if invalid is not None:
                picked["not_utf8"] = pa.array(invalid)
        else:
            picked[word], repaired = in_words(column)
            if repaired is not None:
                replaced |= repaired
    if REPLACED in table.column_names:
        replaced |= np.asarray(pc.fill_null(table.column(REPLACED), False))
    if replaced.any():
        picked[REPLACED] = pa.array(replaced)
    return picked


def check_text(schema: pa.Schema, name: str, where: str) -> None:
    """Raise UnfitShard if the text column of a shard, which `where` names, is missing or does not hold text."""
    steps = steps_to(schema, name)
    if steps is None:
        raise UnfitShard(
            f"{begin(where)} has no column {name!r}{suggestion(name, names_in(schema))}, which source.columns names for "
            f"'text': it has {listed(schema, [name])}"
        )
    kind = column_type(schema, steps)
    if not is_text(kind):
        raise UnfitShard(
            f"Column {name!r} of {where} cannot be read as 'text': it holds {kind}, expected strings or bytes "
            "(messages and other lists are to be made one text each first)"
        )


_BOM = "\ufeff"
# Key in the metadata of a batch's schema; see `next_row`.
_COVERED = b"lightning_lance_covered"

# Fields that the package itself writes.
_RESERVED = {"row", "id", "offset", "hash", "language", "tokens", "split", "not_utf8", "not_json", "bom"}


def validate_columns(columns: Mapping[str, str], where: str) -> None:
    """Check `source.columns`, our words to the names of columns; `where` names the source.

    Raises:
        ConfigError: If it is not a mapping, `text` is missing, or a word is reserved.
    """
    if not isinstance(columns, Mapping):
        raise ConfigError(
            f"source.columns of {where} is {described(columns)}: expected a mapping of our words to its columns, such as "
            "{text: content}."
        )
    if "text" not in columns:
        turned = _turned(columns)
        if turned is not None:
            raise ConfigError(
                f"source.columns of {where} is {in_yaml(columns)}, which has the source's columns first: our words come first, "
                f"as in {in_yaml(turned)}."
            )
        raise ConfigError(
            f"source.columns of {where} names no column for 'text': got {dict(columns)}, expected {{'text': NAME, ...}}."
        )
    for word, column in columns.items():
        if not isinstance(word, str) or not word or "\0" in word or not is_unicode(word):
            raise ConfigError(f"source.columns of {where} has the word {word!r}: expected text, such as license.")
        if not isinstance(column, str) or not column:
            raise ConfigError(
                f"source.columns of {where} has {described(column)} for {word!r}: expected the name of a column, or remove "
                "the word."
            )
    for word in sorted(_RESERVED & {*columns}):
        cure = f"choose another, such as 'source_{word}'"
        if word == "language":
            cure = f"set source.language_column={columns['language']} to store it as the language, or {cure}"
        raise ConfigError(f"source.columns of {where} uses the reserved word {word!r}: {cure}.")


def _turned(columns: Mapping[str, str]) -> dict[str, str] | None:
    """Return `source.columns` the other way round, if that has a column for `text`; None if not."""
    turned: dict[str, str] = {}
    for word, column in columns.items():
        if not isinstance(column, str):
            return None
        turned[column] = word
    if "text" in turned and len(turned) == len(columns):
        return turned
    return None


def in_yaml(columns: Mapping[str, str]) -> str:
    """Return `source.columns` as it is written on the command line: `{text: content}`."""
    entries = [f"{word}: {column}" for word, column in columns.items()]
    return f"{{{', '.join(entries)}}}"


def decode_utf8(raw: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Return bytes as text. Copies nothing if all of them are UTF-8.

    Args:
        raw: (n,) large_binary.

    Returns:
        The texts as large_string, null if not UTF-8; and (n,) bool, true for those, or None if all are UTF-8.
    """
    raw = without_rest(raw)
    try:
        return raw.cast(pa.large_string()), None
    except pa.ArrowInvalid:
        valid = np.empty(len(raw), bool)
        for i in range(len(raw)):
            valid[i] = _is_utf8(raw.slice(i, 1))
        texts = raw.take(pa.array(np.arange(len(raw)), mask=~valid))
        return texts.cast(pa.large_string()), ~valid


def _is_utf8(one: pa.Array) -> bool:
    try:
        one.cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def document_batch(
    columns: Mapping[str, pa.Array], languages: pa.Array, first_row: int, wanted: Sequence[str], text_filter: TextFilter
) -> pa.Table:
    """Return the document batch of consecutive rows, without unwanted ones.

    Args:
        columns: The result of `select_columns`, and `not_json`: such rows are kept, because they are counted later.
        languages: One language per row.
        first_row: Position of the first row in its shard.
        wanted: Languages to keep; empty keeps all.
        text_filter: Texts to keep.

    Returns:
        The batch; see `next_row` for the rows that it covers.
    """
    end = first_row + len(languages)
    texts = columns["text"]
    bom = pc.fill_null(pc.starts_with(texts, _BOM), False)
    if pc.any(bom).as_py():
        # The mark is part of the encoding, not of the text: a model would learn to write it, and equal texts would differ.
        columns = {**columns, "bom": bom}
        texts = pc.if_else(bom, pc.utf8_slice_codeunits(texts, 1), texts)
    others = _valid({"language": languages.cast(pa.string()), **columns}, len(languages))
    table = pa.table({"row": np.arange(first_row, end, dtype=np.int64), "text": texts, **others})
    keep = text_filter.keep(texts)
    if wanted:
        in_language = np.asarray(pc.is_in(others["language"], value_set=pa.array(list(wanted), pa.string())))
        if "not_json" in columns:
            in_language = in_language | np.asarray(columns["not_json"])
        keep &= in_language
    if not keep.all():
        table = table.filter(pa.array(keep))
    return table.replace_schema_metadata({_COVERED: str(end)})


def _valid(columns: Mapping[str, pa.Array], num_rows: int) -> dict[str, pa.Array]:
    """Return the columns other than the text with valid UTF-8: Lance writes other strings to pages that it cannot read."""
    made: dict[str, pa.Array] = {}
    replaced = np.zeros(num_rows, bool)
    for word, column in columns.items():
        if word == REPLACED:
            replaced |= np.asarray(column)
        elif word != "text" and pa.types.is_string(column.type):
            made[word], repaired = valid_strings(column)
            if repaired is not None:
                replaced |= repaired
        elif word != "text":
            made[word] = column
    if replaced.any():
        made[REPLACED] = pa.array(replaced)
    return made


def next_row(batch: pa.Table) -> int | None:
    """Return the row after the last one that a document batch covers, unwanted rows included; None if it is not recorded.

    The cursor of a source moves by this, even if no document is wanted for hours.
    """
    end = (batch.schema.metadata or {}).get(_COVERED)
    if end is None:
        return None
    return int(end)


def before_row(batch: pa.Table, end: int) -> pa.Table:
    """Return the rows of a document batch before a row, `end`, which it covers, or all if it covers only earlier ones."""
    rows = np.asarray(batch.column("row"))
    covered = next_row(batch)
    last = int(rows[-1]) + 1 if len(rows) else 0
    if max(covered or 0, last) <= end:
        return batch
    return batch.slice(0, int(np.searchsorted(rows, end))).replace_schema_metadata({_COVERED: str(end)})


def split_by_bytes(batch: pa.Table, max_bytes: int) -> list[pa.Table]:
    """Return a document batch in pieces of about `max_bytes` of text, so that long texts do not fill the memory."""
    sizes = np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), 0), dtype=np.int64)
    piece = np.cumsum(sizes) // max_bytes
    borders = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(batch)]
    # Only the last piece covers all rows.
    bare = batch.replace_schema_metadata(None)
    pieces: list[pa.Table] = []
    for low, high in pairwise(borders[:-1]):
        pieces.append(bare.slice(low, high - low))
    pieces.append(batch.slice(borders[-2]))
    return pieces
