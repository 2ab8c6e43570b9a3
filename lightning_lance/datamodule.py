"""`LanceDataModule`. Only this module and the room `callbacks` import Lightning."""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ParamSpec

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_lance.build.corpus import (
    Corpus,
    ReadyStore,
    check_builds,
    check_together,
    corpora_of,
    known_fingerprint,
    mix_of,
    wanted_languages,
)
from lightning_lance.build.options import BuildOptions
from lightning_lance.documents.languages import check_languages
from lightning_lance.errors import ConfigError, StoreError, flag
from lightning_lance.inspection.runs import BEGINS, RUN
from lightning_lance.inspection.training import Limit, training_line
from lightning_lance.maintenance.integrity import raise_if_damaged
from lightning_lance.messages.escaping import logger, shown
from lightning_lance.messages.formatting import format_tokens
from lightning_lance.messages.moved_names import moved_argument
from lightning_lance.process.ranks import SETTING_UP, broadcast_from_rank_zero, is_rank_zero, raise_on_all_ranks
from lightning_lance.serving.batches import Batch
from lightning_lance.serving.cursor import Cursor, continues_other_data
from lightning_lance.serving.description import described_changes, entries_by_name, extent_in, known_differences
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.serving.options import (
    BatchFormat,
    BatchOptions,
    Extend,
    FillInTheMiddleOptions,
    OnDataChange,
    Remainder,
    ServingOptions,
    ValBy,
    fill_in_the_middle,
)
from lightning_lance.serving.ordering.document_weights import MixBy
from lightning_lance.serving.ordering.order import Order
from lightning_lance.serving.ordering.packing import Windows
from lightning_lance.serving.ordering.phases import AtMaxEpochs
from lightning_lance.serving.reading import channels_of_all
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.selection_checks import check_one_tokenizer
from lightning_lance.serving.states import checked_state
from lightning_lance.serving.vocabulary import vocabulary_of
from lightning_lance.store.token_store import KEEP_TRIES, TokenStore, extents_of, not_kept, stores_at
from lightning_lance.store.training_tags import TrainingTags
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.type_hints import options_of, refusing

_Given = ParamSpec("_Given")

_log = logger(__name__)

# Seed of the order of validation windows. Not the run's own, so that all runs validate on the same sample.
_VALIDATION_SEED = 0


