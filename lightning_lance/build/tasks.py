"""The tasks of a cluster: plain functions of plain values, which know neither the engine nor the order of the source.

A task is done once its result is written beside the store; see `unit_results`. An attempt that dies leaves at most files of
its own name. So a task can run again, and two attempts at one unit can run at the same time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.build.ledger import Ledger
from lightning_lance.build.packing import Packer, pack_stored
from lightning_lance.build.pipeline import EncodedBatch, encoded_batches
from lightning_lance.build.plan import Budget
from lightning_lance.build.row_writer import RowWriter, forget_written
from lightning_lance.build.unit import Unit, UnitResult, joined
from lightning_lance.build.unit_results import Written, without_hashes, write_result
from lightning_lance.documents.batch import before_row, next_row
from lightning_lance.documents.dedup import text_hashes
from lightning_lance.documents.screening import LongDocuments, skip_reasons
from lightning_lance.errors import SourceError, StoreError
from lightning_lance.format.channels import channels_of
from lightning_lance.format.lance_io import PendingFragments, dataset_at, fragment_from, fragment_json, fragments_of
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.lance_names import UnitName
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.repacking import rewrite_fragments
from lightning_lance.readers.cuts import Cut
from lightning_lance.sources.source import Divisible, OpenedSource, ReadReport
from lightning_lance.tokenization.tokenizer import Tokenizer, token_dtype

# Bytes of text that a token has at most, on the average of any text that is worth training on.
_MOST_BYTES_PER_TOKEN = 8
# Warnings of one unit that the driver logs.
_MOST_REMARKS = 20
_RETRIES = "lightning_lance.readers.retry"


@dataclass(frozen=True)
class Work:
    """What all units of a build have in common.

    Attributes:
        location: The store.
        opened: The source.
        tokenizer: The tokenizer.
        commit: Metadata of the store; the forget rules of it apply.
        metadata: Names of the string columns that are kept with each document.
        dedup: Whether copies are left out.
        val_fraction: Share of the documents for validation.
        long_documents: How long documents are treated.
    """

    location: StoreLocation
    opened: OpenedSource
    tokenizer: Tokenizer
    commit: CommitMetadata
    metadata: Sequence[str]
    dedup: bool
    val_fraction: float
    long_documents: LongDocuments

    def packer(self) -> Packer:
        """Return a packer for rows of the store."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        return Packer(self.tokenizer.eos_id, dtype, self.metadata, self.dedup, channels_of(self.commit.recipe))


def key_of(work: Work, unit: Unit, decided: Decided | None = None) -> str:
    """Return a hash of all that decides the rows of a unit which was read to its end.

    Args:
        work: The work.
        unit: The unit.
        decided: Which of its documents are no copies; None without de-duplication.
    """
    kept = None if decided is None else xxhash.xxh3_64_hexdigest(decided.stored.tobytes())
    rules = [entry["rule"] for entry in work.commit.forgotten]
    parts = [work.commit.fingerprint, unit.shard, unit.row, unit.end, rules, kept]
    if decided is not None and decided.bad is not None:
        parts.append("bad")
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


class _Part:
    """The rows of a unit as a source that ends with them."""

    def __init__(self, opened: OpenedSource, unit: Unit) -> None:
        self._opened = opened
        self._unit = unit
        self._end = unit.end
        self.shards: Sequence[str] = opened.shards[: unit.shard + 1]
        self.pin: dict[str, Any] = {}
        self.num_bytes: int | None = None

    @property
    def trouble(self) -> ReadReport:
        return self._opened.trouble

    def present_languages(self) -> list[str]:
        return self._opened.present_languages()

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        if self._unit.cut is not None and isinstance(self._opened, Divisible):
            self._opened.begin_at(shard, self._unit.cut)
        for batch in self._opened.read(shard, row):
            if self._end is None:
                yield batch
                continue
            part = before_row(batch, self._end)
            if len(part) or next_row(part) is not None:
                yield part
            if part is not batch or next_row(part) == self._end:
                return


class Decided(NamedTuple):
    """Which documents of a unit are no copies of earlier ones, as the ledger has decided.

    Attributes:
        hashes: (n,) uint64 hashes of the documents that are worth storing, in order.
        new: (n,) bool: which of them are stored.
        bad: Why the rest of the shard is skipped, if the scan has found that. It counts even if the shard can be read now.
    """

    hashes: np.ndarray
    new: np.ndarray
    bad: Mapping[str, Any] | None = None

    @property
    def stored(self) -> np.ndarray:
        """Hashes of the documents that are stored, in order."""
        stored: np.ndarray = self.hashes[self.new]
        return stored


