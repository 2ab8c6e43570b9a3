"""The command line: `lightning-lance prepare key=value ...` and others."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.cli.overrides import shown_override
from lightning_lance.cli.streams import safe_output
from lightning_lance.errors import ConfigError, LightningLanceError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import nearest, pluralize
from lightning_lance.messages.moved_names import moved_key
from lightning_lance.messages.redaction import redacted, remember_options

if TYPE_CHECKING:
    from omegaconf import DictConfig

# A build leaves a store and nothing else: no output folder, no log file.
_NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")
# What `prepare` reads: groups, keys and nodes of the root of the configuration, and keys below `data`.
_ROOT = ("source", "tokenizer", "languages", "max_documents", "max_tokens", "data_dir", "corpus", "build", "progress")
_DATA = ("corpus", "mix", "verify", "storage_options")
# How options of object stores begin, where they are given like the other pairs of a command.
_OPTIONS = ("aws_", "azure_", "google_", "allow_http")

USAGE = """\
lightning-lance prepare key=value ...   build the token store, without training
lightning-lance verify URI              check a token store against its checksums; sample=0.1 reads a tenth of its files
lightning-lance forget URI key=value    leave out documents for good, as in repo=owner/name; purge=true removes old versions too
lightning-lance clean URI               mend damaged tags, remove what killed builders left, and say what was done
lightning-lance verify-resume CKPT      show that a run goes on exactly where a checkpoint was saved
lightning-lance --version

