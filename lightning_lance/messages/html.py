"""Tables for notebooks: what `_repr_html_` returns, with all foreign text escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lightning_lance.messages.escaping import shown_lines
from lightning_lance.messages.redaction import redacted


def html_text(text: str) -> str:
    """Return a text for HTML: markup and control characters escaped, secrets hidden."""
    return html.escape(shown_lines(redacted(text)))


def _html_title(title: str) -> str:
    return f'<th scope="col">{html_text(title)}</th>'


def _html_cell(cell: str) -> str:
    return f"<td>{html_text(cell)}</td>"


def _html_row(row: Sequence[str]) -> str:
    return f"<tr>{''.join(map(_html_cell, row))}</tr>"


def html_table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML.

    Args:
        caption: Its caption.
        titles: The titles of the columns; none for a table without a head.
        rows: The cells of each row, as plain text.
    """
    head = "".join(map(_html_title, titles))
    body = "".join(map(_html_row, rows))
    first = f"<thead><tr>{head}</tr></thead>" if titles else ""
    return f"<table><caption>{html_text(caption)}</caption>{first}<tbody>{body}</tbody></table>"
