"""The grammar of the commands on stores and checkpoints: a place, key=value pairs, options of its object store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.cli.overrides import shown_override
from lightning_lance.errors import LightningLanceError
from lightning_lance.messages.escaping import fail
from lightning_lance.messages.redaction import remember_options

_Value = TypeVar("_Value")

# How options of object stores begin, where they are given like the other pairs of a command.
_OPTIONS = ("aws_", "azure_", "google_", "allow_http")
_OPTION_HELP = (
    f"an option of the object store; where none is given, a pair that begins with {', '.join(_OPTIONS)} is one"
)
_STORAGE = "[--storage-option KEY=VALUE ...]"
# The place of a command where none is given: `data_dir` and `output_dir` of the configuration.
_PLACES = {"list": "data", "show": "outputs", "where": "outputs"}
# The arguments of each command, and what it does.
COMMANDS = {
    "list": (
        f"[DIR] [format=json] {_STORAGE}",
        """List the token stores in a folder (data, if none is given) or at a place in a bucket: source, tokenizer, documents,
        tokens, size on disk, when they were built and last used, and whether they are complete. Of a store that cannot be
        opened, the state says why. Times of last use are as exact as the file system's.""",
    ),
    "info": (
        f"URI [report=FILE] [counts=FILE] [KEY=VALUE ...] [format=json] {_STORAGE}",
        """Say all about a token store: its settings, documents and tokens of each language and split, its versions and
        what keeps them, and its disk space. Nothing is changed. report=out.html writes a page with charts and some windows
        instead, which needs no network, and counts=out.parquet how often each token occurs. Both read sample=20_000_000 tokens
        at most; sample=all reads all. Of the page: context_length=1024, windows=24, seed=0, and for a planned run max_steps,
        batch_size, world_size and mix.LANGUAGE=WEIGHT. tokenizer=x.tokenizer.json spells the tokens of a store in a bucket.
        overwrite=true replaces a file that is no earlier report.""",
    ),
    "verify": (
        f"URI [sample=SHARE] [format=json] {_STORAGE}",
        """Check every file of a token store against its checksum, and name what is damaged. Nothing is changed. sample=0.1
        checks a tenth of the data files.""",
    ),
    "forget": (
        f"URI KEY=VALUE ... [purge=true] [dry_run=true] [future=true] [format=json] {_STORAGE}",
        """Leave out all documents for which each KEY=VALUE holds, now and when the store grows. The keys are id, language, and
        the words of source.columns, as in repo=owner/name. purge=true also removes the older versions: checkpoints may need
        them. dry_run=true only counts the documents. A rule that matches none is refused, since it cannot be taken back;
        future=true keeps it for documents that are added later.""",
    ),
    "clean": (
        f"URI|DIR [format=json] {_STORAGE}",
        """Mend what is provably damaged, remove what failed and killed builders left, and say so line by line. What it cannot
        judge stays, and is named. Stop builds first, or let them end: their files are left to them. Of a folder, each token
        store in it is cleaned.""",
    ),
    "remove": (
        f"URI [yes=true] [ignore_runs=true] [format=json] {_STORAGE}",
        """Remove a whole token store, with its tokenizer beside it. Asks first; without a terminal, yes=true is needed. Only a
        token store is removed, and only if no process builds it or trains on it. ignore_runs=true ignores runs without a
        checkpoint that were killed.""",
    ),
    "card": (
        f"URI [out=FILE] [repo=owner/name] [format=json] {_STORAGE}",
        """Write the data card of a token store (README.md, or the file out), and its Croissant metadata, croissant.json, beside
        it: source, filters, tokenizer, licenses, documents and tokens, and how to load it. Only files that a card has written
        are overwritten. repo=owner/name writes it for that repository of the Hub, as push does.""",
    ),
    "push": (
        "URI owner/name [private=true] [rules=true] [format=json]",
        """Upload the newest version of a token store to a dataset repository of the Hugging Face Hub, with its tokenizer, its
        data card and its Croissant metadata, as one commit. The repository is created if it does not exist; private=true makes
        it private. Run it again after an interruption: what is uploaded is not uploaded again. rules=true allows to publish
        the rules by which documents were removed, with their values.""",
    ),
    "show": (
        f"[RUN|CKPT|URI] [step=N|A:B] [rank=R] [window=W] [search=REGEX] [by=COLUMN] [KEY=VALUE ...] [format=json] {_STORAGE}",
        """Show a batch of a run as the model gets it, past or to come: its text, its documents, and what is not trained on.
        RUN is the folder of a run (outputs, if none is given), CKPT a checkpoint, URI a token store for a run that does not
        exist yet. Without a step, it is the next one. search=REGEX looks through steps A to B, or the next 100; by=COLUMN, such
        as repo or language, sums them up. batch_size=N, world_size=N and, of a store, context_length=N, seed=N and order=NAME
        look at it as if it had these. losses=DIR is the folder of LossByDocument, where it is not RUN. uri=PLACE says where the
        store has moved, uri.NAME=PLACE where there are several.
        Nothing is changed.""",
    ),
    "where": (
        f"[RUN|CKPT|URI] KEY=VALUE ... [until=STEP] [format=json] {_STORAGE}",
        """List the steps of a run, past and future, that have the documents for which each KEY=VALUE holds. The keys are
        document (or id), language, and the words of source.columns, as in repo=owner/name. It looks up to the step until, or
        to the end of the run or of its epoch. batch_size=N, world_size=N and, of a store, context_length=N and seed=N look at
        it as if it had these. Nothing is changed.""",
    ),
    "import": (
        f"FORMAT PLACE tokenizer=FILE|NAME uri=URI [KEY=VALUE ...] [format=json] {_STORAGE}",
        """Make a token store of tokens that another tool has written. FORMAT is nanogpt, megatron, parquet, mds or litdata;
        PLACE the files or their folder, or for parquet the name of a dataset on the Hub. tokenizer is the one that made the
        tokens: a tokenizer.json, bytes, or a name as in prepare; eos_token=TOKEN its token that ends a document. val=PLACE are
        validation tokens elsewhere, val_fraction=SHARE draws some. documents=eos cuts documents at EOS, wherever that is;
        empty=skip leaves out empty ones. columns.WORD=COLUMN (parquet, mds) keeps a column with each document, columns.tokens
        names that of the tokens; language_column=COLUMN or language=NAME says the language. dtype=TYPE is that of bytes in mds.
        max_documents and max_tokens are the budget, rebuild=true replaces another store. Run again, it goes on after its last
        commit.""",
    ),
    "export": (
        f"URI FORMAT PLACE [split=train|val] [language=NAME] [overwrite=true] [format=json] {_STORAGE}",
        """Write the documents of a token store for another tool. FORMAT is nanogpt, megatron or parquet; PLACE a folder, in
        which the files are train and val with the endings of the format. A file gets its name only once it is whole;
        overwrite=true replaces files that are there.""",
    ),
    "verify-resume": (
        f"CKPT|DIR [uri=PLACE | NAME=PLACE ...] {_STORAGE}",
        """Work out all windows of the checkpoint's epoch anew, compare their digest with the one saved in it, and show the
        next windows. Of the folder of a run, its newest last.ckpt is taken. uri=PLACE says where the store has moved,
        NAME=PLACE where there are several stores.""",
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message}.")


