"""What a run serves: which streams of which stores, in which order, and the windows themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lightning_lance.documents.languages import check_languages
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, described, integer, one_of, word
from lightning_lance.format.layout import StoreContent, StreamExtent
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_list, pluralize
from lightning_lance.serving.mixture import Mixture, WindowLocations, check_weights
from lightning_lance.serving.order import Order, WindowOrder, check_order
from lightning_lance.store.token_store import TokenStore

_log = logger(__name__)

# The columns of a stream by which `where` selects.
_STREAM_COLUMNS = ("language",)
# Tokens that are read at a time to count documents.
_COUNTED_AT_ONCE = 1 << 20
_EXAMPLES = {"where": "{language: [Python]}", "mix": "{Python: 0.7, Rust: 0.3}"}


class TooShort(NamedTuple):
    """Streams that are shorter than a window.

    Attributes:
        streams: How many there are.
        of_streams: Streams that are served or would be.
        tokens: Tokens in them, EOS included.
        documents: Documents in them.
        languages: Their languages, sorted.
    """

    streams: int
    of_streams: int
    tokens: int
    documents: int
    languages: list[str]


def check_selection(
    where: Mapping[str, Sequence[str]], mix: Mapping[str, float]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Return `where` and `mix` of plain values; see `WindowSelection`.

    Raises:
        ConfigError: If one of them selects nothing in any store.
    """
    for name, value in (("where", where), ("mix", mix)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {described(value)}: expected a mapping, such as {_EXAMPLES[name]}.")
    selected = {column: _values(column, values) for column, values in where.items()}
    return {word(column): values for column, values in selected.items()}, _named(check_weights(mix))


def _values(column: Any, values: Any) -> list[str]:
    """Return the values of a column that are wanted, sorted, each once."""
    if column not in _STREAM_COLUMNS:
        raise ConfigError(f"where has the column {column!r}: streams are told apart by {', '.join(_STREAM_COLUMNS)}.")
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigError(f"where.{column} is {values!r}: expected a list, such as [{values}].")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"where.{column} has {value!r}: expected words, such as [Python].")
    return sorted({word(value) for value in values})


def _named(weights: Mapping[str, float]) -> dict[str, float]:
    # A name of another type is refused with the names that there are, once these are known.
    return {word(name) if isinstance(name, str) else name: weight for name, weight in weights.items()}


