"""Merges of small fragments, which workers do while the build goes on. Nothing here commits."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lance.build.tasks import run_merge
from lightning_lance.build.workers import Job, Outcome, RunningTasks
from lightning_lance.format.commit import data_file_infos
from lightning_lance.format.lance_io import file_names, fragment_from, fragments_of
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.lance_names import UnitName
from lightning_lance.maintenance.compaction import FULL_BYTES, fragment_sizes, merge_groups


@dataclass(eq=False)
class Merge(Job):
    """Neighbouring fragments that a worker rewrites as one.

    Attributes:
        committed: The data files of those in the newest version.
        pending: Those that follow and are in no version yet, as JSON.
        files: The descriptions of all their files, by name, in the order of the fragments.
        made: The new fragment as JSON, or none, and the description of its file, once it is done.
    """

    committed: Sequence[str]
    pending: Sequence[str]
    files: Mapping[str, DataFileInfo]
    made: tuple[list[str], dict[str, DataFileInfo]] | None = None

    @property
    def made_files(self) -> dict[str, DataFileInfo]:
        """The description of the new file, by name; empty if there is none, or not yet."""
        if self.made is None:
            return {}
        return self.made[1]


def due_merges(dataset: Any, pending: Sequence[str], files: Mapping[str, DataFileInfo], final: bool) -> list[Merge]:
    """Return the merges that are due.

    Args:
        dataset: The newest version.
        pending: Fragments as JSON that follow those of the newest version.
        files: The descriptions of their files, by name.
        final: Whether these are the last merges of a build.
    """
    committed = fragments_of(dataset)
    fragments = [*committed, *map(fragment_from, pending)]
    infos = {**data_file_infos(dataset), **files}
    merges = []
    for group in merge_groups(fragment_sizes(fragments, infos), FULL_BYTES, final=final):
        names = file_names(fragments[group.start : group.stop])
        split = max(len(committed) - group.start, 0)
        first = max(group.start - len(committed), 0)
        end = max(group.stop - len(committed), 0)
        described = {name: infos[name] for name in names}
        merges.append(Merge(names[:split], pending[first:end], described))
    return merges


def with_merged(fragments: Sequence[Any], merges: Sequence[Merge]) -> list[Any]:
    """Return fragments with those of each merge replaced by its result."""
    made = {}
    gone: set[str] = set()
    for merge in merges:
        gone |= merge.files.keys()
        if merge.made is not None:
            first, *_ = merge.files
            made[first] = merge.made[0]
    kept: list[Any] = []
    for fragment in fragments:
        path = fragment.files[0].path
        if path in made:
            kept += map(fragment_from, made[path])
        elif path not in gone:
            kept.append(fragment)
    return kept


class FragmentMerges:
    """Runs merges: one at a time while a build goes on, and the last ones together.

    Args:
        tasks: The tasks that run, of units too.
        shard: Shard at which this driver began, for the names of files.
        row: Its row.
    """

    def __init__(self, tasks: RunningTasks, shard: int, row: int) -> None:
        self._tasks = tasks
        self._place = (shard, row)
        #: The one merge while the build goes on; None if there is none.
        self.current: Merge | None = None

    def begin_first(self, dataset: Any) -> None:
        """Begin the first merge that is due in the newest version, as the current one."""
        for merge in due_merges(dataset, [], {}, final=False)[:1]:
            self.current = merge
            self.begin(merge)

    def begin(self, merge: Merge) -> None:
        """Begin a merge."""
        name = UnitName("merged", *self._place, secrets.token_hex(8))
        self._tasks.submit(merge, run_merge, merge.committed, merge.pending, merge.files, name)

    def take(self, merge: Merge, outcome: Outcome) -> None:
        """Take the result of a task. A merge that was lost is done again.

        Raises:
            SourceError: If it was lost too often.
        """
        if outcome.error is None:
            merge.made = outcome.value
            return
        self._tasks.count_loss(merge, "A merge of fragments", outcome)
        self.begin(merge)

    def take_current(self) -> Merge | None:
        """Return the current merge if it is done, once."""
        merge = self.current
        if merge is None or merge.made is None:
            return None
        self.current = None
        return merge
