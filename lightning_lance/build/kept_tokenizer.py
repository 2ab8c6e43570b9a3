"""The tokenizer that a local store keeps beside it, written."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_lance.build.plan import Plan
from lightning_lance.errors import ConfigError
from lightning_lance.location import beside_place
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import content_of
from lightning_lance.tokenization.tokenizer import is_kept_tokenizer


def check_tokenizer_file(plan: Plan) -> None:
    """Raise ConfigError if there is a file where the tokenizer goes that no build has written."""
    file = plan.tokenizer_file
    if file is None or not os.path.lexists(file):
        return
    found = _text_of(file)
    if found is None or (found != plan.tokenizer.to_json() and not is_kept_tokenizer(found)):
        raise ConfigError(
            f"The file {str(file)!r}, where the tokenizer of the store goes, exists already, and no build has written it: "
            "move it elsewhere, or give another uri."
        )


def keep_tokenizer(plan: Plan) -> bool:
    """Write the tokenizer beside a local store. Only the tokenizer of another build is overwritten.

    Returns:
        Whether there is a new file.

    Raises:
        ConfigError: If there is a file that no build has written.
        OSError: If the tokenizer cannot be written.
    """
    check_tokenizer_file(plan)
    file = plan.tokenizer_file
    if file is None:
        return False
    text = plan.tokenizer.to_json()
    found = _text_of(file)
    if found == text:
        return False
    if found is not None:
        _keep_for_other_store(plan, file, found)
    write_atomic(file, text)
    return found is None


def _text_of(file: Path) -> str | None:
    """Read a file; None if it does not exist, is a link, or is not text."""
    try:
        if file.is_symlink():
            return None
        return content_of(file).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _keep_for_other_store(plan: Plan, file: Path, text: str) -> None:
    """Copy the tokenizer of a store `x`, which may be under construction, before that of `x.lance` replaces it."""
    other = plan.uri.removesuffix(".lance")
    copy = beside_place(other, "tokenizer.json")
    exists = Path(other).is_dir() or os.path.lexists(beside_place(other, "lock"))
    if copy != file and exists and not os.path.lexists(copy):
        write_atomic(copy, text)
