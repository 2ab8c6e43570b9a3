"""The page of a report: what it tells, filled into its template, with nothing from elsewhere and no text that could act."""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.inspection.report import charts
from lightning_lance.inspection.report.compression import Compression, compression_of
from lightning_lance.inspection.report.counting import GROUPED, Counts
from lightning_lance.inspection.report.files import MARK
from lightning_lance.inspection.report.plan import Plan, repetitions
from lightning_lance.inspection.report.spans import basis_of
from lightning_lance.inspection.report.spelling import LINE_END, Spelling, cut, visible
from lightning_lance.inspection.report.windows import (
    MANY,
    ShownDocument,
    ShownWindow,
    documents_per_window,
    some_windows,
)
from lightning_lance.inspection.summary import LanguageCount, StoreInfo
from lightning_lance.messages.formatting import (
    as_pairs,
    format_bytes,
    format_documents,
    format_number,
    format_tokens,
    pluralize,
)
from lightning_lance.messages.redaction import redacted
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from markupsafe import Markup

# Rows of a table by value; the others are one row.
_ROWS = 12
_TOP_TOKENS = 24
_VERSIONS = 20
_LONGEST = 200
_TITLES = {"license": "Licenses", "repo": "Repositories"}
_NOUNS = {"license": ("license", "licenses"), "repo": ("repository", "repositories")}
_QUANTILES = ((0.0, "shortest"), (0.1, "10 %"), (0.5, "median"), (0.9, "90 %"), (0.99, "99 %"), (1.0, "longest"))
# What each section tells, None if it is always there; its id, and its title.
_SECTIONS = (
    ("lengths", "lengths", "Lengths"), (None, "tokens", "Tokens"), (None, "compression", "Compression"),
    ("in_windows", "documents", "Documents in a window"), ("plan", "plan", "A planned run"),
    ("windows", "windows", "Some windows"), (None, "settings", "Settings"),
)  # fmt: skip
# Nothing is loaded from anywhere, and of scripts and styles only the page's own count.
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
_PACKAGES = ("jinja2", "altair", "vl_convert")


class Asked(NamedTuple):
    """What the user wants to know.

    Attributes:
        context_length: Tokens that a model sees.
        windows: Windows to show.
        most: Most tokens to read; None for all.
        seed: Seed of all samples.
        plan: A planned run.
    """

    context_length: int
    windows: int
    most: int | None
    seed: int
    plan: Plan | None


def check_packages() -> None:
    """Check that what draws and fills the page is installed.

    Raises:
        ConfigError: If it is not.
    """
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"A report needs the package {name.replace('_', '-')}, which is not installed: run pip install "
                "'lightning-lance[report]'."
            ) from error


def page_of(
    store: TokenStore,
    info: StoreInfo,
    counts: Counts,
    asked: Asked,
    tokenizer: Tokenizer | None,
    no_tokenizer: str,
) -> str:
    """Return the page.

    Args:
        store: The store.
        info: All about it.
        counts: What was counted in it.
        asked: What the user wants to know.
        tokenizer: Its tokenizer, None if there is none.
        no_tokenizer: Why there is none.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_plain, trim_blocks=True, lstrip_blocks=True
    )
    style = _file("page.css")
    script = _file("page.js")
    spelling = None if tokenizer is None else Spelling(tokenizer)
    windows = _windows(store, counts, asked, spelling, Markup)
    facts: dict[str, Any] = {
        "mark": Markup(MARK),
        "style": Markup(style),
        "script": Markup(script),
        "policy": f"{_POLICY}; script-src {_hash(script)}; style-src {_hash(style)}",
        "info": info,
        "store": store,
        "place": redacted(info.summary.uri),
        "versions": info.versions[:_VERSIONS],
        "package": _version(),
        "exact": counts.is_exact,
        "asked": asked,
        "made": datetime.now(timezone.utc),
        "settings": _settings(info),
        "languages": _languages(info),
        "groups": _groups(counts),
        "lengths": _lengths(counts),
        "tokens": _tokens(counts, spelling),
        "compression": _compression(store, tokenizer, asked.seed),
        "in_windows": _in_windows(store, counts, asked),
        "plan": _planned(store, asked),
        "windows": windows,
        "windows_basis": f"{pluralize(len(windows), 'window')}, at random places, spread over the languages",
        "problem": counts.problem,
        "no_tokenizer": no_tokenizer,
        "number": format_number,
        "count": lambda number: f"{number:,}",
        "size": format_bytes,
        "plural": pluralize,
        "of_tokens": format_tokens,
        "percent": _percent,
        "time": _time,
    }
    facts["sections"] = _sections(facts)
    return environment.from_string(_file("page.html")).render(facts)


def _sections(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the sections of the page that have something to tell: their ids and titles."""
    sections = [("languages", "Languages")]
    for group in facts["groups"]:
        sections.append((group["id"], group["title"]))
    for key, name, title in _SECTIONS:
        if key is None or facts[key]:
            sections.append((name, title))
    return sections


