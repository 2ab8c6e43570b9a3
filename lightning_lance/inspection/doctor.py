"""What could spoil an expensive run, found in seconds before it begins."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from lightning_lance.errors import LightningLanceError
from lightning_lance.messages.formatting import format_bytes, format_list, pluralize
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.serving.vocabulary import vocabulary_of
from lightning_lance.store.token_store import TokenStore

State = Literal["ok", "warn", "fail"]

# Windows whose tokens and documents are compared, and tokens of each.
_SAMPLED = 500
_SAMPLE_TOKENS = 2048
# Documents of a split that are compared with the other split, and tokens of each.
_COMPARED = 200_000
_HEAD = 64
# Seconds for which the loader is timed, and the device.
_TIMED = 1.5
_TIMED_DEVICE = 0.3
# Epochs from which on repeated text teaches little (Muennighoff et al. 2023, arXiv:2305.16264).
_MANY_EPOCHS = 4.0
# The share of its peak that a device reaches in training, at best.
_UTILISATION = 0.5
# Bytes of a checkpoint for each parameter: the weight and two moments of Adam, in float32.
_CHECKPOINT_BYTES = 12
_SHARED_MEMORY = 1 << 30


class Finding(NamedTuple):
    """The result of a check.

    Attributes:
        check: What was checked.
        state: `ok`, `warn` or `fail`.
        what: What was found.
        cure: What to do about it; empty for `ok`.
    """

    check: str
    state: State
    what: str
    cure: str = ""


def check_model(model: torch.nn.Module, vocab_size: int, context_length: int) -> Iterator[Finding]:
    """Yield whether the embedding of a model has a row for every token."""
    found = vocabulary_of(model, context_length)
    if found is None:
        cure = "compare its number of rows with the datamodule's vocab_size"
        yield Finding("vocabulary", "warn", "the embedding of the model is not known", cure)
        return
    name, rows = found
    sizes = f"{rows:,} rows in {name!r} for {vocab_size:,} ids"
    if rows < vocab_size:
        yield Finding("vocabulary", "fail", sizes, f"make the model with vocab_size={vocab_size}")
    elif rows > 2 * vocab_size:
        yield Finding("vocabulary", "warn", sizes, f"vocab_size={vocab_size} makes a smaller model")
    else:
        yield Finding("vocabulary", "ok", sizes)


def check_stores(stores: Mapping[str, TokenStore]) -> Iterator[Finding]:
    """Yield what is wrong with the text of stores: ends of documents, special tokens, text in both splits."""
    for name, store in stores.items():
        of = f" of {name}" if name else ""
        yield from _check_documents(store, of)
        yield from _check_overlap(store, of)


def check_serving(loader: WindowLoader, steps: int | None, val_windows: int) -> Iterator[Finding]:
    """Yield what is wrong with what is served.

    Args:
        loader: The train loader.
        steps: Batches of the run; None without a limit.
        val_windows: Windows to validate on.
    """
    short = loader.too_short()
    if short is None:
        yield Finding("streams", "ok", f"all are longer than a window of {loader.context_length:,} + 1 tokens")
    else:
        lost = f"{pluralize(short.streams, 'stream')} with {pluralize(short.tokens, 'token')}"
        named = ""
        if any(short.languages):
            named = f" ({format_list([*filter(None, short.languages)])})"
        what = f"{lost}{named} shorter than a window: never served"
        yield Finding("streams", "warn", what, "lower context_length, or store more documents")
    if val_windows:
        yield Finding("validation", "ok", f"{val_windows:,} windows to validate on")
    else:
        yield Finding(
            "validation", "warn", "nothing to validate on", "raise corpus.val_fraction, or store more documents"
        )
    if steps is not None:
        yield _epochs_finding(loader, steps)


def _epochs_finding(loader: WindowLoader, steps: int) -> Finding:
    """Return how often a run sees its data, and whether the mixture is long enough for it."""
    epochs = loader.epochs_of(steps)
    counted: list[str] = []
    for name, number in epochs.items():
        counted.append(f"{name or 'all'} {number:.3g}")
    named = ", ".join(counted)
    if loader.most_steps is not None and loader.most_steps < steps:
        what = f"the mixture ends after {pluralize(loader.most_steps, 'step')} of {steps:,} (max_epochs): {named}"
        return Finding("epochs", "fail", what, "raise data.max_epochs, store more tokens, or train fewer steps")
    if max(epochs.values()) > _MANY_EPOCHS:
        cure = "store more tokens, or lower the weight of what repeats"
        return Finding("epochs", "warn", f"{named} in {steps:,} steps", cure)
    return Finding("epochs", "ok", f"{named} in {steps:,} steps")


def check_speed(loader: WindowLoader, flops_per_token: float, peak_flops: float | None) -> Iterator[Finding]:
    """Yield whether the loader is faster than the model, on this machine.

    Args:
        loader: The train loader. It is read from, and does not move.
        flops_per_token: Of the model, forward and backward.
        peak_flops: FLOP/s of the device of a rank; None measures this CPU's.
    """
    have = _loader_speed(loader)
    peak = _cpu_flops() if peak_flops is None else peak_flops
    needed = _UTILISATION * peak / flops_per_token
    what = f"the loader gives {have:,.0f} tokens/s, and the model takes at most {needed:,.0f} on each device"
    if have < needed:
        yield Finding(
            "speed", "fail", what, "put the store on a faster disk, stage it (data.stage), or set data.shuffle_block"
        )
    elif have < 2 * needed:
        yield Finding(
            "speed", "warn", what, "there is little to spare: a faster disk, data.stage, or data.shuffle_block"
        )
    else:
        yield Finding("speed", "ok", what)


def check_disk(folder: str, parameters: int) -> Iterator[Finding]:
    """Yield whether the folder of a run has room for checkpoints: two of them, since one is written beside the last."""
    place = Path(folder).absolute()
    there = next(filter(Path.is_dir, (place, *place.parents)))
    free = shutil.disk_usage(there).free
    needed = 2 * _CHECKPOINT_BYTES * parameters
    what = f"{format_bytes(free)} free in {folder!r} for two checkpoints of about {format_bytes(needed // 2)}"
    if free < needed:
        yield Finding("disk", "fail", what, "free disk space, or give output_dir on a larger disk")
    else:
        yield Finding("disk", "ok", what)


def check_shared_memory(ranks: int) -> Iterator[Finding]:
    """Yield whether several ranks on this machine have shared memory to talk by; nothing for one rank."""
    place = Path("/dev/shm")
    if ranks < 2 or not place.is_dir():
        return
    free = shutil.disk_usage(place).free
    what = f"{format_bytes(free)} free in /dev/shm for {ranks} ranks"
    if free < _SHARED_MEMORY:
        yield Finding("shared memory", "warn", what, "start the container with --shm-size=8g, say")
    else:
        yield Finding("shared memory", "ok", what)


def check_versions() -> Iterator[Finding]:
    """Yield the versions that count, and what is outside the ranges of this package."""
    # `packaging` is what pip itself compares versions with.
    from packaging.requirements import Requirement

    outside = []
    for text in requires("lightning-lance") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            outside.append(f"{requirement.name} is missing ({requirement.specifier})")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            outside.append(f"{requirement.name} {there} ({requirement.specifier})")
    named = ", ".join(f"{name} {version(name)}" for name in ("lightning-lance", "torch", "lightning", "pylance"))
    python = ".".join(map(str, sys.version_info[:3]))
    if outside:
        yield Finding("versions", "fail", "; ".join(outside), "pip install --upgrade lightning-lance")
    else:
        yield Finding("versions", "ok", f"Python {python}, {named}")


def _check_documents(store: TokenStore, of: str) -> Iterator[Finding]:
    """Compare the tokens of some windows with where documents begin, and look for special tokens in them."""
    eos = store.commit.eos_id
    wrong = special = 0
    windows = 0
    names: set[str] = set()
    specials = _special_ids(store)
    for split in ("train", "val"):
        total = store.num_tokens(split)
        length = min(_SAMPLE_TOKENS, total)
        if not length:
            continue
        starts = np.unique(np.linspace(0, total - length, _SAMPLED).astype(np.int64))
        tokens = store.read(starts, length, split)
        documents = store.documents(starts, length, split)
        windows += len(starts)
        begins = np.zeros(tokens.shape, bool)
        begins[documents.column("window").to_numpy(), documents.column("begin").to_numpy()] = True
        # A document begins after each EOS, and nowhere else but at the begin of the window.
        wrong += int((begins[:, 1:] != (tokens[:, :-1] == eos)).sum())
        found = np.isin(tokens, [*specials])
        special += int(found.sum())
        for number in np.unique(tokens[found]).tolist():
            names.add(specials[number])
    sample = f"in {pluralize(windows, 'window')} of {_SAMPLE_TOKENS:,} tokens"
    if wrong:
        what = f"{wrong:,} documents{of} without an EOS, or EOS within documents, {sample}"
        yield Finding("documents", "fail", what, f"lightning-lance verify {store.uri}, or build the store again")
    else:
        yield Finding("documents", "ok", f"each one{of} ends with one EOS, {sample}")
    if special:
        what = f"{special:,} special tokens ({format_list(sorted(names))}) in documents{of}, {sample}"
        yield Finding("special tokens", "fail", what, "the texts were tokenized elsewhere: build the store again")
    elif specials:
        yield Finding("special tokens", "ok", f"none of {len(specials)} in documents{of}, {sample}")
    else:
        yield Finding("special tokens", "ok", f"the tokenizer{of} has none but EOS, or is not beside the store")


def _special_ids(store: TokenStore) -> dict[int, str]:
    """Return the special tokens of a store's tokenizer but EOS, by id; none without the tokenizer."""
    try:
        tokenizer = store.tokenizer
        ids = {tokenizer.id_of(token): token for token in tokenizer.special_tokens}
    except (LightningLanceError, AttributeError):
        return {}
    ids.pop(store.commit.eos_id, None)
    return ids


