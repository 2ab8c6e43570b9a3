"""The metadata of a commit: cursor, counts, fingerprint and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from lightning_lance.errors import FormatError
from lightning_lance.format.layout import StoreContent
from lightning_lance.json_checks import (
    count_of,
    counts_of,
    field_of,
    flag_of,
    list_of,
    object_of,
    plain_of,
    text_of,
    texts_of,
)

# To be raised when this version of the package can no longer read older stores.
FORMAT_VERSION = 2

# More rules than a user gives one by one. Every document is checked against each.
_MOST_RULES = 100_000


@dataclass(frozen=True)
class CommitMetadata:
    """The metadata of a commit. All counts are of the whole store, up to and including this commit.

    They count documents taken from the source, which budgets refer to. `forgotten` counts those removed again, and
    `stored_documents`, `stored_tokens` and `stored_languages` the rest.

    Attributes:
        fingerprint: Hash of the recipe.
        recipe: The settings that determine the stored tokens; JSON types.
        pin: The resolved revision of the source, which finds the same shards again (`OpenedSource.pin`).
        shards: Hash of the names of the shards, in reading order.
        eos_token: The token that ends every document.
        eos_id: Its id.
        vocab_size: Largest id of the tokenizer plus one.
        shard: Cursor: index of the shard to read next.
        row: Cursor: first row of that shard that is not in the store.
        documents: Documents.
        tokens: Tokens, EOS included.
        text_bytes: Bytes of text.
        skipped: Skipped documents, by reason (`null`, `not_utf8`, `not_json`, `empty`, `blank`, `long`, `duplicate`).
        noted: Stored documents with remarkable content, by kind (`special`, `nul`, `crlf`, `bom`, `split`,
            `metadata_not_utf8`).
        languages: Documents by language.
        exhausted: Whether the source has no more documents.
        files: Shard to the number of its rows read (after filters), for the last 20 shards; all shards before the oldest of
            these, in the order of `source.open(pin).shards`, were read completely.
        bad_shards: Damaged shards that are skipped (`source.on_bad_shard`), each from its `row` on.
        forgotten: Rules of documents to leave out, in the order in which they were given: each with its `rule` (key to value)
            and the `documents`, `tokens` and `languages` (to documents) that it removed and no earlier rule did.
        labels: What the user wrote and the recipe lacks: the names of `source` and `tokenizer`, `patterns`, `root` and so on.
            For people only: no part of the fingerprint, of comparisons, or of stores of earlier versions.
        unknown: Fields of a later version of this package; they are written again unchanged.
    """

    fingerprint: str
    recipe: dict[str, Any]
    pin: dict[str, Any]
    shards: str
    eos_token: str
    eos_id: int
    vocab_size: int
    shard: int = 0
    row: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    exhausted: bool = False
    files: dict[str, int] = field(default_factory=dict)
    bad_shards: list[dict[str, Any]] = field(default_factory=list)
    forgotten: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict, compare=False)
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def extent(self) -> StoreContent:
        """The content of the store."""
        rules = []
        for entry in self.forgotten:
            if entry["documents"]:
                rules.append(" ".join(f"{key}={value}" for key, value in sorted(entry["rule"].items())))
        return StoreContent(self.tokens, tuple(sorted(rules)))

    @property
    def stored_documents(self) -> int:
        """Documents in the store."""
        return self.documents - self._forgotten("documents")

    @property
    def stored_tokens(self) -> int:
        """Tokens in the store, EOS included."""
        return self.tokens - self._forgotten("tokens")

    def _forgotten(self, what: str) -> int:
        """Return the `documents` or `tokens` that all rules have removed."""
        return sum(int(entry[what]) for entry in self.forgotten)

    @property
    def stored_languages(self) -> dict[str, int]:
        """Documents in the store, by language."""
        left = Counter(self.languages)
        for entry in self.forgotten:
            left.subtract(entry["languages"])
        return {language: count for language, count in left.items() if count}


def commit_from(stored: Mapping[str, Any]) -> CommitMetadata:
    """Return a commit from its stored metadata. Unknown fields are kept unchanged.

    Raises:
        ValueError: If a field is missing, or has a wrong type or value.
    """
    unknown = {name: value for name, value in stored.items() if name not in _CHECKS}
    unknown |= object_of(unknown.pop("unknown", {}), "unknown")
    checked = {}
    for entry in fields(CommitMetadata):
        required = entry.default is entry.default_factory is MISSING
        if entry.name in _CHECKS and (required or entry.name in stored):
            checked[entry.name] = _CHECKS[entry.name](field_of(stored, entry.name), entry.name)
    commit = CommitMetadata(**checked, unknown=plain_of(unknown, "unknown"))
    count_of(commit.eos_id, "eos_id", most=commit.vocab_size - 1)
    count_of(commit.stored_documents, "documents without the forgotten ones")
    count_of(commit.stored_tokens, "tokens without the forgotten ones")
    return commit


def _bad_shards_of(value: Any, name: str) -> list[dict[str, Any]]:
    return [plain_of(entry, f"an entry of {name}") for entry in list_of(value, name)]


def _forgotten_of(value: Any, name: str) -> list[dict[str, Any]]:
    if len(list_of(value, name)) > _MOST_RULES:
        raise ValueError(f"{name} has {len(value):,} rules: expected {_MOST_RULES:,} at most")
    for entry in value:
        rule = object_of(entry, f"an entry of {name}")
        texts_of(field_of(rule, "rule"), "rule")
        for count in ("documents", "tokens"):
            count_of(field_of(rule, count), f"{count} of a rule")
        counts_of(field_of(rule, "languages"), "languages of a rule")
    return list(value)


def _vocab_size_of(value: Any, name: str) -> int:
    return count_of(value, name, least=1, most=1 << 32)


# The check of each stored field.
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "fingerprint": text_of,
    "recipe": plain_of,
    "pin": plain_of,
    "shards": text_of,
    "eos_token": text_of,
    "eos_id": count_of,
    "vocab_size": _vocab_size_of,
    "shard": count_of,
    "row": count_of,
    "documents": count_of,
    "tokens": count_of,
    "text_bytes": count_of,
    "skipped": counts_of,
    "noted": counts_of,
    "languages": counts_of,
    "exhausted": flag_of,
    "files": counts_of,
    "bad_shards": _bad_shards_of,
    "forgotten": _forgotten_of,
    "labels": plain_of,
}


def check_format(found: Any, uri: str) -> None:
    """Raise FormatError for a format of an older or newer version. None passes: other checks report a missing format."""
    if found is None or found == FORMAT_VERSION:
        return
    if isinstance(found, int) and found < FORMAT_VERSION:
        raise FormatError(
            f"The token store {uri!r} was written by an older version (format {found!r}), but this one reads format "
            f"{FORMAT_VERSION}: build it again at another uri or with rebuild=true, or install the version that wrote it.",
            newer=False,
        )
    raise FormatError(
        f"The token store {uri!r} was written by a newer version (format {found!r}): upgrade lightning-lance.",
        newer=True,
    )


def stored_metadata(commit: CommitMetadata) -> dict[str, Any]:
    """Return the metadata of a commit in its stored form."""
    stored = asdict(commit)
    if not commit.labels:
        # As earlier versions wrote it.
        del stored["labels"]
    return {**stored.pop("unknown"), **stored}
