"""The driver of a build on a cluster: it hands out units, folds their results in source order, and commits.

No text and no token passes through this process. Workers write data files to the store's place, and results beside them; the
ledger decides from the results alone. Units may end in any order, several times or never: the ledger takes the first result of
each, in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_lance.build.builder import Build, Pace
from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.earlier_results import EarlierResults
from lightning_lance.build.fragment_merges import FragmentMerges, Merge, due_merges, with_merged
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.progress import BuildProgress
from lightning_lance.build.tasks import Work
from lightning_lance.build.unit_queue import QueuedUnit, UnitQueue
from lightning_lance.build.unit_results import Written
from lightning_lance.build.unit_tasks import UnitTasks
from lightning_lance.build.workers import Outcome, RunningTasks, Workers
from lightning_lance.errors import LightningLanceError, StoreError
from lightning_lance.format.commit import append_commit, data_file_infos, newest_at, read_commit, replace_fragments
from lightning_lance.format.lance_io import PendingFragments, dataset_at, fragment_from, fragments_of, remove_store
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links
from lightning_lance.lance_names import UnitName, is_lance_file, unit_of
from lightning_lance.maintenance.compaction import FULL_BYTES, end_build
from lightning_lance.maintenance.removal import (
    clean_up,
    fence_stale_builders,
    find_orphans,
    remove_unit_files,
    unit_files,
)
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.sources.source import Divisible, ReadReport

_log = logger(__name__)


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

    def add(self, written: Written, names: Sequence[UnitName | None]) -> None:
        """Add what the attempts of these names have written of a unit."""
        if written.fragment is not None:
            self.fragments.append(written.fragment)
            self.files |= written.files
        self.tokens += int(written.result.num_tokens.sum())
        self.results += [name for name in names if name is not None]


class ClusterBuild(Build):
    """A build whose units run as tasks.

    Args:
        start: Makes the workers, given the work.
        max_lead: Units ahead of the ledger.
        unit_bytes: Bytes of text in a part of a large shard.
        max_retries: How often a unit is done again that has lost its worker.
        given: The arguments of `Build`.
    """

    # The last merges run together, and are committed with the rows of the last minute.
    _merges_in_turn = False

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
        # From `_take_over` to `close`.
        self._workers: Workers | None = None
        self._pending = _Pending()
        # What the workers' readers have counted.
        self._incidents: Counter[str] = Counter()
        # Whether this build has made the first version, which has no rows.
        self._founded = False

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def undo(self) -> None:
        """Remove a local store that this build has founded, if it has no rows yet, and what `Build.undo` removes."""
        with suppress(OSError, ValueError, LightningLanceError):
            nothing = self._founded and self._location.is_local and self.committed == self._first
            has_rows = any(map(is_lance_file, unit_files(self._location)))
            if nothing and not has_rows:
                remove_store(self._location)
                self.committed = None
        super().undo()

    def _trouble(self) -> ReadReport:
        trouble = self._opened.trouble
        return replace(trouble, incidents=trouble.incidents + self._incidents)

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
        self._workers = self._start(self._work)
        self._tasks = RunningTasks(self._workers, self._max_retries)
        self._merges = FragmentMerges(self._tasks, self._first.shard, self._first.row)
        self._earlier = EarlierResults(self._location)
        if self._version:
            self._earlier.find(self._first.shard, self._first.row)
        kept = self._earlier.names
        orphans: set[str] = set()
        local: set[str] = set()
        for path in find_orphans(self._location) | unit_files(self._location):
            name = unit_of(path)
            if name in kept:
                continue
            orphans.add(path)
            if name is None:
                local.add(path)
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

    # The loop.

    def _fill(self, ledger: Ledger, turn: BuildCoordinator, progress: BuildProgress, pace: Pace) -> None:
        divisible = isinstance(self._opened, Divisible)
        self._queue = UnitQueue(ledger, len(self._opened.shards), divisible, self._max_lead)
        self._units = UnitTasks(
            self._work, self._source.name, self._queue, ledger, self._tasks, self._earlier, self._unit_bytes
        )
        more = True
        while True:
            more = more and self._queue.lengthen(self._tasks.slots)
            self._units.submit()
            running = len(self._units.running)
            before = ledger.commit.text_bytes
            self._take_ended()
            self._fold_done(ledger)
            self._show_units(progress, running)
            self._look(ledger, turn, progress, ledger.commit.text_bytes - before)
            if ledger.met or (not more and not self._queue):
                break
            if pace.due(ledger.commit, self._pending.tokens):
                self._commit(ledger.commit)
                pace.committed(ledger.commit)
                now = ledger.commit
                progress.committed(self._share(now), now.documents, now.tokens)
                self._merge_when_due()
            elif self._take_merge():
                self._merge_when_due()
        if not ledger.met:
            self._end_source(ledger)
        self._commit_last(ledger.commit, progress)
        progress.update(1.0, ledger.commit.documents, ledger.commit.tokens, 0)

    def _take_ended(self) -> None:
        """Take the tasks that have ended, and decide on the copies among what they have scanned."""
        for job, outcome in self._tasks.ended():
            if isinstance(job, Merge):
                self._check(outcome)
                self._merges.take(job, outcome)
            elif isinstance(job, QueuedUnit) and job in self._queue:  # still needed
                self._check(outcome)
                self._units.take(job, outcome)
        self._queue.decide()

    def _check(self, outcome: Outcome) -> None:
        """Raise the error of a task, unless its worker was lost."""
        if outcome.error is None or outcome.lost:
            return
        if isinstance(outcome.error, StoreError):
            self._check_no_other_builder()
        raise outcome.error

    def _fold_done(self, ledger: Ledger) -> None:
        """Fold the first units, as far as they are done. One that crosses the budget is done again, with what is left."""
        while not ledger.met:
            first = self._queue.first_done()
            if first is None or first.done is None:
                return
            name, written = first.done
            result = written.result
            if ledger.needs(result) < len(result.rows):
                self._units.begin_again(first)
                return
            self._queue.pop_first()
            if result.next_row is None and result.ends_shard:
                # Not one row was read, so there is nothing to note of this file.
                ledger.end_shard(result.bad_shard)
            else:
                ledger.fold(result)
            self._incidents.update(written.incidents)
            self._units.tell(written)
            self._pending.add(written, [name, first.scan])
            if result.bad_shard is not None:
                for changed in self._queue.break_off(first, result):
                    self._units.begin_again(changed)
            if result.ends_shard:
                self._check_first_shard(ledger)

    def _show_units(self, progress: BuildProgress, running: int) -> None:
        """Show the units; so many were running when some of them ended."""
        slow = self._units.slow
        line = f"{pluralize(self._queue.folded, 'unit')}, {running} running"
        named = {}
        if slow:
            line = f"{line}, {len(slow)} slow"
            named = {"slowest": self._units.named(slow[0].unit)}
        progress.note(
            line,
            units_done=self._queue.done,
            units=self._queue.known,
            units_running=running,
            units_slow=len(slow),
            workers=self._tasks.slots,
            **named,
        )

    # Commits.

    def _commit(self, commit: CommitMetadata) -> None:
        """Commit what was folded, after the newest version, and remove its results."""
        self._take_merge()
        before = newest_at(self._location, self._version, commit.fingerprint)
        fragments = list(map(fragment_from, self._pending.fragments))
        written = PendingFragments(before, self._packer.schema, fragments, self._pending.files)
        self._version = append_commit(self._location, written, commit, self._durable)
        self._end_commit(commit)

    def _end_commit(self, commit: CommitMetadata) -> None:
        self.committed = commit
        # Never before: a driver that runs again would have to do these units again.
        remove_unit_files(self._location, {name.result_path for name in self._pending.results})
        self._pending = _Pending()

    def _merge_when_due(self) -> None:
        """Have fragments merged once enough have come together. Only a new version makes a merge due."""
        if self._merges.current is None:
            self._merges.begin_first(newest_at(self._location, self._version))

    def _take_merge(self) -> bool:
        """Commit a merge that is done, with the metadata of the last commit. Return whether there was one."""
        merge = self._merges.take_current()
        if merge is None:
            return False
        dataset = newest_at(self._location, self._version)
        fragments = with_merged(fragments_of(dataset), [merge])
        files = {**data_file_infos(dataset), **merge.made_files}
        commit = read_commit(dataset, self._location.uri)
        self._version = replace_fragments(
            self._location, dataset, dataset.schema, fragments, files, commit, self._durable
        )
        _log.info("%s: merged into %d fragments.", self._location.uri, len(fragments))
        clean_up(self._location)
        return True

    def _commit_last(self, commit: CommitMetadata, progress: BuildProgress) -> None:
        """Merge all small fragments, and make the last commit in one transaction: see `commit_final`."""
        # Units behind the end of the budget. Their files go after the last commit.
        self._units.stop()
        if self._merges.current is not None:
            self._wait_for_merges([self._merges.current], progress)
            self._take_merge()
        before = newest_at(self._location, self._version, commit.fingerprint)
        pending = self._pending
        merges = due_merges(before, pending.fragments, pending.files, final=True)
        for merge in merges:
            self._merges.begin(merge)
        self._wait_for_merges(merges, progress)
        fragments = [*fragments_of(before), *map(fragment_from, pending.fragments)]
        files = {**data_file_infos(before), **pending.files}
        for merge in merges:
            files |= merge.made_files
        self._version = replace_fragments(
            self._location,
            before,
            self._packer.schema,
            with_merged(fragments, merges),
            files,
            commit,
            self._durable,
        )
        self._end_commit(commit)
        self.close()
        end_build(self._location, dataset_at(self._location, self._version))
        # What dead attempts, units behind the budget and merged fragments have left: no other builder can commit them now.
        remove_unit_files(self._location, unit_files(self._location))

    def _wait_for_merges(self, merges: Sequence[Merge], progress: BuildProgress) -> None:
        while any(merge.made is None for merge in merges):
            progress.note("merging")
            for job, outcome in self._tasks.ended():
                if isinstance(job, Merge):
                    self._check(outcome)
                    self._merges.take(job, outcome)
