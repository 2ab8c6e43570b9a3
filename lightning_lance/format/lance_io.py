"""The Lance dataset of a token store: opening it, its fragments, writing data files, removing it, and Lance's errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileSession
from lance.fragment import DataFile, FragmentMetadata, write_fragments

from lightning_lance.errors import CommitConflict, LightningLanceError, StoreError
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.hashing import hash_file, hash_local
from lightning_lance.format.layout import DataFileInfo, LayoutCounter
from lightning_lance.format.own_files import (
    check_no_links,
    describe_files,
    foreign_files,
    foreign_objects,
    is_plain_name,
)
from lightning_lance.format.schema import block_of, check_keys, tokens_of
from lightning_lance.lance_names import data_file_at, name_of, removal_order
from lightning_lance.location import StoreLocation, check_place, checked_storage_options, is_local
from lightning_lance.messages.redaction import in_one_line, shown_cause

# Lance warns of every fork, but a forked process does not use it: see `TokenStore.read`.
warnings.filterwarnings("ignore", "lance is not fork-safe")

# Characters that Lance encodes in paths.
_ENCODED = re.compile(r'["#%*<>?\[\\\]^`{|}~]|[^ -~]')
# One file for one commit, however large: Lance cuts files at 1,048,576 rows otherwise.
_ROWS_PER_FILE = 2_000_000_000
# Characters of Lance's error messages that are shown. They begin with whole paths.
_LONGEST_MESSAGE = 1000
# The suffix of a local store during its removal. It is removed without asking, so no copy should have such a name.
_REMOVING = ".being-removed"


class PendingFragments(NamedTuple):
    """Rows in a data file that no version has yet.

    Attributes:
        before: The dataset that they are to follow; None for the first rows of a store.
        schema: The schema of the rows.
        fragments: The fragments to commit: one, or none if there are no rows.
        files: The description of its file, by path.
    """

    before: Any | None
    schema: pa.Schema
    fragments: list[FragmentMetadata]
    files: dict[str, DataFileInfo]


# The process that has built, searched or verified a store. Libraries work for it in threads, which its forks lack.
_worker: int | None = None


def refuse_in_fork(what: str) -> None:
    """Raise StoreError if this process is a fork of one that has worked on a store, so `what` it does would hang or crash."""
    global _worker
    if _worker not in (None, os.getpid()):
        raise StoreError(
            f"{what} is not possible in process {os.getpid()}, a fork of process {_worker} that lacks the threads of Lance and "
            "of the tokenizer: use the parent process, or a spawned one."
        )
    _worker = os.getpid()


def dataset_at(location: StoreLocation, version: int | None) -> Any:
    """Open a Lance dataset at a version, or the newest; None if there is none. StoreError if it cannot be opened."""
    check_place("uri", location.uri)
    options = lance_options(location)
    try:
        return lance.dataset(location.uri, version=version, storage_options=options)
    except (ValueError, OSError, RuntimeError) as error:
        if "not found" in str(error).lower() and not _no_bucket(error):
            return None
        if "not a directory" in str(error).lower() and not os.path.isdir(location.uri):
            return None
        raise _not_opened(location.uri, error) from shown_cause(error)


def _not_opened(uri: str, error: Exception) -> StoreError:
    return StoreError(f"The token store {uri!r} cannot be opened: {lance_said(error)}.")


def fragments_of(dataset: Any | None) -> list[FragmentMetadata]:
    """Return the fragments of an open dataset; none if there is no dataset.

    Raises:
        StoreError: If one has a file outside the folder of the store. Such a file is neither read nor removed.
    """
    if dataset is None:
        return []
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    for fragment in fragments:
        for file in fragment.files:
            if file.base_id is not None:
                raise StoreError(
                    f"The Lance dataset {dataset.uri!r} is a shallow clone, with data files in the folder of another one: copy "
                    "the folder of the token store itself."
                )
            if not is_plain_name(name_of(file)):
                raise StoreError(
                    f"The Lance dataset {dataset.uri!r} is damaged or malicious: its data file {name_of(file)!r} is outside "
                    "its folder; use another copy of it."
                )
    return fragments


def file_names(fragments: Iterable[FragmentMetadata]) -> list[str]:
    """Return the names of the data files of fragments."""
    return list(map(name_of, _files_of(fragments)))


def _files_of(fragments: Iterable[FragmentMetadata]) -> Iterator[Any]:
    for fragment in fragments:
        yield from fragment.files


def data_bytes(dataset: Any) -> int:
    """Return the bytes of the data files of a version, as it says."""
    return sum(file.file_size_bytes or 0 for file in _files_of(fragments_of(dataset)))


def fragment_from(text: str) -> FragmentMetadata:
    """Return a fragment from its JSON."""
    return FragmentMetadata.from_json(text)


def fragment_json(fragment: FragmentMetadata) -> str:
    """Return a fragment as JSON."""
    return json.dumps(fragment.to_json())


def number_of(dataset: Any | None) -> int:
    """Return the version of an open dataset; 0 if there is none."""
    if dataset is None:
        return 0
    return int(dataset.version)


def versions_of(dataset: Any | None) -> list[int]:
    """Return the versions of a dataset in ascending order; none if there is no dataset."""
    if dataset is None:
        return []
    return sorted(int(entry["version"]) for entry in dataset.versions())


def times_of(dataset: Any) -> dict[int, datetime]:
    """Return when each version of a dataset was made, with the time zone of this machine."""
    return {int(entry["version"]): entry["timestamp"].astimezone() for entry in dataset.versions()}


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Raise Lance's errors about a place that it cannot open as StoreError."""
    try:
        yield
    except LightningLanceError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        raise _not_opened(uri, error) from shown_cause(error)


