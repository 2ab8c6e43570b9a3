from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import ConfigError
from lightning_lance.serving.fim import FillInTheMiddle

EOS, PRE, MID, SUF = 0, 97, 98, 99

rates = st.sampled_from([0.0, 0.3, 0.5, 1.0])
seeds, epochs, starts = st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**50)
# Documents of all lengths, the empty one among them: EOS at the edges too, and several in a row.
tokens = st.one_of(st.integers(0, 5), st.sampled_from([EOS, 1]), st.integers(1, 50), st.integers(1, 50))


@st.composite
def some_windows(draw: st.DrawFn) -> np.ndarray:
    count, length = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    rows = st.lists(tokens, min_size=length, max_size=length)
    return np.array(draw(st.lists(rows, min_size=count, max_size=count)))


def make(seed: int = 0, fim_rate: float = 0.5, spm_rate: float = 0.5) -> FillInTheMiddle:
    return FillInTheMiddle(PRE, MID, SUF, seed, fim_rate, spm_rate)


def apply(fim: FillInTheMiddle, windows: Any, start: int = 0, epoch: int = 0) -> np.ndarray:
    """Join consecutive windows."""
    windows = np.asarray(windows)
    at = start + windows.shape[1] * np.arange(len(windows))
    return fim.arrange(windows, at, np.full(len(windows), epoch), EOS).tokens


def documents(window: list[int]) -> list[list[int]]:
    """Cut a window after each EOS."""
    cuts = [0, *(i + 1 for i, token in enumerate(window) if token == EOS)]
    cuts += [len(window)] if cuts[-1] < len(window) else []
    return [window[low:high] for low, high in pairwise(cuts)]


def one_by_one(fim: FillInTheMiddle, window: list[int], start: int, epoch: int) -> list[int]:
    """Return the rearranged window, computed document by document."""
    made: list[int] = []
    read = 0
    for document in documents(window):
        left = len(window) - len(made)
        chosen, spm, first, second = (draw.item() for draw in fim._draws(np.array([start + read]), np.array([epoch])))
        text = document[:-1] if document[-1] == EOS else document
        eos = document[len(text) :]
        if len(document) + 3 > left:
            text, eos = text[: left - 3], []
        if not chosen or len(text) < 3 or left < 6:
            made += document
        else:
            low, high = sorted([int(first * (len(text) + 1)), int(second * (len(text) + 1))])
            prefix, middle, suffix = text[:low], text[low:high], text[high:]
            if spm:
                made += [PRE, SUF, *suffix, MID, *prefix, *middle, *eos]
            else:
                made += [PRE, *prefix, SUF, *suffix, MID, *middle, *eos]
        read += len(document)
        if len(made) >= len(window):
            break
    return made[: len(window)]


def test_literal_windows():
    """A resumed run depends on these: they may never change."""
    windows = [[1, 2, 3, 4, 5, 6, 7, 8, 9, EOS, *range(10, 20)], [*range(20, 30), EOS, EOS, *range(30, 38)]]
    # PSM, and an unchanged piece.
    assert apply(make(fim_rate=0.8), windows, 1000, epoch=1)[0].tolist() == (
        [PRE, 1, 2, 3, 4, 5, SUF, 7, 8, 9, MID, 6, EOS, 10, 11, 12, 13, 14, 15, 16]
    )
    # SPM, and the rest of the second document when both have sentinels.
    assert apply(make(fim_rate=0.8), windows, 1000, epoch=2).tolist() == [
        [PRE, SUF, 2, 3, 4, 5, 6, 7, 8, 9, MID, 1, EOS, PRE, SUF, 12, 13, MID, 10, 11],
        [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, EOS, EOS, PRE, SUF, 34, MID, 30, 31, 32, 33],
    ]


