"""Documents of known content, as a source, and stores made of them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import xxhash

from lightning_lance.build.packing import Packer
from lightning_lance.documents.batch import document_batch
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.format import commit as commit_module
from lightning_lance.format.commit import newest_at
from lightning_lance.format.lance_io import PendingFragments, write_rows
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import compaction
from lightning_lance.sources.source import ReadReport

Document = tuple[str | None, str, str]  # text, language, repository


@dataclasses.dataclass(frozen=True)
class ListSource:
    """Documents from memory, a few to the shard and to the batch: the smallest honest source."""

    documents: tuple[Document, ...]
    per_shard: int = 4
    per_batch: int = 3
    languages: tuple[str, ...] = ()
    dedup: Literal["none", "exact"] = "none"
    has_validation: bool = False
    name: str = "list"
    metadata: Sequence[str] = ("repo",)

    @property
    def wanted(self) -> Sequence[str]:
        return sorted(self.languages)

    def identity(self) -> dict[str, Any]:
        return {
            "documents": xxhash.xxh3_64_hexdigest(repr(self.documents).encode()),
            "languages": self.wanted,
            "dedup": self.dedup,
        }

    def open(self, pin: Mapping[str, Any] | None = None) -> "ListSource":
        return self

    @property
    def shards(self) -> Sequence[str]:
        return [str(i) for i in range(-(-len(self.documents) // self.per_shard))]

    pin: dict[str, Any] = dataclasses.field(default_factory=dict)
    trouble: ReadReport = dataclasses.field(default_factory=ReadReport)
    num_bytes: int | None = None

    def present_languages(self) -> list[str]:
        return sorted({language for _, language, _ in self.documents})

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        documents = self.documents[shard * self.per_shard :][: self.per_shard]
        for first in range(row, len(documents), self.per_batch):
            texts, languages, repos = zip(*documents[first : first + self.per_batch], strict=True)
            columns = {"text": pa.array(texts, pa.large_string()), "repo": pa.array(repos, pa.string())}
            yield document_batch(columns, pa.array(languages, pa.string()), first, self.wanted, TextFilter())


def documents(*texts: str | None, language: str = "Python", repo: str = "") -> tuple[Document, ...]:
    """Documents of one language, each of its own repository unless one is given."""
    return tuple((text, language, repo or f"repo{i}") for i, text in enumerate(texts))


def kept(text: str | None) -> str:
    """What a build keeps of a text, the empty string if nothing: no byte order mark, no text of white space only."""
    text = (text or "").removeprefix("\ufeff")
    return "" if text.isspace() else text


def written(
    uri: str, rows: pa.Table, version: int | None = None, options: Any = None, fingerprint: Any = None
) -> PendingFragments:
    """Writes rows that are to follow a version, the newest for None, and commits nothing."""
    before = newest_at(StoreLocation(uri, options), version, fingerprint)
    return PendingFragments(
        before, rows.schema, *write_rows(StoreLocation(uri, options), before, rows.schema, rows.to_batches())
    )


def append_commit(
    location: StoreLocation, rows: pa.Table, note: CommitMetadata, expected_version: int | None = None
) -> int:
    """Writes rows and commits them."""
    made = written(location.uri, rows, expected_version, location.storage_options, note.fingerprint)
    return commit_module.append_commit(location, made, note)


def finish(
    location: StoreLocation, rows: pa.Table, note: CommitMetadata, expected_version: int | None = None, **others: Any
) -> int:
    """Writes rows and ends a build with them."""
    made = written(location.uri, rows, expected_version, location.storage_options, note.fingerprint)
    return compaction.commit_final(location, made, note, **others)


def packed(packer: Packer, full: Sequence[pa.RecordBatch]) -> pa.Table:
    """Gives the rows that a packer has given, and the rest of them."""
    return pa.Table.from_batches([*full, *packer.flush()], packer.schema)


def only_append(*arguments: Any, **_: Any) -> int:
    """Commit without merging and cleaning up, in place of `compaction.commit_final`: each commit of the build stays."""
    return commit_module.append_commit(*arguments)
