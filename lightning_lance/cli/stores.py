"""The commands on token stores: list, info, verify, forget, clean, remove."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_lance.cli.arguments import (
    ending_in_a_sentence,
    expect,
    is_set,
    read_arguments,
    wants_json,
    with_keys,
    without_keys,
)
from lightning_lance.cli.tables import in_words, say_json, table, time_shown
from lightning_lance.errors import LightningLanceError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import (
    agreed,
    as_pairs,
    format_bytes,
    format_documents,
    format_list,
    format_number,
    format_tokens,
    pluralize,
)

if TYPE_CHECKING:
    from lightning_lance.inspection.summary import StoreInfo, StoreSummary
    from lightning_lance.maintenance.cleanup import Cleaned
    from lightning_lance.maintenance.forgetting import Forgotten

# A command imports what it needs once its arguments are right: Lance and numpy take long.

_NOTHING_CHANGED = "nothing was changed."
# Columns of numbers.
_NUMBERS = ("VERSION", "DOCUMENTS", "TOKENS", "SIZE")
# Keys of `info` that are numbers.
_NUMBERS_OF_REPORT = ("sample", "context_length", "windows", "seed", "max_steps", "batch_size", "world_size")
# Keys of `forget` that are no words of a document.
_OF_FORGET = ("purge", "dry_run", "future", "format")


def list_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance list`."""
    folder, pairs, options = read_arguments("list", arguments, ("format",))
    as_json = wants_json("list", pairs)
    from lightning_lance.inspection.summary import list_stores

    with ending_in_a_sentence(_NOTHING_CHANGED):
        stores = list_stores(folder, options)
    if as_json:
        say_json(stores)
    elif stores:
        titles = ("NAME", "SOURCE", "TOKENIZER", "DOCUMENTS", "TOKENS", "SIZE", "BUILT", "USED", "STATE")
        say(*table(titles, list(map(_line, stores)), _NUMBERS))
    else:
        say(f"There is no token store in {folder}.")


def _line(store: StoreSummary) -> list[str | None]:
    return [
        store.name,
        store.source,
        store.tokenizer,
        _count(store.documents),
        None if store.tokens is None else format_number(store.tokens),
        None if store.bytes is None else format_bytes(store.bytes),
        time_shown(store.built),
        time_shown(store.used),
        store.state,
    ]


