"""What serving may be asked for, checked by itself: so before hours of building, and with neither a store nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from lightning_lance.documents.languages import check_languages
from lightning_lance.errors import ConfigError, described, flag, integer, one_of, whole_number
from lightning_lance.serving.fim import check_names
from lightning_lance.serving.order import check_order
from lightning_lance.serving.selection import check_selection

BatchFormat = Literal["default", "huggingface"]
Remainder = Literal["drop", "wrap", "short"]
OnDataChange = Literal["error", "restart", "continue"]
Extend = Literal["never", "next_epoch"]


_CHOICES = {
    "remainder": get_args(Remainder),
    "extend": get_args(Extend),
    "on_data_change": get_args(OnDataChange),
    "batch_format": get_args(BatchFormat),
}
_SUCH = {
    "where": "{language: [Python]}",
    "mix": "{Python: 0.7, Rust: 0.3}",
    "fim": "{prefix_token: <|fim_prefix|>, middle_token: <|fim_middle|>, suffix_token: <|fim_suffix|>}",
}
_FLAGS = ("document_ids", "position_ids", "cu_seqlens", "mask_boundary_targets", "verify", "rebuild", "durable")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse values that no store can be served with.

    Whether the languages, stores and tokens that they name are there is seen when it is served; but what a source will not give
    is seen here.

    Args:
        options: Arguments of `LanceDataModule`, by name: all that decide what is served, `source`, if there is one, and perhaps
            others.

    Raises:
        ConfigError: If a value cannot be used.
    """
    for name in ("where", "mix", "fim"):
        if options[name] is not None and not isinstance(options[name], Mapping):
            raise ConfigError(f"{name} is {described(options[name])}: expected a mapping, such as {_SUCH[name]}.")
    whole_number("batch_size", options["batch_size"])
    integer("seed", options.get("seed", 0))
    check_order(options["context_length"], options["order"], options["shuffle_block"])
    check_selection(options["where"] or {}, options["mix"] or {})
    if (source := options.get("source")) is not None and source.wanted:
        check_languages([*(options["mix"] or {})], source.wanted, "The source, for mix,")
        check_languages([*(options["where"] or {}).get("language", ())], source.wanted, "The source, for where,")
    for name, choices in _CHOICES.items():
        one_of(name, options[name], choices)
    for name in _FLAGS:
        flag(name, options[name])
    if options["fim"]:
        check_names(options["fim"])
