"""gigatoken, the fast engine, used only where its ids are those of the `tokenizers` library."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from string import ascii_letters
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import offsets_and_bytes
from lightning_lance.messages.escaping import logger
from lightning_lance.process.memory import give_back, resident
from lightning_lance.tokenization.tokenizer_json import (
    Fields,
    added_tokens,
    has_affixes,
    plain_added_tokens,
    special_spellings,
    spellings_of,
)

_log = logger(__name__)

# Normalizers in which the engines were compared over all characters.
_NORMALIZERS = {"Sequence", "NFC", "Prepend", "Replace"}

# ASCII characters that NFC makes from others, and those that it combines with a following mark.
_MADE_BY_NFC = frozenset("`;K")
_CHANGED_BY_NFC = frozenset("<=>" + ascii_letters)


def _cores() -> int:
    """Return the number of cores that this process may use, which gigatoken takes as its number of workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The limit of a container, in microseconds of core time per period, in control groups version 2 and 1.
    group = Path("/sys/fs/cgroup")
    for files in ([group / "cpu.max"], [group / "cpu/cpu.cfs_quota_us", group / "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join(map(Path.read_text, files)).split()
            if int(quota) > 0:
                cores = min(cores, int(quota) // int(period))
    with suppress(ValueError):
        cores = min(cores, int(os.environ.get("RAYON_NUM_THREADS", "")) or cores)
    return max(1, cores)


# Encoding threads; one reading thread keeps up with four.
_CORES = _cores()
ENCODERS = min(4, _CORES)
# Larger batches are split over all cores. So is every batch if there are more cores than encoding threads.
_SHARED_BYTES = 12 << 20
# Splitting a batch over cores costs a copy. With few cores, each call therefore stays below 2 MB, which one core encodes alone.
_ALONE_BYTES = 2 << 20
# Growth of the process after which an engine is replaced. Creating one takes as long as encoding ten megabytes.
_ROOM_BYTES = 400 << 20
# Encoded text after which an engine is replaced if the memory of the process is unknown.
_MOST_BYTES = 512 << 20
# Text between two checks of the memory; at the first one an engine is still small.
_LOOK_BYTES = 8 << 20


class Encoded(NamedTuple):
    """Token ids of n texts: `ids[offsets[i]:offsets[i + 1]]` are those of text i.

    Attributes:
        ids: (total,) in the dtype of the store, or uint32 if an id does not fit.
        offsets: (n + 1,) int64.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def ids_of(self, text: int) -> np.ndarray:
        """Return the ids of one of the texts."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]


class GigatokenEngine:
    """gigatoken with one tokenizer, for several threads at a time.

    For byte-level tokenizers it has a worker for each core, which caches the ids of all words without a limit. So the engine is
    replaced when the process has grown by hundreds of megabytes since the engine was small.

    Args:
        spec: A tokenizer.json.
        dtype: The dtype of the stored tokens.

    Raises:
        Exception: If gigatoken cannot load it.
    """

    def __init__(self, spec: str, dtype: np.dtype[Any]) -> None:
        self._spec = spec
        self._replacing = threading.Lock()
        self._engine = self._made()
        self._dtype = dtype if self._engine.vocab_size - 1 <= np.iinfo(dtype).max else np.dtype(np.uint32)
        # With SentencePiece it has no workers, and each call has its own cache.
        self._workers = type(self._engine.backend).__name__ == "BPETokenizer"
        # Bytes of text encoded by the engine, now and at the next check of the memory.
        self._size = 0
        self._next = _LOOK_BYTES
        # Least memory of the process since the first check. Growth is measured from here, not from process start: memory of
        # other code would otherwise trigger a new engine at each check.
        self._least: int | None = None

    def _made(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._spec)

    def _count(self, size: int) -> None:
        """Count encoded text, and replace the engine if the process has grown. Other threads finish with the old one."""
        with self._replacing:
            self._size += size
            if self._size < self._next:
                return
            if self._least is None:
                give_back()  # glibc may still hold the memory of the last engine
            memory = resident()
            if self._has_grown(memory):
                self._engine = self._made()
                self._size = 0
                self._least = None
            elif memory is not None:
                self._least = min(memory, self._least or memory)
            self._next = self._size + _LOOK_BYTES

    def _has_grown(self, memory: int | None) -> bool:
        if memory is None:
            return self._size > _MOST_BYTES
        return self._least is not None and memory - self._least > _ROOM_BYTES

    def encode(self, texts: pa.Array) -> Encoded | None:
        """Encode large_string texts without copying them; None if gigatoken raises. Safe to call from several threads."""
        borders, data = offsets_and_bytes(texts)
        size = int(borders[-1] - borders[0])
        calls: Iterable[tuple[int, int]] = [(0, len(texts))]
        parallel = None  # gigatoken decides
        if size <= _SHARED_BYTES and _CORES <= ENCODERS:
            if self._workers:
                calls = _calls(borders)
            else:
                parallel = False
        try:
            parts = [self._call(borders[low : high + 1], data, parallel) for low, high in calls]
            self._count(size)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # its panics are not Exceptions
            _log.warning("gigatoken raised: %s", error)
            return None
        ids, counts = zip(*parts, strict=True)
        return Encoded(np.concatenate(ids), np.append(0, np.cumsum(np.concatenate(counts))))

    def _call(self, borders: np.ndarray, data: np.ndarray, parallel: bool | None) -> tuple[np.ndarray, np.ndarray]:
        """Encode the texts between borders. Returns all ids, and the number of ids of each text."""
        import awkward as ak

        strings = ak.contents.ListOffsetArray(
            ak.index.Index64(borders),
            ak.contents.NumpyArray(data, parameters={"__array__": "char"}),
            parameters={"__array__": "string"},
        )
        layout = self._engine.encode_batch(ak.Array(strings), parallel=parallel).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        if len(ids) and int(ids.max()) > np.iinfo(self._dtype).max:
            raise ValueError(f"its id {int(ids.max())} does not fit into {self._dtype}")
        # Narrowed while they are in the processor's cache.
        return ids.astype(self._dtype), np.diff(offsets)


def _calls(borders: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, end) texts of each call: as much as one worker takes alone, at least one text."""
    low = 0
    last = len(borders) - 1
    while low < last:
        high = max(low + 1, int(np.searchsorted(borders, borders[low] + _ALONE_BYTES)) - 1)
        yield low, min(high, last)
        low = high


def load_fast(spec: str, fields: dict[str, Any], dtype: np.dtype[Any]) -> GigatokenEngine | None:
    """Load a `tokenizer.json`; None if gigatoken cannot. `spec` is what `json.dumps` writes, with `ensure_ascii=False`."""
    # Without these entries, gigatoken takes the spelling of a special token as plain text.
    added = added_tokens(fields)
    plain = plain_added_tokens(fields)
    # Replaced in the text, since writing all of it again takes as long as loading it.
    spec = spec.replace(json.dumps(added, ensure_ascii=False), json.dumps(plain, ensure_ascii=False), 1)
    try:
        return GigatokenEngine(spec, dtype)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # its panics are not Exceptions
        _log.info("gigatoken cannot load this tokenizer (%s); the tokenizers library encodes instead.", error)
        return None


def is_supported(fields: dict[str, Any]) -> bool:
    """Return whether gigatoken (0.10) supports a tokenizer and was compared with `tokenizers` on its parts."""
    if not {*_types(fields.get("normalizer"))} <= _NORMALIZERS:
        return False
    # gigatoken ignores affixes.
    if has_affixes(fields["model"]) or not _finds_added_tokens(fields):
        return False
    # After a Split of its own (Llama 3, Qwen), ByteLevel needs no regular expression, and gigatoken uses that of the Split.
    pre_tokenizer = json.dumps(fields.get("pre_tokenizer"))
    return '"type": "Split"' in pre_tokenizer or '"use_regex": false' not in pre_tokenizer


def _finds_added_tokens(fields: dict[str, Any]) -> bool:
    """Return whether gigatoken finds the added tokens of a tokenizer in the same places as `tokenizers`.

    gigatoken looks for all of them at once. `tokenizers` first looks for those that are not normalized in the text, then for
    the others in the rest of it, normalized. A special token, which is plain text, hides tokens that overlap it.
    """
    plain = plain_added_tokens(fields)
    special = special_spellings(fields)
    first: list[str] = []
    then: list[str] = []
    for token in plain:
        if token["normalized"]:
            then.append(token["content"])
        else:
            first.append(token["content"])
    if _any_has("single_word", added_tokens(fields)):
        return False
    has_space = any(map(str.isspace, "".join([*first, *then])))
    if has_space and _take_spaces(plain):
        return False
    steps = {*_types(fields.get("normalizer"))} - {"Sequence"}
    if steps and not (steps == {"NFC"} and all(map(_is_left_by_nfc, then))):
        return not then and not _overlap(special, first)
    return not _overlap(first, then) and not _overlap(special, [*first, *then])


def _is_left_by_nfc(content: str) -> bool:
    """Return whether NFC leaves all occurrences of a token, and makes no new ones."""
    return content.isascii() and _MADE_BY_NFC.isdisjoint(content) and content[-1:] not in _CHANGED_BY_NFC


def _overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether a string of `some` may overlap one of `others` in a text."""
    begins: set[str] = set()
    ends: set[str] = set()
    for other in others:
        for place in range(len(other)):
            begins.add(other[: place + 1])
            ends.add(other[place:])
    for text in some:
        for place in range(len(text)):
            if text[place:] in begins or text[: place + 1] in ends:
                return True
    # One may also lie in the middle of the other.
    return _within(some, others) or _within(others, some)


def _within(some: Sequence[str], others: Sequence[str]) -> bool:
    joined = "\0".join(others)
    return any(text in joined for text in some if text)


def cuts_at_spaces(fields: dict[str, Any]) -> bool:
    """Return whether a text keeps its ids if it is cut before a space between two visible ASCII characters.

    It does if the tokenizer encodes each word separately and no word continues after a space. That holds for all regular
    expressions of byte-level tokenizers that gigatoken knows.
    """
    added = plain_added_tokens(fields)
    if any(map(_holds_space, spellings_of(added))) or _take_spaces(added):
        return False
    pre_tokenizer = json.dumps(fields.get("pre_tokenizer"))
    words = '"ByteLevel"' in pre_tokenizer and '"add_prefix_space": true' not in pre_tokenizer
    return words and {*_types(fields.get("normalizer"))} <= {"Sequence", "NFC"}


def _holds_space(content: str) -> bool:
    """Return whether a token has a space among other characters."""
    return " " in content and bool(content.strip())


def _take_spaces(added: Sequence[Fields]) -> bool:
    """Return whether one of some added tokens takes the spaces beside it."""
    return _any_has("lstrip", added) or _any_has("rstrip", added)


def _any_has(option: str, added: Sequence[Fields]) -> bool:
    """Return whether one of some added tokens has an option."""
    return any(token[option] for token in added)


def _types(part: Any) -> Iterator[str]:
    if part is not None:
        yield part["type"]
        for inner in part.get("normalizers", ()):
            yield from _types(inner)
