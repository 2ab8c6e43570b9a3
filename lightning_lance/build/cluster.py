"""The driver of a build on a cluster: it hands out units, folds their results in source order, and commits.

No text and no token passes through this process. Workers write data files to the store's place, and results beside them; the
ledger decides from the results alone. Units may end in any order, several times or never: the ledger takes the first result of
each, in order.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

import numpy as np

from lightning_lance.build.builder import Build, Pace
from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.progress import BuildProgress
from lightning_lance.build.tasks import Decided, Work, key_of, run_cuts, run_merge, run_scan, run_unit
from lightning_lance.build.unit import Unit, UnitResult
from lightning_lance.build.unit_results import Written, read_result, results_at
from lightning_lance.errors import LightningLanceError, SourceError, StoreError
from lightning_lance.format.commit import append_commit, data_file_infos, newest_at, read_commit, replace_fragments
from lightning_lance.format.lance_io import (
    PendingFragments,
    data_session,
    dataset_at,
    file_names,
    fragment_from,
    fragments_of,
    remove_store,
)
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links
from lightning_lance.lance_names import UnitName, data_file_at, is_lance_file, unit_of
from lightning_lance.maintenance.compaction import FULL_BYTES, end_build, fragment_sizes, merge_groups
from lightning_lance.maintenance.removal import (
    clean_up,
    fence_stale_builders,
    find_orphans,
    remove_unit_files,
    unit_files,
)
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_bytes, pluralize
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.readers.cuts import Cut
from lightning_lance.sources.source import Divisible, ReadReport

_log = logger(__name__)

# Between two looks at the workers, the lease and the clock.
_POLL_SECONDS = 0.2
# A unit is slow that takes so many times as long as most.
_SLOW = 3


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        value: What it returned.
        error: What it raised; None if it returned.
        lost: Whether it may succeed elsewhere: its worker or node is gone, or its memory was too small.
        memory: Bytes that were set aside for it, 0 for none, if it was stopped for want of memory; None if it was not.
    """

    value: Any = None
    error: BaseException | None = None
    lost: bool = False
    memory: int | None = None


class Workers(Protocol):
    """The workers of a cluster. The only thing that the driver knows of the engine."""

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: Any, tries: int = 0) -> Hashable:
        """Run `function(work, *arguments)` on some worker, and return the task.

        `tries` times it was lost before; each time it gets twice the memory, up to all of a node.
        """
        ...

    def ended(self, seconds: float) -> Sequence[tuple[Hashable, Outcome]]:
        """Wait so long for tasks to end, and return those that have."""
        ...

    def cancel(self, tasks: Iterable[Hashable]) -> None:
        """Stop tasks whose outcome is not needed."""
        ...

    def close(self) -> None:
        """Stop all tasks, and wait until none writes any more."""
        ...


class _State(Enum):
    """Where a unit is on its way."""

    UNCUT = "uncut"
    CUTTING = "cutting"
    NEW = "new"
    SCANNING = "scanning"
    SCANNED = "scanned"
    RUNNING = "running"
    DONE = "done"


@dataclass(eq=False)
class _Piece:
    """A unit on its way.

    Attributes:
        unit: The unit.
        state: Where it is.
        hashes: Hashes of its documents, once it was scanned.
        bad: Why the rest of its shard is skipped, if the scan has found that.
        decided: The decision on its copies, once it was made.
        name: The name of the attempt at its rows.
        done: What that attempt has written, once it is done.
        tries: How often its worker was lost.
        starved: How often of those it was stopped for want of memory.
        since: When its task began.
    """

    unit: Unit
    state: _State = _State.NEW
    scan: UnitName | None = None
    hashes: np.ndarray | None = None
    bad: Mapping[str, Any] | None = None
    decided: Decided | None = None
    name: UnitName | None = None
    done: tuple[UnitName, Written] | None = None
    tries: int = 0
    starved: int = 0
    since: float = 0.0


