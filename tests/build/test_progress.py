import logging
import re

import pytest

from lightning_lance.build.progress import BuildProgress


def test_no_bar_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO), BuildProgress("corpus", 0.25, 1000) as progress:
        progress.update(0.5, 2000, 3_000_000, 10_000_000)
        progress.committed(0.5, 2000, 3_000_000)
    assert capfd.readouterr().err == ""
    assert caplog.messages[0] == "corpus: continuing after 1,000 documents."
    assert caplog.messages[1].startswith("corpus: committed 2,000 documents, 3.00 M tokens, ")
    assert caplog.messages[1].endswith("MB/s (50 %).")


def test_a_terminal_gets_documents_tokens_rate_share_and_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with BuildProgress("corpus", 0.0, 0) as progress:
        progress.update(0.5, 2000, 3_000_000, 10_000_000)
    line = capfd.readouterr().err.split("\r")[-1]
    assert line.startswith("corpus:  50%|")
    assert "2,000 documents, 3.00 M tokens, " in line
    assert "MB/s [00:00<00:00]" in line


def test_no_share_where_nobody_knows_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """For a single shard without a budget: neither in the log nor in the bar."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with caplog.at_level(logging.INFO), BuildProgress("corpus", 0.0, 0) as progress:
        progress.update(0.0, 1, 3000, 10_000_000)
        progress.committed(0.0, 1, 3000)
    assert re.fullmatch(r"corpus: committed 1 document, 3,000 tokens, [\d,.]+ MB/s\.", caplog.messages[0])
    line = capfd.readouterr().err.split("\r")[-1]
    assert line.startswith("corpus, 1 document, 3,000 tokens, ")
    assert "%" not in line
