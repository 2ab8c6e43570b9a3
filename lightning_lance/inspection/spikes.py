"""The losses of documents around a spike of the loss: what a run writes of its steps, and how it is read again.

A file holds one step of one rank, as JSON Lines: a line about the step, then a line for each document of each window. Numbers
that JSON does not have are text: "nan", "inf", "-inf".
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError, integer
from lightning_lance.location import check_place
from lightning_lance.messages.formatting import format_list
from lightning_lance.process.files import write_atomic
from lightning_lance.type_hints import check_arguments

#: Below the folder of a run.
FOLDER = "losses"
_FILE = re.compile(r"step-([0-9]{8,})-rank-([0-9]{4,})\.jsonl")
_FORMAT = 1
# More than the documents of any batch need.
_MOST_BYTES = 1 << 28


class DocumentLoss(NamedTuple):
    """The loss of a document in a window.

    Attributes:
        window: Number of the window in the rank's batch.
        begin: First token of the document in the window, as in `TokenStore.documents`.
        end: End of its tokens in the window. A window has `context_length + 1` tokens.
        loss: Sum of the losses of its tokens, in nats. The loss of a token is that of predicting it.
        tokens: Tokens in that sum: those that are targets and not masked. The first token of a window is no target.
    """

    window: int
    begin: int
    end: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class StepLosses:
    """The losses of a step on one rank.

    Attributes:
        step: Number of the batch, as in `WindowLoader.windows`.
        rank: Whose batch.
        global_step: The Trainer's count of optimizer steps at that batch.
        loss: Mean loss of the tokens of this rank's batch.
        median: Median loss of the steps before, of all ranks; None if there were too few.
        spike: Whether this step is the one for which the file was written; otherwise it is one before it.
        documents: The documents, window by window, in their order.
    """

    step: int
    rank: int
    global_step: int
    loss: float
    median: float | None
    spike: bool
    documents: list[DocumentLoss]


def write_step(run_folder: str | os.PathLike[str], losses: StepLosses) -> Path:
    """Write the losses of a step in one piece, in place of earlier ones, and return the file.

    Raises:
        OSError: If it cannot be written.
    """
    file = _file_of(run_folder, losses.step, losses.rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {**vars(losses), "format": _FORMAT}
    del about["documents"]
    lines = [_line_of(about)]
    for document in losses.documents:
        lines.append(_line_of(document._asdict()))
    write_atomic(file, "".join(lines))
    return file


def read_step(run_folder: str | os.PathLike[str], step: int, rank: int = 0) -> StepLosses:
    """Return what a run wrote of a step of one rank.

    Args:
        run_folder: The folder of the run, such as `outputs`.
        step: Number of the batch, as in `WindowLoader.windows`.
        rank: Whose batch.

    Raises:
        ConfigError: If there is no such file, or it is damaged.
    """
    check_arguments(read_step, {"step": step, "rank": rank})
    folder = check_place("run_folder", run_folder, "outputs")
    step = integer("step", step)
    rank = integer("rank", rank)
    file = _file_of(folder, step, rank)
    # Not a pipe, which would be waited for.
    if not file.is_file():
        raise ConfigError(_missing(folder, step, rank))
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise OSError(f"it has more than {_MOST_BYTES:,} bytes")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read ({error}): expected a file of LossByDocument.") from error
    try:
        about, *rows = map(json.loads, lines)
        return _step_of(about, rows)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{str(file)!r} is damaged, or of another version of this package ({type(error).__name__}: {error}): expected a "
            "file of LossByDocument; remove it."
        ) from error


def read_losses(run_folder: str | os.PathLike[str], step: int, rank: int = 0) -> list[DocumentLoss]:
    """Return the losses of the documents of a step on one rank, window by window; see `read_step`.

    Raises:
        ConfigError: If the run wrote none, or the file is damaged.
    """
    return read_step(run_folder, step, rank).documents


def steps_with_losses(run_folder: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """Return the steps and ranks of which a run wrote losses, sorted; none without the folder."""
    steps = []
    for file in Path(run_folder, FOLDER).glob("step-*.jsonl"):
        found = _FILE.fullmatch(file.name)
        if found and len(file.name) < 80 and file.is_file():
            steps.append((int(found[1]), int(found[2])))
    return sorted(steps)


def _file_of(run_folder: str | os.PathLike[str], step: int, rank: int) -> Path:
    return Path(run_folder, FOLDER, f"step-{step:08d}-rank-{rank:04d}.jsonl")


def _missing(folder: str, step: int, rank: int) -> str:
    there = steps_with_losses(folder)
    place = str(Path(folder, FOLDER))
    if not there:
        return (
            f"There are no losses of documents in {place!r}: expected the folder of a run with LossByDocument, in which the "
            "loss has had a spike."
        )
    steps_of: dict[int, list[str]] = {}
    for number, owner in there:
        steps_of.setdefault(owner, []).append(str(number))
    if rank not in steps_of:
        ranks = [*map(str, sorted(steps_of))]
        return f"{place!r} has no losses of rank {rank}: expected one of {format_list(ranks)}."
    return f"{place!r} has no losses of step {step} of rank {rank}: expected one of {format_list(steps_of[rank])}."


def _line_of(row: Mapping[str, Any]) -> str:
    plain = {name: _without_infinity(value) for name, value in row.items()}
    return f"{json.dumps(plain)}\n"


def _without_infinity(value: Any) -> Any:
    """Return a value for JSON, which has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _loss_of(row: Mapping[str, Any]) -> DocumentLoss:
    return DocumentLoss(int(row["window"]), int(row["begin"]), int(row["end"]), float(row["loss"]), int(row["tokens"]))


def _step_of(about: Mapping[str, Any], rows: list[dict[str, Any]]) -> StepLosses:
    if about["format"] != _FORMAT:
        raise ValueError(f"format {about['format']}")
    documents = list(map(_loss_of, rows))
    median = about["median"]
    return StepLosses(
        step=int(about["step"]),
        rank=int(about["rank"]),
        global_step=int(about["global_step"]),
        loss=float(about["loss"]),
        median=None if median is None else float(median),
        spike=bool(about["spike"]),
        documents=documents,
    )
