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
    """A stream in any shards and pieces. Each token has a label that says its number in the stream."""

    def __init__(self, shards: list[tuple[str, list[list[int]]]]) -> None:
        super().__init__()
        self.shards = [documents.Shard(str(i), "", stream) for i, (stream, _) in enumerate(shards)]
        self._pieces = [pieces for _, pieces in shards]

    def pieces(self, shard: int) -> Iterator[documents.Piece]:
        number = 0
        for place, pieces in enumerate(self._pieces[: shard + 1]):
            for piece in pieces:
                if self.shards[place].stream != self.shards[shard].stream:
                    continue
                labels = np.arange(number, number + len(piece))
                number += len(piece)
                if place == shard:
                    yield documents.Piece(np.asarray(piece, np.int64), {"token_labels": labels})


Documents = list[list[tuple[int, int]]]


def expected(tokens: list[int]) -> Documents:
    """The documents of a stream, EOS included where it is there: the tokens, each with its number."""
    found: Documents = [[]]
    for number, token in enumerate(tokens):
        found[-1].append((token, number))
        if token == EOS:
            found.append([])
    return [ids for ids in found if ids]


def read(cut: CutAtEos, shard: int, row: int = 0) -> Documents:
    found: Documents = []
    for batch in cut.read(shard, row):
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.ids)
        labels = batch.channels["token_labels"]
        assert np.array_equal(labels.offsets, batch.offsets)
        both = np.stack([batch.ids, labels.values], axis=1)
        found += [[*map(tuple, part.tolist())] for part in np.split(both, batch.offsets[1:-1])]
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
