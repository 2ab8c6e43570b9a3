"""`SliceMetrics`: the loss of each language, license, repository or corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_lance.build.corpus import Corpus
from lightning_lance.callbacks.served import eos_of, first_tokens, has_other_ranks, train_loader, val_loader, windows_of
from lightning_lance.callbacks.token_losses import TokenLosses, numbers_of_documents, sums_by_document, token_losses_of
from lightning_lance.datamodule import LanceDataModule
from lightning_lance.errors import ConfigError, StoreError, one_of, whole_number
from lightning_lance.messages.escaping import logger, shown
from lightning_lance.messages.formatting import format_list
from lightning_lance.serving.loader import WindowLoader

_log = logger(__name__)

By = Literal["language", "license", "repo", "corpus"]

# All tokens of a window are of one language and corpus; licenses and repositories are those of its documents, which are read
# from the store: of one batch in so many, since that takes longer.
_SAMPLED = 10
_OTHER = "other"
# What a store says of documents in windows, besides their fields.
_PLACES = ("window", "begin", "end", "id")
_UNKNOWN = "unknown"
# The same names as the model's own, for `data.val_by`.
_VAL_BY = {"language": "language", "store": "corpus"}


class _Sum(NamedTuple):
    """The losses of a slice: their sum, and the number of tokens."""

    loss: float = 0.0
    tokens: float = 0.0

    def plus(self, other: _Sum) -> _Sum:
        return _Sum(self.loss + other.loss, self.tokens + other.tokens)


@dataclass
class _Batch:
    """The losses of a batch, on the device.

    Attributes:
        step: Number of the batch.
        by_window: (rows, 2) sums of losses, and tokens, of each row.
        losses: Of its tokens; None where windows suffice.
        first: Its first tokens; None where windows suffice.
    """

    step: int
    by_window: Tensor | None
    losses: TokenLosses | None = None
    first: Tensor | None = None


class SliceMetrics(Callback):
    """Logs the training and validation loss of each language, license, repository or corpus.

    Training losses, `train_loss/Python`, are means over the tokens of all ranks since they were logged last; validation
    losses, `val_loss/Python`, over those of a validation. Licenses and repositories are `train_loss/license/mit` and
    `train_loss/repo/owner/name`; in training they are read of every tenth batch. Where `data.val_by` makes validation losses of
    the same slices, those are the only ones.

    The steps of the model return `token_losses`, in the shape of the targets, in a dict; `training_step` with `loss`.

    Args:
        by: `language`, `license`, `repo` or `corpus`. Licenses and repositories are those of `source.columns`.
        top: Slices with a name of their own: those with the most tokens. The rest is `other`.

    Raises:
        ConfigError: If an argument cannot be used; in training, if a step returns no losses of tokens, or the documents have
            no such field.
    """

    #: For models that make the losses of tokens only where they are read.
    needs_token_losses = True

    def __init__(self, by: By = "language", top: int = 20) -> None:
        self.by = one_of("by", by, get_args(By))
        self.top = whole_number("top", top)
        self._of_windows = self.by in _VAL_BY.values()
        self._named: list[str] = []
        self._train: list[_Batch] = []
        self._ended: dict[str, _Sum] = {}  # of batches of epochs that have ended
        self._val: list[_Batch] = []
        self._step = -1
        self._global_step = 0  # before this batch
        self._told = False

    @property
    def state_key(self) -> str:
        """One for each kind of slices, since a Trainer may have several."""
        return self._generate_state_key(by=self.by)

    def state_dict(self) -> dict[str, Any]:
        """Return the slices with a name of their own, which a resumed run goes on with."""
        return {"named": [*self._named]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the names of a checkpoint."""
        self._named = [*state_dict["named"]]

    def check(self, data: LanceDataModule) -> None:
        """Check that the documents of data will have the field, before it is built.

        Raises:
            ConfigError: If a source has no such field.
        """
        for corpus in data.corpora.values():
            if self._of_windows or not isinstance(corpus, Corpus) or self.by in corpus.source.metadata:
                continue
            raise ConfigError(
                f"by is {self.by!r}, and the documents of the source have no such field: expected one of "
                f"{format_list([*corpus.source.metadata]) or 'none'}; name their column, as in source.columns="
                f"{{{self.by}: ...}}, or slice by language."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the documents have the field."""
        self._train = []
        self._ended = {}
        loader = train_loader(trainer)
        if loader is None:
            raise ConfigError(
                "SliceMetrics knows the documents of windows that a LanceDataModule or a WindowLoader serves, and the Trainer "
                "has other data: leave the callback out."
            )
        if not self._of_windows:
            for store in loader.stores.values():
                names = store.documents(np.empty(0, np.int64), 1).column_names
                if self.by not in names:
                    fields = [name for name in names if name not in _PLACES]
                    raise ConfigError(
                        f"by is {self.by!r}, and the documents of {store.uri!r} have no such field: expected one of "
                        f"{format_list(fields)}; build with the column, as in "
                        f"source.columns={{{self.by}: ...}}, or slice by language."
                    )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note which batch this is."""
        loader = train_loader(trainer)
        self._step = -1 if loader is None else loader.last_step
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch, and log at the steps at which Lightning does."""
        # A step may leave out a batch.
        left_out = not outputs and pl_module.automatic_optimization
        if not left_out and (self._of_windows or self._step % _SAMPLED == 0):
            self._train.append(self._batch(self._step, outputs, batch, "training_step"))
        every: int = getattr(trainer, "log_every_n_steps", 0)
        stepped = trainer.global_step > self._global_step
        if not (stepped and every > 0 and trainer.global_step % every == 0):
            return
        sums, self._ended = self._ended, {}
        metrics = self._metrics("train_loss", trainer, train_loader(trainer), self._train, sums)
        self._train = []
        if trainer.is_global_zero and metrics:
            for metrics_logger in trainer.loggers:
                metrics_logger.log_metrics(metrics, step=trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the slices of this epoch's batches: the next epoch may have other windows (`data.extend`)."""
        self._add(self._ended, train_loader(trainer), self._train)
        self._train = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch, if it is one of all windows."""
        if dataloader_idx == 0 and not trainer.sanity_checking and not self._is_validated(trainer):
            self._val.append(self._batch(batch_idx, outputs, batch, "validation_step"))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the losses of the validation."""
        if trainer.sanity_checking or self._is_validated(trainer):
            return
        metrics = self._metrics("val_loss", trainer, val_loader(trainer), self._val)
        self._val = []
        for name, value in metrics.items():
            pl_module.log(name, value)

    def _is_validated(self, trainer: Trainer) -> bool:
        """Return whether the model logs validation losses of the same slices."""
        data = getattr(trainer, "datamodule", None)
        return isinstance(data, LanceDataModule) and _VAL_BY.get(data.serving.val_by) == self.by

    def _batch(self, step: int, outputs: Any, batch: Any, name: str) -> _Batch:
        losses = token_losses_of(outputs, batch, name, self)
        if self._of_windows:
            return _Batch(step, losses.by_window())
        return _Batch(step, None, losses, first_tokens(batch["input_ids"]))

    def _metrics(
        self,
        prefix: str,
        trainer: Trainer,
        loader: WindowLoader | None,
        batches: Sequence[_Batch],
        before: Mapping[str, _Sum] | None = None,
    ) -> dict[str, float]:
        """Return the mean loss of each slice of some batches of all ranks, by its name; with the sums of those before."""
        sums: dict[str, _Sum] = {}
        if before is not None:
            sums.update(before)
        self._add(sums, loader, batches)
        everyone = [sums]
        if has_other_ranks(trainer):
            everyone = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(everyone, sums)
        together: dict[str, _Sum] = {}
        for of_rank in everyone:
            for name, (loss, tokens) in of_rank.items():
                together[name] = together.get(name, _Sum()).plus(_Sum(loss, tokens))
        self._name(loader, together)
        return self._means(prefix, together)

    def _add(self, sums: dict[str, _Sum], loader: WindowLoader | None, batches: Sequence[_Batch]) -> None:
        """Add some batches to the sums of slices."""
        if loader is None:
            return
        try:
            for name, part in self._parts(loader, batches):
                sums[name] = sums.get(name, _Sum()).plus(part)
        except StoreError as error:
            if not self._told:
                self._told = True
                _log.warning("The slices of some batches are not known, and their losses are left out: %s", error)

    def _parts(self, loader: WindowLoader, batches: Sequence[_Batch]) -> Iterator[tuple[str, _Sum]]:
        if self._of_windows and batches:
            by_window = []
            for batch in batches:
                if batch.by_window is not None:
                    by_row = batch.by_window.reshape(-1, loader.rows_of(batch.step), 2)
                    by_window.append(by_row.sum(dim=1))
            # One copy from the device for all of them.
            sums = torch.cat(by_window).tolist()
            streams = loader.streams_of([batch.step for batch in batches])
            for (corpus, language), (loss, tokens) in zip(streams, sums, strict=True):
                yield self._slice_of(corpus, language), _Sum(loss, tokens)
            return
        for batch in batches:
            if batch.losses is not None and batch.first is not None:
                yield from self._documents(loader, batch.step, batch.losses, batch.first)

    def _slice_of(self, corpus: str, language: str) -> str:
        return (language if self.by == "language" else corpus) or _UNKNOWN

    def _documents(
        self, loader: WindowLoader, step: int, losses: TokenLosses, first: Tensor
    ) -> Iterator[tuple[str, _Sum]]:
        served = windows_of(loader, step, first)
        losses = losses.of_windows(served.rows, loader.context_length // served.rows)
        found = sums_by_document(numbers_of_documents(served.tokens, eos_of(loader)), losses)
        known = served.documents
        names: dict[int, list[Any]] = {}
        for window, name in zip(known.column("window").to_pylist(), known.column(self.by).to_pylist(), strict=True):
            names.setdefault(window, []).append(name)
        window = -1
        place = 0
        for document in found:
            # By their order: fill-in-the-middle moves the borders of documents, and may drop the last ones.
            place = place + 1 if document.window == window else 0
            window = document.window
            yield str(names[window][place] or _UNKNOWN), _Sum(document.loss, document.tokens)

    def _name(self, loader: WindowLoader | None, sums: Mapping[str, _Sum]) -> None:
        """Give names of their own to the largest slices, once and for all."""
        largest = sorted(sums, key=lambda name: (-sums[name].tokens, name))
        if self._of_windows and loader is not None and not self._named:
            tokens: dict[str, int] = {}
            for corpus, store in loader.stores.items():
                for stream in (*store.streams("train"), *store.streams("val")):
                    name = self._slice_of(corpus, stream.language)
                    tokens[name] = tokens.get(name, 0) + stream.num_tokens
            largest = sorted(tokens, key=lambda name: (-tokens[name], name))
        for name in largest:
            if len(self._named) < self.top and name not in self._named and name != _OTHER:
                self._named.append(name)

    def _means(self, prefix: str, sums: Mapping[str, _Sum]) -> dict[str, float]:
        if not self._of_windows:
            prefix = f"{prefix}/{self.by}"
        named: dict[str, _Sum] = {}
        for name, part in sums.items():
            own = name if name in self._named else _OTHER
            named[own] = named.get(own, _Sum()).plus(part)
        means: dict[str, float] = {}
        for name, part in named.items():
            if part.tokens:
                means[f"{prefix}/{shown(name)}"] = part.loss / part.tokens
        return means
