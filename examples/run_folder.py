"""The folder of a run: one `metrics.csv`, which a resumed run goes on with, and a picture of the losses."""

from __future__ import annotations

import csv
import io
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_lance.messages.formatting import pluralize

_log = logging.getLogger(__name__)

# Of a checkpoint: the last row of its run.
_LAST_ROW = "metrics_row"
# At most so often, in seconds, the picture is drawn during a run.
_DRAW_SECONDS = 60.0


class MetricsFile(Logger):
    """Writes `metrics.csv`: one row for each step that logs something, complete on disk at any time.

    A run that goes on from a checkpoint goes on with its rows. Rows that it will write again, and those of another run in
    the same folder, are kept in a file beside.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.file = Path(folder, "metrics.csv")
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}
        self._row_before: Mapping[str, Any] = {}
        self._row_begins = 0  # in the file
        self._begun = False

    @property
    def name(self) -> str:
        """A name, which Lightning asks for; it is in no path."""
        return "metrics"

    @property
    def version(self) -> str:
        """No version: the folder is the run's."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.file.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: Hydra writes the whole configuration."""

    def begin(self, step: int, last: Mapping[str, str] | None = None) -> None:
        """Keep the run's rows before a step in the file, and all others in files beside.

        Args:
            step: The first one that will be logged: 0 in a run that begins anew.
            last: A row that the run has before this step; see `last_row`. None takes all rows for those of the run.
        """
        self._begun = True
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows = _rows_of(self.file, step)
        taken: Path | None = None
        if last is None or rows.have(last):
            self._keep_others(rows)
        else:
            self._keep_all(rows)
            taken, rows = _rows_beside(self.file, step, last)
        self._columns = rows.columns if rows.kept else ["step"]
        self._row = {}
        self._row_before = rows.kept[-1] if rows.kept else {}
        _write(self.file, self._columns, rows.kept)
        if taken is None:
            return
        _log.info("%s goes on with the rows of this run in %s.", self.file, taken.name)
        if rows.others:
            _write(taken, rows.columns, rows.others)
        else:
            taken.unlink()

    def _keep_others(self, rows: _Rows) -> None:
        """Keep in a file beside what the file loses."""
        if not rows.is_whole:
            self._keep_all(rows)
        elif rows.others:
            beside = _free_name(self.file)
            _write(beside, rows.columns, rows.others)
            count = pluralize(len(rows.others), "row")
            _log.info("%s has %s of an earlier run: they are in %s now.", self.file, count, beside.name)

    def _keep_all(self, rows: _Rows) -> None:
        """Keep in a file beside all that the file has."""
        if rows.is_whole and not rows.kept and not rows.others:
            return
        beside = _free_name(self.file)
        shutil.copyfile(self.file, beside)
        if rows.is_whole:
            count = pluralize(len(rows.kept) + len(rows.others), "row")
            _log.info("%s has %s of another run: they are in %s now.", self.file, count, beside.name)
        else:
            _log.warning("%s has lines that are no metrics of steps: it is kept as %s.", self.file, beside.name)

    def last_row(self, step: int) -> dict[str, str] | None:
        """Return the last row before a step, as it is in the file: by it, a run that goes on knows its file."""
        for row in (self._row, self._row_before):
            if row and int(row["step"]) < step:
                return {name: str(value) for name, value in row.items() if value not in (None, "")}
        return None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add metrics to the row of their step."""
        if not self._begun:
            self.begin(step or 0)
        if step is None:
            step = self._row.get("step", -1) + 1
        if step != self._row.get("step"):
            self._row_before = self._row or self._row_before
            self._row = {"step": step}
            self._row_begins = self.file.stat().st_size
        self._row.update(metrics)
        new = [name for name in self._row if name not in self._columns]
        if new:
            self._columns += new
            _write(self.file, self._columns, [row for row in read_metrics(self.file) if int(row["step"]) != step])
            self._row_begins = self.file.stat().st_size
        with self.file.open("r+", encoding="utf-8", newline="") as stream:
            stream.seek(self._row_begins)
            csv.DictWriter(stream, self._columns).writerow(self._row)
            stream.truncate()


class LossCurve(lightning.Callback):
    """Draws `loss.png` beside a `metrics.csv` now and then, and tells that file where a run goes on."""

    def __init__(self, metrics: MetricsFile) -> None:
        self.metrics = metrics
        self._next = time.monotonic() + _DRAW_SECONDS
        self.picture = metrics.file.with_name("loss.png")
        self._last_row: Mapping[str, str] | None = None  # of the checkpoint

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the last row. Not as the state of this callback: Lightning would miss it where a run goes on without."""
        row = self.metrics.last_row(trainer.global_step)
        if row is not None:
            checkpoint[_LAST_ROW] = row

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the last row."""
        self._last_row = checkpoint.get(_LAST_ROW)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin at the step of the checkpoint, or at 0."""
        if trainer.is_global_zero:
            self.metrics.begin(trainer.global_step, self._last_row)
        self._last_row = None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Log by the number of optimizer steps: Lightning's own count may be one ahead after a resume."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw what is known so far."""
        if trainer.is_global_zero and not trainer.sanity_checking and time.monotonic() > self._next:
            self._draw()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the whole run."""
        if trainer.is_global_zero:
            self._draw()

    def _draw(self) -> None:
        draw_losses(read_metrics(self.metrics.file), self.picture)
        self._next = time.monotonic() + _DRAW_SECONDS


def draw_losses(rows: Sequence[Mapping[str, str]], picture: Path) -> None:
    """Draw the training and validation losses of a run.

    Args:
        rows: Of `metrics.csv`.
        picture: A PNG file. One that is there is replaced.
    """
    # No pyplot: it looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # Of slices, those that `data.val_by` validates too: the others are many.
    names: list[str] = []
    if rows:
        names = [name for name in rows[0] if re.fullmatch(r"train_loss|val_loss(/[^/]*)?", name)]
    for name in telling_losses(names):
        points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name)]
        if points:
            # The losses of all data lie above those of slices.
            line = {"linewidth": 2.0, "zorder": 3.0}
            if "/" in name:
                line = {"linewidth": 1.0, "zorder": 2.0}
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else "", **line)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    unfinished = picture.with_suffix(".part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(picture)


def telling_losses(names: Sequence[str]) -> list[str]:
    """Return the names of losses, without slices that are all of their data: the loss of a single language says nothing more.

    Args:
        names: Such as `val_loss`, `val_loss/Python` and `val_loss/license/mit`.
    """
    slices: dict[str, list[str]] = {}
    for name in names:
        whole, _, rest = name.partition("/")
        by, kind, _ = rest.partition("/")
        if rest and whole in names:
            slices.setdefault(f"{whole}/{by if kind else ''}", []).append(name)
    alone = {found[0] for found in slices.values() if len(found) == 1}
    return sorted(name for name in names if name not in alone)


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Return the rows of a `metrics.csv`, as text; none if there is no file. A row that a kill has cut off is left out."""
    return _read(file)[1]


