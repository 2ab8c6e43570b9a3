"""Whether a store is still what was written: every file against its checksum, every count against the notes.

`verify_resume` of `verify.py` is another thing: whether a run goes on where a checkpoint was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xxhash
from lance.fragment import FragmentMetadata
from tqdm import tqdm

from lightning_lance.commit import Commit, commit_of, notes_of
from lightning_lance.errors import StoreError
from lightning_lance.fragments import data_session, dataset_at, fragments_of
from lightning_lance.layout import FileNote, hash_file, hash_tokens
from lightning_lance.sums import SUMS, listed, read_sums, root_session, sum_of

_RESTORE = "bring it back from a copy, or remove the store and build it again"
# Rows read at once.
_ROWS = 2048


class Problem(NamedTuple):
    """Something that is not as it was written: where, what, and what to do."""

    place: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}; {self.cure}."


def check_store(
    uri: str, storage_options: Mapping[str, str] | None = None, sample: float = 1.0, seed: int = 0
) -> list[Problem]:
    """Check a store, all its versions, local or in a bucket.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        sample: Share of the data files to read; 1 reads every byte.
        seed: Of the choice.

    Returns:
        What is damaged; nothing if all is well.

    Raises:
        StoreError: If there is no store.
    """
    session = root_session(uri, storage_options)
    there = listed(session)
    if not there and not session.contains(SUMS):
        raise StoreError(f"There is no committed token store at {uri!r}: check the address.")
    # Lance is not asked to read manifests that are damaged: it may do anything.
    problems = list(_check_sums(session, there))
    if problems:
        return problems
    try:
        newest = dataset_at(uri, None, storage_options)
        datasets = [dataset_at(uri, int(entry["version"]), storage_options) for entry in newest.versions()]
        problems += _check_tags(newest, {int(dataset.version) for dataset in datasets})
        fragments = {f.files[0].path: (dataset, f) for dataset in datasets for f in fragments_of(dataset) if f.files}
        notes = {path: note for dataset in datasets for path, note in notes_of(dataset).items()}
        commit = commit_of(newest, uri)
    except Exception as error:  # of whatever kind: the versions cannot be read
        return [*problems, Problem(uri, f"its versions cannot be read ({_brief(error)})", _RESTORE)]
    files = data_session(uri, storage_options)
    chosen = np.random.default_rng(seed).random(len(fragments)) < sample
    for (path, (dataset, fragment)), read in tqdm(
        zip(sorted(fragments.items()), chosen.tolist(), strict=True), total=len(fragments), desc="verify", disable=None
    ):
        found = _check_file(files, path, fragment, notes.get(path), read)
        if not found and read and path in notes:
            found = _check_rows(dataset, path, fragment, notes[path])
        problems += found
    return problems or _check_counts(newest, uri, notes, commit)


def require_whole(uri: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Refuse a store that is not as it was written.

    Raises:
        StoreError: Naming what is damaged.
    """
    if problems := check_store(uri, storage_options):
        more = f" (and {len(problems) - 1} more: see 'lightning-lance verify {uri}')" if len(problems) > 1 else ""
        raise StoreError(f"The token store {uri!r} is damaged: {str(problems[0]).rstrip('.')}{more}.")


def _check_sums(session: Any, there: set[str]) -> Iterable[Problem]:
    try:
        sums = read_sums(session)
    except Exception as error:  # of whatever kind: it cannot be read
        yield Problem(SUMS, f"the list of checksums is damaged ({_brief(error)})", "the next commit writes it anew")
        return
    if sums is None:
        yield Problem(SUMS, "the list of checksums is missing", "the next commit writes it anew")
        return
    for path, expected in sorted(sums.items()):
        if path not in there:
            yield Problem(path, "is missing", _RESTORE)
        elif (found := sum_of(session, path)) != expected:
            what = f"has {found.size:,} bytes, expected {expected.size:,}" if found.size != expected.size else "differs"
            yield Problem(path, f"{what} from what was written" if what == "differs" else what, _RESTORE)


def _check_tags(dataset: Any, versions: set[int]) -> list[Problem]:
    try:
        tags = dataset.tags.list()
    except Exception as error:  # of whatever kind: one of them is damaged
        return [Problem("_refs/tags", f"a tag cannot be read ({_brief(error)})", "remove that file")]
    return [
        Problem(f"_refs/tags/{name}.json", f"names version {tag['version']}, which is not there", "remove that file")
        for name, tag in tags.items()
        if tag["version"] not in versions
    ]


def _check_file(
    session: Any, path: str, fragment: FragmentMetadata, note: FileNote | None, read: bool
) -> list[Problem]:
    place = f"data/{path} (fragment {fragment.id})"
    if note is None:
        return [Problem(place, "was written by others, so it has no checksum", "check it by other means")]
    if not session.contains(path):
        return [Problem(place, "is missing", _RESTORE)]
    try:
        session.read_range(path, note.size - 1, 1)
    except Exception:  # of whatever kind: it ends before
        return [Problem(place, f"has fewer than {note.size:,} bytes", _RESTORE)]
    if _readable(session, path, note.size):
        return [Problem(place, f"has more than {note.size:,} bytes", _RESTORE)]
    if read and hash_file(session, path, note.size) != note.whole:
        return [Problem(place, "differs from what was written", _RESTORE)]
    return []


def _readable(session: Any, path: str, offset: int) -> bool:
    try:
        return len(session.read_range(path, offset, 1)) > 0
    except Exception:  # of whatever kind: there is nothing
        return False


def _check_rows(dataset: Any, path: str, fragment: FragmentMetadata, note: FileNote) -> list[Problem]:
    """Check what Lance makes of the file: it may have been damaged before it was written."""
    place = f"data/{path} (fragment {fragment.id})"
    digest, rows, tokens = xxhash.xxh3_64(), 0, 0
    try:
        scanner = dataset.get_fragment(fragment.id).scanner(
            batch_size=_ROWS, batch_readahead=2, io_buffer_size=64 << 20
        )
        for batch in scanner.to_batches():
            hash_tokens(digest, batch.column("tokens"))
            rows += len(batch)
            tokens += int(np.asarray(batch.column("num_tokens")).sum())
    except Exception as error:  # of whatever kind: it cannot be decoded
        return [Problem(place, f"cannot be decoded ({_brief(error)})", _RESTORE)]
    if digest.hexdigest() != note.tokens:
        return [Problem(place, "its tokens are not those that were encoded", _RESTORE)]
    if (rows, tokens) != (sum(part.rows for part in note.parts), sum(part.tokens for part in note.parts)):
        return [Problem(place, f"has {rows:,} rows and {tokens:,} tokens, not as its note says", _RESTORE)]
    return []


def _check_counts(dataset: Any, uri: str, notes: Mapping[str, FileNote], commit: Commit) -> list[Problem]:
    paths = [fragment.files[0].path for fragment in fragments_of(dataset)]
    tokens = sum(part.tokens for path in paths for part in notes[path].parts)
    if tokens != commit.stored_tokens:
        what = f"version {dataset.version} holds {tokens:,} tokens and says {commit.stored_tokens:,}"
        return [Problem(uri, what, "remove it, and build it again")]
    return []


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:150]