@given(some_windows(), seeds, epochs, starts, rates, rates)
def test_windows_are_what_they_are_one_document_after_the_other(
    windows: np.ndarray, seed: int, epoch: int, start: int, fim_rate: float, spm_rate: float
):
    fim = make(seed, fim_rate, spm_rate)
    length = windows.shape[1]
    expected = [one_by_one(fim, row, start + i * length, epoch) for i, row in enumerate(windows.tolist())]
    assert apply(fim, windows, start, epoch).tolist() == expected


@given(some_windows(), seeds, epochs, starts, rates, rates)
def test_undone_a_window_is_its_own_first_tokens(
    windows: np.ndarray, seed: int, epoch: int, start: int, fim_rate: float, spm_rate: float
):
    """All tokens but as many as there are sentinels remain; documents stay whole and in order, each with its own EOS."""
    fim, before = make(seed, fim_rate, spm_rate), windows.copy()
    made = apply(fim, windows, start, epoch)
    assert np.array_equal(windows, before)
    assert (made.shape, made.dtype) == (windows.shape, windows.dtype)
    for window, rearranged, undone in zip(windows.tolist(), made.tolist(), fim.undo(made, EOS), strict=True):
        sentinels = [token for token in rearranged if token in (PRE, MID, SUF)]
        assert undone.tolist() == window[: len(window) - len(sentinels)]
        for document in documents(rearranged):
            assert [token for token in document if token in (PRE, MID, SUF)] in ([], [PRE, SUF, MID])
            assert PRE not in document[1:]
            assert SUF not in document or len(document) - (document[-1] == EOS) >= 6
        originals = documents(undone.tolist())
        assert len(originals) == len(documents(rearranged))
        for document, original in zip(documents(rearranged), originals, strict=True):
            assert sorted(set(document) - {PRE, MID, SUF}) == sorted(set(original))
            assert (document[-1] == EOS) == (original[-1] == EOS)


@given(some_windows(), seeds, st.data())
def test_a_window_does_not_know_its_batch(windows: np.ndarray, seed: int, data: st.DataObject):
    """Beside any other windows, of any epochs, and at any index among them."""
    fim = make(seed, 0.7)
    at = np.array(data.draw(st.lists(starts, min_size=len(windows), max_size=len(windows))))
    of = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(windows), max_size=len(windows))))
    together = fim.arrange(windows, at, of, EOS).tokens
    alone = [fim.arrange(windows[i : i + 1], at[i : i + 1], of[i : i + 1], EOS).tokens[0] for i in range(len(windows))]
    assert np.array_equal(together, alone)
    turned = data.draw(st.permutations(range(len(windows))))
    assert np.array_equal(fim.arrange(windows[turned], at[turned], of[turned], EOS).tokens, together[turned])


@given(seeds, starts, st.lists(st.integers(1, 50), max_size=12), st.lists(st.integers(1, 50), min_size=3, max_size=12))
def test_a_document_is_told_by_the_offset_of_its_first_token(seed: int, start: int, before: list[int], text: list[int]):
    """In two windows that both contain it whole, whatever precedes it, a document is rearranged in the same way."""
    fim, document = make(seed), [*text, EOS]
    first = [*before, EOS, *document, *[EOS] * 30]
    second = [*document, *[EOS] * 30]
    made = documents(apply(fim, [first], start)[0].tolist())[1]
    assert made == documents(apply(fim, [second], start + len(before) + 1)[0].tolist())[0]


def many(count: int = 40_000, length: int = 8) -> np.ndarray:
    """Windows of one document each, EOS in none of them."""
    return np.tile(np.arange(1, length + 1), (count, 1))


