"""The local files of `data_files`, in the same order as in `datasets`, without its cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from lightning_lance.documents.languages import check_languages, language_pattern, no_language
from lightning_lance.errors import ConfigError
from lightning_lance.readers.jsonl import ENDINGS
from lightning_lance.sources.dataset_spec import DatasetSpec
from lightning_lance.sources.local_files import Account, LocalFile, Rules, Search, inside
from lightning_lance.sources.local_paths import hint, is_local, local_path, names_along, readable

# Formats of `datasets`: their names, the config of `source` that reads them, and the endings of their files.
_FORMATS = {"parquet": "Parquet", "json": "JSON Lines"}
_OPTIONS = {"parquet": "parquet", "json": "jsonl"}
_ENDINGS = {"parquet": (".parquet",), "json": ENDINGS, "csv": (".csv",), "text": (".txt",), "arrow": (".arrow",)}

# Files that `datasets` finds only if a pattern ends with their name.
IGNORED_NAMES = frozenset(
    {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json"}
)


@dataclass
class LocalShards:
    """The local files of a source.

    Attributes:
        files: Local pattern to the absolute paths of its files, sorted.
        languages: Path to the language from the place of `{language}`, for patterns that have it.
        real: Path to the path without links.
        remarks: Log lines: (level, text).
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    remarks: list[tuple[int, str]] = field(default_factory=list)


def local_shards(source: DatasetSpec, counting: bool = False) -> LocalShards:
    """Return the local files of a source, without reading them.

    Args:
        source: The source.
        counting: Whether to count skipped files for the log.

    Raises:
        ConfigError: If a pattern finds nothing, a file of another pattern, or files of another format.
        SourceError: If a folder cannot be listed.
    """
    if not source.data_files and source.path in _ENDINGS:
        # `datasets` would read any files in the working folder.
        raise ConfigError(
            f"source.data_files is empty: expected the files, such as ['corpus/*{_ENDINGS[source.path][0]}']; for a folder of "
            f"that name, write './{source.path}'."
        )
    search = _search(source, counting)
    found = LocalShards()
    names: dict[str, str] = {}
    for template, pattern, language in source.filled():
        if not is_local(pattern):
            continue
        _check_stars(pattern)
        matches = search.find(pattern)
        if not matches:
            raise _no_match(source, template, pattern)
        paths = [_absolute(source, match.name) for match in matches]
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
    """Check that the files do not all have the ending of another format. Unknown endings pass."""
    if path not in _FORMATS:
        return
    for other in _FORMATS:
        if path != other and _all_end_with(_ENDINGS[other], files):
            raise ConfigError(
                f"source.data_files finds {readable(files[0])!r}, which is not {_FORMATS[path]} by its name: use "
                f"source={_OPTIONS[other]}."
            )


def read_here(source: DatasetSpec, files: Mapping[str, Sequence[str]]) -> bool:
    """Return whether all files of a source are local, and in a format that this package reads itself."""
    if not all_local(source):
        return False
    if source.path == "json":
        return _all_end_with(ENDINGS, chain.from_iterable(files.values()))
    return source.path == "parquet"


def _all_end_with(endings: tuple[str, ...], files: Iterable[str]) -> bool:
    return all(file.endswith(endings) for file in files)


def real_once(source: DatasetSpec, files: Sequence[str]) -> tuple[list[int], dict[str, str], list[tuple[int, str]]]:
    """Choose one name of each real file among the files that `datasets` has found in a local folder.

    Returns:
        The indices of the chosen files; their paths, each to the path without links; and log lines, (level, text).

    Raises:
        ConfigError: If no file is left.
    """
    account = Account()
    folder = os.path.realpath(source.at_base(source.path))
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
        # The real path is preferred, else the first name.
        if before is None or file == real:
            best[real] = place
    if files and not best:
        raise ConfigError(f"No file is read of {source.path!r}: {account.reason()}.")
    places = sorted(best.values())
    real_paths: dict[str, str] = {}
    for real, place in best.items():
        real_paths[files[place]] = real
    remarks = account.remarks(source.name, best, source.follow_links)
    return places, real_paths, remarks


def all_local(source: DatasetSpec) -> bool:
    """Return whether all of `data_files` are local."""
    return bool(source.data_files) and all(map(is_local, map(str, source.data_files)))


def _search(source: DatasetSpec, counting: bool) -> Search:
    endings = _ENDINGS.get(source.path, ())
    rules = Rules(ignored=IGNORED_NAMES, special=True, endings=endings, follow_links=source.follow_links)
    return Search(source.base, rules, counting)


def _absolute(source: DatasetSpec, name: str) -> str:
    if name.startswith("/"):
        return name
    return os.path.normpath(f"{source.base}/{name}")


def _language(search: Search, match: LocalFile, template: str, language: str | None) -> str:
    """Return the language of a file from its template, which was filled with a language or with a wildcard."""
    parts = names_along(local_path(template))
    rest = parts[len(parts) - search.rest :]
    if "{language}" in "/".join(rest):
        matched = language_pattern(rest).fullmatch(match.tail)
        language = readable(matched["language"]) if matched else None
    # Otherwise the pattern names an existing folder of that language.
    if language is None:
        raise no_language(readable(match.name), [template])
    return language


def _check_stars(pattern: str) -> None:
    for part in pattern.split("/"):
        if "**" in part and part != "**":
            raise ConfigError(
                f"source.data_files has {pattern!r}, with ** as part of a name: write ** between slashes for any folders, or * "
                "for any characters."
            )


def _no_match(source: DatasetSpec, template: str | None, pattern: str) -> ConfigError:
    """Return the error for a pattern that matches nothing, with the likely reason."""
    if template is not None and source.wanted:
        search = _search(source, counting=False)
        matches = search.find(template.replace("{language}", "*"))
        known = {_language(search, match, template, None) for match in matches}
        check_languages(source.wanted, sorted(known), f"Source {source.name!r}")
    search = _search(source, counting=True)
    search.find(pattern)
    reason = search.account.reason() or hint(pattern, search.root)
    if os.path.isdir(source.at_base(local_path(pattern))):
        reason = f"for a folder, write a pattern such as {pattern}/*"
        if source.path in _ENDINGS:
            read = ", *".join(_ENDINGS[source.path][:3])
            reason = f"in a folder, only *{read} are read"
    cure = "check source.data_files"
    if reason:
        cure = f"{reason}; check source.data_files"
    return ConfigError(f"No file matches {pattern!r} in {search.root!r}: {cure}.")


def _found_twice(source: DatasetSpec, path: str, other: str) -> ConfigError:
    also = "" if path == other else f" (also called {readable(other)!r})"
    return ConfigError(
        f"Source {source.name!r} finds {readable(path)!r}{also} with several patterns of source.data_files: remove it from all "
        "but one."
    )