@contextmanager
def no_panic() -> Iterator[None]:
    """Raise a panic of Lance, which is not an Exception, as StoreError. Other errors pass."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise StoreError(f"Lance has panicked: {in_one_line(error)}") from error


def data_files(dataset: Any | None) -> list[str]:
    """Return the names of the data files of an open dataset. No two files ever share a name, so they identify a version."""
    return file_names(fragments_of(dataset))


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Raise Lance's errors about a damaged store, panics included, as StoreError."""
    try:
        yield
    except (LightningLanceError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # A panic is not an Exception.
    except BaseException as error:
        raise StoreError(
            f"The token store {uri!r} cannot be read ({lance_said(error)}): 'lightning-lance verify' lists the damage."
        ) from shown_cause(error)


def check_fragments(uri: str, fragments: Sequence[FragmentMetadata]) -> None:
    """Raise StoreError if a data file of a store is not directly in its folder, or belongs to two fragments."""
    for path, count in Counter(file_names(fragments)).items():
        damage = ""
        if count > 1:
            damage = "is in it twice"
        elif os.path.basename(path) != path or path in ("", "."):  # noqa: PTH119 - of ten thousand files
            damage = "is not a plain name"
        if damage:
            raise StoreError(
                f"The data file {path!r} of the token store {uri!r} {damage}: use another copy of the store, or build it again "
                "elsewhere."
            )


@contextmanager
def reading_documents(uri: str) -> Iterator[None]:
    """Explain Lance's error about metadata that is not UTF-8. Other errors pass."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not _is_not_utf8(error):
            raise
        raise undecodable(uri) from error


def _is_not_utf8(error: Exception) -> bool:
    return "invalid utf-8 sequence" in str(error) and "invalid path" not in str(error)


def undecodable(uri: str) -> StoreError:
    """Return the error about metadata that is not UTF-8. Older versions wrote it, and Lance does not check it."""
    return StoreError(
        f"The token store {uri!r} has metadata of documents that is not UTF-8, written by an older version of lightning-lance: "
        "its tokens can be read, but its documents can be neither shown, forgotten nor merged; remove the store and build it "
        "again."
    )


def check_sizes(uri: str, fragments: Iterable[FragmentMetadata]) -> None:
    """Raise StoreError if a data file of a local store is missing or has another size: a map must not reach beyond its end."""
    for fragment in fragments:
        for file in fragment.files:
            path = f"{uri}/{data_file_at(name_of(file))}"
            size = _size_of(path)
            if size != file.file_size_bytes and file.base_id is None:
                found = "missing" if size is None else f"{size:,} bytes long"
                raise StoreError(
                    f"The data file {path!r} is {found}, expected {file.file_size_bytes:,} bytes: restore it, or remove "
                    "the store and build it again ('lightning-lance verify' lists the damage)."
                )


def _size_of(path: str) -> int | None:
    """Return the bytes of a file; None if it is not there, or not a file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of ten thousand files
    except OSError:
        file = Path(path)
        if file.is_file():
            return file.stat().st_size
        return None
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    return None


def stream_columns(dataset: Any) -> pa.Table:
    """Read the columns that assign rows to streams: `num_tokens`, `split`, `language`. StoreError if they are damaged."""
    rows = dataset.to_table(columns=["num_tokens", "split", "language"])
    block, _ = block_of(dataset.uri, dataset.schema)
    check_keys(dataset.uri, rows, block)
    return rows


def take_blocks(dataset: Any, rows: np.ndarray, column: str = TOKENS) -> np.ndarray:
    """Return the tokens of rows, or what a channel has for each of them, (n, block).

    Raises:
        StoreError: If rows are missing, or tokens are null.
    """
    block, _ = block_of(dataset.uri, dataset.schema)
    tokens = tokens_of(dataset.uri, dataset.take(rows.tolist(), columns=[column]).column(column), block)
    if len(tokens) != len(rows):
        raise StoreError(
            f"The token store {dataset.uri!r} returned {len(tokens):,} of {len(rows):,} rows: 'lightning-lance verify' lists "
            "the damage."
        )
    return tokens


def tags_to_write(dataset: Any) -> Any:
    """Return the tags of a dataset, to write them.

    Of a local store, Lance writes each by way of a path in which some characters are encoded as in a URL, and makes its
    folders. They stay as litter, or cannot be made, as below a home folder with an umlaut. Its other local file system does
    not.
    """
    uri = str(dataset.uri)
    if is_local(uri) and _ENCODED.search(uri):
        dataset = lance.dataset(f"file-object-store://{quote(uri)}")
    return dataset.tags


def data_session(location: StoreLocation) -> LanceFileSession:
    """Open the folder of the data files, local or in a bucket."""
    options = lance_options(location)
    with opening(location.uri):
        return LanceFileSession(f"{location.uri}/data", options)


def folders_in_bucket(place: StoreLocation) -> list[str]:
    """Return the names of the folders directly below a place in an object store.

    Raises:
        StoreError: If it cannot be listed.
    """
    with opening(place.uri):
        session = LanceFileSession(place.uri, lance_options(place))
        folders = session.list_with_delimiter().common_prefixes
    names: set[str] = set()
    for folder in folders:
        names.add(str(folder).rstrip("/").rpartition("/")[2])
    return sorted(names)


def remove_store(location: StoreLocation) -> None:
    """Remove a token store, so that another can be built in its place. A process that has it mapped can still read it.

    A kill at any moment leaves the whole store or none: a local store is renamed as a whole first. In a bucket, tags and
    checksums go first, since they could be taken for those of the next store; then the versions, the newest last; then the
    files of the versions.

    Raises:
        StoreError: If it cannot be removed, or its folder contains files of others.
    """
    try:
        if is_local(location.uri):
            _remove_folder(location.uri)
            return
        session = LanceFileSession(location.uri, lance_options(location))
        files = list(map(str, session.list()))
        _check_foreign(location.uri, foreign_objects(location, files, _listed_files(location)))
        for file in sorted(files, key=removal_order):
            session.delete_file(file)
    except (ValueError, OSError) as error:
        what = f"The token store {location.uri!r} cannot be removed: {lance_said(error)}."
        raise StoreError(what) from shown_cause(error)


def _remove_folder(uri: str) -> None:
    check_no_links(uri)
    _check_foreign(uri, foreign_files(uri, _listed_files(StoreLocation(uri))))
    finish_removal(uri)
    removing = removal_folder(uri)
    if os.path.lexists(removing):
        raise StoreError(
            f"The store {uri!r} cannot be removed: {str(removing)!r} exists and is not a token store; move it elsewhere."
        )
    Path(uri).rename(removing)
    shutil.rmtree(removing)


def _check_foreign(uri: str, foreign: Sequence[str]) -> None:
    if foreign:
        raise StoreError(
            f"The store {uri!r} cannot be removed: its folder contains files of others ({describe_files(foreign)}); move them "
            "elsewhere, or use another uri."
        )


def removal_folder(uri: str) -> Path:
    """Return the folder that a local store is renamed to while it is removed."""
    return Path(f"{uri.rstrip('/')}{_REMOVING}")


def finish_removal(uri: str) -> None:
    """Remove the rest of a local store whose removal was killed, and no other folder."""
    removing = removal_folder(uri)
    if not is_local(uri) or removing.is_symlink() or not removing.is_dir():
        return
    # The killed removal may have removed the versions, so that the names of their files are unknown.
    if not foreign_files(str(removing), _listed_files(StoreLocation(str(removing)))):
        shutil.rmtree(removing)


def _listed_files(location: StoreLocation) -> set[str]:
    """Return the paths of the data files of all versions of a store that can be read."""
    listed: set[str] = set()
    with suppress(ValueError, OSError, StoreError):
        for number in versions_of(dataset_at(location, None)):
            with suppress(ValueError, OSError, StoreError):
                listed.update(map(data_file_at, data_files(dataset_at(location, number))))
    return listed


def write_rows(
    location: StoreLocation,
    before: Any | None,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    name: str | None = None,
) -> tuple[list[FragmentMetadata], dict[str, DataFileInfo]]:
    """Write rows into a data file that no version has yet. No rows make no file. After any error, no file stays.

    Must not run in the main thread: Ctrl-C within Lance would leave files.

    Args:
        location: The store.
        before: Its dataset; None if it has no version.
        schema: The schema of the rows.
        batches: The rows.
        name: The name of the file, for a store with a version; None for one of Lance's.

    Returns:
        The fragment of the file, and the description of the file by path.

    Raises:
        CommitConflict: If it cannot be written because another version came first.
        StoreError: If it cannot be written.
    """
    counter = LayoutCounter()
    counted = counter.counted(batches)
    paths: list[str] = []
    try:
        if name is None:
            written = _write_fragments(location, before, schema, counted)
        else:
            written = _write_named(location, before, schema, counted, name)
        paths = file_names(written)
        fragments: list[FragmentMetadata] = []
        files: dict[str, DataFileInfo] = {}
        for fragment in written:
            if not fragment.physical_rows:
                continue
            fragments.append(fragment)
            (file,) = fragment.files
            if "://" in location.uri:
                whole = hash_file(data_session(location), file.path, file.file_size_bytes)
            else:
                whole = hash_local(Path(location.uri, data_file_at(file.path)))
            files[file.path] = counter.info(file.file_size_bytes, whole)
    except BaseException as error:
        delete_uncommitted(location, paths, [])
        if not isinstance(error, (ValueError, OSError)):
            raise
        # Another builder may have made a version, and removed the files that this one was reading.
        expected = number_of(before)
        found = number_of(dataset_at(location, None))
        cause = not_written(location.uri, error)
        if found != expected:
            cause = conflict(location.uri, expected, found)
        elif _is_not_utf8(error):
            cause = undecodable(location.uri)
        raise cause from shown_cause(error)
    return fragments, files


def _write_fragments(
    location: StoreLocation, before: Any | None, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> list[FragmentMetadata]:
    written: list[FragmentMetadata] = write_fragments(
        pa.RecordBatchReader.from_batches(schema, batches),
        location.uri if before is None else before,
        mode="create" if before is None else "append",
        max_rows_per_file=_ROWS_PER_FILE,
        storage_options=lance_options(location),
    )
    return written


def _write_named(
    location: StoreLocation, before: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch], name: str
) -> list[FragmentMetadata]:
    """Write rows into a file of this name. Lance writes it under another name first, so it is whole or not there."""
    rows = 0
    writer = None
    for batch in batches:
        if writer is None:
            writer = data_session(location).open_writer(name, schema=schema, version=before.data_storage_version)
        writer.write_batch(batch)
        rows += len(batch)
    if writer is None:
        return []
    writer.close()
    return [FragmentMetadata(id=0, files=[DataFile.create(before, name)], physical_rows=rows)]


def delete_uncommitted(location: StoreLocation, paths: Iterable[str], datasets: Iterable[Any]) -> None:
    """Remove the data files that belong to none of the datasets, of which some may be None."""
    unused = {*paths}
    for dataset in datasets:
        unused -= {*data_files(dataset)}
    if not unused:
        return
    session = data_session(location)
    for path in unused:
        with suppress(ValueError, OSError):
            session.delete_file(path)


def conflict(uri: str, expected: int, version: int) -> CommitConflict:
    """Return the error of a commit that came second."""
    return CommitConflict(
        f"Another process wrote to the token store {uri!r} at the same time (it has version {version}, expected {expected}): "
        "the last part of this build was not stored; run it again to continue."
    )


def not_written(uri: str, error: Exception) -> StoreError:
    """Return the error of a store that cannot be written, with its cause."""
    return StoreError(
        f"The token store {uri!r} cannot be written ({lance_said(error)}): free disk space or grant write access, "
        "then run it again to continue after the last commit."
    )


def lance_options(location: StoreLocation) -> dict[str, str] | None:
    """Return the storage options of a place in Lance's form: strings, or None if there are none."""
    return dict(checked_storage_options("storage_options", location.storage_options)) or None


# Patterns of Lance's errors about buckets, and plain messages in their place. The first match counts.
_PLAIN_MESSAGES = (
    (
        r"NoSuchBucket|ContainerNotFound|bucket does not exist",
        "the bucket does not exist: check its name, and the endpoint",
    ),
    (
        # Each with the name of its cloud in the same text; those of S3 have other codes.
        r"Azure.*?(?:[Cc]redential|token request|AuthenticationFailed|Invalid Access Key)|no Azure account name",
        "the credentials are missing or invalid: set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY in the "
        "environment, or azure_storage_account_name and azure_storage_account_key in storage_options",
    ),
    (
        r"(?:GCS|GCP).*?(?:credential|token request|Unauthenticated)|Error reading pem file|CryptoProvider",
        "the credentials are missing or invalid: name the file of a service account by GOOGLE_APPLICATION_CREDENTIALS in the "
        "environment, or by google_service_account in storage_options",
    ),
    (
        r"Failed to get \w+ credentials|NoCredentials|CredentialsNotLoaded|Error performing token request|InvalidAccessKeyId|"
        r"SignatureDoesNotMatch|ExpiredToken|InvalidToken|AuthenticationFailed|Unauthenticated|no Azure account name",
        "the credentials are missing or invalid: set them in environment variables, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or in storage_options",
    ),
    (
        r"AccessDenied|AllAccessDisabled|AuthorizationFailure|403 Forbidden|401 Unauthorized|[Pp]ermission ?[Dd]enied.*https?://",
        "access is denied: check the bucket, and the permissions of the credentials",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|301 Moved|IncorrectEndpoint|IllegalLocationConstraint",
        "the bucket is in another region: set storage_options, as in {aws_region: eu-central-1}",
    ),
    (
        r"GET http://.*builder error|PUT http://.*builder error",
        "the endpoint does not use https: allow that in storage_options, as in {allow_http: true}",
    ),
    (r"builder error|RelativeUrlWithoutBase", "the endpoint is not a URL: expected one such as https://s3.example.com"),
    (
        r"error sending request|dns error|Connect(ion)? ?(refused|reset|timed out|error)|operation timed out|TimedOut",
        "the server does not answer: check the endpoint, the proxy and the network",
    ),
    (
        r"No object store provider found",
        "the kind of URL is unknown: expected a local folder, or a URL that begins with s3://, gs:// or az://",
    ),
)
# The place in Lance's source code that its errors end with.
_ORIGIN = re.compile(r",? ?/\S+\.rs:\d+:\d+")


def lance_said(error: object) -> str:
    """Return the message of a Lance error in one line and without secrets, or a plain message in its place."""
    text = " ".join(str(error).split())
    for pattern, plain in _PLAIN_MESSAGES:
        if re.search(pattern, text):
            return plain
    return in_one_line(_ORIGIN.sub("", text), _LONGEST_MESSAGE).rstrip(".")


def _no_bucket(error: BaseException) -> bool:
    """Return whether the bucket was not found, rather than a store in it."""
    return re.search(_PLAIN_MESSAGES[0][0], str(error)) is not None
