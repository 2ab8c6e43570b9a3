"""Whether a store is still what was written: every file against its checksum, every count against the notes.

`inspection/resume.py` checks something else: that a run goes on where a checkpoint was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from lance.fragment import FragmentMetadata
from tqdm import tqdm

from lightning_lance.errors import ConfigError, FormatError, LightningLanceError, StoreError, described
from lightning_lance.format.checksums import (
    SUMS,
    Root,
    Sum,
    listed,
    listed_versions,
    read_sums,
    root_session,
    stays,
    sum_of,
)
from lightning_lance.format.commit import data_file_infos, read_commit
from lightning_lance.format.hashing import hash_file, hash_tokens
from lightning_lance.format.lance_io import (
    check_fragments,
    data_session,
    dataset_at,
    fragments_of,
    no_panic,
    opening,
    reading,
    refuse_in_fork,
)
from lightning_lance.format.lance_names import TAGS, data_file_at, is_manifest, manifest_of, tag_file, version_of
from lightning_lance.format.layout import DataFileInfo, check_parts
from lightning_lance.format.lineage import Change, change_of, cure
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.refs import read_refs
from lightning_lance.format.schema import begins_of, block_of, check_dtype, check_keys, tokens_of
from lightning_lance.location import is_local, store_place
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.type_hints import check_arguments

_RESTORE = "bring it back from a copy, or remove the store and build it again"
# Rows read at once.
_ROWS = 2048
# Looks at a store that changes meanwhile, and the time between two.
_LOOKS, _LOOKS_FOR_SUMS, _PAUSE_SECONDS = 30, 3, 0.5


class Problem(NamedTuple):
    """Something that is not as it was written: where, what, and what to do."""

    place: str
    what: str
    cure: str

    def __str__(self) -> str:
        return shown(f"{self.place}: {self.what}; {self.cure}.")


def verify_store(
    uri: str, storage_options: Mapping[str, str] | None = None, sample: float = 1.0, seed: int = 0
) -> list[Problem]:
    """Check a store, all its versions, local or in a bucket; also while it is built, when versions come and go.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        sample: Share of the data files to read; 1 reads every byte.
        seed: Of the choice.

    Returns:
        What is damaged; nothing if all is well. What a builder has removed meanwhile is not.

    Raises:
        StoreError: If there is no store, or one of a newer version of this package.
    """
    uri = store_place(uri)
    check_arguments(verify_store, {"seed": seed})
    if not is_share(sample):
        raise ConfigError(
            f"sample is {described(sample)}: expected a share of the data files, above 0 and up to 1, such as 0.1."
        )
    refuse_in_fork("A verification")
    before: list[Problem] = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE_SECONDS)
        state = _state(uri, storage_options)
        try:
            found = _check_once(uri, storage_options, sample, seed)
        except (ValueError, OSError, RuntimeError) as error:  # the store goes while it is read
            if isinstance(error, LightningLanceError):
                raise
            found = [Problem(uri, f"cannot be read ({_brief(error)})", _RESTORE)]
        # The list comes right after the first commit of all.
        early = look < _LOOKS_FOR_SUMS and all(problem.place == SUMS for problem in found)
        if not found or (_state(uri, storage_options) == state and not early):
            return found
        # The store was written to, or built anew, meanwhile. What is damaged stays so; what a builder was about to write or to
        # remove does not.
        lasting = [problem for problem in found if problem in before and problem.place not in (SUMS, uri)]
        if lasting:
            return lasting
        before = found
    return before


def _state(uri: str, storage_options: Mapping[str, str] | None) -> tuple[object, ...]:
    """Tell what changes with every commit, clean-up and rebuild."""
    folder = None
    if is_local(uri):
        with suppress(OSError):
            folder = Path(uri).stat().st_ino
    try:
        session = root_session(uri, storage_options)
        sums = session.content(SUMS) if session.contains(SUMS) else None
        return folder, sums, frozenset(listed(session)), tuple(session.names(TAGS))
    except (ValueError, OSError, RuntimeError):
        return folder, object()  # like no other


def _check_once(uri: str, storage_options: Mapping[str, str] | None, sample: float, seed: int) -> list[Problem]:
    session = _session_of(uri, storage_options)
    # Lance is not asked to read manifests that are damaged: it may do anything.
    if problems := _check_sums(session):
        _check_version(uri, storage_options)
        return problems
    read, problems = _read_versions(uri, session, storage_options)
    problems = problems or _check_notes(uri, read)
    if problems:
        return problems
    fragments: dict[str, list[tuple[_Version, FragmentMetadata]]] = {}
    for version in read:
        for fragment in version.fragments:
            fragments.setdefault(fragment.files[0].path, []).append((version, fragment))
    problems = _check_tags(uri, session, storage_options)
    files = data_session(uri, storage_options)
    chosen = np.random.default_rng(seed).random(len(fragments)) < sample
    for (path, places), whole in tqdm(
        zip(sorted(fragments.items()), chosen.tolist(), strict=True), total=len(fragments), desc="verify", disable=None
    ):
        found = _check_data_file(uri, files, path, places, whole)
        if found and any(_stays(session, version.number) for version, _ in places):
            problems += found
    return problems or _check_others(uri, read[-1]) or _check_counts(uri, read[-1])


def _session_of(uri: str, storage_options: Mapping[str, str] | None) -> Any:
    """Return the files of a store. StoreError if there is none."""
    if not is_local(uri) or Path(uri).is_dir():
        with opening(uri):
            session = root_session(uri, storage_options)
            if listed(session) or session.contains(SUMS):
                return session
    raise StoreError(f"There is no committed token store at {uri!r}: check the address.")


def _check_data_file(
    uri: str, files: Any, path: str, places: Sequence[tuple[_Version, FragmentMetadata]], whole: bool
) -> list[Problem]:
    """Check a data file, as the newest version has it of which others have changed nothing.

    Args:
        uri: The store.
        files: Its data files.
        path: The file.
        places: The versions that have it, and its fragment in each.
        whole: Whether all of it is read.
    """
    # What others have changed is told as such, and the file is as it was before.
    version, fragment = next((place for place in reversed(places) if not _is_changed(place[0])), places[-1])
    note = version.notes.get(path)
    if is_local(uri) and not Path(uri, data_file_at(path)).is_file():
        return [Problem(f"{data_file_at(path)} (fragment {fragment.id})", "is missing", _RESTORE)]
    found = _check_file(files, path, fragment, note, whole)
    if not found and whole and note is not None and not _is_changed(version):
        return _check_rows(version.dataset, path, fragment, note, version.commit)
    return found


def is_share(sample: Any) -> bool:
    """Tell whether a value is a share of the data files to read, above 0 and up to 1."""
    return isinstance(sample, (int, float, np.number)) and not isinstance(sample, bool) and bool(0 < sample <= 1)


class _Version(NamedTuple):
    """A version of a store, as it was read."""

    number: int
    dataset: Any
    fragments: list[FragmentMetadata]
    notes: Mapping[str, DataFileInfo]
    change: Change | None
    commit: CommitMetadata


def _check_version(uri: str, storage_options: Mapping[str, str] | None) -> None:
    """Refuse a store of a newer version of this package, which may have other checksums, or none."""
    try:
        with reading(uri):
            dataset = dataset_at(uri, None, storage_options)
            if dataset is not None:
                read_commit(dataset, uri)
    except FormatError as error:
        if error.newer:
            raise
    except StoreError:  # it is damaged
        pass


def _stays(session: Any, version: int) -> bool:
    """Tell whether a version is still to be there: a builder takes those off its list that it is about to remove.

    Of the newest, which may not be on the list yet, that is always so.
    """
    sums, _ = _read_sums(session)
    return stays(listed_versions(sums or {}), version)


def _read_versions(
    uri: str, session: Any, storage_options: Mapping[str, str] | None
) -> tuple[list[_Version], list[Problem]]:
    """Read what the versions say, in their order; at least one, or there is a problem."""
    read: list[_Version] = []
    while not read:
        manifests = sorted(path for path in listed(session) if is_manifest(path))
        for number in sorted(map(version_of, manifests)):
            try:
                with no_panic():
                    read.append(_read_version(uri, number, storage_options))
            except FormatError:  # no damage
                raise
            except Exception as error:  # of whatever kind: the version cannot be read
                if _stays(session, number):
                    return read, [Problem(manifest_of(number), f"cannot be read ({_brief(error)})", _RESTORE)]
        if not manifests:
            return read, [Problem(uri, "none of its versions is there", _RESTORE)]
    return read, []


def _read_version(uri: str, number: int, storage_options: Mapping[str, str] | None) -> _Version:
    dataset = dataset_at(uri, number, storage_options)
    # Of a newer version of the package, nothing else is looked at.
    read_commit(dataset, uri)
    fragments = [fragment for fragment in fragments_of(dataset) if fragment.files]
    check_fragments(uri, fragments)
    notes = data_file_infos(dataset)
    change = change_of(dataset, uri, storage_options)
    # Last, since a version that is removed meanwhile has none.
    return _Version(number, dataset, fragments, notes, change, read_commit(dataset, uri))


def raise_if_damaged(uri: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Refuse a store that is not as it was written.

    Raises:
        StoreError: Naming what is damaged.
    """
    if problems := verify_store(uri, storage_options):
        more = f" (and {len(problems) - 1} more: see 'lightning-lance verify {uri}')" if len(problems) > 1 else ""
        raise StoreError(f"The token store {uri!r} is damaged: {str(problems[0]).rstrip('.')}{more}.")


