"""Commits of a token store: tokens, and a note with the source cursor after them, in one Lance transaction.

A commit is made only on top of the version that its builder has seen, so of two builders one loses, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata

from lightning_lance.errors import FormatError, StoreError
from lightning_lance.format.checksums import manifest_of, root_session, write_sums
from lightning_lance.format.lance_io import (
    Written,
    conflict,
    data_session,
    dataset_at,
    fragments_of,
    lance_options,
    local_files,
    not_written,
    take_back,
)
from lightning_lance.format.layout import Extent, FileNote, files_of, properties_of
from lightning_lance.format.lineage import METADATA, check_unchanged, lineage_of, properties_at
from lightning_lance.json_checks import (
    count_of,
    counts_of,
    field_of,
    flag_of,
    json_of,
    list_of,
    metadata_of,
    object_of,
    plain_of,
    text_of,
    texts_of,
)
from lightning_lance.messages.redaction import shown_cause
from lightning_lance.process.exit_cleanup import settled

# Raised when stores of the version before can no longer be read.
FORMAT_VERSION = 2

# More rules than anybody has given one by one: each is looked at for every document.
_MOST_RULES = 100_000


@dataclass(frozen=True)
class Commit:
    """What a commit says beside its tokens. All counts are of the whole store, up to and with this commit.

    They count what was taken from the source, which is what budgets are about; what was forgotten of it, `forgotten` counts,
    and `stored_documents`, `stored_tokens` and `stored_languages` what is left.

    Attributes:
        fingerprint: Hash of the recipe.
        recipe: All that decides the stored tokens; JSON types.
        pin: What finds the same shards again (`OpenedSource.pin`).
        shards: Hash of the names of the shards, in reading order.
        eos_token: The token that ends every document.
        eos_id: Its id.
        vocab_size: Largest id of the tokenizer plus one.
        shard: Cursor: place of the shard to read next.
        row: Cursor: first row of that shard that is not in the store.
        documents: Documents.
        tokens: Tokens, EOS included.
        text_bytes: Bytes of text.
        skipped: Documents left out, by reason (`null`, `not_utf8`, `not_json`, `empty`, `blank`, `long`, `duplicate`).
        noted: Documents that are in the store, by what is remarkable (`special`, `nul`, `crlf`, `bom`, `split`,
            `metadata_not_utf8`).
        languages: Documents by language.
        exhausted: Whether the source has no more documents.
        files: Shard to the rows read of it (of those that the filters let through), of the last 20 shards; all before the
            oldest of them were read whole, in the order of `source.open(pin).shards`.
        bad_shards: Shards that were no good and are left out (`source.on_bad_shard`), each from its `row` on.
        forgotten: Rules of what is left out for good, in the order in which they were given: each with its `rule` (key to
            value) and the `documents`, `tokens` and `languages` (to documents) that it took, and no rule before it.
        unknown: What a later version of this package has noted besides, as it was read; it is written again as it is.
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
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def extent(self) -> Extent:
        """What of the source the store holds."""
        taken = [entry for entry in self.forgotten if entry["documents"]]
        rules = (" ".join(f"{key}={value}" for key, value in sorted(entry["rule"].items())) for entry in taken)
        return Extent(self.tokens, tuple(sorted(rules)))

    @property
    def stored_documents(self) -> int:
        """Documents that are in the store."""
        return self.documents - sum(int(entry["documents"]) for entry in self.forgotten)

    @property
    def stored_tokens(self) -> int:
        """Tokens that are in the store, EOS included."""
        return self.tokens - sum(int(entry["tokens"]) for entry in self.forgotten)

    @property
    def stored_languages(self) -> dict[str, int]:
        """Documents that are in the store, by language."""
        left = Counter(self.languages)
        for entry in self.forgotten:
            left.subtract(entry["languages"])
        return {language: count for language, count in left.items() if count}


def commit_from(told: Mapping[str, Any]) -> Commit:
    """Return the commit that some metadata describes, checked field by field. Fields that are not known are kept as they are.

    Raises:
        ValueError: If a field is missing, of another type, or beyond what it can be.
    """
    known = [entry for entry in fields(Commit) if entry.name != "unknown"]
    unknown = {name: value for name, value in told.items() if name not in {entry.name for entry in known}}
    unknown |= object_of(unknown.pop("unknown", {}), "unknown")
    checked = {}
    for entry in known:
        if entry.name in told or entry.default is entry.default_factory is MISSING:
            checked[entry.name] = _CHECKS[entry.name](field_of(told, entry.name), entry.name)
    commit = Commit(**checked, unknown=plain_of(unknown, "unknown"))
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