@dataclass(frozen=True)
class WindowSelection:
    """A selection of windows and its order: with a position, all that decides what a run sees.

    Attributes:
        stores: Name to store. All must have been made with one tokenizer.
        split: `train` or `val`.
        context_length: Tokens that the model sees; a window has one more.
        order: `shuffle`, `random`, `sequential` or `fixed`; see `WindowOrder`.
        seed: Of the random orders.
        shuffle_block: See `WindowOrder`.
        where: Column of the streams to the values to serve, such as `{"language": ["Python"]}`; empty serves all.
        mix: Weight of each language, or, with several stores, of each store; empty serves all windows alike.

    Raises:
        ConfigError: If the stores do not belong together, or `where` or `mix` name what is not there.
    """

    stores: Mapping[str, TokenStore]
    split: str
    context_length: int
    order: Order
    seed: int
    shuffle_block: int | None
    where: Mapping[str, Sequence[str]]
    mix: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.stores:
            raise ConfigError("There is no store to serve: give one, or name to store for several.")
        where, mix = check_selection(self.where, self.mix)
        context_length, order, shuffle_block = check_order(self.context_length, self.order, self.shuffle_block)
        # A checkpoint keeps plain values only, and the order goes by how they are spelled.
        plain = {
            "split": one_of("split", self.split, SPLITS),
            "context_length": context_length,
            "order": order,
            "seed": integer("seed", self.seed),
            "shuffle_block": shuffle_block,
            "where": where,
            "mix": mix,
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        first = next(iter(self.stores.values()))
        for name, store in self.stores.items():
            if store.commit.recipe.get("tokenizer") != first.commit.recipe.get("tokenizer"):
                raise ConfigError(
                    f"The stores {next(iter(self.stores))!r} and {name!r} were made with different tokenizers: a model reads "
                    "one of them only; build one of the stores anew."
                )
        for values in self.where.values():
            check_languages(values, sorted(self._languages), "The data, for where,")
        if len(self.stores) == 1:
            check_languages([*self.mix], self._components, "The data, for mix,")
        elif unknown := [name for name in self.mix if name not in self._components]:
            raise ConfigError(f"mix has the store {unknown[0]!r}: there are {', '.join(self._components)}.")

    @property
    def _languages(self) -> set[str]:
        return {language for store in self.stores.values() for language in store.commit.stored_languages}

    @property
    def _selected_languages(self) -> set[str]:
        wanted = {*self.where.get("language", ())}
        return self._languages & wanted if wanted else self._languages

    @property
    def _components(self) -> list[str]:
        """What a mixture may have: the names of several stores, else languages."""
        return sorted(self.stores) if len(self.stores) > 1 else sorted(self._selected_languages)

    @property
    def left_out(self) -> list[str]:
        """What is there and selected, and has no weight in the mixture: no window shows it."""
        return [name for name in self._components if name not in self.mix] if self.mix else []

    def mixture(self, taken: Sequence[int] | None = None) -> Mixture:
        """Make the order. `taken`: windows that each component has given before."""
        streams: dict[str, list[StreamExtent]] = {}
        places: dict[str, list[int]] = {}
        for component, place, stream in self._selected():
            streams.setdefault(component, []).append(stream)
            places.setdefault(component, []).append(place)
        names = list(self.mix) if self.mix else [""]
        orders = {name: self._order(streams.get(name, []), [name] if self.mix else []) for name in names}
        return Mixture(orders, [places.get(name, []) for name in names], self.mix or {"": 1}, taken)

    def _selected(self) -> Iterator[tuple[str, int, StreamExtent]]:
        """Go through the streams that are served: (component, place of the store, stream)."""
        wanted = {*self.where.get("language", ())}
        for place, (name, store) in enumerate(self.stores.items()):
            for stream in store.streams(self.split):
                component = "" if not self.mix else name if len(self.stores) > 1 else stream.language
                if (not wanted or stream.language in wanted) and (not self.mix or component in self.mix):
                    yield component, place, stream

    @property
    def num_tokens(self) -> int:
        """Tokens of the streams that are served."""
        return sum(stream.num_tokens for _, _, stream in self._selected())

    def languages_without_text(self) -> list[str]:
        """Return the languages that are selected and have no stream in the split."""
        languages = self._selected_languages
        if self.mix and len(self.stores) == 1:
            languages = languages & {*self.mix}
        elif self.mix:
            languages = languages & {word for name in self.mix for word in self.stores[name].commit.stored_languages}
        return sorted(languages - {stream.language for _, _, stream in self._selected()})

    def too_short(self) -> TooShort | None:
        """Count the streams that have not one window, so that no epoch shows them; None if there are none."""
        stores = list(self.stores.values())
        selected = list(self._selected())
        short = [(stores[place], stream) for _, place, stream in selected if stream.num_tokens <= self.context_length]
        if not short:
            return None
        documents = 0
        for store in stores:
            documents += _count_documents(store, self.split, [stream for owner, stream in short if owner is store])
        return TooShort(
            streams=len(short),
            of_streams=len(selected),
            tokens=sum(stream.num_tokens for _, stream in short),
            documents=documents,
            languages=sorted({stream.language for _, stream in short}),
        )

    def _order(self, streams: Sequence[StreamExtent], names: list[str]) -> WindowOrder:
        made = [part for store in self.stores.values() for part in (store.fingerprint, *_key(store.commit.extent))]
        key = (*made, self.seed, *names)
        return WindowOrder(streams, self.context_length, self.order, key, self.shuffle_block)

    def read(self, found: WindowLocations) -> np.ndarray:
        """Read windows: (n, context_length + 1) tokens, in the dtype of the stores."""
        stores = list(self.stores.values())
        if len(stores) == 1:
            return stores[0].read(found.start, self.context_length + 1, self.split)
        dtype = np.result_type(*(store.dtype for store in stores))
        windows = np.empty((len(found.start), self.context_length + 1), dtype)
        for place, store in enumerate(stores):
            mine = np.flatnonzero(found.store == place)
            if len(mine):
                windows[mine] = store.read(found.start[mine], self.context_length + 1, self.split)
        return windows

    def describe(self) -> dict[str, Any]:
        """Give all that decides the sequence, in plain types, to be kept in a checkpoint."""
        return {
            "stores": [
                {
                    "name": name,
                    "uri": store.uri,
                    "fingerprint": store.fingerprint,
                    "tokens": store.commit.tokens,
                    "forgotten": [*store.commit.extent.forgotten],
                    "version": store.version,
                }
                for name, store in self.stores.items()
            ],
            "split": self.split,
            "context_length": self.context_length,
            "order": self.order,
            "seed": self.seed,
            "shuffle_block": self.shuffle_block,
            "where": {column: sorted(values) for column, values in self.where.items()},
            "mix": {name: float(weight) for name, weight in self.mix.items()},
        }

    def differences(self, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Compare with a description: field to (its value, mine), for those that make another sequence of windows.

        Not among them: the tokens of the stores, to which one can go back, unless some were forgotten; `context_length` and
        the weights of `mix`, which may change on the way.
        """
        mine = self.describe()
        pairs = {name: (state[name], mine[name]) for name in ("split", "order", "seed", "shuffle_block", "where")}
        pairs["mix"] = (sorted(state["mix"]), sorted(mine["mix"]))
        for field in ("name", "fingerprint"):
            pairs[f"stores.{field}"] = (
                [store[field] for store in state["stores"]],
                [store[field] for store in mine["stores"]],
            )
        if pairs["stores.fingerprint"][0] == pairs["stores.fingerprint"][1]:
            extents = [extent_in(entry) for entry in state["stores"]]
            forgot = [store.forgot(extent) for store, extent in zip(self.stores.values(), extents, strict=True)]
            if any(forgot):
                now = [[*store.commit.extent.forgotten] for store in self.stores.values()]
                pairs["stores.forgotten"] = ([[*extent.forgotten] for extent in extents], now)
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def pinned(self, state: Mapping[str, Any]) -> WindowSelection:
        """Go back to the tokens that the stores had when a description was made. StoreError if they never had."""
        pairs = zip(self.stores.items(), map(extent_in, state["stores"]), strict=True)
        return replace(self, stores={name: store.at(extent) for (name, store), extent in pairs})


def _count_documents(store: TokenStore, split: str, streams: Sequence[StreamExtent]) -> int:
    """Count the documents of some streams: each ends with EOS."""
    documents = 0
    waiting: list[np.ndarray] = []
    tokens = 0
    for number, stream in enumerate(streams, start=1):
        waiting.append(np.arange(stream.start, stream.start + stream.num_tokens))
        tokens += stream.num_tokens
        if tokens >= _COUNTED_AT_ONCE or number == len(streams):
            found = store.read(np.concatenate(waiting), 1, split)
            documents += int(np.count_nonzero(found == store.commit.eos_id))
            waiting, tokens = [], 0
    return documents


def warn_of_unserved_text(serving: WindowSelection) -> None:
    """Log which of the selected text no window shows, and what would help."""
    if not serving.num_tokens:
        return
    if languages := serving.languages_without_text():
        cure = "store more documents"
        if serving.split == "val":
            cure += ", or raise val_fraction (which builds another store)"
        _log.warning("Split %r has no text of %s: %s.", serving.split, format_list(languages), cure)
    short = serving.too_short()
    if short is not None:
        _log.warning("%s", _short_streams_sentence(short, serving))


def _short_streams_sentence(short: TooShort, serving: WindowSelection) -> str:
    are = "is" if short.streams == 1 else "are"
    lost = f"{pluralize(short.tokens, 'token')} of {pluralize(short.documents, 'document')}"
    named = [language for language in short.languages if language]
    whose = f" ({format_list(named)})" if named else ""
    return (
        f"{short.streams:,} of {pluralize(short.of_streams, 'stream')} of split {serving.split!r} {are} shorter than a window "
        f"of {serving.context_length:,} + 1 tokens and {are} never served: {lost}{whose}; lower context_length, or store more "
        "documents."
    )


def extent_in(described: Mapping[str, Any]) -> StoreContent:
    """Read what a store held from its entry in a description (`WindowSelection.describe`)."""
    return StoreContent(described["tokens"], tuple(described["forgotten"]))


def _key(extent: StoreContent) -> tuple[object, ...]:
    # With nothing forgotten, the tokens alone.
    return (extent.tokens, *extent.forgotten)
