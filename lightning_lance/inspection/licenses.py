"""The licenses of documents by their SPDX ids, as far as they have one."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

#: Stands for documents whose license is not known.
NOT_GIVEN = "not given"
# A longer text is no name of a license, but the license itself.
_LONGEST = 200
# The ids that the Hub takes in the head of a card; all others are `other` there.
_OF_THE_HUB = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "ecl-2.0", "epl-1.0",
    "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit",
    "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip


def license_name(text: str | None) -> str:
    """Return the license of a document as SPDX writes it, such as `MIT` for `mit`; one that SPDX does not know as it is.

    Some sources give several, as a list that Python has written: these are named one after the other.
    """
    names = set(map(_spelled, _listed(text)))
    return ", ".join(sorted(names, key=str.casefold)) or NOT_GIVEN


def hub_ids(texts: Iterable[str | None]) -> list[str]:
    """Return the licenses of documents as the Hub wants them in the head of a card, sorted; none if none is known."""
    found = set()
    for text in texts:
        for name in _listed(text):
            plain = _spelled(name).lower().removesuffix("-only").removesuffix("-or-later")
            found.add(plain if plain in _OF_THE_HUB else "other")
        if not _listed(text):
            found.add("unknown")
    if found == {"unknown"}:
        return []
    return sorted(found)


def spdx_url(name: str) -> str | None:
    """Return the page of a license that SPDX knows by one id; None for any other text."""
    try:
        plain = canonicalize_license_expression(name[:_LONGEST])
    except InvalidLicenseExpression:
        return None
    if " " in plain or plain.startswith("LicenseRef-") or plain != name:
        return None
    return f"https://spdx.org/licenses/{plain}.html"


def _listed(text: str | None) -> list[str]:
    if text is None or not text.strip():
        return []
    if text.startswith("[") and text.endswith("]") and len(text) <= _LONGEST * _LONGEST:
        try:
            names = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if all(isinstance(name, str) for name in names):
            return [name for name in names if name.strip()]
    return [text]


def _spelled(name: str) -> str:
    if len(name) > _LONGEST:
        return f"{name[:_LONGEST]}..."
    try:
        return str(canonicalize_license_expression(name))
    except InvalidLicenseExpression:
        return name
