"""The local files of `data_files`: listed here, in the order in which `datasets` would give them, and by no cache of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_lance.documents.languages import check_languages, language_pattern, no_language
from lightning_lance.errors import ConfigError
from lightning_lance.readers.jsonl import ENDINGS
from lightning_lance.sources.dataset_spec import DatasetSpec
from lightning_lance.sources.local_files import Account, LocalFile, Rules, Search, inside
from lightning_lance.sources.local_paths import hint, is_local, local_path, readable

# Formats of `datasets`: how they are called, the option of `source` that reads them, and how the names of their files end.
_FORMATS = {"parquet": "Parquet", "json": "JSON Lines"}
_OPTIONS = {"parquet": "parquet", "json": "jsonl"}
_ENDINGS = {"parquet": (".parquet",), "json": ENDINGS, "csv": (".csv",), "text": (".txt",), "arrow": (".arrow",)}

# Files that `datasets` finds only where a pattern ends with that name.
IGNORED_NAMES = frozenset(
    {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json"}
)


@dataclass
class LocalShards:
    """The local files of a source.

    Attributes:
        files: Each local pattern to the absolute paths that it finds, sorted.
        languages: Path to the language that the place of `{language}` tells, where the pattern has one.
        real: Path to the path without links.
        remarks: What the log has to say, each with its level.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    remarks: list[tuple[int, str]] = field(default_factory=list)


def local_shards(source: DatasetSpec, counting: bool = False) -> LocalShards:
    """Find the local files of a source; reads none of them, and writes nothing.

    Args:
        source: The source.
        counting: Whether to count, for the remarks, what is left out.

    Raises:
        ConfigError: If a pattern finds nothing, or what another one has found; or files of another format.
        SourceError: If a folder cannot be listed.
    """
    if not source.data_files and source.path in _ENDINGS:
        # `datasets` would take whatever is in the working folder.
        raise ConfigError(
            f"source.data_files is empty: expected the files, such as ['corpus/*{_ENDINGS[source.path][0]}']; a folder of that "
            f"name is written './{source.path}'."
        )
    search, found = _search(source, counting), LocalShards()
    names: dict[str, str] = {}
    for template, pattern, language in source.filled():
        if not is_local(pattern):
            continue
        _check_stars(pattern)
        matches = search.find(pattern)
        if not matches:
            raise _no_match(source, template, pattern)
        paths = [_absolute(match.name) for match in matches]
        check_format(source.path, paths)
        for match, path in zip(matches, paths, strict=True):
            if match.real in names:
                raise _found_twice(source, path, names[match.real])
            names[match.real] = path
            found.real[path] = match.real
            if template is not None:
                found.languages[path] = _language(search, match, template, language)
        found.files[pattern] = paths
    found.remarks = search.account.remarks(source.name, names, source.follow_links)
    return found


def check_format(path: str, files: Sequence[str]) -> None:
    """Check that no file is of another format by its name; a name that says nothing passes."""
    for other in _FORMATS:
        if path in _FORMATS and path != other and all(file.endswith(_ENDINGS[other]) for file in files):
            raise ConfigError(
                f"source.data_files finds {readable(files[0])!r}, which is not {_FORMATS[path]} by its name: use "
                f"source={_OPTIONS[other]}."
            )


def read_here(source: DatasetSpec, files: Mapping[str, Sequence[str]]) -> bool:
    """Return whether all of a source's files are local ones whose format this package reads without `datasets`."""
    if source.path == "json":
        return all_local(source) and all(file.endswith(ENDINGS) for paths in files.values() for file in paths)
    return source.path == "parquet" and all_local(source)


def real_once(source: DatasetSpec, files: Sequence[str]) -> tuple[list[int], dict[str, str], list[tuple[int, str]]]:
    """Choose one name of each real file among those that `datasets` has found in the folder that is the source.

    Returns:
        The places of the chosen ones, each of their paths to the path without links, and remarks for the log with their levels.

    Raises:
        ConfigError: If none is left.
    """
    account, folder = Account(), os.path.realpath(source.path)
    best: dict[str, int] = {}
    for place, file in enumerate(files):
        real = os.path.realpath(file)
        if not inside(real, folder):
            account.outward[file] = real
            if not source.follow_links:
                continue
        before = best.get(real)
        if before is not None:
            account.names.setdefault(real, {files[before]}).add(file)
        # The name that is the real one, else the first.
        if before is None or file == real:
            best[real] = place
    if files and not best:
        raise ConfigError(f"No file is read of {source.path!r}: {account.reason()}.")
    places = sorted(best.values())
    remarks = account.remarks(source.name, best, source.follow_links)
    return places, {files[place]: real for real, place in best.items()}, remarks


def all_local(source: DatasetSpec) -> bool:
    """Return whether all of `data_files` are local."""
    return bool(source.data_files) and all(is_local(str(pattern)) for pattern in source.data_files)


def _search(source: DatasetSpec, counting: bool) -> Search:
    endings = _ENDINGS.get(source.path, ())
    rules = Rules(ignored=IGNORED_NAMES, special=True, endings=endings, follow_links=source.follow_links)
    return Search(_here(), rules, counting)


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed
        return "/"


def _absolute(name: str) -> str:
    return name if name.startswith("/") else os.path.normpath(f"{_here()}/{name}")


def _language(search: Search, match: LocalFile, template: str, language: str | None) -> str:
    """Return the language of a file from its place in a template, which was filled with a language, or with a wildcard."""
    parts = [part for part in local_path(template).split("/") if part not in ("", ".")]
    rest = parts[len(parts) - search.rest :]
    if not any("{language}" in part for part in rest):
        # The folder of that name was there.
        if language is None:
            raise no_language(readable(match.name), [template])
        return language
    told = language_pattern(rest).fullmatch(match.tail)
    if told is None:
        raise no_language(readable(match.name), [template])
    return readable(told["language"])


def _check_stars(pattern: str) -> None:
    for part in pattern.split("/"):
        if "**" in part and part != "**":
            raise ConfigError(
                f"source.data_files has {pattern!r}, in which ** is only a part of a name: write it between slashes, for any "
                "folders, or * for any characters."
            )


def _no_match(source: DatasetSpec, template: str | None, pattern: str) -> ConfigError:
    """Say that a pattern finds nothing, and what may be the reason."""
    if template is not None and source.wanted:
        search = _search(source, counting=False)
        matches = search.find(template.replace("{language}", "*"))
        known = {_language(search, match, template, None) for match in matches}
        check_languages(source.wanted, sorted(known), f"Source {source.name!r}")
    search = _search(source, counting=True)
    search.find(pattern)
    here = search.root
    reason = search.account.reason() or hint(pattern, here)
    if os.path.isdir(local_path(pattern)):  # noqa: PTH112 - Path raises an error for names that are too long
        given = ", ".join(f"*{ending}" for ending in _ENDINGS.get(source.path, ())[:3])
        reason = (
            f"of a folder, files called {given} are read"
            if given
            else f"of a folder, give a pattern such as {pattern}/*"
        )
    reason = f"{reason}; " if reason else ""
    return ConfigError(f"No file matches {pattern!r} in {here!r}: {reason}check source.data_files.")


def _found_twice(source: DatasetSpec, path: str, other: str) -> ConfigError:
    also = "" if path == other else f" (also called {readable(other)!r})"
    return ConfigError(
        f"Source {source.name!r} finds {readable(path)!r}{also} by several of source.data_files: let one of them find it."
    )