def _read_sums(session: Any) -> tuple[dict[str, Sum] | None, str]:
    """Read the checksums, twice where that fails, since they may just be written; None, and why, where they cannot be."""
    why = ""
    for _ in range(2):
        try:
            if (sums := read_sums(session)) is not None:
                return sums, ""
            why = "is missing"
        except Exception as error:  # of whatever kind: it cannot be read
            why = f"is damaged ({_brief(error)})"
    return None, why


def _check_sums(session: Any) -> list[Problem]:
    """Check the manifests and transactions against their list."""
    sums, why = _read_sums(session)
    if sums is None:
        return [Problem(SUMS, f"the list of checksums {why}", "the next commit writes it anew")]
    found = {path: _check_sum(session, path, expected) for path, expected in sorted(sums.items())}
    damaged = {path: what for path, what in found.items() if what}
    # Those that are listed still are to be there still.
    now = (_read_sums(session)[0] or sums) if damaged else {}
    return [Problem(path, what, _RESTORE) for path, what in damaged.items() if now.get(path) == sums[path]]


def _check_sum(session: Any, path: str, expected: Sum) -> str:
    try:
        if not session.contains(path):
            return "is missing"
        found = sum_of(session, path)
    except Exception as error:  # of whatever kind: it cannot be read
        return f"cannot be read ({_brief(error)})"
    if found.size != expected.size:
        return f"has {found.size:,} bytes, expected {expected.size:,}"
    return "" if found == expected else "differs from what was written"


