import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.splits import check_val_fraction, split_codes, splits_of
from lightning_lance.errors import ConfigError


def test_a_literal_table():
    """Splits are on disk: another rule would move validation documents into training."""
    groups = pa.array(["torvalds/linux", "python/cpython", "numpy/numpy", "a", "", "é"])
    assert split_codes(groups, 0.5).tolist() == [0, 1, 1, 0, 1, 0]


@given(st.lists(st.text(max_size=8), max_size=20), st.lists(st.text(max_size=8), max_size=20), st.floats(0, 0.99))
def test_a_group_keeps_its_side_whatever_stands_around_it(some: list[str], more: list[str], fraction: float):
    alone = split_codes(pa.array(some, pa.string()), fraction).tolist()
    among = split_codes(pa.array(more + some, pa.large_string()), fraction).tolist()
    assert among[len(more) :] == alone


@given(st.lists(st.text(max_size=8), max_size=20), st.floats(0, 0.9), st.floats(0, 0.09))
def test_a_larger_share_keeps_those_of_the_smaller(groups: list[str], fraction: float, more: float):
    small, large = (split_codes(pa.array(groups, pa.string()), share) for share in (fraction, fraction + more))
    assert (small <= large).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.3, 0.9])
def test_the_share_is_met_within_sampling_error(share: float):
    """Over many sets of keys, each share is within five standard deviations, and their spread is that of independent draws."""
    count, sets = 2_000, 50
    found = [split_codes(pa.array([f"{s}/repo{i}" for i in range(count)]), share).sum() for s in range(sets)]
    deviation = (count * share * (1 - share)) ** 0.5
    scores = (np.asarray(found) - count * share) / (deviation or 1)
    assert np.abs(scores).max() < 5
    assert abs(scores.mean()) < 5 / sets**0.5
    assert share == 0 or 0.5 < scores.std() < 1.6


documents = st.lists(
    st.tuples(st.sampled_from(["a", "a\n", " a", "b", "b "]), st.sampled_from(["", "r", "s", None])), min_size=1
)


@given(documents, st.floats(0, 0.99))
def test_no_repository_and_no_copy_of_a_text_without_one_is_on_both_sides(
    made: list[tuple[str, str | None]], fraction: float
):
    texts, repos = zip(*made, strict=True)
    table = pa.table({"text": pa.array(texts, pa.large_string()), "repo": pa.array(repos, pa.string())})
    sides: dict[tuple[str | None, str], set[int]] = {}
    for (text, repo), side in zip(made, splits_of(table, fraction).tolist(), strict=True):
        sides.setdefault((repo or None, "" if repo else text.strip()), set()).add(side)
    assert all(len(side) == 1 for side in sides.values())
    alone = splits_of(table.select(["text"]), fraction).tolist()
    assert alone == split_codes(pa.array([text.strip() for text in texts]), fraction).tolist()


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share: float):
    with pytest.raises(ConfigError, match="val_fraction is"):
        check_val_fraction(share)
