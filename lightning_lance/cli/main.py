"""The command line: `lightning-lance prepare key=value ...` and others."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lightning_lance.cli.arguments import ending_in_a_sentence, read_arguments, with_keys
from lightning_lance.cli.convert import export_command, import_command
from lightning_lance.cli.doctor import doctor_command
from lightning_lance.cli.overrides import shown_override
from lightning_lance.cli.publishing import card_command, push_command
from lightning_lance.cli.runs import show_command, where_command
from lightning_lance.cli.stores import (
    clean_command,
    forget_command,
    info_command,
    list_command,
    remove_command,
    verify_command,
)
from lightning_lance.cli.streams import safe_output
from lightning_lance.errors import ConfigError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import did_you_mean, nearest
from lightning_lance.messages.moved_names import moved_key
from lightning_lance.messages.redaction import redacted

if TYPE_CHECKING:
    from omegaconf import DictConfig

# A build leaves a store and nothing else: no output folder, no log file.
_NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")
# What `prepare` reads: groups, keys and nodes of the root of the configuration, and keys below `data`.
_ROOT = (
    "source",
    "tokenizer",
    "languages",
    "max_documents",
    "max_tokens",
    "data_dir",
    "corpus",
    "engine",
    "build",
    "progress",
)
_DATA = ("corpus", "mix", "verify", "storage_options")
USAGE = """\
lightning-lance train key=value ...     train the sample GPT on a token store, which is built first if it is not there
lightning-lance prepare key=value ...   build the token store, without training
lightning-lance doctor key=value ...    check what could spoil a run before it begins, with the keys of train
lightning-lance import FORMAT PLACE ... make a token store of tokens of nanogpt, megatron, parquet, mds or litdata
lightning-lance export URI FORMAT PLACE write a token store as nanogpt, megatron or parquet
lightning-lance list [DIR]              list the token stores in a folder or bucket: source, tokens, size, last use, state
lightning-lance info URI                say all about a token store; report=out.html writes it as a page with charts and windows
lightning-lance verify URI              check a token store against its checksums; sample=0.1 reads a tenth of its files
lightning-lance forget URI key=value    leave out documents for good, as in repo=owner/name; dry_run=true only counts them
lightning-lance clean URI|DIR           mend damaged tags, remove what dead builders left, and say what was done
lightning-lance remove URI              remove a whole token store, after a question
lightning-lance card URI                write a data card with licenses, sources and counts, and Croissant metadata
lightning-lance push URI owner/name     upload a token store with its card to the Hugging Face Hub; private=true hides it
lightning-lance show [RUN] step=N       show a batch of a run as the model gets it, past or to come; search=REGEX, by=repo
lightning-lance where [RUN] key=value   list the steps of a run that have a document, as in document=12:3456
lightning-lance verify-resume CKPT|DIR  show that a run goes on exactly where a checkpoint was saved
lightning-lance --version