def _read(file: Path) -> tuple[list[str], list[dict[str, str]], bool]:
    """Return the columns and rows of a file, and whether these are all that it holds, but for a row that a kill has cut off."""
    if not file.exists():
        return ["step"], [], True
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    complete, newline, _ = text.rpartition("\n")
    # No columns, no text, and nothing that a kill could have left.
    if not newline:
        return ["step"], [], not text
    reader = csv.DictReader(io.StringIO(complete + newline, newline=""), restval="")
    rows = []
    is_whole = "step" in (reader.fieldnames or ())
    for row in reader:
        if (row.get("step") or "").isdecimal() and None not in row:
            rows.append(row)
        else:
            is_whole = False
    return [*(reader.fieldnames or ["step"])], rows, is_whole


class _Rows(NamedTuple):
    """The rows of a file.

    Attributes:
        columns: Its columns.
        kept: The rows before a step, one for each in their order.
        others: The other ones.
        is_whole: Whether rows are all that it holds, but for one that a kill has cut off.
    """

    columns: list[str]
    kept: Sequence[dict[str, str]]
    others: Sequence[dict[str, str]]
    is_whole: bool

    def have(self, row: Mapping[str, str]) -> bool:
        """Return whether the kept rows have one with the values of a row, and perhaps more."""
        for mine in self.kept:
            if int(mine["step"]) == int(row["step"]):
                return all(mine.get(name) == value for name, value in row.items() if name != "step")
        return False


def _rows_of(file: Path, step: int) -> _Rows:
    """Return the rows of a file.

    Of two rows of one step, as other loggers write them, one is made; where both have a value, the earlier row is another
    run's.
    """
    columns, rows, is_whole = _read(file)
    kept: dict[int, dict[str, str]] = {}
    others = []
    for row in rows:
        number = int(row["step"])
        if number >= step:
            others.append(row)
            continue
        there = kept.get(number, {})
        if any(value and there.get(name, "") not in ("", value) for name, value in row.items() if name != "step"):
            others.append(there)
            there = {}
        kept[number] = {name: value or there.get(name, "") for name, value in row.items()}
    return _Rows(columns, [kept[number] for number in sorted(kept)], others, is_whole)


def _rows_beside(file: Path, step: int, last: Mapping[str, str]) -> tuple[Path | None, _Rows]:
    """Return the file beside with the most rows of the run that has a row, and its rows; None if no file has them."""
    chosen: Path | None = None
    found = _Rows(["step"], [], [], True)
    for beside in file.parent.glob(f"{file.stem}-*{file.suffix}"):
        if not beside.stem.removeprefix(f"{file.stem}-").isdecimal():
            continue
        rows = _rows_of(beside, step)
        if rows.is_whole and rows.have(last) and len(rows.kept) > len(found.kept):
            chosen = beside
            found = rows
    return chosen, found


def _write(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a file with a header as a whole, or not at all."""
    unfinished = file.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(file)


def _free_name(file: Path) -> Path:
    """Return the first of metrics-1.csv, metrics-2.csv... that is not there."""
    number = 1
    while True:
        free = file.with_name(f"{file.stem}-{number}{file.suffix}")
        if not free.exists():
            return free
        number += 1