def _check_tags(uri: str, session: Root, storage_options: Mapping[str, str] | None) -> list[Problem]:
    """Check that every tag and branch can be read, and names a version that is there."""
    first = _wrong_refs(uri, session, storage_options)
    # A tag may have been written, or moved, just before its version was removed.
    return [problem for problem in _wrong_refs(uri, session, storage_options) if problem in first] if first else []


def _wrong_refs(uri: str, session: Root, storage_options: Mapping[str, str] | None) -> list[Problem]:
    refs = read_refs(uri, storage_options)
    cure = f"'lightning-lance clean {uri}' mends it, or says what does"
    damaged = {tag_file(name): damage for name, damage in refs.damaged.items()} | refs.unreadable
    problems = [Problem(shown(file), damage.why, cure) for file, damage in sorted(damaged.items())]
    for name, version in sorted(refs.tags.items()):
        if not session.contains(manifest_of(version)):
            problems.append(Problem(shown(tag_file(name)), f"names version {version}, which is not there", cure))
    return problems


def _check_file(
    session: Any, path: str, fragment: FragmentMetadata, note: DataFileInfo | None, read: bool
) -> list[Problem]:
    place = f"{data_file_at(path)} (fragment {fragment.id})"
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
    try:
        if read and hash_file(session, path, note.size) != note.whole:
            return [Problem(place, "differs from what was written", _RESTORE)]
    except Exception as error:  # of whatever kind: it cannot be read
        return [Problem(place, f"cannot be read ({_brief(error)})", _RESTORE)]
    return []