def _check_overlap(store: TokenStore, of: str) -> Iterator[Finding]:
    """Look for validation documents that are in training too."""
    if not store.num_tokens("val"):
        return
    val, of_val = _heads(store, "val")
    train, of_train = _heads(store, "train")
    same = 0
    for key, count in val.items():
        if key in train:
            same += count
    total = val.total()
    total_train = train.total()
    sample = ""
    if total < of_val or total_train < of_train:
        sample = f" (a sample of {total:,} and {total_train:,} documents)"
    what = f"{same:,} of {total:,} validation documents{of} are in training too{sample}"
    if same > 0.01 * total:
        yield Finding("splits", "warn", what, "build with source.dedup=exact")
    else:
        yield Finding("splits", "ok", what)


def _heads(store: TokenStore, split: str) -> tuple[Counter[tuple[int, bytes]], int]:
    """Return the lengths and first tokens of documents to how many have them, and the number of all documents."""
    begins = store.document_begins(split)
    total = store.num_tokens(split)
    lengths = np.diff(np.append(begins, total))
    chosen = np.arange(len(begins))
    if len(chosen) > _COMPARED:
        chosen = np.linspace(0, len(begins) - 1, _COMPARED).astype(np.int64)
    head = min(_HEAD, total)
    heads: Counter[tuple[int, bytes]] = Counter()
    for low in range(0, len(chosen), 1 << 14):
        some = chosen[low : low + (1 << 14)]
        starts = np.minimum(begins[some], total - head)
        tokens = store.read(starts, head, split)
        for row, start, begin, length in zip(
            tokens, starts.tolist(), begins[some].tolist(), lengths[some].tolist(), strict=True
        ):
            heads[length, row[begin - start : begin - start + length].tobytes()] += 1
    return heads, len(begins)


