"""gigatoken, the fast engine: what it is given, and what it is not, so that its ids are those of the `tokenizers` library."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from string import ascii_letters
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import offsets_and_bytes
from lightning_lance.messages.escaping import logger
from lightning_lance.process.memory import give_back, resident

_log = logger(__name__)

# Normalizers in which the engines were compared over all characters.
_NORMALIZERS = {"Sequence", "NFC", "Prepend", "Replace"}

# Characters of ASCII that NFC makes of others, and those that it makes others of where a mark follows.
_MADE_BY_NFC = frozenset("`;K")
_CHANGED_BY_NFC = frozenset("<=>" + ascii_letters)
# What only `tokenizers` takes notice of.
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def _cores() -> int:
    """Count the cores that this process may use, as gigatoken does: it has no more workers than that."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Of a container, under either version of control groups: microseconds of all cores in a period.
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join(Path("/sys/fs/cgroup", name).read_text() for name in names).split()
            if int(quota) > 0:
                cores = min(cores, int(quota) // int(period))
    with suppress(ValueError):
        cores = min(cores, int(os.environ.get("RAYON_NUM_THREADS", "")) or cores)
    return max(1, cores)


# Threads that encode. One thread that reads is as fast as four.
_CORES = _cores()
ENCODERS = min(4, _CORES)
# Larger batches are shared out among all cores, as are all where there are more cores than threads that encode. Then what the
# workers made is copied together, so where there are not, a thread asks for less at a time than two workers would take.
_SHARED_BYTES, _ALONE_BYTES = 12 << 20, 2 << 20
# By how much a process may grow before an engine is given up: to make one takes as long as to encode ten megabytes. Where the
# system does not tell the memory, it is given up after so much text.
_ROOM_BYTES, _MOST_BYTES = 400 << 20, 512 << 20
# Text between two looks at the memory; at the first one an engine is still small.
_LOOK_BYTES = 8 << 20


class Encoded(NamedTuple):
    """Token ids of n texts: `ids[offsets[i]:offsets[i + 1]]` are those of text i.

    Attributes:
        ids: (total,) of the dtype in which the tokens are stored; uint32 should some not fit.
        offsets: (n + 1,) int64.
    """

    ids: np.ndarray
    offsets: np.ndarray


class GigatokenEngine:
    """gigatoken, for one tokenizer; several threads may ask at a time.

    Of byte-level tokenizers it has a worker for each core, which keeps the ids of all words that it has seen, without a bound.
    So the engine is given up when memory has grown by some hundreds of megabytes since it was small, and another one is made.

    Args:
        spec: What gigatoken loads.
        dtype: In which tokens are stored.

    Raises:
        Exception: Of gigatoken's, if it cannot.
    """

    def __init__(self, spec: str, dtype: np.dtype[Any]) -> None:
        self._spec, self._making = spec, threading.Lock()
        self._engine = self._made()
        self._dtype = dtype if self._engine.vocab_size - 1 <= np.iinfo(dtype).max else np.dtype(np.uint32)
        # SentencePiece has no workers: each call has its own words, so it is a large one.
        self._workers = type(self._engine.backend).__name__ == "BPETokenizer"
        # Bytes of text that the engine has encoded, when to look at the memory again, and the least that it was since the first
        # look: most of that is not the engine's, and another engine would not make it less.
        self._size, self._next = 0, _LOOK_BYTES
        self._before: int | None = None

    def _made(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._spec)

    def _count(self, size: int) -> None:
        """Count text that was encoded, and make another engine if this one has grown; others go on with it meanwhile."""
        with self._making:
            self._size += size
            if self._size < self._next:
                return
            if self._before is None:
                give_back()  # the engine before this one is freed, and may still be held
            now, before = resident(), self._before
            if self._size > _MOST_BYTES if now is None else before is not None and now - before > _ROOM_BYTES:
                self._engine, self._size, self._before = self._made(), 0, None
            elif now is not None:
                self._before = now if before is None else min(now, before)
            self._next = self._size + _LOOK_BYTES

    def encode(self, texts: pa.Array) -> Encoded | None:
        """Encode large_string texts without a copy of them; None if gigatoken raises. May be called by several threads."""
        borders, data = offsets_and_bytes(texts)
        size = int(borders[-1] - borders[0])
        shared = size > _SHARED_BYTES or _CORES > ENCODERS
        calls = _calls(borders) if self._workers and not shared else [(0, len(texts))]
        parallel = None if self._workers or shared else False
        try:
            parts = [self._call(borders[low : high + 1], data, parallel) for low, high in calls]
            self._count(size)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # its panics are no Exceptions
            _log.warning("gigatoken raised: %s", error)
            return None
        counts = np.concatenate([counts for _, counts in parts])
        return Encoded(np.concatenate([ids for ids, _ in parts]), np.append(0, np.cumsum(counts)))

    def _call(self, borders: np.ndarray, data: np.ndarray, parallel: bool | None) -> tuple[np.ndarray, np.ndarray]:
        """Encode the texts between some borders; gives all ids, and how many each text has."""
        import awkward as ak

        strings = ak.contents.ListOffsetArray(
            ak.index.Index64(borders),
            ak.contents.NumpyArray(data, parameters={"__array__": "char"}),
            parameters={"__array__": "string"},
        )
        layout = self._engine.encode_batch(ak.Array(strings), parallel=parallel).layout
        lows, ids = np.asarray(layout.offsets.data), np.asarray(layout.content.data)
        ids = ids[lows[0] : lows[-1]]
        if len(ids) and int(ids.max()) > np.iinfo(self._dtype).max:
            raise ValueError(f"it gave the id {int(ids.max())}, which no {self._dtype} holds")
        # Narrowed while they are in the caches.
        return ids.astype(self._dtype), np.diff(lows)


def _calls(borders: np.ndarray) -> Iterator[tuple[int, int]]:
    """Share texts out among calls, as (first, end) places: as much to each as one worker takes, one text at least."""
    low, last = 0, len(borders) - 1
    while low < last:
        high = max(low + 1, int(np.searchsorted(borders, borders[low] + _ALONE_BYTES)) - 1)
        yield low, min(high, last)
        low = high


def load_fast(spec: str, fields: dict[str, Any], dtype: np.dtype[Any]) -> GigatokenEngine | None:
    """Load a `tokenizer.json`; None if gigatoken cannot.

    Args:
        spec: Its text, as `json.dumps` writes `fields` with `ensure_ascii=False`.
        fields: The same, parsed.
        dtype: In which its tokens are stored.
    """
    # gigatoken would turn the spelling of a special token into its id; without these entries it is plain text.
    added = fields.get("added_tokens") or []
    plain = [token for token in added if not token["special"]]
    # In the text: to write all of it again takes as long as to load it.
    before, after = (json.dumps(tokens, ensure_ascii=False) for tokens in (added, plain))
    spec = spec.replace(before, after, 1)
    try:
        return GigatokenEngine(spec, dtype)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # its panics are no Exceptions
        _log.info("gigatoken cannot load this tokenizer (%s); the tokenizers library encodes instead.", error)
        return None


def is_supported(fields: dict[str, Any]) -> bool:
    """Return whether a tokenizer is free of what gigatoken (0.10) takes no notice of, or was not compared in."""
    pre_tokenizer = json.dumps(fields.get("pre_tokenizer"))
    if not {*_types(fields.get("normalizer"))} <= _NORMALIZERS:
        return False
    if any(fields["model"].get(affix) for affix in _AFFIXES) or not _finds_added_tokens(fields):
        return False
    return '"use_regex": false' not in _without_split(pre_tokenizer)


def _finds_added_tokens(fields: dict[str, Any]) -> bool:
    """Return whether gigatoken finds the added tokens of a tokenizer in all texts where `tokenizers` does.

    gigatoken looks for all of them at once. `tokenizers` looks first for those that are not normalized, in the text as it is,
    and then for the others, in what is left of it, normalized; and a special token that is plain text hides what overlaps it.
    """
    added = fields.get("added_tokens") or []
    plain = [token for token in added if not token["special"]]
    special = [token["content"] for token in added if token["special"]]
    first = [token["content"] for token in plain if not token["normalized"]]
    then = [token["content"] for token in plain if token["normalized"]]
    if any(token["single_word"] for token in added):
        return False
    spaced = any(character.isspace() for content in (*first, *then) for character in content)
    if spaced and any(token["lstrip"] or token["rstrip"] for token in plain):
        return False
    steps = {*_types(fields.get("normalizer"))} - {"Sequence"}
    if steps and not (steps == {"NFC"} and all(map(_is_left_by_nfc, then))):
        return not then and not _overlap(special, first)
    return not _overlap(first, then) and not _overlap(special, [*first, *then])


def _is_left_by_nfc(content: str) -> bool:
    """Return whether normalized text has this wherever the text has it, and nowhere else."""
    return content.isascii() and _MADE_BY_NFC.isdisjoint(content) and content[-1:] not in _CHANGED_BY_NFC


def _overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether one of some and one of others may be in a text at places that overlap."""
    begins = {other[:end] for other in others for end in range(1, len(other) + 1)}
    ends = {other[begin:] for other in others for begin in range(len(other))}
    for text in some:
        places = range(len(text))
        if any(text[place:] in begins or text[: place + 1] in ends for place in places):
            return True
    # Within each other, without an end in common.
    return _within(some, others) or _within(others, some)


def _within(some: Sequence[str], others: Sequence[str]) -> bool:
    joined = "\0".join(others)
    return any(text in joined for text in some if text)


def cuts_at_spaces(fields: dict[str, Any]) -> bool:
    """Return whether a text has the same ids if it is cut before a space between two visible characters of ASCII.

    So it is if the tokenizer looks at words alone, and no word goes on behind a space: with all regular expressions of
    byte-level tokenizers that gigatoken knows.
    """
    added = [token for token in fields.get("added_tokens") or [] if not token["special"]]
    mixed = any(" " in token["content"] and token["content"].strip() for token in added)
    if mixed or any(token["lstrip"] or token["rstrip"] for token in added):
        return False
    pre_tokenizer = json.dumps(fields.get("pre_tokenizer"))
    words = '"ByteLevel"' in pre_tokenizer and '"add_prefix_space": true' not in pre_tokenizer
    return words and {*_types(fields.get("normalizer"))} <= {"Sequence", "NFC"}


def _without_split(pre_tokenizer: str) -> str:
    # Behind a Split of its own (Llama 3, Qwen), ByteLevel needs no regular expression, and gigatoken takes the Split's.
    return "" if '"type": "Split"' in pre_tokenizer else pre_tokenizer


def _types(part: Any) -> Iterator[str]:
    if part is not None:
        yield part["type"]
        for inner in part.get("normalizers", ()):
            yield from _types(inner)
