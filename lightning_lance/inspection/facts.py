"""The facts of a store that are fit to be published: no value of a removal rule, and no folder of this machine."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import data_bytes, dataset_at, reading
from lightning_lance.format.schema import block_of
from lightning_lance.inspection.licenses import hub_ids, license_name
from lightning_lance.inspection.summary import StoreInfo, describe_store
from lightning_lance.location import StoreLocation, store_place
from lightning_lance.messages.redaction import public_url, redacted
from lightning_lance.store.provenance import DocumentCount, count_by

# The word of the documents whose values are licenses.
_LICENSE = "license"
# Settings that say only where something was on the machine of the build.
_OF_THE_MACHINE = ("root",)
# A place on a disk: from the root, of a home folder, by a URI, or on Windows.
_ON_DISK = re.compile(r"/|~|file:|[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class LicenseCount:
    """The documents and tokens of a license, by split."""

    name: str
    splits: Mapping[str, DocumentCount]

    @property
    def tokens(self) -> int:
        """Tokens of all splits."""
        return sum(count.tokens for count in self.splits.values())

    @property
    def documents(self) -> int:
        """Documents of all splits."""
        return sum(count.documents for count in self.splits.values())


@dataclass(frozen=True)
class RemovedDocuments:
    """The documents that were removed by rules of the same keys.

    Attributes:
        keys: The keys of the rules, such as `repo`; their values are not said.
        rules: How many rules.
        documents: Documents that they removed.
        tokens: Tokens of these.
    """

    keys: tuple[str, ...]
    rules: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class StoreFacts:
    """What a card says of a store.

    Attributes:
        info: All about the store.
        version: The version that it is about, the newest.
        bytes: Size of the data files of that version.
        block: Tokens of a row.
        dtype: Type of a token.
        words: What is known of each document: `id`, `repo`, `path`, ...
        settings: The settings in the words of the user, without places on disks.
        licenses: The licenses of the documents, that of most tokens first; None if the source does not give them.
        license_ids: The licenses as the Hub spells them.
        removed: What was removed by rules.
    """

    info: StoreInfo
    version: int
    bytes: int
    block: int
    dtype: str
    words: tuple[str, ...]
    settings: Mapping[str, Any]
    licenses: tuple[LicenseCount, ...] | None
    license_ids: tuple[str, ...]
    removed: tuple[RemovedDocuments, ...]

    @property
    def languages(self) -> list[str]:
        """The languages of the documents that have one."""
        return [count.language for count in self.info.languages if count.language]


def facts_of(uri: str | os.PathLike[str], storage_options: Mapping[str, str] | None = None) -> StoreFacts:
    """Return the facts of the newest version of a store. Reads its commit metadata, and the licenses of its documents.

    Raises:
        StoreError: If there is none, or it cannot be read.
    """
    location = StoreLocation(store_place(uri), storage_options)
    info = describe_store(uri, storage_options)
    version = info.versions[0].version
    with reading(location.uri):
        dataset = dataset_at(location, version)
        if dataset is None:
            raise StoreError(
                f"Version {version} of the token store {location.uri!r} was removed while it was read: try again."
            )
        size = data_bytes(dataset)
        block, dtype = block_of(location.uri, dataset.schema)
        words = _words(dataset.schema)
        counts = None
        if _LICENSE in words:
            counts = count_by(location, dataset, _LICENSE)
    licenses = None
    license_ids: list[str] = []
    if counts is not None:
        licenses = _licenses(counts)
        license_ids = hub_ids(value for _, value in counts)
    return StoreFacts(
        info,
        version,
        size,
        block,
        str(dtype),
        words,
        _settings(info),
        licenses,
        tuple(license_ids),
        _removed(info.forgotten),
    )


def _words(schema: pa.Schema) -> tuple[str, ...]:
    """Return what is known of each document."""
    words: list[str] = []
    for field in schema.field("documents").type.value_type:
        if field.name not in ("offset", "hash"):
            words.append(field.name)
    return tuple(words)


def _settings(info: StoreInfo) -> dict[str, Any]:
    """Return the settings of a store that are fit to be published."""
    settings: dict[str, Any] = {}
    for name, value in info.settings.items():
        if name not in _OF_THE_MACHINE:
            settings[name] = _public(value)
    return settings


def _licenses(counts: Mapping[tuple[str, str | None], DocumentCount]) -> tuple[LicenseCount, ...]:
    """Return the counts by name of the license, since sources spell one license in several ways."""
    named: dict[str, dict[str, DocumentCount]] = {}
    for (split, value), count in counts.items():
        splits = named.setdefault(license_name(value), {})
        splits[split] = splits.get(split, DocumentCount()).plus(count.documents, count.tokens)
    found = [LicenseCount(name, splits) for name, splits in named.items()]
    return tuple(sorted(found, key=lambda one: (-one.tokens, one.name)))


def _removed(forgotten: Sequence[Mapping[str, Any]]) -> tuple[RemovedDocuments, ...]:
    rules: Counter[tuple[str, ...]] = Counter()
    documents: Counter[tuple[str, ...]] = Counter()
    tokens: Counter[tuple[str, ...]] = Counter()
    for entry in forgotten:
        keys = tuple(sorted(entry["rule"]))
        rules[keys] += 1
        documents[keys] += int(entry["documents"])
        tokens[keys] += int(entry["tokens"])
    removed: list[RemovedDocuments] = []
    for keys in sorted(rules):
        removed.append(RemovedDocuments(keys, rules[keys], documents[keys], tokens[keys]))
    return tuple(removed)


def _public(value: Any) -> Any:
    """Return a setting without secrets, and with the last name alone of a place on a disk."""
    if isinstance(value, Mapping):
        return {str(key): _public(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_public, value))
    if not isinstance(value, str):
        return value
    text = redacted(public_url(value))
    if _ON_DISK.match(text):
        return PurePath(text.replace("\\", "/")).name or "."
    return text
