"""The Lightning plugin. This is the only module that knows Lightning."""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

from lightning import LightningDataModule

from lightning_lance.build.plan import Budget, Plan, check_same, make_plan, open_prepared, tokenizer_beside, wait_for
from lightning_lance.build.runner import check_origin, check_serves, prepare
from lightning_lance.documents.screening import MAX_DOCUMENT_BYTES, LongDocuments
from lightning_lance.documents.splits import check_val_fraction
from lightning_lance.errors import StoreError, whole_number
from lightning_lance.location import checked_storage_options, given_place, is_local
from lightning_lance.maintenance.integrity import raise_if_damaged
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_tokens
from lightning_lance.process.ranks import SETTING_UP, broadcast_from_rank_zero, is_rank_zero, raise_on_all_ranks
from lightning_lance.serving.batches import Batch
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.serving.options import BatchFormat, Extend, OnDataChange, Remainder, check_options
from lightning_lance.serving.order import Order
from lightning_lance.serving.selection import WindowSelection, extent_in
from lightning_lance.serving.states import checked_state
from lightning_lance.sources.local_paths import data_folder
from lightning_lance.sources.source import Source
from lightning_lance.store.token_store import KEEP_TRIES, TokenStore, not_kept
from lightning_lance.tokenization.configs import TokenizerConfig
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.type_hints import as_text, check_arguments

_log = logger(__name__)

# Of the order of validation windows: not the run's own, so that runs with other seeds validate on the same sample.
_VALIDATION_SEED = 0


def _given(uri: str | os.PathLike[str] | Mapping[str, str] | None) -> str | dict[str, str] | None:
    """Return places of stores as they are now, whatever folder the process changes to later."""
    if isinstance(uri, Mapping):
        return {name: given_place(place, f"uri.{name}") for name, place in uri.items()}
    return given_place(uri) if uri else None


