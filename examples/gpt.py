"""A GPT in one file: nanoGPT's shape with today's parts, and the Lightning module that trains it.

`GPT` is the network; `GPTModule` adds what training needs: loss, optimizer, schedule, logs. A batch is a dict of
`input_ids` and `targets`, both (B, T) int64, and perhaps `document_ids`, `position_ids` and `loss_mask`, also (B, T). B:
windows, T: tokens of each, C: width `n_embd`, H: heads, D = C / H.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

# bfloat16 TFLOP/s without sparsity (data sheets print the double), by the name of the GPU up to a hyphen
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 80GB HBM3": 989, "H100 PCIe": 756, "A100": 312, "L40S": 362, "L4": 121}


def known_peak_flops(gpu: str) -> float:
    """FLOP/s of a GPU, by the name CUDA gives it; 0 if it is not in the table."""
    return 1e12 * PEAK_TFLOPS.get(gpu.removeprefix("NVIDIA ").split("-")[0], 0)


def rotary_tables(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv:2104.09864), (..., T) integers: pair i at position p turns by `p * 10000^(-2i/D)`.

    Made anew in every pass, which is a few tiny kernels for all layers: as buffers they would be rounded to bfloat16
    by `precision="bf16-true"` and by FSDP, and scores would no longer depend on the distance alone.

    Returns:
        Cosines and sines, each (..., T, D/2) float32.
    """
    device = positions.device
    frequency = 10_000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)  # (D/2,)
    angle = positions[..., None] * frequency  # (..., T, D/2); no matmul, which autocast would do in bfloat16
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + D/2) of x (..., T, D), as Llama and GPT-NeoX lay them out, in float32."""
    left, right = x.float().chunk(2, dim=-1)  # each (..., T, D/2)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).type_as(x)  # (..., T, D)


_compile_once = functools.cache(torch.compile)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, compiled: by itself, or with the model whose compilation comes by here."""
    return function if torch.compiler.is_compiling() else _compile_once(function)