@dataclass(eq=False)
class _Merge:
    """Fragments that a worker rewrites as one.

    Attributes:
        paths: Their data files, committed ones first.
        made: The new fragment as JSON, or none, and the description of its file, once it is done.
        tries: How often its worker was lost.
        starved: How often of those it was stopped for want of memory.
    """

    paths: list[str]
    made: tuple[list[str], dict[str, DataFileInfo]] | None = None
    tries: int = 0
    starved: int = 0


@dataclass
class _Pending:
    """What was folded since the last commit.

    Attributes:
        fragments: The fragments, in order, as JSON, each with the name of its data file.
        files: The descriptions of their files.
        results: The results, which go after the commit.
        tokens: Tokens folded.
    """

    fragments: list[str] = field(default_factory=list)
    files: dict[str, DataFileInfo] = field(default_factory=dict)
    results: list[UnitName] = field(default_factory=list)
    tokens: int = 0


class ClusterBuild(Build):
    """A build whose units run as tasks.

    Args:
        start: Makes the workers, given the work.
        max_lead: Units ahead of the ledger.
        unit_bytes: Bytes of text in a part of a large shard.
        max_retries: How often a unit is done again that has lost its worker.
        given: The arguments of `Build`.
    """

    def __init__(
        self,
        start: Callable[[Work], Workers],
        *given: Any,
        max_lead: int | None = None,
        unit_bytes: int = FULL_BYTES,
        max_retries: int = 3,
    ) -> None:
        super().__init__(*given)
        self._start = start
        self._max_lead = max_lead
        self._unit_bytes = unit_bytes
        self._max_retries = max_retries
        self._shards = list(self._opened.shards)
        # From `_take_over` to `close`.
        self._running: Workers | None = None
        self._tasks: dict[Hashable, _Piece | _Merge] = {}
        self._queue: deque[_Piece] = deque()
        self._pending = _Pending()
        self._finished: dict[tuple[str, int, int], UnitName] = {}
        self._merge: _Merge | None = None
        # Shards whose rest is skipped, and the row where the unit begins that has found it.
        self._bad: dict[int, int] = {}
        # What the workers' readers have counted and logged.
        self._incidents: Counter[str] = Counter()
        self._remarks: set[str] = set()
        # Shards that are not queued yet.
        self._ahead = len(self._shards)
        # Whether this build has made the first version, which has no rows.
        self._founded = False
        self._folded = 0
        self._seconds: deque[float] = deque(maxlen=100)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    @property
    def _workers(self) -> Workers:
        if self._running is None:
            raise ValueError("the workers are not there: the build has not begun, or was closed")
        return self._running

    def _trouble(self) -> ReadReport:
        trouble = self._opened.trouble
        return replace(trouble, incidents=trouble.incidents + self._incidents)

    def undo(self) -> None:
        """Remove a local store that this build has founded, if it has no rows yet, and what `Build.undo` removes."""
        with suppress(OSError, ValueError, LightningLanceError):
            nothing = self._founded and self._location.is_local and self.committed == self._first
            rows = [path for path in unit_files(self._location) if is_lance_file(path)]
            if nothing and not rows:
                remove_store(self._location)
                self.committed = None
        super().undo()

    # Before the first unit.

    def _take_over(self) -> None:
        """Found the store, or fence off earlier builders, and remove what they left, but for units that are done."""
        check_no_links(self._location.uri)
        # Before the store is founded: there may be no cluster.
        self._work = Work(
            self._location,
            self._opened,
            self._plan.tokenizer,
            self._first,
            self._source.metadata,
            self._dedup,
            self._val_fraction,
            self._plan.long_documents,
        )
        self._running = self._start(self._work)
        self._finished = self._find_finished()
        kept = set(self._finished.values())
        orphans = find_orphans(self._location) | unit_files(self._location)
        orphans = {path for path in orphans if unit_of(path) not in kept}
        local = {path for path in orphans if unit_of(path) is None}
        if not self._version:
            # The rows of units are appended to a version.
            nothing = PendingFragments(None, self._packer.schema, [], {})
            self._version = append_commit(self._location, nothing, self._first, self._durable)
            self.committed = self._first
            self._founded = True
            clean_up(self._location, local)
        elif orphans or kept:
            self._version = fence_stale_builders(self._location, self._version, local, self._durable)
        remove_unit_files(self._location, orphans - local)

    def _find_finished(self) -> dict[tuple[str, int, int], UnitName]:
        """Return the attempts of an earlier driver that have a result, one for each unit behind the cursor."""
        found: dict[tuple[str, int, int], UnitName] = {}
        if not self._version:
            return found
        cursor = (self._first.shard, self._first.row)
        session = data_session(self._location)
        for name in results_at(self._location):
            place = (name.shard, name.row)
            whole = name.what == "scan" or session.contains(name.data_name) or not self._has_rows(name)
            if place >= cursor and whole:
                found.setdefault((name.what, *place), name)
        return found

    def _has_rows(self, name: UnitName) -> bool:
        try:
            return read_result(self._location, name).fragment is not None
        except StoreError:
            return True

    # The loop.

    def _fill(self, ledger: Ledger, turn: BuildCoordinator, progress: BuildProgress, pace: Pace) -> None:
        shards = self._shards_ahead(ledger)
        more = True
        while True:
            more = more and self._add_pieces(shards, ledger)
            self._drop_rests()
            self._submit_pieces(ledger)
            running = len(self._units_running())
            before = ledger.commit.text_bytes
            self._take_ended(ledger)
            self._fold_done(ledger)
            self._show_workers(progress, running)
            self._look(ledger, turn, progress, ledger.commit.text_bytes - before)
            if ledger.met or (not more and not self._queue):
                break
            if pace.due(ledger.commit, self._pending.tokens):
                self._commit(ledger.commit)
                pace.committed(ledger.commit)
                now = ledger.commit
                progress.committed(self._share(now), now.documents, now.tokens)
                self._merge_when_due()
            elif self._merge is not None and self._merge.made is not None:
                self._take_merge()
                self._merge_when_due()
        if not ledger.met:
            self._end_source(ledger)
        self._commit_last(ledger.commit, progress)
        progress.update(1.0, ledger.commit.documents, ledger.commit.tokens, 0)

    def _shards_ahead(self, ledger: Ledger) -> Iterator[_Piece]:
        """Yield the shards from the cursor on, in order."""
        cursor = ledger.next_unit()
        state = _State.UNCUT if isinstance(self._opened, Divisible) else _State.NEW
        for shard in range(cursor.shard, len(self._shards)):
            self._ahead = len(self._shards) - shard - 1
            yield _Piece(Unit(shard, cursor.row if shard == cursor.shard else 0), state)

    def _add_pieces(self, shards: Iterator[_Piece], ledger: Ledger) -> bool:
        """Queue shards as long as units are wanted. Return whether there may be more."""
        while len(self._queue) < self._wanted(ledger):
            piece = next(shards, None)
            if piece is None:
                return False
            self._queue.append(piece)
        return True

    def _wanted(self, ledger: Ledger) -> int:
        """Return how many units ahead of the ledger to begin: up to the lead, and no more than the budget seems to need."""
        lead = self._max_lead or 4 * self._workers.slots
        rest = ledger.next_unit()
        if rest.max_documents is None and rest.max_tokens is None:
            return lead
        if not self._folded:
            return min(lead, self._workers.slots)
        documents = ledger.commit.documents - self._first.documents
        tokens = ledger.commit.tokens - self._first.tokens
        needed = lead
        for bound, done in ((rest.max_documents, documents), (rest.max_tokens, tokens)):
            if bound is not None and done:
                needed = min(needed, math.ceil(bound * self._folded / done))
        return max(needed, 1)

    def _submit_pieces(self, ledger: Ledger) -> None:
        """Give tasks to free workers, the first units first."""
        cut = True
        # A scan may add the rest of its unit, and a cut its parts.
        for piece in list(self._queue)[: self._wanted(ledger)]:
            if len(self._tasks) >= self._workers.slots:
                return
            # Units behind a shard that is not cut yet would lead by more than they may.
            cut = cut and piece.state not in (_State.UNCUT, _State.CUTTING)
            if piece.state is _State.UNCUT:
                self._submit(piece, _State.CUTTING, run_cuts, piece.unit.shard, self._unit_bytes)
            elif cut and piece.state is _State.NEW:
                self._begin(piece, ledger)

    def _begin(self, piece: _Piece, ledger: Ledger) -> None:
        """Have a unit scanned, or run once its copies are known."""
        if not self._dedup or piece.decided is not None:
            self._run(piece, ledger)
        elif piece.hashes is None:
            self._scan(piece, ledger)

    def _bounded(self, unit: Unit, ledger: Ledger) -> Unit:
        rest = ledger.next_unit()
        return replace(unit, max_documents=rest.max_documents, max_tokens=rest.max_tokens)

    def _scan(self, piece: _Piece, ledger: Ledger) -> None:
        earlier = self._earlier("scan", piece.unit, key_of(self._work, piece.unit))
        if earlier is not None:
            piece.scan, written = earlier
            self._scanned(piece, written)
            return
        name = _new_name("scan", piece.unit)
        piece.scan = name
        self._submit(piece, _State.SCANNING, run_scan, self._bounded(piece.unit, ledger), name)

    def _run(self, piece: _Piece, ledger: Ledger) -> None:
        earlier = self._earlier("unit", piece.unit, key_of(self._work, piece.unit, piece.decided))
        if earlier is not None and earlier[1].whole:
            piece.done = earlier
            piece.state = _State.DONE
            return
        name = _new_name("unit", piece.unit)
        piece.name = name
        unit = self._bounded(piece.unit, ledger)
        self._submit(piece, _State.RUNNING, run_unit, unit, name, piece.decided)

    def _submit(self, piece: _Piece, state: _State, function: Callable[..., Any], *arguments: Any) -> None:
        piece.state = state
        piece.since = time.monotonic()
        self._tasks[self._workers.submit(function, *arguments, tries=piece.tries)] = piece

    def _earlier(self, what: str, unit: Unit, key: str) -> tuple[UnitName, Written] | None:
        """Return what an earlier driver had done of a unit."""
        name = self._finished.pop((what, unit.shard, unit.row), None)
        if name is None:
            return None
        try:
            written = read_result(self._location, name)
        except (StoreError, OSError) as error:
            _log.warning("%s", error)
            written = None
        if written is not None and written.key == key:
            return name, written
        self._remove([name])
        return None

    def _take_ended(self, ledger: Ledger) -> None:
        """Take the tasks that have ended; those whose worker was lost are done again."""
        for task, outcome in self._workers.ended(_POLL_SECONDS):
            job = self._tasks.pop(task, None)
            if job is None or (isinstance(job, _Piece) and job not in self._queue):
                continue  # not needed any more
            if outcome.error is not None:
                self._failed(job, outcome.error, outcome)
            elif isinstance(job, _Merge):
                job.made = outcome.value
            elif job.state is _State.CUTTING:
                self._cut(job, outcome.value)
            elif job.state is _State.SCANNING and job.scan is not None:
                self._scanned(job, read_result(self._location, job.scan))
            elif job.name is not None:
                job.done = job.name, read_result(self._location, job.name)
                job.state = _State.DONE
                self._seconds.append(time.monotonic() - job.since)
        self._decide(ledger)

    def _failed(self, job: _Piece | _Merge, error: BaseException, outcome: Outcome) -> None:
        """Have a task done again that was lost. Raise any other error, and that of a task that was lost too often."""
        if not outcome.lost:
            if isinstance(error, StoreError):
                self._check_no_other_builder()
            raise error
        job.tries += 1
        job.starved += outcome.memory is not None
        what = "A merge of fragments"
        if isinstance(job, _Piece):
            what = f"{self._described(job.unit)},"
            job.state = _State.UNCUT if job.state is _State.CUTTING else _State.NEW
        said = in_one_line(error, 200)
        if job.tries > self._max_retries:
            ended = f"has ended its worker {pluralize(job.tries, 'time')}"
            if job.starved:
                ended += f", {pluralize(job.starved, 'time')} for want of memory"
            if outcome.memory:
                ended += f", at last with {format_bytes(outcome.memory)} set aside for it"
            raise SourceError(
                f"{what} {ended} ({said}): committed documents are safe; give a worker more memory, or leave these rows out, "
                "then run it again."
            ) from error
        lost = "lost its worker" if outcome.memory is None else "ran out of memory"
        more = "" if outcome.memory is None else "with twice the memory "
        _log.warning("%s %s and is done again %s(%d of %d): %s", what, lost, more, job.tries, self._max_retries, said)
        if isinstance(job, _Merge):
            self._start_merge(job)

    def _described(self, unit: Unit) -> str:
        rows = f"from row {unit.row:,} on" if unit.end is None else f"rows {unit.row:,} to {unit.end - 1:,}"
        return f"Shard {self._shards[unit.shard]!r} of source {self._source.name!r}, {rows}"

    def _cut(self, piece: _Piece, cuts: Sequence[Cut]) -> None:
        """Put the parts of a shard into its place."""
        row = piece.unit.row
        before = [cut for cut in cuts if cut.row <= row]
        behind = [cut for cut in cuts if cut.row > row]
        ends = [*(cut.row for cut in behind), None]
        piece.unit = replace(piece.unit, end=ends[0], cut=before[-1] if before else None)
        piece.state = _State.NEW
        piece.tries = piece.starved = 0
        place = self._queue.index(piece) + 1
        for cut, end in zip(reversed(behind), reversed(ends), strict=False):
            self._queue.insert(place, _Piece(Unit(piece.unit.shard, cut.row, end, cut=cut)))

    def _scanned(self, piece: _Piece, written: Written) -> None:
        piece.hashes = written.result.hashes
        piece.state = _State.SCANNED
        result = written.result
        self._tell(written)
        if result.bad_shard is not None:
            # Before the decision on copies, since those behind it are not stored.
            self._bad[piece.unit.shard] = min(piece.unit.row, self._bad.get(piece.unit.shard, piece.unit.row))
            self._drop_rests()
            # It ends here even if it can be read when it is run: the hashes of what follows are not known.
            piece.bad = result.bad_shard
            end = piece.bad["row"] if result.next_row is None else result.next_row
            piece.unit = replace(piece.unit, end=int(end))
        ended = result.ends_shard or (piece.unit.end is not None and result.next_row == piece.unit.end)
        if not ended and result.next_row is not None:
            # The scan has ended early, since it found as much as the budget needs.
            rest = replace(piece.unit, row=result.next_row)
            piece.unit = replace(piece.unit, end=result.next_row)
            self._queue.insert(self._queue.index(piece) + 1, _Piece(rest))

    def _decide(self, ledger: Ledger) -> None:
        """Decide which documents are copies, in the order of the source."""
        if ledger.seen is None:
            return
        for piece in self._queue:
            if piece.decided is not None:
                continue
            if piece.hashes is None:
                return
            piece.decided = Decided(piece.hashes, ledger.seen.add(piece.hashes), piece.bad)
            piece.state = _State.NEW
            piece.tries = piece.starved = 0

    def _decide_again(self, broken: _Piece, result: UnitResult, ledger: Ledger) -> None:
        """Decide again on the units behind one that was scanned further than it could be read: its copies are stored."""
        if ledger.seen is None or broken.decided is None:
            return
        read = len(result.rows) + len(result.skipped.get("duplicate", ()))
        lost = broken.decided.hashes[read:][broken.decided.new[read:]]
        behind = [(piece, piece.decided) for piece in self._queue if piece.decided is not None]
        ledger.seen.discard(np.concatenate([lost, *(known.hashes[known.new] for _, known in behind)]))
        self._drop_rests()
        for piece, known in behind:
            if piece not in self._queue:
                continue
            new = ledger.seen.add(known.hashes)
            if not np.array_equal(new, known.new):
                piece.decided = known._replace(new=new)
                self._begin_again(piece)

    def _begin_again(self, piece: _Piece) -> None:
        """Have a unit run anew, whatever of it is running or done."""
        self._stop([task for task, job in self._tasks.items() if job is piece])
        if piece.done is not None:
            self._remove([piece.done[0]])
        piece.done = None
        piece.state = _State.NEW

    def _stop(self, tasks: Sequence[Hashable]) -> None:
        self._workers.cancel(tasks)
        for task in tasks:
            del self._tasks[task]

    def _tell(self, written: Written) -> None:
        """Log what a worker's reader has warned of, each warning once."""
        for remark in written.remarks:
            if remark not in self._remarks:
                self._remarks.add(remark)
                _log.warning("%s", remark)

    def _fold_done(self, ledger: Ledger) -> None:
        """Fold the first units, as far as they are done. One that crosses the budget is done again, with what is left."""
        while self._queue and self._queue[0].done is not None and not ledger.met:
            piece = self._queue[0]
            name, written = self._queue[0].done
            if ledger.needs(written.result) < len(written.result.rows):
                self._begin_again(piece)
                return
            self._queue.popleft()
            if written.result.next_row is None and written.result.ends_shard:
                # Not one row was read, so there is nothing to note of this file.
                ledger.end_shard(written.result.bad_shard)
            else:
                ledger.fold(written.result)
            self._incidents.update(written.incidents)
            self._tell(written)
            self._folded += 1
            pending = self._pending
            if written.fragment is not None:
                pending.fragments.append(written.fragment)
                pending.files |= written.files
            pending.tokens += int(written.result.num_tokens.sum())
            pending.results += [each for each in (name, piece.scan) if each is not None]
            if written.result.bad_shard is not None:
                self._bad[piece.unit.shard] = piece.unit.row
                self._decide_again(piece, written.result, ledger)
                self._drop_rests()
            if written.result.ends_shard:
                self._check_first_shard(ledger)

    def _drop_rests(self) -> None:
        """Leave out the units behind the place from which on a shard is skipped."""
        gone = [piece for piece in self._queue if piece.unit.row > self._bad.get(piece.unit.shard, piece.unit.row)]
        for piece in gone:
            self._queue.remove(piece)

    def _remove(self, names: Sequence[UnitName]) -> None:
        paths = {name.result_path for name in names} | {data_file_at(name.data_name) for name in names}
        remove_unit_files(self._location, paths)

    def _units_running(self) -> list[_Piece]:
        return [piece for piece in self._tasks.values() if isinstance(piece, _Piece)]

    def _show_workers(self, progress: BuildProgress, running: int) -> None:
        """Show the units; so many were running when some of them ended."""
        now = time.monotonic()
        usual = float(np.median(self._seconds)) if self._seconds else np.inf
        slow = [piece for piece in self._units_running() if now - piece.since > _SLOW * usual]
        line = f"{pluralize(self._folded, 'unit')}, {running} running"
        named = {"slowest": self._described(min(slow, key=lambda piece: piece.since).unit)} if slow else {}
        progress.note(
            f"{line}, {len(slow)} slow" if slow else line,
            units_done=self._folded + sum(piece.done is not None for piece in self._queue),
            units=self._folded + len(self._queue) + self._ahead,
            units_running=running,
            units_slow=len(slow),
            workers=self._workers.slots,
            **named,
        )

    # Commits and merges.

    def _commit(self, commit: CommitMetadata) -> None:
        """Commit what was folded, after the newest version, and remove its results."""
        self._take_merge()
        before = newest_at(self._location, self._version, commit.fingerprint)
        fragments = [fragment_from(text) for text in self._pending.fragments]
        written = PendingFragments(before, self._packer.schema, fragments, self._pending.files)
        self._version = append_commit(self._location, written, commit, self._durable)
        self._end_commit(commit)

    def _end_commit(self, commit: CommitMetadata) -> None:
        self.committed = commit
        # Never before: a driver that runs again would have to do these units again.
        remove_unit_files(self._location, {name.result_path for name in self._pending.results})
        self._pending = _Pending()

    def _merge_when_due(self) -> None:
        """Have fragments merged once enough have come together, one group at a time. Only a new version makes one due."""
        if self._merge is not None:
            return
        dataset = newest_at(self._location, self._version)
        files = data_file_infos(dataset)
        fragments = fragments_of(dataset)
        groups = merge_groups(fragment_sizes(fragments, files), FULL_BYTES, final=False)
        if groups:
            self._merge = _Merge(file_names(fragments[groups[0].start : groups[0].stop]))
            self._start_merge(self._merge)

    def _start_merge(self, merge: _Merge) -> None:
        dataset = newest_at(self._location, self._version)
        files = {**data_file_infos(dataset), **self._pending.files}
        committed = {*file_names(fragments_of(dataset))}
        pending = [text for text in self._pending.fragments if fragment_from(text).files[0].path not in committed]
        pending = [text for text in pending if fragment_from(text).files[0].path in merge.paths]
        task = self._workers.submit(
            run_merge,
            [path for path in merge.paths if path in committed],
            pending,
            {path: files[path] for path in merge.paths},
            UnitName("merged", self._first.shard, self._first.row, secrets.token_hex(8)),
            tries=merge.tries,
        )
        self._tasks[task] = merge

    def _take_merge(self) -> None:
        """Commit a merge that is done, with the metadata of the last commit."""
        merge = self._merge
        if merge is None or merge.made is None:
            return
        self._merge = None
        dataset = newest_at(self._location, self._version)
        fragments = _replaced(fragments_of(dataset), [merge])
        files = {**data_file_infos(dataset), **merge.made[1]}
        commit = read_commit(dataset, self._location.uri)
        self._version = replace_fragments(
            self._location, dataset, dataset.schema, fragments, files, commit, self._durable
        )
        _log.info("%s: merged into %d fragments.", self._location.uri, len(fragments))
        clean_up(self._location)

    def _commit_last(self, commit: CommitMetadata, progress: BuildProgress) -> None:
        """Merge all small fragments, and make the last commit in one transaction: see `commit_final`."""
        self._drop_unneeded()
        while self._merge is not None:
            self._wait_for_merges([self._merge], progress)
            self._take_merge()
        before = newest_at(self._location, self._version, commit.fingerprint)
        fragments = [*fragments_of(before), *map(fragment_from, self._pending.fragments)]
        files = {**data_file_infos(before), **self._pending.files}
        groups = merge_groups(fragment_sizes(fragments, files), FULL_BYTES, final=True)
        merges = [_Merge(file_names(fragments[group.start : group.stop])) for group in groups]
        for merge in merges:
            self._start_merge(merge)
        self._wait_for_merges(merges, progress)
        for merge in merges:
            files |= {} if merge.made is None else merge.made[1]
        self._version = replace_fragments(
            self._location,
            before,
            self._packer.schema,
            _replaced(fragments, merges),
            files,
            commit,
            self._durable,
        )
        self._end_commit(commit)
        self.close()
        end_build(self._location, dataset_at(self._location, self._version))
        # What dead attempts, units behind the budget and merged fragments have left: no other builder can commit them now.
        remove_unit_files(self._location, unit_files(self._location))

    def _drop_unneeded(self) -> None:
        """Stop the units behind the end of the budget. Their files go after the last commit."""
        self._queue.clear()
        self._stop([task for task, job in self._tasks.items() if isinstance(job, _Piece)])

    def _wait_for_merges(self, merges: Sequence[_Merge], progress: BuildProgress) -> None:
        while any(merge.made is None for merge in merges):
            progress.note("merging")
            for task, outcome in self._workers.ended(_POLL_SECONDS):
                job = self._tasks.pop(task, None)
                if not isinstance(job, _Merge):
                    continue
                if outcome.error is not None:
                    self._failed(job, outcome.error, outcome)
                else:
                    job.made = outcome.value


def _new_name(what: str, unit: Unit) -> UnitName:
    return UnitName(what, unit.shard, unit.row, secrets.token_hex(8))


def _replaced(fragments: Sequence[Any], merges: Sequence[_Merge]) -> list[Any]:
    """Return fragments with those of each merge replaced by its result."""
    made = {merge.paths[0]: merge.made[0] for merge in merges if merge.made is not None}
    gone = {path for merge in merges for path in merge.paths}
    kept: list[Any] = []
    for fragment in fragments:
        path = fragment.files[0].path
        if path in made:
            kept += map(fragment_from, made[path])
        elif path not in gone:
            kept.append(fragment)
    return kept
