"""From texts to token ids, fast, with the same ids as the `tokenizers` library.

Three rules hold for every tokenizer: text that spells a special token is encoded as plain text; nothing is added or removed (no
BOS, no template of a post-processor, no truncation); packing adds the EOS token at the end of a document.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import offsets_and_bytes
from lightning_lance.errors import ConfigError, described, is_count
from lightning_lance.tokenization.engine_comparison import differing_characters
from lightning_lance.tokenization.gigatoken import Encoded, GigatokenEngine, cuts_at_spaces, is_supported, load_fast
from lightning_lance.tokenization.losses import Losses
from lightning_lance.tokenization.special_tokens import EOS_SPELLINGS, check_special_tokens, find_eos
from lightning_lance.tokenization.tokenizer_checks import check_form, check_ids
from lightning_lance.tokenization.tokenizer_json import (
    UNUSED,
    added_tokens,
    bytes_of_characters,
    canonical,
    digest_of,
    fields_in_use,
    is_byte_level,
    other_digests,
    special_spellings,
)
from lightning_lance.tokenization.unicode_tables import KNOWN, SplitTexts, split_at_new_characters

# To compare the engines, one document per 16 MB of text is encoded by both, and several of the first batch. Of a long one, a
# piece of 4 KB is taken.
_COMPARE_EVERY = 16 << 20
_COMPARE_BYTES = 4_000
_COMPARE_FIRST = 16

# Text per call of the `tokenizers` library, which needs up to 150 times as much memory.
_REFERENCE_BYTES = 2 << 20


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest dtype that holds every id: uint16 for up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Pieces(NamedTuple):
    """The bytes of the tokens of a byte-level tokenizer, by id.

    Attributes:
        spelled: (ids,) large_binary.
        sizes: (ids,) int64: how many they are.
    """

    spelled: pa.LargeBinaryArray
    sizes: np.ndarray


class Tokenizer:
    """A `tokenizer.json`, encoded by gigatoken if possible, else by the `tokenizers` library.

    Args:
        spec: Text of a `tokenizer.json`.
        eos_token: The token that ends a document; None takes the first of `EOS_SPELLINGS` in the vocabulary.
        engine: `auto`, or `tokenizers` to never use gigatoken.

    Raises:
        ConfigError: If `spec` is not a tokenizer, or has no such EOS token.
    """

    def __init__(self, spec: str, eos_token: str | None = None, engine: str = "auto") -> None:
        import tokenizers

        # Otherwise the library prints a warning in every process that forks after the first batch.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        try:
            fields = json.loads(spec)
            check_form(fields)
            fields = fields_in_use(fields)
            # Kept as text: the parsed fields are a hundred thousand objects for the garbage collector to walk.
            self._spec = json.dumps(fields, ensure_ascii=False)
            self._reference = tokenizers.Tokenizer.from_str(self._spec)
            vocabulary = self._reference.get_vocab(with_added_tokens=True)
            check_ids(added_tokens(fields), vocabulary)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the Rust library raises bare Exception, and its panics are not Exceptions
            raise ConfigError(
                f"This is not a tokenizer.json of the tokenizers library: {error}; use one that the library has written."
            ) from error
        self._engine = engine
        self._also: list[str] = []
        self._reference.encode_special_tokens = True
        self.special_tokens = special_spellings(fields)
        self.eos_token = find_eos(eos_token, vocabulary, self.special_tokens)
        self.eos_id: int = vocabulary[self.eos_token]
        self.vocab_size: int = max(vocabulary.values()) + 1
        with _encoding():
            check_special_tokens(self._reference, fields, vocabulary, self.eos_token)
        self.digest = digest_of(canonical(fields), self.eos_id)
        self._dtype = token_dtype(self.vocab_size)
        self._fast: GigatokenEngine | None = None
        self._differing = KNOWN
        if engine == "auto" and is_supported(fields):
            fast = load_fast(self._spec, fields, self._dtype)
            differing = None if fast is None else differing_characters(fields)
            if differing is not None:
                self._fast = fast
                self._differing = differing
        self.losses = Losses(fields, self._reference)
        # Whether a text may be cut at spaces.
        self._at_spaces = cuts_at_spaces(fields)
        # The number of comparisons, and the text since the last one.
        self._compared = 0
        self._since = 0
        self._comparing = threading.Lock()

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, eos_token={self.eos_token!r}, eos_id={self.eos_id})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._spec, self.eos_token, self._engine)

    @property
    def other_digests(self) -> tuple[str, ...]:
        """Digests of this tokenizer in earlier versions, which depend on the spelling of its file. Stores may have them."""
        found = other_digests(json.loads(self._spec), self._reference.to_str(), self.eos_id)
        return tuple(dict.fromkeys([*found, *self._also]))

    def known_as(self, digest: str | None) -> Tokenizer:
        """Add a digest that stores may have for this tokenizer, if there is one. Returns the tokenizer."""
        self._also += filter(None, [digest])
        return self

    @property
    def engine(self) -> str:
        """The engine in use: `gigatoken` or `tokenizers`."""
        if self._fast is None:
            return "tokenizers"
        return "gigatoken"

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """Encode texts. Safe to call from several threads.

        Samples are encoded by `tokenizers` too. At the first difference, gigatoken is replaced by it.

        Args:
            texts: A large_string array without nulls.
        """
        fast = self._fast
        if fast is None or not len(texts):
            return self._encode_reference(texts)
        parts = split_at_new_characters(texts, self._at_spaces, self._differing)
        if parts is not None:
            return self._encode_parts(parts)
        encoded = fast.encode(texts)
        with self._comparing:  # all threads wait for the first comparison
            if self._fast is None:
                return self._encode_reference(texts)
            reason = "failed"
            if encoded is not None:
                different = self._first_difference(fast, texts, encoded)
                if different is None:
                    return encoded
                reason = f"gave other ids for the text {different[:60]!r}"
            self._fast = None
        warnings.warn(f"gigatoken {reason}: the tokenizers library encodes from now on, more slowly.", stacklevel=2)
        return self._encode_reference(texts)

    def _encode_parts(self, parts: SplitTexts) -> Encoded:
        """Encode pieces with newer characters, which are few, with `tokenizers`, and the others with gigatoken."""
        newer = parts.newer
        plain = self.encode_batch(parts.pieces.filter(pa.array(~newer)))
        others = self._encode_reference(parts.pieces.filter(pa.array(newer)))
        counts = np.empty(len(newer), np.int64)
        counts[~newer] = np.diff(plain.offsets)
        counts[newer] = np.diff(others.offsets)
        of_newer = np.repeat(newer, counts)
        ids = np.empty(len(of_newer), np.result_type(plain.ids, others.ids))
        ids[~of_newer] = plain.ids
        ids[of_newer] = others.ids
        ends = np.append(0, np.cumsum(counts))
        return Encoded(ids, ends[parts.firsts])

    def _encode_reference(self, texts: pa.Array) -> Encoded:
        ids: list[np.ndarray] = []
        borders, _ = offsets_and_bytes(texts)
        group = np.cumsum(np.diff(borders)) // _REFERENCE_BYTES
        cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(texts)]
        for low, high in pairwise(cuts):
            some = texts.slice(low, high - low).to_pylist()
            with _encoding():
                rows = self._reference.encode_batch_fast(some, add_special_tokens=False)
            ids += [np.asarray(row.ids, self._dtype) for row in rows]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return Encoded(np.concatenate(ids or [np.empty(0, self._dtype)]), offsets)

    def _first_difference(self, fast: GigatokenEngine, texts: pa.Array, encoded: Encoded) -> str | None:
        """Return a text of the sample that the engines encode differently, None if there is none."""
        borders, data = offsets_and_bytes(texts)
        self._since += int(borders[-1] - borders[0])
        if self._compared and self._since < _COMPARE_EVERY:
            return None
        # Texts spread evenly over the first batch, later one at a changing position.
        turn = self._compared
        count = 1 if turn else _COMPARE_FIRST
        self._compared += 1
        self._since = 0
        picked = (np.arange(count) * len(texts) // count + turn * 7919) % len(texts)
        long = np.diff(borders)[picked] > _COMPARE_BYTES
        places = np.unique(picked[~long])
        samples: list[str] = texts.take(pa.array(places)).to_pylist()
        found = list(map(encoded.ids_of, places))
        # Of a long text, a piece is compared, another one in each batch.
        pieces: list[str] = []
        for place in np.unique(picked[long]):
            low, high = borders[place : place + 2]
            pieces.append(_piece(data[low:high], turn))
        if pieces:
            ids = fast.encode(pa.array(pieces, pa.large_string()))
            if ids is None:
                return pieces[0]
            found += map(ids.ids_of, range(len(pieces)))
        samples += pieces
        expected = self._reference.encode_batch_fast(samples, add_special_tokens=False)
        for text, ours, row in zip(samples, found, expected, strict=True):
            if not np.array_equal(ours, row.ids):
                return text
        return None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without EOS, such as those of a prompt."""
        ids: list[int] = self.encode_batch(pa.array([text], pa.large_string())).ids.tolist()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, including the spelling of EOS."""
        return str(self._reference.decode(list(map(int, ids)), skip_special_tokens=False))

    @cached_property
    def pieces(self) -> Pieces | None:
        """The bytes of all tokens; None if they are not those of a byte-level tokenizer. Unknown ones are empty."""
        fields = json.loads(self._spec)
        if fields["model"]["type"] != "BPE" or not is_byte_level(fields):
            return None
        known = bytes_of_characters()
        spelled = [b""] * self.vocab_size
        for piece, number in fields["model"]["vocab"].items():
            if known.keys() >= {*piece}:
                spelled[number] = bytes(known[character] for character in piece)
        for token in added_tokens(fields):
            spelled[token["id"]] = b"" if token["special"] else token["content"].encode()
        return Pieces(pa.array(spelled, pa.large_binary()), np.asarray(list(map(len, spelled))))

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text by the `tokenizers` library, and the characters from and up to which each of them goes."""
        with _encoding():
            found = self._reference.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def id_of(self, token: str) -> int:
        """Return the id of a token. Raises ConfigError if it does not exist."""
        found = self._reference.token_to_id(token)
        if found is None:
            special: list[str] = []
            for added in list(self._reference.get_added_tokens_decoder().values())[:30]:
                if added.special:
                    special.append(repr(added.content))
            raise ConfigError(
                f"The tokenizer has no token {token!r}: its special tokens are {', '.join(special) or 'none'}."
            )
        return int(found)

    def to_json(self) -> str:
        """Return the `tokenizer.json` in use: the original without post-processor, truncation and padding."""
        return self._spec