def info_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance info`."""
    uri, pairs, options = read_arguments("info", arguments)
    as_json = wants_json("info", pairs)
    asked = _asked_of_report(pairs)
    if "report" in pairs or "counts" in pairs:
        _write_reports(uri, pairs, asked, options, as_json)
        return
    if asked:
        fail(f"{next(iter(asked))} is about a report: give report=out.html too, the place of the page.")
    from lightning_lance.inspection.summary import describe_store

    with ending_in_a_sentence(_NOTHING_CHANGED):
        info = describe_store(uri, options)
    if as_json:
        facts = vars(info).copy()
        say_json({**vars(facts.pop("summary")), **facts})
    else:
        _say_info(info)


def _asked_of_report(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return what the pairs of `info` ask of its report."""
    asked: dict[str, Any] = {}
    mix: dict[str, float] = {}
    for key, value in pairs.items():
        group, dot, language = key.partition(".")
        if key in ("report", "counts", "format"):
            continue
        if key == "overwrite":
            asked[key] = is_set("info", pairs, key)
        elif key == "sample" and value == "all":
            asked[key] = None
        elif key == "tokenizer":
            asked[key] = value
        elif key in _NUMBERS_OF_REPORT:
            asked[key] = _number_of("info", key, value)
        elif dot and group == "mix":
            mix[language] = _weight_of("info", key, value)
        else:
            expect("info", f"{key}={value}")
    if mix:
        return {**asked, "mix": mix}
    return asked


def _number_of(name: str, key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        fail(f"{key} is {value}: expected a whole number, as in {name} URI report=out.html {key}=1000.")


def _weight_of(name: str, key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        fail(f"{key} is {value}: expected a weight, as in {name} URI report=out.html {key}=0.5.")


def _write_reports(
    uri: str, pairs: Mapping[str, str], asked: Mapping[str, Any], options: Mapping[str, str], as_json: bool
) -> None:
    from lightning_lance.inspection.report.writing import write_report, write_token_counts

    with ending_in_a_sentence("no file was written in part."):
        if "report" in pairs:
            written = write_report(uri, pairs["report"], counts=pairs.get("counts"), storage_options=options, **asked)
        else:
            for key in asked:
                if key not in ("sample", "seed", "tokenizer", "overwrite"):
                    fail(f"{key} is about a report: give report=out.html too, the place of the page.")
            written = write_token_counts(uri, pairs["counts"], storage_options=options, **asked)
    files = with_keys(pairs, ("report", "counts"))
    if as_json:
        say_json(
            {
                "uri": uri,
                **files,
                "exact": written.is_exact,
                "tokens": written.tokens,
                "tokens_read": written.tokens_read,
            }
        )
        return
    basis = f"all {format_tokens(written.tokens)}"
    if not written.is_exact:
        basis = f"a sample of {format_tokens(written.tokens_read)}, sample=all reads all"
    say(f"{uri}: written to {' and '.join(files.values())} ({basis}).")


def _say_info(info: StoreInfo) -> None:
    store = info.summary
    total = f"{pluralize(store.documents or 0, 'document')}, {format_tokens(store.tokens or 0)}"
    say(f"{store.uri}: {store.state}, {total}", "")
    facts: list[list[str | None]] = [["fingerprint", info.fingerprint]]
    facts += [["built", time_shown(store.built)], ["used", time_shown(store.used)]]
    for name, value in info.settings.items():
        facts.append([name, in_words(value)])
    for reason, count in info.skipped.items():
        facts.append([f"left out: {reason}", f"{count:,}"])
    for entry in info.forgotten:
        rule = " ".join(as_pairs(entry["rule"]))
        facts.append(["forgotten", f"{rule}: {format_documents(entry['documents'], entry['tokens'])}"])
    disk = info.disk
    if disk is not None:
        facts.append(["disk", f"{format_bytes(disk.total)}, of which {format_bytes(disk.newest)} tokens and documents"])
        if disk.older:
            facts.append(["", f"{format_bytes(disk.older)} only of older versions, kept by tags"])
        if disk.reclaimable:
            facts.append(["", f"{format_bytes(disk.reclaimable)} reclaimable: lightning-lance clean {store.uri}"])
    say(*table(("SETTING", "VALUE"), facts), "")
    rows: list[list[str | None]] = []
    for one in info.languages:
        row: list[str | None] = [one.language or "(none)"]
        for split in ("train", "val"):
            row += [_count(one.split_documents[split]), f"{one.split_tokens[split]:,}"]
        rows.append(row)
    titles = ("LANGUAGE", "TRAIN DOCUMENTS", "TRAIN TOKENS", "VAL DOCUMENTS", "VAL TOKENS")
    say(*table(titles, rows, titles[1:]), "")
    versions = []
    for version in info.versions:
        made = time_shown(version.made)
        counts = [_count(version.documents), _count(version.tokens)]
        versions.append([f"{version.version:,}", made, *counts, ", ".join(version.kept_by)])
    say(*table(("VERSION", "MADE", "DOCUMENTS", "TOKENS", "KEPT BY"), versions, _NUMBERS))


def _count(number: int | None) -> str | None:
    if number is None:
        return None
    return f"{number:,}"


def verify_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance verify`."""
    uri, pairs, options = read_arguments("verify", arguments, ("sample", "format"))
    as_json = wants_json("verify", pairs)
    asked = pairs.get("sample", "1")
    try:
        sample = float(asked)
    except ValueError:
        sample = 0.0
    if not 0 < sample <= 1:
        fail(f"sample is {asked}: expected a share of the data files, above 0 and up to 1, such as 0.1.")
    from lightning_lance.maintenance.integrity import verify_store

    with ending_in_a_sentence(_NOTHING_CHANGED):
        problems = list(map(str, verify_store(uri, options, sample)))
    if as_json:
        say_json({"uri": uri, "sample": sample, "problems": problems})
    else:
        say(*problems)
    if problems:
        fail(f"{uri}: {pluralize(len(problems), 'problem')}.")
    if not as_json:
        say(f"{uri}: {'all' if sample == 1 else f'the sample of {sample:.3g}'} is as it was written.")


def clean_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance clean`."""
    uri, pairs, options = read_arguments("clean", arguments, ("format",))
    as_json = wants_json("clean", pairs)
    with ending_in_a_sentence("run it again, it ends what was begun."):
        cleaned = _cleaned(uri, options)
    if as_json:
        say_json({"uri": uri, "done": cleaned.done, "left": cleaned.left})
    else:
        for line in (*cleaned.done, *cleaned.left):
            say(f"{line}.")
    if cleaned.left:
        fail(f"{uri}: {pluralize(len(cleaned.left), 'problem')} left.")
    if not cleaned.done and not as_json:
        say(f"{uri}: nothing to clean.")


