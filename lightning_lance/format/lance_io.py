"""The Lance dataset beneath a token store: how it is opened, its fragments, and how a data file is written.

Only the storage layer knows Lance, from this module to `store`; tests/test_layers.py has the list.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileSession
from lance.fragment import FragmentMetadata, write_fragments

from lightning_lance.errors import CommitConflict, LightningLanceError, StoreError
from lightning_lance.format.hashing import hash_file, hash_local
from lightning_lance.format.lance_names import data_file_at, removal_order
from lightning_lance.format.layout import DataFileInfo, LayoutCounter
from lightning_lance.format.own_files import (
    check_no_links,
    describe_files,
    foreign_files,
    foreign_objects,
    is_plain_name,
)
from lightning_lance.format.schema import block_of, check_keys, tokens_of
from lightning_lance.location import check_place, checked_storage_options, is_local
from lightning_lance.messages.redaction import in_one_line, shown_cause

# It warns of every fork. A forked process does not go through it: see `TokenStore.read`.
warnings.filterwarnings("ignore", "lance is not fork-safe")

# One file for one commit, however large: Lance cuts files at 1,048,576 rows otherwise.
_ROWS_PER_FILE = 2_000_000_000
# Of what Lance says of an error, in characters: it names whole paths, and says only then what is wrong.
_TOLD = 1000
# Of a local store on its way out. No name that anybody would give to a copy: it is removed unasked.
_ASIDE = ".being-removed"


class PendingFragments(NamedTuple):
    """Rows in a data file that no version has yet.

    Attributes:
        before: The dataset that they are to follow; None where they are the first of a store.
        schema: Of the rows.
        fragments: What to commit: one fragment, none if there are no rows.
        files: The note of its file, by path.
    """

    before: Any | None
    schema: pa.Schema
    fragments: list[FragmentMetadata]
    files: dict[str, DataFileInfo]


# The process that has built, searched or verified a store: threads of libraries work for it, which no fork of it has.
_worker: int | None = None


def refuse_in_fork(what: str) -> None:
    """Note that this process works on a store; refuse to where it is a fork of one that did, since it would hang or crash.

    Args:
        what: What is to be done, as a message begins.

    Raises:
        StoreError: If it is such a fork.
    """
    global _worker
    if _worker not in (None, os.getpid()):
        raise StoreError(
            f"{what} cannot be done by process {os.getpid()}, a fork of process {_worker}, which has worked on a store: the "
            "threads of Lance and of the tokenizer are there only; do it there, or in a process that is spawned."
        )
    _worker = os.getpid()


def dataset_at(uri: str, version: int | None, storage_options: Mapping[str, str] | None) -> Any:
    """Open a Lance dataset at a version, or as it is now; None if there is none. StoreError if it cannot be opened."""
    check_place("uri", uri)
    options = lance_options(storage_options)
    try:
        return lance.dataset(uri, version=version, storage_options=options)
    except (ValueError, OSError, RuntimeError) as error:
        if "not found" in str(error).lower() and not _no_bucket(error):
            return None
        if "not a directory" in str(error).lower() and not os.path.isdir(uri):  # noqa: PTH112 - raises nothing
            return None
        raise StoreError(f"The token store {uri!r} cannot be opened: {lance_said(error)}.") from shown_cause(error)


def fragments_of(dataset: Any) -> list[FragmentMetadata]:
    """List the fragments of an open dataset.

    Raises:
        StoreError: If one has a file outside the folder of the store, which is then neither read nor removed.
    """
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    for fragment in fragments:
        for file in fragment.files:
            _check_inside(dataset.uri, file)
    return fragments


def _check_inside(uri: str, file: Any) -> None:
    if file.base_id is not None:
        raise StoreError(
            f"The Lance dataset {uri!r} has data files in the folder of another one, since it is a shallow clone: copy the "
            "folder of the token store itself."
        )
    if not is_plain_name(file.path):
        raise StoreError(
            f"The Lance dataset {uri!r} names the data file {file.path!r}, which is outside its folder, so it is damaged or "
            "made to do harm: use another copy of it."
        )


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Turn what Lance says of a place that it cannot reach into a StoreError."""
    try:
        yield
    except LightningLanceError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        raise StoreError(f"The token store {uri!r} cannot be opened: {lance_said(error)}.") from shown_cause(error)