def read_arguments(
    name: str, arguments: Sequence[str], keys: Collection[str] | None = None
) -> tuple[str, dict[str, str], dict[str, str]]:
    """Read a place, key=value pairs (`keys`: the possible ones, None for any), and options of the place's object store."""
    (place,), pairs, options = read_words(name, arguments, 1, keys)
    return place, pairs, options


def read_words(
    name: str, arguments: Sequence[str], number: int, keys: Collection[str] | None = None
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Read a number of words, of which one is a place, then pairs and options as `read_arguments` does."""
    usage, description = COMMANDS[name]
    parser = _Parser(f"lightning-lance {name}", f"lightning-lance {name} {usage}", description, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE", help=_OPTION_HELP)
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if name in _PLACES and (not given.words or is_pair(given.words[0])):
        given.words.insert(0, _PLACES[name])
    places = given.words[:number]
    words = given.words[number:]
    wrong = [*unknown, *filter(is_pair, places)]
    if wrong or len(places) < number or not all(places):
        expect(name, wrong[0] if wrong else " ".join(filter(None, places)) or "nothing")
    # Where options are given as such, a column may be called azure_x.
    is_remote = any("://" in word for word in given.words)
    prefixes: tuple[str, ...] = ()
    if is_remote and not given.storage_option:
        prefixes = _OPTIONS
    pairs: dict[str, str] = {}
    options: dict[str, str] = {}
    marked: list[tuple[str, bool]] = []
    for word in given.storage_option:
        marked.append((word, True))
    for word in words:
        marked.append((word, word.startswith(prefixes)))
    for word, is_option in marked:
        key, equals, value = word.partition("=")
        if not equals or not (is_option or keys is None or key in keys):
            expect(name, word)
        of_kind = pairs
        if is_option:
            of_kind = options
        if key in of_kind:
            fail(f"{key} is given twice: give it once, and the other to another run.")
        of_kind[key] = value
    remember_options(options)
    return places, pairs, options


def with_keys(pairs: Mapping[str, _Value], keys: Iterable[str]) -> dict[str, _Value]:
    """Return the pairs with these keys, in the order of the keys. A key that is not given is left out."""
    return {key: pairs[key] for key in keys if key in pairs}


def without_keys(pairs: Mapping[str, _Value], keys: Collection[str]) -> dict[str, _Value]:
    """Return the pairs with other keys than these."""
    return {key: value for key, value in pairs.items() if key not in keys}


def is_pair(word: str) -> bool:
    """Return whether a word of a command line is a key=value pair, and not a place."""
    # A place may have a = in it, as Lightning's checkpoints do.
    return "=" in word and "://" not in word and not Path(word).exists()


def expect(name: str, got: str) -> NoReturn:
    """End with a sentence about an argument that the command does not take."""
    fail(f"got {shown_override(got)}, expected {name} {COMMANDS[name][0]}.")


def is_set(name: str, pairs: Mapping[str, str], key: str) -> bool:
    """Return whether a pair of a command is `true`; it is `false` where it is not given."""
    value = pairs.get(key, "false")
    if value not in ("true", "false"):
        expect(name, f"{key}={value}")
    return value == "true"


def wants_json(name: str, pairs: Mapping[str, str]) -> bool:
    """Return whether a command is asked for JSON rather than text."""
    value = pairs.get("format", "text")
    if value not in ("text", "json"):
        expect(name, f"format={value}")
    return value == "json"


@contextmanager
def ending_in_a_sentence(interrupted: str) -> Iterator[None]:
    """Say errors in one sentence, and on Ctrl-C what it means for the store."""
    signals = InterruptHandler()
    try:
        with signals:
            yield
    except LightningLanceError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        sys.exit(signals.exit_code)
