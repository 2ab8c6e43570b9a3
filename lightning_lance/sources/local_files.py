"""Local files by pattern: each real file once, in an order that depends on names only, with an account of skipped files.

A pattern is read from the left. A name that exists is taken literally, even with wildcards in it; the wildcards begin at the
first name that does not exist. A folder stands for the files in it and below.

Token stores, and the files of builders beside them, are found only by their names. Otherwise a folder of texts that also holds
the stores built from it would change with each build.

Links are followed within a boundary: the root, or else the folder that a pattern names before its first wildcard. For a file
with several names, one without a link is preferred.
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
from pathlib import PurePath

from lightning_lance.errors import SourceError
from lightning_lance.location import is_own_file, is_own_folder
from lightning_lance.messages.formatting import agreed, pluralize
from lightning_lance.sources.local_paths import local_path, names_along, readable

# Reasons for skipping a file that a pattern matches, for messages.
HIDDEN = "hidden"
IN_HIDDEN = "in a hidden folder"
EXCLUDED = "in a folder of source.exclude"
IGNORED = "named like a description of a dataset"
OWN = "of a token store, or beside one"
OTHER_FORMAT = "named like another format"
BROKEN = "a broken link"
SPECIAL = "not a regular file"
FOLDER = "a folder named like a file, whose files are read if it is named without wildcards"


@dataclass(frozen=True)
class Rules:
    """Which files a pattern skips.

    Attributes:
        excluded: Names of folders whose files are skipped, even if a pattern names them.
        ignored: Names of files that are found only by a pattern that ends with the same name.
        special: Whether folders that begin with `__` are treated like hidden ones.
        endings: Endings of the files that a folder stands for; None for all.
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
        name: Its path, relative to the root, or absolute if the pattern is.
        real: Its path without links.
        linked: Whether the name has a link in it.
        key: The sort key: the name, with its beginning as spelled in the pattern.
        tail: The part of the name after the folder that the pattern names before its first wildcard.
    """

    name: str
    real: str
    linked: bool
    key: str
    tail: str

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Of several names of a file, the one with the lowest rank is used: without links, and in its usual spelling."""
        return (self.linked, self.key != self.name, self.key)


@dataclass(frozen=True)
class _Folder:
    """A folder: its path from the root (or absolute), its real path, and the reason for skipping its files, if any."""

    name: str
    real: str
    linked: bool = False
    why: str = ""

    @property
    def rank(self) -> tuple[bool, bool, str]:
        return (bool(self.why), self.linked, self.name)


