import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.messages.formatting import counted, share_told, size_told, tokens_told

UNITS = {
    "tokens": 1,
    "M tokens": 1e6,
    "G tokens": 1e9,
    "T tokens": 1e12,
    "bytes": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (counted(0, "document"), "0 documents"),
        (counted(1, "document"), "1 document"),
        (counted(5000, "document"), "5,000 documents"),
        (counted(1, "try", "tries"), "1 try"),
        (counted(2, "try", "tries"), "2 tries"),
        (tokens_told(0), "0 tokens"),
        (tokens_told(1), "1 token"),
        (tokens_told(51_200), "51,200 tokens"),
        (tokens_told(7_000_000), "7.00 M tokens"),
        (tokens_told(61_340_000), "61.3 M tokens"),
        (tokens_told(7.123e9), "7.12 G tokens"),
        (size_told(1), "1 byte"),
        (size_told(812.4), "812 bytes"),
        (size_told(412_600), "413 KB"),
        (size_told(3e6), "3.00 MB"),
        (size_told(1.234e9), "1.23 GB"),
        (size_told(1e18), "1,000,000 TB"),
        (share_told(0.0), None),
        (share_told(0.004), "less than 1 %"),
        (share_told(0.256), "26 %"),
        (share_told(1.5), "100 %"),
    ],
)
def test_figures_are_told(told: str | None, expected: str | None):
    assert told == expected


@given(st.integers(2, 10**18))
def test_what_is_told_is_the_number_to_a_percent(number: int):
    """Never `0.0 M`: a unit is taken only where there is one of it."""
    for told in (size_told(number), tokens_told(number)):
        figure, unit = re.fullmatch(r"([\d,.]+) (.+)", told).groups()  # type: ignore[union-attr]
        assert float(figure.replace(",", "")) * UNITS[unit] == pytest.approx(number, rel=0.01)
