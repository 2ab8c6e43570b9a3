"""Packed windows: each token once, documents whole where they fit, the same for any ranks and after any resume."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.ordering import packing
from lightning_lance.serving.ordering.packing import PackedOrder, pack
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource

EOS = 9


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(2, 12), st.booleans())
def test_each_token_is_in_one_window_and_borders_are_where_eos_is(sizes: list[int], length: int, is_open: bool):
    tokens = sum(sizes)
    rest = -tokens % length
    ends = np.cumsum(sizes, dtype=np.int64)
    if is_open:
        tokens += rest  # the last document goes on behind
    else:
        tokens -= tokens % length
        ends = ends[ends <= tokens]
    if not tokens:
        return
    pieces = pack(ends, tokens, length)
    covered = np.concatenate(
        [np.arange(source, source + size) for source, size in zip(pieces.source, pieces.size, strict=True)]
    )
    assert sorted(covered.tolist()) == [*range(tokens)]
    windows = tokens // length
    assert [*np.bincount(pieces.window, pieces.size, windows)] == [length] * windows
    assert (np.diff(pieces.window) >= 0).all()
    border = {0, *ends.tolist()}
    for i in range(len(pieces.window)):
        is_last = i + 1 == len(pieces.window) or pieces.window[i + 1] != pieces.window[i]
        begin, end = int(pieces.source[i]), int(pieces.source[i] + pieces.size[i])
        # A piece is of one document, and ends with it unless it is the last one of its window.
        assert not any(begin < place < end for place in border)
        assert is_last or end in border
        first = i == 0 or pieces.window[i - 1] != pieces.window[i]
        assert pieces.column[i] == (0 if first else pieces.column[i - 1] + pieces.size[i - 1])


def test_a_literal_packing():
    # Documents of 6, 3, 4, 5 and 2 tokens into windows of 10.
    pieces = pack(np.array([6, 9, 13, 18, 20]), 20, 10)
    assert [*zip(*(part.tolist() for part in pieces), strict=True)] == [
        (0, 0, 0, 6), (0, 6, 9, 4), (1, 0, 6, 3), (1, 3, 13, 5), (1, 8, 18, 2),
    ]  # fmt: skip
    # A document of 13 has a window of its own, and its rest goes with the others.
    pieces = pack(np.array([13, 20]), 20, 10)
    assert [*zip(*(part.tolist() for part in pieces), strict=True)] == [
        (0, 0, 0, 10), (1, 0, 10, 3), (1, 3, 13, 7),
    ]  # fmt: skip


def order_of(sizes: list[list[int]], context: int) -> tuple[PackedOrder, np.ndarray]:
    """Return an order over streams of documents of these sizes, and the tokens: each names its offset, but for EOS."""
    streams, start = [], 0
    tokens = np.arange(sum(map(sum, sizes))) + 100
    for number, documents in enumerate(sizes):
        streams.append(StreamExtent(str(number), start, sum(documents)))
        tokens[start + np.cumsum(documents, dtype=np.int64) - 1] = EOS
        start += sum(documents)

    def read(store: int, begin: int, length: int) -> np.ndarray:
        return tokens[begin : begin + length]

    return PackedOrder(streams, [0] * len(streams), context, ("key", 5), read, EOS), tokens


streams = st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=30), min_size=1, max_size=3)


@examples(30)
@given(streams, st.integers(1, 9), st.integers(0, 3), st.integers(1, 40), st.sampled_from([1, 3]), st.data())
def test_every_token_comes_once_an_epoch_and_is_found(
    sizes: list[list[int]], context: int, epoch: int, block: int, together: int, data: st.DataObject
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_BLOCK_TOKENS", block * (context + 1))
        patch.setattr(packing, "_TOGETHER", together)
        order, tokens = order_of(sizes, context)
        positions = np.arange(order.num_windows)
        assert order.num_windows == sum(sum(documents) // (context + 1) for documents in sizes)
        of, starts = order.locate(epoch, positions)
        assert len({*starts.tolist()}) == len(positions)
        windows = order.read(epoch, starts)
        sources: list[int] = []
        for position, (stream, start) in enumerate(zip(of.tolist(), starts.tolist(), strict=True)):
            found_stream, pieces = order.pieces(epoch, start)
            assert found_stream == stream
            extent = order.streams[stream]
            places = np.concatenate(
                [np.arange(source, source + size) for source, size in zip(pieces.source, pieces.size, strict=True)]
            )
            assert windows[position].tolist() == tokens[places].tolist()
            assert extent.start <= places.min()
            assert places.max() < extent.start + extent.num_tokens
            sources += places.tolist()
        assert len({*sources}) == len(sources)
        # What is left out of a stream is shorter than a window.
        for number, extent in enumerate(order.streams):
            served = sum(extent.start <= place < extent.start + extent.num_tokens for place in sources)
            assert extent.num_tokens - served < context + 1, number
        # And back: the windows with some tokens.
        stream = data.draw(st.integers(0, len(sizes) - 1))
        extent = order.streams[stream]
        begin = extent.start + data.draw(st.integers(0, extent.num_tokens - 1))
        end = min(begin + data.draw(st.integers(1, 20)), extent.start + extent.num_tokens)
        length = context + 1
        expected = sorted({i // length for i, place in enumerate(sources) if begin <= place < end})
        assert order.find(epoch, stream, begin, end).tolist() == expected


def test_epochs_differ_and_blocks_are_mixed():
    order, _ = order_of([[7, 3, 5, 9] * 500], 15)
    first, second = (order.locate(epoch, np.arange(order.num_windows))[1].tolist() for epoch in range(2))
    assert first != second
    assert sorted(first) != first
    assert order.used > 0.99


def test_a_copy_keeps_no_blocks():
    order, _ = order_of([[7, 3, 5, 9] * 50], 15)
    order.block(0, 0)
    assert not {"_kept", "_lock"} & {*order.__getstate__()}


SOURCE = ListSource(
    tuple(
        (f"{language}{i} " * (1 + (i * 7) % 23), language, f"repo{i}") for i in range(60) for language in ("Go", "Rust")
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def make(store: Any, ranks: int = 1, **options: Any) -> list[WindowLoader]:
    given = {"context_length": 31, "batch_size": 4, "windows": "packed", "remainder": "short", **options}
    return [WindowLoader(store, rank=rank, world_size=ranks, **given) for rank in range(ranks)]


def served(loaders: list[WindowLoader]) -> list[list[int]]:
    """The inputs of an epoch, those of all ranks in the order of the steps."""
    return [row for step in zip(*loaders, strict=True) for batch in step for row in batch["input_ids"].tolist()]


@pytest.mark.parametrize("mix", [{}, {"Go": 2, "Rust": 1}], ids=str)
def test_ranks_and_resumes_see_the_same_packed_windows(store: TokenStore, mix: dict[str, float]):
    [alone] = make(store, mix=mix)
    whole = [*served([alone]), *served([alone])]
    assert served(make(store, 2, mix=mix, remainder="drop", batch_size=2)) == whole[: alone.num_windows // 4 * 4]
    [loader] = make(store, mix=mix)
    batches = iter(loader)
    before = [row for _ in range(7) for row in next(batches)["input_ids"].tolist()]
    state = loader.state_dict()
    assert state["windows"] == "packed"
    resumed = make(store, 2, mix=mix, batch_size=3)
    for other in resumed:
        other.load_state_dict(state)
    after = served(resumed)
    assert before + after == whole[: len(before) + len(after)]
    assert loader.num_windows - len(before) - len(after) < 2
    [fresh] = make(store, mix=mix)
    fresh.load_state_dict(state)
    assert served([fresh, *()])[: len(after)] == after


def test_documents_that_fit_are_whole(store: TokenStore):
    [loader] = make(store, context_length=511)
    pieces = whole = 0
    tokens = 0
    for step in range(len(loader)):
        windows = loader.windows(step)
        rows = windows.documents.to_pylist()
        pieces += len(rows)
        for row in rows:
            text = windows.tokens[row["window"], row["begin"] : row["end"]]
            tokens += len(text)
            document = store.find_documents({"id": row["id"]}).to_pylist()[0]
            source = store.read(np.array([document["begin"]]), document["end"] - document["begin"])[0]
            assert text.tobytes() in source.tobytes()
            whole += len(text) == len(source)
    assert tokens == loader.num_windows * 512 > store.num_tokens() - 2 * 512
    assert whole > 0.85 * pieces


def test_borders_of_packed_documents_are_those_of_their_ends(store: TokenStore):
    [loader] = make(store, context_length=63, document_ids=True)
    windows = loader.windows(0)
    numbers = windows.batch["document_ids"].numpy()
    for window in range(len(windows)):
        rows = [row for row in windows.documents.to_pylist() if row["window"] == window]
        expected = [number for number, row in enumerate(rows) for _ in range(row["begin"], min(row["end"], 63))]
        assert numbers[window].tolist() == expected


def test_the_steps_of_a_document_are_found(store: TokenStore):
    [loader] = make(store)
    [document] = store.find_documents({"id": "0:2"}).to_pylist()
    found = loader.find("", document["begin"], document["end"], len(loader))
    expected = []
    for step in range(len(loader)):
        for row in loader.windows(step).documents.to_pylist():
            if row["id"] == "0:2":
                expected.append((step, 0, row["window"], row["begin"], row["end"]))
    assert [*zip(*(column.tolist() for column in found[:5]), strict=True)] == expected
    assert expected


def test_what_does_not_go_with_packed_windows_is_refused(store: TokenStore):
    with pytest.raises(ConfigError, match="windows is 'loose': expected one of stream, packed"):
        make(store, windows="loose")
    for options in ({"order": "sequential"}, {"shuffle_block": 4}):
        with pytest.raises(ConfigError, match="windows=packed has an order of its own"):
            make(store, **options)
    with pytest.raises(ConfigError, match="extend=now does not go with windows=packed"):
        make(store, extend="now")
    [packed] = make(store)
    [stream] = make(store, windows="stream")
    with pytest.raises(StoreError, match="windows: 'packed' -> 'stream'"):
        stream.load_state_dict(packed.state_dict())
    [other] = make(store, windows="stream", on_data_change="continue")
    next(iter(packed))
    other.load_state_dict(packed.state_dict())
    # Another context length goes on after as many tokens.
    [shorter] = make(store, context_length=15)
    shorter.load_state_dict(packed.state_dict())
    assert shorter.state_dict()["cursor"] == 4 * 31 // 15 + 1
