import pytest

from lightning_lance.access import explain
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.streaming import DatasetSource

SOURCE = DatasetSource("parquet", data_files=["hf://datasets/own/name@main/data/*.parquet"], name="mine")


class OfflineModeIsEnabled(Exception):  # noqa: N818
    """Named as the Hub client's."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            OfflineModeIsEnabled("no network"),
            SourceError,
            "Source 'mine' cannot be reached (no network): check the network",
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
    """What no server of a test can bring about; test_streaming.py has what the Hub itself answers."""
    told = explain(error, SOURCE)
    assert type(told) is kind
    assert message in str(told)
    assert "\n" not in str(told)


def test_the_cause_counts_too():
    error = RuntimeError("while reading")
    error.__cause__ = ConnectionError("refused")
    assert "cannot be reached" in str(explain(error, SOURCE))
