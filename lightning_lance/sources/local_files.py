"""Local files by pattern: each real file once, in an order that names alone decide, and an account of what is left out.

A pattern is read from the left. A name that exists as it is written means itself, with wildcards in it or not; the first that
does not exist begins the pattern proper. A folder means the files in it and below.

Token stores, and what builders write beside them, are found by their names only: a folder of texts may hold the folder of the
stores that are built of it, and would otherwise be another one after each build.

Links are followed within a boundary: the root, or else the folder that a pattern names before its first wildcard. A file that
is found under several names keeps one that has no link in it.
"""

from __future__ import annotations

import errno
import fnmatch
import heapq
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import has_magic

from lightning_lance.errors import SourceError
from lightning_lance.location import is_own_file, is_own_folder
from lightning_lance.messages.formatting import pluralize
from lightning_lance.sources.local_paths import local_path, readable

# Why files that a pattern matches are left out, in the words of a message.
HIDDEN = "hidden or in a hidden folder"
EXCLUDED = "in a folder of source.exclude"
IGNORED = "called as what describes a dataset"
OWN = "of a token store, or beside one"
OTHER_FORMAT = "of another format by name"
BROKEN = "a link that leads nowhere"
SPECIAL = "no regular file"
FOLDER = "a folder with the name of a file (named without wildcards, a folder means the files in it)"


@dataclass(frozen=True)
class Rules:
    """Which files a pattern passes over.

    Attributes:
        excluded: Names of folders whose files are left out, also where a pattern names them.
        ignored: Names of files that are found only by a pattern that ends with that very name.
        special: Whether folders that begin with `__` are treated like hidden ones.
        endings: How the names of the files end that a folder means; None for all.
        bounded: Whether the root is the boundary of links, for patterns that lead into it.
        follow_links: Whether links are followed out of the boundary.
    """

    excluded: Collection[str] = ()
    ignored: Collection[str] = ()
    special: bool = False
    endings: tuple[str, ...] | None = None
    bounded: bool = False
    follow_links: bool = False


@dataclass(frozen=True)
class LocalFile:
    """A file that a pattern found.

    Attributes:
        name: Its path: relative to the root, or absolute where the pattern is.
        real: Its path without links.
        linked: Whether the name has a link in it.
        key: What files are sorted by: the name, its beginning as the pattern spells it.
        tail: What follows in the name after the folder that the pattern names before its first wildcard.
    """

    name: str
    real: str
    linked: bool
    key: str
    tail: str

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Of several names of a file, that of the lowest rank is taken: without links, and plainly spelled."""
        return (self.linked, self.key != self.name, self.key)


@dataclass(frozen=True)
class _Folder:
    """A folder on the way: its path from the root (or absolute), its real path, and why its files are left out, if so."""

    name: str
    real: str
    linked: bool = False
    why: str = ""

    @property
    def rank(self) -> tuple[bool, bool, str]:
        return (bool(self.why), self.linked, self.name)


@dataclass
class Account:
    """What a search has left out, or found twice.

    Attributes:
        left_out: Real path of a file that a pattern matches, to why it is left out.
        names: Real path of a file that is read, to its names, where there are several.
        outward: Path of a link that leads out of its boundary, to what it leads to.
        literal: Sentences about names that mean themselves and look like patterns.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    outward: dict[str, str] = field(default_factory=dict)
    literal: list[str] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """Count the files that are left out, by why."""
        return Counter(self.left_out.values())

    def reason(self) -> str:
        """Say why nothing was found, where that is known; empty where it is not."""
        if self.outward:
            link, target = min(self.outward.items())
            return f"{link!r} is a link that leads out to {target!r}, which is read with source.follow_links=true"
        counts = self.counts()
        return ", ".join(f"{counts[why]:,} {'is' if counts[why] == 1 else 'are'} {why}" for why in sorted(counts))

    def remarks(self, source: str, read: Collection[str], follow_links: bool) -> list[tuple[int, str]]:
        """Return what the log of a build has to say, each with its level.

        Args:
            source: Name of the source.
            read: Real paths of the files that are read.
            follow_links: Whether links are followed out of their boundary.
        """
        told = [(logging.WARNING, f"Source {source!r}: {sentence}.") for sentence in self.literal]
        left_out = Counter(why for real, why in self.left_out.items() if real not in read)
        outward = {link: real for link, real in self.outward.items() if real not in read or follow_links}
        if outward:
            link, target = min(outward.items())
            links = f"{pluralize(len(outward), 'link')} out of its folder, such as {link!r} -> {target!r}"
            if follow_links:
                told.append((logging.INFO, f"Source {source!r} follows {links}."))
            else:
                cure = "source.follow_links=true reads what they lead to"
                told.append((logging.WARNING, f"Source {source!r} does not follow {links}: {cure}."))
        if left_out:
            listed = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
            total = pluralize(sum(left_out.values()), "file that matches", "files that match")
            level = logging.WARNING if FOLDER in left_out else logging.INFO
            told.append((level, f"Source {source!r} leaves out {total}: {listed}."))
        twice = {real: names for real, names in self.names.items() if real in read}
        if twice:
            further = sum(len(names) - 1 for names in twice.values())
            names = pluralize(further, "further name")
            told.append(
                (logging.INFO, f"Source {source!r} reads {pluralize(len(twice), 'file')} once that links give {names}.")
            )
        return told


