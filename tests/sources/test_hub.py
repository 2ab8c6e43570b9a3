from contextlib import nullcontext
from pathlib import Path

import pytest

from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.hub import explain, open_builder

SOURCE = DatasetSource("parquet", data_files=["hf://datasets/own/name@main/data/*.parquet"], name="mine")


class OfflineModeIsEnabled(Exception):  # noqa: N818
    """An error with a name of the Hub client."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            OfflineModeIsEnabled("no network"),
            SourceError,
            "The dataset 'own/name' cannot be read in offline mode: unset HF_HUB_OFFLINE, or download the files",
        ),
        (ConnectionError("refused"), SourceError, "Source 'mine' cannot be reached (refused)"),
        (
            ValueError("BuilderConfig 'x' not found. Available: ['y']"),
            ConfigError,
            "Choose source.config of 'own/name'",
        ),
        (RuntimeError("odd\n  thing"), SourceError, "Source 'mine' cannot be read: RuntimeError: odd thing"),
    ],
)
def test_an_error_becomes_a_sentence(error: Exception, kind: type[LightningLanceError], message: str):
    """Errors that no test server can cause; for answers of the Hub, see test_datasets.py."""
    told = explain(error, SOURCE)
    assert type(told) is kind
    assert message in str(told)
    assert "\n" not in str(told)


def test_the_cause_counts_too():
    error = RuntimeError("while reading")
    error.__cause__ = ConnectionError("refused")
    assert "cannot be reached" in str(explain(error, SOURCE))


@pytest.mark.parametrize(
    ("path", "files", "told"),
    [
        ("parquet", ["a.jsonl", "b.json.gz"], "finds '.*a.jsonl', which is not Parquet by its name: use source=jsonl"),
        ("json", ["a.parquet"], "finds '.*a.parquet', which is not JSON Lines by its name: use source=parquet"),
        ("parquet", ["a.jsonl", "b.parquet"], None),
        ("parquet", ["a", "b.data"], None),
        ("json", ["a.txt"], None),
    ],
)
def test_files_of_another_format_are_refused_by_their_names(
    tmp_path: Path, path: str, files: list[str], told: str | None
):
    """Only if all files have the ending of another format: others may have the right one under any name."""
    for file in files:
        (tmp_path / file).touch()
    source = DatasetSource(path, data_files=[f"{tmp_path}/*"])
    with pytest.raises(ConfigError, match=told) if told else nullcontext():
        open_builder(source, {})
