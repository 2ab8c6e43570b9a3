"""Warnings of what is selected and never served: languages and stores without text, short streams, absent channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_lance.format.channels import CHANNELS
from lightning_lance.format.layout import StreamExtent
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_list, pluralize
from lightning_lance.serving.reading import channels_of_all
from lightning_lance.serving.selection import WindowSelection, languages_of
from lightning_lance.store.token_store import TokenStore

_log = logger(__name__)

# Tokens read at a time to count documents.
_COUNTED_AT_ONCE = 1 << 20
# Warnings that were logged. A run makes several loaders, and logs each warning once.
_logged: set[object] = set()


class TooShort(NamedTuple):
    """Streams that are shorter than a window.

    Attributes:
        streams: The number of these streams.
        of_streams: The number of all selected streams.
        tokens: Tokens in them, EOS included.
        documents: Documents in them.
        languages: Their languages, sorted.
    """

    streams: int
    of_streams: int
    tokens: int
    documents: int
    languages: list[str]


def warn_of_unserved_text(serving: WindowSelection) -> None:
    """Log a warning about selected languages and stores without text, and about streams that are shorter than a window."""
    streams = [[store.uri, store.commit.extent] for store in serving.stores.values()]
    key = repr((streams, serving.split, serving.context_length, serving.where, [*serving.mix]))
    if not serving.num_tokens or key in _logged:
        return
    _logged.add(key)
    cure = "store more documents"
    if serving.split == "val":
        cure += ", or raise val_fraction (which builds another store)"
    missing = [("", languages_without_text(serving)), ("the corpus ", stores_without_text(serving))]
    for kind, names in missing:
        if names:
            named = format_list([name or "(no language)" for name in names])
            _log.warning("Split %r has no text of %s%s: %s.", serving.split, kind, named, cure)
    short = too_short(serving)
    if short is not None:
        _log.warning("%s", _short_streams_sentence(short, serving))


def warn_of_absent_channels(serving: WindowSelection) -> None:
    """Log what is taken for a channel that some of the stores lack."""
    stores = serving.stores
    for channel in channels_of_all(stores.values()):
        for name, store in stores.items():
            if channel in store.channels:
                continue
            key = repr((store.uri, name, channel))
            if key not in _logged:
                _logged.add(key)
                _log.warning("The store %r has no %s: %s.", name, channel, CHANNELS[channel].means)


def too_short(serving: WindowSelection) -> TooShort | None:
    """Count the streams that are shorter than a window, and so never served; None if there are none."""
    streams = 0
    of_streams = 0
    tokens = 0
    languages: set[str] = set()
    of_store: dict[int, list[StreamExtent]] = {}
    for _, place, stream in serving.served_streams():
        of_streams += 1
        if stream.num_tokens <= serving.context_length:
            streams += 1
            tokens += stream.num_tokens
            languages.add(stream.language)
            of_store.setdefault(place, []).append(stream)
    if not streams:
        return None
    stores = [*serving.stores.values()]
    documents = 0
    for place, own in of_store.items():
        documents += _count_documents(stores[place], serving.split, own)
    return TooShort(
        streams=streams,
        of_streams=of_streams,
        tokens=tokens,
        documents=documents,
        languages=sorted(languages),
    )


def languages_without_text(serving: WindowSelection) -> list[str]:
    """Return the selected languages without a stream in the split."""
    languages = {*serving.selected_languages}
    if serving.mix and len(serving.stores) == 1:
        languages &= {*serving.mix}
    elif serving.mix:
        served = [serving.stores[name] for name in serving.mix]
        languages &= languages_of(served)
    for _, _, stream in serving.served_streams():
        languages.discard(stream.language)
    return sorted(languages)


def stores_without_text(serving: WindowSelection) -> list[str]:
    """Return the names of the stores, of several that are served, without a stream in the split."""
    served = {*(serving.mix or serving.stores)}
    if len(serving.stores) == 1 or len(served) == 1:
        return []
    names = [*serving.stores]
    for _, place, _ in serving.served_streams():
        served.discard(names[place])
    return sorted(served)


def _count_documents(store: TokenStore, split: str, streams: Sequence[StreamExtent]) -> int:
    """Return the number of documents in some streams, each of which ends with EOS."""
    documents = 0
    offsets: list[np.ndarray] = []
    tokens = 0
    for number, stream in enumerate(streams, start=1):
        offsets.append(np.arange(stream.start, stream.start + stream.num_tokens))
        tokens += stream.num_tokens
        if tokens >= _COUNTED_AT_ONCE or number == len(streams):
            found = store.read(np.concatenate(offsets), 1, split)
            documents += int(np.count_nonzero(found == store.commit.eos_id))
            offsets.clear()
            tokens = 0
    return documents


def _short_streams_sentence(short: TooShort, serving: WindowSelection) -> str:
    are = "is" if short.streams == 1 else "are"
    lost = f"{pluralize(short.tokens, 'token')} of {pluralize(short.documents, 'document')}"
    languages = format_list(list(filter(None, short.languages)))
    if languages:
        lost += f" ({languages})"
    return (
        f"{short.streams:,} of {pluralize(short.of_streams, 'stream')} of split {serving.split!r} {are} shorter than a window "
        f"of {serving.context_length:,} + 1 tokens and {are} never served: {lost}; lower context_length, or store more "
        "documents."
    )
