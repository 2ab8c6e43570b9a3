"""Force the files of a commit onto the disk, so that it survives a power cut.

The order matters. Data files are forced before the manifest that names them, and the manifest before a builder counts the
commit as made or removes the files that it replaces. In a bucket, an acknowledged write is durable, so nothing is forced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from lightning_lance.lance_names import DATA, data_file_at
from lightning_lance.location import is_local

# The errors of file systems, mostly network ones, that cannot force folders, or anything.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
# The errors of systems that cannot open folders, and of a folder above the store without read permission.
_CLOSED = (errno.EACCES, errno.EPERM, errno.EISDIR)


def force_data_files(uri: str, names: Collection[str]) -> None:
    """Write data files of a local store, and their folder, through to the disk, before the commit that names them.

    Raises:
        OSError: If the disk fails. No commit may name the files then.
    """
    if not is_local(uri):
        return
    for name in names:
        _force(Path(uri, data_file_at(name)))
    if names:
        _force_folder(Path(uri, DATA))


def force_version(uri: str, manifest: str, transaction: str, is_first: bool) -> None:
    """Write the manifest and the transaction of a local store's version through to the disk. OSError if the disk fails.

    If it `is_first`, the folders of the store are new.
    """
    if not is_local(uri):
        return
    store = Path(uri)
    for path in (store / manifest, store / transaction):
        # Another builder may have continued, and removed this version.
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
    # This forces the whole file, whichever descriptor wrote it.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)
