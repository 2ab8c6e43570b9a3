"""The progress of a build: a line for what is read, a bar on a terminal or lines elsewhere, and a line for what is stored.

Each line also carries its figures, for a log that machines read; see `figures_of`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lightning_lance.messages.escaping import logger, shown
from lightning_lance.messages.formatting import format_percent, format_tokens, pluralize
from lightning_lance.store.token_store import TokenStore

_log = logger(__name__)

_KNOWN = "{desc}: {percentage:3.0f}%|{bar}|{postfix} [{elapsed}<{remaining}]"
# Without a commit, after which a line tells how the work goes on.
_QUIET_SECONDS = 60.0
# In a single shard without a budget, the rest is not known.
_UNKNOWN = "{desc}{postfix} [{elapsed}]"


def figures_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return the figures of a line about a build, with the name of the `event`; empty for any other line."""
    found: Mapping[str, Any] = getattr(record, "figures", {})
    return found


def _tell(level: int, line: str, **figures: Any) -> None:
    _log.log(level, "%s", line, extra={"figures": figures})


def tell_stored(store: TokenStore) -> None:
    """Log what a complete store holds."""
    commit = store.commit
    parts = []
    if any(commit.skipped.values()):
        parts.append(f"skipped: {_listed(commit.skipped)}")
    if any(commit.noted.values()):
        parts.append(f"stored, with remarks: {_listed(commit.noted)}")
    more = f" ({'; '.join(parts)})" if parts else ""
    train = store.num_tokens("train")
    val = store.num_tokens("val")
    _tell(
        logging.INFO,
        f"{store.uri}: {pluralize(commit.stored_documents, 'document')}, {train:,} train and {val:,} val tokens, version "
        f"{store.version}{more}",
        event="stored",
        uri=store.uri,
        version=store.version,
        documents=commit.stored_documents,
        train_tokens=train,
        val_tokens=val,
        skipped=dict(commit.skipped),
        noted=dict(commit.noted),
    )


def tell_begun(name: str, shards: int, budget: str, uri: str, documents: int) -> None:
    """Log what is read, and where it goes.

    Args:
        name: Name of the source.
        shards: Its shards.
        budget: How much is asked for.
        uri: The store.
        documents: Documents that it has already.
    """
    after = ""
    if documents:
        after = f", after the {pluralize(documents, 'document')} that it has"
    _tell(
        logging.INFO,
        f"Reading {name} ({pluralize(shards, 'shard')}; {budget}) into {uri}{after}.",
        event="begun",
        source=name,
        uri=uri,
        shards=shards,
        budget=budget,
        documents=documents,
    )


class BuildProgress:
    """Shows documents, tokens, MB/s of text, share of the budget, and time left of a build.

    While there is a bar, log lines for the terminal are written above it.

    Args:
        name: Name of the source.
        share: Share of the budget that is done already, 0 to 1.
    """

    def __init__(self, name: str, share: float) -> None:
        self._name = name
        self._note = ""
        self._more: Mapping[str, Any] = {}
        self._now = share, 0, 0
        self._told = time.perf_counter()
        self._begin = time.perf_counter()
        self._bytes = 0
        # disable=None: no bar if standard error is not a terminal.
        self._bar = tqdm(
            total=1.0,
            initial=share,
            desc=shown(name),
            disable=None,
            smoothing=0.1,
            bar_format=_KNOWN if share else _UNKNOWN,
        )
        self._lines = nullcontext() if self._bar.disable else logging_redirect_tqdm()

    def __enter__(self) -> BuildProgress:
        self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        self._lines.__exit__(kind, error, traceback)

    def update(self, share: float, documents: int, tokens: int, text_bytes: int) -> None:
        """Show the share done, all documents and tokens, and the bytes of text since the last call."""
        self._bytes += text_bytes
        self._now = share, documents, tokens
        self._bar.bar_format = _KNOWN if share else _UNKNOWN
        self._bar.set_postfix_str(self._figures(documents, tokens), refresh=False)
        self._bar.update(min(share, 1.0) - self._bar.n)

    def note(self, text: str, **figures: Any) -> None:
        """Show how the work goes on beside the figures, such as the number of tasks; lines for machines have it as figures.

        Logged if there was no commit for long.
        """
        self._note = text
        self._more = figures
        if time.perf_counter() - self._told > _QUIET_SECONDS:
            self._log("running", "so far", *self._now)

    def committed(self, share: float, documents: int, tokens: int) -> None:
        """Log a commit, where there is no bar to show it."""
        self._log("committed", "committed", share, documents, tokens)

    def _log(self, event: str, done: str, share: float, documents: int, tokens: int) -> None:
        self._told = time.perf_counter()
        percent = format_percent(share)
        after = f" ({percent})" if percent else ""
        _tell(
            logging.INFO if self._bar.disable else logging.DEBUG,
            f"{self._name}: {done} {self._figures(documents, tokens)}{after}.",
            event=event,
            source=self._name,
            documents=documents,
            tokens=tokens,
            share=round(share, 4),
            seconds=round(time.perf_counter() - self._begin, 1),
            text_bytes=self._bytes,
            mb_per_second=round(self._rate(), 1),
            **self._more,
        )

    def _rate(self) -> float:
        return self._bytes / max(time.perf_counter() - self._begin, 1e-9) / 1e6

    def _figures(self, documents: int, tokens: int) -> str:
        figures = f"{pluralize(documents, 'document')}, {format_tokens(tokens)}"
        if self._bytes:  # tokens that are imported have no text
            figures += f", {self._rate():,.1f} MB/s"
        if self._note:
            return f"{figures}, {self._note}"
        return figures


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
