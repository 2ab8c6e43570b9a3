"""The command `doctor`: what could spoil a run, told before it begins."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_lance.cli.tables import say_json
from lightning_lance.errors import ConfigError, LightningLanceError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import pluralize

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_lance.inspection.doctor import Finding, State

_HELP = (
    "usage: lightning-lance doctor key=value ... [format=json]",
    "",
    "Check, before an expensive run, what could spoil it: the model's vocabulary, the text of the stores, both splits, streams",
    "and epochs, the loader's speed against the model's, disk, shared memory, source and versions. Keys are those of",
    "lightning-lance train. Nothing is built, and nothing is trained. The exit code is 1 if something fails.",
)
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance doctor`."""
    if {"-h", "--help"} & {*arguments}:
        say(*_HELP)
        return
    given: list[str] = []
    formats: set[str] = set()
    for argument in arguments:
        if argument.startswith("format="):
            formats.add(argument.removeprefix("format="))
        else:
            given.append(argument)
    if formats - {"json", "text"}:
        fail(f"got format={formats.pop()}, expected format=json or format=text.")
    from lightning_lance.cli.hydra_app import command

    def task(config: DictConfig) -> None:
        _say(_findings(config), "json" in formats)

    sys.argv[:] = [
        f"{sys.argv[0]} doctor",
        *given,
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",
    ]
    command(task, trains=False)()


def _say(findings: Iterator[Finding], as_json: bool) -> None:
    """Print findings as they come, and end with exit code 1 if one of them is `fail`."""
    found: list[Finding] = []
    states: Counter[str] = Counter()
    for finding in findings:
        found.append(finding)
        states[finding.state] += 1
        if not as_json:
            cure = f"; {finding.cure}" if finding.cure else ""
            say(f"{_MARKS[finding.state]}  {finding.check}: {finding.what}{cure}.")
    failed = states["fail"]
    warned = states["warn"]
    if as_json:
        say_json({"findings": found, "failed": failed, "warned": warned})
    else:
        say(f"{pluralize(len(found), 'check')}: {failed} failed, {pluralize(warned, 'warning')}.")
    if failed:
        sys.exit(1)


def _findings(config: DictConfig) -> Iterator[Finding]:
    """Yield the findings of all checks, the quick ones first."""
    from lightning_lance.build.corpus import Corpus
    from lightning_lance.cli.hydra_app import loader_with, make, ranks_of, trains_tokenizer
    from lightning_lance.inspection import doctor

    yield from doctor.check_versions()
    data = make(config, "data")
    ranks = ranks_of(config)
    yield from doctor.check_shared_memory(ranks)
    stores: dict[str, Any] = {}
    for name, corpus in data.corpora.items():
        if isinstance(corpus, Corpus) and corpus.trains_tokenizer:
            cure = "lightning-lance prepare trains it and builds the store; then ask again"
            yield doctor.Finding("store", "warn", f"not built yet{_of(name)}, and neither is its tokenizer", cure)
            yield from doctor.check_sources([(name, corpus.source)])
            continue
        try:
            stores[name] = corpus.open()
        except LightningLanceError as error:
            state: State = "warn" if isinstance(corpus, Corpus) else "fail"
            yield doctor.Finding("store", state, str(error).rstrip("."))
            if isinstance(corpus, Corpus):
                yield from doctor.check_sources([(name, corpus.source)])
        else:
            yield doctor.Finding("store", "ok", f"{stores[name].uri}, {stores[name].commit.stored_tokens:,} tokens")
    try:
        vocab_size = data.vocab_size if not trains_tokenizer(data) else None
    except LightningLanceError:
        vocab_size = None
    if vocab_size is not None:
        model, flops, parameters = _model(config, vocab_size)
        yield from doctor.check_model(model, vocab_size, data.context_length)
        yield from doctor.check_disk(config.output_dir, parameters)
    if vocab_size is None or len(stores) < len(data.corpora):
        return
    yield from doctor.check_stores(stores)
    loader = loader_with(data, stores, world_size=ranks, **data.serving.training, **vars(data.batch))
    try:
        val_windows = loader_with(data, stores, split="val", order="fixed", resumable=False).num_windows
    except ConfigError:
        val_windows = 0
    yield from doctor.check_serving(loader, _steps(config), val_windows)
    yield from doctor.check_speed(loader, flops, _peak_flops(config))


def _of(name: str) -> str:
    if name:
        return f" ({name})"
    return ""


def _steps(config: DictConfig) -> int | None:
    """Return the batches of the run; None without max_steps."""
    trainer = config.get("trainer") or {}
    steps = trainer.get("max_steps")
    if not isinstance(steps, int) or steps <= 0:
        return None
    return steps * int(trainer.get("accumulate_grad_batches") or 1)


def _model(config: DictConfig, vocab_size: int) -> tuple[Any, float, int]:
    """Return the sample GPT without memory, its FLOPs for a token, and its parameters."""
    import torch

    gpt, script = import_module("lightning_lance.examples.gpt"), import_module("lightning_lance.examples.train_gpt")
    module = script.make_model(config)
    sizes = {name: module.hparams[name] for name in ("n_layer", "n_head", "n_embd", "context_length")}
    with torch.device("meta"):
        model = gpt.GPT(**sizes, vocab_size=module.hparams["vocab_size"] or vocab_size)
    return model, float(model.flops_per_token), model.num_parameters


def _peak_flops(config: DictConfig) -> float | None:
    """Return the peak FLOP/s of the GPU that the run uses; None measures the CPU's."""
    import torch

    if config.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available():
        return None
    gpt = import_module("lightning_lance.examples.gpt")
    peak: float = gpt.known_peak_flops(torch.cuda.get_device_name())
    return peak or None
