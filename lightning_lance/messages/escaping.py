r"""Text that others wrote, made fit for a terminal: what would control it is shown as an escape, such as `\x1b`.

Names of repositories, languages, files and tokens, and the answers of servers, end up in messages. Errors, logs and commands
all write through this module, so no message has to think of it.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import NoReturn, TextIO

# C0, DEL and C1; the separators of lines and paragraphs; what turns the direction of text; and halves of surrogate pairs, which
# stand for bytes of file names and cannot be printed. All else, such as Chinese or emoji, stays as it is.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Return a text as one line without control characters: each is spelled as in Python, such as `\x1b` or `\n`."""
    return _CONTROL.sub(_spelled, text)


def shown_lines(text: str) -> str:
    """Return a text of several lines without control characters, but for the ends of its lines."""
    return "\n".join(shown(line) for line in text.split("\n"))


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, each without control characters, at once; what the terminal has no letters for is shown as escapes."""
    stream = file or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        print(shown(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def fail(sentence: str) -> NoReturn:
    """End the process with exit code 1 and a sentence on standard error, without control characters."""
    # An error may have lines below its sentence; it has escaped all other ends of lines itself.
    sys.exit(f"error: {shown_lines(sentence)}")


def logger(name: str) -> logging.Logger:
    """Return the logger of a module, whose messages have no control characters."""
    made = logging.getLogger(name)
    if _escape not in made.filters:
        made.addFilter(_escape)
    return made


def _escape(record: logging.LogRecord) -> bool:
    """Replace the message of a log record by one line without control characters."""
    record.msg, record.args = shown(record.getMessage()), None
    return True


def _spelled(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode()