Keys are those of the configuration: source=github_code 'languages=[Python]' tokenizer=gpt_neox max_documents=5_000_000
lightning-lance prepare --cfg job       show the configuration
lightning-lance prepare --help          show the keys that it reads, and the options of the groups
lightning-lance COMMAND --help          say more of another command
format=json makes all commands but train, prepare and verify-resume print JSON in one line.
"""

# A command imports what it needs once its arguments are right: Hydra, Lance and numpy take long.


def _prepare(config: DictConfig) -> None:
    from lightning_lance.build.corpus import Corpus, check_builds, check_together, corpora_of, mix_of, wanted_languages
    from lightning_lance.build.options import BuildOptions
    from lightning_lance.build.progress import tell_stored
    from lightning_lance.cli.hydra_app import make
    from lightning_lance.maintenance.integrity import raise_if_damaged
    from lightning_lance.serving.options import BatchOptions, ServingOptions, fill_in_the_middle
    from lightning_lance.type_hints import options_of

    # The arguments of the datamodule, without the datamodule: a build needs neither torch nor Lightning.
    data = make(config, "data", _target_="builtins.dict")
    of_batches = _field_names(BatchOptions)
    of_serving = _field_names(ServingOptions)
    _check_keys(data, {"corpus", "fim", "build", "verify", "storage_options", *of_batches, *of_serving})
    data["mix"] = mix_of(data["corpus"], data["mix"])
    corpora = corpora_of(data["corpus"], data["storage_options"])
    build = options_of(BuildOptions, "build", data["build"])
    check_builds(corpora, build)
    # What cannot be served is refused before hours of building.
    BatchOptions(**with_keys(data, of_batches))
    serving = ServingOptions(**with_keys(data, of_serving))
    serving.check_names([*corpora], wanted_languages(corpora))
    if build.wait_for_tokens is None:
        check_together(corpora)
    fim = fill_in_the_middle(data["fim"])
    if fim is not None:
        for corpus in corpora.values():
            if isinstance(corpus, Corpus):
                fim.with_ids(corpus.tokenizer, serving.seed)
                break
    for corpus in corpora.values():
        was_built = corpus.run(build)
        store = corpus.open(growing=build.wait_for_tokens is not None)
        if data["verify"]:
            raise_if_damaged(corpus.on_disk())
        if not was_built:
            tell_stored(store)


def _field_names(options: type) -> list[str]:
    return [field.name for field in fields(options)]


def _train(arguments: Sequence[str]) -> None:
    from lightning_lance.cli.hydra_app import command

    def task(config: DictConfig) -> None:
        # Once the command line is right, since torch takes long to import.
        import_module("lightning_lance.examples.train_gpt").main.__wrapped__(config)

    # Lightning runs this file for further devices.
    sys.argv[:] = [str(files("lightning_lance.examples") / "train_gpt.py"), *arguments]
    command(task, records=False)()


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


def _verify_resume(arguments: Sequence[str]) -> None:
    file, moved, options = read_arguments("verify-resume", arguments)
    uris = dict(moved)
    if "uri" in uris:
        # The place of a single store, which has no name.
        uris[""] = uris.pop("uri")
    from lightning_lance.inspection.resume import verify_resume

    with ending_in_a_sentence("nothing was changed."):
        say(*verify_resume(file, uris, options).splitlines())


# What runs each command but `prepare`, given its arguments.
_RUN: Mapping[str, Callable[[Sequence[str]], None]] = {
    "list": list_command,
    "info": info_command,
    "verify": verify_command,
    "forget": forget_command,
    "clean": clean_command,
    "remove": remove_command,
    "import": import_command,
    "export": export_command,
    "card": card_command,
    "push": push_command,
    "doctor": doctor_command,
    "show": show_command,
    "where": where_command,
    "verify-resume": _verify_resume,
}


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
    if name in ("prepare", "train", "doctor") and "--version" in rest:
        # Hydra would say its own.
        name = "--version"
    if name == "prepare" and (asked := {"-h", "--help"} & {*rest}):
        from lightning_lance.cli.hydra_app import help_of

        arguments = [argument for argument in rest if argument not in asked]
        groups = ("source", "tokenizer", "experiment")
        print(help_of("lightning-lance prepare", arguments, groups, _ROOT, _DATA))
    elif name == "prepare":
        from lightning_lance.cli.hydra_app import command

        sys.argv[:] = [f"{sys.argv[0]} prepare", *rest, *_NO_FOLDER]
        command(_prepare, trains=False)()
    elif name == "train":
        _train(rest)
    elif name in _RUN:
        _RUN[name](rest)
    elif name == "--version":
        from importlib.metadata import version

        print(version("lightning-lance"))
    elif name in ("--help", "-h", "help"):
        print(USAGE, end="")
    else:
        commands = ["train", "prepare", *_RUN.keys()]
        meant = did_you_mean(nearest(name, commands), quoted=False)
        fail(
            f"there is no command {shown_override(name)!r}: {meant}expected {', '.join(commands[:-1])} or {commands[-1]}; "
            "lightning-lance --help says more."
        )
