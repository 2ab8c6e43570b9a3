"""The losses of the tokens of a batch, as a model returns them from its step, and their sums by document.

A step returns `token_losses` beside `loss`: for each target the loss of predicting it, in the shape of the targets. A callback
that reads them has `needs_token_losses`; a model for which they cost something can look for one among `trainer.callbacks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_lance.errors import ConfigError, described
from lightning_lance.inspection.spikes import DocumentLoss

_IGNORED = -100


class TokenLosses(NamedTuple):
    """The losses of a batch of B windows. A row begins with the target that is the second token of its window.

    Attributes:
        losses: (B, L) float32, 0 where nothing is to be learned.
        counts: (B, L) bool: where something is.
    """

    losses: Tensor
    counts: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean loss of all tokens, (); 0 without any."""
        return self.losses.sum() / self.counts.sum().clamp(min=1)

    def of_windows(self, rows: int, length: int) -> TokenLosses:
        """Return the losses by window, where each window is several rows of some tokens that follow each other."""
        if rows == 1:
            return self
        # Models that shift labels themselves have no loss for the last place of a row.
        missing = length - self.losses.shape[1]
        joined = [torch.nn.functional.pad(part, (0, missing)).reshape(-1, rows * length) for part in self]
        return TokenLosses(*joined)

    def by_window(self) -> Tensor:
        """Return the sum of the losses and the number of tokens of each window, (B, 2) float32."""
        return torch.stack([self.losses.sum(dim=1), self.counts.sum(dim=1)], dim=1)


def token_losses_of(outputs: Any, batch: Any, step: str, asking: object) -> TokenLosses:
    """Return the losses that a step has returned. They are copied: the model may use the memory again.

    Args:
        outputs: What the step returned.
        batch: Its batch.
        step: Name of the step, for the message.
        asking: The callback, for the message.

    Raises:
        ConfigError: If the step returned none, or some of another shape.
    """
    name = type(asking).__name__
    losses = outputs.get("token_losses") if isinstance(outputs, Mapping) else None
    if not isinstance(losses, Tensor):
        raise ConfigError(
            f"{name} needs the losses of the tokens, and {step} has returned {described(outputs)} without them: return "
            '{"loss": loss, "token_losses": losses} from it, as cross_entropy(..., reduction="none") gives them.'
        )
    targets = _targets(batch, name)
    windows, length = targets.shape
    # Models that shift labels themselves have no loss for the last place.
    if losses.numel() == windows * (length - 1) and losses.numel() != targets.numel():
        targets = targets[:, :-1]
    if losses.numel() != targets.numel():
        raise ConfigError(
            f"token_losses of {step} have the shape {tuple(losses.shape)}, and the targets {tuple(targets.shape)}: expected a "
            "loss for each target."
        )
    counts = targets != _IGNORED
    kept = losses.detach().reshape(targets.shape)
    return TokenLosses(torch.where(counts, kept.float(), 0.0), counts)


def _targets(batch: Any, name: str) -> Tensor:
    """Return the target of each input, (B, T)."""
    if isinstance(batch, Mapping) and isinstance(batch.get("targets"), Tensor):
        targets: Tensor = batch["targets"]
        return targets
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        labels: Tensor = batch["labels"]
        return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
    raise ConfigError(
        f"{name} needs batches with targets or labels, as a LanceDataModule makes them: got {described(batch)}."
    )


def numbers_of_documents(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """Return the number of each token's document in its window, from 0, (n, T + 1). EOS belongs to the document it ends."""
    ends = tokens == eos_id
    numbers: np.ndarray = np.cumsum(ends, axis=1) - ends
    return numbers


def sums_by_document(numbers: np.ndarray, found: TokenLosses) -> list[DocumentLoss]:
    """Return the losses of the documents of a batch, window by window.

    Args:
        numbers: (B, T + 1) number of each token's document in its window, ascending from 0 without gaps.
        found: Losses of the targets, which are the tokens from the second one on.
    """
    windows, length = numbers.shape
    losses = found.losses.cpu().numpy()
    counts = found.counts.cpu().numpy()
    in_window = numbers[:, -1] + 1
    of_token = numbers + (np.cumsum(in_window) - in_window)[:, None]
    of_target = of_token[:, 1 : losses.shape[1] + 1].reshape(-1)
    total = int(in_window.sum())
    loss = np.bincount(of_target, losses.reshape(-1).astype(np.float64), total)
    tokens = np.bincount(of_target, counts.reshape(-1), total).astype(np.int64)
    ends = np.cumsum(np.bincount(of_token.reshape(-1), minlength=total))
    window = np.repeat(np.arange(windows), in_window)
    end = ends - window * length
    begin = np.append(0, ends[:-1]) - window * length
    rows = zip(window.tolist(), begin.tolist(), end.tolist(), loss.tolist(), tokens.tolist(), strict=True)
    return [DocumentLoss(*row) for row in rows]
