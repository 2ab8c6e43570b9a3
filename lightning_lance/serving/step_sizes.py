"""How the windows of epochs are cut into steps: the arithmetic of step numbers, without a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lightning_lance.serving.options import Remainder
from lightning_lance.serving.size_schedules import SizePhase


class Segment(NamedTuple):
    """The part of an epoch whose steps have one size.

    Attributes:
        step: Number of its first step.
        begin: The place in the epoch of its first window.
        size: Windows of a batch, on each rank.
        rows: Rows of a batch that a window is cut into.
    """

    step: int
    begin: int
    size: int
    rows: int


class _Alike(NamedTuple):
    """Epochs of equally many steps.

    Attributes:
        epoch: The first one.
        step: Number of its first step.
        epochs: How many; None for all that follow.
        steps: Steps of each.
    """

    epoch: int
    step: int
    epochs: int | None
    steps: int


class CountedFrom(NamedTuple):
    """Where steps are counted from, once the stores have changed during the run: epochs before had other windows.

    Attributes:
        epoch: The epoch of that place.
        first: Number of the first step of that epoch.
        step: Number of the first step of the changed stores.
        place: The place in the epoch of its first window.
    """

    epoch: int
    first: int
    step: int
    place: int


class StepSizes(NamedTuple):
    """How an epoch is cut into steps.

    Attributes:
        batch_size: Windows of a batch, on each rank; the largest, where they change.
        world_size: The number of ranks.
        remainder: What happens to the windows at an epoch's end that fill no step; see `WindowLoader`.
        phases: The sizes from some steps on, where they change; the last one has `batch_size`.
        origin: Where steps are counted from; None for the begin of the run.
        begins: Epochs within which the run went on, perhaps in other sizes, each with the position at which it did.
    """

    batch_size: int
    world_size: int
    remainder: Remainder
    phases: tuple[SizePhase, ...] = ()
    origin: CountedFrom | None = None
    begins: Mapping[int, int] = {}

    @property
    def windows(self) -> int:
        """Windows of a whole step, on all ranks; of the largest one."""
        return self.batch_size * self.world_size

    @property
    def _phases(self) -> tuple[SizePhase, ...]:
        return self.phases or (SizePhase(0, self.batch_size, 1),)

    def phase_of(self, step: int) -> SizePhase:
        """Return the sizes of a step."""
        return self._phases[self._index_of(step)]

    def _index_of(self, step: int) -> int:
        index = 0
        for number, phase in enumerate(self._phases):
            if phase.step <= step:
                index = number
        return index

    def steps_of(self, size: int, windows: int) -> int:
        """Return the number of steps, all of one size, of some windows up to the end of an epoch."""
        whole, rest = divmod(windows, size * self.world_size)
        if self.remainder == "drop":
            return whole
        least = 1 if self.remainder == "wrap" else self.world_size
        return whole + (rest >= least)

    def segments(self, step: int, windows: int) -> list[Segment]:
        """Return the parts of an epoch of some windows whose first step has a number."""
        phases = self._phases
        index = self._index_of(step)
        begin = 0
        found = [Segment(step, begin, phases[index].size, phases[index].rows)]
        for before, phase in zip(phases[index:], phases[index + 1 :], strict=False):
            begin += (phase.step - found[-1].step) * before.size * self.world_size
            if begin >= windows:
                break
            found.append(Segment(phase.step, begin, phase.size, phase.rows))
        return found

    def steps(self, step: int, windows: int) -> int:
        """Return the number of steps of an epoch of some windows whose first step has a number."""
        last = self.segments(step, windows)[-1]
        return last.step - step + self.steps_of(last.size, windows - last.begin)

    def begin_of(self, epoch: int, windows: int) -> tuple[int, int]:
        """Return the number of the first step of an epoch whose place is known, and that place."""
        if self.origin is not None and epoch == self.origin.epoch:
            return self.origin.step, self.origin.place
        return self.first_step(epoch, windows), 0

    def steps_in(self, epoch: int, windows: int) -> int:
        """Return the number of steps of a whole epoch of some windows."""
        step, place = self.begin_of(epoch, windows)
        return step - self.first_step(epoch, windows) + self.steps(step, windows - place)

    def _alike(self, windows: int) -> Iterator[_Alike]:
        """Yield the epochs of some windows each, as many at once as have equally many steps."""
        phases = self._phases
        epoch = step = 0
        if self.origin is not None:
            steps = self.origin.step - self.origin.first
            steps += self.steps(self.origin.step, windows - self.origin.place)
            yield _Alike(self.origin.epoch, self.origin.first, 1, steps)
            epoch = self.origin.epoch + 1
            step = self.origin.first + steps
        for number, phase in enumerate(phases):
            whole = self.steps_of(phase.size, windows)
            if number + 1 == len(phases) or not whole:
                yield _Alike(epoch, step, None, whole)
                return
            ahead = max(phases[number + 1].step - step, 0)
            if ahead >= whole:
                yield _Alike(epoch, step, ahead // whole, whole)
                epoch += ahead // whole
                step += ahead // whole * whole
            if step < phases[number + 1].step:
                # The epoch in which the sizes change.
                steps = self.steps(step, windows)
                yield _Alike(epoch, step, 1, steps)
                epoch += 1
                step += steps

    def first_step(self, epoch: int, windows: int) -> int:
        """Return the number of the first step of an epoch, where all have some windows; of one before `origin`, its first."""
        found = 0 if self.origin is None else self.origin.first
        for alike in self._alike(windows):
            if epoch < alike.epoch:
                break
            found = alike.step + (epoch - alike.epoch) * alike.steps
        return found

    def epoch_of(self, step: int, windows: int) -> int:
        """Return the epoch of a step, where all have some windows, and enough for a step; of one before `origin`, its epoch."""
        found = 0 if self.origin is None else self.origin.epoch
        for alike in self._alike(windows):
            if step < alike.step:
                break
            # An epoch that has grown at its very end may have none.
            found = alike.epoch + (step - alike.step) // max(alike.steps, 1)
        return found

    def windows_before(self, step: int) -> int:
        """Return the windows of all steps before one, of all ranks."""
        windows = 0
        end = step
        for phase in reversed(self._phases):
            if phase.step < end:
                windows += (end - phase.step) * phase.size
                end = phase.step
        return windows * self.world_size
