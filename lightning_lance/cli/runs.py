"""The commands that look at runs: show, where."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lance.cli.arguments import (
    ending_in_a_sentence,
    expect,
    read_arguments,
    wants_json,
    with_keys,
    without_keys,
)
from lightning_lance.cli.tables import say_json, table
from lightning_lance.errors import ConfigError, LightningLanceError
from lightning_lance.messages.escaping import fail, say, shown, shown_lines
from lightning_lance.messages.formatting import as_pairs, pluralize

if TYPE_CHECKING:
    from rich.text import Text

    from lightning_lance.inspection.show import Ranked, ShownDocument, ShownWindow
    from lightning_lance.inspection.where import Seen
    from lightning_lance.serving.loader import WindowLoader

# A command imports what it needs once its arguments are right: Lance, torch and numpy take long.

_NOTHING_CHANGED = "nothing was changed."
# Keys of `show` that are numbers, and its other ones.
_NUMBERS = ("rank", "window", "batch_size", "world_size", "context_length", "seed")
_CHOICES = ("order", "split", "windows", "remainder", "tokenizer")
_OF_SHOW = (*_NUMBERS, *_CHOICES, "step", "search", "by", "losses", "format", "uri")
# Keys of `where` that are no words of a document.
_NUMBERS_OF_WHERE = ("batch_size", "world_size", "context_length", "seed")
_OF_WHERE = (*_NUMBERS_OF_WHERE, "until", "format", "uri")
# Steps that a search looks through where none are given.
_SEARCHED = 100
# Lines of a document that are shown where no window is chosen, and rows of a table.
_LINES = 6
_ROWS = 30
_RANKED = 10
# What a person reads first of a document.
_FIRST = ("id", "repo", "path", "language", "license")


def show_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance show`."""
    place, pairs, options = read_arguments("show", arguments)
    uris = _uris(pairs)
    for key, value in pairs.items():
        if key not in _OF_SHOW:
            expect("show", f"{key}={value}")
    as_json = wants_json("show", pairs)
    numbers = _numbers("show", pairs, _NUMBERS)
    first, last = _steps(pairs.get("step"))
    rank = numbers.pop("rank", None)
    window = numbers.pop("window", None)
    settings: dict[str, Any] = {**numbers, **with_keys(pairs, _CHOICES)}
    with ending_in_a_sentence(_NOTHING_CHANGED):
        loader = _opened(place, options, uris, settings)
        world_size = loader.batching["world_size"]
        ranks = range(world_size)
        if rank is not None:
            ranks = range(rank, rank + 1)
        if first is None:
            first = loader.step
        if "by" in pairs:
            default = first + 1 if "step" in pairs else first + _SEARCHED
            _sum_up(loader, range(first, last or default), ranks, pairs["by"], as_json)
            return
        if "search" in pairs:
            _search(loader, range(first, last or first + _SEARCHED), ranks, pairs["search"], as_json)
            return
        if last is not None and last > first + 1:
            raise ConfigError(
                f"step is {pairs['step']}: expected one step; by=COLUMN, such as by=language, sums up several."
            )
        if rank is None and world_size > 1 and not as_json:
            say(f"Rank 0 of {world_size}: rank=R shows another one.")
        _show(loader, first, rank or 0, window, place, pairs.get("losses"), as_json)


