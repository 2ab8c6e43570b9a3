import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import ConfigError
from lightning_lance.splits import check_val_fraction, split_codes


def test_a_literal_table():
    """These are on disk: a change of the rule would put validation documents into training."""
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


def test_the_share_is_about_the_share():
    groups = pa.array([f"repo{i}" for i in range(20_000)])
    assert split_codes(groups, 0.0).sum() == 0
    assert 900 < split_codes(groups, 0.05).sum() < 1100


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share: float):
    with pytest.raises(ConfigError, match="val_fraction is"):
        check_val_fraction(share)
