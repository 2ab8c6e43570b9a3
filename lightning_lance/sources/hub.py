"""Access to what `datasets` reads, with its many errors told as one sentence each, before any work starts."""

from __future__ import annotations

import glob
import os.path
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import xxhash

from lightning_lance.documents.languages import check_languages
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.messages.redaction import in_one_line, public_url, shown_cause
from lightning_lance.readers.retry import causes, is_transient
from lightning_lance.sources.dataset_spec import DatasetSpec
from lightning_lance.sources.files import content_identity
from lightning_lance.sources.local_paths import is_local
from lightning_lance.sources.local_shards import check_format, local_shards

_REPOSITORY = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")

# Script datasets whose files this package has a config for.
_CONFIG_FOR = {"codeparrot/github-code": "github_code", "codeparrot/github-code-clean": "github_code_clean"}


def open_builder(source: DatasetSpec, pin: Mapping[str, Any], local: Mapping[str, Sequence[str]] | None = None) -> Any:
    """Make the `datasets` builder of a source: finds its files, reads none, and leaves nothing in a cache.

    Args:
        source: The source.
        pin: `OpenedSource.pin` of the first build, else empty.
        local: Each local pattern to the files that it finds, if that is known.

    Raises:
        ConfigError: If the dataset, a file, a language folder or a script makes it impossible.
        SourceError: If access is denied, or the Hub cannot be reached.
    """
    if local is None:
        local = local_shards(source).files
    try:
        import datasets
        from datasets import load_dataset_builder

        # It would count this as a download of a format, by a request to a server that is not the Hub.
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        # It takes a lock in its cache, even for files that it only streams.
        with _scratch_folder() as cache:
            if source.data_files:
                files = {source.split: _checked_patterns(source, pin, local)}
                options = source.file_system or None
                return load_dataset_builder(source.path, data_files=files, storage_options=options, cache_dir=cache)
            revision = pin.get("revision") or source.revision
            return load_dataset_builder(source.path, source.config, revision=revision, cache_dir=cache)
    except Exception as error:  # there are a dozen classes, from four libraries
        if isinstance(error, LightningLanceError) or is_transient(error):
            raise
        raise explain(error, source) from shown_cause(error)