class Search:
    """Finds the files of patterns.

    Args:
        root: Folder that patterns are relative to.
        rules: What they pass over.
        counting: Whether to look into hidden and excluded folders too, for an account of them.
    """

    def __init__(self, root: str, rules: Rules, counting: bool = False) -> None:
        self.root, self.rules, self.counting = root, rules, counting
        self.real_root = os.path.realpath(root)
        self.account = Account()
        #: How many parts the last pattern had after the folder that it named before its first wildcard.
        self.rest = 0

    def find(self, pattern: str) -> list[LocalFile]:
        """Return the files that a pattern finds, each real file once, sorted by name.

        Raises:
            SourceError: If a folder cannot be listed.
        """
        found: dict[str, LocalFile] = {}
        walk = _Walk(self, local_path(pattern))
        self.rest = walk.rest
        for match in walk.files():
            self.keep(found, match)
        return sorted(found.values(), key=lambda match: match.key)

    def from_root(self, match: LocalFile) -> str:
        """Return the name of a file relative to the root, also where its pattern is absolute."""
        if not match.name.startswith(("/", "../")):
            return match.name
        if inside(match.real, self.real_root) and not match.linked:
            return os.path.relpath(match.real, self.real_root)
        return os.path.relpath(os.path.join(self.root, match.name), self.root)

    def keep(self, found: dict[str, LocalFile], match: LocalFile) -> None:
        """Add a file to those that are found, by real path, under the better of its names."""
        known = found.setdefault(match.real, match)
        if known.name != match.name:
            self.account.names.setdefault(match.real, {known.name}).add(match.name)
        if match.rank < known.rank:
            found[match.real] = match


class _Part:
    """One name of a pattern.

    Args:
        text: As it is written.
        literal: Whether it means itself, whatever is in it.
    """

    def __init__(self, text: str, literal: bool = False) -> None:
        self.text = text
        self.deep = text == "**" and not literal
        self.literal = literal or not has_magic(text)
        self._match = re.compile(fnmatch.translate(text)).match

    def matches(self, name: str) -> bool:
        """Return whether it matches a name, hidden or not."""
        return name == self.text or (not self.literal and self._match(name) is not None)

    def passes_over(self, name: str, special: bool) -> bool:
        """Return whether it leaves a name alone that it matches, since that is hidden."""
        marks = (".", "__") if special else (".",)
        return any(name.startswith(mark) and not self.text.startswith(mark) for mark in marks)


_ANY = _Part("*")


