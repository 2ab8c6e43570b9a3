"""What is known of a store beside its tokens: the note of a commit, and where a stream lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Raised when stores of the version before can no longer be read.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Commit:
    """What a commit says beside its tokens. All counts are of the whole store, up to and with this commit.

    Attributes:
        fingerprint: Hash of the recipe.
        recipe: All that decides the stored tokens; JSON types.
        pin: What finds the same shards again (`OpenedSource.pin`).
        shards: Hash of the names of the shards, in reading order.
        eos_token: The token that ends every document.
        eos_id: Its id.
        vocab_size: Largest id of the tokenizer plus one.
        shard: Cursor: place of the shard to read next.
        row: Cursor: first row of that shard that is not in the store.
        documents: Documents.
        tokens: Tokens, EOS included.
        text_bytes: Bytes of text.
        skipped: Documents left out, by reason (`null`, `empty`).
        languages: Documents by language.
        exhausted: Whether the source has no more documents.
    """

    fingerprint: str
    recipe: dict[str, Any]
    pin: dict[str, Any]
    shards: str
    eos_token: str
    eos_id: int
    vocab_size: int
    shard: int = 0
    row: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    exhausted: bool = False


class StreamExtent(NamedTuple):
    """Where a stream lies among the tokens of its split: `num_tokens` tokens from `start` on."""

    language: str
    start: int
    num_tokens: int