def _cleaned(uri: str, options: Mapping[str, str]) -> Cleaned:
    """Clean a store, or each store in a folder."""
    from lightning_lance.inspection.summary import is_folder_of_stores, list_stores
    from lightning_lance.maintenance.cleanup import Cleaned, clean

    if not is_folder_of_stores(uri):
        return clean(uri, options)
    total = Cleaned([], [])
    for store in list_stores(uri, options):
        if store.state == "foreign":
            continue
        try:
            cleaned = clean(store.uri, options)
        except LightningLanceError as error:
            if store.state == "empty":
                continue  # nothing in it is provably ours
            total.left.append(str(error).rstrip("."))
            continue
        for line in cleaned.done:
            total.done.append(f"{store.name}: {line}")
        for line in cleaned.left:
            total.left.append(f"{store.name}: {line}")
    return total


def remove_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance remove`."""
    uri, pairs, options = read_arguments("remove", arguments, ("yes", "ignore_runs", "format"))
    as_json = wants_json("remove", pairs)
    ignore_runs = is_set("remove", pairs, "ignore_runs")
    sure = is_set("remove", pairs, "yes")
    from lightning_lance.inspection.needed import needed_by
    from lightning_lance.location import StoreLocation, store_place
    from lightning_lance.maintenance.deletion import check_removable, remove

    with ending_in_a_sentence("nothing was removed."):
        commit = check_removable(StoreLocation(store_place(uri), options), ignore_runs)
        what = "a damaged or unfinished token store"
        if commit is not None:
            what = f"{pluralize(commit.stored_documents, 'document')}, {format_tokens(commit.stored_tokens)}"
        tags, checkpoints = needed_by(uri, options)
        if tags:
            of_theirs = "checkpoints that they may have"
            if checkpoints:
                of_theirs = f"their checkpoints, such as {format_list(checkpoints, 3)},"
            say(f"{uri}: runs were trained on it; {of_theirs} do not go on without it.", file=sys.stderr)
        if not sure:
            _ask(uri, what)
    with ending_in_a_sentence("run it again, it removes the rest."):
        beside = remove(uri, options, ignore_runs)
    if as_json:
        say_json({"uri": uri, "removed": [uri, *beside]})
    else:
        say(f"{uri}: removed ({what}).")
        for file in beside:
            say(f"{file}: removed.")


def _ask(uri: str, what: str) -> None:
    """Ask whether a store is to be removed. End the command unless the answer is yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        fail(f"{uri} ({what}) is not removed without a question, and there is no terminal to ask: give yes=true.")
    say(f"{uri} has {what}. Nothing brings it back.", file=sys.stderr)
    sys.stderr.write("Remove it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        fail("nothing was removed.")


def forget_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance forget`."""
    uri, pairs, options = read_arguments("forget", arguments)
    rule = without_keys(pairs, _OF_FORGET)
    if not rule:
        expect("forget", "no key=value")
    purge = is_set("forget", pairs, "purge")
    dry_run = is_set("forget", pairs, "dry_run")
    future = is_set("forget", pairs, "future")
    as_json = wants_json("forget", pairs)
    _check_unambiguous(uri, [*with_keys(pairs, _OF_FORGET)], options)
    if dry_run:
        _count_matching(uri, rule, options, as_json)
        return
    from lightning_lance.maintenance.forgetting import forget

    def tell(*found: int) -> None:
        if not as_json:
            say(f"{_documents(found, 'match', 'matches')}.")

    with ending_in_a_sentence("all is forgotten or nothing: run it again, it ends what was begun."):
        done = forget(uri, rule, options, purge, tell, future)
    if as_json:
        say_json({"uri": uri, "rule": rule, **done._asdict()})
    else:
        _say_forgotten(uri, rule, done)


def _check_unambiguous(uri: str, given: Sequence[str], options: Mapping[str, str]) -> None:
    """Refuse words of the command that are also words of the store's documents: they would not be part of the rule."""
    if not given:
        return
    from lightning_lance.maintenance.forgetting import keys_at

    with ending_in_a_sentence(_NOTHING_CHANGED):
        for key in {*keys_at(uri, options)}.intersection(given):
            fail(
                f"{key} is a word of this command and of the documents of {uri}: forget by it in Python, with "
                f"lightning_lance.maintenance.forget(uri, {{{key!r}: ...}})."
            )