# What each field of the metadata must be.
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
}


def append_commit(uri: str, written: Written, commit: Commit, storage_options: Mapping[str, str] | None = None) -> int:
    """Make a version of what was written and of all before it, with its note; makes the store if there is none.

    Args:
        uri: The store.
        written: What to add.
        commit: The note.
        storage_options: Credentials and such for object stores.

    Returns:
        The new version.

    Raises:
        CommitConflict: If there is another version by now. Nothing of what was written stays.
        StoreError: If the store cannot be written.
    """
    before = written.before
    fragments = [] if before is None else fragments_of(before)
    known = {} if before is None else notes_of(before)
    return replace_fragments(
        uri,
        before,
        written.schema,
        [*fragments, *written.fragments],
        {**known, **written.files},
        commit,
        storage_options,
    )


def newest_at(
    uri: str, version: int | None, storage_options: Mapping[str, str] | None, fingerprint: str | None = None
) -> Any:
    """Open a store as it is now, to write to it; None if there is none.

    Raises:
        CommitConflict: If it isn't at the version that a builder saw last; or of another fingerprint, since it was built anew
            and its versions count from 1 again.
        StoreError: If others have changed its rows.
    """
    dataset = dataset_at(uri, None, storage_options)
    now = 0 if dataset is None else int(dataset.version)
    if version is not None and now != version:
        raise conflict(uri, version, now)
    if version and fingerprint is not None and commit_of(dataset, uri).fingerprint != fingerprint:
        raise conflict(uri, version, now)
    if dataset is not None:
        check_unchanged(dataset, uri, storage_options)
    return dataset


def replace_fragments(
    uri: str,
    before: Any | None,
    schema: pa.Schema,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, FileNote],
    commit: Commit,
    storage_options: Mapping[str, str] | None,
) -> int:
    """Make a version of exactly these fragments, right after the version `before`, or not at all.

    Args:
        uri: The store.
        before: Its dataset at the version that this one is made of; None to make the first.
        schema: Of the rows.
        fragments: All of the new version, in their order. Those that `before` lacks are removed if this fails.
        files: Notes of their data files, by path; others are left out.
        commit: The note.
        storage_options: Credentials and such for object stores.

    Returns:
        The new version.

    Raises:
        CommitConflict: If another version came first.
        StoreError: If the store cannot be written. After any other error too, files stay only if the version was made.
    """
    paths = [file.path for fragment in fragments for file in fragment.files]
    version = 0 if before is None else int(before.version)
    told = json.dumps(_metadata(commit))
    with metadata_of(uri):
        # Nothing is written that could not be read again.
        commit_from(object_of(json_of(told, "it"), "it"))
    transaction = lance.Transaction(
        read_version=version,
        operation=lance.LanceOperation.Overwrite(schema if before is None else before.lance_schema, fragments),
        transaction_properties={
            METADATA: told,
            **properties_of({path: files[path] for path in paths if path in files}),
        },
    )
    settled(local_files(uri, paths))
    try:
        # An append would be put on top of whatever was committed meanwhile. An overwrite without a retry is not: it makes the
        # manifest of this very version, or fails.
        lance.LanceDataset.commit(
            uri if before is None else before,
            transaction,
            max_retries=0,
            storage_options=lance_options(storage_options),
        )
    except BaseException as error:
        # A bucket may have made it though the answer was lost, and then says of the second try that it is there already.
        made = _uuid_of(uri, version + 1, storage_options) == transaction.uuid
        if made and isinstance(error, Exception):
            write_sums(uri, storage_options)
            return version + 1
        now = dataset_at(uri, None, storage_options)
        take_back(uri, paths, [before, now], storage_options)
        if now is not None and int(now.version) != version and not made:
            raise conflict(uri, version, int(now.version)) from shown_cause(error)
        if isinstance(error, (ValueError, OSError)):
            raise not_written(uri, error) from shown_cause(error)
        raise
    now = dataset_at(uri, None, storage_options)
    late = now is not None and int(now.version) > version + 1
    if late or not _is_founded(uri, before, paths, storage_options):
        # This builder stood still while another went on and removed old versions, or built the store anew: so the place of
        # this one was free again, but what it is made of may be gone.
        if _uuid_of(uri, version + 1, storage_options) == transaction.uuid:
            with contextlib.suppress(ValueError, OSError):
                root_session(uri, storage_options).delete_file(manifest_of(version + 1))
        now = dataset_at(uri, None, storage_options)
        take_back(uri, paths, [before, now], storage_options)
        raise conflict(uri, version, 0 if now is None else int(now.version))
    write_sums(uri, storage_options)
    return version + 1


