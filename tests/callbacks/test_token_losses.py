import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.callbacks.token_losses import (
    TokenLosses,
    numbers_of_documents,
    sums_by_document,
    token_losses_of,
)
from lightning_lance.inspection.spikes import DocumentLoss

EOS = 0


@given(
    st.integers(1, 4).flatmap(
        lambda windows: st.integers(2, 9).flatmap(
            lambda length: st.tuples(
                st.lists(
                    st.lists(st.integers(0, 2), min_size=length, max_size=length), min_size=windows, max_size=windows
                ),
                st.integers(0, 1),
                st.integers(0, 2**20),
            )
        )
    )
)
def test_the_losses_of_documents_are_those_of_their_tokens(drawn: tuple[list[list[int]], int, int]):
    """One token after the other: it belongs to the document before the next EOS, and the first of a window has no loss."""
    windows, shorter, seed = drawn
    tokens = np.asarray(windows)
    rng = np.random.default_rng(seed)
    shape = (len(windows), max(1, tokens.shape[1] - 1 - shorter))
    losses = rng.integers(0, 100, shape).astype(np.float32)
    counts = rng.random(shape) < 0.7
    expected = []
    for window, ids in enumerate(windows):
        begin = 0
        for place in range(len(ids)):
            if ids[place] != EOS and place + 1 < len(ids):
                continue
            targets = [at for at in range(max(begin, 1), place + 1) if at <= shape[1] and counts[window, at - 1]]
            loss = float(sum(losses[window, at - 1] for at in targets))
            expected.append(DocumentLoss(window, begin, place + 1, loss, len(targets)))
            begin = place + 1
    given_ = torch.from_numpy(losses)
    found = token_losses_of(
        {"token_losses": given_.flatten()},
        {"targets": torch.where(torch.from_numpy(counts), 1, -100)},
        "step",
        None,
    )
    assert sums_by_document(numbers_of_documents(tokens, EOS), found) == expected


def test_the_model_may_use_the_memory_of_its_losses_again():
    losses = torch.ones(1, 2)
    found = token_losses_of({"token_losses": losses}, {"targets": torch.tensor([[1, -100]])}, "step", None)
    losses.zero_()
    assert (found.mean.item(), found.by_window().tolist()) == (1.0, [[1.0, 1.0]])


def test_nothing_to_learn_is_no_spike():
    assert TokenLosses(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)).mean.item() == 0
