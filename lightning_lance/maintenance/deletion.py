"""Remove a whole token store on request: only what is provably one, and only while nothing uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from lightning_lance.errors import FormatError, LightningLanceError, StoreError
from lightning_lance.format.checksums import SUMS
from lightning_lance.format.commit import last_version
from lightning_lance.format.lance_io import dataset_at, finish_removal, reading, removal_folder, remove_store, times_of
from lightning_lance.format.lineage import lineage_of
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links, foreign_files
from lightning_lance.format.refs import read_refs
from lightning_lance.format.tags import is_of_a_run, lacks_build_tag
from lightning_lance.lance_names import DATA
from lightning_lance.location import (
    StoreLocation,
    beside_place,
    check_not_on_hub,
    is_local,
    no_store_at,
    store_place,
    tokenizer_file,
)
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import agreed, format_list, pluralize
from lightning_lance.process.build_status import BuildStatus, read_status, remove_status, status_file
from lightning_lance.process.locks import Lease, content_of, lock_file
from lightning_lance.process.maps import processes_that_map
from lightning_lance.tokenization.configs import TokenizerFile
from lightning_lance.tokenization.identity import identity_of_text
from lightning_lance.tokenization.tokenizer import is_kept_tokenizer

# In a bucket there is no lease: an unfinished store with a younger commit may have a builder.
_BUILDING = timedelta(minutes=5)


def remove(uri: str, storage_options: Mapping[str, str] | None = None, ignore_runs: bool = False) -> list[str]:
    """Remove a token store, its tokenizer and its other files beside it.

    A kill at any moment leaves the whole store or none. Run again, it removes what is left.

    Args:
        uri: The store.
        storage_options: Credentials and other options of object stores.
        ignore_runs: Whether to ignore the tags of runs without a checkpoint, which killed runs leave.

    Returns:
        The paths of the files beside the store that were removed with it.

    Raises:
        StoreError: If there is no store, it is in use, it is not provably a token store, or it cannot be removed.
    """
    location = StoreLocation(store_place(uri), storage_options)
    check_not_on_hub(location.uri, "A removal")
    commit = check_removable(location, ignore_runs)
    with _alone(location):
        # A build or a run may have begun since.
        check_removable(location, ignore_runs)
        if dataset_at_all(location):
            remove_store(location)
        finish_removal(location.uri)
        try:
            if is_local(location.uri):
                return remove_beside(location, commit)
            return []
        except OSError as error:
            raise StoreError(
                f"The files beside the token store {location.uri!r} cannot be removed ({error.strerror}): grant write access."
            ) from error


def check_removable(location: StoreLocation, ignore_runs: bool = False) -> CommitMetadata | None:
    """Check that a store is provably a token store, and that nothing uses it. Return its newest commit, if it is readable.

    The lease of a builder is not looked at: `remove` takes it.

    Raises:
        StoreError: If one of the two does not hold, or there is no store.
    """
    commit = _check_is_ours(location)
    if commit is not None:
        _check_unused(location, ignore_runs)
    if is_local(location.uri):
        _check_unmapped(location.uri)
    return commit


def dataset_at_all(location: StoreLocation) -> bool:
    """Return whether there is a folder of a store, damaged or not."""
    return not is_local(location.uri) or Path(location.uri).is_dir()


def _check_is_ours(location: StoreLocation) -> CommitMetadata | None:
    uri = location.uri
    check_no_links(uri)
    try:
        with reading(uri):
            commit = last_version(location)[1]
    except FormatError:
        raise
    except StoreError as error:
        if _is_foreign(location) or not _is_ours_by_content(uri):
            raise StoreError(
                f"{uri!r} is not provably a token store, so nothing of it is removed ({error}) remove it by hand if it is not "
                "needed."
            ) from error
        return None
    if commit is None and not _is_rest(uri):
        raise no_store_at(uri)
    return commit


def _is_foreign(location: StoreLocation) -> bool:
    """Return whether a place has a readable Lance dataset of another program."""
    with suppress(LightningLanceError), reading(location.uri):
        dataset = dataset_at(location, None)
        return dataset is not None and lineage_of(dataset).committed is None
    return False


def _is_ours_by_content(uri: str) -> bool:
    """Return whether a damaged local store has our checksums, and nothing but our files: each data file has our columns."""
    return is_local(uri) and Path(uri, SUMS).is_file() and not foreign_files(uri)


def _is_rest(uri: str) -> bool:
    """Return whether a local place has the rest of a builder, or of a killed removal, and nothing else."""
    if not is_local(uri):
        return False
    has_status = read_status(status_file(uri)) is not None
    if Path(uri).is_dir():
        data = Path(uri, DATA)
        return (has_status or (data.is_dir() and any(data.iterdir()))) and not foreign_files(uri)
    removing = removal_folder(uri)
    return (removing.is_dir() and not removing.is_symlink()) or (has_status and not os.path.lexists(uri))


def _check_unused(location: StoreLocation, ignore_runs: bool) -> None:
    uri = location.uri
    with reading(uri):
        runs = [shown(name) for name in sorted(read_refs(location).tags) if is_of_a_run(name)]
        if runs and not ignore_runs:
            raise StoreError(
                f"The token store {uri!r} is in use: {pluralize(len(runs), 'training run')} without a checkpoint so far "
                f"{agreed(len(runs), 'keeps', 'keep')} it (tags {format_list(runs, 3)}); let it end, or, if it was killed, "
                "give ignore_runs=true."
            )
        if is_local(uri):
            return
        dataset = dataset_at(location, None)
        made = times_of(dataset)[int(dataset.version)]
        if lacks_build_tag(dataset, location) and datetime.now(timezone.utc) - made < _BUILDING:
            raise StoreError(
                f"The token store {uri!r} is unfinished, and its last commit is from {made:%H:%M:%S}, so a build may go on: "
                f"stop it, and try again {_BUILDING.seconds // 60} minutes later."
            )


def _check_unmapped(uri: str) -> None:
    processes = processes_that_map(uri)
    if processes:
        raise StoreError(
            f"The token store {uri!r} is in use: {agreed(len(processes), 'process', 'processes')} "
            f"{format_list(list(map(str, processes)))} of this machine {agreed(len(processes), 'reads', 'read')} it; let "
            "them end first."
        )


@contextmanager
def _alone(location: StoreLocation) -> Iterator[None]:
    """Hold the lease of a local store, so that no build begins. StoreError if another process holds it."""
    file = lock_file(location.uri)
    if file is None:
        yield
        return
    lease = Lease(file)
    if not lease.take_from_the_dead():
        raise StoreError(
            f"The token store {location.uri!r} is in use: another process is building it or writing to it (file "
            f"{str(file)!r}); let it end, or stop it."
        )
    try:
        yield
    finally:
        lease.release()


def remove_beside(location: StoreLocation, commit: CommitMetadata | None) -> list[str]:
    """Remove the status of a build, and the tokenizer, unless it is another's. Return their paths."""
    removed = []
    file = status_file(location.uri)
    status = read_status(file)
    for tokenizer in tokenizers_beside(location.uri):
        ours = _is_of_build(tokenizer, status) if commit is None else _is_tokenizer_of(tokenizer, commit)
        if ours and not _has_other_store(tokenizer, location.uri):
            tokenizer.unlink()
            removed.append(str(tokenizer))
    # Last, since it says whose the tokenizer is.
    if file is not None and os.path.lexists(file):
        remove_status(file)
        if not os.path.lexists(file):
            removed.append(str(file))
    return removed


