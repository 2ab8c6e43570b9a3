"""The batches of a run as the model gets them, past or to come: their documents, their text, and what is trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.errors import ConfigError, LightningLanceError
from lightning_lance.inspection.spikes import DocumentLoss
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.serving.reading import channels_of_all
from lightning_lance.serving.steps import ServedWindows
from lightning_lance.store.token_store import TokenStore

# Columns of `TokenStore.documents` that say where a document is, and not what it is.
_PLACE = ("window", "begin", "end")
# Characters around what a search finds.
_AROUND = 40

Kind = Literal["text", "eos", "sentinel"]


class Piece(NamedTuple):
    """Neighbouring tokens of one kind.

    Attributes:
        text: Their text; without a tokenizer, their ids.
        kind: Text, the end of a document, or a sentinel of fill-in-the-middle.
        trained: Whether the model is trained to predict them.
    """

    text: str
    kind: Kind
    trained: bool


@dataclass(frozen=True)
class ShownDocument:
    """A document in a window.

    Attributes:
        begin: Its first token in the window.
        end: The token after its last one.
        about: Its id, language, and whatever `source.columns` names.
        pieces: Its tokens in the window.
    """

    begin: int
    end: int
    about: dict[str, Any]
    pieces: list[Piece]

    @property
    def text(self) -> str:
        """All its text in the window."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class ShownWindow:
    """A window of a batch.

    Attributes:
        number: In the batch.
        store: The place of its store.
        start: Offset of its first token among those of the split.
        epoch: Epoch of its component.
        documents: Its documents, in order.
    """

    number: int
    store: str
    start: int
    epoch: int
    documents: list[ShownDocument]


class Found(NamedTuple):
    """A place at which a search matches.

    Attributes:
        step: Number of the batch.
        rank: Whose batch.
        window: Number in the batch.
        about: The document.
        before: The text before, on the same line.
        match: What matched.
        after: The text behind, on the same line.
    """

    step: int
    rank: int
    window: int
    about: dict[str, Any]
    before: str
    match: str
    after: str


class Share(NamedTuple):
    """What the windows of some steps have of one value of a column.

    Attributes:
        value: The value; None where documents have none.
        documents: Its documents.
        windows: Windows with one of them.
        tokens: Their tokens in these windows, EOS included.
    """

    value: str | None
    documents: int
    windows: int
    tokens: int


class Ranked(NamedTuple):
    """A document of a batch with its part of the loss.

    Attributes:
        share: Of the loss of all its tokens in the sum of the batch's, 0 to 1.
        loss: Mean loss of its tokens, in nats.
        tokens: The tokens that count.
        window: Number of its window.
        about: Its id, language, and whatever `source.columns` names.
    """

    share: float
    loss: float
    tokens: int
    window: int
    about: dict[str, Any]


def ranked(windows: Sequence[ShownWindow], losses: Sequence[DocumentLoss]) -> list[Ranked]:
    """Return the documents of a batch by their share of its loss, the largest first.

    Args:
        windows: Of the batch.
        losses: What `LossByDocument` wrote of the same batch.
    """
    documents = {}
    for window in windows:
        for part in window.documents:
            documents[window.number, part.begin] = part.about
    total = sum(entry.loss for entry in losses if math.isfinite(entry.loss)) or 1.0
    rows = []
    for entry in losses:
        # What is not finite counts as all of the loss.
        share = 1.0
        if math.isfinite(entry.loss):
            share = entry.loss / total
        about = documents.get((entry.window, entry.begin), {})
        rows.append(Ranked(share, entry.loss / max(entry.tokens, 1), entry.tokens, entry.window, about))
    return sorted(rows, key=lambda row: -row.share)


def show_step(loader: WindowLoader, step: int, rank: int = 0) -> list[ShownWindow]:
    """Return the windows of a batch as the model gets them.

    Args:
        loader: Of a run; see `open_run`.
        step: Number of the batch, as `WindowLoader.windows` counts.
        rank: Whose batch.

    Raises:
        ConfigError: If there is no such step or rank.
        StoreError: If the step was served from other data.
    """
    windows = loader.windows(step, rank)
    documents = windows.documents
    numbers = documents.column("window").to_numpy()
    trained = _trained(windows)
    sentinels = _sentinels(loader)
    stores = [*windows.serving.stores.values()]
    shown = []
    for number, tokens in enumerate(windows.tokens):
        store = stores[int(windows.found.store[number])]
        mine = documents.filter(pa.array(numbers == number)).to_pylist()
        borders = _borders(tokens, store.commit.eos_id)
        of_window = []
        # Where documents were rearranged, the last ones may be cut off.
        for (begin, end), about in zip(borders, mine, strict=False):
            pieces = _pieces(store, tokens[begin:end], trained[number, begin:end], sentinels)
            of_window.append(ShownDocument(begin, end, _about(about), pieces))
        start, epoch = int(windows.starts[number]), int(windows.found.epoch[number])
        shown.append(ShownWindow(number, store.uri, start, epoch, of_window))
    return shown


