"""Verify a store: every file against its checksum, and every count against the commit metadata.

`inspection/resume.py` verifies that a run resumes from a checkpoint correctly.
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
from lightning_lance.format.channels import LOSS_MASK, channels_of
from lightning_lance.format.checksums import SUMS, Root, Sum, listed, listed_versions, read_sums, stays, sum_of
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
from lightning_lance.format.layout import DataFileInfo, check_parts
from lightning_lance.format.lineage import Change, change_of, cure
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.refs import read_refs
from lightning_lance.format.schema import begins_of, block_of, check_channels, check_dtype, check_keys, tokens_of
from lightning_lance.lance_names import TAGS, data_file_at, is_manifest, manifest_of, tag_file, version_of
from lightning_lance.location import StoreLocation, is_local, no_store_at, store_place
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.type_hints import check_arguments, is_number

_RESTORE = "restore it from a copy, or remove the store and build it again"
# Rows read at once.
_ROWS = 2048
# Attempts to verify a store that changes meanwhile, and to find its checksums.
_TRIES = 30
_TRIES_FOR_SUMS = 3
_PAUSE_SECONDS = 0.5


class Problem(NamedTuple):
    """A damage: where, what, and its cure."""

    place: str
    what: str
    cure: str

    def __str__(self) -> str:
        return shown(f"{self.place}: {self.what}; {self.cure}.")


# Between two looks at tags that seem to be wrong.
_BETWEEN_LOOKS_SECONDS = 0.3


def verify_store(
    uri: str, storage_options: Mapping[str, str] | None = None, sample: float = 1.0, seed: int = 0
) -> list[Problem]:
    """Verify all versions of a store, local or in a bucket. A builder may write to it at the same time.

    Args:
        uri: The store.
        storage_options: Credentials and other options of object stores.
        sample: Share of the data files to read; 1 reads every byte.
        seed: Seed of the choice.

    Returns:
        The damage; an empty list if there is none. Files that a builder has removed meanwhile are not damage.

    Raises:
        StoreError: If there is no store, or one of a newer version of this package.
    """
    location = StoreLocation(store_place(uri), storage_options)
    check_arguments(verify_store, {"seed": seed})
    if not is_number(sample) or not 0 < sample <= 1:
        raise ConfigError(
            f"sample is {described(sample)}: expected a share of the data files, above 0 and up to 1, such as 0.1."
        )
    refuse_in_fork("A verification")
    before: list[Problem] = []
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        state = _state(location)
        try:
            found = _check_once(location, sample, seed)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, LightningLanceError):
                raise
            # The store may have been removed meanwhile.
            found = [Problem(location.uri, f"cannot be read ({_brief(error)})", _RESTORE)]
        # The first commit of a store is made just before its list of checksums.
        early = attempt < _TRIES_FOR_SUMS and all(problem.place == SUMS for problem in found)
        if not found or (_state(location) == state and not early):
            return found
        # The store was written or rebuilt meanwhile.
        lasting = _lasting(found, before, location.uri)
        if lasting:
            return lasting
        before = found
    return before


def _lasting(found: Sequence[Problem], before: Sequence[Problem], uri: str) -> list[Problem]:
    """Return the damage of single files that an earlier attempt has found too.

    Damage lasts, but files that a builder was about to write or remove do not stay missing.
    """
    lasting: list[Problem] = []
    for problem in found:
        is_of_one_file = problem.place not in (SUMS, uri)
        if is_of_one_file and problem in before:
            lasting.append(problem)
    return lasting


def _state(location: StoreLocation) -> tuple[object, ...]:
    """Return a value that changes with every commit, clean-up and rebuild."""
    folder = None
    if is_local(location.uri):
        with suppress(OSError):
            folder = Path(location.uri).stat().st_ino
    try:
        session = Root(location)
        sums = session.content(SUMS) if session.contains(SUMS) else None
        return folder, sums, frozenset(listed(session)), tuple(session.names(TAGS))
    except (ValueError, OSError, RuntimeError):
        # Unequal to any other state.
        return folder, object()


def _check_once(location: StoreLocation, sample: float, seed: int) -> list[Problem]:
    session = _session_of(location)
    # Lance must not read damaged manifests: it may do anything.
    problems = _check_sums(session)
    if problems:
        _check_format(location)
        return problems
    versions, problems = _read_versions(location, session)
    problems = problems or _check_metadata(location.uri, versions)
    if problems:
        return problems
    places_of: dict[str, list[tuple[_Version, FragmentMetadata]]] = {}
    for version in versions:
        for fragment in version.fragments:
            places_of.setdefault(fragment.files[0].path, []).append((version, fragment))
    problems = _check_refs(location, session)
    files = data_session(location)
    chosen = np.random.default_rng(seed).random(len(places_of)) < sample
    paths = tqdm(sorted(places_of), desc="verify", disable=None)
    for path, whole in zip(paths, chosen.tolist(), strict=True):
        places = places_of[path]
        found = _check_data_file(location.uri, files, path, places, whole)
        if found and any(_stays(session, version.number) for version, _ in places):
            problems += found
    return problems or _check_changes(location.uri, versions[-1]) or _check_counts(location.uri, versions[-1])


def _session_of(location: StoreLocation) -> Any:
    """Open the folder of a store. StoreError if there is no store."""
    if not is_local(location.uri) or Path(location.uri).is_dir():
        with opening(location.uri):
            session = Root(location)
            if listed(session) or session.contains(SUMS):
                return session
    raise no_store_at(location.uri)


def _check_data_file(
    uri: str, files: Any, path: str, places: Sequence[tuple[_Version, FragmentMetadata]], whole: bool
) -> list[Problem]:
    """Check a data file, as a `whole` or not."""
    version, fragment = _place_to_check(places)
    info = version.files.get(path)
    place = _place_of(path, fragment)
    if is_local(uri) and not Path(uri, data_file_at(path)).is_file():
        return [Problem(place, "is missing", _RESTORE)]
    if info is None:
        return [Problem(place, "was written by another program, so it has no checksum", "check it by other means")]
    damage = _file_damage(files, path, info, whole)
    if not damage and whole and not _is_changed(version):
        # The file may have been damaged before writing, or its description may be wrong.
        damage = _row_damage(version.dataset, fragment, info, version.commit)
    if not damage:
        return []
    return [Problem(place, damage, _RESTORE)]


def _place_to_check(places: Sequence[tuple[_Version, FragmentMetadata]]) -> tuple[_Version, FragmentMetadata]:
    """Return the newest version with a data file that no other program has changed, and its fragment; else the newest.

    Changes of other programs are reported separately, and leave the file as it was.
    """
    for version, fragment in reversed(places):
        if not _is_changed(version):
            return version, fragment
    return places[-1]


def _place_of(path: str, fragment: FragmentMetadata) -> str:
    return f"{data_file_at(path)} (fragment {fragment.id})"


class _Version(NamedTuple):
    """A version of a store, as it was read."""

    number: int
    dataset: Any
    fragments: list[FragmentMetadata]
    files: Mapping[str, DataFileInfo]
    change: Change | None
    commit: CommitMetadata


def _check_format(location: StoreLocation) -> None:
    """Raise FormatError for a store of a newer version of this package, which may have other checksums."""
    try:
        with reading(location.uri):
            dataset = dataset_at(location, None)
            if dataset is not None:
                read_commit(dataset, location.uri)
    except FormatError as error:
        if error.newer:
            raise
    except StoreError:
        # It is damaged, which the checksums have found already.
        pass


def _stays(session: Any, version: int) -> bool:
    """Return whether a version must still exist. A builder removes versions from the list before it removes their files."""
    sums, _ = _read_sums(session)
    return stays(listed_versions(sums or {}), version)


def _read_versions(location: StoreLocation, session: Any) -> tuple[list[_Version], list[Problem]]:
    """Read all versions, oldest first. There is at least one version, or a problem."""
    read: list[_Version] = []
    while not read:
        numbers = sorted(map(version_of, filter(is_manifest, listed(session))))
        for number in numbers:
            try:
                with no_panic():
                    read.append(_read_version(location, number))
            except FormatError:
                # Another format is not damage.
                raise
            except Exception as error:  # Lance raises any kind of error for a damaged version
                if _stays(session, number):
                    return read, [Problem(manifest_of(number), f"cannot be read ({_brief(error)})", _RESTORE)]
        if not numbers:
            return read, [Problem(location.uri, "has no version", _RESTORE)]
    return read, []


def _read_version(location: StoreLocation, number: int) -> _Version:
    dataset = dataset_at(location, number)
    # First: a newer version of this package may have changed everything else.
    read_commit(dataset, location.uri)
    fragments = [fragment for fragment in fragments_of(dataset) if fragment.files]
    check_fragments(location.uri, fragments)
    files = data_file_infos(dataset)
    change = change_of(dataset, location)
    # And last: it fails for a version that was removed meanwhile.
    return _Version(number, dataset, fragments, files, change, read_commit(dataset, location.uri))


def raise_if_damaged(location: StoreLocation) -> None:
    """Raise StoreError if a store is damaged."""
    problems = verify_store(location.uri, location.storage_options)
    if not problems:
        return
    more = ""
    if len(problems) > 1:
        more = f" (and {len(problems) - 1} more: see 'lightning-lance verify {location.uri}')"
    raise StoreError(f"The token store {location.uri!r} is damaged: {str(problems[0]).rstrip('.')}{more}.")


def _read_sums(session: Any) -> tuple[dict[str, Sum] | None, str]:
    """Return the checksums, or None and the reason. Tries twice, since a builder may be writing them."""
    why = ""
    for _ in range(2):
        try:
            sums = read_sums(session)
        except Exception as error:  # a damaged file raises any kind of error
            why = f"is damaged ({_brief(error)})"
            continue
        if sums is not None:
            return sums, ""
        why = "is missing"
    return None, why


def _check_sums(session: Any) -> list[Problem]:
    """Check the manifests and transactions against the list of checksums."""
    sums, why = _read_sums(session)
    if sums is None:
        return [Problem(SUMS, f"the list of checksums {why}", "the next commit writes it again")]
    problems = []
    for path, expected in sorted(sums.items()):
        damage = _check_sum(session, path, expected)
        if damage:
            problems.append(Problem(path, damage, _RESTORE))
    if not problems:
        return []
    # A builder may have removed files meanwhile, after removing them from the list.
    now = _read_sums(session)[0] or sums
    return [problem for problem in problems if now.get(problem.place) == sums[problem.place]]


def _check_sum(session: Any, path: str, expected: Sum) -> str:
    try:
        if not session.contains(path):
            return "is missing"
        found = sum_of(session, path)
    except Exception as error:  # Lance raises any kind of error
        return f"cannot be read ({_brief(error)})"
    if found.size != expected.size:
        return f"has {found.size:,} bytes, expected {expected.size:,}"
    if found != expected:
        return "differs from its checksum"
    return ""


def _check_refs(location: StoreLocation, session: Root) -> list[Problem]:
    """Check that every tag and branch can be read, and that the versions of tags exist."""
    first = _wrong_refs(location, session)
    if not first:
        return []
    # A tag may have been made or moved just before its version was removed, or the store is being replaced.
    time.sleep(_BETWEEN_LOOKS_SECONDS)
    return [problem for problem in _wrong_refs(location, session) if problem in first]


def _wrong_refs(location: StoreLocation, session: Root) -> list[Problem]:
    refs = read_refs(location)
    cure = f"run 'lightning-lance clean {location.uri}', which repairs it or names the cure"
    damaged = {tag_file(name): damage for name, damage in refs.damaged.items()} | refs.unreadable
    problems: list[Problem] = []
    for file, damage in sorted(damaged.items()):
        problems.append(Problem(shown(file), damage.why, cure))
    for name, version in sorted(refs.tags.items()):
        if not session.contains(manifest_of(version)):
            problems.append(Problem(shown(tag_file(name)), f"names version {version}, which is missing", cure))
    return problems


def _file_damage(session: Any, path: str, info: DataFileInfo, whole: bool) -> str:
    if not session.contains(path):
        return "is missing"
    try:
        session.read_range(path, info.size - 1, 1)
    except Exception:  # Lance raises any kind of error beyond the end
        return f"has fewer than {info.size:,} bytes"
    if _is_readable(session, path, info.size):
        return f"has more than {info.size:,} bytes"
    try:
        if whole and hash_file(session, path, info.size) != info.whole:
            return "differs from its checksum"
    except Exception as error:  # Lance raises any kind of error
        return f"cannot be read ({_brief(error)})"
    return ""


def _is_readable(session: Any, path: str, offset: int) -> bool:
    try:
        return len(session.read_range(path, offset, 1)) > 0
    except Exception:  # Lance raises any kind of error beyond the end
        return False


def _row_damage(dataset: Any, fragment: FragmentMetadata, info: DataFileInfo, commit: CommitMetadata) -> str:
    digest = xxhash.xxh3_64()
    rows = _Rows(dataset, info, commit)
    try:
        with no_panic():
            scanner = dataset.get_fragment(fragment.id).scanner(
                batch_size=_ROWS, batch_readahead=2, io_buffer_size=64 << 20
            )
            for batch in scanner.to_batches():
                hash_tokens(digest, batch.column("tokens"))
                rows.add(batch)
    except Exception as error:  # Lance raises any kind of error
        return f"cannot be decoded ({_brief(error)})"
    if digest.hexdigest() != info.tokens:
        return "its tokens differ from those that were encoded"
    if (rows.rows, rows.tokens) != (info.num_rows, info.num_tokens):
        return (
            f"has {rows.rows:,} rows and {rows.tokens:,} tokens, but its commit metadata says {info.num_rows:,} and "
            f"{info.num_tokens:,}"
        )
    return rows.misfit


class _Rows:
    """Compares the rows of a data file with its description.

    Attributes:
        rows: Rows so far.
        tokens: Their tokens.
        misfit: The first difference; empty if there is none.
    """

    def __init__(self, dataset: Any, info: DataFileInfo, commit: CommitMetadata) -> None:
        self._uri = str(dataset.uri)
        self._vocab_size = commit.vocab_size
        self._block, _ = block_of(self._uri, dataset.schema)
        self._eos_id = commit.eos_id
        self._channels = channels_of(commit.recipe)
        # The part of the last row, and whether a document ended with that row.
        self._before = (-1, False)
        # The split, language and tokens of each part, and where its rows end.
        self._splits: list[str] = []
        self._languages: list[str] = []
        self._tokens_of_parts: list[int] = []
        num_rows: list[int] = []
        for part in info.parts:
            self._splits.append(part.split)
            self._languages.append(part.language)
            self._tokens_of_parts.append(part.tokens)
            num_rows.append(part.rows)
        self._ends = np.cumsum(num_rows, dtype=np.int64)
        self.rows = self.tokens = 0
        self.misfit = ""

    def add(self, batch: pa.RecordBatch) -> None:
        """Compare some rows. StoreError if their columns are invalid."""
        check_keys(self._uri, batch, self._block)
        rows = np.arange(self.rows, self.rows + len(batch))
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        self.rows += len(batch)
        self.tokens += int(counts.sum())
        if not self.misfit and self.rows <= int(self._ends.max(initial=0)):
            self.misfit = self._misfit(batch, rows, counts)

    def _misfit(self, batch: pa.RecordBatch, rows: np.ndarray, counts: np.ndarray) -> str:
        of_row = np.searchsorted(self._ends, rows, side="right")
        for key, values in (("split", self._splits), ("language", self._languages)):
            expected = pa.array(values, pa.string())
            if not batch.column(key).equals(expected.take(pa.array(of_row))):
                return f"the {key} of its rows differs from its commit metadata"
        tokens = np.asarray(self._tokens_of_parts, np.int64)[of_row]
        before = (rows - np.append(0, self._ends)[of_row]) * self._block
        if not np.array_equal(counts, np.clip(tokens - before, 0, self._block)):
            return "the numbers of tokens of its rows differ from its commit metadata"
        ids = tokens_of(self._uri, batch.column("tokens"), self._block)
        if int(ids.max(initial=0)) >= self._vocab_size:
            largest = int(ids[np.arange(self._block) < counts[:, None]].max(initial=0))
            if largest >= self._vocab_size:
                return f"has the id {largest:,} in a vocabulary of {self._vocab_size:,}"
        with_tokens = counts > 0
        lists = batch.column("documents").filter(pa.array(with_tokens))
        begins = begins_of(self._uri, lists, counts[with_tokens])
        their_rows = np.repeat(np.flatnonzero(with_tokens), np.asarray(lists.value_lengths()))
        if not self._ends_fit(ids, counts, of_row, their_rows * self._block + begins):
            return f"its documents do not all end with EOS (the id {self._eos_id:,}), or EOS occurs within a document"
        return self._misfit_of_channels(batch, counts)

    def _misfit_of_channels(self, batch: pa.RecordBatch, counts: np.ndarray) -> str:
        """Return what is wrong with the values beside the tokens. A row has as many places for them as for tokens."""
        for name in self._channels:
            values = tokens_of(self._uri, batch.column(name), self._block)
            if values[np.arange(self._block) >= counts[:, None]].any():
                return f"has more values of {name} than tokens"
            if name == LOSS_MASK and int(values.max(initial=0)) > 1:
                return f"has the {name} {int(values.max()):,}, which is neither 0 nor 1"
        return ""

    def _ends_fit(self, ids: np.ndarray, counts: np.ndarray, of_row: np.ndarray, begins: np.ndarray) -> bool:
        """Return whether a document begins right after each EOS, and nowhere else.

        Of n rows: `ids`, (n, block), and `begins`, (documents,) offsets in them, are with padding; `counts`, (n,), is without.
        """
        found = np.flatnonzero(ids == self._eos_id)
        row, place = np.divmod(found, self._block)
        last = place == counts[row] - 1
        if not np.array_equal(found[place < counts[row] - 1] + 1, begins[begins % self._block > 0]):
            return False
        begun = np.zeros(len(ids), bool)
        begun[begins[begins % self._block == 0] // self._block] = True
        # Whether a document ends with the row before, the first of which was in the batch before.
        ended = np.zeros(len(ids) + 1, bool)
        ended[row[last] + 1] = True
        part, ended[0] = self._before
        if len(ids):
            self._before = (int(of_row[-1]), bool(ended[-1]))
        # The row before the first one of a part is in another file.
        same = np.append(part, of_row[:-1]) == of_row
        return bool(np.array_equal((ended[:-1] & same)[counts > 0], (begun & same)[counts > 0]))


def _check_metadata(uri: str, versions: Sequence[_Version]) -> list[Problem]:
    """Check the commit metadata about files, without reading the files."""
    newest: dict[str, DataFileInfo] = {}
    for version in reversed(versions):
        # Changes of other programs are reported separately.
        if _is_changed(version):
            continue
        try:
            block, dtype = block_of(uri, version.dataset.schema)
            check_dtype(uri, dtype, version.commit.recipe, version.commit.vocab_size)
            check_channels(uri, version.dataset.schema, channels_of(version.commit.recipe), block)
            for fragment in version.fragments:
                path = fragment.files[0].path
                info = version.files.get(path)
                if info is None:
                    continue
                check_parts(info.parts, block, uri)
                damage = ""
                if newest.setdefault(path, info) != info:
                    damage = "differs in the commit metadata of two versions"
                elif info.num_rows != fragment.physical_rows:
                    damage = f"has {fragment.physical_rows:,} rows, but its commit metadata says {info.num_rows:,}"
                if damage:
                    return [Problem(_place_of(path, fragment), damage, _RESTORE)]
        except StoreError as error:
            return [Problem(manifest_of(version.number), str(error).rstrip("."), _RESTORE)]
    return []


def _is_changed(version: _Version) -> bool:
    return version.change is not None and version.change.of_rows


def _check_changes(uri: str, version: _Version) -> list[Problem]:
    """Check that no other program has changed the rows of a version."""
    change = version.change
    if change is None or not _is_changed(version):
        return []
    what = f"version {version.number} was changed by another program since version {change.committed} ({change.what})"
    return [Problem(uri, what, cure(uri, change))]


def _check_counts(uri: str, version: _Version) -> list[Problem]:
    tokens = 0
    for fragment in version.fragments:
        info = version.files.get(fragment.files[0].path)
        if info is not None:
            tokens += info.num_tokens
    if tokens != version.commit.stored_tokens:
        expected = version.commit.stored_tokens
        what = f"version {version.number} has {tokens:,} tokens, but its commit metadata says {expected:,}"
        return [Problem(uri, what, "remove it, and build it again")]
    return []


def _brief(error: BaseException) -> str:
    return in_one_line(error, 150)
