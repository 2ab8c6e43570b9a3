"""The steps of a run that have a document, in the past and the future."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from lightning_lance.errors import ConfigError
from lightning_lance.serving.loader import WindowLoader

State = Literal["served", "ahead", "no batch"]


class Sighting(NamedTuple):
    """A window with a document.

    Attributes:
        step: Number of the batch; None if the window is in none (see `Sightings`).
        rank: Whose batch.
        window: Number in the batch.
        epoch: Epoch of the window's component.
        state: Whether the run has served it.
        document: Number of the document among those found.
        begin: The first token of the document in the window, before any rearrangement.
        end: The token after its last one.
    """

    step: int | None
    rank: int
    window: int
    epoch: int
    state: State
    document: int
    begin: int
    end: int


class Seen(NamedTuple):
    """What a run has of some documents.

    Attributes:
        documents: The documents: `store`, `tokens`, `id`, `language`, and the keys of `source.columns`.
        sightings: The windows with them, in the order of serving.
        until: The step up to which was looked.
        since: The step from which on: the windows before are not known, since the data, the weights or `context_length`
            changed there.
    """

    documents: list[dict[str, Any]]
    sightings: list[Sighting]
    until: int
    since: int = 0


def find_steps(loader: WindowLoader, rule: Mapping[str, str], until: int | None = None) -> Seen:
    """Return the windows of a run with some documents, from its begin on, or from where its data has last changed.

    Args:
        loader: Of the run; see `open_run`.
        rule: Key to value; all of them hold for a document. Keys are `id`, `language` and the keys of `source.columns`.
        until: The step up to which to look; by default the end of the epoch.

    Raises:
        ConfigError: If no store has documents with the keys of the rule.
        StoreError: If rows were changed by another program.
    """
    now = loader.step
    if until is None:
        until = loader.epoch_end_step
    split = loader.split
    documents: list[dict[str, Any]] = []
    sightings: list[tuple[int, Sighting]] = []
    refused: list[ConfigError] = []
    for name, store in loader.stores.items():
        try:
            found: pa.Table = store.find_documents(rule, split)
        except ConfigError as error:
            refused.append(error)
            continue
        for row in found.to_pylist():
            begin, end = row.pop("begin"), row.pop("end")
            seen = loader.find(name, begin, end, until)
            for i in range(len(seen.step)):
                step = int(seen.step[i])
                place = (int(seen.rank[i]), int(seen.window[i]), int(seen.epoch[i]))
                extent = (int(seen.begin[i]), int(seen.end[i]))
                if step < 0:
                    sighting = Sighting(None, *place, "no batch", len(documents), *extent)
                else:
                    sighting = Sighting(step, *place, _state(step, now), len(documents), *extent)
                sightings.append((int(seen.position[i]), sighting))
            documents.append({"store": store.uri, "tokens": end - begin, **row})
    # Another store may have documents with the keys.
    if len(refused) == len(loader.stores):
        raise refused[0]
    sightings.sort(key=lambda sighting: sighting[0])
    return Seen(documents, [sighting for _, sighting in sightings], until, loader.first_known_step)


def _state(step: int, now: int) -> State:
    """Return whether a step was served before the next one of a run."""
    if step < now:
        return "served"
    return "ahead"
