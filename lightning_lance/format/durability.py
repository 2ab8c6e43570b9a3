"""Files of a commit, forced onto the disk: what is committed is there after a power cut too.

The order is what counts. A manifest must not be on the disk before the data files that it names, nor a builder count a commit
as made, or remove what it replaces, before its manifest is there. In a bucket a write that was answered is durable: nothing is
done there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lightning_lance.format.lance_names import DATA, data_file_at
from lightning_lance.location import is_local

# Some file systems, of networks above all, force no folders, or nothing at all; they say so by one of these.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
# Some systems open no folders, and a folder above the store may be closed to us.
_CLOSED = (errno.EACCES, errno.EPERM, errno.EISDIR)


def force_data_files(uri: str, names: Iterable[str]) -> None:
    """Force data files of a local store onto the disk, and that they are in their folder; before the commit that names them.

    Args:
        uri: The store.
        names: Of the data files.

    Raises:
        OSError: If the disk does not take them. No commit may name them then.
    """
    if not is_local(uri):
        return
    files = [Path(uri, data_file_at(name)) for name in names]
    for file in files:
        _force(file)
    if files:
        _force_folder(Path(uri, DATA))


def force_version(uri: str, manifest: str, transaction: str, is_first: bool) -> None:
    """Force what makes a version of a local store onto the disk; before anybody counts on it.

    Args:
        uri: The store.
        manifest: Path of its manifest in the store.
        transaction: Path of its transaction in the store.
        is_first: Whether the folders of the store are new.

    Raises:
        OSError: If the disk does not take them.
    """
    if not is_local(uri):
        return
    store = Path(uri)
    for path in (store / manifest, store / transaction):
        # Another builder may have gone on, and removed this version.
        with suppress(FileNotFoundError):
            _force(path)
    for path in (store / manifest, store / transaction):
        _force_folder(path.parent)
    if is_first:
        _force_folder(store)
        _force_folder(store.resolve().parent)


def _force_folder(folder: Path) -> None:
    try:
        _force(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _CLOSED:
            raise


def _force(path: Path) -> None:
    # Whoever wrote it, and by whichever descriptor: all of the file is forced.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)
