"""gigatoken, the fast engine: what it is given, and what it is not, so that its ids are those of the `tokenizers` library."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_log = logging.getLogger(__name__)

# Normalizers in which the engines were compared over all characters.
_NORMALIZERS = {"Sequence", "NFC", "Prepend", "Replace"}

# Characters that Unicode has got, or has given a combining class, after the tables that one of the engines has: they disagree
# on what is a letter (Unicode 17) and on the order of accents (since Unicode 10). A text that holds one goes to `tokenizers`.
NEWER = (
    "7FD 88F 897-89F 8CA-8D3 9FE C3C C5C CDC D3B-D3C EBA 1715 1ABF-1ADD 1AE0-1AEB 1DF6-1DFA A7CE-A7CF A7D2 A7D4 "
    "A7F1 A82C 105C0-105FF 10940-10959 10D24-10D27 10D69-10D6D 10EAB-10EAC 10EC5-10EC7 10EFA-10EFF 10F46-10F50 "
    "10F82-10F85 11070 1133B 11380-113FF 1145E 11839-1183A 11900-1195F 119E0 11A34 11A47 11A99 11B60-11B67 "
    "11D42-11D45 11D97 11DB0-11DE9 11F41-11F42 16100-1613F 16D40-16D7F 16EA0-16ED3 16FF0-16FF6 187F8-187FF "
    "18D09-18D1E 18D80-18DF2 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF 1E6C0-1E6FF 2B73A-2B73F "
    "2CEA2-2CEAD 323B0-33479"
)
_NEWER_CLASS = "[" + re.sub(r"[0-9A-F]+", r"\\x{\g<0>}", NEWER).replace(" ", "") + "]"


def _beginnings() -> np.ndarray:
    """Tell with which two bytes such characters begin in UTF-8, as (256, 256) bool: few texts have any of them."""
    begins = np.zeros((256, 256), bool)
    for part in NEWER.split():
        low, high = (int(code, 16) for code in (part.split("-") * 2)[:2])
        for code in range(low, high + 1):
            begins[tuple(chr(code).encode()[:2])] = True
    return begins


_BEGINNINGS = _beginnings()
_LEADS: np.ndarray = np.logical_or.reduce(_BEGINNINGS, axis=1)
_NOT_ASCII = np.uint64(0x8080808080808080)

# Threads that encode, each with an engine of its own, of 30 MB and more: an engine does one call at a time. One thread that
# reads is as fast as four.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ENCODERS = min(4, _CORES)
# By how much a process may grow before engines are given up, and the text that each has encoded by then at least: to make one
# takes as long as to encode ten megabytes. Where the system does not tell the memory, they are given up after so much text.
_ROOM_BYTES, _LEAST_BYTES, _MOST_BYTES = 400 << 20, 32 << 20, 512 << 20
# Larger batches are shared out among all cores, as are all where there are more cores than threads that encode.
_SHARED_BYTES = 8 << 20


class Encoded(NamedTuple):
    """Token ids of n texts: `ids[offsets[i]:offsets[i + 1]]` are those of text i; (total,) uint32 and (n + 1,) int64."""

    ids: np.ndarray
    offsets: np.ndarray


def newer_characters(texts: pa.Array) -> np.ndarray | None:
    """Tell which of some texts hold a character that the engines may see differently, as (n,) bool; None if none does."""
    borders, data = string_buffers(texts)
    low, high = int(borders[0]), int(borders[-1])
    # Eight bytes at a time, then each byte of those that are not all ASCII: much faster than the expression.
    words = data[low : high - (high - low) % 8].view(np.uint64)
    other = np.flatnonzero((words & _NOT_ASCII) != 0)
    found = np.flatnonzero(_LEADS[words[other].view(np.uint8)])
    places = np.concatenate([low + other[found // 8] * 8 + found % 8, np.arange(low + 8 * len(words), high)])
    places = places[places < high - 1]
    places = places[_BEGINNINGS[data[places], data[places + 1]]]
    if not len(places):
        return None
    some = np.unique(np.searchsorted(borders, places, side="right") - 1)
    newer = np.asarray(pc.match_substring_regex(texts.take(pa.array(some)), _NEWER_CLASS))
    if not newer.any():
        return None
    apart = np.zeros(len(texts), bool)
    apart[some[newer]] = True
    return apart


class _Engine:
    """An engine, and the bytes of text that it has encoded."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.size = tokenizer, 0


