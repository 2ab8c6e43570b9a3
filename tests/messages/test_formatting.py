import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.messages.formatting import (
    as_pairs,
    did_you_mean,
    format_bytes,
    format_documents,
    format_percent,
    format_tokens,
    pluralize,
)

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
        (pluralize(0, "document"), "0 documents"),
        (pluralize(1, "document"), "1 document"),
        (pluralize(5000, "document"), "5,000 documents"),
        (pluralize(1, "try", "tries"), "1 try"),
        (pluralize(2, "try", "tries"), "2 tries"),
        (format_tokens(0), "0 tokens"),
        (format_tokens(1), "1 token"),
        (format_tokens(51_200), "51,200 tokens"),
        (format_tokens(7_000_000), "7.00 M tokens"),
        (format_tokens(61_340_000), "61.3 M tokens"),
        (format_tokens(7.123e9), "7.12 G tokens"),
        (format_bytes(1), "1 byte"),
        (format_bytes(812.4), "812 bytes"),
        (format_bytes(412_600), "413 KB"),
        (format_bytes(3e6), "3.00 MB"),
        (format_bytes(1.234e9), "1.23 GB"),
        (format_bytes(1e18), "1,000,000 TB"),
        (format_documents(1, 5000), "1 document (5,000 tokens)"),
        (" ".join(as_pairs({"repo": "a/b", "language": "Rust"})), "repo=a/b language=Rust"),
        (did_you_mean("Rust"), "did you mean 'Rust'? "),
        (did_you_mean("train", quoted=False), "did you mean train? "),
        (did_you_mean(None), ""),
        (format_percent(0.0), None),
        (format_percent(0.004), "less than 1 %"),
        (format_percent(0.256), "26 %"),
        (format_percent(1.5), "100 %"),
    ],
)
def test_figures_are_told(told: str | None, expected: str | None):
    assert told == expected


@given(st.integers(2, 10**18))
def test_what_is_told_is_the_number_to_a_percent(number: int):
    """Never `0.0 M`: a unit is used from 1 on."""
    for told in (format_bytes(number), format_tokens(number)):
        figure, unit = re.fullmatch(r"([\d,.]+) (.+)", told).groups()  # type: ignore[union-attr]
        assert float(figure.replace(",", "")) * UNITS[unit] == pytest.approx(number, rel=0.01)