class _DecidedTexts:
    """The decision in place of the hashes of all texts so far."""

    def __init__(self, decided: Decided) -> None:
        self._decided = decided
        self._taken = 0

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Return the decision for the next texts. SourceError if they are others than those that were decided."""
        here = slice(self._taken, self._taken + len(hashes))
        self._taken += len(hashes)
        if not np.array_equal(self._decided.hashes[here], hashes):
            raise SourceError(
                "The source gave other documents when it was read again: restore its files, then run it again."
            )
        return self._decided.new[here]


class _Remarks(logging.Handler):
    """Collects the warnings about the source, which the driver logs: nobody reads the log of a worker."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # A retry that has helped is counted among the incidents.
        if record.name != _RETRIES and len(self.found) < _MOST_REMARKS:
            self.found.setdefault(record.getMessage())

    def __enter__(self) -> _Remarks:
        logging.getLogger("lightning_lance").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("lightning_lance").removeHandler(self)


def run_cuts(work: Work, shard: int, part_bytes: int) -> list[Cut]:
    """Return where a shard may be cut into parts of about `part_bytes` of text.

    Raises:
        SourceError: If the source cannot be read.
    """
    opened = work.opened
    if isinstance(opened, Divisible):
        return opened.cuts(shard, part_bytes)
    return []


def run_scan(work: Work, unit: Unit, name: UnitName) -> None:
    """Read a unit, and write the hashes of the documents that are worth storing, in order.

    It ends early where the unit has more documents than the budget, and the rest is for another unit.

    Raises:
        SourceError: If the source cannot be read.
        StoreError: If the result cannot be written.
    """
    part = _Part(work.opened, unit)
    hashes = [np.empty(0, np.uint64)]
    row: int | None = None
    documents = 0
    size = 0
    ended = True
    with _Remarks() as remarks:
        for batch in part.read(unit.shard, unit.row):
            sizes = np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), -1))
            kept = ~np.logical_or.reduce([*skip_reasons(batch, sizes, work.long_documents).values()])
            hashes.append(text_hashes(batch.column("text"))[kept])
            covered = next_row(batch)
            row = covered if covered is not None else int(batch.column("row")[-1].as_py()) + 1
            documents += int(kept.sum())
            size += int(sizes[kept].sum())
            enough = unit.max_documents is not None and documents >= unit.max_documents
            enough |= unit.max_tokens is not None and size >= _MOST_BYTES_PER_TOKEN * unit.max_tokens
            if enough and row != unit.end:
                ended = False
                break
    found = np.concatenate(hashes)
    none = np.zeros(0, np.int64)
    bad = work.opened.trouble.bad_shards.get(unit.shard) if ended else None
    result = UnitResult(
        unit.shard,
        rows=none,
        num_tokens=none,
        text_bytes=none,
        documents=_no_documents(work),
        next_row=row,
        ends_shard=ended and (unit.end is None or bad is not None),
        bad_shard=bad,
        hashes=found,
    )
    write_result(work.location, name, Written(key_of(work, unit), result, remarks=[*remarks.found]))


def run_unit(work: Work, unit: Unit, name: UnitName, decided: Decided | None = None) -> None:
    """Read, encode and pack a unit, write its rows to a data file, and then its result.

    Args:
        work: The work.
        unit: The unit.
        name: The name of this attempt.
        decided: Which of its documents are no copies; None without de-duplication.

    Raises:
        SourceError: If the source cannot be read, or gives other documents than when it was scanned.
        StoreError: If the rows or the result cannot be written.
    """
    part = _Part(work.opened, unit)
    start = replace(work.commit, shard=unit.shard, row=unit.row, documents=0, tokens=0, exhausted=False)
    ledger = Ledger(start, Budget(unit.max_documents, unit.max_tokens), part.shards)
    packer = work.packer()
    rows = _Rows(work, packer.schema, name)
    results: list[UnitResult] = []
    batches = encoded_batches(
        part,
        work.tokenizer,
        unit.shard,
        unit.row,
        unit.max_documents,
        unit.max_tokens,
        work.long_documents,
        None if decided is None else _DecidedTexts(decided),
    )
    whole = True
    with _Remarks() as remarks, closing(batches), closing(rows):
        for _, batch in batches:
            if batch is None:
                break
            results.append(_fold(work, ledger, packer, batch, rows))
            del batch
            if ledger.met:
                whole = False
                break
        rows.put(packer.flush())
        bad = None if decided is None else decided.bad
        result = _end_of(work, unit, results, whole, bad)
        fragments, files = rows.written()
        incidents = dict(work.opened.trouble.incidents)
        key = key_of(work, unit, decided)
        try:
            written = Written(key, result, fragments, files, incidents, [*remarks.found], whole)
            write_result(work.location, name, written)
        except OSError as error:
            rows.remove()
            raise StoreError(
                f"The token store {work.location.uri!r} cannot be written ({error}): free disk space or grant write access, "
                "then run it again to continue after the last commit."
            ) from error


