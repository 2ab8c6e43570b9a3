"""What serving may be asked for: checked when it is made, so before hours of building, and with neither a store nor torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lightning_lance.documents.languages import check_languages
from lightning_lance.errors import ConfigError, described, flag, integer, one_of, whole_number
from lightning_lance.location import local_folder
from lightning_lance.messages.formatting import did_you_mean, format_list, nearest
from lightning_lance.serving.fim import FillInTheMiddle, check_names
from lightning_lance.serving.ordering.document_weights import MixBy, check_mix_by
from lightning_lance.serving.ordering.order import Order, check_order
from lightning_lance.serving.ordering.packing import Windows
from lightning_lance.serving.ordering.phases import AtMaxEpochs, check_max_epochs, check_mix_schedule, mix_with
from lightning_lance.serving.selection_checks import check_selection, check_windows
from lightning_lance.serving.size_schedules import check_batch_size_schedule, check_context_length_schedule
from lightning_lance.serving.skips import check_steps
from lightning_lance.tokenization.tokenizer import Tokenizer

BatchFormat = Literal["default", "huggingface"]
Remainder = Literal["drop", "wrap", "short"]
OnDataChange = Literal["error", "restart", "continue"]
Extend = Literal["never", "next_epoch", "now"]
ValBy = Literal["none", "language", "store"]

_CHOICES = {
    "remainder": get_args(Remainder),
    "extend": get_args(Extend),
    "on_data_change": get_args(OnDataChange),
    "val_by": get_args(ValBy),
    "at_max_epochs": get_args(AtMaxEpochs),
}


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """Which windows are served, and in which order.

    Attributes:
        context_length: Tokens that the model sees.
        batch_size: Windows per batch and rank.
        order: Of the training windows: `shuffle`, `random`, `sequential` or `fixed`; see `WindowOrder`.
        seed: Of the order.
        shuffle_block: Windows that stay together in `shuffle`; None shuffles over all.
        where: Streams to serve, such as `{"language": ["Python"]}`; empty serves all.
        mix: Weights of languages, or of stores where there are several; empty serves all windows alike.
        remainder: The windows at an epoch's end that fill no batch: `drop`, `wrap` or `short`.
        extend: What was appended to the store: `never` adopts it; `next_epoch` does when an epoch begins, `now` also when a
            run resumes.
        on_data_change: A checkpoint of other data: `error`, `restart` or `continue`.
        val_by: Whether validation has further loaders, one for each `language` or `store`.
        stage: Folder on a local disk for copies of stores in buckets; None reads all from there. See `TokenStore.stage`.
        stage_bytes: Most bytes of copies in that folder; None for no bound.
        skip_steps: Ranges of steps to leave out, such as `[[12000, 12040]]`: the batches 12,000 to 12,039 as `loader.step`
            counts them. They are kept in checkpoints.
        windows: Of training: `stream`, pieces of the streams, or `packed`, whole documents side by side.
        mix_schedule: Weights that change during the run, in place of `mix`; see `WindowLoader`.
        max_epochs: Epochs that components of the mixture may have.
        at_max_epochs: `redistribute` or `error`, once a component has had them.
        mix_by: Whether weights are shares of `tokens` or of `documents`.
        batch_size_schedule: Sizes that grow up to `batch_size`, and the steps from which on they count; see `WindowLoader`.
        context_length_schedule: Lengths that grow up to `context_length`, and the steps from which on they count.

    Raises:
        ConfigError: If a value cannot be used, whatever the store.
    """

    context_length: int
    batch_size: int
    order: Order = "shuffle"
    seed: int = 0
    shuffle_block: int | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=dict)
    remainder: Remainder = "drop"
    extend: Extend = "never"
    on_data_change: OnDataChange = "error"
    val_by: ValBy = "none"
    stage: str | os.PathLike[str] | None = None
    stage_bytes: int | None = None
    skip_steps: Sequence[Sequence[int]] = ()
    windows: Windows = "stream"
    mix_schedule: Sequence[Sequence[Any]] = ()
    max_epochs: Mapping[str, float] = field(default_factory=dict)
    at_max_epochs: AtMaxEpochs = "redistribute"
    mix_by: MixBy = "tokens"
    batch_size_schedule: Sequence[Sequence[int]] = ()
    context_length_schedule: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        given = mix_with(self.mix, self.mix_schedule)
        where, mix = check_selection({} if self.where is None else self.where, given)
        context_length, order, shuffle_block = check_order(self.context_length, self.order, self.shuffle_block)
        check_windows(self.windows, order, shuffle_block)
        check_extend(one_of("extend", self.extend, get_args(Extend)), self.windows)
        if self.stage is None and self.stage_bytes is not None:
            raise ConfigError(
                "stage_bytes bounds the copies in the folder stage: set stage too, or leave stage_bytes out."
            )
        batch_size = whole_number("batch_size", self.batch_size)
        plain: dict[str, Any] = {
            "context_length": context_length,
            "batch_size": batch_size,
            "batch_size_schedule": check_batch_size_schedule(self.batch_size_schedule, batch_size),
            "context_length_schedule": check_context_length_schedule(self.context_length_schedule, context_length),
            "order": order,
            "seed": integer("seed", self.seed),
            "shuffle_block": shuffle_block,
            "where": where,
            "mix": mix,
            "skip_steps": check_steps(self.skip_steps),
            "mix_schedule": check_mix_schedule(self.mix_schedule),
            "max_epochs": check_max_epochs(self.max_epochs, [*mix]),
            "mix_by": check_mix_by(self.mix_by, mix),
            "stage": None if self.stage is None else local_folder(self.stage, "stage"),
            "stage_bytes": None if self.stage_bytes is None else whole_number("stage_bytes", self.stage_bytes),
        }
        for name, choices in _CHOICES.items():
            plain[name] = one_of(name, getattr(self, name), choices)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def training(self) -> dict[str, Any]:
        """The arguments of a `WindowLoader` that are for training only."""
        return {
            "order": self.order,
            "shuffle_block": self.shuffle_block,
            "mix": self.mix,
            "remainder": self.remainder,
            "extend": self.extend,
            "on_data_change": self.on_data_change,
            "skip_steps": self.skip_steps,
            "windows": self.windows,
            "mix_schedule": self.mix_schedule,
            "max_epochs": self.max_epochs,
            "at_max_epochs": self.at_max_epochs,
            "mix_by": self.mix_by,
            "batch_size_schedule": self.batch_size_schedule,
            "context_length_schedule": self.context_length_schedule,
        }

    def check_names(self, names: Sequence[str], languages: Sequence[str]) -> None:
        """Check the names in `where` and `mix`, before a store is there to tell.

        Args:
            names: Of the stores, where there are several.
            languages: Those that a single source is asked for; empty where that is not known.

        Raises:
            ConfigError: If one of them will not be there.
        """
        if len(names) > 1:
            for name in self.mix:
                if name not in names:
                    hint = did_you_mean(nearest(str(name), [*names]))
                    raise ConfigError(f"mix has {name!r}: {hint}expected names of the stores, {format_list([*names])}.")
        elif languages:
            check_languages([*self.mix], languages, "The source, for mix,")
            check_languages([*self.where.get("language", ())], languages, "The source, for where,")


def check_extend(extend: str, windows: Windows) -> None:
    """Check that what is appended to a store can be adopted in this way. ConfigError if not."""
    if extend == "now" and windows == "packed":
        raise ConfigError(
            "extend=now does not go with windows=packed, whose epoch would be packed anew: set extend=next_epoch."
        )


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What a batch holds; see `Collator`.

    Attributes:
        batch_format: `default` (`input_ids`, `targets`) or `huggingface` (`input_ids`, `labels`).
        document_ids: Whether a batch says which document a token is of.
        position_ids: Whether a batch says where in its document a token is.
        cu_seqlens: Whether a batch has the borders of documents, as attention kernels want them.
        mask_boundary_targets: Whether the first token of another document is no target.

    Raises:
        ConfigError: If a value cannot be used.
    """

    batch_format: BatchFormat = "default"
    document_ids: bool = False
    position_ids: bool = False
    cu_seqlens: bool = False
    mask_boundary_targets: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_format", one_of("batch_format", self.batch_format, get_args(BatchFormat)))
        for name in ("document_ids", "position_ids", "cu_seqlens", "mask_boundary_targets"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddleOptions:
    """Fill-in-the-middle, with the sentinels that the tokenizer has for it; see `FillInTheMiddle`.

    Attributes:
        prefix_token: Token before the prefix.
        middle_token: Token before the middle.
        suffix_token: Token before the suffix.
        fim_rate: Share of the documents that are rearranged.
        spm_rate: Share of these that begin with the suffix.
        seed: Of the draws; None takes the seed of the order.

    Raises:
        ConfigError: If a value cannot be used, whatever the tokenizer.
    """

    prefix_token: str
    middle_token: str
    suffix_token: str
    fim_rate: float = 0.5
    spm_rate: float = 0.5
    seed: int | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {}
        for name, value in vars(self).items():
            if value is not None:
                given[name] = value
        check_names(given)

    def with_ids(self, tokenizer: Tokenizer, seed: int) -> FillInTheMiddle:
        """Return the rearrangement with the ids of a tokenizer.

        Args:
            tokenizer: The one of the data.
            seed: Of the draws, unless these options have their own.

        Raises:
            ConfigError: If the tokenizer lacks a sentinel.
        """
        own = seed if self.seed is None else self.seed
        return FillInTheMiddle.named(tokenizer, **{**vars(self), "seed": own})


def fill_in_the_middle(given: FillInTheMiddleOptions | Mapping[str, Any] | None) -> FillInTheMiddleOptions | None:
    """Return the options of fill-in-the-middle; None for none, also as an empty mapping.

    Raises:
        ConfigError: If a sentinel is missing, a key unknown, or a value cannot be used.
    """
    if isinstance(given, FillInTheMiddleOptions):
        return given
    if given is not None and not isinstance(given, Mapping):
        such = "{prefix_token: <|fim_prefix|>, middle_token: <|fim_middle|>, suffix_token: <|fim_suffix|>}"
        raise ConfigError(f"fim is {described(given)}: expected a mapping, such as {such}.")
    if not given:
        return None
    check_names(given)
    return FillInTheMiddleOptions(**given)