def _loader_speed(loader: WindowLoader) -> float:
    """Return the tokens per second that a copy of a loader gives, once warm."""
    batches = iter(copy(loader))
    # A small store may have no more batches than these.
    for _ in islice(batches, min(3, len(loader) - 1)):
        pass
    began = time.perf_counter()
    tokens = 0
    for batch in batches:
        tokens += batch["input_ids"].numel()
        if time.perf_counter() - began > _TIMED:
            break
    batches.close()
    return tokens / max(time.perf_counter() - began, 1e-9)


def _cpu_flops() -> float:
    """Return the FLOP/s of this CPU in matrix products."""
    size = 512
    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right
    began = time.perf_counter()
    products = 0
    while time.perf_counter() - began < _TIMED_DEVICE:
        left @ right
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - began)


def check_sources(sources: Sequence[tuple[str, object]]) -> Iterator[Finding]:
    """Yield whether sources can be read.

    Args:
        sources: Name and source.
    """
    for name, source in sources:
        of = f" of {name}" if name else ""
        try:
            opened = source.open()  # type: ignore[attr-defined]
            shards = len(opened.shards)
        except LightningLanceError as error:
            yield Finding("source", "fail", f"{str(error).rstrip('.')}", f"without it, the store{of} cannot be built")
        else:
            yield Finding("source", "ok", f"{pluralize(shards, 'shard')}{of} can be read")
