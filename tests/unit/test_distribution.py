"""Quantiles and histograms of a data set's statistics."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luthier.distribution import BINS, QUANTILES, spread


def test_numbers_are_spread_over_bins_of_one_width() -> None:
    found = spread(list(range(100)))
    assert {name: found[name] for name in QUANTILES} == {
        "min": 0,
        "p10": 10,
        "p50": 50,
        "p90": 89,
        "p99": 98,
        "max": 99,
    }
    assert found["histogram"] == [{"from": 10 * n, "to": 10 * n + 10, "count": 10} for n in range(10)]


def test_a_few_large_numbers_join_the_last_bin() -> None:
    assert spread([1] * 500 + [2] * 500 + [9000])["histogram"] == [
        {"from": 1, "to": 2, "count": 500},
        {"from": 2, "to": 9001, "count": 501},
    ]


def test_equal_numbers_are_one_bin_and_none_are_no_bin() -> None:
    assert spread([40, 40])["histogram"] == [{"from": 40, "to": 41, "count": 2}]
    assert spread([]) == {**dict.fromkeys(QUANTILES, 0), "histogram": []}


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_every_number_is_counted_once(values: list[float]) -> None:
    rows = spread(values)["histogram"]
    assert sum(row["count"] for row in rows) == len(values)
    assert len(rows) <= BINS
    assert all(one["to"] == other["from"] for one, other in pairwise(rows))
