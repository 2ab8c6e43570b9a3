"""The selection that a run serves: streams of stores, their order, and reading their windows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NamedTuple, get_args

import numpy as np

from lightning_lance.documents.languages import check_languages
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, StoreError, described, integer, one_of, word
from lightning_lance.format.channels import CHANNELS, TOKENS, ordered
from lightning_lance.format.layout import StoreContent, StreamExtent, starts_of
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_list, pluralize
from lightning_lance.serving.document_weights import Counts, MixBy, by_tokens, check_mix_by, means_sentence
from lightning_lance.serving.growth import Content, Growth, Ordered, grown_order
from lightning_lance.serving.mixture import Mixture, WindowLocations
from lightning_lance.serving.order import Order, WindowOrder, check_order
from lightning_lance.serving.packing import PackedOrder, Windows
from lightning_lance.serving.phases import AtMaxEpochs, Phase, check_max_epochs, check_mix_schedule
from lightning_lance.serving.schedule import check_weights
from lightning_lance.store.token_store import TokenStore, stores_at

_log = logger(__name__)

# The columns that `where` can select streams by.
_STREAM_COLUMNS = ("language",)
# Tokens read at a time to count documents.
_COUNTED_AT_ONCE = 1 << 20
_EXAMPLES = {"where": "{language: [Python]}", "mix": "{Python: 0.7, Rust: 0.3}"}


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


def selected_by(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `WindowSelection`, but for its stores, in a checked state."""
    names = ("split", "context_length", "order", "seed", "shuffle_block", "where", "mix")
    optional = ("windows", "mix_schedule", "max_epochs", "at_max_epochs", "mix_by")
    return {name: state[name] for name in (*names, *optional) if name in state}


def check_windows(windows: Any, order: str, shuffle_block: int | None) -> None:
    """Check the kind of windows.

    Raises:
        ConfigError: If it is unknown, or does not go with the order.
    """
    if one_of("windows", windows, get_args(Windows)) == "packed" and (order != "shuffle" or shuffle_block is not None):
        raise ConfigError(
            "windows=packed has an order of its own: leave order and shuffle_block out (its blocks are shuffled anyway)."
        )


