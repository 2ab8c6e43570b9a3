"""The tokenizer that a local store keeps beside it."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_lance.build.plan import Plan
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.location import beside_place
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import content_of
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.configs import TokenizerFile
from lightning_lance.tokenization.tokenizer import Tokenizer, is_kept_tokenizer


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


def keep_tokenizer(plan: Plan) -> None:
    """Write the tokenizer beside a local store. Only the tokenizer of another build is overwritten.

    Raises:
        ConfigError: If there is a file that no build has written.
        OSError: If the tokenizer cannot be written.
    """
    check_tokenizer_file(plan)
    file = plan.tokenizer_file
    if file is None:
        return
    text = plan.tokenizer.to_json()
    found = _text_of(file)
    if found == text:
        return
    if found is not None:
        _keep_for_other_store(plan, file, found)
    write_atomic(file, text)


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


def tokenizer_beside(store: TokenStore) -> Tokenizer:
    """Load the tokenizer beside a local store.

    Raises:
        ConfigError: If there is none.
        StoreError: If it is not the one that made the store.
    """
    files = store.tokenizer_files
    digest = store.commit.recipe.get("tokenizer")
    found = [file for file in files if file.is_file()]
    for file in found:
        tokenizer = TokenizerFile(str(file), store.commit.eos_token).load(None, Path())
        if digest == tokenizer.digest or digest in tokenizer.other_digests:
            return tokenizer
    if found:
        raise StoreError(f"The tokenizer {str(found[0])!r} is not the one that made {store.uri!r}: restore that one.")
    where = str(next(iter(files), store.uri))
    raise ConfigError(f"There is no tokenizer.json at {where!r}: restore the one that made {store.uri!r}.")
