"""The progress of a build: a bar on a terminal, and log lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from lightning_lance.messages.escaping import logger, shown
from lightning_lance.messages.formatting import format_percent, format_tokens, pluralize

_log = logger(__name__)

_KNOWN = "{desc}: {percentage:3.0f}%|{bar}|{postfix} [{elapsed}<{remaining}]"
# In a single shard without a budget, the rest is not known.
_UNKNOWN = "{desc}{postfix} [{elapsed}]"


class BuildProgress:
    """Shows documents, tokens, MB/s of text, share of the budget, and time left of a build.

    Args:
        name: Name of the source.
        share: Share of the budget that is done already, 0 to 1.
        documents: Documents that are stored already.
    """

    def __init__(self, name: str, share: float, documents: int) -> None:
        self._name = name
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
        if documents:
            _log.info("%s: continuing after %s.", name, pluralize(documents, "document"))

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, share: float, documents: int, tokens: int, text_bytes: int) -> None:
        """Show the share done, all documents and tokens, and the bytes of text since the last call."""
        self._bytes += text_bytes
        self._bar.bar_format = _KNOWN if share else _UNKNOWN
        self._bar.set_postfix_str(self._figures(documents, tokens), refresh=False)
        self._bar.update(min(share, 1.0) - self._bar.n)

    def committed(self, share: float, documents: int, tokens: int) -> None:
        """Log a commit."""
        percent = format_percent(share)
        done = f" ({percent})" if percent else ""
        _log.info("%s: committed %s%s.", self._name, self._figures(documents, tokens), done)

    def ended(self, skipped: Mapping[str, int], noted: Mapping[str, int]) -> None:
        """Log the number of skipped documents, by reason, and of stored documents, by remark."""
        parts = []
        if any(skipped.values()):
            parts.append(f"skipped: {_listed(skipped)}")
        if any(noted.values()):
            parts.append(f"stored, with remarks: {_listed(noted)}")
        if parts:
            _log.info("%s: %s.", self._name, "; ".join(parts))

    def _figures(self, documents: int, tokens: int) -> str:
        rate = self._bytes / max(time.perf_counter() - self._begin, 1e-9) / 1e6
        return f"{pluralize(documents, 'document')}, {format_tokens(tokens)}, {rate:,.1f} MB/s"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