@contextmanager
def no_panic() -> Iterator[None]:
    """Turn a panic of Lance, which is no Exception, into a StoreError; all else passes."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise StoreError(f"Lance has panicked: {in_one_line(error)}") from error


def data_files(dataset: Any) -> list[str]:
    """List the data files of an open dataset, by name. No two files ever have one, so they tell a version from any other."""
    return [file.path for fragment in fragments_of(dataset) for file in fragment.files]


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn whatever Lance makes of a damaged store, its panics included, into a StoreError."""
    try:
        yield
    except (LightningLanceError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise StoreError(
            f"The token store {uri!r} cannot be read ({lance_said(error)}): 'lightning-lance verify' tells what is damaged."
        ) from shown_cause(error)


def check_fragments(uri: str, fragments: Sequence[FragmentMetadata]) -> None:
    """Refuse a store whose data files are not each one file in its own folder, of one fragment.

    Raises:
        StoreError: Naming the file.
    """
    seen: set[str] = set()
    for file in (file for fragment in fragments for file in fragment.files):
        if file.path in seen or Path(file.path).name != file.path:
            what = "is in it twice" if file.path in seen else "is not a plain name"
            raise StoreError(
                f"The data file {file.path!r} of the token store {uri!r} {what}: get the store anew from where it came, or "
                "build it again elsewhere."
            )
        seen.add(file.path)


@contextmanager
def reading_documents(uri: str) -> Iterator[None]:
    """Say of metadata that is not UTF-8 what it means; other errors pass."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not _is_not_utf8(error):
            raise
        raise undecodable(uri) from error


def _is_not_utf8(error: Exception) -> bool:
    return "invalid utf-8 sequence" in str(error) and "invalid path" not in str(error)


def undecodable(uri: str) -> StoreError:
    """Say that a store holds metadata that is not UTF-8: older versions passed it on to Lance, which does not check it."""
    return StoreError(
        f"The token store {uri!r} holds metadata of documents that is not UTF-8, which an older version of lightning-lance "
        "wrote and Lance cannot decode: its tokens can be read, but its documents can be neither shown, forgotten nor merged; "
        "remove the store and build it again."
    )


def check_sizes(uri: str, fragments: Iterable[FragmentMetadata]) -> None:
    """Refuse a local store of which a data file is missing or has another size: a map of it would reach beyond its end.

    Raises:
        StoreError: Naming the file.
    """
    for fragment in fragments:
        for file in fragment.files:
            path = Path(uri, data_file_at(file.path))
            size = path.stat().st_size if path.is_file() else None
            if size != file.file_size_bytes and file.base_id is None:
                got = "missing" if size is None else f"{size:,} bytes long"
                raise StoreError(
                    f"The data file {str(path)!r} is {got}, expected {file.file_size_bytes:,} bytes: bring it back, or remove "
                    "the store and build it again ('lightning-lance verify' lists all that is damaged)."
                )


def stream_columns(dataset: Any) -> pa.Table:
    """Read what tells of which streams the rows are: `num_tokens`, `split`, `language`. StoreError if it does not tell."""
    rows = dataset.to_table(columns=["num_tokens", "split", "language"])
    block, _ = block_of(dataset.uri, dataset.schema)
    check_keys(dataset.uri, rows, block)
    return rows


def take_blocks(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Read the tokens of rows, as (n, block). StoreError if there are fewer rows, or some of their tokens are null."""
    block, _ = block_of(dataset.uri, dataset.schema)
    tokens = tokens_of(dataset.uri, dataset.take(rows.tolist(), columns=["tokens"]).column("tokens"), block)
    if len(tokens) != len(rows):
        raise StoreError(
            f"The token store {dataset.uri!r} gave {len(tokens):,} of {len(rows):,} rows: 'lightning-lance verify' tells what "
            "is damaged."
        )
    return tokens


def data_session(uri: str, storage_options: Mapping[str, str] | None) -> LanceFileSession:
    """Open the folder of the data files, local or in a bucket."""
    options = lance_options(storage_options)
    with opening(uri):
        return LanceFileSession(f"{uri}/data", options)


def remove_store(uri: str, storage_options: Mapping[str, str] | None) -> None:
    """Remove a token store, so that another can be made in its place. Who has it open and mapped can read on.

    Killed at any moment, it leaves the store or none, and never half of one: a local one is taken aside as a whole first. In a
    bucket tags and checksums go first, which could otherwise be taken for those of the next store; then the versions, and the
    newest of them last; then what no version needs any more.

    Raises:
        StoreError: If it cannot be removed, or its folder holds other things than a token store.
    """
    try:
        if is_local(uri):
            _remove_folder(uri)
            return
        options = lance_options(storage_options)
        session = LanceFileSession(uri, options)
        files = [str(file) for file in session.list()]
        _check_foreign(uri, foreign_objects(uri, files, options, _listed_files(uri, storage_options)))
        for file in sorted(files, key=removal_order):
            session.delete_file(file)
    except (ValueError, OSError) as error:
        raise StoreError(f"The token store {uri!r} cannot be removed: {lance_said(error)}.") from shown_cause(error)


def _remove_folder(uri: str) -> None:
    check_no_links(uri)
    _check_foreign(uri, foreign_files(uri, _listed_files(uri)))
    remove_aside(uri)
    aside = aside_of(uri)
    if os.path.lexists(aside):
        raise StoreError(
            f"The store {uri!r} is not removed, since {str(aside)!r} is in the way and is not of a token store: move that "
            "elsewhere."
        )
    Path(uri).rename(aside)
    shutil.rmtree(aside)


def _check_foreign(uri: str, foreign: Sequence[str]) -> None:
    if foreign:
        raise StoreError(
            f"The folder {uri!r} holds what is not of its token store ({describe_files(foreign)}), so the store is not "
            "removed: move that elsewhere, or give another uri."
        )


def aside_of(uri: str) -> Path:
    """Return the place of a local store that is being removed."""
    return Path(f"{uri.rstrip('/')}{_ASIDE}")


def remove_aside(uri: str) -> None:
    """Remove what a removal of a local store has left that was killed, and nothing else; for who builds there."""
    aside = aside_of(uri)
    if not is_local(uri) or aside.is_symlink() or not aside.is_dir():
        return
    # Of a removal that was killed, the versions may be gone, and what they named with them.
    if not foreign_files(str(aside), _listed_files(str(aside))):
        shutil.rmtree(aside)


def _listed_files(uri: str, storage_options: Mapping[str, str] | None = None) -> set[str]:
    """List the data files that the versions of a store name, as far as they can be read, by path."""
    listed: set[str] = set()
    with suppress(ValueError, OSError, StoreError):
        dataset = dataset_at(uri, None, storage_options)
        for entry in [] if dataset is None else dataset.versions():
            with suppress(ValueError, OSError, StoreError):
                version = dataset_at(uri, int(entry["version"]), storage_options)
                listed |= {data_file_at(file.path) for fragment in fragments_of(version) for file in fragment.files}
    return listed


def write_rows(
    uri: str,
    before: Any | None,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    storage_options: Mapping[str, str] | None,
) -> tuple[list[FragmentMetadata], dict[str, DataFileInfo]]:
    """Write rows into a data file that no version has yet, and give it as a fragment, with its note; no rows, no file.

    Nothing of it stays if it fails, however. Not for the main thread: Ctrl-C within Lance would leave files there.

    Args:
        uri: The store.
        before: Its dataset; None if there is no version of it.
        schema: Of the rows.
        batches: The rows.
        storage_options: Credentials and such for object stores.

    Raises:
        CommitConflict: If that fails since there is another version by now.
        StoreError: If it cannot be written.
    """
    counter = LayoutCounter()
    reader = pa.RecordBatchReader.from_batches(schema, counter.passing(batches))
    paths: list[str] = []
    try:
        written = write_fragments(
            reader,
            uri if before is None else before,
            mode="create" if before is None else "append",
            max_rows_per_file=_ROWS_PER_FILE,
            storage_options=lance_options(storage_options),
        )
        paths = [file.path for fragment in written for file in fragment.files]
        written = [fragment for fragment in written if fragment.physical_rows]
        files = {}
        for fragment in written:
            (file,) = fragment.files
            if "://" in uri:
                whole = hash_file(data_session(uri, storage_options), file.path, file.file_size_bytes)
            else:
                whole = hash_local(Path(uri, data_file_at(file.path)))
            files[file.path] = counter.note(file.file_size_bytes, whole)
    except BaseException as error:
        delete_uncommitted(uri, paths, [], storage_options)
        if not isinstance(error, (ValueError, OSError)):
            raise
        # Another may have made a version, and removed what this one was to be made of.
        newest = dataset_at(uri, None, storage_options)
        versions = [0 if dataset is None else int(dataset.version) for dataset in (before, newest)]
        if versions[0] != versions[1]:
            raise conflict(uri, *versions) from shown_cause(error)
        raise (undecodable(uri) if _is_not_utf8(error) else not_written(uri, error)) from shown_cause(error)
    return written, files


def delete_uncommitted(
    uri: str, paths: Iterable[str], datasets: Iterable[Any], storage_options: Mapping[str, str] | None
) -> None:
    """Remove those data files that none of the datasets (None: no dataset) has."""
    there = [dataset for dataset in datasets if dataset is not None]
    needed = {file.path for dataset in there for part in fragments_of(dataset) for file in part.files}
    if not (gone := {*paths} - needed):
        return
    session = data_session(uri, storage_options)
    for path in gone:
        with suppress(ValueError, OSError):
            session.delete_file(path)


def conflict(uri: str, expected: int, version: int) -> CommitConflict:
    """Say that a commit has lost."""
    return CommitConflict(
        f"Another process wrote to the token store {uri!r} at the same time (it has version {version}, expected {expected}): "
        "nothing of this build's last part was stored; run again, it goes on after what is there."
    )


def not_written(uri: str, error: Exception) -> StoreError:
    """Say that a store could not be written, and why."""
    return StoreError(
        f"The token store {uri!r} cannot be written ({lance_said(error)}): make room or give access, and run again; it goes on "
        "after the last commit."
    )


def lance_options(storage_options: Mapping[str, str] | None) -> dict[str, str] | None:
    """Give the options as Lance takes them: strings, None for none."""
    return checked_storage_options("storage_options", storage_options) or None


# What Lance says of a bucket, and what to do about it. The first that is found counts.
_SAID = (
    (
        r"NoSuchBucket|ContainerNotFound|bucket does not exist",
        "there is no such bucket: check its name, and the endpoint",
    ),
    (
        r"Failed to get \w+ credentials|NoCredentials|CredentialsNotLoaded|Error performing token request|InvalidAccessKeyId|"
        r"SignatureDoesNotMatch|ExpiredToken|InvalidToken|AuthenticationFailed|Unauthenticated|no Azure account name",
        "the credentials are missing, or not accepted: give them by environment variables, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or by storage_options",
    ),
    (
        r"AccessDenied|AllAccessDisabled|AuthorizationFailure|403 Forbidden|401 Unauthorized|[Pp]ermission ?[Dd]enied.*https?://",
        "access is denied: check the bucket, and what the credentials are allowed to do",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|301 Moved|IncorrectEndpoint|IllegalLocationConstraint",
        "the bucket is in another region: give it by storage_options, as in {aws_region: eu-central-1}",
    ),
    (
        r"GET http://.*builder error|PUT http://.*builder error",
        "the endpoint has no https: allow that by storage_options, as in {allow_http: true}",
    ),
    (r"builder error|RelativeUrlWithoutBase", "the endpoint is no URL: expected such as https://s3.example.com"),
    (
        r"error sending request|dns error|Connect(ion)? ?(refused|reset|timed out|error)|operation timed out|TimedOut",
        "there is no answer: check the endpoint, the proxy and the network",
    ),
    (
        r"No object store provider found",
        "there is no such kind of place: expected a local folder, or a URL that begins with s3://, gs:// or az://",
    ),
)
# Where in its own code Lance met an error.
_ORIGIN = re.compile(r",? ?/\S+\.rs:\d+:\d+")


def lance_said(error: object) -> str:
    """Give what Lance says of an error, in one line and without secrets; in plain words where they are known."""
    text = " ".join(str(error).split())
    for pattern, plain in _SAID:
        if re.search(pattern, text):
            return plain
    return in_one_line(_ORIGIN.sub("", text), _TOLD).rstrip(".")


def _no_bucket(error: BaseException) -> bool:
    """Tell whether it is the bucket that was not found, and not a store in it."""
    return re.search(_SAID[0][0], str(error)) is not None
