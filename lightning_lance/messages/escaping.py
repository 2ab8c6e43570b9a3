r"""Control characters are shown as escapes, such as `\x1b`, so that foreign text cannot control the terminal.

Names of repositories, languages, files and tokens, and answers of servers, appear in messages. Errors, logs and commands all
write through this module, so messages need no escaping of their own.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import NoReturn, TextIO

# C0, DEL and C1; line and paragraph separators; marks of text direction; and halves of surrogate pairs, which stand for bytes
# of file names and cannot be printed. Other characters, such as Chinese or emoji, stay.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Return a text as one line, with control characters escaped as in Python, such as `\x1b` or `\n`."""
    return _CONTROL.sub(_spelled, text)


def shown_lines(text: str) -> str:
    """Return a text of several lines, with control characters escaped except for line ends."""
    return "\n".join(map(shown, text.split("\n")))


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines with control characters escaped, and flush; characters that the terminal cannot show are escaped too."""
    stream = file or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        print(shown(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def fail(sentence: str) -> NoReturn:
    """Exit with code 1 and a sentence on standard error, with control characters escaped."""
    # An error may have further lines below its sentence; it has escaped all other line ends already.
    sys.exit(f"error: {shown_lines(sentence)}")


def logger(name: str) -> logging.Logger:
    """Return the logger of a module, which escapes control characters in its messages."""
    made = logging.getLogger(name)
    if _escape not in made.filters:
        made.addFilter(_escape)
    return made


def _escape(record: logging.LogRecord) -> bool:
    """Replace the message of a log record by one line with control characters escaped."""
    record.msg = shown(record.getMessage())
    record.args = None
    return True


def _spelled(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode()
