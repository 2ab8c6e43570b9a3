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
    """Refuse to write the tokenizer of a store over a file of others; before anything else is written or removed.

    Raises:
        ConfigError: If such a file is there.
    """
    file = plan.tokenizer_file
    if file is None or not os.path.lexists(file):
        return
    found = _text_of(file)
    if found is None or (found != plan.tokenizer.to_json() and not is_kept_tokenizer(found)):
        raise ConfigError(
            f"The file {str(file)!r}, where the tokenizer of the store goes, is there already, and no build has written it: "
            "move it elsewhere, or give another uri."
        )


def keep_tokenizer(plan: Plan) -> None:
    """Write the tokenizer beside a local store, over none but another that a build has written there.

    Raises:
        ConfigError: If a file of others is there.
        OSError: If it cannot be written.
    """
    check_tokenizer_file(plan)
    file, text = plan.tokenizer_file, plan.tokenizer.to_json()
    if file is None:
        return
    found = _text_of(file)
    if found == text:
        return
    if found is not None:
        _keep_for_other_store(plan, file, found)
    write_atomic(file, text)


def _text_of(file: Path) -> str | None:
    """Read a file; None if there is none, or a link, or no text."""
    try:
        return None if file.is_symlink() else content_of(file).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _keep_for_other_store(plan: Plan, file: Path, text: str) -> None:
    """Copy the tokenizer of a store `x`, which may be built at this time, before that of `x.lance` takes its place."""
    other = plan.uri.removesuffix(".lance")
    mine = beside_place(other, "tokenizer.json")
    there = Path(other).is_dir() or os.path.lexists(beside_place(other, "lock"))
    if mine != file and there and not os.path.lexists(mine):
        write_atomic(mine, text)


def tokenizer_beside(store: TokenStore) -> Tokenizer:
    """Load the tokenizer that is kept beside a local store.

    Raises:
        ConfigError: If it is not there.
        StoreError: If it is another one.
    """
    files, made_by = store.tokenizer_files, store.commit.recipe.get("tokenizer")
    for file in files:
        if file.is_file():
            tokenizer = TokenizerFile(str(file), store.commit.eos_token).load(None, Path())
            if made_by == tokenizer.digest or made_by in tokenizer.other_digests:
                return tokenizer
    found = [str(file) for file in files if file.is_file()]
    if found:
        raise StoreError(f"The tokenizer {found[0]!r} is not the one that made {store.uri!r}: bring that one back.")
    where = str(files[0]) if files else store.uri
    raise ConfigError(f"There is no tokenizer.json at {where!r}: bring back the one that made {store.uri!r}.")