def is_kept_tokenizer(text: str) -> bool:
    """Return whether a text has the form of `Tokenizer.to_json`, which no other program writes."""
    try:
        fields = json.loads(text)
    except ValueError:
        return False
    if not isinstance(fields, dict) or "model" not in fields:
        return False
    if {**fields, **UNUSED} != fields:
        return False
    return json.dumps(fields, ensure_ascii=False) == text


@contextmanager
def _encoding() -> Iterator[None]:
    """Turn an error of the `tokenizers` library, raised for a text without tokens, into a ConfigError."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # it raises bare Exception, and its panics are not Exceptions
        raise ConfigError(
            f"The tokenizer cannot encode a text ({error}): it has no unknown token; choose a tokenizer with an unknown token, "
            "or with byte fallback."
        ) from error


def _piece(text: np.ndarray, turn: int) -> str:
    """Return about `_COMPARE_BYTES` of a long text, at a position that changes with the number of the comparison."""
    low = turn * 7919 * _COMPARE_BYTES % (len(text) - _COMPARE_BYTES)
    # Incomplete characters at both ends are dropped.
    return text[low : low + _COMPARE_BYTES].tobytes().decode(errors="ignore")


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer with one token per byte of UTF-8: ids 0 to 255, and 256 for EOS. Needs no file."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    model = tokenizers.Tokenizer(models.BPE(bytes_of_characters(), []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([EOS_SPELLINGS[0]])
    return Tokenizer(model.to_str())


def check_vocab_size(vocab_size: int) -> None:
    """Raise ConfigError if a trained vocabulary has no room for 256 bytes and EOS, or 2**32 ids or more."""
    if not is_count(vocab_size) or not 257 <= vocab_size < 2**32:
        raise ConfigError(
            f"tokenizer.vocab_size is {described(vocab_size)}: expected a whole number, at least 257 for 256 bytes and EOS."
        )


def train_bpe(texts: Iterable[str] | Iterable[Sequence[str]], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016, over bytes as in GPT-2) with `<|endoftext|>` as EOS.

    Args:
        texts: Documents, or lists of documents.
        vocab_size: Number of ids: 256 bytes, EOS, and merges.

    Raises:
        ConfigError: If `vocab_size` is below 257.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_SPELLINGS[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return Tokenizer(model.to_str())
