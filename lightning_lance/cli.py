"""The command line: `lightning-lance prepare key=value ...` and others. This is the only module that knows Hydra."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from lightning_lance.errors import BuildInterrupted, LightningLanceError
from lightning_lance.languages import nearest
from lightning_lance.signals import Interruptible

# A build leaves a store and nothing else: no output folder, no log file.
_NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")
# How options of object stores begin, among the arguments of a command.
_OPTIONS = ("aws_", "azure_", "google_", "allow_http")

USAGE = """\
lightning-lance prepare key=value ...   build the token store, without training
lightning-lance verify URI              hold a token store against its checksums; sample=0.1 reads a tenth of its files
lightning-lance forget URI key=value    leave out documents for good, as in repo=owner/name; purge=true removes old versions too
lightning-lance verify-resume CKPT      show that a run goes on exactly where a checkpoint was saved
lightning-lance --version

Keys are those of the configuration: source=github_code 'languages=[Python]' tokenizer=gpt_neox max_documents=5_000_000
lightning-lance prepare --cfg job       show the configuration
lightning-lance prepare --help          show the groups and their options
A store that has moved: verify-resume CKPT uri=PLACE, or NAME=PLACE where there are several.
"""

# Keys whose value is a dict that the user fills. Hydra adds keys to a dict only where a + says so.
_DICTS = re.compile(r"(data\.(where|mix|fim|storage_options)|source\.(columns|where|extensions|storage_options))=\{")


def command(task: Callable[[DictConfig], None]) -> Callable[[], None]:
    """Make a command of a function: give it the composed configuration, with the overrides of the command line.

    What the user can mend is told in one sentence on standard error, with exit code 1; set HYDRA_FULL_ERROR=1 for the
    traceback. After Ctrl-C the exit code is 130, after SIGTERM 143.
    """

    @functools.wraps(task)
    def run() -> None:
        sys.argv[1:] = [f"+{argument}" if _DICTS.match(argument) else argument for argument in sys.argv[1:]]
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            _hydra_main(task)
            return
        told: list[BaseException] = []

        @functools.wraps(task)
        def guarded(config: DictConfig) -> None:
            # Only for Hydra's own part: processes that the task starts shall tell errors in one sentence too.
            os.environ.pop("HYDRA_FULL_ERROR", None)
            # Kept from Hydra, which would print a line of its own before it.
            try:
                task(config)
            except (LightningLanceError, HydraException, OmegaConfBaseException) as error:
                told.append(error)

        signals = Interruptible()
        try:
            with signals:
                # Otherwise Hydra prints errors of the configuration itself, over several lines.
                os.environ["HYDRA_FULL_ERROR"] = "1"
                try:
                    _hydra_main(guarded)
                finally:
                    os.environ.pop("HYDRA_FULL_ERROR", None)
        except (HydraException, OmegaConfBaseException) as error:
            told.append(error)
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning makes SystemExit of both signals.
            if signals.received is None:
                raise
            # Processes that Lightning has started get the signal too; one of them tells.
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"interrupted: {_how_to_go_on(error)}", file=sys.stderr, flush=True)
            sys.exit(signals.exit_code)
        if told:
            sys.exit(f"error: {_one_sentence(told[0])}")

    return run


def _hydra_main(task: Callable[[DictConfig], None]) -> None:
    hydra.main(version_base="1.3", config_path="pkg://lightning_lance.conf", config_name="config")(task)()


def _how_to_go_on(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BuildInterrupted):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return "run it again, it goes on after what was committed (a training with ckpt_path=last)."


def _one_sentence(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LightningLanceError):
            return str(cause)
        if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
            return _unknown_key(cause)
        if isinstance(cause, (MissingMandatoryValue, InterpolationToMissingValueError)):
            key = str(cause.full_key or cause.key).removeprefix("data.")
            return f"The key {key} has no value: give it one on the command line, as in {key}=..."
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent = error.parent_node if isinstance(error.parent_node, DictConfig) else {}
    known = [str(key) for key in parent if key not in ("_target_", "_convert_", "hydra")]
    near = nearest(str(error.key), known)
    hint = f"did you mean {near!r}? " if near else ""
    place = str(error.full_key).rpartition(".")[0]
    return (
        f"There is no key {error.full_key!r}: {hint}{place or 'the configuration'} has {', '.join(sorted(known))} "
        f"(to add a key that the constructor takes, write +{error.full_key}=...)."
    )


def make(config: DictConfig, **changes: Any) -> Any:
    """Instantiate a group of the configuration; a `ConfigError` of a constructor comes through as it is."""
    try:
        return instantiate(config, **changes)
    except InstantiationException as error:
        if isinstance(error.__cause__, LightningLanceError):
            raise error.__cause__ from None
        raise


def _prepare(config: DictConfig) -> None:
    from lightning_lance.prepare import prepare

    # The arguments of the datamodule, without the datamodule: a build needs neither torch nor Lightning.
    data = make(config.data, _target_="builtins.dict")
    wanted = {"uri", "data_dir", "max_documents", "max_tokens", "val_fraction", "max_document_bytes", "long_documents"}
    wanted |= {"commit_seconds", "rebuild", "storage_options"}
    store = prepare(data["source"], data["tokenizer"], **{name: data[name] for name in wanted})
    commit = store.commit
    print(
        f"{store.uri}: {commit.stored_documents:,} documents, {store.num_tokens('train'):,} train and "
        f"{store.num_tokens('val'):,} val tokens, version {store.version}"
    )


def _verify_resume(arguments: list[str]) -> None:
    from lightning_lance.verify import verify_resume

    file, *moved = arguments or [""]
    pairs = [argument.partition("=") for argument in moved]
    if not file or not all(equals for _, equals, _ in pairs):
        sys.exit("error: expected verify-resume CKPT, and after it uri=PLACE where the store has moved.")
    try:
        print(verify_resume(file, {"" if name == "uri" else name: place for name, _, place in pairs}))
    except LightningLanceError as error:
        sys.exit(f"error: {error}")


def _verify(arguments: list[str]) -> None:
    from lightning_lance.integrity import check_store

    uri, *rest = arguments or [""]
    pairs = [argument.partition("=") for argument in rest]
    options = {name: value for name, _, value in pairs}
    try:
        sample = float(options.pop("sample", "1"))
    except ValueError:
        sample = 0.0
    if not uri or not all(equals for _, equals, _ in pairs) or not 0 < sample <= 1:
        sys.exit("error: expected verify URI, and after it sample=0.1 (a share of the data files) or storage options.")
    try:
        problems = check_store(uri, options, sample)
    except LightningLanceError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: nothing was changed.", file=sys.stderr)
        sys.exit(130)
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(f"error: {uri}: {len(problems)} problems.")
    print(f"{uri}: all is as it was written.")


def _forget(arguments: list[str]) -> None:
    from lightning_lance.forgetting import forget

    uri, *rest = arguments or [""]
    rule = dict(argument.split("=", 1) for argument in rest if "=" in argument)
    purge = rule.pop("purge", "false")
    # Words of a store are single; options of object stores have an underscore and a prefix.
    options = {name: rule.pop(name) for name in [*rule] if name.startswith(_OPTIONS)}
    if not uri or not rule or any("=" not in argument for argument in rest) or purge not in ("true", "false"):
        sys.exit(
            "error: expected forget URI key=value, as in repo=owner/name, and after it purge=true or storage options."
        )
    signals = Interruptible()
    try:
        with signals:
            done = forget(
                uri,
                rule,
                options,
                purge == "true",
                lambda *found: print("{:,} documents ({:,} tokens) match.".format(*found), flush=True),
            )
    except LightningLanceError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: all is forgotten or nothing: run it again, it ends what was begun.", file=sys.stderr)
        sys.exit(signals.exit_code)
    what = (
        f"{done.documents:,} documents ({done.tokens:,} tokens) are forgotten"
        if done.documents
        else "nothing was forgotten"
    )
    print(f"{uri}: {what}, version {done.version}.")
    if done.kept:
        print(
            f"Older versions still hold what was forgotten, for checkpoints (tags {', '.join(done.kept)}): purge=true removes "
            "them, and those checkpoints cannot go on."
        )


def main() -> None:
    """Run the command `lightning-lance`."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "prepare":
        sys.argv[:] = [f"{sys.argv[0]} prepare", *rest, *_NO_FOLDER]
        command(_prepare)()
    elif name == "verify-resume":
        _verify_resume(rest)
    elif name == "forget":
        _forget(rest)
    elif name == "verify":
        _verify(rest)
    elif name == "--version":
        print(version("lightning-lance"))
    elif name in ("--help", "-h", "help"):
        print(USAGE, end="")
    else:
        sys.exit(f"error: there is no command {name!r}: expected prepare, verify, forget or verify-resume.\n\n{USAGE}")