@contextmanager
def _failing_together() -> Iterator[None]:
    """Raise on all ranks what fails on one of them."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    raise_on_all_ranks(failure, SETTING_UP)


class LanceDataModule(LightningDataModule):
    """Builds a token store once, and serves random windows of it to any LightningModule.

    Batches are dicts; see `make_batch`. Ranks get disjoint windows, also with a default Trainer. A checkpoint holds the
    place in the data, and `fit(ckpt_path=...)` continues after the last batch that was trained on.

    Args:
        source: Where the documents come from; None serves a store that was built elsewhere (needs `uri`).
        tokenizer: Which tokenizer; None with `source=None`.
        context_length: Tokens that the model sees. Changing it rebuilds nothing.
        batch_size: Windows per batch and rank.
        data_dir: Folder of the stores whose place is derived, and of trained tokenizers.
        uri: Place of the store, if not derived from the fingerprint; without a source also name to place, for several.
        max_documents: Budget in documents. A larger one continues the store.
        max_tokens: Budget in tokens.
        val_fraction: Share of the documents (of the repositories, where known) that is for validation.
        max_document_bytes: Longest text that is encoded at once, in bytes of UTF-8.
        long_documents: What becomes of longer ones: `split` encodes them in pieces, `skip` leaves them out.
        commit_seconds: A build commits at least so often: what a kill costs.
        durable: Whether each commit of a build is forced onto the disk, so that a power cut costs no more; see `prepare`.
        rebuild: Whether a store of another recipe at `uri` is replaced; see `prepare`.
        min_tokens: Builds nothing, but waits until a build that runs elsewhere has committed so many tokens, and trains on
            those; see `extend`.
        order: `shuffle`, `random`, `sequential` or `fixed`, for training. Validation, test and prediction go through all
            `val` windows in one `fixed` order, whatever the seed: the same in every round and for any number of ranks.
        seed: Of the order.
        shuffle_block: Windows that stay together in `shuffle`, for disks and buckets that want longer reads.
        where: Streams to serve, such as `{"language": ["Python"]}`; rebuilds nothing.
        mix: Weights of languages, such as `{"Python": 0.7, "Rust": 0.3}`, or of the names in `uri`, for training. What has no
            weight is not validated either; what has one is, each window once.
        remainder: `drop`, `wrap` or `short`: the windows at an epoch's end that fill no batch; see `WindowLoader`.
        extend: `never`, or `next_epoch` to adopt what was appended to the store when an epoch begins.
        on_data_change: `error`, `restart` or `continue`: a checkpoint of other data; see `WindowLoader`.
        batch_format: `default` or `huggingface`.
        document_ids: With `position_ids`, `cu_seqlens` and `mask_boundary_targets`: more in a batch; see `Collator`.
        fim: Fill-in-the-middle, in training: the tokenizer's tokens `prefix_token`, `middle_token`, `suffix_token`, and
            `fim_rate` and `spm_rate`; see `FillInTheMiddle`.
        verify: Hold every file of the store against its checksum first.
        storage_options: Credentials and such, where `uri` is in an object store.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    def __init__(
        self,
        source: Source | None,
        tokenizer: TokenizerConfig | None,
        context_length: int,
        batch_size: int,
        *,
        data_dir: str = "data",
        uri: str | os.PathLike[str] | Mapping[str, str] | None = None,
        max_documents: int | None = None,
        max_tokens: int | None = None,
        val_fraction: float = 0.01,
        max_document_bytes: int = MAX_DOCUMENT_BYTES,
        long_documents: Literal["split", "skip"] = "split",
        rebuild: bool = False,
        commit_seconds: float = 60.0,
        durable: bool = True,
        min_tokens: int | None = None,
        order: Order = "shuffle",
        seed: int = 0,
        shuffle_block: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
        mix: Mapping[str, float] | None = None,
        remainder: Remainder = "drop",
        extend: Extend = "never",
        on_data_change: OnDataChange = "error",
        batch_format: BatchFormat = "default",
        document_ids: bool = False,
        position_ids: bool = False,
        cu_seqlens: bool = False,
        mask_boundary_targets: bool = False,
        fim: Mapping[str, Any] | None = None,
        verify: bool = False,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        uri, data_dir = as_text(uri), as_text(data_dir)
        check_origin(source, tokenizer, uri)
        check_arguments(
            LanceDataModule,
            {"seed": seed, "extend": extend, "order": order, "verify": verify, "long_documents": long_documents},
        )
        storage_options = checked_storage_options("storage_options", storage_options)
        self.source, self.tokenizer_choice = source, tokenizer
        self.context_length, self.batch_size = context_length, batch_size
        self.data_dir, self.uri = data_folder(data_dir), _given(uri)
        self._uri = self.uri if isinstance(self.uri, str) else None
        self.budget = Budget(max_documents, max_tokens)
        check_val_fraction(val_fraction)
        LongDocuments(max_document_bytes, long_documents)
        self._stored: dict[str, Any] = {"data_dir": self.data_dir, "val_fraction": val_fraction}
        self._stored |= {"max_document_bytes": max_document_bytes, "long_documents": long_documents}
        self._building: dict[str, Any] = {"rebuild": rebuild, "commit_seconds": commit_seconds}
        self._building["durable"] = durable
        self.min_tokens = None if min_tokens is None else whole_number("min_tokens", min_tokens)
        self.seed = seed
        self._training: dict[str, Any] = {
            "order": order,
            "shuffle_block": shuffle_block,
            "mix": mix,
            "remainder": remainder,
            "extend": extend,
            "on_data_change": on_data_change,
        }
        self._serving: dict[str, Any] = {"where": where, "batch_format": batch_format, "cu_seqlens": cu_seqlens}
        self._serving |= {"document_ids": document_ids, "position_ids": position_ids}
        self._serving |= {"mask_boundary_targets": mask_boundary_targets}
        given = {"context_length": context_length, "batch_size": batch_size, "fim": fim, "verify": verify}
        given["seed"] = seed
        check_options({**given, "source": source, **self._building, **self._training, **self._serving})
        if source is None:
            check_serves({"max_documents": max_documents, "max_tokens": max_tokens, "rebuild": rebuild or None})
        self._training["extend"] = extend == "next_epoch"
        self._fim, self.verify = dict(fim or {}), verify
        self.storage_options = storage_options
        # On local disks each node builds, or finds what a node that shares the disk has built; a bucket is everybody's.
        places = self.uri.values() if isinstance(self.uri, Mapping) else [self.uri or self.data_dir]
        self.prepare_data_per_node = all(map(is_local, places))
        self._stores: dict[str, TokenStore] = {}
        self._loader: WindowLoader | None = None
        self._state: dict[str, Any] | None = None
        self._failure: Exception | None = None
        self._fits = False  # whether it was set up for training
        # By the run of this name, for no checkpoint yet.
        self._run = secrets.token_hex(8)
        self._tagged: list[TokenStore] = []
        self._fitted_by: weakref.ref[Any] | None = None  # the Trainer of this fit
        self._begins_again = False  # what another Trainer has trained on is trained on again

    def __repr__(self) -> str:
        what = self.uri if self.source is None else self.source
        return (
            f"{type(self).__name__}({what!r}, {self.tokenizer_choice!r}, context_length={self.context_length}, "
            f"batch_size={self.batch_size})"
        )

    def __str__(self) -> str:
        # Lightning's own asks for all loaders, which would begin them anew, and takes them for torch's.
        return repr(self)

    @cached_property
    def _plan(self) -> Plan | None:
        if self.source is None or self.tokenizer_choice is None:
            return None
        return make_plan(self.source, self.tokenizer_choice, self._uri, **self._stored)

    @property
    def _uris(self) -> dict[str, str]:
        if self._plan is not None:
            return {"": self._plan.uri}
        uris = self.uri if isinstance(self.uri, Mapping) else {"": str(self.uri)}
        return dict(uris) if len(uris) > 1 else {"": next(iter(uris.values()))}

    def prepare_data(self) -> None:
        """Build the store if it is not there, see `prepare`; with `min_tokens`, wait for who builds it.

        Among several processes, an error is kept for `setup`: the others wait in a barrier, and would only see that this
        one is gone.
        """
        try:
            if self.min_tokens is not None:
                for uri in self._uris.values():
                    wait_for(uri, self.min_tokens, self.storage_options)
            elif self.source is not None and self.tokenizer_choice is not None:
                self._fill_in()  # its tokens may not be the tokenizer's: seen before hours of building
                options = {**vars(self.budget), **self._stored, **self._building}
                prepare(self.source, self.tokenizer_choice, self._uri, storage_options=self.storage_options, **options)
            for uri in self._uris.values() if self.verify else ():
                raise_if_damaged(uri, self.storage_options)
        except Exception as error:
            if self.trainer is None or self.trainer.world_size == 1:
                raise
            self._failure = error

    def setup(self, stage: str) -> None:
        """Open the stores.

        Raises:
            StoreError: If one is not committed, or not complete; on all ranks, with the cause, if one could not prepare it.
        """
        failure, self._failure = self._failure, None
        raise_on_all_ranks(failure, SETTING_UP)
        try:
            self._open_for(stage)
        except Exception:
            self._let_go()
            raise

    def _open_for(self, stage: str) -> None:
        fit = stage == "fit"
        stores: dict[str, TokenStore] = {}
        with _failing_together():
            stores = self._open_kept() if fit and is_rank_zero() else self._open()
        extents = [store.commit.extent for store in stores.values()]
        # A run's tags have one name on all of its ranks.
        self._run, extents = broadcast_from_rank_zero((self._run, extents), SETTING_UP)
        with _failing_together():
            self._stores = {
                name: store.at(extent) for (name, store), extent in zip(stores.items(), extents, strict=True)
            }
        self._fits = fit
        if fit:
            self._begin_fit()
            for name in self._stores:  # nodes may have stores of their own
                self._keep(name)

    def _open_kept(self) -> dict[str, TokenStore]:
        """Open the stores and tag them for this run, before another rank hears of them."""
        for _ in range(KEEP_TRIES):
            stores = self._open()
            self._tagged = list(stores.values())
            if all(store.keep_for_training(self._run) for store in self._tagged):
                return stores
            self._let_go()  # a builder that goes on had removed what was open, before it could be kept
        raise not_kept(stores.values())

    def _keep(self, name: str) -> None:
        """Tag the store of this name for this run, and no other version of it."""
        store = self._stores[name]
        for other in [other for other in self._tagged if other.uri == store.uri]:
            self._tagged.remove(other)
            if other.commit.extent != store.commit.extent:
                other.let_go()
        self._tagged.append(store)
        if not store.keep_for_training(self._run):
            # It goes, unless the tag of an earlier run's checkpoints names it.
            store.keep_for_checkpoints()

    def _let_go(self) -> None:
        """Take this run's tags away, which nothing needs that was saved."""
        for store in self._tagged:
            store.let_go()
        self._tagged = []
        self._let_go_of_others([])

    def _let_go_of_others(self, stores: Iterable[TokenStore]) -> None:
        """Take this run's tags away from the versions that it has adopted, but for those of some stores."""
        if self._training["extend"]:
            extents = [store.commit.extent for store in stores]
            for store in self._stores.values():
                store.let_go_of_others(extents)

    def _begin_fit(self) -> None:
        """Go on where the last fit of the same Trainer stopped; with another Trainer, begin at the first window."""
        last, trainer_before = self._loader, self._fitted_by
        self._loader = self._state = None
        self._fitted_by = weakref.ref(self.trainer) if self.trainer is not None else None
        if last is None or trainer_before is None:
            return
        if trainer_before() is self.trainer:
            state = last.state_dict()
            self._adopt(state, self._stores_then(state))
        else:
            self._begins_again = last.state_dict()["cursor"] > 0

    def on_exception(self, exception: BaseException) -> None:
        """Take tags away again, where a run ends before it has saved a checkpoint: one that is refused leaves none."""
        self._let_go()

    def teardown(self, stage: str) -> None:
        """Keep what a run has trained on that ended well: its model may be saved yet."""
        for store in self._tagged if self._loader is None else self._loader.stores.values():
            store.keep_for_checkpoints()
        self._tagged = []
        self._let_go_of_others([])

    def _open(self) -> dict[str, TokenStore]:
        if self._plan is not None and self.min_tokens is None:
            return {"": open_prepared(self._plan, self.budget, self.storage_options)}
        stores = {name: TokenStore.open(uri, storage_options=self.storage_options) for name, uri in self._uris.items()}
        if self._plan is not None:
            check_same(stores[""].commit, self._plan)
        return stores

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The open stores, by name.

        Raises:
            StoreError: Before `setup`.
        """
        if not self._stores:
            raise StoreError("The token store is not open yet: call prepare_data() and setup('fit'), or let a Trainer.")
        return self._stores

    @property
    def store(self) -> TokenStore:
        """The open store, of several the first. StoreError before `setup`."""
        return next(iter(self.stores.values()))

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus one: what the model's embedding needs. Known before `setup` too.

        Raises:
            StoreError: Without a source, if there is no store yet.
        """
        if self._plan is not None:
            return self._plan.chosen.identity.vocab_size
        return self._any_store().commit.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store. Known before `setup` too."""
        return self._plan.tokenizer if self._plan is not None else tokenizer_beside(self._any_store())

    def _any_store(self) -> TokenStore:
        """Open the first store, if none is open yet: all were made with one tokenizer."""
        if self._stores:
            return self.store
        return TokenStore.open(next(iter(self._uris.values())), storage_options=self.storage_options)

    def train_dataloader(self) -> WindowLoader:
        """Return the loader of the training windows, at the place where the last one, or the checkpoint, was."""
        state = self._loader.state_dict() if self._loader is not None else self._state
        if state is None and self._begins_again:
            _log.warning("This fit has another Trainer than the one before, so it begins at the first window again.")
        self._begins_again = False
        loader = self._train_loader(resumable=not self._anew)
        if state is not None and not self._anew:
            loader.load_state_dict(state)
            loader.roll_over()
            loader.expected = self._state
        self._loader = loader
        self._let_go_of_others([*self._stores.values(), *loader.stores.values()])
        return loader

    @property
    def _anew(self) -> bool:
        """Whether each epoch begins with the first window: a run that overfits wants the same batches in all of them."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def _train_loader(self, resumable: bool = True) -> WindowLoader:
        return self._make_loader("train", resumable=resumable, fim=self._fill_in(), **self._training)

    def _fill_in(self) -> FillInTheMiddle | None:
        return FillInTheMiddle.named(self.tokenizer, **{"seed": self.seed, **self._fim}) if self._fim else None

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """Return the loader of the validation windows; an empty list, with a warning, where there are none.

        The windows come in one random order over all streams, so the first batches are a sample of all that is validated.
        """
        loader = self._make_loader(
            "val",
            stores=self._mixed_stores,
            where=self._mixed_languages,
            seed=_VALIDATION_SEED,
            order="fixed",
            remainder="short",
            resumable=False,
        )
        if len(loader):
            return loader
        _log.warning(
            "The store has no validation window of %d + 1 tokens for each rank: raise val_fraction, or store more documents.",
            self.context_length,
        )
        return []

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    @property
    def _mixed_stores(self) -> dict[str, TokenStore]:
        """The stores that the mixture has a weight for; all of them without a mixture of stores."""
        mix = self._training["mix"]
        if not mix or len(self.stores) == 1:
            return self.stores
        return {name: store for name, store in self.stores.items() if name in mix}

    @property
    def _mixed_languages(self) -> Mapping[str, Sequence[str]] | None:
        """The languages of `where` that the mixture has a weight for; all of `where` without a mixture of languages."""
        where, mix = self._serving["where"], self._training["mix"]
        if not mix or len(self.stores) > 1:
            return where  # type: ignore[no-any-return] # an option, checked by `check_options`
        selected = (where or {}).get("language") or [*mix]
        return {"language": [language for language in selected if language in mix]}

    def _make_loader(self, split: str, **options: Any) -> WindowLoader:
        group = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        given = {"seed": self.seed, "stores": self.stores, **self._serving, **options}
        stores = given.pop("stores")
        return WindowLoader(
            stores if len(stores) > 1 else next(iter(stores.values())),
            self.context_length,
            self.batch_size,
            split=split,
            rank=group["rank"],
            world_size=group["num_replicas"],
            **given,
        )

    # Lightning keeps the state of the train loader by itself, and loses it when a scheduler asks for the number of steps
    # before the loops are restored. So the cursor is kept here too, and given to a loader that may be there already.

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data, in plain types, and tag the versions of the stores that are read.

        Before the loader is made, that is where it will begin: the tuners save it before their trials and go back to it.
        """
        if self._loader is None:
            if self._state is not None or self._fitted_by is None:
                return self._state or {}
            return self._train_loader().state_dict()
        self._tagged = []
        if self.trainer is not None and self.trainer.is_global_zero:
            for store in self._loader.stores.values():
                store.keep_for_checkpoints()
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, on the tokens that the stores had then; one that is refused changes nothing.

        An empty state means the first window.

        Raises:
            StoreError: If its state cannot be, or, where it is trained on, is of other data; see `WindowLoader`.
        """
        # Of another type, what is empty is no state.
        if isinstance(state_dict, Mapping) and not state_dict:
            self._state = None
            if self._loader is not None:
                self._loader.restart()
            return
        state = checked_state(state_dict)
        stores = self._stores_then(state)
        if self._loader is not None:
            self._loader.load_state_dict(state)
            self._loader.expected = state
        elif self._fits and not self._anew:
            self._try(state, stores)
        # Nothing has changed up to here, so a state that is refused changes nothing.
        self._adopt(state, stores)

    def _stores_then(self, state: Mapping[str, Any]) -> dict[str, TokenStore]:
        """Return the stores as they were when a state was saved."""
        stores = dict(self.stores)
        saved = {entry["name"]: entry for entry in state["stores"]}
        for name, store in stores.items():
            # Of another store, or of documents that are gone, only training has to know: the loader will refuse it.
            mine = name in saved and saved[name]["fingerprint"] == store.fingerprint
            if mine and not store.forgot(extent := extent_in(saved[name])):
                stores[name] = store.at(extent)
        return stores

    def _adopt(self, state: dict[str, Any], stores: Mapping[str, TokenStore]) -> None:
        """Make the next loader continue from a state, and read the stores as they were then."""
        self._state = state
        for name, store in stores.items():
            self._tell_growth(self._stores[name], store)
            self._stores[name] = store
            if self._tagged:
                self._keep(name)

    def _try(self, state: Mapping[str, Any], stores: Mapping[str, TokenStore]) -> None:
        """Check that the train loader, which is made later, will take a state."""
        training = self._training
        served: dict[str, Any] = {"where": self._serving["where"] or {}, "mix": training["mix"] or {}}
        served |= {"order": training["order"], "shuffle_block": training["shuffle_block"]}
        serving = WindowSelection(stores, "train", self.context_length, seed=self.seed, **served)
        Cursor(serving, training["on_data_change"]).check(state)

    def _tell_growth(self, opened: TokenStore, continued: TokenStore) -> None:
        """Log that a run goes on with fewer tokens than there are by now, and how to adopt the others."""
        there, used = opened.commit.stored_tokens, continued.commit.stored_tokens
        if there <= used or not is_rank_zero():
            return
        adopted = (
            "the next epoch adopts the others"
            if self._training["extend"]
            else "data.extend=next_epoch adopts the others"
        )
        _log.warning(
            "The run goes on with the %s of its checkpoint; %s are in %s by now: %s.",
            format_tokens(used),
            format_tokens(there),
            opened.uri,
            adopted,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Log, for a mixture, how many windows each component has given and how often it was gone through."""
        trainer = self.trainer
        if trainer is not None and trainer.training and self._training["mix"] and self._loader is not None:
            every = getattr(trainer, "log_every_n_steps", 0)
            if every and trainer.global_step % every == 0 and trainer.is_global_zero and trainer.logger:
                counted = self._loader.components().items()
                metrics = {f"data/{name}/{what}": value for name, part in counted for what, value in part.items()}
                trainer.logger.log_metrics(metrics, step=trainer.global_step)
        return batch
