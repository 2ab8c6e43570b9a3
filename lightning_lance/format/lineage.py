"""Changes that other programs made to a store with Lance itself: appended, deleted, compacted, restored, ..."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import dataset_at, fragments_of, stream_columns, versions_of
from lightning_lance.location import StoreLocation

# The property of a transaction that holds the metadata of a commit.
METADATA = "lightning_lance"
# The columns of every store, whatever its source.
COLUMNS = ("tokens", "num_tokens", "split", "language", "documents")

# Operations of Lance, and their descriptions in messages. All but the last one change rows; a compaction only moves them.
_DESCRIPTIONS = {
    "Append": "rows were appended",
    "Delete": "rows were deleted",
    "Update": "rows were updated or merged in",
    "Merge": "columns were added",
    "Project": "columns were dropped or renamed",
    "DataReplacement": "columns were replaced",
    "Overwrite": "it was overwritten",
    "Rewrite": "rows were moved by a compaction",
}
_MOVES = "Rewrite"
_ADDED = "Merge"
# For operations that are unknown, and versions that are gone, the rows are compared.
_UNKNOWN = "Unknown"


class Lineage(NamedTuple):
    """The origin of a version.

    Attributes:
        committed: The last commit of this package that it was made from; None if there is none.
        operations: Lance's names of the operations of other programs since then, the oldest first.
        properties: The properties of that commit's transaction; None if there is none.
    """

    committed: int | None
    operations: list[str]
    properties: Mapping[str, str] | None


class Change(NamedTuple):
    """The changes of other programs since a commit.

    Attributes:
        committed: The version of that commit.
        what: The changes, for a message.
        of_rows: Whether rows or columns have changed. Otherwise rows were only moved.
        overwritten: Whether nothing of the store is left.
        readable: Whether everything that was committed is unchanged, so that at most columns were added.
    """

    committed: int
    what: str
    of_rows: bool
    overwritten: bool
    readable: bool


def lineage_of(dataset: Any) -> Lineage:
    """Return the commit that the open version was made from. StoreError if the open version was removed.

    A restored version was made from the one it restores.
    """
    version = int(dataset.version)
    properties = properties_at(dataset, version)
    if properties is None:
        raise StoreError(
            f"Version {version} of the token store {dataset.uri!r} was removed while it was read: try again."
        )
    if METADATA in properties:
        return Lineage(version, [], properties)
    versions = versions_of(dataset)
    operations: list[str] = []
    while True:
        operation: Any = getattr(_transaction_at(dataset, version), "operation", None)
        name = _UNKNOWN if operation is None else type(operation).__name__
        if name == "Restore" and int(operation.version) < version:
            before = int(operation.version)
            operations = []
        else:
            before = _version_before(versions, version)
            operations.append(name)
            if before != version - 1:
                operations.append(_UNKNOWN)
        if before not in versions:
            return Lineage(None, operations[::-1], None)
        version = before
        properties = properties_at(dataset, version) or {}
        if METADATA in properties:
            return Lineage(version, operations[::-1], properties)


def _version_before(versions: Sequence[int], version: int) -> int:
    """Return the last of the versions, which ascend, below a number; 0 if there is none."""
    count = bisect_left(versions, version)
    if count == 0:
        return 0
    return versions[count - 1]


def properties_at(dataset: Any, version: int) -> Mapping[str, str] | None:
    """Return the properties of a version's transaction; None if the version is gone."""
    transaction = _transaction_at(dataset, version)
    if transaction is None:
        return None
    return transaction.transaction_properties or {}


def _transaction_at(dataset: Any, version: int) -> Any | None:
    try:
        return dataset.read_transaction(version)
    except (ValueError, OSError):
        return None


def change_of(dataset: Any, location: StoreLocation, lineage: Lineage | None = None) -> Change | None:
    """Return the changes of other programs to the open version since its commit; None if its rows are unchanged.

    `lineage` is its lineage, if it is known.
    """
    committed, operations, _ = lineage or lineage_of(dataset)
    if committed is None or committed == int(dataset.version):
        return None
    before = dataset_at(location, committed)
    if before is None:
        raise StoreError(
            f"Version {committed} of the token store {location.uri!r} was removed while it was read: try again."
        )
    if _description(before) == _description(dataset):
        return None
    overwritten = "Overwrite" in operations
    known: dict[str, str] = {}
    for name in operations:
        if name in _DESCRIPTIONS:
            known[name] = _DESCRIPTIONS[name]
    changes = known.keys() - {_MOVES}
    of_rows = bool(changes) or _totals(before) != _totals(dataset)
    what = ", then ".join(known.values()) or "its rows have changed"
    return Change(committed, what, of_rows, overwritten, readable=not of_rows or changes == {_ADDED})


def check_unchanged(dataset: Any, location: StoreLocation) -> None:
    """Raise StoreError if another program has changed the rows of a version: its commit metadata would count other tokens."""
    change = change_of(dataset, location)
    if change is not None and change.of_rows:
        raise StoreError(
            f"The token store {location.uri!r} was changed by another program since version {change.committed} "
            f"({change.what}); to add or remove documents now could lose or repeat tokens: {cure(location.uri, change)}; "
            "or build another store."
        )


def cure(uri: str, change: Change) -> str:
    """Return a sentence that says how to undo a change."""
    return f"lance.dataset({uri!r}, version={change.committed}).restore() brings that version back"


def check_columns(dataset: Any, uri: str) -> None:
    """Raise StoreError if a version lacks columns of every store."""
    missing = [name for name in COLUMNS[:-1] if name not in dataset.schema.names]
    if missing:
        committed = lineage_of(dataset).committed
        raise StoreError(
            f"Version {dataset.version} of the token store {uri!r} has no column {', '.join(missing)}: another program has "
            f"dropped or renamed it; lance.dataset({uri!r}, version={committed}).restore() brings it back."
        )


def _description(dataset: Any) -> tuple[Any, ...]:
    """Return a description of a version that is equal for equal rows: its files, deletions and schema."""
    described = []
    for fragment in fragments_of(dataset):
        paths = tuple(file.path for file in fragment.files)
        deletion = None
        if fragment.deletion_file is not None:
            deletion = fragment.deletion_file.path(fragment.id)
        described.append((paths, deletion, fragment.physical_rows, len(fragment.overlays or ())))
    return described, dataset.schema.remove_metadata()


def _totals(dataset: Any) -> Counter[tuple[str, str]]:
    """Return the number of tokens of each stream."""
    totals: Counter[tuple[str, str]] = Counter()
    if not {*COLUMNS[:-1]} <= {*dataset.schema.names}:
        return totals
    rows = stream_columns(dataset)
    summed = rows.group_by(["split", "language"]).aggregate([("num_tokens", "sum")])
    for row in summed.to_pylist():
        totals[row["split"], row["language"]] = row["num_tokens_sum"]
    return totals