class FastEngines:
    """The engines of a tokenizer: made when they are needed, one for each thread that encodes at a time.

    An engine keeps the ids of all words that it has seen, without a bound. So it is given up when memory has grown by some
    hundreds of megabytes, and another one is made.

    Args:
        spec: What gigatoken loads.
        first: The first of them.
    """

    def __init__(self, spec: str, first: Any) -> None:
        self._spec = spec
        # The last that was put here is taken first: an engine that knows words, before None, which is one to be made.
        self._free: queue.LifoQueue[_Engine | None] = queue.LifoQueue()
        for engine in [*[None] * (ENCODERS - 1), _Engine(first)]:
            self._free.put(engine)
        self._before = _resident()

    @contextmanager
    def _one(self) -> Iterator[_Engine]:
        engine = self._free.get()
        try:
            if engine is None:
                import gigatoken

                engine = _Engine(gigatoken.Tokenizer.from_json(self._spec))
            yield engine
        finally:
            self._free.put(None if engine is None or self._is_large(engine) else engine)

    def _is_large(self, engine: _Engine) -> bool:
        resident = _resident()
        if resident is None or self._before is None:
            return engine.size > _MOST_BYTES
        return engine.size > _LEAST_BYTES and resident - self._before > _ROOM_BYTES

    def encode(self, texts: pa.Array) -> Encoded | None:
        """Encode large_string texts without a copy of them; None if gigatoken raises. May be called by several threads."""
        import awkward as ak

        offsets, data = string_buffers(texts)
        strings = ak.contents.ListOffsetArray(
            ak.index.Index64(offsets),
            ak.contents.NumpyArray(data, parameters={"__array__": "char"}),
            parameters={"__array__": "string"},
        )
        shared = offsets[-1] - offsets[0] > _SHARED_BYTES or _CORES > ENCODERS
        try:
            with self._one() as engine:
                layout = engine.tokenizer.encode_batch(ak.Array(strings), parallel=None if shared else False).layout
                engine.size += int(offsets[-1] - offsets[0])
        except Exception as error:
            _log.warning("gigatoken raised: %s", error)
            return None
        lows, ids = np.asarray(layout.offsets.data), np.asarray(layout.content.data)
        return Encoded(ids[lows[0] : lows[-1]], lows - lows[0])


def _resident() -> int | None:
    """Tell how much memory this process has, in bytes; None where the system does not say so."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def load_fast(fields: dict[str, Any]) -> FastEngines | None:
    """Load the fields of a `tokenizer.json`; None if gigatoken cannot."""
    import gigatoken

    # gigatoken would turn the spelling of a special token into its id; without these entries it is plain text.
    plain = [token for token in fields.get("added_tokens") or [] if not token["special"]]
    spec = json.dumps({**fields, "added_tokens": plain})
    try:
        return FastEngines(spec, gigatoken.Tokenizer.from_json(spec))
    except Exception as error:
        _log.info("gigatoken cannot load this tokenizer (%s); the tokenizers library encodes instead.", error)
        return None


def gigatoken_knows(fields: dict[str, Any]) -> bool:
    """Tell whether a tokenizer is free of what gigatoken (0.10) takes no notice of, or was not compared in."""
    pre_tokenizer = json.dumps(fields.get("pre_tokenizer"))
    whole_words = any(token["single_word"] for token in fields.get("added_tokens") or [])
    if not {*_types(fields.get("normalizer"))} <= _NORMALIZERS:
        return False
    return not whole_words and '"use_regex": false' not in _without_split(pre_tokenizer)


def _without_split(pre_tokenizer: str) -> str:
    # Behind a Split of its own (Llama 3, Qwen), ByteLevel needs no regular expression, and gigatoken takes the Split's.
    return "" if '"type": "Split"' in pre_tokenizer else pre_tokenizer


def _types(part: Any) -> Iterator[str]:
    if part is not None:
        yield part["type"]
        for inner in part.get("normalizers", ()):
            yield from _types(inner)


def string_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Lay numpy over the memory of a large_string array: (n + 1,) int64 offsets and the uint8 bytes."""
    _, offsets, data = texts.buffers()
    ends = (
        np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if offsets
        else np.zeros(1, np.int64)
    )
    return ends, np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