def _readable(session: Any, path: str, offset: int) -> bool:
    try:
        return len(session.read_range(path, offset, 1)) > 0
    except Exception:  # of whatever kind: there is nothing
        return False


def _check_rows(
    dataset: Any, path: str, fragment: FragmentMetadata, note: DataFileInfo, commit: CommitMetadata
) -> list[Problem]:
    """Check what Lance makes of the file: it may have been damaged before it was written, or its note may lie."""
    place = f"{data_file_at(path)} (fragment {fragment.id})"
    digest, rows = xxhash.xxh3_64(), _Rows(dataset, note, commit)
    try:
        with no_panic():
            scanner = dataset.get_fragment(fragment.id).scanner(
                batch_size=_ROWS, batch_readahead=2, io_buffer_size=64 << 20
            )
            for batch in scanner.to_batches():
                hash_tokens(digest, batch.column("tokens"))
                rows.add(batch)
    except Exception as error:  # of whatever kind: it cannot be decoded
        return [Problem(place, f"cannot be decoded ({_brief(error)})", _RESTORE)]
    if digest.hexdigest() != note.tokens:
        return [Problem(place, "its tokens are not those that were encoded", _RESTORE)]
    counted = sum(part.rows for part in note.parts), sum(part.tokens for part in note.parts)
    if (rows.rows, rows.tokens) != counted:
        return [Problem(place, f"has {rows.rows:,} rows and {rows.tokens:,} tokens, not as its note says", _RESTORE)]
    return [Problem(place, rows.misfit, _RESTORE)] if rows.misfit else []


