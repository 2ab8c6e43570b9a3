"""What others than this package have made of a store, by Lance itself: appended, deleted, compacted, restored, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import dataset_at, fragments_of, stream_columns

# The property of a transaction that holds the metadata of a commit.
METADATA = "lightning_lance"
# What every store has, whatever its source.
COLUMNS = ("tokens", "num_tokens", "split", "language", "documents")

# Operations of Lance, as they are told. All but the last one change rows; a compaction only moves them.
_TOLD = {
    "Append": "rows were appended",
    "Delete": "rows were deleted",
    "Update": "rows were updated or merged in",
    "Merge": "columns were added",
    "Project": "columns were dropped or renamed",
    "DataReplacement": "columns were replaced",
    "Overwrite": "it was overwritten",
    "Rewrite": "rows were moved by a compaction",
}
_MOVES, _ADDED = "Rewrite", "Merge"
# Of operations that are not known, and of versions that are gone, the rows themselves tell.
_UNKNOWN = "Unknown"


class Lineage(NamedTuple):
    """How a version came about.

    Attributes:
        committed: The last version of it that this package committed; None if there is none.
        operations: What others did to it since, the oldest first, as Lance calls it.
    """

    committed: int | None
    operations: list[str]


class Change(NamedTuple):
    """What others have done to a store since a commit.

    Attributes:
        committed: The version of that commit.
        what: What they have done, for a message.
        of_rows: Whether other rows or columns are there now; else rows are elsewhere only.
        overwritten: Whether nothing of the store is left.
        readable: Whether all that was there still is, so that others' columns came at most.
    """

    committed: int
    what: str
    of_rows: bool
    overwritten: bool
    readable: bool


def lineage_of(dataset: Any) -> Lineage:
    """Find the commit that the open version was made of. A version that was restored was made of the one it equals.

    Raises:
        StoreError: If the open version is there no more.
    """
    version, operations = int(dataset.version), list[str]()
    properties = properties_at(dataset, version)
    if properties is None:
        raise StoreError(f"Version {version} of {dataset.uri!r} cannot be read: it was removed while it was looked at.")
    if METADATA in properties:
        return Lineage(version, [])
    older = sorted(int(entry["version"]) for entry in dataset.versions() if int(entry["version"]) < version)
    while True:
        operation = _operation_at(dataset, version)
        restored = getattr(operation, "version", None) if type(operation).__name__ == "Restore" else None
        if restored is not None and int(restored) < version:
            before, operations = int(restored), []
            if before not in older:
                return Lineage(None, operations)
        elif older and older[-1] < version:
            before = older[-1]
            operations.append(type(operation).__name__ if operation is not None else _UNKNOWN)
            if before != version - 1:
                operations.append(_UNKNOWN)
        else:
            return Lineage(None, operations[::-1])
        version, older = before, [other for other in older if other < before]
        if METADATA in (properties_at(dataset, version) or {}):
            return Lineage(version, operations[::-1])


def properties_at(dataset: Any, version: int) -> Mapping[str, str] | None:
    """Read what the transaction of a version says; None where it is gone."""
    try:
        return dataset.read_transaction(version).transaction_properties or {}
    except (ValueError, OSError):
        return None


def _operation_at(dataset: Any, version: int) -> Any | None:
    try:
        return dataset.read_transaction(version).operation
    except (ValueError, OSError):
        return None


def change_of(dataset: Any, uri: str, storage_options: Mapping[str, str] | None = None) -> Change | None:
    """Tell what others have done to the open version since it was committed; None if its rows are as they were.

    Raises:
        StoreError: If the version that was committed is gone.
    """
    committed, operations = lineage_of(dataset)
    if committed is None or committed == int(dataset.version):
        return None
    before = dataset_at(uri, committed, storage_options)
    if before is None:
        raise StoreError(f"Version {committed} of the token store {uri!r} was removed while it was looked at.")
    if _description(before) == _description(dataset):
        return None
    overwritten = "Overwrite" in operations
    changes = [name for name in operations if name in _TOLD and name != _MOVES]
    of_rows = bool(changes) or _totals(before) != _totals(dataset)
    told = list(dict.fromkeys(_TOLD[name] for name in operations if name in _TOLD))
    readable = not of_rows or {*changes} == {_ADDED}
    return Change(committed, ", then ".join(told) or "its rows are others now", of_rows, overwritten, readable)


def check_unchanged(dataset: Any, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Refuse to go on from a version whose rows others have changed: its metadata counts tokens that are not there.

    Raises:
        StoreError: Naming what they have done, and the cure.
    """
    change = change_of(dataset, uri, storage_options)
    if change is not None and change.of_rows:
        raise StoreError(
            f"The token store {uri!r} was changed by others since its version {change.committed} ({change.what}), so nothing "
            f"is added to it or taken out, or tokens would be lost or doubled: {cure(uri, change)}; or build another store."
        )


def cure(uri: str, change: Change) -> str:
    """Say how to undo a change."""
    return f"lance.dataset({uri!r}, version={change.committed}).restore() brings that version back"


def check_columns(dataset: Any, uri: str) -> None:
    """Refuse a version that lacks what every store has.

    Raises:
        StoreError: Naming the columns.
    """
    missing = [name for name in COLUMNS[:-1] if name not in dataset.schema.names]
    if missing:
        committed, _ = lineage_of(dataset)
        raise StoreError(
            f"Version {dataset.version} of the token store {uri!r} has no column {', '.join(missing)}, which others have "
            f"dropped or renamed: lance.dataset({uri!r}, version={committed}).restore() brings them back."
        )


def _description(dataset: Any) -> tuple[Any, ...]:
    """Describe what the rows of a version are made of."""
    fragments = [
        (
            tuple(file.path for file in fragment.files),
            None if fragment.deletion_file is None else fragment.deletion_file.path(fragment.id),
            fragment.physical_rows,
            len(fragment.overlays or ()),
        )
        for fragment in fragments_of(dataset)
    ]
    return fragments, dataset.schema.remove_metadata()


def _totals(dataset: Any) -> Counter[tuple[str, str]]:
    """Count the tokens of each stream."""
    totals: Counter[tuple[str, str]] = Counter()
    if not {*COLUMNS[:-1]} <= {*dataset.schema.names}:
        return totals
    rows = stream_columns(dataset)
    summed = rows.group_by(["split", "language"]).aggregate([("num_tokens", "sum")])
    for row in summed.to_pylist():
        totals[row["split"], row["language"]] = row["num_tokens_sum"]
    return totals
