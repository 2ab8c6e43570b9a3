"""What the log of a command looks like for people."""

import logging

from lightning_lance.cli.log_lines import PlainLines


def test_lines_have_no_logger_and_no_time():
    for level, line in ((logging.INFO, "is done"), (logging.WARNING, "warning: is done")):
        record = logging.LogRecord("lightning_lance.x", level, "x.py", 1, "%s", ("is done",), None)
        assert PlainLines().format(record) == line