def document_mask(document_ids: Tensor, flex: bool) -> Tensor | BlockMask:
    """Which tokens attend to which: to those before, and itself, of the same document. For all layers and heads.

    Args:
        document_ids: (B, T) integers.
        flex: Whether for FlexAttention (arXiv:2412.05496), which skips the blocks where nothing is to attend to. It has
            gradients on CUDA only.

    Returns:
        (B, 1, T, T) bool, or its form in blocks.
    """
    if not flex:
        same = document_ids[:, None, :, None] == document_ids[:, None, None, :]  # (B, 1, T, T)
        return same.tril()

    def attends(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (document_ids[b, q] == document_ids[b, kv])

    batch, length = document_ids.shape
    blocks: BlockMask = compiled(create_block_mask)(attends, batch, None, length, length, document_ids.device)
    return blocks


def cosine_with_warmup(step: int, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Part of the learning rate: linear to 1 at `warmup_steps`, then a cosine to `min_ratio` at `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


class ModelError(ValueError):
    """A model cannot be as it is asked for: the message says what, got, expected, and the cure."""


def check_sizes(**sizes: Any) -> None:
    """Refuses, by ModelError, what is no whole number from 1 on."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"got {name}={value!r}, expected a whole number from 1 on.")


def check_number(name: str, value: Any, what: str, fits: Callable[[float], bool]) -> None:
    """Refuses, by ModelError, what is no number or does not fit; `what` says in words what does."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not fits(value):
        raise ModelError(f"got {name}={value!r}, expected {what}.")


def check_same_model(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuses, by ModelError, hyperparameters of a checkpoint whose weights are no weights of this model.

    Args:
        saved: The hyperparameters that the checkpoint holds; what it lacks is not compared.
        mine: Those of this model; None where they are not known yet.
    """
    # Not the context length: rotary positions have no weights.
    shape = [
        name for name in ("n_layer", "n_head", "n_embd", "vocab_size") if None not in (saved.get(name), mine[name])
    ]
    if changes := [f"{name}: {saved[name]} -> {mine[name]}" for name in shape if saved[name] != mine[name]]:
        cure = "choose the model and the tokenizer of that run, or begin without the checkpoint"
        raise ModelError(f"the checkpoint is of another model ({', '.join(changes)}): {cure}.")


def check_heads(n_head: int, n_embd: int) -> None:
    """Refuses, by ModelError, a width that `n_head` heads cannot share, or that gives them odd ones, without rotary pairs."""
    check_sizes(n_head=n_head, n_embd=n_embd)
    if n_embd % (2 * n_head):
        why = f"heads of odd size {n_embd // n_head}" if n_embd % n_head == 0 else "heads of unequal size"
        raise ModelError(
            f"n_embd={n_embd} with n_head={n_head} makes {why}, expected equal and even ones for rotary positions: "
            f"choose n_embd a multiple of 2 * n_head = {2 * n_head}."
        )


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, n_head: int, n_embd: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        """Mixes each token with those before it, (B, T, C) to (B, T, C); see `document_mask`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # each (B, H, T, D)
        if isinstance(mask, BlockMask):
            x = compiled(flex_attention)(q, k, v, block_mask=mask)  # (B, H, T, D)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)  # (B, H, T, D)
        y: Tensor = self.out(x.transpose(1, 2).flatten(2))  # (B, T, C)
        return y


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202), which beats GELU at equal parameters: three matrices of 8/3 C for two of 4 C."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        n_hidden = 64 * math.ceil(8 * n_embd / 3 / 64)  # multiples of 64 fill tensor cores
        self.gate_up = nn.Linear(n_embd, 2 * n_hidden, bias=False)
        self.down = nn.Linear(n_hidden, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms each token by itself, (B, T, C) to (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each (B, T, n_hidden)
        y: Tensor = self.down(F.silu(gate) * up)  # (B, T, C)
        return y


class Block(nn.Module):
    """Attention and MLP, each on a norm of the stream, each added to it. The class for FSDP to wrap."""

    def __init__(self, n_head: int, n_embd: int) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(n_embd, eps=1e-5)
        self.attention = Attention(n_head, n_embd)
        self.norm_mlp = nn.RMSNorm(n_embd, eps=1e-5)
        self.mlp = MLP(n_embd)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        """Moves the stream one layer on, (B, T, C) to (B, T, C)."""
        x = x + self.attention(self.norm_attention(x), cos, sin, mask)  # (B, T, C)
        y: Tensor = x + self.mlp(self.norm_mlp(x))  # (B, T, C)
        return y


class GPT(nn.Module):
    """Decoder-only transformer: pre-norm, rotary positions, no biases, no dropout, one matrix as embedding and head.

    Args:
        n_layer: Blocks.
        n_head: Attention heads of a block.
        n_embd: Width C, a multiple of `2 * n_head`.
        context_length: Most tokens the model sees at once.
        vocab_size: Rows of the embedding; above the largest id. Multiples of 64 are faster (50,304 for GPT-2's 50,257).

    Raises:
        ModelError: If a size is below 1, or `n_head` does not divide `n_embd`, or into heads of odd size, which have no
            rotary pairs.
    """

    def __init__(self, *, n_layer: int, n_head: int, n_embd: int, context_length: int, vocab_size: int) -> None:
        super().__init__()
        check_heads(n_head, n_embd)
        check_sizes(n_layer=n_layer, context_length=context_length, vocab_size=vocab_size)
        self.n_layer, self.n_head, self.n_embd, self.context_length = n_layer, n_head, n_embd, context_length
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_head, n_embd) for _ in range(n_layer))
        self.norm = nn.RMSNorm(n_embd, eps=1e-5)
        for name, weight in self.named_parameters():  # GPT-2's initialisation: smaller where 2 n_layer terms are summed
            if weight.dim() == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer) if last else 0.02)

    @property
    def num_parameters(self) -> int:
        """Numbers to learn, the shared embedding and head (arXiv:1608.05859) counted once."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def flops_per_token(self) -> int:
        """FLOPs to train on a token, 6 N + 12 n_layer C T: PaLM (arXiv:2204.02311) app. B, causal mask not deducted."""
        return 6 * self.num_parameters + 12 * self.n_layer * self.n_embd * self.context_length

    def features(
        self, input_ids: Tensor, document_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """The stream before the head, (B, T, C); arguments as those of `forward`.

        Raises:
            ValueError: If T is above `context_length`.
        """
        if (length := input_ids.shape[1]) > self.context_length:
            raise ValueError(
                f"got input_ids of {length} tokens, expected at most context_length={self.context_length}: shorten "
                "them or make a model of a larger context_length."
            )
        positions = torch.arange(length, device=input_ids.device) if position_ids is None else position_ids[:, None]
        cos, sin = rotary_tables(positions, self.n_embd // self.n_head)  # each (T, D/2) or (B, 1, T, D/2)
        mask = None if document_ids is None else document_mask(document_ids, flex=document_ids.is_cuda)
        x = self.embedding(input_ids)  # (B, T, C)
        for block in self.blocks:
            x = block(x, cos, sin, mask)  # (B, T, C)
        y: Tensor = self.norm(x)  # (B, T, C)
        return y

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        by_token: bool = False,
        loss_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Predicts the token after each token.

        Args:
            input_ids: Tokens, (B, T) int64.
            targets: Tokens to predict, (B, T) int64; -100 is left out of the loss.
            document_ids: (B, T) integers: tokens attend only to those of the same document. None: to all before them.
            position_ids: Places of the tokens in their documents, (B, T) int64. None: in their windows.
            by_token: Whether to return the loss of each token too.
            loss_mask: Targets to learn, (B, T) bool; the loss is 0 if there are none. None: all but those that are -100.

        Returns:
            Logits (B, T, vocab_size) in the dtype of the computation; mean cross entropy in nats, () float32, or None. By
            token, in place of the mean, the mean and the losses of the tokens, (B, T) float32 without gradients.
        """
        x = self.features(input_ids, document_ids, position_ids)  # (B, T, C)
        logits = F.linear(x, self.embedding.weight)  # (B, T, vocab_size)
        if targets is None:
            return logits, None
        reduction, count = "mean", 1
        if loss_mask is not None:  # a mean of nothing would be NaN
            targets = targets.masked_fill(~loss_mask, -100)
            reduction, count = "sum", loss_mask.sum().clamp(min=1)
        # In float32 whatever the precision: the largest tensors of all, unless torch.compile fuses them away.
        if not by_token:
            return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction) / count
        log_p = F.log_softmax(
            logits.flatten(0, 1).float(), dim=-1
        )  # (B * T, vocab_size): what cross_entropy does first
        losses = F.nll_loss(log_p.detach(), targets.flatten(), reduction="none").view(targets.shape)  # (B, T)
        return logits, (F.nll_loss(log_p, targets.flatten(), reduction=reduction) / count, losses)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continues prompts. Without a key-value cache: every token costs a pass over its context.

        Args:
            input_ids: Prompts, (B, T) int64, T of any size above 0; the model sees the last `context_length` tokens.
            max_new_tokens: Tokens to add.
            temperature: Divides the logits; 0 takes the likeliest token.
            top_k: How many of the likeliest tokens to sample from (None: all).
            generator: Source of randomness, on the model's device.

        Returns:
            Prompts and continuations, (B, T + max_new_tokens) int64.

        Raises:
            ValueError: If `temperature` is below 0 or `top_k` below 1.
        """
        if temperature < 0 or (top_k is not None and top_k < 1):
            got = f"temperature={temperature} and top_k={top_k}"
            raise ValueError(
                f"got {got}, expected temperature >= 0 and top_k >= 1: use temperature=0 for the likeliest."
            )
        for _ in range(max_new_tokens):
            # Not self(...): this needs the last position only, and compiled it would compile for each new length.
            last = self.features(input_ids[:, -self.context_length :])[:, -1]  # (B, C)
            logits = F.linear(last, self.embedding.weight).float()  # (B, vocab_size)
            if top_k is not None:
                least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < least, -math.inf)  # (B, vocab_size)
            if temperature == 0:
                token = logits.argmax(dim=1, keepdim=True)  # (B, 1)
            else:
                token = torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)  # (B, 1)
            input_ids = torch.cat((input_ids, token), dim=1)  # (B, T + 1)
        return input_ids


class GPTModule(lightning.LightningModule):
    """Trains a `GPT`. Defaults as for GPT-3's smallest (arXiv:2005.14165); precision and clipping are the Trainer's.

    Logs, in nats per token, `train_loss` (of this rank), `val_loss` and `test_loss` (of all ranks), and every
    `log_every_n_steps` the `learning_rate`, `tokens_per_second` (of all ranks, validation not timed) and `mfu`.

    Args:
        n_layer: Blocks.
        n_head: Attention heads of a block.
        n_embd: Width of the model.
        context_length: Tokens the model sees.
        vocab_size: Rows of the embedding. None takes the datamodule's `vocab_size`, and keeps it in checkpoints.
        learning_rate: At the end of the warm-up.
        min_learning_rate_ratio: What remains of `learning_rate` at the last step.
        weight_decay: Of the matrices; norms have none.
        betas: AdamW's.
        warmup_steps: Optimizer steps until `learning_rate` is reached.
        compile: Whether to torch.compile the network. The keys of checkpoints are the same.
        peak_flops: FLOP/s of one device, for `mfu`. None takes the bfloat16 figure of a known GPU; on others no `mfu`.

    Raises:
        ModelError: If a value cannot be.
    """

    model: GPT

    def __init__(
        self,
        n_layer: int = 12,
        n_head: int = 12,
        n_embd: int = 768,
        context_length: int = 1024,
        vocab_size: int | None = None,
        learning_rate: float = 6e-4,
        min_learning_rate_ratio: float = 0.1,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 200,
        compile: bool = False,  # noqa: A002
        peak_flops: float | None = None,
    ) -> None:
        super().__init__()
        check_heads(n_head, n_embd)
        check_sizes(n_layer=n_layer, context_length=context_length)
        check_number("learning_rate", learning_rate, "a number above 0, such as 6e-4", lambda rate: rate > 0)
        check_number("min_learning_rate_ratio", min_learning_rate_ratio, "a share, 0 to 1", lambda part: 0 <= part <= 1)
        check_number("weight_decay", weight_decay, "a number from 0 on", lambda decay: decay >= 0)
        check_number("warmup_steps", warmup_steps, "a number of steps from 0 on", lambda steps: steps >= 0)
        self.save_hyperparameters()
        self._tokens = 0  # of all ranks, from `_since` on
        self._since = self._paused = math.nan  # seconds; nan: not yet

    def configure_model(self) -> None:
        """Makes the network, once: after the datamodule's setup, or in `load_from_checkpoint` from hyperparameters.

        Raises:
            ModelError: If `vocab_size` is unknown, or smaller than the datamodule's.
        """
        try:
            datamodule = getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # no Trainer yet
            datamodule = None
        given, needed = self.hparams["vocab_size"], getattr(datamodule, "vocab_size", None)
        if given is None:
            if needed is None:
                raise ModelError(
                    "got vocab_size=None and no datamodule that knows it: give the tokenizer's vocab_size."
                )
            self.save_hyperparameters({"vocab_size": int(needed)})
        elif needed is not None and given < needed:
            raise ModelError(
                f"got vocab_size={given}, expected at least the datamodule's {needed}: give None or {needed}, "
                "or the tokenizer that this model was trained with."
            )
        if not hasattr(self, "model"):
            shape = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")
            self.model = GPT(**{name: self.hparams[name] for name in shape})
            self._flops_per_token = self.model.flops_per_token  # before FSDP leaves a part of the parameters here
            if self.hparams["compile"]:
                self.model.compile()  # in place; torch.compile(...) would put `_orig_mod.` into the keys

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of another model, before torch names every matrix that does not fit.

        Raises:
            ModelError: Naming each hyperparameter that differs.
        """
        check_same_model(checkpoint.get("hyper_parameters", {}), self.hparams)

    @property
    def flops_per_token(self) -> int:
        """FLOPs to train on a token; see `GPT`."""
        return self._flops_per_token

    def _predict(self, batch: dict[str, Tensor], targets: Tensor | None, by_token: bool = False) -> tuple[Tensor, Any]:
        ids, positions = batch.get("document_ids"), batch.get("position_ids")
        logits, loss = self.model(batch["input_ids"], targets, ids, positions, by_token, batch.get("loss_mask"))
        return logits, loss

    def _losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `loss` of a batch, (), and its `token_losses`, (B, T), if a callback needs them."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined] # set by one of its connectors
        if not any(getattr(callback, "needs_token_losses", False) for callback in callbacks):
            return {"loss": self._predict(batch, batch["targets"])[1]}
        loss, token_losses = self._predict(batch, batch["targets"], by_token=True)[1]
        return {"loss": loss, "token_losses": token_losses}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Loss of a batch; see `_losses`."""
        losses = self._losses(batch)
        self._tokens += batch["input_ids"].numel() * self.trainer.world_size
        self.log("train_loss", losses["loss"], prog_bar=True)
        return losses

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Adds a batch to `val_loss`, or to that of a language or store, such as `val_loss/Python`."""
        return self._log_loss("val_loss", batch, dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to `test_loss`, or to that of a language or store."""
        self._log_loss("test_loss", batch, dataloader_idx)

    def _log_loss(self, name: str, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        losses = self._losses(batch)
        whole = dataloader_idx == 0
        if not whole:
            name += f"/{self.trainer.datamodule.val_names[dataloader_idx]}"  # type: ignore[attr-defined]
        size = len(batch["input_ids"])
        self.log(name, losses["loss"], prog_bar=whole, sync_dist=True, batch_size=size, add_dataloader_idx=False)
        return losses

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of each window, (B,) float32: which text the model finds odd."""
        logits, targets = self._predict(batch, None)[0], batch["targets"]  # (B, T, vocab_size), (B, T)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")  # (B * T,)
        return loss.view(targets.shape).sum(dim=1) / (targets != -100).sum(dim=1).clamp(min=1)  # (B,)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW (arXiv:1711.05101), its learning rate by `cosine_with_warmup` over the Trainer's optimizer steps.

        Raises:
            ModelError: If the Trainer has no last step.
        """
        hp, total_steps = self.hparams, self.trainer.estimated_stepping_batches
        if not 0 <= total_steps < math.inf:  # -1: of a loader without length
            raise ModelError(
                f"got max_steps={self.trainer.max_steps} and max_epochs={self.trainer.max_epochs}, expected a last "
                "step for the learning rate to fall to: set the Trainer's max_steps."
            )
        matrices: dict[str, Any] = {"params": [], "weight_decay": hp["weight_decay"]}
        norms: dict[str, Any] = {"params": [], "weight_decay": 0.0}
        for name, weight in self.named_parameters():  # told apart by name: under FSDP every weight is flat
            (norms if "norm" in name else matrices)["params"].append(weight)
        fused = True if self.device.type == "cuda" else None  # None: torch's choice
        optimizer = torch.optim.AdamW([matrices, norms], hp["learning_rate"], tuple(hp["betas"]), fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: cosine_with_warmup(step, hp["warmup_steps"], int(total_steps), hp["min_learning_rate_ratio"]),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Forgets the clock of an earlier run."""
        self._since = math.nan

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs what needs the clock or a copy to the device once per interval, so that the GPU seldom waits."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] # set by one of its connectors
        due, running = every > 0 and (self.global_step + 1) % every == 0, not math.isnan(self._since)
        if due:
            self.log("learning_rate", optimizer.param_groups[0]["lr"])
        if due and running:
            speed = self._tokens / (self._now() - self._since)
            self.log("tokens_per_second", speed, prog_bar=True)
            gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
            if peak := self.hparams["peak_flops"] or known_peak_flops(gpu):
                self.log("mfu", speed * self._flops_per_token / (peak * self.trainer.world_size), prog_bar=True)
        if due or not running:  # the first step, which compiles and warms up, is not timed
            self._since, self._tokens = self._now(), 0

    def on_validation_start(self) -> None:
        """Stops the clock."""
        self._paused = self._now()

    def on_validation_end(self) -> None:
        """Lets the clock go on."""
        self._since += self._now() - self._paused

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