def check_selection(
    where: Mapping[str, Sequence[str]], mix: Mapping[str, float]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Return `where` and `mix` as plain values; see `WindowSelection`.

    Raises:
        ConfigError: If one of them is invalid for every store.
    """
    for name, value in (("where", where), ("mix", mix)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {described(value)}: expected a mapping, such as {_EXAMPLES[name]}.")
    selected = {}
    for column, values in where.items():
        chosen = _values(column, values)
        selected[word(column)] = chosen
    return selected, _named(check_weights(mix))


def _values(column: Any, values: Any) -> list[str]:
    """Return the selected values of a column, sorted and unique."""
    if column not in _STREAM_COLUMNS:
        raise ConfigError(f"where has the column {column!r}: expected {', '.join(_STREAM_COLUMNS)}.")
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigError(f"where.{column} is {values!r}: expected a list, such as [{values}].")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"where.{column} has {value!r}: expected text, such as [Python].")
    return sorted({word(value) for value in values})


def _named(weights: Mapping[str, float]) -> dict[str, float]:
    named = {}
    for name, weight in weights.items():
        # A name of another type is an unknown name, reported once the stores' names are known.
        plain = word(name) if isinstance(name, str) else name
        named[plain] = weight
    return named


def weights_of(mix: Mapping[str, float]) -> Mapping[str, float]:
    """Return the weight of each component. Without a mixture, there is one, without a name."""
    return mix or {"": 1}


class _Component(NamedTuple):
    """A component of a mixture.

    Attributes:
        stores: Index of the store of each stream.
        streams: Its streams.
    """

    stores: list[int]
    streams: list[StreamExtent]

    @property
    def identities(self) -> list[tuple[int, str]]:
        """What a stream is known by, however it grows: its store and its language."""
        return [(store, stream.language) for store, stream in zip(*self, strict=True)]


def _grown_orders(
    orders: Mapping[str, Ordered | PackedOrder],
    orders_now: Mapping[str, WindowOrder | PackedOrder],
    before: Mapping[str, _Component],
    now: Mapping[str, _Component],
    growth: Growth,
) -> dict[str, Ordered | PackedOrder]:
    """Return the orders of components whose streams have grown within an epoch.

    Args:
        orders: Their orders until then.
        orders_now: The orders of the grown streams.
        before: The streams until then.
        now: The grown streams.
        growth: Where they have grown.

    Raises:
        StoreError: If windows are packed, or the streams do not continue the earlier ones.
    """
    grown: dict[str, Ordered | PackedOrder] = {}
    for name, epoch, place in zip(now, growth.epochs, growth.places, strict=True):
        earlier = orders[name]
        later = orders_now[name]
        if isinstance(earlier, PackedOrder) or isinstance(later, PackedOrder):
            raise StoreError(
                "The state contradicts itself: packed windows do not grow within an epoch; use an unmodified checkpoint, or "
                "start without it."
            )
        grown[name] = grown_order(earlier, later, before[name].identities, now[name].identities, epoch, place)
    return grown


def check_channel_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of channels in the order of their columns. ConfigError if there is no such channel."""
    expected = f"a list of channels, of which there are {' and '.join(CHANNELS)}"
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ConfigError(f"channels is {described(names)}: expected {expected}.")
    for name in names:
        if not isinstance(name, str) or name not in CHANNELS:
            raise ConfigError(f"channels has {described(name)}: expected {expected}.")
    return ordered(names)


def channels_of_all(stores: Iterable[TokenStore], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the channels that any of some stores has, and `more`, in the order of their columns."""
    return ordered([*more, *(name for store in stores for name in store.channels)])


def check_one_tokenizer(stores: Mapping[str, TokenStore]) -> None:
    """Check that the stores were built with one tokenizer. ConfigError if not."""
    first = next(iter(stores))
    tokenizer = stores[first].commit.recipe.get("tokenizer")
    for name, store in stores.items():
        if store.commit.recipe.get("tokenizer") != tokenizer:
            raise ConfigError(
                f"The stores {first!r} and {name!r} were built with different tokenizers, but a model has one: "
                "rebuild one of the stores."
            )


@dataclass(frozen=True)
class WindowSelection:
    """A selection of windows and their order. Together with a position, it determines every batch.

    Attributes:
        stores: Name to store. All must have been built with one tokenizer.
        split: `train` or `val`.
        context_length: Tokens that the model sees; a window has one more.
        order: `shuffle`, `random`, `sequential` or `fixed`; see `WindowOrder`.
        seed: Seed of the random orders.
        shuffle_block: See `WindowOrder`.
        where: Column to the values to serve, such as `{"language": ["Python"]}`; empty serves all streams.
        mix: Weight of each language or, with several stores, of each store; empty serves all windows alike.
        windows: `stream` cuts the streams into windows; `packed` puts whole documents into them (see `PackedOrder`).
        mix_schedule: Weights from some tokens of the run on, `[[0, {...}], [1_000_000_000, {...}]]`; `mix` then has all
            components, with their first weights.
        max_epochs: The epochs that components of `mix` may have.
        at_max_epochs: `redistribute` gives the part of a component that has had its epochs to the others; `error` ends the
            run there.
        mix_by: Whether weights are shares of `tokens` or of `documents`.
        more_channels: Channels that batches have, even if none of the stores does.

    Raises:
        ConfigError: If the stores have different tokenizers, or `where` or `mix` has an unknown name.
    """

    stores: Mapping[str, TokenStore]
    split: str
    context_length: int
    order: Order
    seed: int
    shuffle_block: int | None
    where: Mapping[str, Sequence[str]]
    mix: Mapping[str, float]
    windows: Windows = "stream"
    mix_schedule: Sequence[Sequence[Any]] = ()
    max_epochs: Mapping[str, float] = field(default_factory=dict)
    at_max_epochs: AtMaxEpochs = "redistribute"
    mix_by: MixBy = "tokens"
    more_channels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.stores:
            raise ConfigError("There is no store to serve: pass one, or a mapping of names to several.")
        where, mix = check_selection(self.where, self.mix)
        context_length, order, shuffle_block = check_order(self.context_length, self.order, self.shuffle_block)
        check_windows(self.windows, order, shuffle_block)
        # Plain values: a checkpoint accepts no others, and the order hashes them as text.
        plain = {
            "split": one_of("split", self.split, SPLITS),
            "context_length": context_length,
            "order": order,
            "seed": integer("seed", self.seed),
            "shuffle_block": shuffle_block,
            "where": where,
            "mix": mix,
            "windows": word(self.windows),
            "mix_schedule": check_mix_schedule(self.mix_schedule),
            "max_epochs": check_max_epochs(self.max_epochs, [*mix]),
            "at_max_epochs": one_of("at_max_epochs", self.at_max_epochs, get_args(AtMaxEpochs)),
            "mix_by": check_mix_by(self.mix_by, mix),
            "more_channels": check_channel_names(self.more_channels),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        check_one_tokenizer(self.stores)
        for values in self.where.values():
            check_languages(values, sorted(self._languages), "The data, for where,")
        if len(self.stores) == 1:
            check_languages([*self.mix], self._components, "The data, for mix,")
            return
        for name in self.mix:
            if name not in self._components:
                raise ConfigError(f"mix has the unknown store {name!r}: expected {', '.join(self._components)}.")

    @property
    def _languages(self) -> set[str]:
        return set().union(*(store.commit.stored_languages for store in self.stores.values()))

    @property
    def _selected_languages(self) -> set[str]:
        wanted = {*self.where.get("language", ())}
        return self._languages & wanted if wanted else self._languages

    @property
    def _components(self) -> list[str]:
        """The possible components of a mixture: the names of several stores, otherwise languages."""
        return sorted(self.stores if len(self.stores) > 1 else self._selected_languages)

    @property
    def without_weight(self) -> list[str]:
        """The selected components without a weight in the mixture, which are not served."""
        return sorted({*self._components} - {*self.mix}) if self.mix else []

    def mixture(self, taken: Sequence[int] | None = None, grown: Sequence[Growth] = (), origin: int = 0) -> Mixture:
        """Return the order of the windows.

        Args:
            taken: Windows that each component has served before.
            grown: What the stores held before, where they have grown within an epoch; the earliest first.
            origin: The position in the run at which the mixture begins.

        Raises:
            StoreError: If the stores do not continue what `grown` says.
        """
        contents = [*(growth.content for growth in grown), self.content()]
        components = self._components_in(contents[0])
        orders: dict[str, Ordered | PackedOrder] = {**self._orders(components, contents[0])}
        for growth, content in zip(grown, contents[1:], strict=True):
            before = components
            components = self._components_in(content)
            orders = _grown_orders(orders, self._orders(components, content), before, components, growth)
        places = [component.stores for component in components.values()]
        phases = []
        for tokens, weights in self.mix_schedule:
            begin = -(-tokens // self.context_length)
            phases.append(Phase(begin - origin, self._shares(weights)))
        shares = self._shares(weights_of(self.mix))
        redistribute = self.at_max_epochs == "redistribute"
        return Mixture(orders, places, shares, taken, phases, self.max_epochs, redistribute)

    def _shares(self, weights: Mapping[str, float]) -> Mapping[str, float | Fraction]:
        """Return weights as shares of tokens."""
        if self.mix_by == "tokens":
            return weights
        return by_tokens(weights, self.counts())

    def counts(self) -> dict[str, Counts]:
        """Return the documents of each component, and their tokens, in both splits.

        A commit counts documents by language, so this reads nothing.
        """
        found = dict.fromkeys(weights_of(self.mix), Counts(0, 0))
        selected = self._selected_languages
        for name, store in self.stores.items():
            tokens: dict[str, int] = {}
            for stream in (*store.streams("train"), *store.streams("val")):
                tokens[stream.language] = tokens.get(stream.language, 0) + stream.num_tokens
            for language, documents in store.commit.stored_languages.items():
                component = self._component_of(name, language)
                if component in found and language in selected:
                    before = found[component]
                    found[component] = Counts(before.documents + documents, before.tokens + tokens.get(language, 0))
        return found

    @property
    def means(self) -> str:
        """The mean lengths of documents that weights go by, in a sentence; empty where they do not."""
        if self.mix_by == "tokens":
            return ""
        return means_sentence(self.counts())

    def _component_of(self, store: str, language: str) -> str:
        """Return the component that a language of a store would belong to."""
        if not self.mix:
            return ""
        return store if len(self.stores) > 1 else language

    @property
    def keeps_counts(self) -> bool:
        """Whether a state says how many windows each component has served, since its weights alone do not tell."""
        return bool(self.mix_schedule or self.max_epochs or self.mix_by == "documents")

    def orders(self) -> dict[str, WindowOrder | PackedOrder]:
        """Return the order of each component."""
        content = self.content()
        return self._orders(self._components_in(content), content)

    def _orders(self, components: Mapping[str, _Component], content: Content) -> dict[str, WindowOrder | PackedOrder]:
        return {name: self._order(name, component, content) for name, component in components.items()}

    def content(self) -> Content:
        """Return what the stores hold of the split."""
        return Content(
            [store.commit.extent.tokens for store in self.stores.values()],
            [store.streams(self.split) for store in self.stores.values()],
        )

    def _components_in(self, content: Content) -> dict[str, _Component]:
        """Return the components of the mixture by name."""
        found = {name: _Component([], []) for name in weights_of(self.mix)}
        for component, place, stream in self._selected(content):
            found[component].stores.append(place)
            found[component].streams.append(stream)
        return found

    def _selected(self, content: Content | None = None) -> Iterator[tuple[str, int, StreamExtent]]:
        """Yield the streams that are served: (component, index of the store, stream)."""
        languages = {*self.where.get("language", ())}
        streams = (self.content() if content is None else content).streams
        for place, name in enumerate(self.stores):
            for stream in streams[place]:
                if languages and stream.language not in languages:
                    continue
                component = self._component_of(name, stream.language)
                if not self.mix or component in self.mix:
                    yield component, place, stream

    @property
    def num_tokens(self) -> int:
        """Tokens of the streams that are served."""
        return sum(stream.num_tokens for _, _, stream in self._selected())

    def languages_without_text(self) -> list[str]:
        """Return the selected languages without a stream in the split."""
        languages = self._selected_languages
        if self.mix and len(self.stores) == 1:
            languages &= {*self.mix}
        elif self.mix:
            languages &= set().union(*(self.stores[name].commit.stored_languages for name in self.mix))
        return sorted(languages - {stream.language for _, _, stream in self._selected()})

    def stores_without_text(self) -> list[str]:
        """Return the names of the stores, of several that are served, without a stream in the split."""
        served = self.mix or self.stores
        if len(self.stores) == 1 or len(served) == 1:
            return []
        with_text = {[*self.stores][place] for _, place, _ in self._selected()}
        return sorted({*served} - with_text)

    def too_short(self) -> TooShort | None:
        """Count the streams that are shorter than a window, and so never served; None if there are none."""
        selected = list(self._selected())
        short = [(place, stream) for _, place, stream in selected if stream.num_tokens <= self.context_length]
        if not short:
            return None
        documents = 0
        for place, store in enumerate(self.stores.values()):
            own = [stream for owner, stream in short if owner == place]
            documents += _count_documents(store, self.split, own)
        return TooShort(
            streams=len(short),
            of_streams=len(selected),
            tokens=sum(stream.num_tokens for _, stream in short),
            documents=documents,
            languages=sorted({stream.language for _, stream in short}),
        )

    def _order(self, name: str, component: _Component, content: Content) -> WindowOrder | PackedOrder:
        key: list[object] = []
        for store, tokens in zip(self.stores.values(), content.tokens, strict=True):
            key += [store.fingerprint, tokens, *store.commit.extent.forgotten]
        key.append(self.seed)
        if self.mix:
            key.append(name)
        if self.windows == "packed":
            eos_id = next(iter(self.stores.values())).commit.eos_id
            return PackedOrder(
                component.streams,
                component.stores,
                self.context_length,
                tuple(key),
                self._read_tokens,
                eos_id,
                channels=self.channels,
                read_channel=self._read_channel,
            )
        return WindowOrder(component.streams, self.context_length, self.order, tuple(key), self.shuffle_block)

    def _read_tokens(self, place: int, start: int, length: int) -> np.ndarray:
        """Return neighbouring tokens of a store's split, (length,)."""
        return self._read_channel(TOKENS, place, start, length)

    def _read_channel(self, column: str, place: int, start: int, length: int) -> np.ndarray:
        """Return what a column has for neighbouring tokens of a store's split, (length,)."""
        store = [*self.stores.values()][place]
        values: np.ndarray = self._read_store(store, column, np.asarray([start]), length)[0]
        return values

    def _read_store(self, store: TokenStore, column: str, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the tokens of windows of a store, or what a channel has for them, (n, length)."""
        if column == TOKENS:
            return store.read(starts, length, self.split)
        if column in store.channels:
            return store.read_channel(column, starts, length, self.split)
        return np.full((len(starts), length), CHANNELS[column].absent, self.dtype_of(column))

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that batches have: those of any of the stores, and those that were asked for."""
        return channels_of_all(self.stores.values(), self.more_channels)

    def without_channel(self, channel: str) -> list[str]:
        """Return the names of the stores that lack a channel."""
        return [name for name, store in self.stores.items() if channel not in store.channels]

    def dtype_of(self, column: str) -> np.dtype[Any]:
        """Return the dtype of windows: one that fits the tokens of all stores, or that of a channel."""
        if column == TOKENS:
            return np.result_type(*(store.dtype for store in self.stores.values()))
        channel = CHANNELS[column]
        return channel.served if channel.served == np.bool_ else channel.stored

    def read(self, found: WindowLocations, column: str = TOKENS) -> np.ndarray:
        """Return windows that are pieces of the streams: (n, context_length + 1) tokens, in the dtype of the stores.

        With `column`, what a channel has for these tokens.
        """
        stores = list(self.stores.values())
        length = self.context_length + 1
        if len(stores) == 1:
            return self._read_store(stores[0], column, found.start, length)
        windows = np.empty((len(found.start), length), self.dtype_of(column))
        for place, store in enumerate(stores):
            mine = np.flatnonzero(found.store == place)
            if len(mine):
                windows[mine] = self._read_store(store, column, found.start[mine], length)
        return windows

    def streams_of(self, found: WindowLocations) -> list[tuple[str, str]]:
        """Return the store and language of each window, by name."""
        of_windows = [("", "")] * len(found.start)
        for place, (name, store) in enumerate(self.stores.items()):
            streams = store.streams(self.split)
            mine = np.flatnonzero(found.store == place)
            held = np.searchsorted(starts_of(streams), found.start[mine], side="right") - 1
            for window, stream in zip(mine.tolist(), held.tolist(), strict=True):
                of_windows[window] = (name, streams[stream].language)
        return of_windows

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the sequence of windows, in plain types, for a checkpoint."""
        return {
            "stores": [_store_entry(name, store) for name, store in self.stores.items()],
            "split": self.split,
            "context_length": self.context_length,
            "order": self.order,
            "seed": self.seed,
            "shuffle_block": self.shuffle_block,
            "where": {column: sorted(values) for column, values in self.where.items()},
            "mix": {name: float(weight) for name, weight in self.mix.items()},
            **self._describe_options(),
        }

    def _describe_options(self) -> dict[str, Any]:
        """Return what not every state has."""
        found: dict[str, Any] = {}
        if self.windows != "stream":
            found["windows"] = self.windows
        if self.mix_schedule:
            found["mix_schedule"] = [[tokens, dict(weights)] for tokens, weights in self.mix_schedule]
        if self.max_epochs:
            found["max_epochs"] = dict(self.max_epochs)
            found["at_max_epochs"] = self.at_max_epochs
        if self.mix_by != "tokens":
            found["mix_by"] = self.mix_by
        return found

    def differences(self, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Compare with the description in a state, and return the fields that change the sequence: (state's value, own).

        Not compared are the tokens of the stores, whose earlier versions can be opened unless documents were forgotten, and
        `context_length` and the weights of `mix`, which may change during a run.
        """
        before = _comparable(state)
        now = _comparable(self.describe())
        if before["stores.fingerprint"] == now["stores.fingerprint"]:
            entries = zip(self.stores.values(), state["stores"], strict=True)
            if not any(store.forgot(extent_in(entry)) for store, entry in entries):
                del before["stores.forgotten"]
        else:
            del before["stores.forgotten"]
        return _changes(before, now)

    def pinned(self, state: Mapping[str, Any]) -> WindowSelection:
        """Return this selection with the tokens that the stores had in a state. StoreError if they never had them."""
        return replace(self, stores=stores_at(self.stores, map(extent_in, state["stores"])))


def known_differences(
    state: Mapping[str, Any], selected: Mapping[str, Any], fingerprints: Mapping[str, str | None]
) -> dict[str, tuple[Any, Any]]:
    """Compare a state with what a run will serve, before its stores are there; see `WindowSelection.differences`.

    Args:
        state: Of a loader, checked.
        selected: The arguments of the run's `WindowSelection`, but for its stores.
        fingerprints: Name to fingerprint of its stores, in their order; None where it is not known yet.
    """
    stores: list[dict[str, Any]] = [
        {"name": name, "fingerprint": known, "forgotten": []} for name, known in fingerprints.items()
    ]
    before = _comparable(state)
    now = _comparable({"split": "train", **selected, "stores": stores})
    if before["stores.name"] == now["stores.name"]:
        for place, fingerprint in enumerate(fingerprints.values()):
            if fingerprint is None:
                now["stores.fingerprint"][place] = before["stores.fingerprint"][place]
    elif None in now["stores.fingerprint"]:
        del before["stores.fingerprint"]
    # Only a store that is there says what it forgot.
    del before["stores.forgotten"]
    return _changes(before, now)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields of `before` that have another value now: (value before, value now)."""
    return {name: (value, now[name]) for name, value in before.items() if value != now[name]}


def _store_entry(name: str, store: TokenStore) -> dict[str, Any]:
    return {
        "name": name,
        "uri": store.uri,
        "fingerprint": store.fingerprint,
        "tokens": store.commit.tokens,
        "forgotten": [*store.commit.extent.forgotten],
        "version": store.version,
    }


def _comparable(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description that `WindowSelection.differences` compares."""
    fields = {name: described[name] for name in ("split", "order", "seed", "shuffle_block", "where")}
    fields["mix"] = sorted(described["mix"])
    fields["windows"] = described.get("windows", "stream")
    for name in ("name", "fingerprint", "forgotten"):
        fields[f"stores.{name}"] = [entry[name] for entry in described["stores"]]
    return fields


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


# Warnings that were logged. A run makes several loaders, and logs each warning once.
_logged: set[object] = set()


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
    missing = [("", serving.languages_without_text()), ("the corpus ", serving.stores_without_text())]
    for kind, names in missing:
        if names:
            named = format_list([name or "(no language)" for name in names])
            _log.warning("Split %r has no text of %s%s: %s.", serving.split, kind, named, cure)
    short = serving.too_short()
    if short is not None:
        _log.warning("%s", _short_streams_sentence(short, serving))


def warn_of_absent_channels(serving: WindowSelection) -> None:
    """Log what is taken for a channel that some of the stores lack."""
    stores = serving.stores
    for channel in channels_of_all(stores.values()):
        for name in serving.without_channel(channel):
            key = repr((stores[name].uri, name, channel))
            if key not in _logged:
                _logged.add(key)
                _log.warning("The store %r has no %s: %s.", name, channel, CHANNELS[channel].means)


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


def entries_by_name(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of the stores in a description."""
    return {entry["name"]: entry for entry in state["stores"]}


def extent_in(described: Mapping[str, Any]) -> StoreContent:
    """Return the content of a store from its entry in a description (`WindowSelection.describe`)."""
    return StoreContent(described["tokens"], tuple(described["forgotten"]))
