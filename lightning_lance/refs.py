"""The tags and branches of a store, as their files tell, read without Lance: it reads none of them where one is damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_lance.sums import Root, root_session

TAGS, _BRANCHES = "_refs/tags", "_refs/branches"
_ENDING = ".json"


class Refs(NamedTuple):
    """What names versions of a store.

    Attributes:
        tags: Name of a tag to its version. Tags of a branch's versions are not among them.
        branches: Name of a branch to the version of the store that it was made of; Lance keeps that one.
        damaged: Name of a tag that cannot be read to the reason.
        unreadable: File of a branch that cannot be read to the reason.
    """

    tags: dict[str, int]
    branches: dict[str, int]
    damaged: dict[str, str]
    unreadable: dict[str, str]


def read_refs(uri: str, storage_options: Mapping[str, str] | None) -> Refs:
    """Read all tags and branches. One that goes meanwhile is not there.

    Raises:
        OSError: If the store cannot be read.
    """
    session = root_session(uri, storage_options)
    found = Refs({}, {}, {}, {})
    for name, told in _files(session, TAGS):
        if isinstance(told, str):
            found.damaged[name] = told
        elif told.get("branch") in (None, "main"):
            found.tags[name] = told["version"]
    for name, told in _files(session, _BRANCHES):
        if isinstance(told, str):
            found.unreadable[f"{_BRANCHES}/{name}{_ENDING}"] = told
        elif told.get("parentBranch") in (None, "main"):
            found.branches[name] = told["parentVersion"]
    return found


def tag_file(name: str) -> str:
    """Give the path of the file of a tag, in the store."""
    return f"{TAGS}/{name}{_ENDING}"


def shown(name: str) -> str:
    """Write a name as it can be printed: that of a file may be no text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _files(session: Root, folder: str) -> list[tuple[str, dict[str, Any] | str]]:
    """Read the files of a folder: name to what it says, or to why it cannot be read."""
    found: list[tuple[str, dict[str, Any] | str]] = []
    number = "version" if folder == TAGS else "parentVersion"
    for name in session.names(folder):
        if not name.endswith(_ENDING):
            continue
        path = f"{folder}/{name}"
        try:
            told = _read(session.content(path), number)
        except (ValueError, OSError) as error:
            if name not in session.names(folder):
                continue
            told = f"cannot be read ({' '.join(str(error).split())[:150]})"
        found.append((name.removesuffix(_ENDING), told))
    return found


def _read(content: bytes, number: str) -> dict[str, Any] | str:
    """Read the file of a tag or a branch; if Lance could not, say why."""
    if not content.strip(b"\0"):
        return f"holds {len(content)} bytes, none of them written" if content else "is empty"
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(told, dict):
        return "is no JSON object"
    for field in (number, "manifestSize"):
        value = told.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
            return f"has {'no' if value is None else 'a wrong'} {field}"
    for field, kind in (("branch", str), ("parentBranch", str), ("metadata", dict)):
        if not isinstance(told.get(field), (kind, type(None))):
            return f"has a wrong {field}"
    return told
