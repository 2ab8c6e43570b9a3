"""Log lines as JSON, one object a line, for job logs that machines read."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

from lightning_lance.build.progress import figures_of


class JsonLines(logging.Formatter):
    """A line as JSON: its `time`, `level` and `message`, the `event` that it tells, and the figures of that."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        said = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": "message",
            **figures_of(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def write_json_lines() -> None:
    """Write what is logged from now on as JSON, progress included."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines())
    # Commits are not told where a bar shows them, but in a job log they are the progress.
    logging.getLogger("lightning_lance.build.progress").setLevel(logging.DEBUG)