def _fold(work: Work, ledger: Ledger, packer: Packer, batch: EncodedBatch, rows: _Rows) -> UnitResult:
    """Pack what a batch gives to the store, and return its result up to the budget of the unit."""
    result = batch.result(ledger.commit.shard)
    needed = ledger.needs(result)
    folded = ledger.fold(result)
    rows.put(pack_stored(packer, batch, result, folded, work.val_fraction))
    if ledger.met:
        result = result.before(needed)
    return without_hashes(result)


def _end_of(
    work: Work, unit: Unit, results: Sequence[UnitResult], whole: bool, bad: Mapping[str, Any] | None
) -> UnitResult:
    """Return the results of a unit as one, with its end; `bad` says why the rest of the shard is skipped, if that is known."""
    none = np.zeros(0, np.int64)
    nothing = UnitResult(unit.shard, none, none, none, _no_documents(work))
    result = joined([nothing, *results])
    if not whole:
        return result
    bad = work.opened.trouble.bad_shards.get(unit.shard, bad)
    ends = unit.end is None or bad is not None
    return replace(result, ends_shard=ends, bad_shard=bad, next_row=result.next_row if ends else unit.end)


def _no_documents(work: Work) -> pa.Table:
    names = ["language", *work.metadata, "id"]
    return pa.table(dict.fromkeys(names, pa.array([], pa.string())))


class _Rows:
    """The data file of a unit; there is none before its first row."""

    def __init__(self, work: Work, schema: pa.Schema, name: UnitName) -> None:
        self._work = work
        self._schema = schema
        self._name = name
        self._writer: RowWriter | None = None
        self._written: PendingFragments | None = None

    def put(self, rows: Sequence[pa.RecordBatch]) -> None:
        for batch in rows:
            if self._writer is None:
                commit = self._work.commit
                self._writer = RowWriter(
                    self._work.location, None, commit.fingerprint, self._schema, self._name.data_name
                )
            self._writer.put(batch)

    def written(self) -> tuple[str | None, dict[str, DataFileInfo]]:
        """Wait until all is written. Return the fragment, if there is one, and the description of its file."""
        if self._writer is None:
            return None, {}
        self._written = self._writer.close()
        [fragment] = self._written.fragments
        return fragment_json(fragment), self._written.files

    def remove(self) -> None:
        if self._written is not None:
            forget_written(self._work.location, self._written)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.abandon()


def run_merge(
    work: Work, paths: Sequence[str], pending: Sequence[str], files: Mapping[str, DataFileInfo], name: UnitName
) -> tuple[list[str], dict[str, DataFileInfo]]:
    """Rewrite several fragments as one; nothing is committed.

    Args:
        work: The work.
        paths: Data files of the newest version, neighbours in order.
        pending: Fragments, as Lance's JSON, that no version has yet, which follow them.
        files: The descriptions of all their files.
        name: The name of this attempt.

    Returns:
        The new fragment as JSON, or none if there are no rows; and the description of its file by name.

    Raises:
        StoreError: If a file is not part of the newest version any more, or cannot be read or written.
    """
    location = work.location
    dataset = dataset_at(location, None)
    wanted = {*paths}
    fragments = [fragment for fragment in fragments_of(dataset) if fragment.files[0].path in wanted]
    if len(fragments) != len(wanted):
        raise StoreError(f"The token store {location.uri!r} was changed while its fragments were merged: run it again.")
    more = PendingFragments(dataset, dataset.schema, list(map(fragment_from, pending)), dict(files))
    merged, infos, _ = rewrite_fragments(location, dataset, fragments, files, more=more, name=name.data_name)
    return list(map(fragment_json, merged)), infos
