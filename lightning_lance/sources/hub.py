"""Access to the files of a `datasets` source. Errors of its libraries become one sentence each, before any work starts."""

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
from lightning_lance.errors import (
    ConfigError,
    LightningLanceError,
    SourceError,
    answered_status,
    causes,
    names_of_causes,
)
from lightning_lance.messages.redaction import in_one_line, public_url, shown_cause
from lightning_lance.readers.retry import is_transient, raise_own
from lightning_lance.sources.dataset_spec import DatasetSpec
from lightning_lance.sources.files import content_identity
from lightning_lance.sources.local_paths import is_local
from lightning_lance.sources.local_shards import check_format, local_shards

_REPOSITORY = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")

# Script datasets whose files this package has a config for.
_CONFIG_FOR = {"codeparrot/github-code": "github_code", "codeparrot/github-code-clean": "github_code_clean"}


def open_builder(source: DatasetSpec, pin: Mapping[str, Any], local: Mapping[str, Sequence[str]] | None = None) -> Any:
    """Return the `datasets` builder of a source. It lists the files, reads none, and leaves nothing in a cache.

    Args:
        source: The source.
        pin: `OpenedSource.pin` of the first build, else empty.
        local: Local pattern to its files, if known.

    Raises:
        ConfigError: If the dataset, a file or a language folder does not exist, or the dataset is loaded by a script.
        SourceError: If access is denied, or the Hub cannot be reached.
    """
    if local is None:
        local = local_shards(source).files
    try:
        # Before `datasets` is imported, which takes seconds.
        files = None
        if source.data_files:
            files = {source.split: _checked_patterns(source, pin, local)}
        import datasets
        from datasets import load_dataset_builder

        # Otherwise it counts a download of the format, with a request to another server.
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        # It locks its cache even for files that it only streams.
        with _scratch_folder() as cache:
            if files is not None:
                options = source.file_system or None
                return load_dataset_builder(source.path, data_files=files, storage_options=options, cache_dir=cache)
            revision = pin.get("revision") or source.revision
            path = source.path if source.on_hub else source.at_base(source.path)
            return load_dataset_builder(path, source.config, revision=revision, cache_dir=cache)
    except Exception as error:  # there are a dozen classes, from four libraries
        raise_own(error)
        if is_transient(error):
            raise
        raise explain(error, source) from shown_cause(error)


