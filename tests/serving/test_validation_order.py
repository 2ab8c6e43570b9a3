"""The order of validation: one for all rounds, ranks and batches, whose first windows are a sample of all streams."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    texts = [documents(f"{i:04d} " * 12, language=f"L{i % 3}", repo=f"repo{i}")[0] for i in range(30)]
    source = ListSource(tuple(texts))
    return prepare(source, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.5)


def rounds(store: TokenStore, world_size: int, batch_size: int) -> list[list[tuple[int, ...]]]:
    """The windows of two rounds, put together from all ranks, step by step."""
    loaders = [
        WindowLoader(
            store, 16, batch_size, split="val", order="fixed", remainder="short", resumable=False,
            rank=rank, world_size=world_size,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    found = []
    for _ in range(2):
        steps = zip(*loaders, strict=True)
        found.append([tuple(window) for step in steps for batch in step for window in batch["input_ids"].tolist()])
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7))
def test_each_round_is_one_order_for_any_ranks_and_batches(store: TokenStore, world_size: int, batch_size: int):
    [[*whole], again] = rounds(store, 1, 1)
    assert whole == again
    assert len({*whole}) == len(whole) == sum((stream.num_tokens - 1) // 16 for stream in store.streams("val"))
    first, second = rounds(store, world_size, batch_size)
    assert first == second == whole[: len(first)]
    # Fewer than there are ranks fill no equal batches.
    assert len(whole) - len(first) < world_size


@settings(deadline=None)
@given(st.lists(st.integers(20, 4000), min_size=2, max_size=6), st.integers(0, 2**32), st.data())
def test_the_first_windows_are_spread_over_the_streams_in_proportion(sizes: list[int], seed: int, data: st.DataObject):
    """As a sample without replacement: within seven standard deviations of each stream's share."""
    starts = np.cumsum([0, *sizes])
    streams = [
        StreamExtent(str(i), int(start), size) for i, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]
    order = WindowOrder(streams, 8, "fixed", ("fingerprint", seed))
    every = order.num_windows
    first = data.draw(st.integers(1, every))
    counted = Counter(order.locate(0, np.arange(first))[0].tolist())
    for number, windows in enumerate(order.counts(0).tolist()):
        share = windows / every
        deviation = np.sqrt(first * share * (1 - share) * (every - first) / max(every - 1, 1))
        assert abs(counted[number] - first * share) <= 7 * deviation + 1