class _Rows:
    """The rows of a data file as they go by, held against its note.

    Attributes:
        rows: Rows so far.
        tokens: Their tokens.
        misfit: What is not as the note says, the first of it; empty if all is.
    """

    def __init__(self, dataset: Any, note: DataFileInfo, commit: CommitMetadata) -> None:
        self._uri, self._vocab_size = str(dataset.uri), commit.vocab_size
        self._block, _ = block_of(self._uri, dataset.schema)
        self._eos_id = commit.eos_id
        # The part that the last row was of, and whether a document ended with it.
        self._before = (-1, False)
        self._parts = note.parts
        self._ends = np.cumsum([part.rows for part in note.parts], dtype=np.int64)
        self.rows = self.tokens = 0
        self.misfit = ""

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at some rows. StoreError if they are no rows of a store."""
        check_keys(self._uri, batch, self._block)
        rows = np.arange(self.rows, self.rows + len(batch))
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        self.rows += len(batch)
        self.tokens += int(counts.sum())
        if not self.misfit and self.rows <= int(self._ends.max(initial=0)):
            self.misfit = self._misfit(batch, rows, counts)

    def _misfit(self, batch: pa.RecordBatch, rows: np.ndarray, counts: np.ndarray) -> str:
        of_row = np.searchsorted(self._ends, rows, side="right")
        for key in ("split", "language"):
            told = pa.array([getattr(part, key) for part in self._parts], pa.string())
            if not batch.column(key).equals(told.take(pa.array(of_row))):
                return f"the {key} of its rows is not as its note says"
        tokens = np.asarray([part.tokens for part in self._parts], np.int64)[of_row]
        before = (rows - np.append(0, self._ends)[of_row]) * self._block
        if not np.array_equal(counts, np.clip(tokens - before, 0, self._block)):
            return "the tokens of each of its rows are not as its note says"
        ids = tokens_of(self._uri, batch.column("tokens"), self._block)
        if int(ids.max(initial=0)) >= self._vocab_size:
            largest = int(ids[np.arange(self._block) < counts[:, None]].max(initial=0))
            if largest >= self._vocab_size:
                return f"has the id {largest:,} in a vocabulary of {self._vocab_size:,}"
        with_tokens = counts > 0
        lists = batch.column("documents").filter(pa.array(with_tokens))
        begins = begins_of(self._uri, lists, counts[with_tokens])
        begun = np.repeat(np.flatnonzero(with_tokens), np.asarray(lists.value_lengths()))
        if not self._ends_fit(ids, counts, of_row, begun * self._block + begins):
            return f"its documents do not end with the id {self._eos_id:,} and nowhere else, as its commit says"
        return ""

    def _ends_fit(self, ids: np.ndarray, counts: np.ndarray, of_row: np.ndarray, begins: np.ndarray) -> bool:
        """Tell whether documents begin right behind each EOS, and nowhere else.

        Args:
            ids: (n, block) tokens of some rows.
            counts: (n,) how many of them count.
            of_row: (n,) the part that each row is of.
            begins: (documents,) where documents begin, among all the tokens.
        """
        found = np.flatnonzero(ids == self._eos_id)
        row, place = np.divmod(found, self._block)
        last = place == counts[row] - 1
        if not np.array_equal(found[place < counts[row] - 1] + 1, begins[begins % self._block > 0]):
            return False
        # Of the first row of a part, what came before it is elsewhere.
        ended, begun = np.zeros(len(ids) + 1, bool), np.zeros(len(ids), bool)
        begun[begins[begins % self._block == 0] // self._block] = True
        ended[row[last] + 1] = True
        part, ended[0] = self._before
        self._before = (int(of_row[-1]), bool(ended[-1])) if len(ids) else self._before
        same = np.append(part, of_row[:-1]) == of_row
        return bool(np.array_equal((ended[:-1] & same)[counts > 0], (begun & same)[counts > 0]))


def _check_notes(uri: str, versions: Sequence[_Version]) -> list[Problem]:
    """Check what the versions say of their files, without reading these."""
    last: dict[str, DataFileInfo] = {}
    for version in reversed(versions):
        # What others have changed is told as such.
        if _is_changed(version):
            continue
        try:
            block, dtype = block_of(uri, version.dataset.schema)
            check_dtype(uri, dtype, version.commit.recipe, version.commit.vocab_size)
            for fragment in version.fragments:
                path = fragment.files[0].path
                note = version.notes.get(path)
                if note is None:
                    continue
                check_parts(note.parts, block, uri)
                what = ""
                if last.setdefault(path, note) != note:
                    what = "is not told of alike by all versions"
                elif sum(part.rows for part in note.parts) != fragment.physical_rows:
                    what = f"has {fragment.physical_rows:,} rows, not as its note says"
                if what:
                    return [Problem(f"{data_file_at(path)} (fragment {fragment.id})", what, _RESTORE)]
        except StoreError as error:
            return [Problem(manifest_of(version.number), str(error).rstrip("."), _RESTORE)]
    return []


def _is_changed(version: _Version) -> bool:
    return version.change is not None and version.change.of_rows


def _check_others(uri: str, version: _Version) -> list[Problem]:
    """Find what others have done to the rows of a version."""
    change = version.change
    if change is None or not _is_changed(version):
        return []
    what = f"version {version.number} was changed by others since version {change.committed} ({change.what})"
    return [Problem(uri, what, cure(uri, change))]


def _check_counts(uri: str, version: _Version) -> list[Problem]:
    notes = [version.notes.get(fragment.files[0].path) for fragment in version.fragments]
    tokens = sum(part.tokens for note in notes if note is not None for part in note.parts)
    if tokens != version.commit.stored_tokens:
        what = f"version {version.number} holds {tokens:,} tokens and says {version.commit.stored_tokens:,}"
        return [Problem(uri, what, "remove it, and build it again")]
    return []


def _brief(error: BaseException) -> str:
    return in_one_line(error, 150)