@contextmanager
def _scratch_folder() -> Iterator[str]:
    """Make a folder for files that are of no use afterwards, and remove it."""
    try:
        folder = tempfile.mkdtemp(prefix="lightning-lance-")
    except OSError as error:
        raise ConfigError(
            f"No folder for temporary files can be made ({error.strerror}), which 'datasets' needs for this source: set TMPDIR."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checked_patterns(source: DatasetSpec, pin: Mapping[str, Any], local: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the local files, each as a pattern that means itself, and the globs, at a fixed commit where they are on the Hub.

    `datasets` passes over globs that match nothing.
    """
    commits: dict[str, str] = {}
    for key, (repo, revision) in source.repositories().items():
        from huggingface_hub import HfApi

        pinned = pin.get("revision") or pin.get("revisions", {}).get(repo)
        api = HfApi(token=source.storage_options.get("token"), endpoint=source.storage_options.get("endpoint"))
        commits[key] = str(api.dataset_info(repo, revision=pinned or (revision and unquote(revision))).sha)
        _check_terms(api, repo)
    patterns: list[str] = []
    for pattern in source.patterns(commits):
        if pattern in local:
            patterns += map(glob.escape, local[pattern])
            continue
        if found := _glob(pattern, source.file_system):
            check_format(source.path, found)
        else:
            if source.wanted and source.templates:
                check_languages(source.wanted, _language_folders(source, commits), f"Source {source.name!r}")
            _raise_cause(pattern, source.file_system)
            raise ConfigError(f"No file matches {pattern!r}: check source.data_files.")
        patterns.append(pattern)
    return patterns


def _check_terms(api: Any, repo: str) -> None:
    """Check that a dataset is not gated, so that its files can be read; a mirror of the Hub may not know that request."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        api.auth_check(repo, repo_type="dataset")
    except GatedRepoError:
        raise
    except HfHubHTTPError as error:
        # The dataset itself was there.
        if getattr(error.response, "status_code", None) not in (404, 405, 501):
            raise


def files_identity(files: Sequence[str], storage_options: Mapping[str, Any]) -> str:
    """Hash the files of a source: by content where they are local, else by name, size and what the bucket knows of them."""
    local = [file for file in files if is_local(file)]
    root = Path(local[0]).parent if len(local) == 1 else Path(_common_folder(local)) if local else Path()
    if len(local) == len(files):
        return content_identity(files, root)
    import fsspec

    digest = xxhash.xxh3_128()
    for file in files:
        if is_local(file):
            digest.update(f"{content_identity([file], root)}\0".encode())
            continue
        fs, path = fsspec.core.url_to_fs(file, **storage_options)
        info = fs.info(path)
        # Of a file in an archive, its checksum.
        known = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("CRC") or ""
        # Not the signature: a URL that is signed anew is the same file.
        digest.update(f"{public_url(file)}\0{info['size']}\0{known}\0".encode())
    return digest.hexdigest()


def _common_folder(files: Sequence[str]) -> str:
    return os.path.commonpath([str(Path(file).parent) for file in files])


def explain(error: Exception, source: DatasetSpec) -> LightningLanceError:
    """Turn an error of `datasets` or of the Hub client into one that says what to do."""
    text = in_one_line(error, 2000)
    kinds = {type(cause).__name__ for cause in causes(error)}
    match = _REPOSITORY.match(str(source.data_files[0])) if source.data_files else None
    repo = match[1] if match else source.path
    login = "run 'hf auth login' or set HF_TOKEN"
    if "Dataset scripts are no longer supported" in text:
        return ConfigError(_instead_of_script(source.path))
    if "GatedRepoError" in kinds or "gated dataset" in text:
        page = f"https://huggingface.co/datasets/{repo}"
        return SourceError(f"The dataset {repo!r} is gated: accept its terms at {page}, then {login}.")
    if "RevisionNotFoundError" in kinds or text.startswith("Revision "):
        return ConfigError(f"The dataset {repo!r} has no revision {source.revision!r}: check source.revision.")
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return ConfigError(
            f"There is no dataset {repo!r} on the Hub, or it is private: check the name; for a private one {login}."
        )
    if "BuilderConfig" in text or "Config name is missing" in text:
        return ConfigError(f"Choose source.config of {repo!r}: {text[:400]}")
    if told := _of_file_system(error, text, kinds, source):
        return told
    if kinds & {"ConnectionError", "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return SourceError(
            f"Source {source.name!r} cannot be reached ({text[:200]}): check the network, then run again."
        )
    check = "; check source.storage_options" if source.storage_options else ""
    return SourceError(
        f"Source {source.name!r} cannot be read: {type(error).__name__}: {text[:400].rstrip('.')}{check}."
    )


_KEYS = "give them by environment variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by source.storage_options"
# What an object store answers about keys that it does not know, or that are no longer good.
_BAD_KEYS = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired|Access Key Id you provided|"
    r"security token|signature we calculated|provided token"
)
_REGION = re.compile(
    r"AuthorizationHeaderMalformed|PermanentRedirect|the region '.*' is wrong|IllegalLocationConstraint"
)


def _of_file_system(
    error: Exception, text: str, kinds: set[str], source: DatasetSpec
) -> ConfigError | SourceError | None:
    """Explain an error of a file system (s3fs, HTTP, FTP, ...); None if it is none, or an unknown one."""
    name = source.name
    statuses = {getattr(cause, "status", None) for cause in causes(error)}
    if match := re.search(r"Protocol not known: ?(\S*)", text):
        return ConfigError(
            f"Source {name!r} has files of {match[1] + '://'!r}, which is not a known protocol: check "
            "source.data_files; local paths, hf://, s3://, https:// and others that fsspec knows can be read."
        )
    if "ImportError" in kinds or "ModuleNotFoundError" in kinds:
        return ConfigError(f"Source {name!r} needs another package: {text.rstrip('.')}; install it, and run again.")
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}:
        return SourceError(
            f"Source {name!r} needs credentials, and there are none: {_KEYS} (a public bucket is read with "
            "source.storage_options={anon: true})."
        )
    if _BAD_KEYS.search(text):
        return SourceError(f"Source {name!r} cannot be read, since its keys are not accepted ({text[:200]}): {_KEYS}.")
    if _REGION.search(text):
        return SourceError(
            f"Source {name!r} is in another region ({text[:200]}): give it, as in "
            "source.storage_options={client_kwargs: {region_name: eu-central-1}}."
        )
    if kinds & {"PermissionError", "Forbidden"} or statuses & {401, 403}:
        return SourceError(
            f"Source {name!r} gives no access ({text[:200] or type(error).__name__}): check the place, and what you are "
            "allowed to read there."
        )
    if kinds & {"NoSuchBucket"} or "bucket does not exist" in text:
        return ConfigError(f"Source {name!r} is in a bucket that is not there ({text[:200]}): check source.data_files.")
    if "FileNotFoundError" in kinds:
        return ConfigError(f"Source {name!r} has a file that is not there ({text[:200]}): check source.data_files.")
    return None


def _glob(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(pattern, **storage_options)
    return [str(found) for found in fs.glob(path)]


def _raise_cause(pattern: str, storage_options: Mapping[str, Any]) -> None:
    """Raise why a file that is named is not found: of a server that is down, a glob says no more than that there is none."""
    from fsspec.core import url_to_fs

    if "://" not in pattern or pattern.startswith("hf://") or any(sign in pattern for sign in "*["):
        return
    fs, path = url_to_fs(pattern, **storage_options)
    try:
        fs.info(path)
    except FileNotFoundError as error:
        if len(causes(error)) > 1:
            raise


def _language_folders(source: DatasetSpec, commits: Mapping[str, str]) -> list[str]:
    templates = [
        pattern for pattern in source.patterns(commits, fill=False) if "{language}" in pattern and not is_local(pattern)
    ]
    befores = sorted({template.split("{language}")[0] for template in templates})
    found = [path for before in befores for path in _glob(f"{before}*", source.file_system)]
    return sorted({path.rstrip("/").rsplit("/", 1)[-1] for path in found})


def _instead_of_script(path: str) -> str:
    message = f"The dataset {path!r} is loaded by a script, which datasets >= 4 does not run: "
    if path in _CONFIG_FOR:
        return f"{message}use source={_CONFIG_FOR[path]}, which reads its files."
    try:
        files = _glob(f"hf://datasets/{path}/**/*.parquet", {})
    except Exception:  # the hint is not worth a second error
        files = []
    folders = Counter(file.split(path, 1)[-1].lstrip("/").rpartition("/")[0] for file in files)
    folder = folders.most_common(1)[0][0] if folders else "FOLDER"
    pattern = "/".join(part for part in ("hf://datasets", path, folder, "*.parquet") if part)
    return f"{message}read its files instead, with source=parquet 'source.data_files=[{pattern}]'."