@contextmanager
def _failing_together() -> Iterator[None]:
    """Raise the error of one rank on all ranks."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    raise_on_all_ranks(failure, SETTING_UP)


def _without_a_source(init: Callable[_Given, None]) -> Callable[_Given, None]:
    """Make the error for a source and a tokenizer, which came first in earlier versions, name their new place."""

    @functools.wraps(init)
    def checked(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        if len(args) == 5 or (len(args) > 2 and hasattr(args[2], "load")):
            raise ConfigError(str(moved_argument("source")))
        init(*args, **kwargs)

    return checked


class _Watch(Callback):
    """Checks the model against the data before the first step, and tells in a line what is trained on.

    A datamodule has no hook between the moment when the model is made and the first step. Trials of tuners take callbacks
    away, so they tell nothing.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model."""
        self._check(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model, unless it trains: then it has passed."""
        if trainer.state.fn != "fit":
            self._check(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model."""
        self._check(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model."""
        self._check(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what is trained on."""
        data = _datamodule_of(trainer)
        if data is not None:
            data._tell_training()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how windows became batches, so that any step of the run can be looked at. Nothing resumes from it."""
        data = _datamodule_of(trainer)
        if data is not None and data._loader is not None:
            steps = {"max_steps": trainer.max_steps, "accumulate_grad_batches": trainer.accumulate_grad_batches}
            checkpoint[RUN] = {**data._loader.batching, **steps}
            begins = data._loader.begins
            if begins:
                checkpoint[BEGINS] = begins

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what the steps of earlier epochs are known by."""
        data = _datamodule_of(trainer)
        if data is not None:
            data._begins = checkpoint.get(BEGINS, [])
            if data._loader is not None:
                data._loader.take_begins(data._begins)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = _datamodule_of(trainer)
        if data is not None:
            data.check_model(pl_module)


def _datamodule_of(trainer: Trainer) -> LanceDataModule | None:
    """Return the LanceDataModule of a Trainer. A Trainer may go on with other data."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, LanceDataModule):
        return data
    return None


class LanceDataModule(LightningDataModule):
    """Prepares token stores once, and serves random windows of them to any LightningModule.

    Batches are dicts; see `make_batch`. Ranks get disjoint windows, also with a default Trainer. A checkpoint holds the
    cursor, and `fit(ckpt_path=...)` continues after the last trained batch.

    No argument changes the stored tokens, so all of them may change from run to run without a new build.

    Args:
        corpus: A `Corpus`, which is built if necessary; the place of a store that was built elsewhere; or a mapping of names
            to these, all with one tokenizer.
        context_length: Tokens that the model sees.
        batch_size: Windows per batch and rank.
        order: `shuffle`, `random`, `sequential` or `fixed`, for training. Validation, test and prediction read all `val`
            windows in one `fixed` order: the same in every round, for any seed and any number of ranks.
        seed: Seed of the order.
        shuffle_block: Windows that stay together in `shuffle`, for disks and buckets that need longer reads.
        where: Streams to serve, such as `{"language": ["Python"]}`.
        mix: Weights of languages, such as `{"Python": 0.7, "Rust": 0.3}`, or of the names in `corpus`, for training. A
            language or store without a weight is not validated either; one with a weight is, each window once.
        remainder: `drop`, `wrap` or `short`, for the windows at the end of an epoch that fill no batch; see `WindowLoader`.
        extend: `never`; `next_epoch` to adopt appended tokens when an epoch begins; or `now`, to adopt them also when a run
            resumes: the rest of its epoch has them too, each window once.
        on_data_change: `error`, `restart` or `continue`, for a checkpoint of other data; see `WindowLoader`.
        skip_steps: Ranges of steps to leave out, such as `[[12000, 12040]]`; see `WindowLoader`.
        windows: Of training: `stream`, or `packed` for whole documents side by side; see `WindowLoader`.
        mix_schedule: Weights that change during a run, in place of `mix`; see `WindowLoader`.
        max_epochs: Epochs that components of the mixture may have.
        at_max_epochs: `redistribute` or `error`, once a component has had them.
        mix_by: `tokens` or `documents`: what weights are shares of.
        batch_size_schedule: Batch sizes of training that grow up to `batch_size`, such as `[[0, 8], [1000, 16]]`; see
            `WindowLoader`. Validation has `batch_size`.
        context_length_schedule: Context lengths of training that grow up to `context_length`, such as
            `[[0, 512], [2000, 1024]]`; see `WindowLoader`. Validation has `context_length`.
        val_by: `language` or `store` adds a validation and test loader for each; see `val_names`.
        batch_format: `default` or `huggingface`.
        document_ids: Like `position_ids`, `cu_seqlens` and `mask_boundary_targets`, adds to a batch; see `Collator`.
        position_ids: See `Collator`.
        cu_seqlens: See `Collator`.
        mask_boundary_targets: See `Collator`.
        fim: Fill-in-the-middle for training: the tokenizer's tokens `prefix_token`, `middle_token`, `suffix_token`, and
            `fim_rate` and `spm_rate`; see `FillInTheMiddle`.
        build: How builds run, such as `{"rebuild": True}`; see `BuildOptions`. With `wait_for_tokens` nothing is built: the
            run waits for a build in another process, and trains on those tokens; see `extend`.
        verify: Check every file of the stores against its checksum first.
        storage_options: Credentials and the like for stores that are given by their place.
        stage: Folder on a local disk, to which the data files of stores in buckets are copied while the run trains; windows
            of copied files are read from there. See `TokenStore.stage`.
        stage_bytes: Most bytes of copies in that folder; None for no bound.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    @_without_a_source
    @refusing(moved_argument)
    def __init__(
        self,
        corpus: Corpus | str | os.PathLike[str] | Mapping[str, Corpus | str | os.PathLike[str]],
        context_length: int,
        batch_size: int,
        *,
        order: Order = "shuffle",
        seed: int = 0,
        shuffle_block: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
        mix: Mapping[str, float] | None = None,
        remainder: Remainder = "drop",
        extend: Extend = "never",
        on_data_change: OnDataChange = "error",
        skip_steps: Sequence[Sequence[int]] = (),
        windows: Windows = "stream",
        mix_schedule: Sequence[Sequence[Any]] = (),
        max_epochs: Mapping[str, float] | None = None,
        at_max_epochs: AtMaxEpochs = "redistribute",
        mix_by: MixBy = "tokens",
        batch_size_schedule: Sequence[Sequence[int]] = (),
        context_length_schedule: Sequence[Sequence[int]] = (),
        val_by: ValBy = "none",
        batch_format: BatchFormat = "default",
        document_ids: bool = False,
        position_ids: bool = False,
        cu_seqlens: bool = False,
        mask_boundary_targets: bool = False,
        fim: FillInTheMiddleOptions | Mapping[str, Any] | None = None,
        build: BuildOptions | Mapping[str, Any] | None = None,
        verify: bool = False,
        storage_options: Mapping[str, str] | None = None,
        stage: str | os.PathLike[str] | None = None,
        stage_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.corpora = corpora_of(corpus, storage_options)
        if mix is None or isinstance(mix, Mapping):
            mix = mix_of(corpus, mix) or {}
        self.serving = ServingOptions(
            context_length=context_length,
            batch_size=batch_size,
            order=order,
            seed=seed,
            shuffle_block=shuffle_block,
            where={} if where is None else where,
            mix=mix,
            remainder=remainder,
            extend=extend,
            on_data_change=on_data_change,
            skip_steps=() if skip_steps is None else skip_steps,
            windows=windows,
            mix_schedule=() if mix_schedule is None else mix_schedule,
            max_epochs={} if max_epochs is None else max_epochs,
            at_max_epochs=at_max_epochs,
            mix_by=mix_by,
            batch_size_schedule=batch_size_schedule,
            context_length_schedule=context_length_schedule,
            val_by=val_by,
            stage=stage,
            stage_bytes=stage_bytes,
        )
        local = [corpus.is_local for corpus in self.corpora.values()]
        if stage is not None and all(local) and is_rank_zero():
            _log.warning("stage is not used: it is for stores in buckets, and the data is on a disk of this machine.")
        self.batch = BatchOptions(
            batch_format=batch_format,
            document_ids=document_ids,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            mask_boundary_targets=mask_boundary_targets,
        )
        self.fim = fill_in_the_middle(fim)
        self.build = options_of(BuildOptions, "build", build)
        self.verify = flag("verify", verify)
        self.serving.check_names([*self.corpora], wanted_languages(self.corpora))
        check_builds(self.corpora, self.build)
        # On local disks each node builds, or finds the store of a node that shares the disk. All nodes share a bucket.
        self.prepare_data_per_node = any(local)
        self._stores: dict[str, TokenStore] = {}
        self._loader: WindowLoader | None = None
        self._state: dict[str, Any] | None = None
        self._begins: list[list[int]] = []  # of the run that goes on
        self._failure: Exception | None = None
        self._fits = False  # whether `setup` was called for training
        self._tags = TrainingTags()
        self._fitted_by: weakref.ref[Any] | None = None  # the Trainer of this fit
        self._opened: dict[str, TokenStore] = {}  # as `setup` found them, before a checkpoint goes back to fewer tokens
        self._val_names: list[str] | None = None
        self._told_no_validation = False
        self._begins_again = False  # a new Trainer trains again on the windows of the last one

    @property
    def corpus(self) -> Corpus | ReadyStore:
        """The corpus or store that is served; the first of several."""
        return next(iter(self.corpora.values()))

    @property
    def context_length(self) -> int:
        """Tokens that the model sees."""
        return self.serving.context_length

    @property
    def batch_size(self) -> int:
        """Windows per batch and rank. Lightning's tuners set it."""
        return self.serving.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.serving = replace(self.serving, batch_size=value)

    def __repr__(self) -> str:
        what = self.corpora if len(self.corpora) > 1 else self.corpus
        return f"{type(self).__name__}({what!r}, context_length={self.context_length}, batch_size={self.batch_size})"

    def __getstate__(self) -> dict[str, Any]:
        # A Trainer of another process is not the one of the last fit.
        return {**self.__dict__, "_fitted_by": None}

    def __str__(self) -> str:
        # Lightning's own makes all loaders, which would restart them, and expects torch's.
        return repr(self)

    def prepare_data(self) -> None:
        """Build missing stores, see `Corpus.prepare`; or wait for tokens, see `BuildOptions`.

        With several processes, `setup` raises an error of this one: the others wait in a barrier, and would only see that
        this process is gone.
        """
        try:
            self._prepare()
        except Exception as error:
            if self.trainer is None or self.trainer.world_size == 1:
                raise
            self._failure = error

    def _prepare(self) -> None:
        if self._builds:
            check_together(self.corpora)
            self._fill_in()  # fails before hours of building if the tokenizer does not have its tokens
        for corpus in self.corpora.values():
            corpus.run(self.build)
        if self.verify:
            for corpus in self.corpora.values():
                raise_if_damaged(corpus.on_disk())

    @property
    def _builds(self) -> bool:
        return self.build.wait_for_tokens is None and any(
            isinstance(corpus, Corpus) for corpus in self.corpora.values()
        )

    def setup(self, stage: str) -> None:
        """Open the stores.

        Raises:
            StoreError: If one has no commit or is unfinished; on all ranks, with the cause, if one rank could not prepare it.
        """
        failure, self._failure = self._failure, None
        raise_on_all_ranks(failure, SETTING_UP)
        try:
            self._open_for(stage)
        except Exception:
            self._remove_tags()
            raise

    def _open_for(self, stage: str) -> None:
        fit = stage == "fit"
        stores: dict[str, TokenStore] = {}
        with _failing_together():
            stores = self._open_kept() if fit and is_rank_zero() else self._open()
        extents = extents_of(stores.values())
        # A run's tags have one name on all of its ranks.
        self._tags.run, extents = broadcast_from_rank_zero((self._tags.run, extents), SETTING_UP)
        with _failing_together():
            self._stores = stores_at(stores, extents)
        self._opened = dict(self._stores)
        self._val_names = None
        self._fits = fit
        self._watch()
        if fit:
            self._begin_fit()
            for store in self._stores.values():  # nodes may have stores of their own
                self._tags.keep(store)

    def _open_kept(self) -> dict[str, TokenStore]:
        """Open the stores and tag them for this run, before another rank hears of them."""
        for _ in range(KEEP_TRIES):
            stores = self._open()
            if self._tags.keep_all(stores.values()):
                return stores
            # A running build removed an open version before it was tagged.
            self._let_go_of_others([])
        raise not_kept(stores.values())

    def _remove_tags(self) -> None:
        """Remove this run's tags, which no saved checkpoint needs."""
        self._tags.remove()
        self._let_go_of_others([])

    def _let_go_of_others(self, stores: Iterable[TokenStore]) -> None:
        """Remove this run's tags from the versions that it has adopted, except those of some stores."""
        if self.serving.extend != "never":
            extents = extents_of(stores)
            for store in self._stores.values():
                store.let_go_of_others(extents)

    def _begin_fit(self) -> None:
        """Continue after the last fit of the same Trainer; with another Trainer, begin at the first window."""
        last, trainer_before = self._loader, self._fitted_by
        self._loader = self._state = None
        self._begins = []
        if last is not None:
            self._begins = last.begins
        self._fitted_by = None
        if self.trainer is not None:
            self._fitted_by = weakref.ref(self.trainer)
        if last is None or trainer_before is None:
            return
        if trainer_before() is self.trainer:
            state = last.state_dict()
            self._adopt(state, self._stores_then(state))
        else:
            self._begins_again = last.state_dict()["cursor"] > 0

    def _watch(self) -> None:
        """Add the callback that checks the model and tells about the data to this Trainer, once."""
        callbacks = getattr(self.trainer, "callbacks", None)
        if callbacks is not None and not any(isinstance(callback, _Watch) for callback in callbacks):
            callbacks.append(_Watch())

    def check_model(self, model: torch.nn.Module) -> None:
        """Check that a model has a row for every token of the tokenizer. A Trainer does so before its first step.

        Raises:
            ConfigError: If its embedding has fewer. Models of which it is not known which embedding takes the tokens pass.
        """
        found = vocabulary_of(model, self.context_length)
        if found is None:
            return
        name, rows = found
        needed = max(store.commit.vocab_size for store in self.stores.values())
        if rows < needed:
            raise ConfigError(
                f"The model's vocabulary is too small for the data: its embedding {name!r} has {rows:,} rows, but the "
                f"tokenizer has ids up to {needed - 1:,}: make it with vocab_size={needed} (the datamodule's vocab_size), or "
                "store the data with the model's own tokenizer."
            )

    def on_exception(self, exception: BaseException) -> None:
        """Remove the tags of a run that ends before it has saved a checkpoint, such as one whose checkpoint is refused."""
        self._remove_tags()

    def teardown(self, stage: str) -> None:
        """Keep the versions that a successful run has trained on: its model may still be saved."""
        self._tags.keep_for_checkpoints(None if self._loader is None else self._loader.stores.values())
        self._let_go_of_others([])

    def _open(self) -> dict[str, TokenStore]:
        growing = self.build.wait_for_tokens is not None
        stores = {name: corpus.open(growing=growing) for name, corpus in self.corpora.items()}
        check_one_tokenizer(stores)
        if len(stores) == 1:
            [store] = stores.values()
            # Validation selects by the same names, and its error would name `where`.
            check_languages([*self.serving.mix], sorted(store.commit.stored_languages), "The data, for mix,")
        if self.serving.stage is not None:
            for store in stores.values():
                store.stage(self.serving.stage, self.serving.stage_bytes)
        return stores

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The open stores, by name.

        Raises:
            StoreError: Before `setup`.
        """
        if not self._stores:
            raise StoreError("The token store is not open yet: call prepare_data() and setup('fit'), or use a Trainer.")
        return self._stores

    @property
    def store(self) -> TokenStore:
        """The open store; the first of several. StoreError before `setup`."""
        return next(iter(self.stores.values()))

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus one: what the model's embedding needs. Known before `setup` too.

        Raises:
            StoreError: Without a `Corpus`, if there is no store yet.
        """
        return self._first_corpus.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the stores. Known before `setup` too."""
        return self._first_corpus.tokenizer

    @property
    def _first_corpus(self) -> Corpus | ReadyStore:
        """A corpus that knows its tokenizer without a store, if there is one. All corpora have the same tokenizer."""
        for corpus in self.corpora.values():
            if isinstance(corpus, Corpus):
                return corpus
        return self.corpus

    def train_dataloader(self) -> WindowLoader:
        """Return the loader of the training windows, at the cursor of the last one or of the checkpoint."""
        state = self._state
        if self._loader is not None:
            state = self._loader.state_dict()
        if state is None and self._begins_again:
            _log.warning("This fit has another Trainer than the last one, so it begins at the first window again.")
        self._begins_again = False
        loader = self._train_loader(resumable=not self._anew)
        if state is not None and not self._anew:
            loader.load_state_dict(state)
            loader.take_begins(self._begins if self._loader is None else self._loader.begins)
            loader.roll_over()
            loader.expected = self._state
        self._loader = loader
        self._let_go_of_others([*self._stores.values(), *loader.stores.values()])
        return loader

    @property
    def _anew(self) -> bool:
        """Whether each epoch begins at the first window, as in a run that overfits on the same batches."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def _train_loader(self, resumable: bool = True) -> WindowLoader:
        return self._make_loader("train", resumable=resumable, fim=self._fill_in(), **self.serving.training)

    def _fill_in(self) -> FillInTheMiddle | None:
        if self.fim is None:
            return None
        return self.fim.with_ids(self.tokenizer, self.serving.seed)

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """Return the loader of the validation windows; an empty list, with a warning, if there are none.

        The windows come in one random order over all streams, so the first batches are a sample of the whole split. With
        `val_by`, a list: this loader, and one for each language or store; see `val_names`.
        """
        loader = self.predict_dataloader()
        if isinstance(loader, list) or self.serving.val_by == "none":
            return loader
        parts = self._val_parts()
        self._val_names = ["", *parts]
        return [loader, *parts.values()]

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """Return the one loader of all validation windows; an empty list, with a warning, if there are none."""
        loader = self._val_loader(self._mixed_stores, self._mixed_languages)
        if len(loader):
            return loader
        if not self._told_no_validation and is_rank_zero():
            self._told_no_validation = True
            _log.warning(
                "The store has too few validation windows of %d + 1 tokens for all ranks: raise val_fraction, or the budget.",
                self.context_length,
            )
        return []

    @property
    def val_names(self) -> list[str]:
        """What each validation loader is of: "" for the one of everything, and with `val_by` a language or store each.

        A model logs by `dataloader_idx`, such as `val_loss` and `val_loss/Python`.
        """
        if self.serving.val_by == "none":
            return [""]
        # A model may ask for each batch.
        if self._val_names is None:
            self._val_names = ["", *self._val_parts()]
        return self._val_names

    def _val_parts(self) -> dict[str, WindowLoader]:
        """Return a validation loader for each language or store that has one global batch of windows at least."""
        stores = self._mixed_stores
        where = self._mixed_languages
        chosen: dict[str, tuple[Mapping[str, TokenStore], Mapping[str, Sequence[str]]]] = {}
        if self.serving.val_by == "store":
            for name, store in stores.items():
                chosen[name] = ({name: store}, where)
        else:
            for language in where.get("language") or self._val_languages:
                chosen[language] = (stores, {"language": [language]})
        parts = {}
        for name, (some, languages) in chosen.items():
            held: dict[str, TokenStore] = {}
            for key, store in some.items():
                if self._has_window(store, languages):
                    held[key] = store
            if name and held:
                part = self._val_loader(held, languages)
                if len(part):
                    parts[name] = part
        return parts

    @property
    def _val_languages(self) -> list[str]:
        """The languages of the validation windows."""
        languages: set[str] = set()
        for store in self._mixed_stores.values():
            for stream in store.streams("val"):
                languages.add(stream.language)
        return sorted(languages)

    def _has_window(self, store: TokenStore, where: Mapping[str, Sequence[str]]) -> bool:
        languages = where.get("language")
        for stream in store.streams("val"):
            is_wanted = not languages or stream.language in languages
            if is_wanted and stream.num_tokens > self.context_length:
                return True
        return False

    def _val_loader(self, stores: Mapping[str, TokenStore], where: Mapping[str, Sequence[str]]) -> WindowLoader:
        return self._make_loader(
            "val",
            stores=stores,
            where=where,
            seed=_VALIDATION_SEED,
            order="fixed",
            remainder="short",
            resumable=False,
        )

    @property
    def _mixed_stores(self) -> dict[str, TokenStore]:
        """The stores that the mixture has a weight for; all of them without a mixture of stores."""
        mix = self.serving.mix
        if not mix or len(self.stores) == 1:
            return self.stores
        return {name: store for name, store in self.stores.items() if name in mix}

    @property
    def _mixed_languages(self) -> Mapping[str, Sequence[str]]:
        """The part of `where` that the mixture has a weight for; all of it without a mixture of languages."""
        where, mix = self.serving.where, self.serving.mix
        if not mix or len(self.stores) > 1:
            return where
        selected = where.get("language") or [*mix]
        return {"language": [language for language in selected if language in mix]}

    def _make_loader(
        self, split: str, *, stores: Mapping[str, TokenStore] | None = None, **options: Any
    ) -> WindowLoader:
        group = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        served = self.stores if stores is None else stores
        given = {"seed": self.serving.seed, "where": self.serving.where, **vars(self.batch), **options}
        # A loader may have some of the stores only, and its batches have the keys of all others.
        missing = {*channels_of_all(self.stores.values())} - {*channels_of_all(served.values())}
        return WindowLoader(
            served if len(served) > 1 else next(iter(served.values())),
            self.context_length,
            self.batch_size,
            split=split,
            rank=group["rank"],
            world_size=group["num_replicas"],
            channels=sorted(missing),
            **given,
        )

    # Lightning saves the state of the train loader, but loses it when a scheduler asks for the number of steps before the
    # loops are restored. So the cursor is saved here too, and restored into a loader that may exist already.

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor, in plain types, and tag the versions of the stores in use.

        Before the loader is made, this is the state at which it will begin: tuners save it before their trials.
        """
        if self._loader is None:
            if self._state is not None or self._fitted_by is None:
                return self._state or {}
            return self._train_loader().state_dict()
        saves = self.trainer is not None and self.trainer.is_global_zero
        self._tags.keep_for_checkpoints(self._loader.stores.values() if saves else ())
        return self._loader.state_dict()

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Check that a fit can continue from a state, as far as that is known before anything is built or opened.

        Raises:
            StoreError: If the state is invalid or of other data, and `on_data_change` is `error`.
        """
        state = checked_state(state_dict)
        if self.serving.on_data_change != "error":
            return
        fingerprints = {}
        for name, corpus in self.corpora.items():
            fingerprints[name] = known_fingerprint(corpus, self.build.rebuild)
        names = ("order", "seed", "shuffle_block", "where", "mix", "windows")
        selected = {name: getattr(self.serving, name) for name in names}
        differences = known_differences(state, selected, fingerprints)
        if not differences:
            return
        uris = []
        for name, corpus in self.corpora.items():
            # The place of a store may be known only once its tokenizer is trained.
            is_known = fingerprints[name] is not None
            uris.append(corpus.uri if is_known else "a store to be built")
        raise continues_other_data(described_changes(differences, state, uris))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, on the tokens that the stores had then. An error changes nothing.

        An empty state means the first window.

        Raises:
            StoreError: If the state is invalid, or, in training, of other data; see `WindowLoader`.
        """
        # An empty value of another type is not a state.
        if isinstance(state_dict, Mapping) and not state_dict:
            self._state = None
            if self._loader is not None:
                self._loader.restart()
            return
        try:
            state = checked_state(state_dict)
            stores = self._stores_then(state)
            if self._loader is not None:
                self._loader.load_state_dict(state)
                self._loader.expected = state
            elif self._fits and not self._anew:
                self._try(state, stores)
        except StoreError as error:
            file = getattr(self.trainer, "ckpt_path", None)
            if not isinstance(file, (str, os.PathLike)) or type(error) is not StoreError:
                raise
            raise StoreError(f"ckpt_path is {os.fspath(file)!r}: {error}") from error
        # Last, so that an error above changes nothing.
        self._adopt(state, stores)

    def _stores_then(self, state: Mapping[str, Any]) -> dict[str, TokenStore]:
        """Return the stores as they were when a state was saved."""
        stores = dict(self._opened if self.serving.extend == "now" else self.stores)
        saved = entries_by_name(state)
        for name, store in stores.items():
            # A state of another store, or of removed documents, is refused by the loader, and only in training.
            if name not in saved or saved[name]["fingerprint"] != store.fingerprint:
                continue
            extent = extent_in(saved[name])
            content = store.commit.extent
            adopts = extent.forgotten == content.forgotten and extent.tokens <= content.tokens
            if self.serving.extend == "now" and adopts:
                continue
            if not store.forgot(extent):
                stores[name] = store.at(extent)
        return stores

    def _adopt(self, state: dict[str, Any], stores: Mapping[str, TokenStore]) -> None:
        """Make the next loader continue from a state, and read the stores as they were then."""
        self._state = state
        self._warn_length(state)
        for name, store in stores.items():
            self._warn_growth(self._stores[name], store)
            self._stores[name] = store
            if self._tags:
                self._tags.keep(store)

    def _try(self, state: Mapping[str, Any], stores: Mapping[str, TokenStore]) -> None:
        """Check that the train loader, which is made later, will accept a state."""
        options = self.serving
        selection = WindowSelection(
            stores,
            "train",
            self.context_length,
            order=options.order,
            seed=options.seed,
            shuffle_block=options.shuffle_block,
            where=options.where,
            mix=options.mix,
            windows=options.windows,
            mix_schedule=options.mix_schedule,
            max_epochs=options.max_epochs,
            at_max_epochs=options.at_max_epochs,
            mix_by=options.mix_by,
        )
        grows = options.extend == "now"
        Cursor(selection, options.on_data_change, grows, options.skip_steps).check(state)

    def _warn_length(self, state: Mapping[str, Any]) -> None:
        """Log that the checkpoint's windows had another length: the key is easily forgotten."""
        if state["context_length"] == self.context_length or not is_rank_zero():
            return
        _log.warning(
            "The checkpoint's run had context_length=%d, and this one has %d: it goes on after as many tokens.",
            state["context_length"],
            self.context_length,
        )

    def _warn_growth(self, opened: TokenStore, continued: TokenStore) -> None:
        """Log that the store has grown since the checkpoint, and how to adopt the new tokens."""
        stored = opened.commit.stored_tokens
        used = continued.commit.stored_tokens
        if stored <= used or not is_rank_zero():
            return
        how = "the next epoch adopts the others"
        if self.serving.extend == "never":
            how = "data.extend=now or data.extend=next_epoch adopts the others"
        _log.warning(
            "The run goes on with the %s of its checkpoint; %s now has %s: %s.",
            format_tokens(used),
            opened.uri,
            format_tokens(stored),
            how,
        )

    def _limits(self, loader: WindowLoader) -> list[Limit]:
        """Return where the Trainer ends this fit."""
        trainer = self.trainer
        if trainer is None:
            return []
        limits = []
        if trainer.max_steps > 0:
            # The loader counts the steps before in the sizes of this fit, and the Trainer as they were.
            left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
            limits.append(Limit(loader.step + left, f"max_steps={trainer.max_steps:,}"))
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches = loader.steps_of(trainer.max_epochs)
            if trainer.num_training_batches < len(loader):
                batches = trainer.max_epochs * int(trainer.num_training_batches)
            limits.append(Limit(batches, f"max_epochs={trainer.max_epochs:,}"))
        return limits

    def _tell_training(self) -> None:
        """Tell in one line what this fit trains on."""
        if self._loader is None or not is_rank_zero():
            return
        limits = self._limits(self._loader)
        line = training_line(self._loader, self.corpora, self._opened, limits)
        # Without a logging configuration, Lightning's own lines are seen and others are not.
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s", line)
        else:
            rank_zero_info(shown(line))
        ends_before = bool(limits) and min(limits).batches <= self._loader.epoch_end_step
        if self._loader.epochs_differ and not ends_before and self._asks_once:
            _log.warning(
                "Later epochs have fewer batches than this one (batch_size_schedule), and Lightning asks for their number "
                "once, so it leaves out the validation at the end of these epochs: set the Trainer's "
                "reload_dataloaders_every_n_epochs=1."
            )

    @property
    def _asks_once(self) -> bool:
        """Whether the Trainer takes the number of batches of this epoch for that of all."""
        return getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0) != 1

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Log the windows and epochs of each component of a mixture."""
        trainer = self.trainer
        if trainer is None or not trainer.training or not self.serving.mix or self._loader is None:
            return batch
        every = getattr(trainer, "log_every_n_steps", 0)
        # The steps at which Lightning logs too, so that all metrics of a step are one row.
        due = every > 0 and (trainer.global_step + 1) % every == 0
        if due and trainer.is_global_zero and trainer.loggers:
            metrics = {}
            for name, counted in self._loader.components().items():
                for what, value in counted.items():
                    metrics[f"data/{name}/{what}"] = value
            for metrics_logger in trainer.loggers:
                metrics_logger.log_metrics(metrics, step=trainer.global_step)
        return batch
