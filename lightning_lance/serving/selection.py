"""The selection that a run serves: streams of stores, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, get_args

from lightning_lance.documents.languages import check_languages
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, integer, one_of, word
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.description import changes, comparable, extent_in, store_entry
from lightning_lance.serving.ordering.components import Component, grown_orders, weights_of
from lightning_lance.serving.ordering.document_weights import Counts, MixBy, by_tokens, check_mix_by, means_sentence
from lightning_lance.serving.ordering.growth import Content, Growth, Ordered
from lightning_lance.serving.ordering.mixture import Mixture
from lightning_lance.serving.ordering.order import Order, WindowOrder, check_order
from lightning_lance.serving.ordering.packing import PackedOrder, Windows
from lightning_lance.serving.ordering.phases import AtMaxEpochs, Phase, check_max_epochs, check_mix_schedule
from lightning_lance.serving.reading import WindowReader
from lightning_lance.serving.selection_checks import (
    check_channel_names,
    check_one_tokenizer,
    check_selection,
    check_windows,
)
from lightning_lance.store.token_store import TokenStore, stores_at


def languages_of(stores: Iterable[TokenStore]) -> set[str]:
    """Return the languages of some stores, in any split."""
    languages: set[str] = set()
    for store in stores:
        languages.update(store.commit.stored_languages)
    return languages


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
        return languages_of(self.stores.values())

    @property
    def selected_languages(self) -> set[str]:
        """The languages of the stores that `where` selects."""
        wanted = {*self.where.get("language", ())}
        return self._languages & wanted if wanted else self._languages

    @property
    def _components(self) -> list[str]:
        """The possible components of a mixture: the names of several stores, otherwise languages."""
        return sorted(self.stores if len(self.stores) > 1 else self.selected_languages)

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
        contents = [growth.content for growth in grown]
        contents.append(self.content())
        components = self._components_in(contents[0])
        orders: dict[str, Ordered | PackedOrder] = {**self._orders(components, contents[0])}
        for growth, content in zip(grown, contents[1:], strict=True):
            before = components
            components = self._components_in(content)
            orders = grown_orders(orders, self._orders(components, content), before, components, growth)
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
        selected = self.selected_languages
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

    def _orders(self, components: Mapping[str, Component], content: Content) -> dict[str, WindowOrder | PackedOrder]:
        return {name: self._order(name, component, content) for name, component in components.items()}

    def content(self) -> Content:
        """Return what the stores hold of the split."""
        tokens = []
        streams = []
        for store in self.stores.values():
            tokens.append(store.commit.extent.tokens)
            streams.append(store.streams(self.split))
        return Content(tokens, streams)

    def _components_in(self, content: Content) -> dict[str, Component]:
        """Return the components of the mixture by name."""
        found: dict[str, Component] = {}
        for name in weights_of(self.mix):
            found[name] = Component([], [])
        for component, place, stream in self.served_streams(content):
            found[component].stores.append(place)
            found[component].streams.append(stream)
        return found

    def served_streams(self, content: Content | None = None) -> Iterator[tuple[str, int, StreamExtent]]:
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
        return sum(stream.num_tokens for _, _, stream in self.served_streams())

    def _order(self, name: str, component: Component, content: Content) -> WindowOrder | PackedOrder:
        key: list[object] = []
        for store, tokens in zip(self.stores.values(), content.tokens, strict=True):
            key += [store.fingerprint, tokens, *store.commit.extent.forgotten]
        key.append(self.seed)
        if self.mix:
            key.append(name)
        if self.windows == "packed":
            eos_id = next(iter(self.stores.values())).commit.eos_id
            reader = self.reader
            return PackedOrder(
                component.streams,
                component.stores,
                self.context_length,
                tuple(key),
                reader.read_tokens,
                eos_id,
                channels=reader.channels,
                read_channel=reader.read_channel,
            )
        return WindowOrder(component.streams, self.context_length, self.order, tuple(key), self.shuffle_block)

    @property
    def reader(self) -> WindowReader:
        """What reads the windows."""
        return WindowReader(self.stores, self.split, self.context_length, self.more_channels)

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the sequence of windows, in plain types, for a checkpoint."""
        return {
            "stores": [store_entry(name, store) for name, store in self.stores.items()],
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
        before = comparable(state)
        now = comparable(self.describe())
        same_stores = before["stores.fingerprint"] == now["stores.fingerprint"]
        if not same_stores or not self._forgot_since(state):
            del before["stores.forgotten"]
        return changes(before, now)

    def _forgot_since(self, state: Mapping[str, Any]) -> bool:
        """Return whether documents of the very stores of a state were forgotten since."""
        for store, entry in zip(self.stores.values(), state["stores"], strict=True):
            extent = extent_in(entry)
            if store.forgot(extent):
                return True
        return False

    def pinned(self, state: Mapping[str, Any]) -> WindowSelection:
        """Return this selection with the tokens that the stores had in a state. StoreError if they never had them."""
        return replace(self, stores=stores_at(self.stores, map(extent_in, state["stores"])))
