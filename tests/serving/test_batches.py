from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import ConfigError
from lightning_lance.serving.batches import Batch, BatchFormat, Collator, WindowBatch, make_batch, offsets_of
from lightning_lance.serving.fim import FillInTheMiddle

EOS = 3
EVERYTHING: dict[str, Any] = {
    "document_ids": True,
    "position_ids": True,
    "cu_seqlens": True,
    "mask_boundary_targets": True,
}

formats = st.sampled_from(["default", "huggingface"])
# A quarter of the tokens, and in some windows all of them, are EOS: at the edges too, and several in a row.
tokens = st.one_of(st.integers(0, EOS), st.sampled_from([0, EOS]), st.just(EOS), st.just(0))


@st.composite
def batches_of_windows(draw: st.DrawFn) -> list[list[int]]:
    count, length = draw(st.integers(1, 4)), draw(st.integers(2, 13))
    return draw(st.lists(st.lists(tokens, min_size=length, max_size=length), min_size=count, max_size=count))


def make(windows: list[list[int]], **options: Any) -> Batch:
    starts, epochs = 100 * np.arange(len(windows)), np.zeros(len(windows), np.int64)
    return Collator(EOS, **options)(np.array(windows), starts, epochs)


def by_token(windows: list[list[int]], batch_format: str) -> dict[str, Any]:
    """Return the expected batch, computed token by token."""
    batch: dict[str, Any] = {"input_ids": [], "targets": [], "labels": [], "document_ids": [], "position_ids": []}
    begins, longest = [], 0
    for row, window in enumerate(windows):
        length, document, position = len(window) - 1, 0, 0
        for values in batch.values():
            values.append([])
        for column in range(length):
            if column > 0 and window[column - 1] == EOS:
                document, position = document + 1, 0
            if position == 0:
                begins.append(row * length + column)
            longest = max(longest, position + 1)
            crosses, crossed = window[column] == EOS, column > 0 and window[column - 1] == EOS
            batch["input_ids"][-1].append(window[column])
            batch["targets"][-1].append(-100 if crosses else window[column + 1])
            batch["labels"][-1].append(-100 if crossed else window[column])
            batch["document_ids"][-1].append(document)
            batch["position_ids"][-1].append(position)
            position += 1
    del batch["labels" if batch_format == "default" else "targets"]
    total = len(windows) * (len(windows[0]) - 1)
    return {**batch, "cu_seqlens": begins + [total] * (total + 1 - len(begins)), "max_seqlen": longest}


def lists(batch: Batch) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in batch.items()}


def test_a_literal_batch():
    """The windows `ab$cd|e` and `$$fgh|$`."""
    windows = [[10, 11, EOS, 12, 13, 14], [EOS, EOS, 15, 16, 17, EOS]]
    batch = make(windows, **EVERYTHING)
    assert lists(batch) == {
        "input_ids": [[10, 11, EOS, 12, 13], [EOS, EOS, 15, 16, 17]],
        "targets": [[11, EOS, -100, 13, 14], [-100, -100, 16, 17, EOS]],
        "document_ids": [[0, 0, 0, 1, 1], [0, 1, 2, 2, 2]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 0, 0, 1, 2]],
        "cu_seqlens": [0, 3, 5, 6, 7, 10, 10, 10, 10, 10, 10],
        "max_seqlen": 3,
    }
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64,
        "targets": torch.int64,
        "document_ids": torch.int32,
        "position_ids": torch.int64,
        "cu_seqlens": torch.int32,
        "max_seqlen": torch.int32,
    }
    labels = make(windows, batch_format="huggingface", mask_boundary_targets=True)["labels"]
    assert labels.tolist() == [[10, 11, EOS, -100, 13], [EOS, -100, -100, 16, 17]]


@pytest.mark.parametrize(
    ("window", "document_ids", "position_ids", "targets"),
    [
        ([1, 2, 1, 2], [0, 0, 0], [0, 1, 2], [2, 1, 2]),  # no EOS
        ([EOS, 1, 2, 1], [0, 1, 1], [0, 0, 1], [-100, 2, 1]),  # first
        ([1, 2, EOS, 1], [0, 0, 0], [0, 1, 2], [2, EOS, -100]),  # last input
        ([1, 2, 1, EOS], [0, 0, 0], [0, 1, 2], [2, 1, EOS]),  # last target
        ([1, EOS, EOS, 1], [0, 0, 1], [0, 1, 0], [EOS, -100, -100]),  # in a row: a document of EOS alone
        ([EOS, EOS, EOS, EOS], [0, 1, 2], [0, 0, 0], [-100, -100, -100]),
        ([EOS, 1], [0], [0], [-100]),  # of one token
    ],
)
def test_eos_at_the_edges(window: list[int], document_ids: list[int], position_ids: list[int], targets: list[int]):
    # Between windows that begin and end with EOS, which must not matter.
    length = len(window)
    batch = make([[EOS] * length, window, [EOS] * length], **EVERYTHING)
    assert batch["document_ids"][1].tolist() == document_ids
    assert batch["position_ids"][1].tolist() == position_ids
    assert batch["targets"][1].tolist() == targets


@given(batches_of_windows(), formats)
def test_a_batch_is_what_it_is_by_token(windows: list[list[int]], batch_format: BatchFormat):
    assert lists(make(windows, batch_format=batch_format, **EVERYTHING)) == by_token(windows, batch_format)