Keys are those of the configuration: source=github_code 'languages=[Python]' tokenizer=gpt_neox max_documents=5_000_000
lightning-lance prepare --cfg job       show the configuration
lightning-lance prepare --help          show the keys that it reads, and the options of the groups
lightning-lance COMMAND --help          say more of another command
"""

_OPTION_HELP = (
    f"an option of the object store; where none is given, a pair that begins with {', '.join(_OPTIONS)} is one"
)
# The arguments of each command, and what it does.
_COMMANDS = {
    "verify": (
        "URI [sample=SHARE] [--storage-option KEY=VALUE ...]",
        """Check every file of a token store against its checksum, and name what is damaged. Nothing is changed. sample=0.1
        checks a tenth of the data files.""",
    ),
    "forget": (
        "URI KEY=VALUE ... [purge=true] [--storage-option KEY=VALUE ...]",
        """Leave out all documents for which each KEY=VALUE holds, now and when the store grows. The keys are id, language, and
        the words of source.columns, as in repo=owner/name. purge=true also removes the older versions: checkpoints may need
        them.""",
    ),
    "clean": (
        "URI [--storage-option KEY=VALUE ...]",
        """Mend what is provably damaged, remove what killed builders left, and say so line by line. What it cannot judge
        stays, and is named. Stop builds first, or let them end: their files are left to them.""",
    ),
    "verify-resume": (
        "CKPT [uri=PLACE | NAME=PLACE ...] [--storage-option KEY=VALUE ...]",
        """Work out all windows of the checkpoint's epoch anew, compare their digest with the one saved in it, and show the
        next windows. uri=PLACE says where the store has moved, NAME=PLACE where there are several stores.""",
    ),
}


# A command imports what it needs once its arguments are right: Hydra, Lance and numpy take long.


def _prepare(config: DictConfig) -> None:
    from dataclasses import fields

    from lightning_lance.build.corpus import Corpus, check_builds, check_together, corpora_of, mix_of
    from lightning_lance.build.options import BuildOptions
    from lightning_lance.build.progress import tell_stored
    from lightning_lance.cli.hydra_app import make
    from lightning_lance.maintenance.integrity import raise_if_damaged
    from lightning_lance.serving.fim import FillInTheMiddle
    from lightning_lance.serving.options import BatchOptions, ServingOptions, fill_in_the_middle
    from lightning_lance.type_hints import options_of

    # The arguments of the datamodule, without the datamodule: a build needs neither torch nor Lightning.
    data = make(config, "data", _target_="builtins.dict")
    served = [field.name for field in (*fields(BatchOptions), *fields(ServingOptions))]
    _check_keys(data, {"corpus", "fim", "build", "verify", "storage_options", *served})
    data["mix"] = mix_of(data["corpus"], data["mix"])
    corpora = corpora_of(data["corpus"], data["storage_options"])
    built = [corpus for corpus in corpora.values() if isinstance(corpus, Corpus)]
    build = options_of(BuildOptions, "build", data["build"])
    check_builds(corpora, build)
    # What cannot be served is refused before hours of building.
    BatchOptions(**{field.name: data[field.name] for field in fields(BatchOptions)})
    serving = ServingOptions(**{field.name: data[field.name] for field in fields(ServingOptions)})
    serving.check_names([*corpora], list(built[0].source.wanted or ()) if len(built) == 1 else [])
    if build.wait_for_tokens is None:
        check_together(corpora)
    if (fim := fill_in_the_middle(data["fim"])) and built:
        FillInTheMiddle.named(built[0].tokenizer, **{**vars(fim), "seed": fim.seed or 0})
    for corpus in corpora.values():
        was_built = corpus.run(build)
        store = corpus.open(growing=build.wait_for_tokens is not None)
        if data["verify"]:
            raise_if_damaged(corpus.location)
        if not was_built:
            tell_stored(store)


def _check_keys(data: Mapping[str, Any], known: Set[str]) -> None:
    """Refuse keys below `data` that were added or removed: only `LanceDataModule` itself would see them."""
    for key in data:
        if key not in known:
            raise ConfigError(
                moved_key(f"data.{key}") or f"There is no key 'data.{key}': data has {', '.join(sorted(known))}."
            )
    for key in sorted(known):
        if key not in data:
            raise ConfigError(f"The key data.{key} is missing: leave out what removes it.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message}.")


def _read_arguments(
    name: str, arguments: Sequence[str], keys: Collection[str] | None = None
) -> tuple[str, dict[str, str], dict[str, str]]:
    """Read a place, key=value pairs (`keys`: the possible ones, None for any), and options of the place's object store."""
    usage, description = _COMMANDS[name]
    parser = _Parser(f"lightning-lance {name}", f"lightning-lance {name} {usage}", description, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE", help=_OPTION_HELP)
    given, unknown = parser.parse_known_intermixed_args(arguments)
    place, *words = given.words or [""]
    # A place may have a = in it, as Lightning's checkpoints do.
    if unknown or not place or ("=" in place and "://" not in place and not Path(place).exists()):
        _expect(name, unknown[0] if unknown else place or "nothing")
    # Where options are given as such, a column may be called azure_x.
    prefixes = () if given.storage_option or "://" not in place else _OPTIONS
    pairs: dict[str, str] = {}
    options: dict[str, str] = {}
    marked = [(word, True) for word in given.storage_option] + [(word, word.startswith(prefixes)) for word in words]
    for word, is_option in marked:
        key, is_pair, value = word.partition("=")
        if not is_pair or not (is_option or keys is None or key in keys):
            _expect(name, word)
        if key in (options if is_option else pairs):
            fail(f"{key} is given twice: give it once, and the other to another run.")
        (options if is_option else pairs)[key] = value
    remember_options(options)
    return place, pairs, options


def _expect(name: str, got: str) -> NoReturn:
    fail(f"got {shown_override(got)}, expected {name} {_COMMANDS[name][0]}.")


@contextmanager
def _ending_in_a_sentence(interrupted: str) -> Iterator[None]:
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


def _verify_resume(arguments: Sequence[str]) -> None:
    file, moved, options = _read_arguments("verify-resume", arguments)
    uris = {"" if name == "uri" else name: place for name, place in moved.items()}
    from lightning_lance.inspection.resume import verify_resume

    with _ending_in_a_sentence("nothing was changed."):
        say(*verify_resume(file, uris, options).splitlines())


def _verify(arguments: Sequence[str]) -> None:
    uri, pairs, options = _read_arguments("verify", arguments, ("sample",))
    asked = pairs.get("sample", "1")
    try:
        sample = float(asked)
    except ValueError:
        sample = 0.0
    if not 0 < sample <= 1:
        fail(f"sample is {asked}: expected a share of the data files, above 0 and up to 1, such as 0.1.")
    from lightning_lance.maintenance.integrity import verify_store

    with _ending_in_a_sentence("nothing was changed."):
        problems = verify_store(uri, options, sample)
    for problem in problems:
        say(str(problem))
    if problems:
        fail(f"{uri}: {pluralize(len(problems), 'problem')}.")
    say(f"{uri}: {'all' if sample == 1 else f'the sample of {sample:.3g}'} is as it was written.")


def _clean(arguments: Sequence[str]) -> None:
    uri, _, options = _read_arguments("clean", arguments, ())
    from lightning_lance.maintenance.cleanup import clean

    with _ending_in_a_sentence("run it again, it ends what was begun."):
        cleaned = clean(uri, options)
    for line in [*cleaned.done, *cleaned.left]:
        say(f"{line}.")
    if cleaned.left:
        fail(f"{uri}: {pluralize(len(cleaned.left), 'problem')} left.")
    if not cleaned.done:
        say(f"{uri}: nothing to clean.")


def _forget(arguments: Sequence[str]) -> None:
    uri, rule, options = _read_arguments("forget", arguments)
    purge = rule.pop("purge", "false")
    if not rule:
        _expect("forget", "no key=value")
    if purge not in ("true", "false"):
        _expect("forget", f"purge={purge}")
    from lightning_lance.maintenance.forgetting import forget

    def tell(*found: int) -> None:
        say(f"{_documents(found, 'match', 'matches')}.")

    with _ending_in_a_sentence("all is forgotten or nothing: run it again, it ends what was begun."):
        done = forget(uri, rule, options, purge == "true", tell)
    if done.documents:
        what = _documents((done.documents, done.tokens), "are forgotten", "is forgotten")
        say(f"{uri}: {what}, version {done.version}.")
    else:
        then = (
            "the rule is kept for documents that will be added" if done.rule_kept else "its source has no more to add"
        )
        say(f"{uri}: nothing was forgotten, version {done.version}; {then}.")
    for key, meant in done.near.items():
        say(f"No document has {key}={rule[key]}: did you mean {key}={meant}?")
    if done.purged:
        say(f"Older versions, which held what was forgotten, are gone with their tags: {', '.join(done.purged)}.")
    if done.kept:
        say(
            f"Older versions still hold what was forgotten, for checkpoints (tags {', '.join(done.kept)}): purge=true removes "
            "them, and those checkpoints cannot go on."
        )


def _documents(found: Sequence[int], do: str, does: str) -> str:
    number, tokens = found
    return f"{pluralize(number, 'document')} ({pluralize(tokens, 'token')}) {does if number == 1 else do}"


def main() -> None:
    """Run the command `lightning-lance`."""
    with safe_output():
        try:
            _main()
        except Exception:  # a bug; an error of ours is a sentence by now
            sys.stderr.write(redacted(traceback.format_exc()))
            sys.exit(1)


def _main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "prepare" and (asked := {"-h", "--help"} & {*rest}):
        from lightning_lance.cli.hydra_app import help_of

        arguments = [argument for argument in rest if argument not in asked]
        groups = ("source", "tokenizer", "experiment")
        print(help_of("lightning-lance prepare", arguments, groups, _ROOT, _DATA))
    elif name == "prepare":
        from lightning_lance.cli.hydra_app import command

        sys.argv[:] = [f"{sys.argv[0]} prepare", *rest, *_NO_FOLDER]
        command(_prepare, trains=False)()
    elif name in _COMMANDS:
        {"verify": _verify, "forget": _forget, "clean": _clean, "verify-resume": _verify_resume}[name](rest)
    elif name == "--version":
        from importlib.metadata import version

        print(version("lightning-lance"))
    elif name in ("--help", "-h", "help"):
        print(USAGE, end="")
    else:
        near = nearest(name, ["prepare", *_COMMANDS])
        meant = f"did you mean {near}? " if near else ""
        fail(
            f"there is no command {shown_override(name)!r}: expected prepare, verify, forget, clean or verify-resume. "
            f"{meant}lightning-lance --help says more."
        )
