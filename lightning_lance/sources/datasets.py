"""Documents of the `datasets` library: any Hub dataset, and files, local, on the Hub or in a bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lance.documents.filters import plain_value
from lightning_lance.errors import ConfigError
from lightning_lance.messages.formatting import did_you_mean, nearest
from lightning_lance.messages.redaction import public_url
from lightning_lance.sources.dataset_reader import OpenedDataset, identified_listing
from lightning_lance.sources.dataset_spec import DatasetSpec, FileOptions, HubOptions
from lightning_lance.sources.files import extensions_identity
from lightning_lance.sources.source import OpenedSource
from lightning_lance.sources.validation import WithValidation, check_apart

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _check_options(name: str, options: Mapping[str, Any], kind: type) -> None:
    """Refuse options that a way to make a source does not have, by the name that was called."""
    known = sorted(kind.__annotations__)
    for option in options:
        if option not in known:
            hint = did_you_mean(nearest(option, known), quoted=False)
            raise ConfigError(
                f"DatasetSource.{name} has no option {option}: {hint}expected some of {', '.join(known)}."
            )


class DatasetSource(DatasetSpec):
    """Documents that `datasets` streams as Arrow batches, without downloading whole files or creating Python rows.

    Create one with `DatasetSource.parquet`, `.jsonl` or `.hub`. `DatasetSpec` describes the options. The constructor also takes
    any other file format of `datasets`.
    """

    @classmethod
    def parquet(cls, files: str | Sequence[str | Path], **options: Unpack[FileOptions]) -> DatasetSource:
        """Return a source of Parquet files.

        Args:
            files: Files, folders and globs, local or with a protocol (`hf://datasets/...`, `s3://...`), or a single one.
            **options: See `DatasetSpec`.

        Raises:
            ConfigError: If a value cannot be used.
        """
        _check_options("parquet", options, FileOptions)
        return cls("parquet", data_files=files, **options)

    @classmethod
    def jsonl(cls, files: str | Sequence[str | Path], **options: Unpack[FileOptions]) -> DatasetSource:
        """Return a source of JSON Lines files, plain or compressed as `.gz` or `.zst`.

        Args:
            files: Files, folders and globs, local or with a protocol (`hf://datasets/...`, `s3://...`), or a single one.
            **options: See `DatasetSpec`.

        Raises:
            ConfigError: If a value cannot be used.
        """
        _check_options("jsonl", options, FileOptions)
        return cls("json", data_files=files, **options)

    @classmethod
    def hub(
        cls, path: str, *, config: str | None = None, split: str = "train", **options: Unpack[HubOptions]
    ) -> DatasetSource:
        """Return a source of a dataset of the Hugging Face Hub that is stored as files.

        Args:
            path: Name of the dataset, such as `HuggingFaceFW/fineweb`.
            config: Its configuration ("subset"), if it has several.
            split: The split to read.
            **options: See `DatasetSpec`.

        Raises:
            ConfigError: If a value cannot be used.
        """
        _check_options("hub", options, HubOptions)
        return cls(path, config=config, split=split, **options)

    def part(self, val: bool) -> DatasetSource:
        """Return the training or validation documents as a separate source."""
        part = replace(self, val_split=None, val_files=())
        if val:
            part = replace(part, split=self.val_split or self.split, data_files=self.val_files)
        # A copy is made in another folder, perhaps.
        object.__setattr__(part, "base", self.base)
        return part

    def identity(self) -> dict[str, Any]:
        if self.has_validation:
            train = self.part(val=False).identity()
            val = self.part(val=True).identity()
            others: dict[str, Any] = {}
            for key in val.keys() | train.keys():
                if val.get(key) != train.get(key):
                    others[key] = val.get(key)
            return {**train, "validation": others}
        # An option without effect is None, so that changing it does not cause another build.
        local = not self.on_hub
        extensions = None
        if self.extensions is not None and not self.language_column:
            extensions = extensions_identity(self.extensions)
        where = {}
        for column, values in self.where.items():
            where[column] = sorted({json.dumps(plain_value(value)) for value in values})
        decides = {
            "kind": "datasets",
            "path": None if local and not self.data_files else self.path,
            "config": None if self.data_files else self.config,
            "split": None if self.data_files else self.split,
            "revision": None if local else self.revision,
            "data_files": list(map(public_url, self._data_files)),
            "columns": dict(self.columns),
            # A list of names stays a list, in all fingerprints so far.
            "languages": self.aliases or self.wanted,
            "language_column": self.language_column,
            "extensions": extensions,
            "where": where,
            "text_filter": self.text_filter.identity(),
            "shard_seed": self.shard_seed,
            "dedup": self.dedup,
        }
        # Only where it is given: without it, the fingerprint is that of earlier versions.
        if self.loss_mask_column:
            decides["loss_mask_column"] = self.loss_mask_column
        if local:
            listed, files = identified_listing(self)
            decides.pop("data_files")
            decides["files"] = files
            if self.tells_language_by_folder:
                # File names are relative to their common folder, which may already include `{language}`.
                decides["folder_languages"] = listed.languages
        return decides

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedSource:
        pin = pin or {}
        if not self.has_validation:
            return OpenedDataset(self, pin)
        val = OpenedDataset(self.part(val=True), pin.get("val") or {})
        train = OpenedDataset(self.part(val=False), pin.get("train") or {})
        remarks = check_apart(self.name, val.real, train.real, self.dedup)
        return WithValidation(val, train, remarks)
