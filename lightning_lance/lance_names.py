"""The names of the files in the folder of a store: Lance's own, as pylance 14 gives them, and those of units.

No other module knows them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

DATA = "data"
TRANSACTIONS = "_transactions"
VERSIONS = "_versions"
DELETIONS = "_deletions"
INDICES = "_indices"
TAGS = "_refs/tags"
BRANCHES = "_refs/branches"
# Results of units that no commit has yet.
UNITS = "_units"
# The folders of a store, except those of its indices, whose names are uuids. Lance's branches are not part of a token store.
FOLDERS = (DATA, TRANSACTIONS, VERSIONS, DELETIONS, "_refs", TAGS, BRANCHES, INDICES, UNITS)

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# Lance writes a part of the uuid in bits, to spread the names of a bucket.
_DATA_FILE = r"[01]{24}[0-9a-f]{26}\.lance"
# A data file or the result of a unit, by its name, or what units of a cluster were merged into: what, shard, row, attempt.
_UNIT = r"(?P<what>scan|unit|merged)-(?P<shard>\d{7})-(?P<row>\d{12})-(?P<attempt>[0-9a-f]{16})"
_UNIT_DATA = rf"{_UNIT}\.lance"
_UNIT_RESULT = rf"{_UNIT}\.arrow"
# A half-written file.
_HALF = r"\.tmp[A-Za-z0-9]{1,12}"
_MANIFEST = r"\d+\.manifest"
_TRANSACTION = rf"\d+-{_UUID}\.txn"
# Stands for all folders of indices.
_ANY_INDEX = f"{INDICES}/*"

# The files that a killed builder may leave, by folder.
_LEFT = {
    "": [_HALF],
    DATA: [_HALF, _DATA_FILE, _UNIT_DATA],
    UNITS: [_UNIT_RESULT, rf"{_UNIT_RESULT}\.[0-9a-f]{{16}}\.part"],
    TRANSACTIONS: [_HALF, _TRANSACTION, rf"{_TRANSACTION}#\d+"],
    VERSIONS: [_HALF, rf"{_MANIFEST}#\d+", rf"\.tmp_{_MANIFEST}_{_UUID}"],
}
# All other files of a store, by folder.
_KEPT = {
    VERSIONS: [_MANIFEST, r"latest_version_hint\.json"],
    DELETIONS: [r"\d+-\d+-\d+\.(arrow|bin)"],
    TAGS: [r".+\.json"],
    _ANY_INDEX: [r".*"],
}
_INDEX_FOLDER = re.compile(rf"{INDICES}/{_UUID}")
_REF = ".json"
# A manifest or a transaction of a token store.
_OF_A_VERSION = re.compile(rf"{VERSIONS}/[0-9]{{20}}\.manifest|{TRANSACTIONS}/[0-9]{{1,19}}-[0-9A-Za-z-]+\.txn")
# Lance counts versions down in their names, so that the newest is listed first.
_LAST = 2**64 - 1
# The last bytes of every Lance file.
MAGIC = b"LANC"


def manifest_of(version: int) -> str:
    """Return the path of the manifest of a version."""
    return f"{VERSIONS}/{_LAST - version:020d}.manifest"


def transaction_of(version: int, uuid: str) -> str:
    """Return the path of the transaction that made a version."""
    return f"{TRANSACTIONS}/{version - 1}-{uuid}.txn"


def name_of(file: Any) -> str:
    """Return the name of a data file, given Lance's description of it."""
    # Its property `path` makes a class each time, which takes longer than all else for a file.
    name: str = file._path
    return name


def data_file_at(name: str) -> str:
    """Return the path of a data file."""
    return f"{DATA}/{name}"


def tag_file(name: str) -> str:
    """Return the path of the file of a tag."""
    return f"{TAGS}/{name}{_REF}"


def branch_file(name: str) -> str:
    """Return the path of the file of a branch."""
    return f"{BRANCHES}/{name}{_REF}"


def ref_of(file: str) -> str | None:
    """Return the name of the tag or branch of a file, by its name; None if it belongs to none."""
    if file.endswith(_REF):
        return file.removesuffix(_REF)
    return None


def version_of(path: str) -> int:
    """Return the version of a manifest or a transaction."""
    name = path.rpartition("/")[2]
    if is_transaction(name):
        return int(name.partition("-")[0]) + 1
    return _LAST - int(name.partition(".")[0])


def uuid_of(transaction: str) -> str:
    """Return the uuid in the name of a transaction."""
    return transaction.rpartition("/")[2].removesuffix(".txn").partition("-")[2]


def is_manifest(path: str) -> bool:
    """Return whether a path is a manifest, given that it is `of_a_version`."""
    return path.startswith(f"{VERSIONS}/")


def is_transaction(path: str) -> bool:
    """Return whether a path is a transaction."""
    return path.endswith(".txn")


def is_lance_file(path: str) -> bool:
    """Return whether a path has the suffix of Lance's file format."""
    return path.endswith(".lance")


def of_a_version(path: str) -> bool:
    """Return whether a path is a manifest or a transaction."""
    return _OF_A_VERSION.fullmatch(path) is not None


def is_data_name(name: str) -> bool:
    """Return whether a name is one of a data file."""
    return re.fullmatch(_DATA_FILE, name) is not None or re.fullmatch(_UNIT_DATA, name) is not None


class UnitName(NamedTuple):
    """The name of an attempt at a unit, and of its files.

    Attributes:
        what: `unit` for rows to store, `scan` for their hashes, `merged` for rows of several units.
        shard: Index of the shard.
        row: Its first row.
        attempt: 16 hexadecimal digits that no two attempts share.
    """

    what: str
    shard: int
    row: int
    attempt: str

    def __str__(self) -> str:
        return f"{self.what}-{self.shard:07d}-{self.row:012d}-{self.attempt}"

    @property
    def data_name(self) -> str:
        """The name of its data file."""
        return f"{self}.lance"

    @property
    def result_path(self) -> str:
        """The path of its result."""
        return f"{UNITS}/{self}.arrow"


def unit_of(path: str) -> UnitName | None:
    """Return the unit of a data file or a result, by its path; None for any other file."""
    name = path.rpartition("/")[2]
    found = re.fullmatch(_UNIT_DATA, name) or re.fullmatch(_UNIT_RESULT, name)
    if found is None:
        return None
    return UnitName(found["what"], int(found["shard"]), int(found["row"]), found["attempt"])


def is_folder(path: str) -> bool:
    """Return whether a path is a folder of a store."""
    return path in FOLDERS or _INDEX_FOLDER.fullmatch(path) is not None


def may_be_left(path: str) -> bool:
    """Return whether a path is one that a killed builder may leave."""
    return _has_name(path, _LEFT)


def belongs(path: str) -> bool:
    """Return whether a path is any other file of a store."""
    return _has_name(path, _KEPT)


def removal_order(path: str) -> tuple[int, int]:
    """Return a sort key for removing a store: tags and checksums, then versions, the newest last, then their files."""
    folder, _, name = path.rpartition("/")
    if folder in (DATA, TRANSACTIONS):
        return 2, 0
    if not folder.startswith(VERSIONS):
        return 0, 0
    number = name.partition(".")[0]
    # The hint of the newest version has no number, and goes first.
    return 1, -int(number) if number.isdigit() else -(2**64)


def _has_name(path: str, names: dict[str, list[str]]) -> bool:
    folder, _, name = path.rpartition("/")
    if _INDEX_FOLDER.fullmatch(folder):
        folder = _ANY_INDEX
    return any(re.fullmatch(pattern, name) for pattern in names.get(folder, ()))