def learned_tokens(loader: WindowLoader, step: int, rank: int = 0) -> tuple[int, int] | None:
    """Return how many targets of a batch are learned, and how many it has; None where no store has a `loss_mask`."""
    if "loss_mask" not in channels_of_all(loader.stores.values()):
        return None
    trained = _trained(loader.windows(step, rank))[:, 1:]
    return int(trained.sum()), trained.size


def search(loader: WindowLoader, pattern: str, steps: range, ranks: range) -> Iterator[Found]:
    """Yield where a regular expression matches the text of some batches.

    Raises:
        ConfigError: If the pattern is none, or a step or rank does not exist.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"search is {pattern!r}: expected a regular expression ({error}).") from None
    for step in steps:
        for rank in ranks:
            for window in show_step(loader, step, rank):
                for document in window.documents:
                    for before, match, after in _matches(expression, document.text):
                        yield Found(step, rank, window.number, document.about, before, match, after)


def _matches(expression: re.Pattern[str], text: str) -> Iterator[tuple[str, str, str]]:
    """Yield where an expression matches a text, with what is around it in the line: before, match, after."""
    for match in expression.finditer(text):
        before = text[max(match.start() - _AROUND, 0) : match.start()]
        after = text[match.end() : match.end() + _AROUND]
        yield before.rpartition("\n")[2], match[0], after.partition("\n")[0]


def shares(loader: WindowLoader, steps: range, ranks: range, column: str) -> list[Share]:
    """Return what the windows of some steps have of each value of a column, the largest first.

    Raises:
        ConfigError: If documents have no such column, or a step or rank does not exist.
    """
    documents: dict[Any, set[tuple[str, str]]] = {}
    windows: dict[Any, set[tuple[int, int, int]]] = {}
    tokens: dict[Any, int] = {}
    for step in steps:
        for rank in ranks:
            served = loader.windows(step, rank)
            stores = served.stores
            table = served.documents
            if column not in table.column_names or column in _PLACE:
                known = sorted({*table.column_names} - {*_PLACE})
                raise ConfigError(f"by is {column!r}: expected one of {', '.join(known)}.")
            for row in table.select([*_PLACE, *{"id", column}]).to_pylist():
                value = row[column]
                documents.setdefault(value, set()).add((stores[row["window"]], row["id"]))
                windows.setdefault(value, set()).add((step, rank, row["window"]))
                tokens[value] = tokens.get(value, 0) + row["end"] - row["begin"]
    rows: list[Share] = []
    for value, count in tokens.items():
        rows.append(Share(value, len(documents[value]), len(windows[value]), count))
    return sorted(rows, key=lambda row: (-row.tokens, str(row.value)))


def _about(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in _PLACE}


def _borders(tokens: np.ndarray, eos_id: int) -> list[tuple[int, int]]:
    """Return the begins and ends of the documents in a window."""
    ends = [*(np.flatnonzero(tokens == eos_id) + 1).tolist()]
    if not ends or ends[-1] < len(tokens):
        ends.append(len(tokens))
    return [*zip([0, *ends[:-1]], ends, strict=True)]


def _trained(windows: ServedWindows) -> np.ndarray:
    """Return which tokens the model is trained to predict, (windows, context_length + 1) bool."""
    trained = np.zeros(windows.tokens.shape, bool)
    batch = windows.batch
    if "targets" in batch:
        targets = batch["targets"].numpy() >= 0
    else:
        # The models shift the labels themselves, so they never predict the first one of a row.
        labels = batch["labels"].numpy()
        targets = np.zeros(labels.shape, bool)
        targets[:, :-1] = labels[:, 1:] >= 0
    # The rows of a window follow each other.
    trained[:, 1:] = targets.reshape(len(trained), -1)
    return trained


def _sentinels(loader: WindowLoader) -> dict[int, str]:
    """Return what is shown of the sentinels of fill-in-the-middle, by id; none without it."""
    fim = loader.batching["fim"] or {}
    sentinels: dict[int, str] = {}
    for name in ("prefix", "middle", "suffix"):
        if f"{name}_id" in fim:
            sentinels[fim[f"{name}_id"]] = f"<{name}>"
    return sentinels


def _pieces(store: TokenStore, tokens: np.ndarray, trained: np.ndarray, sentinels: dict[int, str]) -> list[Piece]:
    """Cut the tokens of a document where their kind changes."""
    special = {**sentinels, store.commit.eos_id: "<eos>"}
    kinds = np.where(np.isin(tokens, [*special]), tokens.astype(np.int64), -1)
    changes = (np.diff(kinds) != 0) | (np.diff(trained.astype(np.int8)) != 0) | (kinds[1:] >= 0)
    cuts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(tokens)]
    pieces = []
    for begin, end in pairwise(cuts):
        first = int(tokens[begin])
        if first in special:
            kind: Kind = "sentinel" if first in sentinels else "eos"
            pieces.append(Piece(special[first], kind, bool(trained[begin])))
        else:
            pieces.append(Piece(_text(store, tokens[begin:end]), "text", bool(trained[begin])))
    return pieces


def _text(store: TokenStore, tokens: np.ndarray) -> str:
    try:
        text: str = store.decode(tokens)
    except LightningLanceError:
        # Without the tokenizer, as for a store in a bucket.
        return " ".join(map(str, tokens.tolist())) + " "
    return text
