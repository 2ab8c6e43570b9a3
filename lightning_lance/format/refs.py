"""Read the tags and branches of a store from their files. Lance reads none of them if one is damaged."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from lightning_lance.format.checksums import Root
from lightning_lance.lance_names import BRANCHES, TAGS, branch_file, ref_of
from lightning_lance.location import StoreLocation
from lightning_lance.messages.redaction import in_one_line


class Damage(NamedTuple):
    """The damage of a file.

    Attributes:
        why: A predicate, to follow the name of the file in a message.
        loss: What its removal would lose: `nothing` (it is empty), `content`, or `unknown` (it cannot be read).
    """

    why: str
    loss: Literal["nothing", "content", "unknown"]


class Refs(NamedTuple):
    """The tags and branches of a store.

    Attributes:
        tags: Name of a tag to its version, without the tags of a branch's versions.
        times: Name of a tag to when it was made or moved last, as Lance writes it; only where that is known.
        branches: Name of a branch to the version that it was made from, which Lance keeps.
        damaged: Name of an unreadable tag to its damage.
        unreadable: Path of an unreadable file of a branch to its damage.
    """

    tags: dict[str, int]
    times: dict[str, str]
    branches: dict[str, int]
    damaged: dict[str, Damage]
    unreadable: dict[str, Damage]


def read_refs(location: StoreLocation) -> Refs:
    """Read all tags and branches, without those removed meanwhile. OSError if the store cannot be read."""
    session = Root(location)
    refs = Refs({}, {}, {}, {}, {})
    for name, content in _files(session, TAGS, "version"):
        if isinstance(content, Damage):
            refs.damaged[name] = content
        elif content.get("branch") in (None, "main"):
            refs.tags[name] = content["version"]
            when = content.get("updatedAt") or content.get("createdAt")
            if isinstance(when, str):
                refs.times[name] = when
    for name, content in _files(session, BRANCHES, "parentVersion"):
        if isinstance(content, Damage):
            refs.unreadable[branch_file(name)] = content
        elif content.get("parentBranch") in (None, "main"):
            refs.branches[name] = content["parentVersion"]
    return refs


def _files(session: Root, folder: str, number: str) -> list[tuple[str, dict[str, Any] | Damage]]:
    """Return the tags or branches in a folder: name, and its content, in which `number` is a version, or damage."""
    found: list[tuple[str, dict[str, Any] | Damage]] = []
    for file in session.names(folder):
        name = ref_of(file)
        if name is None:
            continue
        content: dict[str, Any] | Damage
        try:
            content = _read(session.content(f"{folder}/{file}"), number)
        except IsADirectoryError:
            content = Damage("is a folder", "unknown")
        except (ValueError, OSError) as error:
            # It may have been removed meanwhile.
            if file not in session.names(folder):
                continue
            content = Damage(f"cannot be read ({in_one_line(error, 150)})", "unknown")
        found.append((name, content))
    return found


def _read(content: bytes, number: str) -> dict[str, Any] | Damage:
    """Return the content of the file of a tag or a branch, or the damage that keeps Lance from reading it."""
    if not content:
        return Damage("is empty", "nothing")
    if not content.strip(b"\0"):
        return Damage(f"has {len(content)} bytes, all of them zero", "nothing")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return Damage("is not JSON", "content")
    if not isinstance(fields, dict):
        return Damage("is not a JSON object", "content")
    for name in (number, "manifestSize"):
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
            return Damage(f"has {'no' if value is None else 'a wrong'} {name}", "content")
    for name, kind in (("branch", str), ("parentBranch", str), ("metadata", dict)):
        if not isinstance(fields.get(name), (kind, type(None))):
            return Damage(f"has a wrong {name}", "content")
    return fields