def where_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance where`."""
    place, pairs, options = read_arguments("where", arguments)
    uris = _uris(pairs)
    as_json = wants_json("where", pairs)
    rule = without_keys(pairs, _OF_WHERE)
    if "document" in rule:
        rule["id"] = rule.pop("document")
    if not rule:
        expect("where", "no key=value")
    until = None
    if "until" in pairs:
        until = _number("where", "until", pairs["until"])
    settings = _numbers("where", pairs, _NUMBERS_OF_WHERE)
    from lightning_lance.inspection.runs import last_step
    from lightning_lance.inspection.where import find_steps

    with ending_in_a_sentence(_NOTHING_CHANGED):
        loader = _opened(place, options, uris, settings)
        if until is None:
            until = last_step(place)
        if until is not None and "until" not in pairs:
            until = max(until, loader.step)
        seen = find_steps(loader, rule, until)
    if as_json:
        say_json({"run": place, "rule": rule, **seen._asdict()})
    else:
        _say_seen(loader, rule, seen)


def _uris(pairs: dict[str, str]) -> dict[str, str]:
    """Take the new places of stores out of the pairs: name to place."""
    moved = {}
    for key in [*pairs]:
        if key == "uri" or key.startswith("uri."):
            moved[key.partition(".")[2]] = pairs.pop(key)
    return moved


def _numbers(name: str, pairs: Mapping[str, str], keys: Sequence[str]) -> dict[str, int]:
    """Return the numbers that are given for some keys."""
    numbers: dict[str, int] = {}
    for key, value in with_keys(pairs, keys).items():
        numbers[key] = _number(name, key, value)
    return numbers


def _number(name: str, key: str, value: str) -> int:
    digits = value.replace("_", "").replace(",", "")
    if not digits.isdecimal():
        expect(name, f"{key}={value}")
    return int(digits)


def _steps(given: str | None) -> tuple[int | None, int | None]:
    """Return the first step and the one after the last, of `12` or `12:40`."""
    if given is None:
        return None, None
    first, colon, last = given.partition(":")
    found = re.fullmatch(r"[\d_,]+", first) and (not colon or re.fullmatch(r"[\d_,]+", last))
    if not found:
        expect("show", f"step={given}")
    begin = _number("show", "step", first)
    end = _number("show", "step", last) if colon else None
    if end is not None and end <= begin:
        fail(f"step is {given}: expected the second step to be larger than the first.")
    return begin, end


def _opened(
    place: str, options: Mapping[str, str], uris: Mapping[str, str], settings: Mapping[str, Any]
) -> WindowLoader:
    from lightning_lance.inspection.runs import open_run

    configuration = Path(place, ".hydra", "config.yaml")
    checkpoints = [*Path(place, "checkpoints").glob("last*.ckpt"), *Path(place).glob("last*.ckpt")]
    if not checkpoints and configuration.is_file():
        from lightning_lance.cli.hydra_app import loader_of

        loader = loader_of(configuration, without_keys(settings, ("tokenizer",)))
        if "tokenizer" in settings:
            for store in loader.stores.values():
                store.take_tokenizer(settings["tokenizer"])
        return loader
    return open_run(place, options, uris=uris, **settings)


def _show(
    loader: WindowLoader, step: int, rank: int, window: int | None, place: str, losses: str | None, as_json: bool
) -> None:
    from lightning_lance.inspection.runs import other_sizes
    from lightning_lance.inspection.show import show_step

    windows = show_step(loader, step, rank)
    if window is not None and window >= len(windows):
        raise ConfigError(f"window is {window}: expected one of the {len(windows)} windows of the batch, from 0.")
    chosen = windows
    if window is not None:
        chosen = [windows[window]]
    left_out = loader.leaves_out(step)
    rows = loader.rows_of(step)
    others = other_sizes(place, loader)
    if losses is not None and others:
        raise ConfigError(f"losses are of the run's batches, which had {_in_words(others)}: show them in these sizes.")
    by_loss: list[Ranked] = []
    # The losses that a run wrote are of its own batches.
    if not others:
        by_loss = _by_loss(windows, losses or place, step, rank)
    if losses is not None and not by_loss:
        raise ConfigError(f"losses is {losses!r}, which has none of step {step:,} of rank {rank} (LossByDocument).")
    if as_json:
        numbers = {"step": step, "rank": rank, "world_size": loader.batching["world_size"], "left_out": left_out}
        say_json({"run": place, **numbers, **_rows_for_json(rows), "by_loss": by_loss, "windows": chosen})
        return
    say(
        f"step {step:,} of {place}, rank {rank} of {loader.batching['world_size']} ({_when(loader, step, others)}): "
        f"{pluralize(len(windows), 'window')} of {loader.context_length:,} + 1 tokens{_as_rows(loader, rows)}"
        f"{_learned(loader, step, rank)}"
    )
    if by_loss:
        say("", "The documents by their share of the loss of this batch:")
        cells: list[list[str | None]] = []
        for row in by_loss[:_RANKED]:
            cells.append([f"{row.share:.1%}", f"{row.loss:.4g}", f"{row.tokens:,}", str(row.window), _named(row.about)])
        titles = ("SHARE", "LOSS", "TOKENS", "WINDOW", "DOCUMENT")
        say(*table(titles, cells, titles[:4]))
    _say_without_tokenizer(loader)
    for one in chosen:
        _print(_window_shown(one, len(loader.stores) > 1, window is not None))


def _when(loader: WindowLoader, step: int, others: Mapping[str, Any]) -> str:
    """Return whether a run has served a step; `others` are the sizes of its batches that the loader does not have."""
    if loader.leaves_out(step):
        return "left out (skip_steps)"
    if step >= loader.step:
        return "to come"
    if others:
        return f"past, but the run had {_in_words(others)}"
    return "served"


def _in_words(sizes: Mapping[str, Any]) -> str:
    return ", ".join(as_pairs(sizes))


def _rows_for_json(rows: int) -> dict[str, int]:
    """Return the rows that a window is; nothing where it is one, as in most runs."""
    if rows == 1:
        return {}
    return {"rows": rows}


def _as_rows(loader: WindowLoader, rows: int) -> str:
    if rows == 1:
        return ""
    return f", each as {rows} rows of {loader.context_length // rows:,} + 1"


def _say_without_tokenizer(loader: WindowLoader) -> None:
    """Say of which stores the ids are shown, and not the text, and why."""
    for store in loader.stores.values():
        try:
            _ = store.tokenizer
        except LightningLanceError as error:
            say(f"Ids are shown, and no text: {str(error).rstrip('.')}, or give it as tokenizer=FILE.")


def _learned(loader: WindowLoader, step: int, rank: int) -> str:
    from lightning_lance.inspection.show import learned_tokens

    learned = learned_tokens(loader, step, rank)
    if learned is None:
        return ""
    return f", {learned[0]:,} of {learned[1]:,} targets learned"


def _by_loss(windows: list[ShownWindow], place: str, step: int, rank: int) -> list[Ranked]:
    """Return the documents by their share of the loss, if the run wrote the losses of this batch (`LossByDocument`)."""
    from lightning_lance.inspection.show import ranked
    from lightning_lance.inspection.spikes import read_losses, steps_with_losses

    folder = place if Path(place).is_dir() else str(Path(place).parent.parent)
    if (step, rank) not in steps_with_losses(folder):
        return []
    return ranked(windows, read_losses(folder, step, rank))


def _named(about: Mapping[str, Any]) -> str:
    words: list[str] = []
    in_order = {**with_keys(about, _FIRST), **about}
    for value in in_order.values():
        if value not in (None, ""):
            words.append(str(value))
    return " · ".join(words)


def _window_shown(window: ShownWindow, several: bool, whole: bool) -> Text:
    from rich.text import Text

    text = Text()
    of_store = f" of {shown(window.store)}" if several else ""
    text.append(f"\nwindow {window.number}, token {window.start:,}{of_store}, epoch {window.epoch}\n", "bold")
    for document in window.documents:
        text.append(f"[{document.begin}:{document.end}] {shown(_named(document.about))}\n", "cyan")
        text.append_text(_document_shown(document, whole))
    return text


def _document_shown(document: ShownDocument, whole: bool) -> Text:
    """Return the text of a document: sentinels and the end marked, and what is not trained on dimmed."""
    from rich.text import Text

    text = Text()
    styles = {"text": "", "sentinel": "bold magenta", "eos": "bold red"}
    for piece in document.pieces:
        style = styles[piece.kind] if piece.trained else f"{styles[piece.kind]} dim".strip()
        text.append(_printable(piece.text), style)
    lines = [*text.split("\n", allow_blank=True)]
    if not whole and len(lines) > _LINES:
        more = len(lines) - _LINES
        lines = lines[:_LINES]
        lines.append(Text(f"... {pluralize(more, 'more line')}", "italic"))
    return Text("\n").join(lines).append("\n")


def _printable(text: str) -> str:
    """Return foreign text with control characters escaped, except for line ends and tabs."""
    return "\t".join(map(shown_lines, text.split("\t")))


def _print(text: Text) -> None:
    """Print a text with its colours on a terminal, and without elsewhere; what the terminal cannot show is escaped."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as captured:
        console.print(text, end="")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(captured.get().encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _search(loader: WindowLoader, steps: range, ranks: range, pattern: str, as_json: bool) -> None:
    from rich.text import Text

    from lightning_lance.inspection.show import search

    found = search(loader, pattern, steps, ranks)
    if as_json:
        say_json({"steps": [steps.start, steps.stop], "search": pattern, "found": [*found]})
        return
    matches = 0
    for one in found:
        matches += 1
        about = shown(_named(one.about))
        line = Text(f"step {one.step:,} rank {one.rank} window {one.window} ", "bold").append(
            f"{about}: ", "cyan not bold"
        )
        line.append(_printable(one.before).lstrip(), "not bold").append(shown(one.match), "bold yellow")
        _print(line.append(f"{_printable(one.after).rstrip()}\n", "not bold"))
    say(f"{pluralize(matches, 'match', 'matches')} in steps {steps.start:,} to {steps.stop - 1:,}.")


def _sum_up(loader: WindowLoader, steps: range, ranks: range, column: str, as_json: bool) -> None:
    from lightning_lance.inspection.show import shares

    rows = shares(loader, steps, ranks, column)
    if as_json:
        say_json({"steps": [steps.start, steps.stop], "by": column, "shares": rows})
        return
    total = sum(row.tokens for row in rows)
    cells: list[list[str | None]] = []
    for row in rows[:_ROWS]:
        counts = (f"{row.documents:,}", f"{row.windows:,}", f"{row.tokens:,}")
        cells.append([row.value or "(none)", *counts, f"{row.tokens / total:.1%}"])
    titles = (column.upper(), "DOCUMENTS", "WINDOWS", "TOKENS", "SHARE")
    say(*table(titles, cells, titles[1:]))
    _say_others(len(rows) - _ROWS)


def _say_seen(loader: WindowLoader, rule: Mapping[str, str], seen: Seen) -> None:
    given = " ".join(as_pairs(rule))
    if not seen.documents:
        near: dict[str, str] = {}
        for store in loader.stores.values():
            near |= store.similar_values(rule)
        cure = "documents of the other split are in no step of training."
        if near:
            cure = f"did you mean {' '.join(as_pairs(near))}?"
        fail(f"no document of the {loader.split} split has {given}: {cure}")
    tokens = sum(document["tokens"] for document in seen.documents)
    served = sum(sighting.state == "served" for sighting in seen.sightings)
    say(
        f"{given}: {pluralize(len(seen.documents), 'document')}, {pluralize(tokens, 'token')}, in "
        f"{pluralize(len(seen.sightings), 'window')} up to step {seen.until:,}, {served:,} of them served."
    )
    if seen.since:
        say(
            f"Windows before step {seen.since:,} are not known, since the data, the weights or context_length changed there: a "
            "checkpoint from before has them."
        )
    cells: list[list[str | None]] = []
    for one in seen.sightings[:_ROWS]:
        step = None if one.step is None else f"{one.step:,}"
        document = _named(without_keys(seen.documents[one.document], ("store", "tokens")))
        cells.append(
            [step, str(one.rank), str(one.window), str(one.epoch), one.state, f"{one.begin}:{one.end}", document]
        )
    titles = ("STEP", "RANK", "WINDOW", "EPOCH", "STATE", "TOKENS", "DOCUMENT")
    if cells:
        say(*table(titles, cells, titles[:4]))
    _say_others(len(seen.sightings) - _ROWS)


def _say_others(rows: int) -> None:
    if rows > 0:
        say(f"... {rows:,} more: format=json has them.")
