"""From windows to batches: dicts of `input_ids`, `targets`, what channels there are, and optional extras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_lance.errors import flag, one_of
from lightning_lance.format.channels import CHANNELS, LOSS_MASK, TOKEN_LABELS
from lightning_lance.serving.fim import Arranged, FillInTheMiddle
from lightning_lance.serving.options import BatchFormat
from lightning_lance.type_hints import check_arguments

Batch = dict[str, torch.Tensor]
_Tokens = npt.NDArray[Any]
_Ints = npt.NDArray[np.int64]

# The label that torch's cross entropy, and so every model of transformers, ignores.
_IGNORED = -100


def make_batch(windows: torch.Tensor, batch_format: BatchFormat) -> Batch:
    """Return inputs and targets of windows. They are views of the same memory: clone a tensor before changing it.

    Args:
        windows: (..., context_length + 1) int64.
        batch_format: `default` gives `input_ids` and `targets`, (..., context_length) each, `targets[i] = input_ids[i + 1]`;
            `huggingface` gives `input_ids` and the same tensor, unshifted, as `labels`: its models shift the labels
            themselves, and so never train on the last token of a window.
    """
    input_ids = windows[..., :-1]
    if batch_format == "huggingface":
        return {"input_ids": input_ids, "labels": input_ids}
    return {"input_ids": input_ids, "targets": windows[..., 1:]}


class WindowDocuments(NamedTuple):
    """The documents of several windows, each window from its first token on. Flat offsets count inputs, T per window.

    Attributes:
        ends: (m,) ascending flat offsets of EOS.
        begins: (k,) ascending flat offsets of first tokens of documents; each window begins one.
        lengths: (k,) tokens of these documents.
        numbers: (k,) int32, their numbers in their windows, from 0.
        first: For each window, and for the end, the place of its first document among the k.
    """

    ends: _Ints
    begins: _Ints
    lengths: _Ints
    numbers: npt.NDArray[np.int32]
    first: Sequence[int]

    def of(self, low: int, high: int) -> slice:
        """Return the places of the documents of the windows [low, high)."""
        return slice(self.first[low], self.first[high])


class WindowBatch(NamedTuple):
    """The windows of several batches.

    Attributes:
        tokens: (n, T + 1) integers.
        channels: What the channels of the stores have for the tokens, (n, T + 1) each, by name.
        documents: The documents of the windows, once they are found.
    """

    tokens: _Tokens
    channels: Mapping[str, npt.NDArray[Any]] = {}
    documents: WindowDocuments | None = None

    def cut(self, rows: int) -> WindowBatch:
        """Return the windows, whose documents are not found yet, cut into rows; see `in_rows`."""
        channels = {name: in_rows(values, rows) for name, values in self.channels.items()}
        return WindowBatch(in_rows(self.tokens, rows), channels)


class Collator:
    """Makes batches from windows. Below, B is the number of windows and T is `context_length`.

    Document borders are read from the tokens. That is exact: a store contains EOS only at the end of a document, and text
    that spells EOS was encoded as plain text. A window that begins within a document begins with the rest of it. All shapes
    depend on B and T alone, so a compiled model is compiled once.

    If there is a channel `loss_mask`, the tokens that it leaves out are -100 in `targets` (or `labels`), which are then copies,
    and batches in the format `default` have `loss_mask`, (B, T) bool: whether there is something to learn from each target. A
    channel `token_labels` is added as (B, T) int64, for the inputs.

    Args:
        eos_id: The id that ends every document; it belongs to the document that it ends.
        batch_format: See `make_batch`.
        document_ids: Add `document_ids`, (B, T) int32: the number of each token's document within its window, from 0.
            Attention restricted to documents compares these.
        position_ids: Add `position_ids`, (B, T) int64: the position of each token within its document and window.
        cu_seqlens: Add the arguments of variable-length attention kernels for the B * T tokens laid end to end:
            `cu_seqlens`, (B * T + 1,) int32, the first token of each document (each window begins one), padded with B * T
            to the largest possible number of documents, so that the unused ones are empty; and `max_seqlen`, () int32,
            the length of the longest document. It is a tensor, so Lightning moves it with the batch and no new value
            recompiles the model. Kernels also accept the bound T, which needs no synchronization with the device.
        mask_boundary_targets: Put -100 where the model would have to guess the first token of the next document from
            the EOS before it: in `targets` at the EOS, in `labels` at the first token. These tensors are then copies.
        fim: Rearranges documents for fill-in-the-middle; everything else describes the rearranged windows.

    Raises:
        ConfigError: If `batch_format` is unknown, or a sentinel of `fim` is EOS.
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
        self._needs_documents = self._document_ids or self._position_ids or self._cu_seqlens or self._mask

    def __call__(self, tokens: _Tokens, starts: _Ints, epochs: _Ints) -> Batch:
        """Return one batch of all the windows, without channels; the arguments are those of `rearrange`."""
        return self.batch(self.describe(self.rearrange(tokens, starts, epochs)), 0, len(tokens))

    def rearrange(
        self,
        tokens: _Tokens,
        starts: _Ints,
        epochs: _Ints,
        channels: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> WindowBatch:
        """Return the windows rearranged by `fim`, or unchanged without it. Their documents are not found yet.

        Args:
            tokens: (n, T + 1) integers.
            starts: (n,) offsets of the first tokens among the tokens of the split.
            epochs: (n,) epoch of each window.
            channels: What the channels have for the tokens, (n, T + 1) each, by name.
        """
        channels = channels or {}
        if self._fim is None:
            return WindowBatch(tokens, channels)
        arranged = self._fim.arrange(tokens, starts, epochs, self._eos_id)
        moved = {name: _moved(name, values, arranged) for name, values in channels.items()}
        return WindowBatch(arranged.tokens, moved)

    def describe(self, windows: WindowBatch) -> WindowBatch:
        """Find the documents of several batches of windows at once.

        Args:
            windows: Their tokens in the dtype of the store: scanning two bytes is faster than scanning eight.
        """
        if not self._needs_documents:
            return windows
        tokens = windows.tokens
        # numpy rather than torch: with few borders among many tokens, it scans the tokens once or twice, in one thread.
        length = tokens.shape[1] - 1
        size = len(tokens) * length
        # Comparing all tokens at once is four times as fast as comparing the inputs window by window.
        eos = offsets_of(self._eos_id, tokens.reshape(-1))
        window = eos // (length + 1)
        # A window has one token more than inputs.
        offset = eos - window
        column = offset - window * length
        ends = offset[column < length]
        # An EOS may be the last input of a window. The next window begins a document anyway.
        within = column < length - 1
        # Two ascending runs, which a stable sort merges.
        begins = np.sort(np.concatenate([offset[within] + 1, np.arange(0, size, length)]), kind="stable")
        counts = np.bincount(window[within], minlength=len(tokens)) + 1
        first = np.append(0, np.cumsum(counts))
        numbers = np.arange(len(begins)) - np.repeat(first[:-1], counts)
        lengths = np.diff(begins, append=size)
        documents = WindowDocuments(ends, begins, lengths, numbers.astype(np.int32), first.tolist())
        return windows._replace(documents=documents)

    def batch(self, described: WindowBatch, low: int, high: int) -> Batch:
        """Return the batch of the windows [low, high) of those described."""
        # Widened here and not in `describe`: each thread does half of the work, and the batch stays in this core's cache.
        batch = make_batch(torch.from_numpy(described.tokens[low:high].astype(np.int64)), self._batch_format)
        if described.documents is not None:
            self._add_documents(batch, described.documents, low, high)
        if TOKEN_LABELS in described.channels:
            labels = described.channels[TOKEN_LABELS][low:high, :-1]
            batch[TOKEN_LABELS] = torch.from_numpy(labels.astype(CHANNELS[TOKEN_LABELS].served))
        if self._mask or LOSS_MASK in described.channels:
            self._mask_targets(batch, described, low, high)
        return batch

    def _add_documents(self, batch: Batch, documents: WindowDocuments, low: int, high: int) -> None:
        """Add what is asked for of the documents of the windows [low, high)."""
        shape = batch["input_ids"].shape
        size = batch["input_ids"].numel()
        mine = documents.of(low, high)
        lengths = documents.lengths[mine]
        if self._document_ids:
            numbers = np.repeat(documents.numbers[mine], lengths)
            batch["document_ids"] = torch.from_numpy(numbers.reshape(shape))
        if self._position_ids:
            positions = np.arange(low * shape[-1], high * shape[-1])
            positions -= np.repeat(documents.begins[mine], lengths)
            batch["position_ids"] = torch.from_numpy(positions.reshape(shape))
        if self._cu_seqlens:
            borders = np.full(size + 1, size, dtype=np.int32)
            borders[: len(lengths)] = documents.begins[mine] - low * shape[-1]
            batch["cu_seqlens"] = torch.from_numpy(borders)
            batch["max_seqlen"] = torch.tensor(lengths.max(initial=0), dtype=torch.int32)

    def _mask_targets(self, batch: Batch, described: WindowBatch, low: int, high: int) -> None:
        """Put -100 where there is nothing to learn."""
        is_default = self._batch_format == "default"
        name = "targets" if is_default else "labels"
        masked = batch[name].numpy().copy()
        trained = described.channels.get(LOSS_MASK)
        if trained is not None:
            # Targets are the tokens from the second one on.
            of_them = trained[low:high, 1:] if is_default else trained[low:high, :-1]
            masked[~of_them] = _IGNORED
        if self._mask and described.documents is not None:
            length = masked.shape[1]
            offsets = _between(described.documents.ends, low * length, high * length)
            if not is_default:
                offsets = offsets[(offsets + 1) % length != 0] + 1
            masked.reshape(-1)[offsets] = _IGNORED
        batch[name] = torch.from_numpy(masked)
        # The models of transformers take no such argument, and their labels say all of it.
        if trained is not None and is_default:
            batch[LOSS_MASK] = torch.from_numpy(masked != _IGNORED)


def _moved(name: str, values: npt.NDArray[Any], arranged: Arranged) -> npt.NDArray[Any]:
    """Return what a channel has for the tokens of rearranged windows."""
    if name == LOSS_MASK:
        # A sentinel is learned with its document: not in one of which nothing is.
        return arranged.move(values, arranged.any_in_document(values))
    return arranged.move(values, CHANNELS[name].absent)


def _between(offsets: _Ints, low: int, high: int) -> _Ints:
    """Return those of ascending offsets that lie in [low, high), relative to `low`."""
    first, last = np.searchsorted(offsets, [low, high])
    found: _Ints = offsets[first:last] - low
    return found


def offsets_of(token: int, tokens: _Tokens) -> _Ints:
    """Return the ascending offsets of a token, fast where it is rare: eight tokens are looked at together.

    Args:
        token: The id.
        tokens: (n,) integers.
    """
    size = len(tokens)
    equal = np.empty(-(-size // 8) * 8, np.bool_)
    np.equal(tokens, token, out=equal[:size])
    equal[size:] = False
    eights = np.flatnonzero(equal.view(np.uint64) != 0)
    eighth, place = np.divmod(np.flatnonzero(equal.reshape(-1, 8)[eights]), 8)
    found: _Ints = eights[eighth] * 8 + place
    return found


def in_rows(windows: _Tokens, rows: int) -> _Tokens:
    """Return windows cut into rows that follow each other, each of which begins with the last token of the one before.

    A row is a window of its own: what a batch says of its documents and positions begins anew in it.

    Args:
        windows: (n, T + 1) integers.
        rows: The number of rows of a window, which divides T.

    Returns:
        (n * rows, T / rows + 1) integers.
    """
    if rows == 1:
        return windows
    length = (windows.shape[1] - 1) // rows
    found = np.lib.stride_tricks.sliding_window_view(windows, length + 1, axis=1)[:, ::length]
    return np.ascontiguousarray(found).reshape(-1, length + 1)