class _Walk:
    """The way of one pattern through the folders.

    Args:
        search: Whose root, rules and account hold.
        spelled: The pattern, as a path.
    """

    def __init__(self, search: Search, spelled: str) -> None:
        self._search, self._rules, self._account = search, search.rules, search.account
        self._parts = [_Part(part) for part in spelled.split("/") if part not in ("", ".")]
        self._folders_only = spelled.endswith(("/", "/."))
        self._last = self._parts[-1].text if self._parts else ""
        self._at = _Folder("/", "/") if spelled.startswith("/") else _Folder("", search.real_root)
        self._boundary: str | None = None
        self._blocked = False
        self._take_literal()
        self.rest = len(self._parts)
        # The beginning of all names, and how the pattern spells it.
        rest = "/".join(part.text for part in self._parts)
        self._begin = os.path.join(self._at.name, "")
        self._spelled = spelled.removesuffix("/").removesuffix(rest) if rest else os.path.join(spelled, "")

    def files(self) -> Iterator[LocalFile]:
        """Find the files."""
        if self._blocked or (self._parts and self._folders_only):
            return
        start = {self._at.real: self._at}
        if not self._parts:
            yield from self._matching(self._below(start), _ANY, self._rules.endings)
            return
        folders = start
        for part in self._parts[:-1]:
            folders = self._step(folders, part)
        last = self._parts[-1]
        if last.deep:
            yield from self._matching(self._below(folders), _ANY)
        else:
            yield from self._matching(folders, last)

    # The names that exist as they are written.

    def _take_literal(self) -> None:
        """Go down the folders that exist as the pattern spells them, and set the boundary of links."""
        while self._parts:
            part = self._parts[0]
            if part.text == "..":
                self._at = self._parent(self._at)
                self._parts.pop(0)
                continue
            place = os.path.join(self._at.real, part.text)
            if not part.literal and os.path.lexists(place):
                self._note_literal(part)
                self._parts[0] = part = _Part(part.text, literal=True)
            if not part.literal or not os.path.isdir(place):
                break
            self._boundary = self._root_boundary()
            real = self._followed(self._at, part.text, place) if os.path.islink(place) else place
            if real is None:
                self._blocked = True
                return
            self._at = _Folder(os.path.join(self._at.name, part.text), real, real != place or self._at.linked)
            self._parts.pop(0)
        self._boundary = self._root_boundary() or self._at.real
        if {*self._from_root(self._at).split("/")} & {*self._rules.excluded}:
            self._at = replace(self._at, why=EXCLUDED)
        if len(self._parts) == 1 and self._parts[0].literal:
            # A file that is named: nothing but the root bounds where it may be.
            self._boundary = self._root_boundary()

    def _root_boundary(self) -> str | None:
        bounded = self._rules.bounded and inside(self._at.real, self._search.real_root)
        return self._search.real_root if bounded else None

    def _parent(self, folder: _Folder) -> _Folder:
        real = os.path.dirname(folder.real)
        if folder.linked or folder.name.startswith("/"):
            return _Folder(real, real)
        above = not folder.name.strip("./")
        return _Folder(os.path.join(folder.name, "..") if above else os.path.dirname(folder.name), real)

    def _from_root(self, folder: _Folder) -> str:
        return os.path.relpath(folder.real, self._search.real_root)

    def _note_literal(self, part: _Part) -> None:
        pattern = _Part(part.text)
        others = [
            entry.name for entry in self._entries(self._at) if entry.name != part.text and pattern.matches(entry.name)
        ]
        if others:
            self._account.literal.append(
                f"{os.path.join(self._at.name, part.text)!r} exists and means itself, not the pattern that would match "
                f"{min(others)!r} too"
            )

    # The names that wildcards match.

    def _step(self, folders: dict[str, _Folder], part: _Part) -> dict[str, _Folder]:
        """Return the folders that a part of the pattern leads to, by real path."""
        if part.deep:
            return self._below(folders)
        reached: dict[str, _Folder] = {}
        for folder in folders.values():
            for child in self._children(folder, part):
                _better(reached, child)
        return reached

    def _children(self, folder: _Folder, part: _Part) -> Iterator[_Folder]:
        if part.text == "..":
            yield self._parent(folder)
            return
        if part.literal:
            place = os.path.join(folder.real, part.text)
            names = [(part.text, os.path.islink(place))] if os.path.isdir(place) else []
        else:
            entries = self._entries(folder)
            names = [(each.name, each.is_symlink()) for each in entries if part.matches(each.name) and _is_folder(each)]
        for name, is_link in names:
            entered = self._entered(folder, name, part, is_link)
            if entered is not None:
                yield entered

    def _below(self, starts: dict[str, _Folder]) -> dict[str, _Folder]:
        """Return folders and all below them, by real path: each once, however many links lead to it."""
        reached = dict(starts)
        ahead = list(starts.values())
        # Links wait until all that can be reached without them is, so that it keeps its own name.
        links: list[str] = []
        targets: dict[str, _Folder] = {}
        while ahead or links:
            if not ahead:
                linked = targets[heapq.heappop(links)]
                if _better(reached, linked):
                    ahead.append(linked)
                continue
            folder = ahead.pop()
            for entry in self._entries(folder):
                if not _is_folder(entry):
                    continue
                child = self._entered(folder, entry.name, _ANY, entry.is_symlink())
                if child is None:
                    continue
                if entry.is_symlink():
                    targets[child.name] = child
                    heapq.heappush(links, child.name)
                elif _better(reached, child):
                    ahead.append(child)
        return reached

    def _entered(self, folder: _Folder, name: str, part: _Part, is_link: bool) -> _Folder | None:
        """Return a folder within another one; None where it is of no interest."""
        why = folder.why
        if not why and name in self._rules.excluded:
            why = EXCLUDED
        if not why and part.passes_over(name, self._rules.special):
            why = HIDDEN
        place = os.path.join(folder.real, name)
        if not why and not part.literal and is_own_folder(place, name):
            why = OWN
        if why and (is_link or not self._search.counting):
            return None
        real = self._followed(folder, name, place) if is_link else place
        if real is None:
            return None
        if is_link and self._is_excluded(real):
            why = EXCLUDED
        return _Folder(os.path.join(folder.name, name), real, is_link or folder.linked, why)

    def _matching(
        self, folders: dict[str, _Folder], part: _Part, endings: tuple[str, ...] | None = None
    ) -> Iterator[LocalFile]:
        """Return the files in some folders that the last part of the pattern matches."""
        for folder in folders.values():
            if part.literal:
                place = os.path.join(folder.real, part.text)
                if os.path.lexists(place) and not os.path.isdir(place):
                    yield from self._judged(folder, part, part.text, os.path.islink(place), endings)
                continue
            entries = self._entries(folder)
            names = {entry.name for entry in entries}
            for entry in entries:
                if not part.matches(entry.name):
                    continue
                if not _is_folder(entry):
                    own = is_own_file(entry.name, names)
                    yield from self._judged(folder, part, entry.name, entry.is_symlink(), endings, OWN if own else "")
                elif part is not _ANY and self._rules.endings and entry.name.endswith(self._rules.endings):
                    self._account.left_out[os.path.join(folder.real, entry.name)] = FOLDER

    def _judged(
        self, folder: _Folder, part: _Part, name: str, is_link: bool, endings: tuple[str, ...] | None, why: str = ""
    ) -> Iterator[LocalFile]:
        """Return a file that a pattern matches, unless there is a reason to leave it out."""
        real, why = os.path.join(folder.real, name), folder.why or why
        if endings is not None and not name.endswith(endings):
            if why:
                return
            why = OTHER_FORMAT
        if not why and part.passes_over(name, special=False):
            why = HIDDEN
        if not why and name in self._rules.ignored and name != self._last:
            why = IGNORED
        if not why and not os.path.isfile(real):
            why = BROKEN if is_link and not os.path.exists(real) else SPECIAL
        if not why and is_link:
            followed = self._followed(folder, name, real)
            if followed is None:
                return
            real = followed
            if self._is_excluded(os.path.dirname(real)):
                why = EXCLUDED
        if why:
            self._account.left_out[real] = why
            return
        path = os.path.join(folder.name, name)
        tail = path.removeprefix(self._begin)
        yield LocalFile(path, real, folder.linked or is_link, self._spelled + tail, tail)

    def _followed(self, folder: _Folder, name: str, place: str) -> str | None:
        """Return what a link leads to; None if that is out of bounds."""
        real = os.path.realpath(place)
        if self._boundary is not None and not inside(real, self._boundary):
            self._account.outward[os.path.join(folder.name, name)] = real
            if not self._rules.follow_links:
                return None
        return real

    def _is_excluded(self, real: str) -> bool:
        """Return whether a link has led into a folder within the root that is excluded."""
        root = self._search.real_root
        return inside(real, root) and not {*os.path.relpath(real, root).split("/")}.isdisjoint(self._rules.excluded)

    def _entries(self, folder: _Folder) -> Sequence[os.DirEntry[str]]:
        try:
            with os.scandir(folder.real) as entries:
                return list(entries)
        except OSError as error:
            if folder.why or error.errno in (errno.ENOENT, errno.ENOTDIR):
                return []
            raise SourceError(
                f"The folder {readable(folder.real)!r} cannot be listed ({error.strerror}): let this process read it, or give "
                "patterns that leave it out."
            ) from error


def inside(real: str, folder: str) -> bool:
    """Return whether a path without links is a folder, or in it."""
    return real == folder or real.startswith(os.path.join(folder, ""))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def _better(known: dict[str, _Folder], folder: _Folder) -> bool:
    """Keep a folder if it is new, or was known by a worse name only; tell whether it was kept."""
    before = known.get(folder.real)
    if before is not None and before.rank <= folder.rank:
        return False
    known[folder.real] = folder
    return True