def _count_matching(uri: str, rule: Mapping[str, str], options: Mapping[str, str], as_json: bool) -> None:
    from lightning_lance.maintenance.forgetting import matching

    with ending_in_a_sentence(_NOTHING_CHANGED):
        found = matching(uri, rule, options)
    if as_json:
        languages = []
        for language, (documents, tokens) in found.languages.items():
            languages.append({"language": language, "documents": documents, "tokens": tokens})
        counts = {"documents": found.documents, "tokens": found.tokens, "languages": languages}
        say_json({"uri": uri, "rule": rule, **counts, "near": found.near})
        return
    would = _documents((found.documents, found.tokens), "would be forgotten", "would be forgotten")
    say(f"{uri}: {would}; nothing was changed.")
    if found.languages:
        rows = []
        for language, (documents, tokens) in found.languages.items():
            rows.append([language or "(none)", f"{documents:,}", f"{tokens:,}"])
        say(*table(("LANGUAGE", "DOCUMENTS", "TOKENS"), rows, _NUMBERS))
    _say_near(rule, found.near)


def _say_forgotten(uri: str, rule: Mapping[str, str], done: Forgotten) -> None:
    if done.documents:
        what = _documents((done.documents, done.tokens), "are forgotten", "is forgotten")
        say(f"{uri}: {what}, version {done.version}.")
    else:
        then = "its source has no more to add"
        if done.rule_kept:
            then = "the rule is kept for documents that will be added"
        say(f"{uri}: nothing was forgotten, version {done.version}; {then}.")
    _say_near(rule, done.near)
    if done.purged:
        say(f"Older versions, which held what was forgotten, are gone with their tags: {', '.join(done.purged)}.")
    if done.kept:
        say(
            f"Older versions still hold what was forgotten, for checkpoints (tags {', '.join(done.kept)}): purge=true removes "
            "them, and those checkpoints cannot go on."
        )


def _say_near(rule: Mapping[str, str], near: Mapping[str, str]) -> None:
    for key, meant in near.items():
        say(f"No document has {key}={rule[key]}: did you mean {key}={meant}?")


def _documents(found: Sequence[int], do: str, does: str) -> str:
    number, tokens = found
    return f"{format_documents(number, tokens)} {agreed(number, does, do)}"
