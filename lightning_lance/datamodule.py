"""The Lightning plugin. This is the only module that knows Lightning."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.loader import BatchFormat, WindowLoader
from lightning_lance.plan import Budget, Plan, make_plan, open_prepared
from lightning_lance.prepare import prepare
from lightning_lance.sources import Source
from lightning_lance.splits import check_val_fraction
from lightning_lance.store import TokenStore
from lightning_lance.tokenization import Tokenizer
from lightning_lance.tokenizer_choice import TokenizerChoice, TokenizerFile
from lightning_lance.windows import Order

_log = logging.getLogger(__name__)


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
        uri: Place of the store, if not derived from the fingerprint.
        max_documents: Budget in documents. A larger one continues the store.
        max_tokens: Budget in tokens.
        val_fraction: Share of the documents (of the repositories, where known) that is for validation.
        order: `shuffle`, `random` or `sequential`, for training. Validation, test and prediction go through all `val`
            windows as stored, the same ones in every round.
        seed: Of the order.
        batch_format: `default` or `huggingface`.
        storage_options: Credentials and such, where `uri` is in an object store.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    def __init__(
        self,
        source: Source | None,
        tokenizer: TokenizerChoice | None,
        context_length: int,
        batch_size: int,
        *,
        data_dir: str = "data",
        uri: str | None = None,
        max_documents: int | None = None,
        max_tokens: int | None = None,
        val_fraction: float = 0.01,
        order: Order = "shuffle",
        seed: int = 0,
        batch_format: BatchFormat = "default",
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if (source is None) != (tokenizer is None):
            raise ConfigError("source and tokenizer belong together: give both, or neither and the uri of a store.")
        if source is None and uri is None:
            raise ConfigError("Without a source, the uri of a token store is needed: got neither.")
        self.source, self.tokenizer_choice = source, tokenizer
        self.context_length, self.batch_size = context_length, batch_size
        self.data_dir, self.uri = data_dir, uri
        self.budget = Budget(max_documents, max_tokens)
        check_val_fraction(val_fraction)
        self.val_fraction = val_fraction
        self.order: Order = order
        self.seed = seed
        self.batch_format: BatchFormat = batch_format
        self.storage_options = dict(storage_options or {})
        # On local disks each node builds, or finds what a node that shares the disk has built; a bucket is everybody's.
        self.prepare_data_per_node = "://" not in (uri or data_dir)
        self._store: TokenStore | None = None
        self._loader: WindowLoader | None = None
        self._state: dict[str, Any] | None = None

    @cached_property
    def _plan(self) -> Plan | None:
        if self.source is None or self.tokenizer_choice is None:
            return None
        return make_plan(
            self.source, self.tokenizer_choice, self.uri, data_dir=self.data_dir, val_fraction=self.val_fraction
        )

    def prepare_data(self) -> None:
        """Build the store if it is not there; see `prepare`."""
        if self.source is not None and self.tokenizer_choice is not None:
            prepare(
                self.source,
                self.tokenizer_choice,
                self.uri,
                data_dir=self.data_dir,
                max_documents=self.budget.max_documents,
                max_tokens=self.budget.max_tokens,
                val_fraction=self.val_fraction,
                storage_options=self.storage_options,
            )

    def setup(self, stage: str) -> None:
        """Open the store.

        Raises:
            StoreError: If it is not committed, or not complete.
        """
        if self._plan is not None:
            self._store = open_prepared(self._plan, self.budget, self.storage_options)
        else:
            self._store = TokenStore.open(str(self.uri), storage_options=self.storage_options)
        if stage == "fit":
            self._loader = self._state = None

    @property
    def store(self) -> TokenStore:
        """The open store.

        Raises:
            StoreError: Before `setup`.
        """
        if self._store is None:
            raise StoreError(
                "The token store is not open yet: call prepare_data() and setup('fit'), or let a Trainer do so."
            )
        return self._store

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus one: what the model's embedding needs."""
        return self.store.commit.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store."""
        if self._plan is not None:
            return self._plan.tokenizer
        beside = str(self.uri).removesuffix(".lance") + ".tokenizer.json"
        tokenizer = TokenizerFile(beside, self.store.commit.eos_token).load(None, Path(self.data_dir))
        if tokenizer.digest != self.store.commit.recipe["tokenizer"]:
            raise StoreError(f"The tokenizer {beside!r} is not the one that made {self.uri!r}: bring that one back.")
        return tokenizer

    def train_dataloader(self) -> WindowLoader:
        """Give the loader of the training windows, at the place where the last one, or the checkpoint, was."""
        state = self._loader.state_dict() if self._loader is not None else self._state
        self._loader = self._make_loader("train", self.order)
        if state is not None and self._loader.resumable:
            self._loader.load_state_dict(state)
        return self._loader

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """Give the loader of the validation windows; an empty list, and a warning, where there are none."""
        longest = max((stream.num_tokens for stream in self.store.streams("val")), default=0)
        if longest <= self.context_length:
            _log.warning(
                "The store has no validation window of %d + 1 tokens: raise val_fraction, or store more documents.",
                self.context_length,
            )
            return []
        return self._make_loader("val", "sequential")

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _make_loader(self, split: str, order: Order) -> WindowLoader:
        # A run that overfits wants the same batches in every epoch.
        anew = split != "train" or bool(getattr(self.trainer, "overfit_batches", 0))
        group = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        return WindowLoader(
            self.store,
            self.context_length,
            self.batch_size,
            split=split,
            order=order,
            seed=self.seed,
            rank=group["rank"],
            world_size=group["num_replicas"],
            batch_format=self.batch_format,
            drop_last=split == "train",
            resumable=not anew,
        )

    # Lightning keeps the state of the train loader by itself, and loses it when a scheduler asks for the number of steps
    # before the loops are restored. So the cursor is kept here too, and given to a loader that may be there already.

    def state_dict(self) -> dict[str, Any]:
        """Give the place in the data; plain types."""
        return self._loader.state_dict() if self._loader is not None else self._state or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, on the tokens that the store had then."""
        if not state_dict:
            return
        self._state = state_dict
        if state_dict["fingerprint"] == self.store.fingerprint:
            # Of another store, only training has to know: the loader will refuse it.
            self._store = self.store.at_tokens(state_dict["tokens"])
        if self._loader is not None:
            self._loader.load_state_dict(state_dict)
