"""From windows to what a model gets: a dict of `input_ids` and `targets`, with what is asked for besides."""

from __future__ import annotations

from typing import Any, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_lance.errors import flag, one_of
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.options import BatchFormat
from lightning_lance.type_hints import check_arguments

Batch = dict[str, torch.Tensor]
_Tokens = npt.NDArray[Any]
_Ints = npt.NDArray[np.int64]

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


class WindowBatch(NamedTuple):
    """Windows, and what of their batches was worked out for all at once. Flat places count the inputs, T to a window.

    Attributes:
        tokens: (n, T + 1) integers.
        ends: (m,) ascending flat places of EOS.
        begins: (k,) ascending flat places at which documents begin; each window begins one.
        document_ids: (n, T) int32, if asked for.
        position_ids: (n, T) int64, if asked for.
    """

    tokens: _Tokens
    ends: _Ints = np.empty(0, np.int64)
    begins: _Ints = np.empty(0, np.int64)
    document_ids: npt.NDArray[np.int32] | None = None
    position_ids: _Ints | None = None


class Collator:
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
        self._batch_format = cast(BatchFormat, one_of("batch_format", batch_format, get_args(BatchFormat)))
        check_arguments(Collator, {"fim": fim})
        if fim is not None:
            fim.check(eos_id)
        self._eos_id = eos_id
        self._document_ids = flag("document_ids", document_ids)
        self._position_ids = flag("position_ids", position_ids)
        self._cu_seqlens = flag("cu_seqlens", cu_seqlens)
        self._mask = flag("mask_boundary_targets", mask_boundary_targets)
        self._fim = fim
        self._needs_borders = self._document_ids or self._position_ids or self._cu_seqlens or self._mask

    def __call__(self, tokens: _Tokens, starts: _Ints, epochs: _Ints) -> Batch:
        """Make one batch of all of some windows; the arguments are those of `rearrange`."""
        return self.batch(self.describe(self.rearrange(tokens, starts, epochs)), 0, len(tokens))

    def rearrange(self, tokens: _Tokens, starts: _Ints, epochs: _Ints) -> _Tokens:
        """Give windows as `fim` makes them; without it, as they are.

        Args:
            tokens: (n, T + 1) integers.
            starts: (n,) offsets of the first tokens among the tokens of the split.
            epochs: (n,) epoch of each window.
        """
        return tokens if self._fim is None else self._fim.apply(tokens, starts, epochs, self._eos_id)

    def describe(self, tokens: _Tokens) -> WindowBatch:
        """Work out, for the windows of some batches at once, all that does not depend on who is in which batch.

        Args:
            tokens: (n, T + 1) integers, as the store has them: two bytes are passed over sooner than eight.
        """
        if not self._needs_borders:
            return WindowBatch(tokens)
        # numpy, as for few documents of many tokens its sparse forms pass over the tokens once or twice, in one thread.
        length = tokens.shape[1] - 1
        shape, size = (len(tokens), length), len(tokens) * length
        # All tokens at once are compared four times as fast as the inputs of one window after the other.
        window, column = np.divmod(np.flatnonzero(tokens.reshape(-1) == self._eos_id), length + 1)
        ends = (window * length + column)[column < length]
        # A window's last input may be EOS; what follows is the next window, which begins by itself.
        begins = np.sort(np.concatenate([ends[(ends + 1) % length != 0] + 1, np.arange(0, size, length)]))
        described, lengths = WindowBatch(tokens, ends, begins), np.diff(begins, append=size)
        if self._document_ids:
            documents = np.arange(len(begins), dtype=np.int32)
            first = np.flatnonzero(begins % length == 0)
            of_window = documents - np.repeat(first.astype(np.int32), np.diff(first, append=len(begins)))
            described = described._replace(document_ids=np.repeat(of_window, lengths).reshape(shape))
        if self._position_ids:
            positions = np.arange(size)
            positions -= np.repeat(begins, lengths)
            described = described._replace(position_ids=positions.reshape(shape))
        return described

    def batch(self, described: WindowBatch, low: int, high: int) -> Batch:
        """Make the batch of the windows from `low` to `high` of those described."""
        # Widened here and not in `describe`: two threads have half of the work each, and the batch is in this core's cache.
        batch = make_batch(torch.from_numpy(described.tokens[low:high].astype(np.int64)), self._batch_format)
        length = described.tokens.shape[1] - 1
        if described.document_ids is not None:
            batch["document_ids"] = torch.from_numpy(described.document_ids[low:high])
        if described.position_ids is not None:
            batch["position_ids"] = torch.from_numpy(described.position_ids[low:high])
        if self._cu_seqlens:
            begins = _between(described.begins, low * length, high * length)
            size = (high - low) * length
            borders = np.full(size + 1, size, dtype=np.int32)
            borders[: len(begins)] = begins
            batch["cu_seqlens"] = torch.from_numpy(borders)
            batch["max_seqlen"] = torch.tensor(np.diff(begins, append=size).max(initial=0), dtype=torch.int32)
        if self._mask:
            name, places = "targets", _between(described.ends, low * length, high * length)
            if self._batch_format == "huggingface":
                name, places = "labels", places[(places + 1) % length != 0] + 1
            masked = batch[name].numpy().copy()
            masked.reshape(-1)[places] = _IGNORED
            batch[name] = torch.from_numpy(masked)
        return batch


def _between(places: _Ints, low: int, high: int) -> _Ints:
    """Pick of ascending places those in [low, high), counted from `low`."""
    first, last = np.searchsorted(places, [low, high])
    found: _Ints = places[first:last] - low
    return found
