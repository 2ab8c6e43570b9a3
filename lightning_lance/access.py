"""Access to what `datasets` reads, with its many errors told as one sentence each, before any work starts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.languages import check_languages

if TYPE_CHECKING:
    from lightning_lance.streaming import DatasetSource

# Script datasets whose files this package has a config for.
_CONFIG_FOR = {"codeparrot/github-code": "github_code", "codeparrot/github-code-clean": "github_code_clean"}


def open_builder(source: DatasetSource, revision: str | None) -> Any:
    """Make the `datasets` builder of a source: lists its files, and reads none.

    Args:
        source: The source.
        revision: Branch, tag or commit on the Hub, None for the default.

    Raises:
        ConfigError: If the dataset, a file, a language folder or a script makes it impossible.
        SourceError: If access is denied, or the Hub cannot be reached.
    """
    from datasets import load_dataset_builder

    patterns = source.patterns(revision)
    arguments: dict[str, Any] = {"data_files": patterns} if patterns else {"revision": revision}
    try:
        return load_dataset_builder(
            source.path, source.config, storage_options=dict(source.storage_options) or None, **arguments
        )
    except LightningLanceError:
        raise
    except Exception as error:  # there are a dozen classes, from four libraries
        raise explain(error, source) from error


def explain(error: Exception, source: DatasetSource) -> LightningLanceError:
    """Turn an error of `datasets` or of the Hub client into one that says what to do."""
    text = " ".join(str(error).split())
    causes = _chain(error)
    repo = _repository(source)
    if "Dataset scripts are no longer supported" in text:
        return ConfigError(_instead_of_script(source.path))
    if any("GatedRepo" in type(cause).__name__ for cause in causes) or "gated" in text.lower():
        return SourceError(
            f"The dataset {repo!r} is gated: accept its terms at https://huggingface.co/datasets/{repo}, then run "
            "'hf auth login' or set HF_TOKEN."
        )
    if source.wanted and any("{language}" in pattern for pattern in source.data_files) and _is_missing(error):
        check_languages(source.wanted, _language_folders(source), f"Source {source.name!r}")
    if (
        any("RepositoryNotFound" in type(cause).__name__ for cause in causes)
        or "DatasetNotFound" in type(error).__name__
    ):
        return ConfigError(
            f"There is no dataset {repo!r} on the Hub, or it is private: check the name; for a private one run "
            "'hf auth login' or set HF_TOKEN."
        )
    if any("RevisionNotFound" in type(cause).__name__ for cause in causes):
        return ConfigError(f"The dataset {repo!r} has no revision {source.revision!r}: check source.revision.")
    if _is_missing(error):
        return ConfigError(
            f"No file matches source.data_files={list(source.data_files) or source.path!r} "
            f"(in {str(Path.cwd())!r}, where a pattern is relative)."
        )
    if "BuilderConfig" in text or "Config name is missing" in text:
        return ConfigError(f"Choose source.config of {repo!r}: {text[:400]}")
    if any(isinstance(cause, (ConnectionError, TimeoutError)) or "Offline" in type(cause).__name__ for cause in causes):
        return SourceError(
            f"The source {source.name!r} cannot be reached ({text[:200]}): check the network, then run again."
        )
    return SourceError(f"The source {source.name!r} cannot be read: {type(error).__name__}: {text[:400]}")


def _chain(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return causes


def _is_missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or "DataFilesNotFound" in type(error).__name__


def _repository(source: DatasetSource) -> str:
    match = re.match(r"hf://datasets/([^/@]+/[^/@]+)", source.data_files[0]) if source.data_files else None
    return match[1] if match else source.path


def _glob(pattern: str, storage_options: dict[str, Any] | None = None) -> list[str]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(pattern, **(storage_options or {}))
    return [str(found) for found in fs.glob(path)]


def _language_folders(source: DatasetSource) -> list[str]:
    folders = []
    for pattern in source.data_files:
        before = pattern.split("{language}", 1)[0]
        if before != pattern:
            found = _glob(before + "*", dict(source.storage_options))
            folders += [path.rstrip("/").rsplit("/", 1)[-1] for path in found]
    return sorted(set(folders))


def _instead_of_script(path: str) -> str:
    message = f"The dataset {path!r} is loaded by a script, which datasets >= 4 does not run: "
    if path in _CONFIG_FOR:
        return f"{message}use source={_CONFIG_FOR[path]}, which reads its files."
    try:
        files = _glob(f"hf://datasets/{path}/**.parquet")
    except Exception:  # the hint is not worth a second error
        files = []
    folders = Counter(file.split(path, 1)[-1].lstrip("/").rpartition("/")[0] for file in files)
    folder = folders.most_common(1)[0][0] if folders else "FOLDER"
    pattern = "/".join(part for part in ("hf://datasets", path, folder, "*.parquet") if part)
    return f"{message}read its files instead, with source=parquet 'source.data_files=[{pattern}]'."