@contextmanager
def _scratch_folder() -> Iterator[str]:
    """Create a temporary folder, and remove it after use."""
    try:
        folder = tempfile.mkdtemp(prefix="lightning-lance-")
    except OSError as error:
        raise ConfigError(
            f"Cannot create a temporary folder ({error.strerror}), which 'datasets' needs for this source: set TMPDIR."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checked_patterns(source: DatasetSpec, pin: Mapping[str, Any], local: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the local files as literal patterns, and the other globs, on the Hub at a fixed commit.

    Raises an error for a glob that matches nothing, which `datasets` would ignore.
    """
    commits: dict[str, str] = {}
    for key, (repo, revision) in source.repositories().items():
        from huggingface_hub import HfApi

        wanted = pin.get("revision") or pin.get("revisions", {}).get(repo) or (revision and unquote(revision))
        api = HfApi(token=source.storage_options.get("token"), endpoint=source.storage_options.get("endpoint"))
        commits[key] = str(api.dataset_info(repo, revision=wanted).sha)
        _check_terms(api, repo)
    patterns: list[str] = []
    for pattern in source.patterns(commits):
        if pattern in local:
            patterns += map(glob.escape, local[pattern])
            continue
        found = _glob(pattern, source.file_system)
        if not found:
            if source.wanted and source.templates:
                check_languages(source.wanted, _language_folders(source, commits), f"Source {source.name!r}")
            _raise_cause(pattern, source.file_system)
            raise ConfigError(f"No file matches {pattern!r}: check source.data_files.")
        check_format(source.path, found)
        patterns.append(pattern)
    return patterns


def _check_terms(api: Any, repo: str) -> None:
    """Raise GatedRepoError if the files of a dataset cannot be read before its terms are accepted."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        api.auth_check(repo, repo_type="dataset")
    except GatedRepoError:
        raise
    except HfHubHTTPError as error:
        # The dataset exists, so a mirror of the Hub does not know this request.
        if getattr(error.response, "status_code", None) not in (400, 404, 405, 410, 501):
            raise


def files_identity(files: Sequence[str], storage_options: Mapping[str, Any]) -> str:
    """Return a hash of files: of the content of local ones, and of the name, size and ETag of others."""
    local = list(filter(is_local, files))
    root = ""
    if local:
        folders = [str(Path(file).parent) for file in local]
        root = os.path.commonpath(folders)
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
        # A file in an archive has a CRC.
        known = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("CRC") or ""
        # Without the signature, since it changes when the URL is signed again.
        digest.update(f"{public_url(file)}\0{info['size']}\0{known}\0".encode())
    return digest.hexdigest()


def _repository(source: DatasetSpec) -> str:
    """Return the name of a repository, which may stand in the address of a file."""
    if source.data_files:
        match = _REPOSITORY.match(str(source.data_files[0]))
        if match:
            return match[1]
    return source.path


def explain(error: Exception, source: DatasetSpec) -> LightningLanceError:
    """Return one of our errors, with its cure, for an error of `datasets` or of the Hub client."""
    text = in_one_line(error, 2000)
    kinds = names_of_causes(error)
    repo = _repository(source)
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
            f"There is no dataset {repo!r} on the Hub, or it is private: check the name; for a private one, {login}."
        )
    if "BuilderConfig" in text or "Config name is missing" in text:
        return ConfigError(f"Choose source.config of {repo!r}: {text[:400]}")
    explained = _of_file_system(error, text, kinds, source)
    if explained is not None:
        return explained
    if "OfflineModeIsEnabled" in kinds or "OfflineModeIsEnabled" in text:
        return SourceError(
            f"The dataset {repo!r} cannot be read in offline mode: unset HF_HUB_OFFLINE, or download the files and read them "
            "by source=parquet or source=jsonl."
        )
    if kinds & {"ConnectionError", "ConnectError", "ConnectTimeout", "LocalEntryNotFoundError"}:
        return SourceError(
            f"Source {source.name!r} cannot be reached ({text[:200]}): check the network, then run it again."
        )
    status = answered_status(error)
    if "HfHubHTTPError" in kinds and status is not None:
        from huggingface_hub import constants

        return SourceError(
            f"The dataset {repo!r} cannot be read, since {constants.ENDPOINT} answers HTTP {status}: check that it is a Hub "
            "(HF_ENDPOINT), and the name."
        )
    check = "; check source.storage_options" if source.storage_options else ""
    return SourceError(
        f"Source {source.name!r} cannot be read: {type(error).__name__}: {text[:400].rstrip('.')}{check}."
    )


_KEYS = "set environment variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or source.storage_options"
# Answers of object stores to unknown or expired keys.
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
    """Return one of our errors for an error of a file system (s3fs, HTTP, FTP, ...), None for any other error."""
    name = source.name
    statuses = {getattr(cause, "status", None) for cause in causes(error)}
    match = re.search(r"Protocol not known: ?(\S*)", text)
    if match:
        return ConfigError(
            f"Source {name!r} has files of {match[1] + '://'!r}, which is not a known protocol: check source.data_files; "
            "local paths, hf://, s3://, https:// and other protocols of fsspec can be read."
        )
    if "ImportError" in kinds or "ModuleNotFoundError" in kinds:
        return ConfigError(f"Source {name!r} needs another package: {text.rstrip('.')}; install it, then run it again.")
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}:
        return SourceError(
            f"Source {name!r} needs credentials, but none were found: {_KEYS} (for a public bucket, "
            "source.storage_options={anon: true})."
        )
    if _BAD_KEYS.search(text):
        return SourceError(f"Source {name!r} cannot be read, since its keys were rejected ({text[:200]}): {_KEYS}.")
    if _REGION.search(text):
        return SourceError(
            f"Source {name!r} is in another region ({text[:200]}): set it, as in "
            "source.storage_options={client_kwargs: {region_name: eu-central-1}}."
        )
    if kinds & {"PermissionError", "Forbidden"} or statuses & {401, 403}:
        return SourceError(
            f"Access to source {name!r} is denied ({text[:200] or type(error).__name__}): check the path and your "
            "permissions there."
        )
    if kinds & {"NoSuchBucket"} or "bucket does not exist" in text:
        return ConfigError(f"The bucket of source {name!r} does not exist ({text[:200]}): check source.data_files.")
    if "FileNotFoundError" in kinds:
        return ConfigError(f"A file of source {name!r} does not exist ({text[:200]}): check source.data_files.")
    return None


def _glob(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(pattern, **storage_options)
    return list(map(str, fs.glob(path)))


def _raise_cause(pattern: str, storage_options: Mapping[str, Any]) -> None:
    """Raise the error that hides behind an empty glob for a named file, such as that of a server that is down."""
    from fsspec.core import url_to_fs

    if "://" not in pattern or pattern.startswith("hf://") or "*" in pattern or "[" in pattern:
        return
    fs, path = url_to_fs(pattern, **storage_options)
    try:
        fs.info(path)
    except FileNotFoundError as error:
        if len(causes(error)) > 1:
            raise


def _language_folders(source: DatasetSpec, commits: Mapping[str, str]) -> list[str]:
    parents = set()
    for pattern in source.patterns(commits, fill=False):
        before, language, _ = pattern.partition("{language}")
        if language and not is_local(pattern):
            parents.add(before)
    folders = set()
    for parent in parents:
        for path in _glob(f"{parent}*", source.file_system):
            folders.add(path.rstrip("/").rsplit("/", 1)[-1])
    return sorted(folders)


def _instead_of_script(path: str) -> str:
    message = f"The dataset {path!r} is loaded by a script, which datasets >= 4 does not run: "
    if path in _CONFIG_FOR:
        return f"{message}use source={_CONFIG_FOR[path]}, which reads its files."
    try:
        files = _glob(f"hf://datasets/{path}/**/*.parquet", {})
    except Exception:  # this is only for the hint
        files = []
    folders: Counter[str] = Counter()
    for file in files:
        within = file.split(path, 1)[-1].lstrip("/")
        folders[within.rpartition("/")[0]] += 1
    folder = folders.most_common(1)[0][0] if folders else "FOLDER"
    pattern = "/".join(filter(None, ("hf://datasets", path, folder, "*.parquet")))
    return f"{message}read its files instead, with source=parquet 'source.data_files=[{pattern}]'."