@dataclass
class Account:
    """Files that a search has skipped or found twice.

    Attributes:
        left_out: Real path of a skipped file to the reason.
        folders: Real path of a skipped folder to the reason, without those in it.
        names: Real path of a file to its names, if it has several.
        outward: Path of a link out of its boundary to its target.
        literal: Sentences about names that look like patterns, and are taken literally.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    outward: dict[str, str] = field(default_factory=dict)
    literal: list[str] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """Return the number of skipped files by reason."""
        return Counter(self.left_out.values())

    def reason(self) -> str:
        """Return why nothing was found, empty if unknown."""
        if self.outward:
            link, target = min(self.outward.items())
            return f"{link!r} is a link out of its folder to {target!r}, which needs source.follow_links=true"
        reasons: list[str] = []
        for why, count in sorted(self.counts().items()):
            reasons.append(f"{count:,} {agreed(count, 'is', 'are')} {why}")
        return ", ".join(reasons)

    def remarks(
        self, source: str, read: Collection[str], follow_links: bool, expected: Collection[str] = ()
    ) -> list[tuple[int, str]]:
        """Return the lines for the log of a build, each with its level.

        Args:
            source: Name of the source.
            read: Real paths of the files that are read.
            follow_links: Whether links are followed out of their boundary.
            expected: Reasons that nobody wonders about.
        """
        lines: list[tuple[int, str]] = []
        for sentence in self.literal:
            lines.append((logging.WARNING, f"Source {source!r}: {sentence}."))
        skipped: dict[str, str] = {}
        for real, why in self.left_out.items():
            if real not in read and why not in expected:
                skipped[real] = why
        left_out = Counter(skipped.values())
        hidden = self._hidden(left_out, skipped)
        if hidden:
            lines.append((logging.INFO, f"Source {source!r}: {hidden}."))
        lines += self._of_links(source, read, follow_links)
        if left_out:
            lines.append(_of_skipped(source, left_out))
        lines += self._of_names(source, read)
        return lines

    def _of_links(self, source: str, read: Collection[str], follow_links: bool) -> list[tuple[int, str]]:
        """Return the line about links out of their boundary, if there are any."""
        outward: dict[str, str] = {}
        for link, target in self.outward.items():
            if follow_links or target not in read:
                outward[link] = target
        if not outward:
            return []
        link, target = min(outward.items())
        links = f"{pluralize(len(outward), 'link')} out of its folder, such as {link!r} -> {target!r}"
        if follow_links:
            return [(logging.INFO, f"Source {source!r} follows {links}.")]
        cure = "to read their targets, set source.follow_links=true"
        return [(logging.WARNING, f"Source {source!r} does not follow {links}: {cure}.")]

    def _of_names(self, source: str, read: Collection[str]) -> list[tuple[int, str]]:
        """Return the line about files with several names, if there are any."""
        files = 0
        further = 0
        for real, names in self.names.items():
            if real in read:
                files += 1
                further += len(names) - 1
        if not files:
            return []
        several = f"{pluralize(files, 'file')} with {pluralize(further, 'further name')}"
        return [(logging.INFO, f"Source {source!r} reads {several} from links only once.")]

    def _hidden(self, left_out: Counter[str], skipped: Collection[str]) -> str:
        """Return a clause about hidden files, and hidden and excluded folders, and remove their files from the counts.

        Only folders with a matching file are counted: nobody misses the others.
        """
        missed: set[str] = set()
        for file in skipped:
            missed.update(map(str, PurePath(file).parents))
        folders: Counter[str] = Counter()
        for folder, why in self.folders.items():
            if folder in missed:
                folders[why] += 1
        inside = left_out.pop(IN_HIDDEN, 0) + left_out.pop(EXCLUDED, 0)
        counts = (
            (left_out.pop(HIDDEN, 0), "hidden file", "hidden files"),
            (folders[HIDDEN], "hidden folder", "hidden folders"),
            (folders[EXCLUDED], "folder of source.exclude", "folders of source.exclude"),
        )
        parts: list[str] = []
        total = 0
        for count, noun, nouns in counts:
            if count:
                parts.append(pluralize(count, noun, nouns))
                total += count
        if not parts:
            return ""
        listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        content = ""
        if inside:
            content = f" (with {pluralize(inside, 'matching file')} in the folders)"
        return f"{listed} {agreed(total, 'was', 'were')} left out{content}"


def _of_skipped(source: str, counts: Counter[str]) -> tuple[int, str]:
    """Return the line about skipped files, given their number by reason."""
    listed = ", ".join(f"{why} ({count:,})" for why, count in sorted(counts.items()))
    level = logging.WARNING if FOLDER in counts else logging.INFO
    return level, f"Source {source!r} skips {pluralize(counts.total(), 'matching file')}: {listed}."


class Search:
    """Finds the files of patterns.

    Args:
        root: Folder that patterns are relative to.
        rules: Which files are skipped.
        counting: Whether to also search hidden and excluded folders, to count their files.
    """

    def __init__(self, root: str, rules: Rules, counting: bool = False) -> None:
        self.root = root
        self.rules = rules
        self.counting = counting
        self.real_root = os.path.realpath(root)
        self.account = Account()
        #: Number of parts of the last pattern after the folder that it names before its first wildcard.
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
        """Return the name of a file relative to the root, even if its pattern is absolute."""
        if not match.name.startswith(("/", "../")):
            return match.name
        if inside(match.real, self.real_root) and not match.linked:
            return os.path.relpath(match.real, self.real_root)
        return os.path.relpath(os.path.join(self.root, match.name), self.root)

    def keep(self, found: dict[str, LocalFile], match: LocalFile) -> None:
        """Add a file to the found ones, by real path, with the better of its names."""
        known = found.setdefault(match.real, match)
        if known.name != match.name:
            self.account.names.setdefault(match.real, {known.name}).add(match.name)
        if match.rank < known.rank:
            found[match.real] = match


class _Part:
    """One name of a pattern.

    Args:
        text: Its text.
        literal: Whether wildcards in it are taken literally.
    """

    def __init__(self, text: str, literal: bool = False) -> None:
        self.text = text
        self.deep = text == "**" and not literal
        self.literal = literal or not has_magic(text)
        self._match = re.compile(fnmatch.translate(text)).match

    def matches(self, name: str) -> bool:
        """Return whether the part matches a name, hidden or not."""
        return name == self.text or (not self.literal and self._match(name) is not None)

    def passes_over(self, name: str, special: bool) -> bool:
        """Return whether the part skips a matching name because it is hidden."""
        marks = (".", "__") if special else (".",)
        for mark in marks:
            if name.startswith(mark):
                return not self.text.startswith(mark)
        return False


_ANY = _Part("*")


class _Walk:
    """The search for the files of one pattern.

    Args:
        search: The search with the root, the rules and the account.
        spelled: The pattern, as a path.
    """

    def __init__(self, search: Search, spelled: str) -> None:
        self._search = search
        self._rules = search.rules
        self._account = search.account
        self._parts = list(map(_Part, names_along(spelled)))
        self._folders_only = spelled.endswith(("/", "/."))
        self._last = self._parts[-1].text if self._parts else ""
        self._at = _Folder("/", "/") if spelled.startswith("/") else _Folder("", search.real_root)
        self._boundary: str | None = None
        self._blocked = False
        self._take_literal()
        self.rest = len(self._parts)
        # The beginning of all names, and its spelling in the pattern.
        rest = "/".join(part.text for part in self._parts)
        self._begin = os.path.join(self._at.name, "")
        self._spelled = spelled.removesuffix("/").removesuffix(rest) if rest else os.path.join(spelled, "")

    def files(self) -> Iterator[LocalFile]:
        """Yield the files."""
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

    # Names that exist literally.

    def _take_literal(self) -> None:
        """Enter the folders that exist literally at the beginning of the pattern, and set the boundary of links."""
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
            real: str | None = place
            if os.path.islink(place):
                real = self._followed(self._at, part.text, place)
            if real is None:
                self._blocked = True
                return
            self._at = _Folder(os.path.join(self._at.name, part.text), real, real != place or self._at.linked)
            self._parts.pop(0)
        self._boundary = self._root_boundary() or self._at.real
        if {*self._from_root(self._at).split("/")} & {*self._rules.excluded}:
            self._at = replace(self._at, why=EXCLUDED)
        if len(self._parts) == 1 and self._parts[0].literal:
            # For a named file, only the root is a boundary.
            self._boundary = self._root_boundary()

    def _root_boundary(self) -> str | None:
        bounded = self._rules.bounded and inside(self._at.real, self._search.real_root)
        if bounded:
            return self._search.real_root
        return None

    def _parent(self, folder: _Folder) -> _Folder:
        real = os.path.dirname(folder.real)
        if folder.linked or folder.name.startswith("/"):
            return _Folder(real, real)
        if folder.name.strip("./"):
            return _Folder(os.path.dirname(folder.name), real)
        return _Folder(os.path.join(folder.name, ".."), real)

    def _from_root(self, folder: _Folder) -> str:
        return os.path.relpath(folder.real, self._search.real_root)

    def _note_literal(self, part: _Part) -> None:
        pattern = _Part(part.text)
        others: list[str] = []
        for entry in self._entries(self._at):
            if entry.name != part.text and pattern.matches(entry.name):
                others.append(entry.name)
        if others:
            self._account.literal.append(
                f"{os.path.join(self._at.name, part.text)!r} exists and is taken literally, so it does not match "
                f"{min(others)!r} as a pattern"
            )

    # Names that match wildcards.

    def _step(self, folders: dict[str, _Folder], part: _Part) -> dict[str, _Folder]:
        """Return the folders that match a part of the pattern, by real path."""
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
        children: list[_Folder | None] = []
        if part.literal:
            place = os.path.join(folder.real, part.text)
            if os.path.isdir(place):
                children.append(self._entered(folder, part.text, part, os.path.islink(place)))
        else:
            for entry in self._entries(folder):
                if part.matches(entry.name) and _is_folder(entry):
                    children.append(self._entered(folder, entry.name, part, entry.is_symlink()))
        yield from filter(None, children)

    def _below(self, starts: dict[str, _Folder]) -> dict[str, _Folder]:
        """Return folders and all below them, by real path: each once, however many links lead to it."""
        reached = dict(starts)
        ahead = list(starts.values())
        # Links are followed last, so that folders reached without links keep their own names.
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
        """Return a folder within another one, None if it is skipped."""
        why = folder.why
        place = os.path.join(folder.real, name)
        if not why and name in self._rules.excluded:
            why = self._account.folders[place] = EXCLUDED
        if not why and part.passes_over(name, self._rules.special):
            self._account.folders[place] = HIDDEN
            why = IN_HIDDEN
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
        """Yield the files in folders that match the last part of the pattern."""
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
        """Yield a matching file, unless there is a reason to skip it."""
        real = os.path.join(folder.real, name)
        why = folder.why or why
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
        """Return the target of a link, None if it is out of bounds."""
        real = os.path.realpath(place)
        if self._boundary is not None and not inside(real, self._boundary):
            self._account.outward[os.path.join(folder.name, name)] = real
            if not self._rules.follow_links:
                return None
        return real

    def _is_excluded(self, real: str) -> bool:
        """Return whether a link leads into an excluded folder within the root."""
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
                f"The folder {readable(folder.real)!r} cannot be listed ({error.strerror}): grant read access, or write "
                "patterns that do not include it."
            ) from error


def inside(real: str, folder: str) -> bool:
    """Return whether a path without links is a folder, or in it."""
    return real == folder or real.startswith(os.path.join(folder, ""))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _better(known: dict[str, _Folder], folder: _Folder) -> bool:
    """Add a folder if it is new or has a better name than the known one. Returns whether it was added."""
    before = known.get(folder.real)
    if before is not None and before.rank <= folder.rank:
        return False
    known[folder.real] = folder
    return True