def tokenizers_beside(uri: str) -> list[Path]:
    """Return the places of the tokenizer of a local store."""
    return list(dict.fromkeys([beside_place(uri, "tokenizer.json"), tokenizer_file(uri)]))


def _is_of_build(file: Path, status: BuildStatus | None) -> bool:
    """Return whether a file is the tokenizer that a build has written which has committed nothing."""
    if status is None or file.is_symlink():
        return False
    with suppress(OSError, ValueError):
        began = datetime.strptime(status.since, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=timezone.utc)
        return file.stat().st_mtime >= began.timestamp() and is_kept_tokenizer(content_of(file).decode())
    return False


def _is_tokenizer_of(file: Path, commit: CommitMetadata) -> bool:
    """Return whether a file is the tokenizer that made a store."""
    digest = commit.recipe.get("tokenizer")
    if file.is_symlink():
        return False
    with suppress(OSError, UnicodeDecodeError, LightningLanceError):
        identity = identity_of_text(content_of(file).decode(), commit.eos_token)
        if identity is not None and identity.digest == digest:
            return True
        tokenizer = TokenizerFile(str(file), commit.eos_token).load(None, Path())
        return digest == tokenizer.digest or digest in tokenizer.other_digests
    return False


def _has_other_store(file: Path, uri: str) -> bool:
    """Return whether a tokenizer may be of another store too: stores `x` and `x.lance` both may have `x.tokenizer.json`."""
    stem = str(file).removesuffix(".tokenizer.json")
    others = {stem, f"{stem}.lance"} - {uri}
    return any(map(os.path.isdir, others))
