"""The tags and branches of a store, as their files tell, read without Lance: it reads none of them where one is damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lightning_lance.format.checksums import Root, root_session
from lightning_lance.format.lance_names import BRANCHES, TAGS, branch_file, ref_of
from lightning_lance.messages.redaction import in_one_line


class Damage(NamedTuple):
    """What is wrong with a file.

    Attributes:
        why: In words, after its name.
        loss: What would be lost with it: `nothing` (it is empty), `content`, or `unknown` (it cannot be looked at).
    """

    why: str
    loss: Literal["nothing", "content", "unknown"]


class Refs(NamedTuple):
    """What names versions of a store.

    Attributes:
        tags: Name of a tag to its version. Tags of a branch's versions are not among them.
        branches: Name of a branch to the version of the store that it was made of; Lance keeps that one.
        damaged: Name of a tag that cannot be read to the reason.
        unreadable: Path of the file of a branch that cannot be read to the reason.
    """

    tags: dict[str, int]
    branches: dict[str, int]
    damaged: dict[str, Damage]
    unreadable: dict[str, Damage]


def read_refs(uri: str, storage_options: Mapping[str, str] | None) -> Refs:
    """Read all tags and branches. One that goes meanwhile is not there.

    Raises:
        OSError: If the store cannot be read.
    """
    session = root_session(uri, storage_options)
    refs = Refs({}, {}, {}, {})
    for name, told in _files(session, TAGS):
        if isinstance(told, Damage):
            refs.damaged[name] = told
        elif told.get("branch") in (None, "main"):
            refs.tags[name] = told["version"]
    for name, told in _files(session, BRANCHES):
        if isinstance(told, Damage):
            refs.unreadable[branch_file(name)] = told
        elif told.get("parentBranch") in (None, "main"):
            refs.branches[name] = told["parentVersion"]
    return refs


def _files(session: Root, folder: str) -> list[tuple[str, dict[str, Any] | Damage]]:
    """Read the files of a folder: name to what it says, or to what is wrong with it."""
    found: list[tuple[str, dict[str, Any] | Damage]] = []
    number = "version" if folder == TAGS else "parentVersion"
    for file in session.names(folder):
        name = ref_of(file)
        if name is None:
            continue
        told: dict[str, Any] | Damage
        try:
            told = _read(session.content(f"{folder}/{file}"), number)
        except IsADirectoryError:
            told = Damage("is a folder", "unknown")
        except (ValueError, OSError) as error:
            if file not in session.names(folder):
                continue  # it has just been removed
            told = Damage(f"cannot be read ({in_one_line(error, 150)})", "unknown")
        found.append((name, told))
    return found


def _read(content: bytes, number: str) -> dict[str, Any] | Damage:
    """Read the file of a tag or a branch; or say what keeps Lance from it."""
    if not content.strip(b"\0"):
        why = f"holds {len(content)} bytes, none of which was written" if content else "is empty"
        return Damage(why, "nothing")
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return Damage("is not JSON", "content")
    if not isinstance(told, dict):
        return Damage("is no JSON object", "content")
    for field in (number, "manifestSize"):
        value = told.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
            return Damage(f"has {'no' if value is None else 'a wrong'} {field}", "content")
    for field, kind in (("branch", str), ("parentBranch", str), ("metadata", dict)):
        if not isinstance(told.get(field), (kind, type(None))):
            return Damage(f"has a wrong {field}", "content")
    return told
