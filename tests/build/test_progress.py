import logging
import re
from collections.abc import Callable

import pytest

from lightning_lance import TokenStore
from lightning_lance.build.progress import BuildProgress, figures_of, tell_begun, tell_stored


def test_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        tell_begun("corpus", 3, "max_documents=4,000", "/x.lance", 1000)
        with BuildProgress("corpus", 0.25) as progress:
            progress.update(0.5, 2000, 3_000_000, 10_000_000)
            progress.committed(0.5, 2000, 3_000_000)
    assert capfd.readouterr().err == ""
    begun, committed = caplog.messages
    assert (
        begun == "Reading corpus (3 shards; max_documents=4,000) into /x.lance, after the 1,000 documents that it has."
    )
    assert committed.startswith("corpus: committed 2,000 documents, 3.00 M tokens, ")
    assert committed.endswith("MB/s (50 %).")
    figures = figures_of(caplog.records[1])
    assert (figures["event"], figures["documents"], figures["share"]) == ("committed", 2000, 0.5)
    assert figures_of(logging.makeLogRecord({})) == {}


def test_a_terminal_gets_documents_tokens_rate_share_and_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with caplog.at_level(logging.INFO), BuildProgress("corpus", 0.0) as progress:
        progress.update(0.5, 2000, 3_000_000, 10_000_000)
        progress.committed(0.5, 2000, 3_000_000)
    line = capfd.readouterr().err.split("\r")[-1]
    assert line.startswith("corpus:  50%|")
    assert "2,000 documents, 3.00 M tokens, " in line
    assert "MB/s [00:00<00:00]" in line
    # The bar shows it.
    assert caplog.messages == []


def test_a_line_tells_how_the_work_goes_on_where_there_was_no_commit_for_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    with caplog.at_level(logging.INFO), BuildProgress("corpus", 0.0) as progress:
        progress.update(0.5, 2000, 3_000_000, 10_000_000)
        progress.note("7 units", units_done=7)
        assert caplog.messages == []
        monkeypatch.setattr("lightning_lance.build.progress._QUIET_SECONDS", 0.0)
        progress.note("8 units", units_done=8)
        monkeypatch.setattr("lightning_lance.build.progress._QUIET_SECONDS", 60.0)
        progress.note("9 units", units_done=9)
    [line] = caplog.messages
    assert re.fullmatch(r"corpus: so far 2,000 documents, 3\.00 M tokens, [\d,.]+ MB/s, 8 units \(50 %\)\.", line)
    figures = figures_of(caplog.records[0])
    assert (figures["event"], figures["tokens"], figures["units_done"]) == ("running", 3_000_000, 8)
    assert figures["mb_per_second"] > 0


def test_no_share_where_nobody_knows_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """For a single shard without a budget: neither in the log nor in the bar."""
    with caplog.at_level(logging.INFO), BuildProgress("corpus", 0.0) as progress:
        progress.committed(0.0, 1, 3000)
    # Nor a speed, where tokens come without their text.
    assert caplog.messages[0] == "corpus: committed 1 document, 3,000 tokens."
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with BuildProgress("corpus", 0.0) as progress:
        progress.update(0.0, 1, 3000, 10_000_000)
    line = capfd.readouterr().err.split("\r")[-1]
    assert line.startswith("corpus, 1 document, 3,000 tokens, ")
    assert "%" not in line


def test_one_line_says_what_is_stored(byte_store: Callable[..., TokenStore], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        store = byte_store("one", "", "two")
        assert caplog.messages[-1].startswith(store.uri)  # each build ends with it
        caplog.clear()
        tell_stored(store)
    line = f"{store.uri}: 2 documents, 8 train and 0 val tokens, version 1 (skipped: 1 empty)"
    assert caplog.messages == [line]
    figures = figures_of(caplog.records[0])
    assert (figures["event"], figures["train_tokens"], figures["skipped"]) == ("stored", 8, {"empty": 1})