def _is_founded(uri: str, before: Any | None, paths: Sequence[str], storage_options: Mapping[str, str] | None) -> bool:
    """Tell whether the version that another was made of is still there, or at least all of these files are."""
    if before is None:
        return True
    version = int(before.version)
    with contextlib.suppress(ValueError, OSError):
        if _uuid_of(uri, version, storage_options) == str(before.read_transaction(version).uuid):
            return True
    session = data_session(uri, storage_options)
    return all(session.contains(path) for path in paths)


def _uuid_of(uri: str, version: int, storage_options: Mapping[str, str] | None) -> str | None:
    dataset = dataset_at(uri, version, storage_options)
    return None if dataset is None else str(dataset.read_transaction(version).uuid)


def notes_of(dataset: Any) -> dict[str, FileNote]:
    """Read the notes of the data files of an open dataset, by path; of what others wrote there are none.

    Raises:
        StoreError: If they cannot be.
    """
    with metadata_of(dataset.uri):
        return files_of(_noted(dataset) or {})


def _noted(dataset: Any) -> Mapping[str, str] | None:
    """Read what the last commit up to the version that is open says; None if there is none.

    Other writes (a deletion, a compaction) make versions that carry no note: what the one before them says still holds.
    """
    committed = committed_version(dataset)
    return None if committed is None else properties_at(dataset, committed)


def committed_version(dataset: Any) -> int | None:
    """Give the version of the last commit that the open version is made of; None if there is none."""
    return lineage_of(dataset).committed


def is_commit(dataset: Any) -> bool:
    """Tell whether the version that is open was committed by this package, and not made by others out of one that was."""
    return METADATA in (properties_at(dataset, int(dataset.version)) or {})


def last_commit(
    uri: str, version: int | None = None, storage_options: Mapping[str, str] | None = None
) -> Commit | None:
    """Read the note of the last commit up to a version; None if there is no store. StoreError if it is another thing."""
    if version is None:
        return last_version(uri, storage_options)[1]
    dataset = dataset_at(uri, version, storage_options)
    return None if dataset is None else commit_of(dataset, uri)


def last_version(uri: str, storage_options: Mapping[str, str] | None = None) -> tuple[int, Commit | None]:
    """Give the last version and its note; 0 and None if there is no store. StoreError if it is another thing."""
    while (dataset := dataset_at(uri, None, storage_options)) is not None:
        version = int(dataset.version)
        try:
            return version, commit_of(dataset, uri)
        except (StoreError, ValueError, OSError):
            # A builder may have made another one, and removed this.
            now = dataset_at(uri, None, storage_options)
            if now is not None and int(now.version) == version:
                raise
    return 0, None


def commit_of(dataset: Any, uri: str) -> Commit:
    """Read the note of the last commit of an open dataset.

    Raises:
        FormatError: If another version of this package wrote it, in another format.
        StoreError: If it has none, or one that cannot be read.
    """
    noted = _noted(dataset)
    if noted is None:
        raise StoreError(
            f"The Lance dataset {uri!r} is no token store: none of its versions was committed by this package."
        )
    with metadata_of(uri):
        told = object_of(json_of(noted[METADATA], "it"), "it")
        check_format(object_of(field_of(told, "recipe"), "recipe").get("format"), uri)
        return commit_from(told)


def check_format(found: Any, uri: str) -> None:
    """Refuse a store of another format; where it says none, that is for others to tell.

    Raises:
        FormatError: If it is older or newer than this version of the package.
    """
    if found is None or found == FORMAT_VERSION:
        return
    if isinstance(found, int) and found < FORMAT_VERSION:
        raise FormatError(
            f"The token store {uri!r} was written by an older version (format {found!r}), and this one reads format "
            f"{FORMAT_VERSION}: build it again at another uri, or with rebuild=true, or install the version that wrote it.",
            newer=False,
        )
    raise FormatError(
        f"The token store {uri!r} was written by a newer version (format {found!r}): upgrade lightning-lance.",
        newer=True,
    )


def _metadata(commit: Commit) -> dict[str, Any]:
    """Give the note as it is stored."""
    told = asdict(commit)
    return {**told.pop("unknown"), **told}
