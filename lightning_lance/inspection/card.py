"""The data card of a store: a README.md with the Hub's YAML, and croissant.json beside it.

Names of languages, licenses, repositories and settings come from others. In Markdown each stands in a code span, in which
nothing is markup, and in YAML and JSON it is written by a library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_lance.documents.languages import CODE_EXTENSIONS
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError
from lightning_lance.inspection.croissant import MARK, croissant_of
from lightning_lance.inspection.facts import StoreFacts, facts_of
from lightning_lance.inspection.summary import LanguageCount
from lightning_lance.location import HUB_STORE, given_place, is_local
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import format_bytes, format_documents, format_number, pluralize
from lightning_lance.messages.redaction import redacted
from lightning_lance.process.files import write_atomic

#: The file of a card, and that of its Croissant metadata in the same folder.
CARD = "README.md"
CROISSANT = "croissant.json"

_MARK = f"<!-- {MARK} -->"
# Licenses and languages in the tables; a source may have thousands.
_MOST_ROWS = 100
# Documents from which on the Hub has another word for the size.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_ON_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")
# Codes of ISO 639, which the Hub expects of languages; names of programming languages are none.
_CODE = re.compile(r"[a-z]{2,3}")
# What the builder's words for left out documents mean.
_SKIPPED = {
    "null": "no text",
    "not_utf8": "text that is not UTF-8",
    "not_json": "lines that are not JSON",
    "empty": "empty text",
    "blank": "only white space",
    "long": "longer than the bound",
    "duplicate": "copies of other documents",
}


def write_card(
    uri: str | os.PathLike[str],
    out: str | os.PathLike[str] = CARD,
    storage_options: Mapping[str, str] | None = None,
    repo: str | None = None,
) -> list[Path]:
    """Write the data card of a store, and its Croissant metadata, `croissant.json`, beside it.

    Args:
        uri: The store.
        out: The file of the card. It is overwritten only if a card is in it.
        storage_options: Credentials and other options of object stores.
        repo: The repository of the Hub that it is for, `owner/name`.

    Returns:
        The files.

    Raises:
        ConfigError: If one of the files exists and no card has written it, or it cannot be written.
        StoreError: If there is no store, or it cannot be read.
    """
    place = given_place(out, "out")
    if not is_local(place):
        raise ConfigError(f"out is {str(out)!r}: expected a file on a disk, such as {CARD}.")
    if repo is not None:
        check_repo(repo)
    card = Path(place)
    croissant = card.with_name(CROISSANT)
    if card == croissant:
        raise ConfigError(f"out is {str(out)!r}, where the Croissant metadata goes: give another name, such as {CARD}.")
    for file in (card, croissant):
        _check_ours(file)
    facts = facts_of(uri, storage_options)
    texts = card_texts(facts, repo)
    for file, text in zip((card, croissant), texts, strict=True):
        try:
            write_atomic(file, text)
        except OSError as error:
            raise ConfigError(
                f"The card cannot be written to {str(file)!r} ({error.strerror}): give another place with out."
            ) from error
    return [card, croissant]


def check_repo(repo: str) -> None:
    """Raise ConfigError if a text is not the name of a repository of the Hub, `owner/name`."""
    if not isinstance(repo, str) or _REPOSITORY.fullmatch(repo) is None or ".." in repo or "--" in repo:
        raise ConfigError(f"The repository is {redacted(str(repo))!r}: expected owner/name, as in my-team/code-tokens.")


def card_texts(facts: StoreFacts, repo: str | None = None) -> tuple[str, str]:
    """Return the text of a card, and that of its Croissant metadata."""
    from huggingface_hub import DatasetCard

    title = shown(redacted(facts.info.summary.name)) if repo is None else repo
    head = _head(facts, title)
    body = "\n\n".join(_sections(facts, title, repo))
    card = DatasetCard(f"---\n{head}\n---\n\n{_MARK}\n\n{body}\n", ignore_metadata_errors=False)
    page = None if repo is None else f"https://huggingface.co/datasets/{repo}"
    store = HUB_STORE if repo is not None else shown(facts.info.summary.name)
    described = croissant_of(facts, title, store, page)
    return str(card), json.dumps(described, indent=2) + "\n"


def _check_ours(file: Path) -> None:
    """Raise ConfigError if a file exists that no card has written."""
    if not os.path.lexists(file):
        return
    try:
        text = "" if file.is_symlink() else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    if MARK not in text:
        raise ConfigError(
            f"There is a {str(file)!r} that no card has written: move it elsewhere, or give another place, as in "
            "out=card/README.md."
        )


def _head(facts: StoreFacts, title: str) -> str:
    """Return the YAML at the head of a card."""
    from huggingface_hub import DatasetCardData

    documents = facts.info.summary.documents or 0
    data = DatasetCardData(
        pretty_name=title,
        license=list(facts.license_ids) or None,
        language=_hub_languages(facts.languages),
        size_categories=_hub_size(documents),
        source_datasets=_hub_sources(facts.settings) or None,
        task_categories=["text-generation"],
        tags=["lightning-lance", "lance", "tokenized"],
    )
    return str(data)


def _hub_size(documents: int) -> str:
    for bound, word in _SIZES:
        if documents < bound:
            return word
    return "n>1T"


def _hub_languages(languages: Sequence[str]) -> list[str] | None:
    if not languages:
        return None
    if all(map(_CODE.fullmatch, languages)):
        return list(languages)
    if CODE_EXTENSIONS.keys() >= {*languages}:
        return ["code"]
    return None


def _hub_sources(settings: Mapping[str, Any]) -> list[str]:
    """Return the datasets of the Hub that the documents come from."""
    files = settings.get("data_files") or []
    if isinstance(files, str):
        files = [files]
    found = []
    for text in files:
        match = _ON_HUB.match(text) if isinstance(text, str) else None
        if match:
            found.append(match[1])
    path = settings.get("path")
    if not files and isinstance(path, str) and _REPOSITORY.fullmatch(path):
        found.append(path)
    return sorted({*found})


def _sections(facts: StoreFacts, title: str, repo: str | None) -> list[str]:
    summary = facts.info.summary
    total = f"{pluralize(summary.documents or 0, 'document')}, {pluralize(summary.tokens or 0, 'token')}"
    first = f"# {_code(title)}\n\n{total}, ready for training: each document was tokenized once and ends with {_eos(facts)}."
    if summary.state != "complete":
        first += f" The build of the store was not complete when this card was written ({summary.state})."
    sections = [first, _loading(facts, repo), _counts(facts), *_licenses(facts), _made_of(facts)]
    return [*sections, _left_out(facts), _about(facts)]


def _eos(facts: StoreFacts) -> str:
    token = facts.settings.get("eos_token")
    if token is None:
        return "a token of its own"
    return _code(str(token))


def _loading(facts: StoreFacts, repo: str | None) -> str:
    place = f"hf://datasets/{repo}"
    if repo is None:
        place = shown(facts.info.summary.name)
    python = json.dumps(place)
    return (
        "## Load\n\n"
        "```bash\npip install lightning-lance\n```\n\n"
        "```python\n"
        "from lightning_lance import LanceDataModule, TokenStore\n\n"
        f"store = TokenStore.open({python})\n"
        f"data = LanceDataModule({python}, context_length=1024, batch_size=16)\n"
        "```\n\n"
        "A batch has random windows of the splits, as PyTorch tensors; the model needs an embedding of "
        f"{facts.info.settings.get('vocab_size', 0):,} ids."
    )


def _counts(facts: StoreFacts) -> str:
    rows = []
    for one in facts.info.languages[:_MOST_ROWS]:
        row = [_code(one.language) if one.language else "(none)"]
        for split in SPLITS:
            row += [_number(one.split_documents[split]), _number(one.split_tokens[split])]
        rows.append(row)
    left = len(facts.info.languages) - len(rows)
    totals = ["all"]
    for split in SPLITS:
        documents, tokens = _total(facts.info.languages, split)
        totals += [_number(documents), _number(tokens)]
    titles = ["language", "train documents", "train tokens", "val documents", "val tokens"]
    return f"## Documents and tokens\n\n{_table(titles, [*rows, totals])}{_more(left, 'language')}"


def _total(languages: Sequence[LanguageCount], split: str) -> tuple[int | None, int]:
    """Return the documents and tokens of a split; None for the documents if those of a language are unknown."""
    documents: int | None = 0
    tokens = 0
    for one in languages:
        tokens += one.split_tokens[split]
        of_language = one.split_documents[split]
        if documents is None or of_language is None:
            documents = None
        else:
            documents += of_language
    return documents, tokens


def _licenses(facts: StoreFacts) -> list[str]:
    if facts.licenses is None:
        return ["## Licenses\n\nThe source gives no license of its documents."]
    rows: list[list[str]] = []
    for one in facts.licenses[:_MOST_ROWS]:
        rows.append([_code(one.name), _number(one.documents), _number(one.tokens)])
    left = len(facts.licenses) - len(rows)
    text = (
        "## Licenses\n\nAs the source gives them, document by document; nobody has checked them. Where SPDX has an id, it is "
        f"written that way.\n\n{_table(['license', 'documents', 'tokens'], rows)}{_more(left, 'license')}"
    )
    return [text]


def _made_of(facts: StoreFacts) -> str:
    rows: list[list[str]] = []
    for name, value in facts.settings.items():
        rows.append([_code(name), _code(_in_words(value))])
    known = ", ".join(map(_code, facts.words))
    return (
        "## Source and settings\n\n"
        f"{_table(['setting', 'value'], rows)}\n\n"
        f"Each document has {known or 'no metadata'} with it."
    )


def _left_out(facts: StoreFacts) -> str:
    lines = []
    for reason, count in facts.info.skipped.items():
        said = _SKIPPED.get(reason) or _code(reason)
        lines.append(f"- {pluralize(count, 'document')} left out by the build: {said}")
    for one in facts.removed:
        keys = " and ".join(map(_code, one.keys))
        lines.append(
            f"- {format_documents(one.documents, one.tokens)} removed afterwards by "
            f"{pluralize(one.rules, 'rule')} on {keys}"
        )
    if not lines:
        lines = ["Nothing was left out of what the source gave, and nothing was removed."]
    return "## What was left out and removed\n\n" + "\n".join(lines)


def _about(facts: StoreFacts) -> str:
    summary = facts.info.summary
    built = "unknown"
    if summary.built is not None:
        built = summary.built.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    rows = [
        ["fingerprint of the settings", _code(facts.info.fingerprint)],
        ["version", _number(facts.version)],
        ["built", built],
        ["size", f"{format_bytes(facts.bytes)} ({facts.bytes:,} bytes)"],
        ["tokens", f"{format_number(summary.tokens or 0)}, {facts.dtype}, in rows of {facts.block:,}"],
        ["written by", f"lightning-lance {version('lightning-lance')}"],
    ]
    return f"## About this store\n\n{_table(['', ''], rows)}"


def _number(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count:,}"


def _more(left: int, noun: str) -> str:
    if left > 0:
        return f"\n\nand {pluralize(left, f'more {noun}')}"
    return ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(_table_line, [titles, ["---"] * len(titles), *rows]))


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_words(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _code(text: str) -> str:
    """Return a text of others as a code span, in which nothing is markup, also in a cell of a table."""
    plain = shown(redacted(text))
    longest = max(map(len, re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    # A cell ends at a bar, also in a code span.
    plain = plain.replace("|", "\\|")
    space = ""
    if not plain.strip() or plain[0] in " `" or plain[-1] in " `":
        space = " "
    return f"{fence}{space}{plain or '(empty)'}{space}{fence}"