@pytest.mark.parametrize(("fim_rate", "spm_rate"), [(0.0, 0.5), (0.5, 0.5), (0.9, 0.2), (0.1, 1.0), (1.0, 0.0)])
def test_rates_are_kept(fim_rate: float, spm_rate: float):
    """Within 1 %, in windows of two documents, for whole ones and for the last pieces of windows."""
    windows = np.concatenate([many(), np.full((40_000, 1), EOS), many(length=12)], axis=1)
    made = apply(make(7, fim_rate, spm_rate), windows)
    chosen = made[:, 0] == PRE
    second = np.take_along_axis(made, np.where(chosen, 12, 9)[:, None], axis=1)[:, 0] == PRE
    assert chosen.mean() == pytest.approx(fim_rate, abs=0.01)
    assert second.mean() == pytest.approx(fim_rate, abs=0.01)
    assert (chosen & second).mean() == pytest.approx(fim_rate**2, abs=0.01)
    # An empty prefix looks like SPM: of nine places, both cuts fall behind the first but in 17 of 81 cases.
    if fim_rate:
        spm = made[chosen, 1] == SUF
        assert spm.mean() == pytest.approx(spm_rate + (1 - spm_rate) * 17 / 81, abs=0.02)


def test_cuts_fall_everywhere_alike():
    made = apply(make(fim_rate=1.0, spm_rate=0.0), many(length=6))
    low, suffix_end = np.argmax(made == SUF, axis=1) - 1, np.argmax(made == MID, axis=1)
    high = 3 - (suffix_end - low - 2)  # three tokens are left of six
    counts = np.zeros((4, 4))
    np.add.at(counts, (low, high), 1 / len(made))
    # Two places of four each: 2 of 16 draws for different ones, 1 of 16 for the same.
    expected = np.triu(np.full((4, 4), 2 / 16), 1) + np.eye(4) / 16
    np.testing.assert_allclose(counts, expected, atol=0.006)


def test_epochs_and_seeds_differ_and_repeat():
    made = {key: apply(make(key[0]), many(50), epoch=key[1]).tolist() for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len({str(windows) for windows in made.values()}) == 4
    assert apply(make(0), many(50), epoch=1).tolist() == made[0, 1]


def test_documents_too_short_to_be_cut_stay():
    windows = [[1, 2, EOS, EOS, 3, EOS, 4, 5], [1, 2, 3, EOS, EOS, EOS, EOS, 1]]
    made = apply(make(fim_rate=1.0), windows).tolist()
    assert made[0] == windows[0]
    assert (made[1][0], made[1][6:]) == (PRE, [EOS, EOS])
    # In a window of five there is room for sentinels and two tokens, which is too little.
    assert apply(make(fim_rate=1.0), [[1, 2, 3, 4, 5]]).tolist() == [[1, 2, 3, 4, 5]]
    assert sorted(apply(make(fim_rate=1.0), [[1, 2, 3, 4, 5, 6]])[0].tolist()) == [1, 2, 3, PRE, MID, SUF]


def test_tokens_at_the_end_that_find_no_room_are_left_out():
    """Two documents grow by six tokens; the second, cut, has no EOS left."""
    window = [*range(1, 9), EOS, *range(11, 19), EOS]
    fim = make(fim_rate=1.0)
    assert fim.undo(apply(fim, [window]), EOS)[0].tolist() == window[:-6]
    # The third would begin behind the end.
    window = [*range(1, 9), EOS, *range(11, 15), EOS, 21, 22, 23, EOS]
    assert fim.undo(apply(fim, [window]), EOS)[0].tolist() == window[:-6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"middle_id": PRE}, r"prefix_id, middle_id and suffix_id are \(97, 97, 99\): expected three different ids"),
        ({"suffix_id": -1}, r"are \(97, 98, -1\): expected three different ids from 0 on"),
        ({"fim_rate": 1.5}, "fim_rate is 1.5: expected a number between 0 and 1"),
        ({"spm_rate": -0.1}, "spm_rate is -0.1: expected a number between 0 and 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        FillInTheMiddle(**{"prefix_id": PRE, "middle_id": MID, "suffix_id": SUF, "seed": 0, **options})


def test_sentinels_that_end_documents_are_refused():
    make().check(EOS)
    with pytest.raises(ConfigError, match=r"suffix_id is 99, the id that ends documents \(EOS\): expected another id"):
        make().check(SUF)
