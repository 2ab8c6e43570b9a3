"""gigatoken, the fast engine: what it is given, and what it is not, so that its ids are those of the `tokenizers` library."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
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


class Encoded(NamedTuple):
    """Token ids of n texts: `ids[offsets[i]:offsets[i + 1]]` are those of text i; (total,) uint32 and (n + 1,) int64."""

    ids: np.ndarray
    offsets: np.ndarray


def newer_characters(texts: pa.Array) -> np.ndarray | None:
    """Tell which of some texts hold a character that the engines may see differently, as (n,) bool; None if none does."""
    other = np.flatnonzero(~np.asarray(pc.string_is_ascii(texts)))
    if not len(other):
        return None
    found = np.asarray(pc.match_substring_regex(texts.take(pa.array(other)), _NEWER_CLASS))
    if not found.any():
        return None
    apart = np.zeros(len(texts), bool)
    apart[other[found]] = True
    return apart


def load_fast(fields: dict[str, Any]) -> Any:
    """Load the fields of a `tokenizer.json`; None if gigatoken cannot."""
    import gigatoken

    # gigatoken would turn the spelling of a special token into its id; without these entries it is plain text.
    plain = [token for token in fields.get("added_tokens") or [] if not token["special"]]
    try:
        return gigatoken.Tokenizer.from_json(json.dumps({**fields, "added_tokens": plain}))
    except Exception as error:
        _log.info("gigatoken cannot load this tokenizer (%s); the tokenizers library encodes instead.", error)
        return None


def encode_fast(fast: Any, texts: pa.Array) -> Encoded | None:
    """Encode large_string texts without a copy of them; None if gigatoken raises."""
    import awkward as ak

    offsets, data = string_buffers(texts)
    strings = ak.contents.ListOffsetArray(
        ak.index.Index64(offsets),
        ak.contents.NumpyArray(data, parameters={"__array__": "char"}),
        parameters={"__array__": "string"},
    )
    try:
        layout = fast.encode_batch(ak.Array(strings)).layout
    except Exception as error:
        _log.warning("gigatoken raised: %s", error)
        return None
    lows, ids = np.asarray(layout.offsets.data), np.asarray(layout.content.data)
    return Encoded(ids[lows[0] : lows[-1]], lows - lows[0])


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
