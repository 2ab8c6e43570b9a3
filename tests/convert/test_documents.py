"""Documents cut out of a stream at EOS, however the stream is cut into shards and pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.convert import documents
from lightning_lance.convert.documents import CutAtEos

EOS = 9


class Pieces(documents.TokenStream):
    """A stream in any shards and pieces."""

    def __init__(self, shards: list[tuple[str, list[list[int]]]]) -> None:
        super().__init__()
        self.shards = [documents.Shard(str(i), "", stream) for i, (stream, _) in enumerate(shards)]
        self._pieces = [pieces for _, pieces in shards]

    def tokens(self, shard: int) -> Iterator[np.ndarray]:
        for piece in self._pieces[shard]:
            yield np.asarray(piece, np.int64)


def expected(tokens: list[int]) -> list[list[int]]:
    """The documents of a stream, EOS included where it is there."""
    found: list[list[int]] = [[]]
    for token in tokens:
        found[-1].append(token)
        if token == EOS:
            found.append([])
    return [ids for ids in found if ids]


def read(cut: CutAtEos, shard: int, row: int = 0) -> list[list[int]]:
    found = []
    for batch in cut.read(shard, row):
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.ids)
        found += [part.tolist() for part in np.split(batch.ids, batch.offsets[1:-1])]
    return found


PIECE = st.lists(st.integers(1, EOS), max_size=6)
SHARD = st.tuples(st.sampled_from("aab"), st.lists(PIECE, max_size=3))


@given(st.lists(SHARD, max_size=6).map(lambda shards: sorted(shards, key=lambda shard: shard[0])))
def test_each_document_is_in_the_shard_in_which_it_begins(shards: list[tuple[str, list[list[int]]]]):
    of_streams = [
        expected([token for stream, pieces in shards if stream == name for piece in pieces for token in piece])
        for name in "ab"
    ]
    cut = CutAtEos(Pieces(shards), EOS)
    found = [read(cut, shard) for shard in range(len(shards))]
    assert [ids for shard in found for ids in shard] == [*of_streams[0], *of_streams[1]]
    for shard, whole in enumerate(found):
        # As when a build goes on: nothing is known of the shards before.
        for row in range(len(whole) + 1):
            assert read(CutAtEos(Pieces(shards), EOS), shard, row) == whole[row:]
