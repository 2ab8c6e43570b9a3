"""The log of a command, for people."""

from __future__ import annotations

import logging


class PlainLines(logging.Formatter):
    """The message, and nothing before it but `warning:` or `error:`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"
