"""Write a report about a store, and the counts of its tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_lance.errors import ConfigError, StoreError, described, integer, whole_number
from lightning_lance.inspection.report.counting import Counts, count
from lightning_lance.inspection.report.files import KEY, Target, is_report, is_token_counts, target
from lightning_lance.inspection.report.plan import Plan, repetitions
from lightning_lance.inspection.report.spans import DEFAULT_SAMPLE, Reading, checked_sample
from lightning_lance.inspection.report.spelling import Spelling, tokenizer_of
from lightning_lance.messages.redaction import redacted
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lightning_lance.inspection.summary import StoreInfo

# Attempts to read a store while a builder commits to it.
_TRIES = 5
# More windows would be a page of more than two megabytes.
_MOST_WINDOWS = 200


class Written(NamedTuple):
    """What was written.

    Attributes:
        path: The file.
        bytes: Its size.
        tokens_read: Tokens that its counts are of.
        tokens: Tokens of the store.
        is_exact: Whether these are all.
    """

    path: Path
    bytes: int
    tokens_read: int
    tokens: int
    is_exact: bool


def write_report(
    store: TokenStore | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    counts: str | os.PathLike[str] | None = None,
    context_length: int = 1024,
    sample: int | str | None = DEFAULT_SAMPLE,
    windows: int = 24,
    max_steps: int | None = None,
    batch_size: int | None = None,
    world_size: int = 1,
    mix: Mapping[str, float] | None = None,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Written:
    """Write a page about a store, in one file that needs no network. Needs the packages of `lightning-lance[report]`.

    Args:
        store: The store, or its place.
        path: The page. An earlier report is replaced, any other file only with `overwrite`.
        counts: Where to write the token counts too; see `write_token_counts`.
        context_length: Tokens that a model sees.
        sample: Most tokens to read; a larger store is sampled. `all` reads all.
        windows: Windows to show.
        max_steps: Steps of a planned run, whose repetition of the store the page tells then.
        batch_size: Windows per batch and rank of that run.
        world_size: Ranks of that run.
        mix: Weight of each language in that run.
        seed: Seed of all samples.
        tokenizer: The tokenizer.json of the store, for a store in a bucket, which has none beside it.
        overwrite: Whether to replace a file that is no report.
        storage_options: Credentials and other options of object stores, where `store` is a place.

    Raises:
        ConfigError: If a package is missing, an argument cannot be used, or the page cannot be written.
        StoreError: If the store cannot be read.
    """
    from lightning_lance.inspection.report.page import Asked, check_packages, page_of

    check_packages()
    plan = _plan(max_steps, batch_size, world_size, mix)
    asked = Asked(
        whole_number("context_length", context_length),
        _checked_windows(windows),
        checked_sample(sample),
        integer("seed", seed),
        plan,
    )
    opened, info = _opened(store, storage_options)
    found_tokenizer, no_tokenizer = tokenizer_of(opened, tokenizer)
    page = target("report", path, overwrite, opened.uri, is_report)
    parquet = None
    if counts is not None:
        parquet = target("counts", counts, overwrite, opened.uri, is_token_counts)
    if parquet is not None and parquet.path == page.path:
        raise ConfigError(f"report and counts are both {str(page.path)!r}: give two places.")
    if plan is not None:
        # Before the reading, which may take minutes: the names of a mixture may be wrong.
        repetitions(opened, asked.context_length, plan, asked.seed)
    found = count(Reading(opened, asked.most, asked.seed))
    text = page_of(opened, info, found, asked, found_tokenizer, no_tokenizer)
    with page.part() as part:
        part.write_text(text, encoding="utf-8")
    if parquet is not None:
        _write_counts(opened, found, asked.seed, found_tokenizer, parquet)
    return _written(page.path, found)


def write_token_counts(
    store: TokenStore | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    sample: int | str | None = DEFAULT_SAMPLE,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Written:
    """Write how often each token occurs, as a Parquet file with a row for each id, those that never occur too.

    Its columns are `id`, `count` and, if the tokenizer lies beside the store, `token` (as the vocabulary spells it), `text`
    (None if its bytes are no text by themselves) and `bytes`. Its metadata has the digest of the tokenizer, the fingerprint of
    the store, and whether all tokens were counted.

    Args:
        store: The store, or its place.
        path: The file. An earlier one of this function is replaced, any other only with `overwrite`.
        sample: Most tokens to read; a larger store is sampled. `all` reads all.
        seed: Seed of the sample.
        tokenizer: The tokenizer.json of the store, for a store in a bucket, which has none beside it.
        overwrite: Whether to replace a file of others.
        storage_options: Credentials and other options of object stores, where `store` is a place.

    Raises:
        ConfigError: If an argument cannot be used, or the file cannot be written.
        StoreError: If the store cannot be read.
    """
    most = checked_sample(sample)
    seed = integer("seed", seed)
    opened, _ = _opened(store, storage_options)
    found_tokenizer, _ = tokenizer_of(opened, tokenizer)
    parquet = target("counts", path, overwrite, opened.uri, is_token_counts)
    found = count(Reading(opened, most, seed), with_documents=False)
    _write_counts(opened, found, seed, found_tokenizer, parquet)
    return _written(parquet.path, found)


def _checked_windows(windows: Any) -> int:
    number = whole_number("windows", windows)
    if number > _MOST_WINDOWS:
        raise ConfigError(f"windows is {number:,}: expected {_MOST_WINDOWS} at most, since all are in one page.")
    return number


def _plan(
    max_steps: int | None, batch_size: int | None, world_size: int, mix: Mapping[str, float] | None
) -> Plan | None:
    if max_steps is None and batch_size is None and not mix and world_size == 1:
        return None
    if max_steps is None or batch_size is None:
        lacking = "max_steps" if max_steps is None else "batch_size"
        raise ConfigError(
            f"The planned run lacks {lacking}: give max_steps and batch_size, and world_size for several ranks."
        )
    if mix is not None and not isinstance(mix, Mapping):
        raise ConfigError(f"mix is {described(mix)}: expected a mapping, such as {{Python: 0.7, Rust: 0.3}}.")
    return Plan(max_steps, batch_size, world_size, dict(mix or {}))


def _opened(
    store: TokenStore | str | os.PathLike[str], storage_options: Mapping[str, str] | None
) -> tuple[TokenStore, StoreInfo]:
    """Open a store, and say all about the same version."""
    from lightning_lance.inspection.summary import describe_store

    if isinstance(store, TokenStore):
        info = describe_store(store.uri, store.location.storage_options)
        newest = info.versions[0].version
        if newest != store.version:
            raise ConfigError(
                f"The token store {store.uri!r} is open at version {store.version}, but a report is about the newest one, "
                f"{newest}: give its place, or store.newest()."
            )
        return store, info
    for _ in range(_TRIES):
        info = describe_store(store, storage_options)
        opened = TokenStore.open(Path(store) if isinstance(store, os.PathLike) else store, None, storage_options)
        if opened.version == info.versions[0].version:
            return opened, info
    raise StoreError(f"The token store {str(store)!r} changes all the time: try again when its build has ended.")


def _write_counts(store: TokenStore, counts: Counts, seed: int, tokenizer: Tokenizer | None, parquet: Target) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "id": pa.array(range(len(counts.tokens)), pa.uint32()),
        "count": pa.array(counts.tokens, pa.int64()),
    }
    if tokenizer is not None:
        spelling = Spelling(tokenizer)
        ids = range(len(counts.tokens))
        columns["token"] = pa.array(map(spelling.token, ids), pa.string())
        columns["text"] = pa.array(map(spelling.text, ids), pa.string())
        columns["bytes"] = pa.array(map(spelling.content, ids), pa.binary())
    about = {
        "store": redacted(store.uri),
        "fingerprint": store.fingerprint,
        "version": store.version,
        "tokenizer": store.commit.recipe.get("tokenizer"),
        "vocab_size": store.vocab_size,
        "exact": counts.is_exact,
        "tokens_counted": counts.read,
        "tokens_stored": counts.total,
        "seed": None if counts.is_exact else seed,
    }
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(about)})
    with parquet.part() as part:
        pq.write_table(table, part, compression="zstd")


def _written(path: Path, counts: Counts) -> Written:
    return Written(path, path.stat().st_size, counts.read, counts.total, counts.is_exact)
