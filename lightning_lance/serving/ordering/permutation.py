"""A pseudo-random permutation of any number of positions, by a Feistel network with cycle walking."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

# Four rounds make a Feistel network look random to a test that sees few of its pairs; these are twice as many.
ROUNDS = 8


def key_words(*parts: object, count: int = 1) -> npt.NDArray[np.uint64]:
    """Return a hash of values as uint64 words, (count,), the same on every machine and with every version of numpy."""
    digest = hashlib.shake_256("\0".join(map(str, parts)).encode()).digest(8 * count)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def splitmix64(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return uint64 words scrambled, one to one, by the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: npt.NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return scrambled


def lowbias32(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return uint32 words scrambled, one to one, by `lowbias32`, a hash that Wellons (2018) found by search."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x7FEB352D)
    words = (words ^ (words >> np.uint32(15))) * np.uint32(0x846CA68B)
    scrambled: npt.NDArray[np.uint32] = words ^ (words >> np.uint32(16))
    return scrambled


def permute(positions: npt.NDArray[np.int64], size: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the images of positions under a keyed pseudo-random permutation of range(size).

    O(1) memory and time per position: a Feistel network (Luby and Rackoff 1988) over the next power of two, whose halves
    may differ by a bit. A value outside the range passes through again until it falls inside (cycle walking: Black and
    Rogaway 2002), less than twice on average.

    Args:
        positions: (n,) integers in [0, size).
        size: Size of the range, 1 to 2**62.
        keys: (ROUNDS,) uint64 keys.

    Returns:
        (n,) int64; all positions together give each of range(size) once.
    """
    return _walk(positions, size, keys, range(len(keys)))


def unpermute(places: npt.NDArray[np.int64], size: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the positions whose images under `permute` are some places: its inverse, with the same arguments."""
    return _walk(places, size, keys, range(len(keys) - 1, -1, -1))


def _walk(
    values: npt.NDArray[np.int64], size: int, keys: npt.NDArray[np.uint64], rounds: range
) -> npt.NDArray[np.int64]:
    """Apply rounds of the network to values until they lie in range(size). A round is its own inverse."""
    bits = max(int(size - 1).bit_length(), 2)
    shift = np.uint64(bits // 2)
    low_mask = np.uint32((1 << (bits // 2)) - 1)
    high_mask = np.uint32((1 << (bits - bits // 2)) - 1)
    round_keys = (keys >> np.uint64(32)).astype(np.uint32)
    words = values.astype(np.uint64)
    outside = np.arange(len(words))
    while len(outside):
        now = words[outside]
        high = (now >> shift).astype(np.uint32)
        low = now.astype(np.uint32) & low_mask
        for i in rounds:
            if i % 2:
                high ^= lowbias32(low + round_keys[i]) & high_mask
            else:
                low ^= lowbias32(high + round_keys[i]) & low_mask
        now = (high.astype(np.uint64) << shift) | low
        words[outside] = now
        outside = outside[now >= np.uint64(size)]
    return words.astype(np.int64)
