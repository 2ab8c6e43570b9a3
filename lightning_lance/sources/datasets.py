"""Documents by way of the `datasets` library: any Hub dataset, and Parquet or JSON files local, on the Hub or in a bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_lance.documents.filters import plain_value
from lightning_lance.messages.redaction import public_url
from lightning_lance.sources.dataset_reader import OpenedDataset, identified_listing
from lightning_lance.sources.dataset_spec import DatasetSpec
from lightning_lance.sources.source import OpenedSource
from lightning_lance.sources.validation import WithValidation, check_apart


class DatasetSource(DatasetSpec):
    """Documents that `datasets` streams as Arrow batches: nothing is downloaded whole, and no Python rows are made.

    `DatasetSpec` describes what it takes.
    """

    def _part(self, val: bool) -> DatasetSource:
        """Give the training or the validation documents as a source of their own."""
        split, files = (self.val_split or self.split, self.val_files) if val else (self.split, self.data_files)
        return replace(self, split=split, data_files=files, val_split=None, val_files=())

    def identity(self) -> dict[str, Any]:
        if self.has_validation:
            train, val = self._part(val=False).identity(), self._part(val=True).identity()
            others = {key: val.get(key) for key in val.keys() | train.keys() if val.get(key) != train.get(key)}
            return {**train, "validation": others}
        # Each only where it decides something: otherwise stores would be built again that are the same.
        local = not self.on_hub
        extensions = None if self.language_column else self.extensions
        decides = {
            "kind": "datasets",
            "path": None if local and not self.data_files else self.path,
            "config": None if self.data_files else self.config,
            "split": None if self.data_files else self.split,
            "revision": None if local else self.revision,
            "data_files": [public_url(str(pattern)) for pattern in self.data_files],
            "columns": dict(self.columns),
            "languages": self.wanted,
            "language_column": self.language_column,
            "extensions": extensions and {name: sorted({*tails}) for name, tails in extensions.items()},
            "where": {
                column: sorted({json.dumps(plain_value(value)) for value in values})
                for column, values in self.where.items()
            },
            "text_filter": self.text_filter.identity(),
            "shard_seed": self.shard_seed,
            "dedup": self.dedup,
        }
        if local:
            listed, files = identified_listing(self)
            decides.pop("data_files")
            decides["files"] = files
            if self.tells_language_by_folder:
                # The names of the files begin below their common folder, and do not tell what `{language}` stands for.
                decides["folder_languages"] = listed.languages
        return decides

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedSource:
        if self.has_validation:
            val, train = (
                OpenedDataset(self._part(val=name == "val"), (pin or {}).get(name) or {}) for name in ("val", "train")
            )
            remarks = check_apart(self.name, val.real, train.real, self.dedup)
            return WithValidation(val, train, remarks)

        return OpenedDataset(self, pin or {})
