"""The command line: `lightning-lance prepare key=value ...` and others."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.cli.overrides import is_secret_key, shown_override
from lightning_lance.errors import LightningLanceError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.redaction import redacted, remember_options

if TYPE_CHECKING:
    from omegaconf import DictConfig

# A build leaves a store and nothing else: no output folder, no log file.
_NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")
# What `prepare` reads: groups, keys and nodes of the root of the configuration, and keys below `data`.
_ROOT = ("source", "tokenizer", "languages", "max_documents", "max_tokens", "data_dir", "corpus", "build")
_DATA = ("verify",)
# How options of object stores begin, among the arguments of a command.
_OPTIONS = ("aws_", "azure_", "google_", "allow_http")

USAGE = """\
lightning-lance prepare key=value ...   build the token store, without training
lightning-lance verify URI              hold a token store against its checksums; sample=0.1 reads a tenth of its files
lightning-lance forget URI key=value    leave out documents for good, as in repo=owner/name; purge=true removes old versions too
lightning-lance clean URI               mend damaged tags, remove what killed builders left, and say what was done
lightning-lance verify-resume CKPT      show that a run goes on exactly where a checkpoint was saved
lightning-lance --version

Keys are those of the configuration: source=github_code 'languages=[Python]' tokenizer=gpt_neox max_documents=5_000_000
lightning-lance prepare --cfg job       show the configuration
lightning-lance prepare --help          show the keys that it reads, and the options of the groups
A store that has moved: verify-resume CKPT uri=PLACE, or NAME=PLACE where there are several.
"""

# What each command expects; the first line is said where something else comes.
_EXPECTED = {
    "verify": """\
verify URI, and after it sample=0.1 (a share of the data files) or storage options

Holds every file of a token store against its checksum, and names what is damaged; nothing is changed.
""",
    "forget": """\
forget URI key=value, as in repo=owner/name, and after it purge=true or storage options

Leaves out all documents for which each key=value holds, now and when the store grows. The keys are id, language, and the words
of source.columns. purge=true also removes the versions from before, which checkpoints may need.
""",
    "clean": """\
clean URI, and after it storage options

Mends what is provably damaged and removes what is left over of killed builders, and says so line by line. Nothing else changes:
what it cannot tell is left, and named. Stop builds first, or let them end: what is theirs is left to them.
""",
    "verify-resume": """\
verify-resume CKPT, and after it uri=PLACE where the store has moved