def _version() -> str:
    try:
        return metadata.version("lightning-lance")
    except metadata.PackageNotFoundError:
        return ""


def _file(name: str) -> str:
    return resources.files("lightning_lance.inspection.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source of a policy that allows one text only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plain(value: Any) -> Any:
    """Return a value of the template in a form without tricks; its escaping as HTML follows."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(value)
    return value


def _settings(info: StoreInfo) -> list[tuple[str, str]]:
    rows = [("fingerprint", info.fingerprint)]
    for name, value in info.settings.items():
        rows.append((name, cut(redacted(_in_words(value)), 400)))
    for reason, count in info.skipped.items():
        rows.append((f"left out: {reason}", f"{count:,}"))
    for entry in info.forgotten:
        rule = " ".join(as_pairs(entry["rule"]))
        rows.append(("forgotten", f"{rule}: {format_documents(entry['documents'], entry['tokens'])}"))
    if info.disk is not None:
        rows.append(("disk", format_bytes(info.disk.total)))
    return rows


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_in_words(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_in_words, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


class _LanguageRow(NamedTuple):
    name: str
    documents: int
    tokens: int
    splits: tuple[int, ...]


def _languages(info: StoreInfo) -> dict[str, Any]:
    """Return the languages with the most tokens, and the rest as one row."""
    found = sorted(info.languages, key=lambda one: (-one.tokens, one.language))
    rows = [_language_row(one.language or "(none)", [one]) for one in found[:_ROWS]]
    if found[_ROWS:]:
        rows.append(_language_row(f"{len(found) - _ROWS:,} others", found[_ROWS:]))
    by_tokens = _by_tokens(rows)
    return {**by_tokens, "splits": SPLITS, "basis": f"exact, of all {pluralize(by_tokens['total'], 'token')}"}


def _language_row(name: str, some: Sequence[LanguageCount]) -> _LanguageRow:
    documents = 0
    tokens = 0
    splits = dict.fromkeys(SPLITS, 0)
    for one in some:
        documents += one.documents
        tokens += one.tokens
        for split in SPLITS:
            splits[split] += one.split_tokens[split]
    return _LanguageRow(name, documents, tokens, tuple(splits.values()))


def _groups(counts: Counts) -> list[dict[str, Any]]:
    """Return what is told of licenses and repositories, where the store has them."""
    if counts.documents is None:
        return []
    found: list[dict[str, Any]] = []
    for name in GROUPED:
        if name in counts.documents.groups:
            found.append(_group(name, counts.documents.groups[name], counts))
    return found


class _GroupRow(NamedTuple):
    name: str
    documents: int
    tokens: int


def _group(name: str, group: Mapping[str | None, Sequence[int]], counts: Counts) -> dict[str, Any]:
    """Return the licenses or repositories with the most tokens, and the rest as one row."""
    found: list[_GroupRow] = []
    for value, (documents, tokens) in group.items():
        found.append(_GroupRow(value or "", documents, tokens))
    found.sort(key=lambda row: (-row.tokens, row.name))
    rows: list[_GroupRow] = []
    for row in found[:_ROWS]:
        rows.append(row._replace(name=cut(row.name, _LONGEST) if row.name else "(unknown)"))
    if found[_ROWS:]:
        rows.append(_others(found[_ROWS:]))
    return {
        "id": name,
        "title": _TITLES[name],
        "noun": _NOUNS[name][0],
        "distinct": pluralize(sum(map(bool, group)), *_NOUNS[name]),
        **_by_tokens(rows),
        "basis": basis_of(counts.read, counts.total, "token", counts.is_exact),
    }


def _others(rest: Sequence[_GroupRow]) -> _GroupRow:
    """Return several rows as one."""
    documents = 0
    tokens = 0
    for row in rest:
        documents += row.documents
        tokens += row.tokens
    return _GroupRow(f"{len(rest):,} others", documents, tokens)


def _by_tokens(rows: Sequence[_LanguageRow | _GroupRow]) -> dict[str, Any]:
    """Return what is told of all rows with tokens: the rows, the tokens of all, and a chart."""
    total = 0
    bars: list[tuple[str, float]] = []
    for row in rows:
        total += row.tokens
        bars.append((row.name, row.tokens))
    return {"rows": rows, "total": total, "chart": _markup(charts.bars(bars, "tokens"))}


def _lengths(counts: Counts) -> dict[str, Any] | None:
    if counts.documents is None or not counts.documents.documents:
        return None
    lengths, times = np.asarray(sorted(counts.documents.lengths.items()), np.int64).T
    ends = np.cumsum(times)
    total = int(ends[-1])
    quantiles: list[tuple[str, int]] = []
    for share, name in _QUANTILES:
        place = np.searchsorted(ends, max(int(np.ceil(share * total)), 1))
        quantiles.append((name, int(lengths[place])))
    mean = int(lengths @ times) / total
    basis = f"exact, of all {pluralize(total, 'document')}"
    if not counts.is_exact:
        basis = f"from a sample of {pluralize(total, 'document')}"
    return {
        "quantiles": quantiles,
        "mean": mean,
        "chart": _markup(charts.histogram(counts.documents.lengths, "documents", "tokens of a document")),
        "basis": basis,
    }


def _tokens(counts: Counts, spelling: Spelling | None) -> dict[str, Any]:
    order = np.argsort(-counts.tokens, kind="stable")
    never = int((counts.tokens == 0).sum())
    top = []
    for number in order[:_TOP_TOKENS].tolist():
        if counts.tokens[number]:
            text = "" if spelling is None else spelling.shown(number)
            top.append((number, text, int(counts.tokens[number]), counts.tokens[number] / max(counts.read, 1)))
    return {
        "never": never,
        "never_share": never / max(len(counts.tokens), 1),
        "ids": len(counts.tokens),
        "is_decoded": spelling is not None,
        "top": top,
        "chart": _markup(charts.by_rank(counts.tokens[order])),
        "basis": basis_of(counts.read, counts.total, "token", counts.is_exact),
        "is_exact": counts.is_exact,
    }


def _compression(store: TokenStore, tokenizer: Tokenizer | None, seed: int) -> dict[str, Any] | None:
    if tokenizer is None:
        return None
    found = compression_of(store, tokenizer, seed)
    rows: list[_CompressionRow] = []
    for one in found[:_ROWS]:
        if one.decoded:
            rows.append(_compression_row(one.language or "(none)", [one]))
    if found[_ROWS:]:
        rows.append(_compression_row(f"{len(found) - _ROWS:,} others", found[_ROWS:]))
    everything = _compression_row("all", found)
    return {
        "rows": rows,
        "all": everything,
        "basis": f"from a sample of {pluralize(everything.decoded, 'decoded token')}",
    }


class _CompressionRow(NamedTuple):
    name: str
    bytes: float
    characters: float
    decoded: int


def _compression_row(name: str, some: Sequence[Compression]) -> _CompressionRow:
    """Return bytes and characters per token, of several languages by their share of the store."""
    decoded = 0
    tokens = 0
    size = 0.0
    characters = 0.0
    for one in some:
        if one.decoded:
            decoded += one.decoded
            tokens += one.tokens
            size += one.tokens * one.bytes / one.decoded
            characters += one.tokens * one.characters / one.decoded
    weight = max(tokens, 1)
    return _CompressionRow(name, size / weight, characters / weight, decoded)


def _in_windows(store: TokenStore, counts: Counts, asked: Asked) -> dict[str, Any] | None:
    if counts.documents is None:
        return None
    found = documents_per_window(store, asked.context_length, asked.most, asked.seed)
    if not found.windows:
        return {"rows": [], "chart": "", "basis": "", "split": found.split}
    rows: list[tuple[str, int, float]] = []
    bars: list[tuple[str, float]] = []
    for number in range(1, found.largest + 1):
        name = f"{number} or more" if number == MANY else str(number)
        share = found.counts[number] / found.windows
        rows.append((name, found.counts[number], share))
        bars.append((name, 100 * share))
    chart = charts.bars(bars, "% of windows", "documents")
    basis = basis_of(found.windows, found.total, "window", found.windows == found.total)
    return {"rows": rows, "chart": _markup(chart), "basis": basis, "split": found.split}


def _planned(store: TokenStore, asked: Asked) -> dict[str, Any] | None:
    if asked.plan is None:
        return None
    rows = repetitions(store, asked.context_length, asked.plan, asked.seed)
    return {"rows": rows, "plan": str(asked.plan), "windows": asked.plan.windows, "is_mixed": bool(asked.plan.mix)}


def _windows(
    store: TokenStore, counts: Counts, asked: Asked, spelling: Spelling | None, markup: type[Markup]
) -> list[dict[str, Any]]:
    if counts.documents is None:
        return []
    known: dict[int, str] = {}

    def token(number: int) -> Markup:
        if number not in known:
            known[number] = _token(number, spelling, number == store.commit.eos_id, markup)
        return markup(known[number])

    try:
        shown = some_windows(store, asked.context_length, asked.windows, asked.seed)
    except StoreError:
        return []
    return [_window(number, one, token, markup) for number, one in enumerate(shown, 1)]


def _window(number: int, window: ShownWindow, token: Callable[[int], str], markup: type[Markup]) -> dict[str, Any]:
    documents = []
    for document in window.documents:
        tokens = markup("").join(map(token, document.tokens.tolist()))
        documents.append({"facts": _facts(document), "tokens": tokens, "document": document})
    first = window.documents[0].facts if window.documents else {}
    return {
        "number": number,
        "window": window,
        "name": window.language or "(none)",
        "documents": documents,
        "from": cut(redacted(first.get("repo") or first.get("path") or first.get("id") or ""), 60),
    }


def _facts(document: ShownDocument) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name in dict.fromkeys(["repo", "path", "license", *document.facts]):
        if name in document.facts:
            rows.append((name, cut(redacted(document.facts[name]), _LONGEST)))
    return rows


def _token(number: int, spelling: Spelling | None, is_eos: bool, markup: type[Markup]) -> Markup:
    """Return a token of a window, coloured by the page and known by its id."""
    text = str(number) if spelling is None else spelling.shown(number)
    text = text.replace(LINE_END, f"{LINE_END}\n")
    kind = ' class="eos"' if is_eos else ""
    return markup(f'<i data-id="{number}"{kind}>') + markup.escape(text) + markup("</i>")


def _markup(svg: str) -> Markup:
    from markupsafe import Markup

    return Markup(svg)


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _time(when: datetime | None) -> str:
    if when is None:
        return "unknown"
    return when.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
