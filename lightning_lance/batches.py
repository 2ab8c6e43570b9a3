"""From windows to what a model gets: a dict of `input_ids` and `targets`, with what is asked for besides."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_lance.errors import ConfigError
from lightning_lance.fim import FillInTheMiddle

Batch = dict[str, torch.Tensor]
BatchFormat = Literal["default", "huggingface"]

# What torch's cross entropy, and with it every model of transformers, leaves out of the loss.
_IGNORED = -100


def make_batch(windows: torch.Tensor, batch_format: BatchFormat) -> Batch:
    """Name the parts of some windows; the tensors are views of the same memory, so clone one before you change it.

    Args:
        windows: (..., context_length + 1) int64.
        batch_format: `default` gives `input_ids` and `targets`, (..., context_length) each, `targets[i] = input_ids[i + 1]`;
            `huggingface` gives `input_ids` and the same, unshifted, as `labels`: its models shift by themselves, and so
            do not learn from the last token of a window.
    """
    input_ids = windows[..., :-1]
    if batch_format == "huggingface":
        return {"input_ids": input_ids, "labels": input_ids}
    return {"input_ids": input_ids, "targets": windows[..., 1:]}


class BatchMaker:
    """Makes batches of windows, all alike. Below, (B, T) are windows and `context_length`.

    Where documents end is read from the tokens. That is exact, not a guess: a store has EOS only as the end of a document,
    and text that spells EOS was encoded as plain text. A window that begins within a document begins with what is left of
    it. All shapes are fixed by B and T, so that a compiled model is compiled once.

    Args:
        eos_id: The id that ends every document; it belongs to the document that it ends.
        batch_format: See `make_batch`.
        document_ids: Add `document_ids`, (B, T) int32: which document of its window a token is of, from 0. Attention
            that stays within documents compares these.
        position_ids: Add `position_ids`, (B, T) int64: how many tokens of its document come before in the window.
        cu_seqlens: Add what variable-length attention kernels take for the B * T tokens one after the other:
            `cu_seqlens`, (B * T + 1,) int32, where each document begins, a window's begin included, then B * T to the end:
            as many documents as there can be, those that are not there empty; and `max_seqlen`, () int32, the tokens of
            the longest. A tensor, which Lightning moves with the rest and for which nothing is compiled again; T, known
            without asking the device, is a bound that kernels take as well.
        mask_boundary_targets: Put -100 where the model would have to guess the first token of the next document from
            the EOS before it: in `targets` at the EOS, in `labels` at the first token. These are then no views.
        fim: Rearranges documents for fill-in-the-middle first; the rest describes what it makes.

    Raises:
        ConfigError: If `batch_format` is none of the two, or a sentinel of `fim` is EOS.
    """

    def __init__(
        self,
        eos_id: int,
        *,
        batch_format: BatchFormat = "default",
        document_ids: bool = False,
        position_ids: bool = False,
        cu_seqlens: bool = False,
        mask_boundary_targets: bool = False,
        fim: FillInTheMiddle | None = None,
    ) -> None:
        if batch_format not in get_args(BatchFormat):
            raise ConfigError(f"batch_format is {batch_format!r}: expected one of {', '.join(get_args(BatchFormat))}.")
        if fim is not None:
            fim.check(eos_id)
        self._eos_id = eos_id
        self._batch_format: BatchFormat = batch_format
        self._document_ids, self._position_ids, self._cu_seqlens = document_ids, position_ids, cu_seqlens
        self._mask = mask_boundary_targets
        self._fim = fim
        self._needs_borders = document_ids or position_ids or cu_seqlens or mask_boundary_targets

    def __call__(self, windows: torch.Tensor, starts: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> Batch:
        """Make the batch of some windows.

        Args:
            windows: (B, T + 1) int64 on the CPU; the batch has views of it, or of a copy.
            starts: (B,) offsets of the first tokens among the tokens of the split; only for `fim`.
            epochs: (B,) epoch of each window; only for `fim`.
        """
        if self._fim is not None:
            windows = torch.from_numpy(self._fim.apply(windows.numpy(), starts, epochs, self._eos_id))
        batch = make_batch(windows, self._batch_format)
        if self._needs_borders:
            self._add_to(batch)
        return batch

    def _add_to(self, batch: Batch) -> None:
        # numpy, as for few documents of many tokens its sparse forms pass over the tokens once or twice, in one thread.
        input_ids: npt.NDArray[Any] = batch["input_ids"].numpy()
        shape, length = input_ids.shape, input_ids.shape[1]
        ends = np.flatnonzero(input_ids == self._eos_id)
        # A window's last input may be EOS; what follows is the next window, which begins by itself.
        inner = ends[(ends + 1) % length != 0] + 1
        begins = np.sort(np.concatenate([inner, np.arange(0, input_ids.size, length)]))
        lengths = np.diff(begins, append=input_ids.size)
        if self._document_ids:
            documents = np.arange(len(begins), dtype=np.int32)
            first = np.flatnonzero(begins % length == 0)
            of_window = documents - np.repeat(first.astype(np.int32), np.diff(first, append=len(begins)))
            batch["document_ids"] = torch.from_numpy(np.repeat(of_window, lengths).reshape(shape))
        if self._position_ids:
            positions = np.arange(input_ids.size)
            positions -= np.repeat(begins, lengths)
            batch["position_ids"] = torch.from_numpy(positions.reshape(shape))
        if self._cu_seqlens:
            borders = np.full(input_ids.size + 1, input_ids.size, dtype=np.int32)
            borders[: len(begins)] = begins
            batch["cu_seqlens"] = torch.from_numpy(borders)
            batch["max_seqlen"] = torch.tensor(lengths.max(initial=0), dtype=torch.int32)
        if self._mask:
            name, places = ("labels", inner) if self._batch_format == "huggingface" else ("targets", ends)
            masked = batch[name].numpy().copy()
            masked.reshape(-1)[places] = _IGNORED
            batch[name] = torch.from_numpy(masked)