Works out all windows of the checkpoint's epoch anew, holds their digest against the one saved in it, and shows the windows that
come next. Where there are several stores, NAME=PLACE says where each of them is.
""",
}


# A command imports what it needs once its arguments are right: Hydra, Lance and numpy take long.


def _prepare(config: DictConfig) -> None:
    from dataclasses import fields

    from lightning_lance.build.corpus import Corpus, check_one_tokenizer, corpora_of
    from lightning_lance.build.options import BuildOptions
    from lightning_lance.cli.hydra_app import make
    from lightning_lance.maintenance.integrity import raise_if_damaged
    from lightning_lance.serving.fim import FillInTheMiddle
    from lightning_lance.serving.options import BatchOptions, ServingOptions, fill_in_the_middle
    from lightning_lance.type_hints import options_of

    # The arguments of the datamodule, without the datamodule: a build needs neither torch nor Lightning.
    data = make(config, "data", _target_="builtins.dict")
    corpora = corpora_of(data["corpus"], data["storage_options"])
    built = [corpus for corpus in corpora.values() if isinstance(corpus, Corpus)]
    build = options_of(BuildOptions, "build", data["build"])
    # What cannot be served is refused before hours of building.
    BatchOptions(**{field.name: data[field.name] for field in fields(BatchOptions)})
    serving = ServingOptions(**{field.name: data[field.name] for field in fields(ServingOptions)})
    serving.check_names([*corpora], list(built[0].source.wanted or ()) if len(built) == 1 else [])
    check_one_tokenizer(corpora)
    if (fim := fill_in_the_middle(data["fim"])) and built:
        FillInTheMiddle.named(built[0].tokenizer, **{**vars(fim), "seed": fim.seed or 0})
    for corpus in corpora.values():
        corpus.run(build)
        store = corpus.open(growing=build.wait_for_tokens is not None)
        if data["verify"]:
            raise_if_damaged(store.uri, corpus.storage_options)
        commit = store.commit
        say(
            f"{store.uri}: {pluralize(commit.stored_documents, 'document')}, {store.num_tokens('train'):,} train and "
            f"{store.num_tokens('val'):,} val tokens, version {store.version}"
        )


def _place_and_rest(name: str, arguments: list[str]) -> tuple[str, dict[str, str]]:
    """Take apart the arguments of a command: a place, then key=value ..."""
    place, *rest = arguments or [""]
    # A place may have a = in it, as Lightning's checkpoints do.
    if not place or place.startswith("-") or ("=" in place and "://" not in place and not Path(place).exists()):
        _expect(name, arguments[0] if arguments else "nothing")
    pairs: dict[str, str] = {}
    for argument in rest:
        key, is_pair, value = argument.partition("=")
        if not is_pair:
            _expect(name, argument)
        if key in pairs:
            both = "" if is_secret_key(key) or key.startswith(_OPTIONS) else f", as {pairs[key]} and {value}"
            fail(f"{key} is given twice{both}: give it once, and the other to another run.")
        pairs[key] = value
    remember_options({key: value for key, value in pairs.items() if key.startswith(_OPTIONS)})
    return place, pairs


def _expect(name: str, got: str) -> NoReturn:
    fail(f"got {shown_override(got)}, expected {_EXPECTED[name].splitlines()[0]}.")


def _verify_resume(arguments: list[str]) -> None:
    file, moved = _place_and_rest("verify-resume", arguments)
    from lightning_lance.inspection.resume import verify_resume

    try:
        say(*verify_resume(file, {"" if name == "uri" else name: place for name, place in moved.items()}).splitlines())
    except LightningLanceError as error:
        fail(str(error))


def _verify(arguments: list[str]) -> None:
    uri, options = _place_and_rest("verify", arguments)
    asked = options.pop("sample", "1")
    if options and "://" not in uri:
        _expect("verify", "=".join(next(iter(options.items()))))
    try:
        sample = float(asked)
    except ValueError:
        sample = 0.0
    if not 0 < sample <= 1:
        fail(f"sample is {asked}: expected a share of the data files, above 0 and up to 1, such as 0.1.")
    from lightning_lance.maintenance.integrity import verify_store

    try:
        problems = verify_store(uri, options, sample)
    except LightningLanceError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted: nothing was changed.", file=sys.stderr)
        sys.exit(130)
    for problem in problems:
        say(str(problem))
    if problems:
        fail(f"{uri}: {pluralize(len(problems), 'problem')}.")
    say(f"{uri}: {'all' if sample == 1 else f'the sample of {sample:.3g}'} is as it was written.")


def _clean(arguments: list[str]) -> None:
    uri, options = _place_and_rest("clean", arguments)
    if options and "://" not in uri:
        _expect("clean", "=".join(next(iter(options.items()))))
    from lightning_lance.maintenance.cleanup import clean

    signals = InterruptHandler()
    try:
        with signals:
            cleaned = clean(uri, options)
    except LightningLanceError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted: run it again, it ends what was begun.", file=sys.stderr)
        sys.exit(signals.exit_code)
    for line in [*cleaned.done, *cleaned.left]:
        say(f"{line}.")
    if cleaned.left:
        fail(f"{uri}: {pluralize(len(cleaned.left), 'problem')} left.")
    if not cleaned.done:
        say(f"{uri}: nothing to clean.")


def _forget(arguments: list[str]) -> None:
    uri, rule = _place_and_rest("forget", arguments)
    purge = rule.pop("purge", "false")
    # Words of a store are single; options of object stores have an underscore and a prefix.
    options = {name: rule.pop(name) for name in [*rule] if name.startswith(_OPTIONS)}
    if not rule:
        _expect("forget", "no key=value")
    if purge not in ("true", "false"):
        _expect("forget", f"purge={purge}")
    from lightning_lance.maintenance.forgetting import forget

    signals = InterruptHandler()
    try:
        with signals:
            done = forget(
                uri,
                rule,
                options,
                purge == "true",
                lambda *found: say(f"{_documents(found, 'match', 'matches')}."),
            )
    except LightningLanceError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted: all is forgotten or nothing: run it again, it ends what was begun.", file=sys.stderr)
        sys.exit(signals.exit_code)
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


def _documents(found: tuple[int, int], do: str, does: str) -> str:
    number, tokens = found
    return f"{pluralize(number, 'document')} ({pluralize(tokens, 'token')}) {does if number == 1 else do}"


def main() -> None:
    """Run the command `lightning-lance`."""
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
    elif name in _EXPECTED and {"-h", "--help"} & {*rest}:
        print(f"lightning-lance {_EXPECTED[name]}", end="")
    elif name == "verify-resume":
        _verify_resume(rest)
    elif name == "forget":
        _forget(rest)
    elif name == "verify":
        _verify(rest)
    elif name == "clean":
        _clean(rest)
    elif name == "--version":
        from importlib.metadata import version

        print(version("lightning-lance"))
    elif name in ("--help", "-h", "help"):
        print(USAGE, end="")
    else:
        sys.exit(
            f"error: there is no command {name!r}: expected prepare, verify, forget, clean or verify-resume.\n\n{USAGE}"
        )