@given(batches_of_windows(), formats, st.sets(st.sampled_from(sorted(EVERYTHING))))
def test_what_is_asked_for_does_not_change_the_rest(
    windows: list[list[int]], batch_format: BatchFormat, wanted: set[str]
):
    """Each option alone gives the same as among the others, and no extra fields."""
    named = "labels" if batch_format == "huggingface" else "targets"
    expected = by_token(windows, batch_format)
    if "mask_boundary_targets" not in wanted:
        expected[named] = [window[:-1] if named == "labels" else window[1:] for window in windows]
    names = {"input_ids", named, *wanted - {"mask_boundary_targets"}}
    names |= {"max_seqlen"} if "cu_seqlens" in wanted else set()
    made = make(windows, batch_format=batch_format, **dict.fromkeys(wanted, True))
    assert lists(made) == {name: expected[name] for name in names}


@given(batches_of_windows())
def test_documents_are_the_same_in_every_form(windows: list[list[int]]):
    """Cut at `cu_seqlens`, every piece is one whole document of its window, and its positions count up."""
    batch = make(windows, **EVERYTHING)
    borders = batch["cu_seqlens"].tolist()
    total = batch["input_ids"].numel()
    assert (borders[0], borders[-1], len(borders)) == (0, total, total + 1)
    documents = [(row, i) for row, ids in enumerate(batch["document_ids"].tolist()) for i in ids]
    positions = batch["position_ids"].flatten().tolist()
    lengths = [high - low for low, high in pairwise(borders) if high > low]
    assert borders == [*np.cumsum([0, *lengths]).tolist(), *[total] * (total - len(lengths))]
    assert batch["max_seqlen"] == max(lengths)
    pieces = [documents[low:high] for low, high in pairwise(borders) if high > low]
    assert [{*piece} for piece in pieces] == [{document} for document in dict.fromkeys(documents)]
    assert positions == [i for length in lengths for i in range(length)]


@given(batches_of_windows())
def test_both_formats_leave_out_the_same_tokens(windows: list[list[int]]):
    """A causal model of transformers compares its output at i with `labels[i + 1]`."""
    default = make(windows, mask_boundary_targets=True)
    huggingface = make(windows, mask_boundary_targets=True, batch_format="huggingface")
    assert torch.equal(huggingface["labels"][:, 1:], default["targets"][:, :-1])
    assert torch.equal(huggingface["labels"][:, 0], huggingface["input_ids"][:, 0])


@given(st.integers(1, 4), st.integers(1, 12), formats, st.randoms(use_true_random=False))
def test_shapes_do_not_depend_on_the_tokens(count: int, length: int, batch_format: BatchFormat, random: Any):
    shapes = set()
    for density in (0.0, 0.3, 1.0):
        windows = [[EOS if random.random() < density else 0 for _ in range(length + 1)] for _ in range(count)]
        batch = make(windows, batch_format=batch_format, **EVERYTHING)
        shapes.add(tuple((name, tensor.shape, tensor.stride(), tensor.dtype) for name, tensor in batch.items()))
    assert len(shapes) == 1


@pytest.mark.parametrize("batch_format", ["default", "huggingface"])
def test_without_a_mask_a_batch_is_views_of_one_tensor(batch_format: BatchFormat):
    windows = [[0, EOS, 0, 1], [1, 0, EOS, 1]]
    for options in ({}, {**EVERYTHING, "mask_boundary_targets": False}):
        batch = make(windows, batch_format=batch_format, **options)
        named = batch["labels" if batch_format == "huggingface" else "targets"]
        assert named.data_ptr() == batch["input_ids"].data_ptr() + 8 * (batch_format == "default")


@given(batches_of_windows(), formats, st.sampled_from([np.uint16, np.uint32]), st.data())
def test_batches_described_at_once_are_those_described_alone(
    windows: list[list[int]], batch_format: BatchFormat, dtype: type[np.unsignedinteger[Any]], data: st.DataObject
):
    maker = Collator(EOS, batch_format=batch_format, **EVERYTHING)
    described = maker.describe(WindowBatch(np.array(windows, dtype)))
    low = data.draw(st.integers(0, len(windows) - 1))
    high = data.draw(st.integers(low + 1, len(windows)))
    alone = make(windows[low:high], batch_format=batch_format, **EVERYTHING)
    assert lists(maker.batch(described, low, high)) == lists(alone)


@given(batches_of_windows(), formats)
def test_what_fill_in_the_middle_makes_is_what_a_batch_describes(windows: list[list[int]], batch_format: BatchFormat):
    fim = FillInTheMiddle(10, 11, 12, seed=0, fim_rate=0.9)
    made = make(windows, fim=fim, batch_format=batch_format, **EVERYTHING)
    starts, epochs = 100 * np.arange(len(windows)), np.zeros(len(windows), np.int64)
    rearranged = fim.arrange(np.array(windows), starts, epochs, EOS).tokens
    assert lists(made) == lists(make(rearranged.tolist(), batch_format=batch_format, **EVERYTHING))


def test_a_window_alone_has_no_batch_dimension():
    assert lists(make_batch(torch.arange(4), "default")) == {"input_ids": [0, 1, 2], "targets": [1, 2, 3]}
    assert lists(make_batch(torch.arange(4), "huggingface")) == {"input_ids": [0, 1, 2], "labels": [0, 1, 2]}


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="batch_format is 'hf': expected one of default, huggingface"):
        Collator(EOS, batch_format="hf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="middle_id is 3, the id that ends documents"):
        Collator(EOS, fim=FillInTheMiddle(1, EOS, 2, seed=0))


@given(
    st.lists(st.sampled_from([0, EOS]) | st.integers(0, 600), max_size=40),
    st.sampled_from([EOS, 258]),
    st.sampled_from([np.uint16, np.uint32, np.int64]),
)
def test_the_offsets_of_a_token_are_where_it_is(some: list[int], token: int, dtype: Any):
    given_tokens = np.array(some, dtype)
    assert offsets_of(token, given_tokens).tolist() == [i for i, value in enumerate(some) if value == token]
